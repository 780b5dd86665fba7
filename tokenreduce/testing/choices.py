"""The laws of a strategy by itself: what `plan` may do, without a model.

The tokens are made up, sample by sample, with every kind of evidence; a strategy is asked for
several budgets. Shapes: b samples, v visual tokens, k kept, d width, h heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tokenreduce.evidence import EVIDENCE, kind_of
from tokenreduce.geometry import Picture, boxes, places
from tokenreduce.learning.strategy import LearnedStrategy
from tokenreduce.strategy import Strategy
from tokenreduce.testing.devices import plan_without_values
from tokenreduce.testing.memory import Largest, few_pairs, largest
from tokenreduce.tokens import PLACES, Plan, Tokens

WIDTH, HEADS = 8, 3
LENGTHS = {"h": HEADS, "d": WIDTH, "l": 11, "e": 4, "t": 6}
Measured = Mapping[str, Callable[[], Tensor]]
FILLER = 50.0
"""The value at padding."""
SHARES = ("attention", "received", "class_match")
"""Words in the names of evidence that is a share, hence positive."""


@dataclass(frozen=True)
class Sample:
    """One sample's tokens: its pictures, hidden states and evidence, without padding."""

    pictures: list[Picture]
    seed: int

    def __len__(self) -> int:
        return sum(len(picture) for picture in self.pictures)

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Random numbers that depend on the sample and the name alone."""
        seed = self.seed * 1009 + sum(ord(c) * (i + 1) for i, c in enumerate(name))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lined(rows: int, columns: int) -> Picture:
    """A grid with a separator at the end of every row, as LLaVA-NeXT has them."""
    at = torch.arange(rows * (columns + 1))
    row, column = at // (columns + 1), at % (columns + 1)
    box = boxes(row, column, rows, columns)
    one = torch.ones_like(row)
    return Picture(torch.zeros_like(row), one, row, column, column == columns, box)


GRIDS = (
    Sample([Picture.grid(4, 4)], 1),
    Sample([], 2),
    Sample([Picture.grid(3, 5), Picture.grid(2, 2)], 3),
    Sample([Picture.grid(1, 1)], 4),
)
"""A square, no picture, two pictures, a single token."""
LINES = (
    Sample([Picture.join([Picture.grid(3, 3), lined(4, 3)])], 5),
    Sample([Picture.grid(3, 3)], 6),
    Sample([Picture.join([Picture.grid(2, 2), lined(2, 6)]), lined(3, 2)], 7),
)
"""With separators, without, and with two pictures of different tiles."""
TILES = (
    Sample(
        [
            Picture.join([Picture.grid(3, 3), lined(6, 6)]),
            Picture.join([Picture.grid(3, 3), lined(6, 3)]),
        ],
        8,
    ),
)
"""Two pictures, each whole and in tiles."""
BATCHES = (GRIDS, LINES, GRIDS[:1])


def tokens_of(
    samples: Sequence[Sample], layer: int = 2, gap: int = 0, needs: Iterable[str] = ()
) -> Tokens:
    """The tokens of a batch with `gap` more padding; all evidence, and a tower's in layers."""
    counts = tuple(len(sample) for sample in samples)
    v = max(counts) + gap
    valid = torch.arange(v) < torch.tensor(counts)[:, None]
    origin = torch.arange(v).expand(len(samples), v).masked_fill(~valid, 0)
    where = places([sample.pictures for sample in samples], torch.device("cpu"))
    return Tokens(
        hidden=_stacked(samples, "hidden", ("v", "d"), v),
        valid=valid,
        origin=origin,
        places=where.gather(origin.clamp(max=where.line.shape[1] - 1)),
        counts=counts,
        original=max(counts),
        layer=layer,
        separators=max(sum(int(p.separator.sum()) for p in s.pictures) for s in samples),
        evidence=_evidence(samples, v, needs),
    )


def _evidence(samples: Sequence[Sample], v: int, needs: Iterable[str]) -> Measured:
    """Every kind of evidence that has a shape; what is a share is positive."""
    names = (name for name in dict.fromkeys([*EVIDENCE, *needs]) if _dims(name))
    return {name: partial(_measured, samples, name, _dims(name), v) for name in names}


def _measured(samples: Sequence[Sample], name: str, dims: tuple[str, ...], v: int) -> Tensor:
    x = _stacked(samples, name, dims, v)
    if EVIDENCE[kind_of(name)].flags:
        return (x > 0) & (x < FILLER)
    return x.sigmoid() if any(word in name for word in SHARES) else x


