"""Flex attention: block masks are rewritten for the tokens that are left.

The sdpa model with the same weights is the reference; it is held against the masked oracle by the
laws. The kernel runs uncompiled here: what is tested are the masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import tokenreduce as tr
from tests.pairwise import in_turn
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

STOPS = tr.Explicit((0, 2, 4), (0.75, 0.5, 0.25))
MODELS = [
    *("llama-gqa", "mistral-window", "llava", "llava_next", "llava_next_video", "llava_onevision"),
    *("internvl", "idefics3", "smolvlm", "mistral3", "gemma3", "paligemma"),
]
"""Qwen-VL, GLM-4V and timm towers have no flex attention in transformers."""
DECODED = [
    pytest.param(name, marks=[] if name in ("mistral-window", "paligemma") else [pytest.mark.full])
    for name in MODELS
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask"),  # transformers sets it
]


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(
    ("name", "strategy", "side"), in_turn(MODELS, ["fastv", "pooling"], ["left", "right"])
)
def test_a_forward_pass_equals_sdpa(name: str, strategy: str, side: str) -> None:
    given = batch(FAMILIES[name], (1, 0, 2), side)  # type: ignore[arg-type]
    found = []
    for kind in ("sdpa", "flex_attention"):
        model = FAMILIES[name].model(kind)
        with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
            logits = given.run(model, reduction, use_cache=False).logits
            found.append((logits[given.real], reduction.kept))
    (one, kept), (other, also) = found
    assert (one - other).abs().max() < 1e-4
    for layer, samples in kept.items():
        assert all(torch.equal(x, y) for x, y in zip(samples, also[layer], strict=True))


@pytest.mark.parametrize("name", DECODED)
def test_decoding_equals_sdpa(name: str) -> None:
    given = batch(FAMILIES[name], (1, 0, 2), "left")
    found = []
    for kind in ("sdpa", "flex_attention"):
        model = FAMILIES[name].model(kind)
        with (
            tr.reduce(model, "pyramid_drop", STOPS) as reduction,
            given.shown(reduction),
            torch.no_grad(),
        ):
            out = model.generate(
                **given.inputs, max_new_tokens=4, do_sample=False, output_logits=True,
                return_dict_in_generate=True, suppress_tokens=[7, 8],
            )  # fmt: skip
        found.append(torch.stack(out.logits))
    assert (found[0] - found[1]).abs().max() < 1e-4
