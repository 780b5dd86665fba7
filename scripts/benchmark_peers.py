"""Times packages of the field on the benchmark's shape, each against its own unreduced model.

    python -m venv peers && peers/bin/pip install kvpress==0.5.5
    OMP_NUM_THREADS=1 PYTHONPATH=. peers/bin/python scripts/benchmark_peers.py > peers.json

In an environment of their own: kvpress needs an older transformers than tokenreduce does. Only the
clock and the counters are tokenreduce's. kvpress shortens the KV cache after every layer has read
the whole prompt: it is a peer for decoding and memory, and its prefill is what scoring adds.
"""

from __future__ import annotations

import json
import platform
import sys
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch
from kvpress import KnormPress, RandomPress, SnapKVPress
from transformers import LlamaConfig, LlamaForCausalLM

from tokenreduce.benchmarking.allocation import cache_bytes, peak_bytes
from tokenreduce.engine.call import cache_of, with_cache
from tokenreduce.inference.clock import Clock, Times, interval, paired, ratios

TEXT, STEPS, ROUNDS = 64, 8, 7
KEPT = {576: 0.522, 2880: 0.480}
"""Visual tokens, and the share of the cache that PyramidDrop leaves of such a prompt."""
PRESSES = {"random": RandomPress, "knorm": KnormPress, "snapkv": SnapKVPress}


def model_of(layers: int, width: int) -> Any:
    """The decoder of the suite, with random weights."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


@torch.inference_mode()
def measure(model: Any, visual: int) -> list[dict[str, Any]]:
    """Prefill, decoding steps and bytes of every press and of the plain model, in turn."""
    clock, embeds = Clock(model.device), torch.randn(1, visual + TEXT, model.config.hidden_size)
    token = torch.randn(1, 1, model.config.hidden_size)
    makers = {"none": nullcontext}
    for name, press in PRESSES.items():
        one = press(compression_ratio=1 - KEPT[visual])
        makers[name] = lambda one=one: one(model)
    prefills = {name: Times(clock) for name in makers}
    steps = {name: Times(clock) for name in makers}
    caches, peaks = {}, {}

    def prefill() -> Any:
        return model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

    for turn in range(ROUNDS + 1):
        for name, make in makers.items():
            if not turn:
                with make():
                    peaks[name] = peak_bytes(prefill, model.device)
            with make():
                cache = cache_of(prefills[name].measure(prefill))
            caches[name] = cache_bytes(cache)
            for i in range(STEPS):
                at = torch.tensor([[visual + TEXT + i]])
                call = {"inputs_embeds": token, "position_ids": at, **with_cache(model, cache)}
                steps[name].measure(lambda call=call: model(**call, use_cache=True))
            if not turn:
                prefills[name].forget()
                steps[name].forget()
    return [
        {
            "press": name,
            "visual_tokens": visual,
            "text_tokens": TEXT,
            "prefill": _said(prefills[name], prefills["none"]),
            "decode_step": _said(steps[name], steps["none"]),
            "kv_bytes_ratio": caches[name] / caches["none"],
            "peak_bytes_ratio": peaks[name] / peaks["none"],
        }
        for name in PRESSES
    ]


def _said(ours: Times, theirs: Times) -> dict[str, Any]:
    bounds = interval(ratios(ours, theirs))
    return {**paired(ours, theirs), "interval": [bounds.low, bounds.high]}


def main(counts: list[int]) -> None:
    """Prints the record as JSON, for these numbers of visual tokens."""
    model = model_of(16, 512)
    record = {
        "versions": {name: version(name) for name in ("kvpress", "transformers", "torch")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "model": "LlamaForCausalLM, 16 x 512, random weights, fp32, sdpa, cpu",
        "clock": Clock(model.device).name,
        "rounds": ROUNDS,
        "rows": [row for visual in counts for row in measure(model, visual)],
    }
    json.dump(record, sys.stdout, indent=1)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(KEPT))
