"""Ways of generating, on every family: the whole model with the dropped tokens hidden agrees.

What is refused is named in REFUSED, and what the plain model itself cannot do in LIMITS: both are
tried.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenreduce as tr
from tests.pairwise import values_of
from tests.releases import skip_before_fixed
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, IMAGE, VIDEO, WORDS
from tokenreduce.testing.oracle import masked
from tokenreduce.testing.plain import agrees_with_itself

MODELS = [name for name, family in FAMILIES.items() if family.main and not family.bare]
STOPS = tr.Explicit((0, 2, 4), (0.75, 0.5, 0.25))
WAYS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    # an end that no model says: up to transformers 5.12 drafts need one to be named
    "drafts": {"prompt_lookup_num_tokens": 2, "eos_token_id": WORDS, "pad_token_id": 0},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 11},
    "without a cache": {"use_cache": False},
    "hidden states": {"output_hidden_states": True},
}

LIMITS = {("perception_lm", "chunks")}
REFUSED = {("gemma3", "drafts"): "assisted decoding takes drafts back"}
"""Gemma 3 has sliding-window layers."""


def generate(model: Any, given: Any, way: str) -> Any:
    torch.manual_seed(0)
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "suppress_tokens": [IMAGE, VIDEO],
    }
    return model.generate(**given.inputs, **options | WAYS[way])


CASES = values_of(
    (name, way, strategy)
    for name in MODELS
    for way in WAYS
    for strategy in ("random", "pyramid_drop")
    # without a cache the last token asks anew at every step
    if (name, way) not in {*LIMITS, *REFUSED}
    and not (way == "without a cache" and strategy != "random")
)


@pytest.mark.parametrize(("name", "way", "strategy"), CASES)
def test_the_hidden_tokens_reference_agrees(name: str, way: str, strategy: str) -> None:
    model = FAMILIES[name].model()
    given = batch(FAMILIES[name], (1,))
    quiet = {k: v for k, v in WAYS[way].items() if k != "do_sample"}  # beams without drawing
    if way == "samples":
        quiet = {"num_beams": 2, "num_return_sequences": 2}
    if not agrees_with_itself(model, given.inputs, **quiet):
        pytest.skip("this transformers cannot do it without a reduction either")
    repeat = {"beams": 3, "samples": 2}.get(way, 1)
    with tr.reduce(model, strategy, STOPS, positions="keep") as reduction:
        mine = generate(model, given, way)
        kept = {k: [rows[0]] * repeat for k, rows in reduction.kept.items()}
    with masked(model, given.visual.repeat_interleave(repeat, dim=0), kept):
        theirs = generate(model, given, way)
    assert torch.equal(mine.sequences, theirs.sequences)
    if way == "hidden states":
        text = ~given.visual[0]
        for a, b in zip(mine.hidden_states[0], theirs.hidden_states[0], strict=True):
            torch.testing.assert_close(a[0, text], b[0, text], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "way"), sorted(LIMITS))
def test_what_the_plain_model_cannot_do(name: str, way: str) -> None:
    model, given = FAMILIES[name].model(), batch(FAMILIES[name], (1,))
    assert not agrees_with_itself(model, given.inputs, **WAYS[way])


@pytest.mark.parametrize(("name", "way"), REFUSED)
def test_what_is_refused_says_why(name: str, way: str) -> None:
    model, given = FAMILIES[name].model(), batch(FAMILIES[name], (1,))
    generate(model, given, way)
    if way == "drafts":
        skip_before_fixed("drafts back")
    with (
        pytest.raises(ValueError, match=REFUSED[name, way]),
        tr.reduce(model, "random", STOPS),
    ):
        generate(model, given, way)
