"""One question under the eyes: answered in full and reduced, measured, and ready to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from PIL import Image

import tokenreduce as tr
from tokenreduce.downsample import shrunk
from tokenreduce.inference.answer import answer
from tokenreduce.inference.inputs import encode, prepare
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.measure import Context, likelihood, prefill, prefill_times, ratio
from tokenreduce.viz import Look, scenes


def look(
    loaded: Loaded,
    question: str,
    images: Sequence[Image.Image],
    recipe: str | tr.Strategy | tr.Recipe,
    *,
    names: Sequence[str] = (),
    expected: str | None = None,
    accepts: Callable[[str], bool] | None = None,
    limit: int = 16,
    runs: int = 0,
) -> Look:
    """Ask both models one question, and note what the reduction did to its pictures.

    Args:
        loaded: the model, not reduced, and its processor.
        question: or a complete prompt with image tokens in it.
        images: what it is about.
        recipe: with what the model is reduced: a name, a strategy, or a recipe.
        names: of the images.
        expected: the right answer where it is known.
        accepts: whether an answer is right; None compares it with `expected`, word for word.
        limit: tokens of an answer at most.
        runs: timed prefills of each model; 0 measures no time.
    """
    recipe = tr.Recipe.parse(recipe)
    made, inside = prepare(loaded, recipe, images), recipe.in_model()
    whole = encode(loaded, question, images)
    prompt = whole if made.full is None else encode(loaded, question, made.images)

    def reduced() -> tr.Reduction:
        return tr.reduce(loaded.model, inside)

    with reduced() as reduction:  # first, so that what cannot be reduced is refused at once
        short = answer(loaded, prompt, limit)
        prefill(loaded.model, prompt)
        report = reduction.report
        kept = {layer: rows[0].tolist() for layer, rows in reduction.kept.items()}
        processor = loaded.processor.image_processor
        drawn = scenes(reduction, images, names=names, processor=processor)
        if made.full is not None:
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
