"""Prompts that come in parts: several turns on one cache, chunks, caches that the caller brings.

The reference for a whole conversation is stock transformers with the dropped tokens hidden.
"""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import tokenreduce as tr
from tests.releases import empties_caches
from tokenreduce.engine.cache import CROPS_TO_LENGTH
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, IMAGE
from tokenreduce.testing.oracle import masked

LLAVA = FAMILIES["llava"]
TEXT = torch.arange(20, 27)[None]


def generate(model, ids, cache, pixels=None, **options):
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]} | options
    if pixels is not None:
        options["pixel_values"] = pixels
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **tr.with_cache(model, cache),
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip


def two_turns(model, second_image, **options):
    """A first turn with an image, its answer, then a second turn with or without another image."""
    prompt, cache = batch(LLAVA, (1,)), DynamicCache(config=model.config.get_text_config())
    pixels = prompt.inputs["pixel_values"]
    first = generate(model, prompt.inputs["input_ids"], cache, pixels, **options)
    more, new = TEXT, None
    if second_image:
        other = batch(LLAVA, (1,), seed=5)
        more, new = (
            torch.cat([TEXT, other.inputs["input_ids"]], dim=1),
            other.inputs["pixel_values"],
        )
    ids = torch.cat([first.sequences, more], dim=1)
    return first, generate(model, ids, cache, new, **options), ids, cache


