"""`task=generate`: one question, answered by the full model and by the reduced one.

    tokenreduce
    tokenreduce strategy=fastv scheduler.keep=0.25
    tokenreduce model=llava_1_5_7b image=cat.png prompt="What is this?" device=cuda

Prints one table, writes `result.json`, draws which patches stay at every stage (`kept.png`), and
writes a page to look at all of it (`report.html`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from tokenreduce.config import build_recipe, model_spec
from tokenreduce.data.images import load_image
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.errors import BadOption
from tokenreduce.files import atomic
from tokenreduce.inference.loaded import Loaded, load
from tokenreduce.inference.look import look
from tokenreduce.inference.table import comparison
from tokenreduce.program.pages import write_report
from tokenreduce.viz import Look, checked_size, stack, strip, write_panels


@dataclass(frozen=True)
class Question:
    """What is asked about which pictures, and the right answer where it is known."""

    text: str
    paths: tuple[str, ...]
    expected: str | None = None


def generate(config: DictConfig, output: Path) -> dict[str, Any]:
    """Answer, measure, draw; returns the numbers of the table.

    output: folder of this run; `kept.png`, `report.html` and `panels/` are written into it.
    """
    question, size = read_question(config), config.task.panels
    if size is not None:
        checked_size(size)
    images = [load_image(path) for path in question.paths]
    recipe = build_recipe(config)
    loaded = load(model_spec(config))
    seen = look(
        loaded,
        question.text,
        images,
        recipe,
        names=[Path(path).name for path in question.paths],
        expected=question.expected,
        limit=config.max_new_tokens,
        runs=config.task.runs,
    )
    numbers = {
        "question": question.text,
        "images": list(question.paths),
        "expected": question.expected,
        "model": loaded.source,
        "device": str(loaded.device),
        "answers": dict(seen.answers),
        "probability": seen.probability,
        "prefill_ms": seen.prefill_ms,
        "prefill_ratio": seen.prefill_ratio,
        "report": seen.report,
        "kept": {str(layer): row for layer, row in seen.kept.items()},
        **draw(seen, config, loaded, output),
    }
    Console().print(comparison(numbers, f"{config.strategy.name}, {config.scheduler.name}"))
    return numbers


def draw(seen: Look, config: DictConfig, loaded: Loaded, output: Path) -> dict[str, Any]:
    """Write `kept.png`, and the page and the panels where asked for; returns where they are."""
    task = config.task
    strips = [strip(s.image, s.boxes, s.stages, bool(task.scores)) for s in seen.scenes]
    with atomic(output / "kept.png") as draft:
        stack(strips).save(draft, "PNG")
    found: dict[str, Any] = {"picture": str(output / "kept.png")}
    if task.panels is not None:
        panels = write_panels(seen.scenes, output / "panels", task.panels, bool(task.scores))
        found["panels"] = [str(path) for path in panels]
    if task.page:
        title = f"{config.strategy.name}, {config.scheduler.name}"
        found["page"] = str(write_report(output, [seen], config, loaded, title))
    return found


def read_question(config: DictConfig) -> Question:
    """What the user asks, or the example that ships with the package.

    Raises:
        ValueError: a picture without a question, or a question to someone else's model without a
            picture.
    """
    folder = checkpoint_dir().parent
    picture = (str(folder / "example.png"),)
    if config.image is None and (config.prompt is None or config.model.get("id") is None):
        example = json.loads((folder / "example.json").read_text())
        if config.prompt is None:
            return Question(example["question"], picture, example["answer"])
        return Question(str(config.prompt), picture)
    if config.image is None:
        raise BadOption("a prompt needs a picture: add image=path/to/picture.png")
    if config.prompt is None:
        raise BadOption('a picture needs a question: add prompt="What is this?"')
    names = config.image if isinstance(config.image, ListConfig) else [config.image]
    return Question(str(config.prompt), tuple(str(name) for name in names))
