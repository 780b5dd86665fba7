"""Pieces that methods share: pairs in blocks."""

import pytest
import torch

from tokenreduce import selection
from tokenreduce.selection import Cosines, blocks, dense, empty_mix
from tokenreduce.testing.memory import few_pairs, largest


def test_a_map_that_may_be_held_is_one_block():
    assert dense(4096)
    assert not dense(4097)
    assert blocks(4096, 4096) == [slice(0, 4096)]
    assert blocks(0, 0) == [slice(0, 0)]


@pytest.mark.parametrize(("rows", "columns"), [(4097, 4097), (16384, 16384), (7, 2**25)])
def test_blocks_are_all_rows_and_none_is_too_large(rows, columns):
    parts = blocks(rows, columns)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) == 1 or max(sizes) * columns <= 4096**2
    assert len(parts) > 1


@pytest.mark.parametrize("limit", [40, 16, 7])
def test_cosines_are_the_same_both_ways_and_every_pair_comes_once(limit):
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.full((2, 40, 40), torch.nan)
    met = torch.zeros(40, 40, dtype=torch.long)
    columns_of = {}
    with few_pairs(limit):
        alike = Cosines.of(x)
        for rows, columns, cosine in alike.tiles():
            whole[:, rows, columns] = cosine
            met[rows, columns] += 1
            columns_of.setdefault(rows.start, []).append(columns.start)
        index = torch.tensor([[3, 39], [0, 7]])
        some = alike.to(index, slice(4, 9))
    assert (met == 1).all()
    assert all(starts == sorted(starts) for starts in columns_of.values())
    assert torch.equal(whole, whole.transpose(1, 2))
    exact = torch.cosine_similarity(x[:, :, None].double(), x[:, None].double(), dim=-1)
    assert (whole - exact).abs().max() < 1e-6
    picked = exact[:, 4:9].gather(2, index[:, None].expand(-1, 5, -1))
    assert (some - picked).abs().max() < 1e-6


def test_a_mixture_that_is_too_large_is_refused_with_what_would_fit(monkeypatch):
    like = torch.zeros(1, 100)
    assert empty_mix("stew", like, 7).shape == (1, 7, 100)
    monkeypatch.setattr(selection, "MIXED", 650)
    assert empty_mix("stew", like, 6).shape == (1, 6, 100)
    with pytest.raises(ValueError, match=r"stew .* 7 kept tokens .* of 100, .* keep 6 of them"):
        empty_mix("stew", like, 7)


def test_the_largest_tensor_is_noted_and_views_are_none():
    found = largest(lambda: torch.zeros(3)[:, None].expand(3, 1000) + torch.zeros(3, 1))
    assert found.nbytes == 3 * 1000 * 4
    assert "add" in found.what
    assert largest(lambda: torch.zeros(3)[:, None].expand(3, 1000)).nbytes == 12


def test_few_pairs_are_few_only_inside():
    with pytest.raises(ZeroDivisionError), few_pairs(3):
        1 / dense(4)
    assert dense(4)
