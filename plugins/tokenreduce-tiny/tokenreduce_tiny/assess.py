"""Measures a saved checkpoint on held-out questions: by generation, teacher-forced, and blinded.

Blinded means: from decoder layer k on, no query sees an image token, positions kept. That is what
dropping every visual token at the input of layer k amounts to, done with the mask alone, so the
figures depend on nothing of the reduction engine.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenreduce.data import TYPES, Sample, sample
from tokenreduce.data.items import HELDOUT, items_of
from tokenreduce.data.questions import DIRECTIONS
from tokenreduce.evaluation.intervals import wilson
from tokenreduce.evaluation.scoring import right
from tokenreduce.inference.answer import answers
from tokenreduce_tiny.language import AnsweringModel
from tokenreduce_tiny.packing import NAMES, Packer

Counts = dict[str, list[bool]]


def assess(
    checkpoint: Path, seed: int, images: int, questions: int, blind_images: int
) -> dict[str, Any]:
    """Accuracy by question type with 95 % Wilson intervals, and the macro mean of the types.

    `blind_images` of the images are used for the cost of dropping all visual tokens at each layer.
    """
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    samples = [
        sample(seed, "heldout", HELDOUT + number, questions=questions) for number in range(images)
    ]
    packer = Packer(processor, model.config.image_seq_length)
    few = samples[:blind_images]
    generated = generate(model, processor, samples)
    blinded = {"none": summarise(force(model, packer, few))}
    for layer in range(model.config.text_config.num_hidden_layers):
        with blind(model, layer):
            blinded[str(layer)] = summarise(force(model, packer, few))
    return {
        "images": images,
        "questions": images * questions,
        "split": "heldout",
        "seed": seed,
        "first_sample": HELDOUT,
        "difficulty": 1.0,
        "generated": summarise(generated),
        "left_of_by_direction": {
            name: {
                "accuracy": round(sum(generated[name]) / max(1, len(generated[name])), 4),
                "questions": len(generated[name]),
            }
            for name in DIRECTIONS
        },
        "teacher_forced": summarise(force(model, packer, samples)),
        "all_visual_tokens_dropped_at_layer": blinded,
        "blind_questions": blind_images * questions,
        "device": f"cpu ({platform.machine()}), {torch.get_num_threads()} thread(s), fp32",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def generate(model: Any, processor: Any, samples: Sequence[Sample], batch: int = 32) -> Counts:
    """Answer each question alone by greedy `generate()`; right means the same text.

    The answers to `left_of` are counted once more by direction.
    """
    counts: Counts = defaultdict(list)
    items = items_of(samples)
    for item, good in zip(
        items, right(items, answers(model, processor, items, batch)), strict=True
    ):
        counts[item.kind].append(bool(good))
        if item.kind == "left_of":
            counts[next(name for name in DIRECTIONS if name in item.question)].append(bool(good))
    return counts


@torch.no_grad()
def force(model: Any, packer: Packer, samples: Sequence[Sample], batch: int = 16) -> Counts:
    """Predict every token of each answer from the true tokens before it, questions packed."""
    counts: Counts = defaultdict(list)
    answering = AnsweringModel(model).eval()
    for start in range(0, len(samples), batch):
        packed = packer(samples[start : start + batch])
        good, asked = answering(
            **packed.inputs, labels=packed.labels, blocks=packed.blocks, types=packed.types
        )["tallies"].tolist()
        for name, hits, all_ in zip(NAMES, good, asked, strict=True):
            counts[name] += [True] * hits + [False] * (all_ - hits)
    return counts


@contextmanager
def blind(model: Any, first: int) -> Iterator[None]:
    """Hide the image tokens from every query in the decoder layers `first` and after."""
    shown: dict[str, torch.Tensor] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        shown["image"] = kwargs["input_ids"] == model.config.image_token_id

    def hide(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]  # (b, 1, l, l) bool, as packing makes it
        return args, {**kwargs, "attention_mask": mask & ~shown["image"][:, None, None, :]}

    hooks = [model.model.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [
        layer.register_forward_pre_hook(hide, with_kwargs=True)
        for layer in model.model.language_model.layers[first:]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def summarise(counts: Counts) -> dict[str, Any]:
    """Share of right answers by type with a 95 % interval, and their macro mean."""
    types: dict[str, Any] = {}
    for name in TYPES:
        own = counts[name]
        share = sum(own) / max(1, len(own))
        low, high = wilson(sum(own), len(own))
        types[name] = {
            "accuracy": round(share, 4),
            "interval": [round(low, 4), round(high, 4)],
            "questions": len(own),
        }
    macro = sum(row["accuracy"] for row in types.values()) / len(types)
    return {"macro": round(macro, 4), "types": types}
