"""`task=generate`: one question, answered by the full model and by the reduced one.

    tokenreduce
    tokenreduce strategy=fastv scheduler.keep=0.25
    tokenreduce model=llava_1_5_7b image=cat.png prompt="What is this?" device=cuda

Prints one table, writes `result.json`, and draws which patches stay at every stage.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.console import Console
from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.config import build_scheduler, build_strategy
from tokenreduce.data.images import load_image
from tokenreduce.downsample import shrunk
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.tasks import tasks
from tokenreduce.tasks.loading import Loaded, load
from tokenreduce.tasks.measuring import likelihood, prefill, prefill_times, ratio
from tokenreduce.tasks.prompting import encode
from tokenreduce.tasks.table import comparison
from tokenreduce.viz import Stage, stack, strip


@dataclass(frozen=True)
class Question:
    """What is asked about which pictures, and the right answer where it is known."""

    text: str
    paths: tuple[str, ...]
    expected: str | None = None


@tasks.register("generate")
def generate(config: DictConfig, output: Path) -> dict[str, Any]:
    """Answer, measure, draw; returns the numbers of the table.

    output: folder of this run; `kept.png` is written into it.
    """
    question = read_question(config)
    images = [load_image(path) for path in question.paths]
    strategy, scheduler = build_strategy(config), build_scheduler(config)
    loaded = load(config)
    inputs = small = encode(loaded, question.text, images)
    if strategy.site == "pictures":  # smaller ones; in the model nothing is left to do
        if config.min_tokens:
            raise ValueError(
                f"min_tokens={config.min_tokens} is decided in the model, and "
                f"strategy={config.strategy.name} acts before it: leave one of them out"
            )
        keep = only_share(scheduler, loaded)
        made = tr.downsample(loaded.processor, images, keep)
        small = encode(loaded, question.text, made.images)

    def reduced() -> tr.Reduction:
        return tr.reduce(
            loaded.model,
            "none" if strategy.site == "pictures" else strategy,
            scheduler,
            positions=config.positions,
            logits=config.logits or "full",
            seed=config.seed,
            min_tokens=config.min_tokens,
        )

    with reduced() as reduction:  # first, so that what cannot be reduced is refused at once
        short = answer(loaded, small, config.max_new_tokens)
        prefill(loaded.model, small)
        report, kept = reduction.report, reduction.kept
        views = [_view(reduction, loaded, image) for image in images]
        pictures = [p.inside(v) for p, v in zip(reduction.places[0], views, strict=True)]
        merged = {layer for layer, plan in reduction.plans.items() if plan.merges}
        picture = draw(images, pictures, kept, merged, output / "kept.png")
        if small is not inputs:
            prefill(loaded.model, inputs)
            report = shrunk(report, reduction.report)
    full = answer(loaded, inputs, config.max_new_tokens)
    chances: dict[str, dict[str, float]] = {}
    for name, prompt, context in (("full", inputs, nullcontext), ("reduced", small, reduced)):
        with context():
            chances[name] = {
                loaded.text(ids): likelihood(loaded.model, prompt, ids) for ids in (full, short)
            }
    times = prefill_times(loaded.model, (inputs, small), (nullcontext, reduced), config.task.runs)
    numbers = {
        "question": question.text,
        "images": list(question.paths),
        "expected": question.expected,
        "model": loaded.source,
        "device": str(loaded.device),
        "answers": dict(zip(("full", "reduced"), map(loaded.text, (full, short)), strict=True)),
        "probability": chances,
        "prefill_ms": dict(zip(("full", "reduced"), times, strict=True)),
        "prefill_ratio": ratio(times[1], times[0]),
        "report": report.to_dict(),
        "kept": {str(layer): rows[0].tolist() for layer, rows in kept.items()},
        "picture": str(picture),
    }
    Console().print(comparison(numbers, f"{config.strategy.name}, {config.scheduler.name}"))
    return numbers


def only_share(scheduler: tr.Scheduler, loaded: Loaded) -> float:
    """The share of the tokens that a schedule lets into the language model.

    Raises:
        ValueError: a schedule that reduces elsewhere than before the first layer.
    """
    model = tr.unwrap(loaded.model)
    stops = scheduler.stops(len(adapter_for(model).decoder(model).layers))
    if len(stops) != 1 or stops[0].layer != 0:
        raise ValueError(
            "smaller pictures have fewer tokens from layer 0 on, but the schedule stops at layers "
            f"{[stop.layer for stop in stops]}: use scheduler=input scheduler.keep=..."
        )
    return stops[0].keep


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
        raise ValueError("a prompt needs a picture: add image=path/to/picture.png")
    if config.prompt is None:
        raise ValueError('a picture needs a question: add prompt="What is this?"')
    names = config.image if isinstance(config.image, ListConfig) else [config.image]
    return Question(str(config.prompt), tuple(str(name) for name in names))


def answer(loaded: Loaded, inputs: Mapping[str, Any], limit: int) -> Tensor:
    """(n,) the tokens of the greedy answer, with the one that ends it, at most `limit`."""
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    new: Tensor = ids[0, inputs["input_ids"].shape[1] :]
    return new


def draw(
    images: Sequence[Image.Image],
    pictures: Sequence[tr.Picture],
    kept: Mapping[int, list[Tensor]],
    merged: Collection[int],
    path: Path,
) -> Path:
    """Draw the kept patches of every picture at every stage; returns `path`.

    Where tokens are merged (the layers in `merged`), what is bright is where the merged ones stand.
    """
    sheets, start = [], 0
    for image, picture in zip(images, pictures, strict=True):
        end = start + len(picture)
        stages = [Stage(range(len(picture)), f"all {len(picture)}")]
        for layer, rows in kept.items():
            stays = [i - start for i in rows[0].tolist() if start <= i < end]
            how = ", merged" if layer in merged else ""
            stages.append(Stage(stays, f"from layer {layer}: {len(stays)}{how}"))
        sheets.append(strip(image, picture.box.numpy(), stages))
        start = end
    stack(sheets).save(path)
    return path


def _view(
    reduction: tr.Reduction, loaded: Loaded, image: Image.Image
) -> tuple[float, float, float, float]:
    """The part of a picture that the model was given: preprocessing may crop or pad it."""
    return reduction.adapter.view(loaded.processor.image_processor, image.width, image.height)