def _stacked(samples: Sequence[Sample], name: str, dims: tuple[str, ...], v: int) -> Tensor:
    """(b, *dims) every sample's numbers; the numbers at padding are large and means nothing."""
    rows = []
    for sample in samples:
        own = [len(sample) if dim in "vo" else LENGTHS.get(dim, 5) for dim in dims]
        row = sample.draw(name, tuple(own))
        for axis, dim in enumerate(dims):
            if dim in "vo":
                size = list(row.shape)
                size[axis] = v - len(sample)
                row = torch.cat([row, torch.full(size, FILLER)], dim=axis)
        rows.append(row)
    return torch.stack(rows)


def after(tokens: Tokens, plan: Plan, budget: Sequence[int]) -> Tokens:
    """The tokens of the next stop, when `plan` was carried out."""
    keep = plan.keep
    valid = torch.ones_like(keep, dtype=torch.bool) if plan.valid is None else plan.valid
    return replace(
        tokens,
        hidden=plan.merge(tokens.hidden),
        valid=valid,
        origin=tokens.origin.gather(1, keep),
        places=tokens.places.gather(keep),
        counts=tuple(budget),
        layer=tokens.layer + 1,
        evidence={name: partial(_taken, name, x, keep) for name, x in tokens.evidence.items()},
    )


def _taken(name: str, make: Callable[[], Tensor], keep: Tensor) -> Tensor:
    """Evidence on the tokens at `keep`, along every axis that counts visual tokens."""
    x = make()
    for axis, dim in enumerate(_dims(name), start=1):
        if dim == "v":
            index = keep.view(len(keep), *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1))
            x = x.gather(axis, index.expand(*x.shape[:axis], -1, *x.shape[axis + 1 :]))
    return x


def _dims(name: str) -> tuple[str, ...]:
    """The axes of a kind of evidence after b; none where it is no tensor, or no evidence."""
    kind = EVIDENCE.get(kind_of(name))
    return () if kind is None else kind.dims


