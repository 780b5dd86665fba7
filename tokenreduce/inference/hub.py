"""Whether the hub can be asked for a checkpoint, found out once and at once."""

from __future__ import annotations

import warnings
from pathlib import Path

from tokenreduce.errors import BadOption

SECONDS = 10
"""How long the hub may take to answer."""


def asked_once(name: str, revision: str | None) -> dict[str, bool]:
    """Options of `from_pretrained` for the checkpoint `name`: of this disk alone without a network.

    transformers would ask five times for every file, and say so each time.

    Raises:
        ValueError: it is not on this disk, and the hub does not answer.
    """
    if Path(name).is_dir():
        return {}
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cached = hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        try:
            hub.HfApi().model_info(name, revision=revision, timeout=SECONDS)
        except (HfHubHTTPError, HFValidationError):
            return {}  # the hub has answered: what it says is told where files are read
        except Exception as error:  # each release of the hub's client has its own classes
            why = f"{constants.ENDPOINT} does not answer ({_said(error)})"
        else:
            return {}
    if not isinstance(cached, str):
        raise BadOption(
            f"model.id={name} is not on this disk, and {why}: connect, or give "
            "model.id=path/to/folder of a downloaded checkpoint"
        )
    if not constants.HF_HUB_OFFLINE:
        warnings.warn(f"{why}: {name} is read from this disk", stacklevel=3)
    return {"local_files_only": True}


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 100 else f"{text[:97]}..."
