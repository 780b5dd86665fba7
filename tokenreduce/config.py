"""Where the command line's configuration lies, and how its names become objects.

A config names things (`name: fastv`) and gives their options; the registries turn names into
objects. No config can name code: `_target_` is refused.
"""

from __future__ import annotations

from pathlib import Path


def directory() -> Path:
    """The folder of configs: inside the package in a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: neither holds a `config.yaml`: the installation is broken.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no config.yaml in {here / 'conf'} or {here.parent / 'conf'}: reinstall tokenreduce"
    )
