"""The laws of a strategy on a live model, one function each.

Every function takes a `Trial` and raises an AssertionError that names the law and the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.scheduler import Stop
from tokenreduce.testing import oracle
from tokenreduce.testing.batches import Batch
from tokenreduce.testing.trial import STEPS, Outcome, Replay, Trial, everything, generate
from tokenreduce.tokens import Gate, Plan

TOLERANCE = 1e-5
"""In logits, which have a standard deviation of about 1, in fp32."""
OTHER_SHAPES = 2e-5
"""The same where the two runs have other shapes (a row alone, decoding with a cache, a loop by
hand): fp32 sums are
then taken in another order, over the depth of the model."""


def keeping_all_is_the_plain_model(trial: Trial) -> None:
    """Law 1: stops that keep every token change no bit, in prefill and in decoding."""
    keep_all = everything(trial.stops)
    given = trial.batch("left")
    plain = generate(trial.model, given)
    for rule in trial.rules:
        with trial.reduce(scheduler=keep_all, positions=rule) as reduction:
            with torch.no_grad():
                logits = given.run(trial.model, reduction, use_cache=False).logits
            with given.shown(reduction):
                out = generate(trial.model, given)
        same("law 1: keeping all is the plain model", trial, logits, trial.plain("left"))
        same("law 1: generating while keeping all", trial, out.sequences, plain.sequences)
        for mine, theirs in zip(out.logits, plain.logits, strict=True):
            same("law 1: a step while keeping all", trial, mine, theirs)


def dropping_is_masking(trial: Trial) -> None:
    """Law 2: what is dropped at layer k is what no query sees from layer k on; positions stay.

    A dropped position gets the output of the last token that is left before it.
    """
    for side in ("right", "left"):
        done = trial.forward("keep", side)
        if done.merges:
            return
        with torch.no_grad(), oracle.masked(trial.model, done.batch.visual, done.kept):
            hidden = done.batch.run(trial.model, use_cache=False).logits
        expected, known = oracle.filled(
            hidden, oracle.left(done.batch.visual, done.batch.real, done.kept)
        )
        close("law 2: dropping is masking", trial, done.logits, expected, known & done.batch.real)


def a_gate_of_ones_changes_nothing(trial: Trial) -> None:
    """What a learned choice passes through in training changes no bit while it is open."""
    done = trial.forward("keep", "right")
    opened, v, logits = {}, max(done.batch.counts), []
    for layer, plan in sorted(done.plans.items()):
        opened[layer] = _opened(plan, v)
        v = plan.keep.shape[1]
    for plans in (done.plans, opened):
        again = Replay(plans, trial.stops)
        with torch.no_grad(), trial.reduce(strategy=again, scheduler=None) as reduction:
            logits.append(done.batch.run(trial.model, reduction, use_cache=False).logits)
    same("a gate of ones changes nothing", trial, logits[1], logits[0])


def _opened(plan: Plan, v: int) -> Plan:
    """The plan with a gate that lets everything through, and a token of `v` after it."""
    fallback = torch.zeros(len(plan.keep), v)
    fallback[:, :1] = 1.0
    return replace(plan, gate=Gate(torch.ones(plan.keep.shape), fallback))


def decoding_is_recomputing(trial: Trial) -> None:
    """Law 3: every step with a cache equals a pass over the whole sequence without one."""
    for rule in trial.rules:
        done = trial.generated(rule)
        again = trial.replay(done, rule)
        close(
            f"law 3: decoding is recomputing ({rule})",
            trial,
            done.logits,
            again,
            None,
            OTHER_SHAPES,
        )
        if rule == "keep" and not done.merges:
            given = done.batch
            counted = {} if trial.family.own_positions else {"position_ids": given.positions()}
            with torch.no_grad(), oracle.masked(trial.model, given.visual, done.kept):
                hidden = given.run(trial.model, use_cache=False, **counted)
            steps = hidden.logits[:, -STEPS:]
            close(
                "laws 2, 3: decoding sees what was kept",
                trial,
                done.logits,
                steps,
                None,
                OTHER_SHAPES,
            )


def compacting_is_renumbering(trial: Trial) -> None:
    """Compact positions: a hand-written pyramid that renumbers after every stop."""
    if "compact" not in trial.rules:
        refused(trial, ValueError, "positions", positions="compact")
        return
    done = trial.forward("compact", "right")
    if done.merges:
        return
    _renumbered(trial, done, done.logits, "prefill")
    _renumbered(trial, trial.generated("compact"), None, "decoding")


def _renumbered(trial: Trial, done: Outcome, logits: Tensor | None, what: str) -> None:
    given = done.batch
    calls = oracle.handed(trial.model, given.inputs)
    for i in range(len(given.counts)):
        real, kept = given.real[i], {k: rows[i] for k, rows in done.kept.items()}
        seen = [mask[i][real][:, real] for _, mask in calls]
        with torch.no_grad():
            expected, at = oracle.pyramid(
                trial.model, calls[0][0][i, real], given.visual[i, real], kept, seen
            )
        if logits is None:
            mine, expected = done.logits[i], expected[-STEPS:]
        else:
            mine = logits[i, real][at]
        law = f"compact is renumbering ({what}, sample {i})"
        close(law, trial, mine, expected, tolerance=OTHER_SHAPES)


def rows_stand_alone(trial: Trial) -> None:
    """Law 4: a sample of a ragged, padded batch equals that sample alone."""
    sides = [trial.forward("keep", side) for side in ("left", "right")]
    rows = range(len(sides[0].batch.counts))
    with trial.reduce(positions="keep") as reduction:
        for i in rows:
            alone = sides[0].batch.row(i)
            with torch.no_grad():
                logits = alone.run(trial.model, reduction, use_cache=False).logits[0]
            has = alone.counts[0] > 0
            for done in sides:
                mine = done.logits[i, done.batch.real[i]]
                at = _positions_of(alone, reduction)
                close(f"law 4: sample {i} alone", trial, mine, logits, at, OTHER_SHAPES)
                if has:
                    _same_choice(trial, i, done, reduction.kept)


def _positions_of(alone: Batch, reduction: Any) -> Tensor:
    """(l,) where a token is left at or before the position; elsewhere there is no output."""
    kept = reduction.kept if alone.counts[0] else {}
    present = oracle.left(alone.visual, alone.real, kept)[0]
    return present.cummax(dim=0).values


def _same_choice(trial: Trial, i: int, done: Outcome, alone: dict[int, list[Tensor]]) -> None:
    for layer, samples in done.kept.items():
        assert torch.equal(samples[i], alone[layer][0]), (
            f"law 4: {trial} keeps other tokens of sample {i} at layer {layer} in a batch "
            f"({samples[i].tolist()}) than alone ({alone[layer][0].tolist()})"
        )


def too_few_tokens_are_left_alone(trial: Trial) -> None:
    """`min_tokens`: such samples are the plain model's, others what they are without it."""
    given, stops = trial.batch("right"), trial.stops
    due, most = any(stop.keep < 1 for stop in stops), max(given.counts)
    with torch.no_grad(), trial.reduce(min_tokens=most + 1) as reduction:
        logits = given.run(trial.model, reduction, use_cache=False).logits
        told = [why is not None for why in reduction.report.skipped]
    same("min_tokens: all are left alone", trial, logits, trial.plain("right"))
    assert told == [due and n > 0 for n in given.counts], f"min_tokens: {trial} reports {told}"
    with torch.no_grad(), trial.reduce(min_tokens=most, positions="keep") as reduction:
        logits = given.run(trial.model, reduction, use_cache=False).logits
        kept = reduction.kept
    done = trial.forward("keep", "right")
    for i, n in enumerate(given.counts):
        left, real = n < most, given.real[i]
        expected = (trial.plain("right") if left else done.logits)[i, real]
        law = f"min_tokens: sample {i} of {n} visual tokens next to one of {most}"
        close(law, trial, logits[i, real], expected, tolerance=OTHER_SHAPES)
        for layer, samples in done.kept.items():
            whole = torch.arange(n) if left else samples[i]
            assert torch.equal(kept[layer][i], whole), f"{law}: {trial} keeps {kept[layer][i]}"


