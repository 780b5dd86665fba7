"""Flash attention: what the kernels are handed for shorter sequences, by exact stand-ins in fp32.

The kernels have no CPU version and no fp32; everything in front of them (masks of two axes, taking
padding out, packed sequences) is transformers' own. The stand-ins do what the kernels' interfaces
promise. The sdpa model with the same weights is the reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash

import tokenreduce as tr
from tests.pairwise import in_turn
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.plain import agrees_with_itself

STOPS = tr.Explicit((0, 2, 4), (0.75, 0.5, 0.25))
MODELS = [
    *("llama-gqa", "mistral", "qwen3", "llava", "llava_next", "llava_onevision", "internvl"),
    *("idefics3", "mistral3", "qwen2_5_vl", "qwen3_vl", "glm4v"),
]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """(q, h, e) of one sequence; causal masks end at the last key, as in flash attention 2.1."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * scale
    if causal:
        row, column = (torch.arange(len(x)) for x in (q, k))
        hidden = column[None] > row[:, None] + len(k) - len(q)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khe->qhe", scores.softmax(dim=-1), v)


def flash_fn(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    """(b, q, h, e)."""
    scale = softmax_scale or q.shape[-1] ** -0.5
    return torch.stack([attend(*rows, scale, causal) for rows in zip(q, k, v, strict=True)])


def varlen_fn(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    """(tokens, h, e) of sequences one after the other."""
    scale = softmax_scale or q.shape[-1] ** -0.5
    rows, columns = (cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k))
    assert sum(rows) == len(q)
    assert sum(columns) == len(k)
    parts = zip(q.split(rows), k.split(columns), v.split(columns), strict=True)
    return torch.cat([attend(*part, scale, causal) for part in parts])


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    given = (flash_fn, varlen_fn, None, flash._pad_input, flash._unpad_input)
    names = ("flash_fn", "flash_varlen_fn", "flash_with_kvcache_fn", "pad_fn", "unpad_fn")
    for name, function in zip(names, given, strict=True):
        monkeypatch.setattr(flash, f"_{name}", function, raising=False)
    monkeypatch.setattr(flash, "_loaded_implementation", "flash_attention_2")
    made = flash._lazy_define_process_function(varlen_fn)
    monkeypatch.setattr(flash, "_process_flash_kwargs_fn", made)
    monkeypatch.setattr(flash, "_process_with_kvcache_kwargs_fn", dict, raising=False)


def models(name: str) -> tuple[Any, Any]:
    """The sdpa model, and one whose decoder attends with flash attention."""
    plain, fast = FAMILIES[name].model("sdpa"), FAMILIES[name].model("sdpa")
    decoder = tr.adapters[FAMILIES[name].adapter]().decoder(fast)
    decoder.config._attn_implementation = "flash_attention_2"
    return plain, fast


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_the_stand_in_is_the_plain_model(name: str, side: str) -> None:
    given = batch(FAMILIES[name], (1, 0, 2), side)  # type: ignore[arg-type]
    with torch.no_grad():
        one, other = (given.run(model, use_cache=False).logits for model in models(name))
    assert (one - other)[given.real].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "side", "strategy"),
    in_turn(MODELS, ["left", "right"], ["pyramid_drop", "fastv", "pooling"]),
)
def test_a_forward_pass_equals_sdpa(name: str, side: str, strategy: str) -> None:
    given = batch(FAMILIES[name], (1, 0, 2), side)  # type: ignore[arg-type]
    found = []
    for model in models(name):
        with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
            logits = given.run(model, reduction, use_cache=False).logits
            found.append((logits, reduction.kept))
    (one, kept), (other, also) = found
    assert (one - other)[given.real].abs().max() < 2e-5
    for layer, samples in kept.items():
        assert all(torch.equal(x, y) for x, y in zip(samples, also[layer], strict=True))


@pytest.mark.parametrize(
    ("name", "positions", "images"),
    in_turn(MODELS, ["keep", "compact"], [(1, 0, 2), (2,)]),
    ids=str,
)
def test_decoding_equals_sdpa(name: str, positions: str, images: tuple[int, ...]) -> None:
    if positions not in tr.adapters[FAMILIES[name].adapter]().positions:
        positions = "keep"
    given = batch(FAMILIES[name], images, "left")
    found = []
    for model in models(name):
        with (
            tr.reduce(model, "pyramid_drop", STOPS, positions=positions) as reduction,
            given.shown(reduction),
            torch.no_grad(),
        ):
            out = model.generate(
                **given.inputs, max_new_tokens=4, do_sample=False, output_logits=True,
                return_dict_in_generate=True, suppress_tokens=[] if given.bare else [7, 8],
            )  # fmt: skip
        found.append(torch.stack(out.logits))
    finite = found[0].isfinite()
    assert (found[0] - found[1])[finite].abs().max() < 2e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("images", [(1, 2), (2,)], ids=str)
def test_a_second_turn_equals_sdpa(name: str, images: tuple[int, ...]) -> None:
    """More text behind a reduced prompt: several queries, more keys; one sample has gaps alone."""
    given = batch(FAMILIES[name], images, "left")
    found = []
    for model in models(name):
        with tr.reduce(model, "random", STOPS) as reduction, torch.no_grad():
            first = given.run(model, reduction, use_cache=True)
            text = torch.full((len(images), 5), 20)
            mask = torch.cat([given.inputs["attention_mask"], torch.ones_like(text)], dim=1)
            options = {"attention_mask": mask, **tr.with_cache(model, tr.cache_of(first))}
            if FAMILIES[name].own_positions:
                at = mask.cumsum(1)[:, -5:, None] - 1 + model.base_model.rope_deltas[:, None]
                options["position_ids"] = at.permute(2, 0, 1).expand(3, -1, -1)
            found.append(model(input_ids=text, use_cache=True, **options).logits)
    assert (found[0] - found[1]).abs().max() < 2e-5


@pytest.mark.parametrize("images", [(1, 1), (1,)], ids=str)
def test_a_prompt_in_chunks_equals_sdpa(images: tuple[int, ...]) -> None:
    given = batch(FAMILIES["llava"], images, "left")
    found = []
    if not agrees_with_itself(models("llava")[0], given.inputs, prefill_chunk_size=16):
        pytest.skip("this transformers leaves pictures out of a prefill in chunks")
    for model in models("llava"):
        with tr.reduce(model, "random", STOPS), torch.no_grad():
            out = model.generate(
                **given.inputs, max_new_tokens=3, do_sample=False, output_logits=True,
                return_dict_in_generate=True, prefill_chunk_size=16, suppress_tokens=[7],
            )  # fmt: skip
        found.append(torch.stack(out.logits))
    finite = found[0].isfinite()
    assert (found[0] - found[1])[finite].abs().max() < 2e-5


def test_the_kernels_are_really_called(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        lengths.append(args[0].shape[1])
        return flash_fn(*args, **kwargs)

    monkeypatch.setattr(flash, "_flash_fn", counted)
    given = batch(FAMILIES["llava"], (1,))
    with tr.reduce(models("llava")[1], "random", STOPS) as reduction, torch.no_grad():
        given.run(reduction.model, reduction, use_cache=False)
        layers = [sum(row) for row in reduction.report.tokens_per_layer]
    assert lengths == layers