@pytest.mark.parametrize("name", ["random", "pyramid_drop", "fastv"])
@pytest.mark.parametrize("second_image", [False, True])
def test_a_second_turn(llava, schedule, name, second_image):
    with tr.reduce(llava, name, schedule, positions="keep") as reduction:
        first, second, ids, cache = two_turns(llava, second_image)
        kept, report = reduction.kept, reduction.report
    visual = ids == IMAGE
    assert report.visual_tokens == [int(visual.sum())]
    images = 2 if second_image else 1
    assert [len(kept[i][0]) for i in (2, 4)] == [images * 12, images * 5]  # 25 tokens: 12.5, 5
    assert cache.get_seq_length() == ids.shape[1] + 3
    with masked(llava, visual, kept):
        one, two, *_ = two_turns(llava, second_image)
    assert torch.equal(first.sequences, one.sequences)
    assert torch.equal(second.sequences, two.sequences)
    for a, b in zip(second.logits, two.logits, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


def test_turns_with_compact_positions_equal_the_whole_conversation_at_once(llava):
    """Withdrawing all tokens at layer 0 leaves nothing of the images but their absence."""
    with tr.reduce(llava, "vtw", tr.Single(0, 0.0), positions="compact"):
        _, second, ids, _ = two_turns(llava, second_image=True)
    text = ids[ids != IMAGE][None]
    plain = llava.generate(
        input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_logits=True, suppress_tokens=[IMAGE],
    )  # fmt: skip
    assert torch.equal(second.sequences[:, -4:], plain.sequences[:, -4:])
    for a, b in zip(second.logits, plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


def test_the_second_turn_knows_its_image(llava_next, schedule):
    """Geometry of a second image that joins a cache is that of the image alone."""
    family = FAMILIES["llava_next"]
    one, two = batch(family, (1,)), batch(family, (2,))
    sizes, pixels = two.inputs["image_sizes"], two.inputs["pixel_values"]
    run = one.visual.sum()
    cache = DynamicCache(config=llava_next.config.get_text_config())
    with torch.no_grad(), tr.reduce(llava_next, "stride", schedule) as reduction:
        llava_next(**two.inputs)
        alone = reduction.pictures[0]
        assert len(alone) == 2
        assert len(alone[0]) == run
        known = tr.with_cache(llava_next, cache)
        llava_next(**one.inputs, **known)
        more = two.inputs["input_ids"][:, one.visual[0].nonzero()[-1, 0] + 1 :]
        llava_next(input_ids=more, pixel_values=pixels[1:], image_sizes=sizes[1:], **known)
        joined = reduction.pictures[0]
    assert len(joined) == 2
    for name in ("tile", "row", "column", "separator", "box"):
        for a, b in zip(joined, alone, strict=True):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def skip_without_chunks(model, prompt):
    """transformers 5.18 leaves the pictures out of a prefill in chunks; we warn, and stop there."""
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    plain = [model.generate(**prompt.inputs, **options, prefill_chunk_size=n) for n in (None, 9)]
    if not torch.allclose(plain[0].logits[0], plain[1].logits[0], atol=1e-4):
        with pytest.warns(tr.ReductionWarning), tr.reduce(model, "random", tr.Single(2, 0.5)):
            model.generate(**prompt.inputs, **options, prefill_chunk_size=9)
        pytest.skip("this transformers leaves pictures out of a prefill in chunks")


@pytest.mark.parametrize("size", [7, 16, 64])
@pytest.mark.parametrize("name", ["random", "vtw"])
def test_chunked_prefill(llava, schedule, name, size):
    """Chunks add up: the budget holds for each chunk's own tokens, positions stay logical."""
    prompt = batch(LLAVA, (2,))
    ids, pixels = prompt.inputs["input_ids"], prompt.inputs["pixel_values"]
    skip_without_chunks(llava, prompt)
    with tr.reduce(llava, name, schedule, positions="keep") as reduction:
        out = generate(llava, ids, None, pixels, prefill_chunk_size=size)
        kept, report = reduction.kept, reduction.report
    assert report.visual_tokens == [50]
    assert report.stops[0]["kept"] == [len(kept[2][0])]
    texts = ids.shape[1] - 50
    assert report.tokens_per_layer == [
        [texts + n] for n in (50, 50, *[len(kept[2][0])] * 2, *[len(kept[4][0])] * 2)
    ]
    with masked(llava, prompt.visual, kept):
        reference = generate(llava, ids, None, pixels)
    assert torch.equal(out.sequences, reference.sequences)
    for a, b in zip(out.logits, reference.logits, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


def test_chunks_keep_the_geometry(llava_next, schedule):
    prompt = batch(FAMILIES["llava_next"], (2,))
    skip_without_chunks(llava_next, prompt)
    options = {"max_new_tokens": 2, "do_sample": False}
    with tr.reduce(llava_next, "stride", schedule) as reduction:
        llava_next.generate(**prompt.inputs, **options)
        whole = reduction.pictures[0]
        llava_next.generate(**prompt.inputs, prefill_chunk_size=13, **options)
        parts = reduction.pictures[0]
        assert len(parts) > 0
        assert len(parts) != len(whole)  # pictures come in pieces
    for name in ("tile", "row", "column", "separator"):
        a, b = (torch.cat([getattr(p, name) for p in found]) for found in (whole, parts))
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["bare", "config", "reset", "repeated"])
def test_caches_that_the_caller_brings(llava, schedule, kind):
    prompt = batch(LLAVA, (1,))
    ids, pixels = prompt.inputs["input_ids"], prompt.inputs["pixel_values"]
    config = llava.config.get_text_config()
    with tr.reduce(llava, "random", schedule) as reduction:
        fresh = generate(llava, ids, None, pixels)
        cache = DynamicCache() if kind == "bare" else DynamicCache(config=config)
        if kind == "reset":
            generate(llava, ids, cache, pixels, max_new_tokens=2)
            cache.reset()
            held = {layer.get_seq_length() for layer in cache.layers}
            if not empties_caches():  # zeros stand for the tokens, in every layer alike
                assert held == {ids.shape[1] + 1}
                pytest.skip("reset() of this transformers empties no DynamicCache (up to 5.17)")
            assert held == {0}
        out = generate(llava, ids, cache, pixels)
        assert torch.equal(out.sequences, fresh.sequences)
        assert reduction.report.visual_tokens == [25]
        assert [layer.keys.shape[-2] for layer in tr.cache_of(out).layers] == [
            ids.shape[1] + 3 - gone for gone in (0, 0, 13, 13, 20, 20)
        ]
        if kind == "repeated":  # a prompt's cache, kept and used for two continuations
            stored = copy.deepcopy(cache)
            longer = torch.cat([out.sequences, TEXT], dim=1)
            a, b = (generate(llava, longer, c) for c in (cache, stored))
            assert torch.equal(a.sequences, b.sequences)


def test_a_cache_can_be_repeated_and_selected(llava, schedule):
    prompt = batch(LLAVA, (1, 2))
    step = torch.tensor([[30], [31]])
    with torch.no_grad(), tr.reduce(llava, "random", schedule, positions="compact"):
        cache = tr.cache_of(llava(**prompt.inputs))
        mask = torch.cat([prompt.inputs["attention_mask"], torch.ones(2, 1).long()], dim=1)
        one = copy.deepcopy(cache)
        plain = llava(input_ids=step, attention_mask=mask, **tr.with_cache(llava, one)).logits
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([4, 0]))
        turned = {"input_ids": step.flip(0), "attention_mask": mask.flip(0)}
        again = llava(**turned, **tr.with_cache(llava, cache)).logits
        beams = tr.cache_of(llava(**prompt.inputs))
        beams.reorder_cache(torch.tensor([1, 0]))
        reordered = llava(**turned, **tr.with_cache(llava, beams)).logits
    torch.testing.assert_close(again, plain.flip(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reordered, plain.flip(0), atol=1e-5, rtol=1e-5)


def test_a_reduced_cache_is_refused_by_the_unreduced_model(llava, schedule):
    prompt = batch(LLAVA, (1,))
    with torch.no_grad():
        with tr.reduce(llava, "random", schedule):
            cache = tr.cache_of(llava(**prompt.inputs))
        with pytest.raises(RuntimeError, match="not reduced: go on inside the same"):
            llava(input_ids=TEXT, **tr.with_cache(llava, cache))


@pytest.mark.parametrize("layer", [0, 3])
def test_other_kinds_of_cache_are_refused(llava, layer):
    prompt = batch(LLAVA, (1,))
    options = {"max_new_tokens": 2, "do_sample": False}
    with tr.reduce(llava, "random", tr.Single(layer, 0.5)) as reduction:
        with pytest.raises(ValueError, match=r"StaticLayer cannot hold .* use a DynamicCache"):
            llava.generate(**prompt.inputs, cache_implementation="static", **options)
        cache = StaticCache(config=llava.config.get_text_config(), max_cache_len=99)
        with pytest.raises(ValueError, match="use a DynamicCache"):
            llava(**prompt.inputs, **tr.with_cache(llava, cache))
        assert llava.generate(**prompt.inputs, **options).shape[1] == prompt.visual.shape[1] + 2
        assert reduction.report.applied == [True]


def test_a_quantised_cache_is_refused(llava):
    from transformers.cache_utils import QuantizedLayer

    class Halves(QuantizedLayer):
        def _quantize(self, tensor, axis):
            return tensor.half()

        def _dequantize(self, tensor):
            return tensor.float()

    prompt, cache = batch(LLAVA, (1,)), DynamicCache()
    cache.layer_class_to_replicate = Halves
    with tr.reduce(llava, "random", tr.Single(0, 0.5)):
        with pytest.raises(ValueError, match="Halves cannot hold reduced tokens"):
            llava(**prompt.inputs, **tr.with_cache(llava, cache))
        llava(**prompt.inputs)


def test_cropping_says_what_it_cannot_do(llava):
    prompt = batch(LLAVA, (1,))
    text = int((~prompt.visual[0].flip(0)).long().cumprod(0).sum())  # text behind the image
    with torch.no_grad(), tr.reduce(llava, "random", tr.Single(0, 0.4)):
        cache = tr.cache_of(llava(**prompt.inputs))
        if CROPS_TO_LENGTH:  # as transformers up to 5.14 does: what is there already stays
            cache.crop(prompt.visual.shape[1])
            assert cache.get_seq_length() == prompt.visual.shape[1]
        else:
            with pytest.raises(ValueError, match="negative"):
                cache.crop(prompt.visual.shape[1] - 1)
        with pytest.raises(ValueError, match="some of them were dropped"):
            cache.crop(-(text + 20))
        length = cache.get_seq_length()
        cache.crop(-text)
        assert cache.get_seq_length() == length - text
        ids = prompt.inputs["input_ids"][:, -text:]
        again = llava(input_ids=ids, **tr.with_cache(llava, cache)).logits[:, -1]
        whole = llava(**prompt.inputs).logits[:, -1]
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)


def test_text_of_a_later_turn_is_counted(llava, schedule):
    prompt = batch(LLAVA, (1,))
    length = prompt.visual.shape[1]
    with torch.no_grad(), tr.reduce(llava, "random", schedule) as reduction:
        first = llava(**prompt.inputs, use_cache=True)
        before = reduction.report
        ids = torch.tensor([[11, 12, 13, 14]])
        mask = torch.ones(1, length + 4, dtype=torch.long)
        known = tr.with_cache(llava, tr.cache_of(first))
        second = llava(input_ids=ids, attention_mask=mask, **known)
        after = reduction.report
        llava(
            input_ids=ids[:, :1],
            attention_mask=torch.ones(1, length + 5, dtype=torch.long),
            **tr.with_cache(llava, tr.cache_of(second)),
        )
        assert reduction.report == after  # decoding is no prompt
    assert after.visual_tokens == before.visual_tokens
    assert after.stops == before.stops
    assert [row[0] for row in after.tokens_per_layer] == [
        row[0] + 4 for row in before.tokens_per_layer
    ]
