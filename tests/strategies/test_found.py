"""What ships is found in its folder: no list names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokenreduce
import tokenreduce as tr
from tokenreduce.registry import import_modules

PACKAGE = Path(tokenreduce.__file__).parent
FOLDERS: dict[str, Any] = {
    "strategies": tr.strategies,
    "schedulers": tr.schedulers,
    "adapters": tr.adapters,
}


def python(code: str, *path: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(map(str, [*path, PACKAGE.parent])), "PATH": ""},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_folder_is_imported(folder: str) -> None:
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert len(FOLDERS[folder]) > 4  # which fills it
    assert {f"tokenreduce.{folder}.{name}" for name in files} <= sys.modules.keys()


def test_names_come_in_order() -> None:
    """Whatever is imported first: tables and sweeps list methods alike everywhere."""
    shipped = [n for n, k in tr.strategies.items() if k.__module__.startswith("tokenreduce.")]
    assert shipped == sorted(shipped)
    late = python(
        "import tokenreduce.strategies.vtw, tokenreduce as tr; print(*tr.strategies)"
    ).split()
    assert late == shipped


def test_a_file_that_is_put_into_a_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "found_home"
    home.mkdir()
    for name in ("b", "a", "__init__"):
        (home / f"{name}.py").write_text("" if name == "__init__" else f"print({name!r})")
    monkeypatch.syspath_prepend(tmp_path)
    import_modules("found_home")
    assert capsys.readouterr().out == "a\nb\n"


def test_a_broken_file_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "broken_home"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "bad.py").write_text("raise ImportError('no such thing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no such thing"):
        import_modules("broken_home")


def test_schedules_are_found_by_the_names_of_their_classes() -> None:
    from tokenreduce.schedulers import Single

    assert Single is tr.Single
    with pytest.raises(ImportError, match="Doubled"):
        from tokenreduce.schedulers import Doubled  # noqa: F401
