"""What a schedule costs the decoder in arithmetic and cache, from its configuration alone.

How arithmetic is counted is in `tokenreduce.cost.conventions`. No convention counts the vision
tower, the connector and the LM head (`tokenreduce.cost.model_cost`), norms, rotary embeddings,
softmax, activations, or the choice of tokens (`selection_macs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenreduce.checks import MOST, integer
from tokenreduce.cost.conventions import convention_of
from tokenreduce.cost.entries import read, size, unlike
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import Scheduler, Stop, ordered


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder whose layers are all alike.

    Attributes:
        layers: number of decoder layers.
        hidden: width of the hidden states, d.
        intermediate: width of the FFN, m; for experts, of all that one token passes through.
        heads: attention (query) heads, h.
        kv_heads: key/value heads, g; equal to `heads` without grouped-query attention.
        head_dim: size of a head, e.
        vocab: size of the vocabulary, read by `head_macs` alone.
        ffn_matrices: f, 3 for a gated FFN (gate, up, down), 2 for a plain one.
        router: number of experts that a token chooses from, 0 without experts.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn_matrices: int = 3
    router: int = 0


@dataclass(frozen=True)
class Cost:
    """The cost of one prefill under a schedule, and that of the unreduced model (`_full`).

    Attributes:
        macs: multiply-accumulates of all decoder layers.
        flops: floating-point operations as the convention prints them.
        share: `macs / macs_full`.
        kv_bytes: bytes of keys and values after the prefill.
        selection_macs: what choosing the tokens adds if the score needs the keys of all tokens
            (see the function of that name); not part of `macs`.
        tokens_per_layer: tokens, visual and text, that each layer works on.
        convention: its name in `CONVENTIONS`.
    """

    macs: int
    macs_full: int
    flops: int
    flops_full: int
    share: float
    kv_bytes: int
    kv_bytes_full: int
    selection_macs: int
    tokens_per_layer: tuple[int, ...]
    convention: str


def macs(shape: DecoderShape, tokens: Sequence[float], convention: str = "matmul") -> int:
    """MACs of a prefill through layers that work on `tokens` tokens each.

    There is one entry in `tokens` for each layer that is run, whatever the depth of `shape`: an
    extra scorer of four layers is four entries more. Entries may be means of ragged samples.

    Raises:
        ValueError: an unknown convention.
    """
    count = convention_of(convention)
    return round(sum(count.macs(shape, n) for n in tokens))


def head_macs(shape: DecoderShape, positions: int = 1) -> int:
    """MACs of the LM head at `positions` positions: 1 when generating, all of them in training."""
    return positions * shape.hidden * shape.vocab


def kv_bytes(shape: DecoderShape, tokens: Sequence[int], bytes_per_value: float = 2) -> int:
    """Bytes of the keys and values of a prefill that leaves `tokens` tokens in each layer.

    `bytes_per_value` is 2 for fp16 and bf16, 1 for an 8-bit cache (without its scales).
    """
    return int(2 * shape.kv_heads * shape.head_dim * sum(tokens) * bytes_per_value)


def selection_macs(shape: DecoderShape, tokens: int, queries: int = 1) -> int:
    """MACs of choosing among `tokens` tokens by the attention that `queries` rows pay to them.

    Keys of every token, the queries' own projections, and their dot products: linear in `tokens`.
    A score that reads what the layer before has computed (FastV), or none (random), costs less.
    """
    d, e = shape.hidden, shape.head_dim
    keys = tokens * d * e * shape.kv_heads
    return keys + queries * e * shape.heads * (d + tokens)


def tokens_per_layer(
    stops: Iterable[Stop], depth: int, visual: int, text: int = 0
) -> tuple[int, ...]:
    """Tokens that each of `depth` layers works on: the kept ones of `visual`, and all of `text`.

    Raises:
        ValueError: a stop beyond the depth, stops out of order, counts below 0.
    """
    integer(visual, "visual", least=0)
    integer(text, "text", least=0)
    rows = [visual + text] * depth
    for stop in ordered(stops):
        if stop.layer >= depth:
            raise BadOption(f"a stop at layer {stop.layer} is outside a decoder of {depth} layers")
        rows[stop.layer :] = [stop.count(visual) + text] * (depth - stop.layer)
    return tuple(rows)


def average_tokens(stops: Iterable[Stop], depth: int, visual: int) -> float:
    """Visual tokens per layer, averaged over the layers: the "192 tokens" of in-decoder methods."""
    return sum(tokens_per_layer(stops, depth, visual)) / depth


def cost(
    config: Any,
    schedule: Scheduler | Iterable[Stop],
    visual: int,
    text: int = 0,
    convention: str = "matmul",
    bytes_per_value: float = 2,
) -> Cost:
    """The cost of a prefill of `visual` visual and `text` other tokens under a schedule.

    Args:
        config: a transformers configuration, its dict, or a `DecoderShape`.
        schedule: a scheduler, or its stops.
        visual: visual tokens of one sample before any reduction.
        text: all its other tokens. The papers' figures leave them out.
        convention: a name in `CONVENTIONS`.
        bytes_per_value: bytes of one number in the KV cache.

    Raises:
        ValueError: as `shape_of`, `tokens_per_layer` and `macs`.
    """
    shape = shape_of(config)
    stops = schedule.stops(shape.layers) if isinstance(schedule, Scheduler) else schedule
    tokens = tokens_per_layer(stops, shape.layers, visual, text)
    return cost_of(shape, tokens, visual + text, convention, bytes_per_value)


def cost_of(
    shape: DecoderShape,
    tokens: Sequence[int],
    full: int,
    convention: str = "matmul",
    bytes_per_value: float = 2,
) -> Cost:
    """`cost` for counts that were observed: `full` tokens at the entry, `tokens` in each layer.

    A choice of tokens is taken to be made wherever the count falls.
    """
    layers = tuple(tokens)
    unreduced = (full,) * len(layers)
    ours, theirs = macs(shape, layers, convention), macs(shape, unreduced, convention)
    choices = [n for n, after in zip((full, *layers), layers, strict=False) if after < n]
    per_mac = convention_of(convention).flops_per_mac
    return Cost(
        macs=ours,
        macs_full=theirs,
        flops=per_mac * ours,
        flops_full=per_mac * theirs,
        share=ours / theirs if theirs else 1.0,
        kv_bytes=kv_bytes(shape, layers, bytes_per_value),
        kv_bytes_full=kv_bytes(shape, unreduced, bytes_per_value),
        selection_macs=sum(selection_macs(shape, n) for n in choices),
        tokens_per_layer=layers,
        convention=convention,
    )


_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS = ("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")  # equal to torch's counter
_PLAIN = (  # noqa: SIM905 - model types whose FFN has no gate
    "bloom codegen cosmos3_edge_text falcon git gpt2 gpt_neo gpt_neox gptj kosmos_2_text_model "
    "kosmos_2_5_text_model mpt nemotron opt persimmon phi starcoder2"
).split()
_ORDINARY = {"full_attention", "sliding_attention", "chunked_attention"}
_ODD = {
    "is_heterogeneous": "layers of unequal sizes",
    "is_encoder_decoder": "an encoder besides the decoder",
    "kv_lora_rank": "latent attention",
    "cross_attention_layers": "cross-attention to the image",
    "cross_layer_interval": "cross-attention to the image",
    "hidden_size_per_layer_input": "an embedding per layer",
}


def shape_of(config: Any) -> DecoderShape:
    """The decoder's sizes, from a transformers configuration or its dict (`text_config` within).

    Raises:
        ValueError: a size is missing, or the layers are of a kind that the formulas do not
            describe (most experts, latent or linear attention, cross-attention, unequal layers).
    """
    if isinstance(config, DecoderShape):
        return config
    part: Any = config
    while inner := next(filter(None, (read(part, name) for name in _NESTED)), None):
        part = inner
    for name, what in _ODD.items():
        if read(part, name):
            raise unlike(part, f"{what} ({name!r})")
    if kinds := set(read(part, "layer_types") or ()) - _ORDINARY:
        raise unlike(part, f"layers of the kinds {', '.join(map(repr, sorted(kinds)))}")
    width, router = _ffn(part)
    hidden, heads = size(part, "hidden_size"), size(part, "num_attention_heads")
    layers = size(part, "num_hidden_layers")
    if layers > MOST:
        raise BadOption(f"num_hidden_layers={layers}: no decoder has more than {MOST:,}")
    return DecoderShape(
        layers=layers,
        hidden=hidden,
        intermediate=width,
        heads=heads,
        kv_heads=read(part, "num_key_value_heads") or heads,
        head_dim=read(part, "head_dim") or hidden // heads,
        vocab=size(part, "vocab_size"),
        ffn_matrices=2 if read(part, "model_type") in _PLAIN else 3,
        router=router,
    )


def _ffn(part: Any) -> tuple[int, int]:
    """The FFN width that one token passes through, and the number of experts it chooses from."""
    experts = next(filter(None, (read(part, name) for name in _EXPERT_COUNTS)), 0)
    if not experts:
        return size(part, "intermediate_size", "ffn_dim"), 0
    if read(part, "model_type") == "aria_text":  # also equal to torch's counter
        through = size(part, "moe_topk") + size(part, "moe_num_shared_experts")
        return through * size(part, "intermediate_size"), experts
    mixed = read(part, "mlp_only_layers") or (read(part, "decoder_sparse_step") or 1) > 1
    if mixed or read(part, "model_type") not in _EXPERTS:
        raise unlike(part, f"{experts} experts of a layout that is not known here")
    return size(part, "num_experts_per_tok") * size(part, "moe_intermediate_size"), experts