def order_ascends_and_budget_is_exact(trial: Trial) -> None:
    """Laws 6 and 7: kept tokens ascend, are as many as asked, and that is what ran."""
    done = trial.forward("keep", "right")
    counts = torch.tensor(done.batch.counts)
    report = done.report
    assert list(done.kept) == [stop.layer for stop in trial.stops], (
        f"law 7: {trial} stopped at {list(done.kept)}, asked for {trial.stops}"
    )
    before = [torch.arange(int(n)) for n in counts]
    for stop, said in zip(trial.stops, report.stops, strict=True):
        for i, index in enumerate(done.kept[stop.layer]):
            budget = min(_rounded(int(counts[i]), stop), len(before[i]))
            assert len(index) == budget == said["kept"][i], (
                f"law 7: {trial} kept {len(index)} tokens of sample {i} at layer {stop.layer} "
                f"and reported {said['kept'][i]}; the budget is {budget} of {int(counts[i])}"
            )
            assert bool((index.diff() > 0).all()), f"law 6: {trial} kept {index.tolist()}"
            assert bool(torch.isin(index, before[i]).all()), (
                f"law 6: {trial} brought tokens back at layer {stop.layer}"
            )
        before = done.kept[stop.layer]
    _physical(trial, done)


def _physical(trial: Trial, done: Outcome) -> None:
    """What the attention of every layer was given is what the report says; text is all there."""
    expected = _lengths(done, done.batch.real)
    assert done.lengths == expected, (
        f"law 7: the layers of {trial} ran on {done.lengths} tokens, reported are {expected}"
    )
    texts, visual = (done.batch.real & ~done.batch.visual).sum(1).tolist(), done.batch.counts
    for i, reported in enumerate(done.report.tokens_per_layer):
        visual = [len(row) for row in done.kept[i]] if i in done.kept else visual
        there = [text + n for text, n in zip(texts, visual, strict=True)]
        assert reported == there, (
            f"law 6: text and kept tokens of {trial} are {there} at layer {i}, not {reported}"
        )


