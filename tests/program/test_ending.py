"""How runs end that do not end well: messages, exit codes, and no empty folders."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tokenreduce.program import ending
from tokenreduce.program.refusals import is_refusal, one_line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.json"), "(a/b.json)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "hydra.run.dir=..."),
        (OSError(errno.EROFS, "Read-only file system", "out"), "hydra.run.dir=..."),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "no room to write"),
        (Exception("Error while serializing: IoError(Os { kind: StorageFull })"), "no room"),
    ],
)
def test_a_disk_that_cannot_be_written_is_one_line(error: Exception, message: str) -> None:
    assert is_refusal(error)
    assert message in one_line(error)
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = error
    assert is_refusal(wrapped)


def test_a_missing_file_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("not there").read_text()
    assert not is_refusal(caught.value)


def made(folder: Path) -> Path:
    """A folder as Hydra makes it for a run."""
    (folder / ".hydra").mkdir(parents=True)
    for name in ending.HYDRA:
        (folder / ".hydra" / name).touch()
    return folder


def test_only_folders_without_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ending.tidy(made(tmp_path / "outputs" / "generate" / "now"))
    assert list(tmp_path.iterdir()) == []
    for name in ("kept.png", ".hydra/mine.yaml"):
        folder = made(tmp_path / "outputs" / "generate" / name[:4])
        (folder / name).touch()
        ending.tidy(folder)
        assert (folder / ".hydra" / "config.yaml").is_file()
    mine = made(tmp_path / "runs" / "mine")
    ending.tidy(mine, keep=True)
    assert list(mine.iterdir()) == []
    ending.tidy(made(tmp_path / "runs" / "other"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]
    monkeypatch.chdir(made(tmp_path / "here"))
    ending.tidy(tmp_path / "here")
    assert (tmp_path / "here").is_dir()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made(tmp_path / "out" / "0")
    assert "start the same command again" in ending.going_on(folder, resumes=False, sweep=False)
    assert "start the same command again" in ending.going_on(folder, resumes=True, sweep=False)
    (folder / "checkpoints").mkdir()
    assert "with hydra.run.dir=out/0 goes on" in ending.going_on(folder, resumes=True, sweep=False)
    assert "with hydra.sweep.dir=out goes on" in ending.going_on(folder, resumes=True, sweep=True)
    assert "start the same command again" in ending.going_on(folder, resumes=False, sweep=False)
