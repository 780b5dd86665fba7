"""What is measured for a choice: memory grows linearly with the tokens, and blocks say the same."""

from functools import partial

import pytest
import torch

import tokenreduce as tr
from tests.engine.test_evidence import Probe, TowerProbe, probed
from tokenreduce.engine import attention
from tokenreduce.engine.attention import in_turn
from tokenreduce.testing.batches import batch
from tokenreduce.testing.memory import few_pairs, largest
from tokenreduce.testing.models import FAMILIES

TEXT = 40
MAPS = {
    "fastv": tr.FastV(score="received"),
    "fitprune": tr.FitPrune(),
    "sparsevlm": tr.SparseVLM(),
}
"""Who reads the attention of many tokens."""


def prefill(model, strategy, tokens):
    """A pass over text and so many visual tokens between it, without padding."""
    width = model.config.get_text_config().hidden_size
    x = torch.randn(1, tokens + TEXT, width, generator=torch.Generator().manual_seed(0))
    at = torch.arange(tokens + TEXT)[None]
    visual = (at >= 4) & (at < tokens + 4)
    with tr.reduce(model, strategy, tr.Single(2, 0.25)) as reduction, reduction.visual(visual):
        model.get_decoder()(inputs_embeds=x, use_cache=False)


@pytest.mark.parametrize("name", MAPS)
def test_twice_the_tokens_need_twice_the_memory(name):
    model = FAMILIES["llama-gqa"].model("sdpa")
    prefill(model, MAPS[name], 8)  # what is made once
    with few_pairs(16):
        small, large = (largest(partial(prefill, model, MAPS[name], n)) for n in (216, 472))
    assert large.nbytes < 2.5 * small.nbytes, large.what


def test_blocks_of_rows_are_all_rows_and_hold_no_more_keys_than_few_tokens_have():
    assert in_turn(600, 4096) == [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert {part.stop - part.start for part in in_turn(16384, 16384)} == {64}
    assert in_turn(2, 2**30) == [slice(0, 1), slice(1, 2)]
    parts = in_turn(700, 9000)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(700))


@pytest.mark.parametrize(
    ("family", "probe"), [("llama-gqa", Probe), ("llava_onevision", TowerProbe)]
)
def test_blocks_say_the_same(family, probe, monkeypatch):
    model, given = FAMILIES[family].model("eager"), batch(FAMILIES[family], (1, 2), "left")
    whole, parts = probe(), probe()
    probed(model, given, whole)
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", 5)
    probed(model, given, parts)
    for name, x in whole.seen[0].items():
        torch.testing.assert_close(parts.seen[0][name], x, msg=lambda text, n=name: f"{n}: {text}")
