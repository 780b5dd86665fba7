"""One question under the eyes: answered in full and reduced, measured, and ready to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import tokenreduce as tr
from tokenreduce.config import public
from tokenreduce.downsample import shrunk
from tokenreduce.tasks import result
from tokenreduce.tasks.loading import Loaded
from tokenreduce.tasks.measuring import Context, likelihood, prefill, prefill_times, ratio
from tokenreduce.tasks.prompting import encode
from tokenreduce.viz import Look, scenes, write_page


def look(
    loaded: Loaded,
    question: str,
    images: Sequence[Image.Image],
    reduced: Callable[[], tr.Reduction],
    *,
    names: Sequence[str] = (),
    expected: str | None = None,
    accepts: Callable[[str], bool] | None = None,
    limit: int = 16,
    runs: int = 0,
    small: Sequence[Image.Image] | None = None,
) -> Look:
    """Ask both models one question, and note what the reduction did to its pictures.

    Args:
        loaded: the model, not reduced, and its processor.
        question: or a complete prompt with image tokens in it.
        images: what it is about.
        reduced: reduces the model: `lambda: tr.reduce(loaded.model, "fastv")`.
        names: of the images.
        expected: the right answer where it is known.
        accepts: whether an answer is right; None compares it with `expected`, word for word.
        limit: tokens of an answer at most.
        runs: timed prefills of each model; 0 measures no time.
        small: what the reduced model is given in place of `images`, where a method makes pictures
            smaller.
    """
    whole = encode(loaded, question, images)
    prompt = whole if small is None else encode(loaded, question, small)
    with reduced() as reduction:  # first, so that what cannot be reduced is refused at once
        short = answer(loaded, prompt, limit)
        prefill(loaded.model, prompt)
        report = reduction.report
        kept = {layer: rows[0].tolist() for layer, rows in reduction.kept.items()}
        processor = loaded.processor.image_processor
        drawn = scenes(reduction, images, names=names, processor=processor)
        if small is not None:
            prefill(loaded.model, whole)
            report = shrunk(report, reduction.report)
    full = answer(loaded, whole, limit)
    contexts: dict[str, Context] = {"full": nullcontext, "reduced": reduced}
    chances: dict[str, dict[str, float]] = {}
    for (name, context), inputs in zip(contexts.items(), (whole, prompt), strict=True):
        with context():
            chances[name] = {
                loaded.text(ids): likelihood(loaded.model, inputs, ids) for ids in (full, short)
            }
    times: dict[str, list[float]] = {}
    if runs:
        found = prefill_times(loaded.model, (whole, prompt), list(contexts.values()), runs)
        times = dict(zip(contexts, found, strict=True))
    answers = {"full": loaded.text(full), "reduced": loaded.text(short)}
    return Look(
        question=question,
        answers=answers,
        scenes=drawn,
        report=report.to_dict(),
        expected=expected,
        probability=chances,
        prefill_ms=times,
        prefill_ratio=ratio(times["reduced"], times["full"]) if times else None,
        kept=kept,
        right=None if accepts is None else {who: accepts(x) for who, x in answers.items()},
    )


def write_report(
    output: Path,
    looks: Sequence[Look],
    config: DictConfig,
    loaded: Loaded,
    title: str,
    summary: Sequence[str] = (),
) -> Path:
    """Write `report.html` into a run's folder: the questions, and what the run was.

    summary: sentences on all questions, where these are some of them.
    """
    commit, changes, _ = (result.commit() or "").partition("+")
    facts = {
        "model": "embedded" if loaded.embedded else loaded.source,
        "device": loaded.device,
        "commit": f"{commit[:12]}{changes and ' with changes'}" or None,
    }
    details = {
        "Configuration": yaml.safe_dump(public(config), allow_unicode=True, sort_keys=False),
        "Versions": result.versions(),
        "Machine": result.machine(),
    }
    path = output / "report.html"
    return write_page(path, looks, title=title, facts=facts, details=details, summary=summary)


def answer(loaded: Loaded, inputs: Mapping[str, Any], limit: int) -> Tensor:
    """(n,) the tokens of the greedy answer, with the one that ends it, at most `limit`."""
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    new: Tensor = ids[0, inputs["input_ids"].shape[1] :]
    return new