def budgets(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Budgets to ask for: nothing, one each, thirds, most, one less than all, and all."""
    shares = [tuple(int(n * share) for n in counts) for share in (0, 1 / 3, 0.5, 0.8)]
    shares += [tuple(min(1, n) for n in counts), tuple(max(n - 1, 0) for n in counts)]
    return [*dict.fromkeys(shares), tuple(counts)]


# -- the laws ------------------------------------------------------------------------------------


def keeps_exactly_the_budget(strategy: Strategy) -> None:
    """Exactly the budget of every sample, ascending, each once, and never padding."""
    for tokens, budget in _asked(strategy):
        plan = strategy.plan(tokens, budget)
        said = f"{strategy} with the budget {list(budget)} of {list(tokens.counts)}"
        assert plan.keep.dtype == torch.long, f"{said}: indices of type {plan.keep.dtype}"
        assert plan.keep.shape == (len(budget), max(budget)), f"{said}: shape {plan.keep.shape}"
        for i, index in enumerate(kept_rows(plan)):
            assert len(index) == budget[i], f"{said}: keeps {len(index)} of sample {i}"
            assert bool((index.diff() > 0).all()), f"{said}: {index.tolist()} does not ascend"
            assert bool(tokens.valid[i, index].all()), f"{said}: keeps padding in sample {i}"
        if plan.group is not None:
            _groups(said, tokens, plan)
        if plan.mix is not None:
            _mixes(said, tokens, plan)


def _groups(said: str, tokens: Tokens, plan: Plan) -> None:
    """Merged tokens go to slots that exist, padding to none, and no slot stays empty."""
    assert plan.group is not None
    assert plan.group.shape == tokens.valid.shape, f"{said}: groups of shape {plan.group.shape}"
    for i, index in enumerate(kept_rows(plan)):
        group = plan.group[i]
        assert bool((group[~tokens.valid[i]] == -1).all()), f"{said}: merges padding"
        used = group[group >= 0]
        assert bool((used < len(index)).all()), f"{said}: merges into slots that do not exist"
        assert len(set(used.tolist())) == len(index), f"{said}: leaves slots of sample {i} empty"


def _mixes(said: str, tokens: Tokens, plan: Plan) -> None:
    """Every slot contains something, and nothing of padding."""
    assert plan.mix is not None
    k, v = plan.keep.shape[1], tokens.valid.shape[1]
    assert plan.mix.shape == (len(tokens.counts), k, v), f"{said}: mixes of {plan.mix.shape}"
    for i, index in enumerate(kept_rows(plan)):
        mix = plan.mix[i, : len(index)]
        assert bool((mix[:, ~tokens.valid[i]] == 0).all()), f"{said}: mixes padding"
        assert bool((mix != 0).any(dim=1).all()), f"{said}: leaves slots of sample {i} empty"


def writes_to_nothing(strategy: Strategy) -> None:
    """The tensors that a strategy is given are as they were, and it says the same again."""
    for tokens, budget in _asked(strategy):
        where = tokens.places
        given = [tokens.hidden, tokens.valid, tokens.origin]
        given += [getattr(where, name) for name in PLACES]
        measured = {name: make() for name, make in tokens.evidence.items()}
        tokens = replace(tokens, evidence={n: partial(_same, x) for n, x in measured.items()})
        given += measured.values()
        before = [x.clone() for x in given]
        state = torch.get_rng_state()
        first, second = (strategy.plan(tokens, budget) for _ in range(2))
        for x, was in zip(given, before, strict=True):
            assert torch.equal(x, was), f"{strategy} writes to the tensors it is given"
        assert torch.equal(state, torch.get_rng_state()), f"{strategy} draws from global randomness"
        assert torch.equal(first.keep, second.keep), f"{strategy} says otherwise when asked twice"


def stands_alone(strategy: Strategy) -> None:
    """Neither padding nor the other samples of a batch change what is kept of a sample."""
    for samples in (GRIDS, LINES):
        for budget in _budgets(strategy, tokens_of(samples, needs=strategy.needs)):
            together = _twice(strategy, tokens_of(samples, needs=strategy.needs), budget)
            for i, sample in enumerate(samples):
                for gap in (0, 3) if len(sample) else ():
                    one = tokens_of([sample], gap=gap, needs=strategy.needs)
                    alone = _twice(strategy, one, budget[i : i + 1])
                    for stop, (plan, other) in enumerate(zip(together, alone, strict=False)):
                        said = f"{strategy}, sample {i}, {gap} fillers, stop {stop}, {budget}"
                        _same_choice(said, plan, i, other)


def _twice(strategy: Strategy, tokens: Tokens, budget: Sequence[int]) -> list[Plan]:
    """The plans of two stops, the second for half of the first."""
    first = strategy.plan(tokens, budget)
    if not any(budget):
        return [first]  # without tokens no evidence is asked for
    later = after(tokens, first, budget)
    return [first, strategy.plan(later, [n // 2 for n in budget])]


def _same_choice(said: str, plan: Plan, i: int, alone: Plan) -> None:
    mine, theirs = kept_rows(plan)[i], kept_rows(alone)[0]
    assert torch.equal(mine, theirs), (
        f"{said}: keeps {mine.tolist()} in a batch, {theirs.tolist()} alone"
    )
    if plan.group is not None and alone.group is not None:
        n = min(plan.group.shape[1], alone.group.shape[1])
        assert torch.equal(plan.group[i, :n], alone.group[0, :n]), f"{said}: merges differently"
    if plan.mix is not None and alone.mix is not None:
        n, k = min(plan.mix.shape[2], alone.mix.shape[2]), len(mine)
        gap = (plan.mix[i, :k, :n] - alone.mix[0, :k, :n]).abs().amax() if k else torch.zeros(())
        assert gap <= 1e-5, f"{said}: mixes differently by {gap:.2e}"


def keeping_all_is_the_identity(strategy: Strategy) -> None:
    """With all tokens in the budget every token is kept as it is."""
    for samples in (GRIDS, LINES):
        tokens = tokens_of(samples, needs=strategy.needs)
        plan = strategy.plan(tokens, tokens.counts)
        merged = plan.merge(tokens.hidden)
        for i, index in enumerate(kept_rows(plan)):
            n = tokens.counts[i]
            assert index.tolist() == list(range(n)), f"{strategy} drops although it may keep all"
            assert torch.equal(merged[i, :n], tokens.hidden[i, :n]), (
                f"{strategy} changes tokens although it may keep all"
            )


def separators_follow_their_row(strategy: Strategy) -> None:
    """A separator stays with its row and only with it; one row may go without, for the budget."""
    for tokens, budget in _asked(strategy):
        plan = strategy.plan(tokens, budget)
        if plan.merges:
            continue  # a merged separator stands for several rows, as its method says
        for i, index in enumerate(kept_rows(plan)):
            line, sign = tokens.places.line[i], tokens.places.separator[i]
            kept_sign = sign[index]
            rows = set(line[index[~kept_sign]].tolist())
            signs = set(line[index[kept_sign]].tolist())
            ends = set(line[sign & tokens.valid[i]].tolist())
            said = f"{strategy} with {budget[i]} of {tokens.counts[i]} tokens"
            assert signs <= rows, f"{said}: keeps newlines of rows without a token {signs - rows}"
            assert len((rows & ends) - signs) <= 1, f"{said}: rows {rows & ends} have {signs}"


def asks_for_no_values_and_stays_on_its_device(strategy: Strategy) -> None:
    """No tensor is asked for its values (`.item()`, `if x:`, `x[mask]`), none is made elsewhere."""
    tokens = tokens_of((LINES[0], GRIDS[1], LINES[2]), needs=strategy.needs)
    budget = _budgets(strategy, tokens)[2 if strategy.reduces else 0]
    plan_without_values(strategy, tokens, budget, isinstance(strategy, LearnedStrategy))


def memory_grows_linearly(strategy: Strategy) -> None:
    """Twice the tokens need twice the memory at most, also where k grows with them.

    With few pairs held at once (`few_pairs`), so that few tokens are many. A plan's mix is
    (b, k, v) by design: then the number of kept tokens stays.
    """
    for share in (0, 0.25):
        small, large = (_most(strategy, side, share) for side in (8, 16))
        if small is None or large is None:
            continue
        growth = large.nbytes / max(small.nbytes, 1)
        assert growth < 2.5, (
            f"{strategy}: twice the tokens need {growth:.1f} times the memory ({large.what}): read "
            "what is said of pairs in blocks (tokenreduce.selection.blocks)"
        )


def _most(strategy: Strategy, side: int, share: float) -> Largest | None:
    """The largest tensor of a plan for 16 x `side` tokens; None where its mix grows with k."""
    tokens = tokens_of([Sample([Picture.grid(16, side)], 9)], needs=strategy.needs)
    measured = {name: make() for name, make in tokens.evidence.items()}
    tokens = replace(tokens, evidence={n: partial(_same, x) for n, x in measured.items()})
    budget = (max(20, int(16 * side * share)),) if strategy.reduces else tokens.counts
    plans: list[Plan] = []
    with few_pairs(32):
        found = largest(lambda: plans.append(strategy.plan(tokens, budget)))
    return None if share and plans[0].mix is not None else found


LAWS: tuple[Callable[[Strategy], None], ...] = (
    keeps_exactly_the_budget,
    writes_to_nothing,
    stands_alone,
    keeping_all_is_the_identity,
    separators_follow_their_row,
    asks_for_no_values_and_stays_on_its_device,
    memory_grows_linearly,
)
"""Every law of a strategy by itself."""


def check(strategy: Strategy) -> None:
    """All of them."""
    strategy = own(strategy)
    for law in LAWS:
        law(strategy)


def own(strategy: Strategy) -> Strategy:
    """The strategy for one trial: of a learned one a copy, since every model has a width.

    No law asks whether it is trained.
    """
    if not isinstance(strategy, LearnedStrategy):
        return strategy
    mine = copy.deepcopy(strategy)
    mine.silence_untrained()
    return mine


def kept_rows(plan: Plan) -> list[Tensor]:
    """Per sample, the kept indices without filler."""
    if plan.valid is None:
        return list(plan.keep)
    return [row[ok] for row, ok in zip(plan.keep, plan.valid, strict=True)]


def _budgets(strategy: Strategy, tokens: Tokens) -> list[tuple[int, ...]]:
    return budgets(tokens.counts) if strategy.reduces else [tokens.counts]


def _asked(strategy: Strategy) -> list[tuple[Tokens, tuple[int, ...]]]:
    """Every batch with every budget."""
    found = []
    for samples in BATCHES:
        tokens = tokens_of(samples, needs=strategy.needs)
        every = _budgets(strategy, tokens)
        found += [(tokens, budget) for budget in every]
        for budget in every[2:4]:  # and again at the next stop, of what is left
            later = after(tokens, strategy.plan(tokens, budget), budget)
            found += [(later, more) for more in _budgets(strategy, later)]
    tokens = tokens_of(TILES, needs=strategy.needs)
    while strategy.reduces and max(tokens.counts) > 1:  # a pyramid, down to one token
        budget = (tokens.counts[0] // 2,)
        found.append((tokens, budget))
        tokens = after(tokens, strategy.plan(tokens, budget), budget)
    return found


def _same(x: Tensor) -> Tensor:
    return x
