"""The embedded model: a small trained LVLM that ships with the package (`model=tiny`)."""

from pathlib import Path


def checkpoint_dir() -> Path:
    """Where the checkpoint, its processor and its log lie; give it to any `from_pretrained`."""
    return Path(__file__).parent / "checkpoint"
