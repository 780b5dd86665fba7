"""What the task file asks of Python: the picture, the question, and whether an answer is right."""

from __future__ import annotations

from typing import Any

from PIL import Image


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question, from this disk."""
    return [Image.open(doc["picture"], formats=("PNG",)).convert("RGB")]


def question(doc: dict[str, Any]) -> str:
    """The same text for every model: lmms-eval chooses other prompts by `--model` only if told."""
    return str(doc["question"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, dict[str, Any]]:
    """One entry per question in the log, with what paired statistics need beside the score."""
    right = float(results[0].strip() == doc["answer"])
    return {"shapes": {"image": doc["image"], "group": doc["group"], "score": right}}


def mean(entries: list[dict[str, Any]]) -> float:
    """Accuracy."""
    return sum(entry["score"] for entry in entries) / len(entries)