def _rounded(n: int, stop: Stop) -> int:
    """The documented rule for a share of `n` tokens, written once more."""
    product = n * stop.keep
    down = math.floor(product)
    if stop.rounding == "floor":
        return down
    if stop.rounding == "ceil":
        return math.ceil(product - 1e-9)
    if product - down == 0.5:
        return down + down % 2
    return math.floor(product + 0.5)


def decoding_stores_what_is_left(trial: Trial) -> None:
    """Law 7: the KV cache holds the reported tokens, in a cache of the model's own class."""
    from transformers import DynamicCache

    done = trial.generated("keep")
    assert done.cache is not None
    kind, stored = done.cache
    assert kind is DynamicCache, f"law 6: {trial} decodes with a {kind.__name__}"
    if getattr(oracle.decoder_of(trial.model).config, "sliding_window", None):
        return
    expected = [n + STEPS - 1 for n in _lengths(done, done.batch.real[:, : 1 - STEPS])]
    assert stored == expected, (
        f"law 7: the layers of {trial} store {stored} keys, reported are {expected}"
    )


def _lengths(done: Outcome, real: Tensor) -> list[int]:
    """Tokens per layer by the report: the padded batch, then the longest of the short samples."""
    visual, layers = done.report.visual_tokens, done.report.tokens_per_layer
    texts = real.sum(1) - torch.tensor(visual)
    full = [int(text) + n for text, n in zip(texts, visual, strict=True)]
    return [real.shape[1] if tokens == full else max(tokens) for tokens in layers]


def same(law: str, trial: Trial, mine: Tensor, expected: Tensor) -> None:
    """Equal to the last bit, or an AssertionError that says by how much not."""
    if not torch.equal(mine, expected):
        close(law, trial, mine, expected)
        off = (mine - expected).abs().max().item()
        raise AssertionError(f"{law}: {trial} is off by {off:.2g}, and must not be")


def close(
    law: str,
    trial: Trial,
    mine: Tensor,
    expected: Tensor,
    where: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Equal within the tolerance, or an AssertionError that says by how much not."""
    assert mine.shape == expected.shape, f"{law}: {trial} gave {mine.shape}, not {expected.shape}"
    off = (mine - expected).abs().nan_to_num(nan=float("inf"))
    off = off if where is None else off[where]
    worst = off.max().item() if off.numel() else 0.0
    assert worst <= tolerance, f"{law}: {trial} is off by {worst:.2g} (at most {tolerance:g})"


def refused(trial: Trial, error: type[Exception], reason: str, **options: Any) -> None:
    """What cannot be done is refused with an error of this kind that names the reason."""
    refusal(trial, error, reason, lambda: trial.reduce(**options).remove())


def refusal(trial: Trial, error: type[Exception], reason: str, call: Callable[[], object]) -> None:
    """`call` ends with an error of this kind that names the reason."""
    said: str | None = None
    try:
        call()
    except error as caught:
        said = str(caught)
    assert said is not None, f"law 7: {trial} should be refused: {reason}"
    assert reason in said, f"law 7: {trial} is refused without naming {reason}: {said}"
