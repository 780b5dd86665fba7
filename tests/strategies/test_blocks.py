"""Many tokens: pairs are read in blocks, with the same choices, in memory that grows linearly."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tokenreduce import selection
from tokenreduce.geometry import Picture
from tokenreduce.testing import choices
from tokenreduce.testing.choices import Sample, lined, tokens_of
from tokenreduce.testing.memory import few_pairs, largest

PAIRS = {
    "cdpruner": tr.CDPruner,
    "divprune": tr.DivPrune,
    "hired": tr.HiRED,
    "pact": tr.PACT,
    "prumerge": tr.PruMerge,
    "prumerge plus": partial(tr.PruMerge, plus=True),
    "sparsevlm": tr.SparseVLM,
    "tome": tr.ToMe,
    "visionzip": tr.VisionZip,
    "vispruner": tr.VisPruner,
}
"""Who says something of pairs of tokens."""
BATCHES = {
    "one picture": [Sample([Picture.grid(31, 32)], 1)],
    "tiles and separators": [
        Sample([Picture.join([Picture.grid(12, 12), lined(24, 24)]), lined(3, 20)], 2),
        Sample([Picture.grid(20, 17), Picture.grid(4, 9)], 3),
    ],
}
SIDE = 128
MANY = SIDE * SIDE
PEAK = 1 << 30
"""Bytes that a choice among 16,384 tokens may hold beyond what it is given."""


@pytest.fixture
def wide(monkeypatch):
    """Tokens wide enough that no two are alike by chance."""
    monkeypatch.setattr(choices, "WIDTH", 32)
    monkeypatch.setitem(choices.LENGTHS, "d", 32)


def given(samples, strategy):
    """Tokens whose evidence, as far as the strategy asks for it, is there already."""
    tokens = tokens_of(samples, needs=strategy.needs)
    made = {n: make() for n, make in tokens.evidence.items() if n in strategy.needs}
    return replace(tokens, evidence={n: partial(torch.detach, x) for n, x in made.items()})


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PAIRS)
def test_blocks_change_no_choice(name, batch, wide):
    strategy = PAIRS[name]()
    tokens = given(BATCHES[batch], strategy)
    for share in (0.05, 0.4):
        budget = [round(n * share) for n in tokens.counts]
        whole = strategy.plan(tokens, budget)
        for limit in (300, 100):
            with few_pairs(limit):
                parts = strategy.plan(tokens, budget)
            assert torch.equal(parts.keep, whole.keep), f"{limit} at once"
            if whole.group is not None:
                assert torch.equal(parts.group, whole.group), f"{limit} at once"
            if whole.mix is not None:
                assert torch.equal(parts.mix, whole.mix), f"{limit} at once"


@pytest.mark.parametrize("listed", [1, 3])
def test_a_token_none_of_whose_likes_is_left_is_held_against_all(listed, wide, monkeypatch):
    """VisPruner's short lists: what they do not answer is made."""
    monkeypatch.setattr(sys.modules[tr.VisPruner.__module__], "LISTED", listed)
    tokens = given(BATCHES["tiles and separators"], tr.VisPruner())
    whole = tr.VisPruner().plan(tokens, [300, 200])
    with few_pairs(100):
        assert torch.equal(tr.VisPruner().plan(tokens, [300, 200]).keep, whole.keep)


class Pairwise(tr.Scorer):
    """Looks at all pairs at once."""

    def score(self, tokens):
        return (tokens.hidden @ tokens.hidden.transpose(1, 2)).amax(dim=2)


class InBlocks(tr.Scorer):
    """Looks at the same pairs block by block."""

    def score(self, tokens):
        x, v = tokens.hidden, tokens.valid.shape[1]
        parts = [(x[:, rows] @ x.transpose(1, 2)).amax(dim=2) for rows in selection.blocks(v, v)]
        return torch.cat(parts, dim=1)


def test_who_holds_all_pairs_is_told_the_way_out():
    with pytest.raises(AssertionError, match=r"need 4.0 times the memory \(.*mm.*256, 256"):
        choices.memory_grows_linearly(Pairwise())
    choices.memory_grows_linearly(InBlocks())


def test_a_mixture_that_does_not_fit_is_refused_by_name(monkeypatch):
    tokens = given(BATCHES["one picture"], tr.PruMerge())
    monkeypatch.setattr(selection, "MIXED", 992 * 50)
    tr.PruMerge().plan(tokens, [50])
    with pytest.raises(ValueError, match=r"prumerge .* 51 kept tokens .* of 992, .* keep 50"):
        tr.PruMerge().plan(tokens, [51])


def peak():
    """The most bytes that the process has had in memory since `forget`."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget():
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what was held")
@pytest.mark.parametrize("name", list(tr.strategies))
def test_16384_tokens(name, monkeypatch):
    """Every strategy under its own share; what it holds at most is reported and bounded."""
    monkeypatch.setattr(choices, "WIDTH", 64)
    monkeypatch.setattr(choices, "LENGTHS", choices.LENGTHS | {"d": 64, "h": 8, "e": 8, "t": 64})
    strategy = choices.own(tr.strategies.build(name))
    tokens = given([Sample([Picture.grid(SIDE, SIDE)], 1)], strategy)
    keep = strategy.scheduler().stops(32)[0].keep if strategy.reduces else 1
    budget = (round(MANY * keep),)
    forget()
    before, plans = peak(), []
    found = largest(lambda: plans.append(strategy.plan(tokens, budget)))
    held = peak() - before
    print(f"{name}: {held / 2**20:.0f} MiB, the largest {found.nbytes / 2**20:.1f}: {found.what}")
    assert plans[0].keep.shape == (1, budget[0])
    assert held < PEAK, f"{held / 2**30:.2f} GiB, the largest of it {found.what}"
    table = 4 * budget[0] * MANY if plans[0].mix is not None else 0
    assert found.nbytes <= max(8 * selection.DENSE**2, table), found.what
