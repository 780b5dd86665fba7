"""The cost model: published figures to the printed digit, and torch's own count."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tokenreduce import cost as costs
from tokenreduce.cost import DecoderShape, average_tokens, cost, macs, shape_of, tokens_per_layer
from tokenreduce.engine.call import cache_of
from tokenreduce.scheduler import Stop
from tokenreduce.schedulers import Explicit, Pyramid, Single

LLAMA_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)
QWEN2_7B = DecoderShape(28, 3584, 18944, 28, 4, 128, 152064)
PYRAMID_DROP = {r: Pyramid(ratio=r, rounding="floor") for r in (0.4, 0.5, 0.6)}


def keeping(layers, kept, n=576):
    return Explicit(layers, [k / n for k in kept])


# label: (schedule, visual tokens, trillions as recomputed in the literature study, as printed)
F3_FIGURES = {
    "LLaVA-1.5 vanilla (PyramidDrop T1)": ((), 576, "3.817", "3.82"),
    "PyramidDrop .4 (T7)": (PYRAMID_DROP[0.4], 576, "1.538", "1.54"),
    "PyramidDrop .5 (T7)": (PYRAMID_DROP[0.5], 576, "1.777", "1.78"),
    "PyramidDrop .6 (T7)": (PYRAMID_DROP[0.6], 576, "2.060", "2.06"),
    "FastV K2 R50 (PyramidDrop T1)": (Single(2, 0.5), 576, "2.007", "2.01"),
    "NeXT p5 vanilla": ((), 2880, "20.825", "20.8"),
    "NeXT p5 PyramidDrop .4": (PYRAMID_DROP[0.4], 2880, "8.217", "8.22"),
    "NeXT p5 PyramidDrop .5": (PYRAMID_DROP[0.5], 2880, "9.465", "9.46"),
    "NeXT p5 PyramidDrop .6": (PYRAMID_DROP[0.6], 2880, "10.98", "11.0"),
    "NeXT p5 FastV": (Single(2, 0.5), 2880, "10.554", "10.6"),
    "NeXT p9 vanilla": ((), 5184, "40.62", "40.6"),
    "NeXT p9 PyramidDrop": (PYRAMID_DROP[0.5], 5184, "18.08", "18.1"),
    "Video-LLaVA vanilla": ((), 2056, "14.42", "14.4"),
    "Video-LLaVA FastV": (Single(2, 0.5), 2056, "7.40", "7.4"),
    "Video-LLaVA PyramidDrop": (PYRAMID_DROP[0.5], 2056, "6.61", "6.6"),
    "VScan 192": ((), 192, "1.253", "1.253"),
    "VScan 128": ((), 128, "0.833", "0.833"),
    "VScan 64": ((), 64, "0.416", "0.415"),
    "SparseVLM v1 192": (keeping((2, 6, 15), (300, 200, 110)), 576, "1.23", None),
    "SparseVLM v1 128": (keeping((2, 6, 15), (303, 110, 36)), 576, "0.81", None),
    "SparseVLM v1 64": (keeping((2, 6, 15), (66, 30, 17)), 576, "0.41", None),
    "SparseVLM v2 192": (keeping((2, 6, 15), (300, 200, 118)), 576, "1.26", None),
    "SparseVLM v2 128": (keeping((2, 6, 15), (238, 108, 60)), 576, "0.84", None),
    "SparseVLM v2 64": (keeping((2, 6, 15), (66, 34, 20)), 576, "0.42", None),
    # the paper's stages are int(32 / 3) layers long, the last one takes the rest
    "PyramidDrop S=3 (appendix)": (Explicit((10, 20), (0.5, 0.25)), 576, "2.134", "2.13"),
}


def agrees(value: float, digits: str) -> bool:
    return f"{value:.{len(digits.partition('.')[2])}f}" == digits


def prints(value: float, digits: str) -> bool:
    """Whether a paper that rounds or truncates would print `digits`."""
    return abs(value - float(digits)) < 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize("label", F3_FIGURES)
def test_f3_figures(label):
    schedule, visual, ours, paper = F3_FIGURES[label]
    trillions = cost(LLAMA_7B, schedule, visual, convention="F3").flops / 1e12
    assert agrees(trillions, ours)
    assert paper is None or prints(trillions, paper)


# FastV table 1: (K, R): (recomputed with 35 text tokens and the exact share of 576, printed).
# The printed K3, K5 and K0 rows do not follow the paper's own formula; K0 R90 least of all.
FASTV_TABLE = {
    (2, 0.90): ("19.92", "19.9"),
    (2, 0.75): ("32.84", "32.8"),
    (2, 0.50): ("54.63", "54.6"),
    (0, 0.50): ("51.66", "51.6"),
    (3, 0.50): ("56.11", None),
    (3, 0.75): ("35.05", None),
    (5, 0.50): ("59.08", None),
    (0, 0.75): ("28.42", None),
    (0, 0.90): ("14.63", None),
}


@pytest.mark.parametrize(("k", "r"), FASTV_TABLE)
def test_f2_figures_of_fastv_per_layer(k, r):
    ours, paper = FASTV_TABLE[k, r]
    tokens = [611.0] * k + [35 + 576 * (1 - r)] * (32 - k)
    billions = macs(LLAMA_7B, tokens, "F2") / 32 / 1e9
    assert agrees(billions, ours)
    assert paper is None or prints(billions, paper)


def test_f2_of_the_unreduced_model():
    assert agrees(macs(LLAMA_7B, [611] * 32, "F2") / 32e9, "99.16")
    assert agrees(macs(LLAMA_7B, [612] * 32, "F2") / 32e9, "99.33")
    whole = cost(LLAMA_7B, Single(2, 0.5), 576, 35, "F2")
    assert agrees(whole.flops / 32e9, "54.63")


@pytest.mark.parametrize(
    ("schedule", "average"),
    [
        (Pyramid(), "270.0"),
        (keeping((2, 6, 15), (300, 200, 110)), "188.2"),
        (keeping((2, 6, 15), (303, 110, 36)), "123.9"),
        (keeping((2, 6, 15), (66, 30, 17)), "61.7"),
        (keeping((2, 6, 15), (300, 200, 118)), "192.4"),
        (keeping((2, 6, 15), (238, 108, 60)), "128.0"),
        (keeping((2, 6, 15), (66, 34, 20)), "64.4"),
        (Explicit(keeps=(0.0, 0.0, 0.0)), "144.0"),
    ],
)
def test_average_tokens(schedule, average):
    assert agrees(average_tokens(schedule.stops(32), 32, 576), average)


def test_region_focus_table():
    """LRS-VQA, table 4: a 4000 x 4000 image, Qwen2-7B; the scorer runs four layers of its own."""

    def trillions(n: int, layers: int = 28) -> float:
        return macs(QWEN2_7B, [n] * layers, "F3") / 1e12

    def reduced(schedule) -> float:
        return cost(QWEN2_7B, schedule, 21312, convention="F3").flops / 1e12

    assert agrees(trillions(21312), "243.37")
    assert agrees(trillions(5760) + trillions(21312, 4), "82.56")
    pyramid = sum(trillions(n, 4) for n in (1872, 5760, 7776))
    assert agrees(trillions(2376) + pyramid, "36.61")
    assert agrees(reduced(Single(2, 0.5)), "109.21")
    assert agrees(reduced(Pyramid()), "101.62")
    assert agrees(trillions(5328), "43.75")
    assert agrees(trillions(9280), "83.56")


COMMON = {"vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**COMMON, "intermediate_size": 100}
TINY = {
    "mha": lambda: transformers.LlamaConfig(**LLAMA),
    "gqa": lambda: transformers.LlamaConfig(**LLAMA, num_key_value_heads=2),
    "mqa, wide heads": lambda: transformers.GemmaConfig(
        **LLAMA, num_key_value_heads=1, head_dim=20, pad_token_id=0
    ),
    "plain ffn": lambda: transformers.OPTConfig(
        **COMMON, ffn_dim=100, word_embed_proj_dim=48, max_position_embeddings=64
    ),
    "experts": lambda: transformers.Qwen3MoeConfig(
        **LLAMA,
        num_key_value_heads=2,
        head_dim=12,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        experts_implementation="eager",
    ),
    "shared experts": lambda: transformers.AriaTextConfig(
        **COMMON,
        intermediate_size=20,
        num_key_value_heads=2,
        moe_num_experts=6,
        moe_topk=2,
        moe_num_shared_experts=3,
        experts_implementation="eager",
    ),
}


@pytest.mark.parametrize("kind", TINY)
def test_matmul_is_what_torch_counts(kind):
    config = TINY[kind]()
    config._attn_implementation = "eager"  # older torch counts no fused attention on the CPU
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    n = 11
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(n)[None], use_cache=False)
    shape = shape_of(config)
    assert counter.get_total_flops() == 2 * (macs(shape, [n] * 3) + costs.head_macs(shape, n))


def test_key_values_are_what_the_cache_holds():
    config = TINY["gqa"]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = cache_of(model(input_ids=torch.arange(11)[None]))
    held = sum(
        x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values)
    )
    assert costs.kv_bytes(shape_of(config), [11] * 3, bytes_per_value=4) == held


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (transformers.LlavaConfig, (32, 4096, 11008, 32, 32, 128, 32000)),
        (transformers.PaliGemmaConfig, (18, 2048, 16384, 8, 1, 256, 257152)),
        (transformers.Qwen2_5OmniThinkerConfig, (28, 3584, 18944, 28, 4, 128, 152064)),
        (transformers.Blip2Config, (12, 768, 3072, 12, 12, 64, 50272, 2)),
    ],
)
def test_shape_is_read_where_the_language_model_is(config, shape):
    built = config()
    assert shape_of(built) == shape_of(built.to_dict()) == DecoderShape(*shape)
    assert shape_of(DecoderShape(*shape)) == DecoderShape(*shape)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "latent attention"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ({"text_config": {"cross_attention_layers": [3]}}, "cross-attention"),
        ({"is_encoder_decoder": True}, "encoder beside"),
        ({"model_type": "llama4_text", "num_local_experts": 16}, "16 experts"),
        ({"model_type": "qwen3_moe", "num_experts": 8, "mlp_only_layers": [0]}, "8 experts"),
        ({"text_config": {"model_type": "llama"}}, "no 'intermediate_size'.*AutoConfig"),
        ({**LLAMA, "hidden_size": "48"}, "hidden_size.*'48'"),
    ],
)
def test_what_no_formula_describes_is_refused(config, reason):
    with pytest.raises(ValueError, match=reason):
        shape_of(config)


def test_heterogeneous_configuration_is_refused():
    with pytest.raises(ValueError, match="layers of unequal sizes"):
        shape_of(transformers.Gemma4Config())


def test_tokens_per_layer_follow_the_stops():
    stops = (Stop(0, 0.5), Stop(2, 0.1))
    assert tokens_per_layer(stops, 4, visual=10, text=3) == (8, 8, 4, 4)
    assert tokens_per_layer((), 2, visual=10) == (10, 10)
    with pytest.raises(ValueError, match="layer 2 is outside a decoder of 2 layers"):
        tokens_per_layer(stops, 2, visual=10)
    with pytest.raises(ValueError, match="follows"):
        tokens_per_layer(reversed(stops), 4, visual=10)
    with pytest.raises(ValueError, match=r"visual.*-1"):
        tokens_per_layer(stops, 4, visual=-1)


@pytest.mark.parametrize("convention", costs.CONVENTIONS)
def test_cost_adds_up(convention):
    reduced = cost(QWEN2_7B, Pyramid(), 576, 60, convention)
    full = cost(QWEN2_7B, (), 576, 60, convention)
    assert reduced.macs_full == full.macs == full.macs_full
    assert reduced.kv_bytes_full == full.kv_bytes
    assert full.share == 1
    assert full.selection_macs == 0
    assert reduced.share == reduced.macs / reduced.macs_full < 1
    assert reduced.flops == reduced.macs * (1 if convention in ("F2", "F3") else 2)
    assert reduced.tokens_per_layer == tokens_per_layer(Pyramid().stops(28), 28, 576, 60)
    assert reduced.kv_bytes == 2 * 4 * 128 * 2 * sum(reduced.tokens_per_layer)
    assert json.loads(json.dumps(dataclasses.asdict(reduced)))["convention"] == convention


def test_observed_counts_cost_the_same():
    planned = cost(QWEN2_7B, Pyramid(), 576, 60)
    assert costs.cost_of(QWEN2_7B, planned.tokens_per_layer, 636) == planned


def test_selection_reads_the_keys_of_what_enters_each_stop():
    reduced = cost(LLAMA_7B, Explicit((0, 16), (0.5, 0.25)), 576, 60)
    d, e, h = 4096, 128, 32
    expected = sum(n * d * e * h + h * e * (d + n) for n in (636, 348))
    assert reduced.selection_macs == expected
    idle = cost(LLAMA_7B, Explicit((0, 16), (1.0, 1.0)), 576, 60)
    assert idle.selection_macs == 0


def test_causal_attention_skips_the_pairs_above_the_diagonal():
    """Scores and values of n (n - 1) / 2 pairs, in each of h heads of size e."""
    tokens, pairs = [7, 4], 7 * 6 // 2 + 4 * 3 // 2
    square, causal = (macs(QWEN2_7B, tokens, name) for name in ("matmul", "causal"))
    assert square - causal == 2 * pairs * 28 * 128


def test_conventions_are_called_as_their_keys():
    assert [made.name for made in costs.CONVENTIONS.values()] == list(costs.CONVENTIONS)


def test_unknown_convention_is_named():
    with pytest.raises(ValueError, match=r"did you mean 'matmul'.*F2, F3, matmul, causal"):
        cost(LLAMA_7B, (), 576, convention="matmult")
