"""What a user does with a checkpoint's folder, step by step, for any family that has a kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tokenreduce.testing.checkpoints import write
from tokenreduce.testing.plain import agrees_with_itself

AT = tr.Explicit(layers=(0, 2, 4), keeps=(0.75, 0.5, 0.25))
STEPS = 4
Grid = tuple[int, int, int]
"""Frames, rows and columns of a picture's tokens."""


def load(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The processor and the model of a tiny checkpoint, loaded from its folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    write(name, folder)
    processor = AutoProcessor.from_pretrained(folder)
    return processor, AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


def image(height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """A part of a message: noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def video(frames: int, height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """The same with a video, given as a list of frames."""
    shape = (frames, height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return {"type": "video", "video": [Image.fromarray(frame) for frame in pixels]}


def ask(processor: Any, *prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's inputs from the chat template; several prompts make a padded batch."""
    question = {"type": "text", "text": "What is this?"}
    messages = [[{"role": "user", "content": [*parts, question]}] for parts in prompts]
    options = {"processor_kwargs": {"padding": True}} if len(prompts) > 1 else {}
    inputs = processor.apply_chat_template(
        messages if len(prompts) > 1 else messages[0],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    return dict(inputs)


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """Greedy generation of a few tokens, with the logits of every step."""
    return model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def check(model: Any, inputs: dict[str, Any], grids: list[list[Grid]], **options: Any) -> Any:
    """Generates with and without a reduction, and holds what is reported against `grids`.

    Args:
        model: as loaded; it must be as it was afterwards.
        inputs: of one or several prompts.
        grids: of every prompt's pictures, in reading order.
        options: for `generate`.
    """
    counts = [sum(t * h * w for t, h, w in row) for row in grids]
    reduction = compare(model, inputs, counts, **options)
    places = reduction.pictures
    assert [[grid_of(picture) for picture in row] for row in places] == grids
    return reduction


def compare(model: Any, inputs: dict[str, Any], counts: list[int], **options: Any) -> Any:
    """Generates with and without a reduction, and holds its report against the visual tokens.

    Args:
        model: as loaded; it must be as it was afterwards.
        inputs: of one or several prompts.
        counts: visual tokens of every prompt.
        options: for `generate`.
    """
    if options and not agrees_with_itself(model, inputs, **options):
        pytest.skip("this transformers cannot do it without a reduction either")
    with torch.no_grad():
        before = generate(model, inputs, **options)
        with tr.reduce(model, "pyramid_drop", AT) as reduction:
            reduced = generate(model, inputs, **options)
        after = generate(model, inputs, **options)
    assert torch.equal(after.sequences, before.sequences)
    for mine, theirs in zip(after.logits, before.logits, strict=True):
        assert torch.equal(mine, theirs)
    report = reduction.report
    assert report.visual_tokens == counts
    assert report.applied == [n > 0 for n in counts]
    assert report.flops < report.flops_full
    for layer, keep in zip(AT.layers, AT.keeps, strict=True):
        assert [len(x) for x in reduction.kept[layer]] == [round(n * keep) for n in counts]
    assert (reduced.logits[0] - before.logits[0]).abs().max() > 1e-2  # it did something
    return reduction


def grid_of(picture: tr.Picture) -> Grid:
    """Frames, rows and columns of a picture, whose tokens are in reading order."""
    shape = tuple(int(x.max()) + 1 for x in (picture.frame, picture.row, picture.column))
    t, h, w = shape
    flat = (picture.frame * h + picture.row) * w + picture.column
    assert torch.equal(flat, torch.arange(t * h * w))
    return t, h, w
