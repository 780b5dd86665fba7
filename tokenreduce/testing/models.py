"""Tiny models with random weights, one per decoder family and adapter, for the law suite.

They are made from configs, seeded, in fp32 and evaluation mode, with weights scaled so that
attention is not flat, logits have a standard deviation of about 1, and a dropped token shows.
transformers is imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

LAYERS = 6
WIDTH = 32
WORDS = 99
IMAGE = 7
"""The placeholder id of the multimodal models; text is drawn from the ids above 9."""
SPREAD = 0.2
"""Standard deviation of the weight matrices: query-key products then spread by about 1.3."""
TILE = 12
"""Side of LLaVA-NeXT's tiles in pixels; patches have 4."""


@dataclass(frozen=True)
class Family:
    """A tiny model's recipe.

    Attributes:
        name: of the recipe, e.g. `"llama-gqa"`.
        adapter: the registered adapter that reads it.
        make: the untouched model for an attention implementation.
        main: the one recipe per adapter that every schedule is tried on; the others are variants.
        anyres: whether images are cut into tiles by their size (LLaVA-NeXT).
        bare: a decoder without a vision tower, whose visual positions the caller marks.
    """

    name: str
    adapter: str
    make: Callable[[str], nn.Module]
    main: bool = False
    anyres: bool = False
    bare: bool = False

    def __str__(self) -> str:
        return self.name

    def model(self, attention: str = "sdpa") -> Any:
        """The model, fresh: the same weights at every call and for every attention kind."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = self.make(attention)
            _scale(model)
        if model.can_generate():
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0
        return model.eval()


def _scale(model: nn.Module) -> None:
    """Draws the weights anew, by their shape and role."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn_like(weight) * 0.05)
                continue
            spread = SPREAD
            if "embed_tokens" in name:
                spread = 1.0
            elif "lm_head" in name:
                spread = WIDTH**-0.5
            weight.normal_(std=spread)


def _text(**options: Any) -> dict[str, Any]:
    base = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return base | options


def _vision(side: int) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "projection_dim": WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": side,
        "patch_size": 4,
    }


def _decoder(kind: str, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**_text(**options))
        model = getattr(transformers, f"{kind}ForCausalLM")
        return model._from_config(config, attn_implementation=attention)  # type: ignore[no-any-return]

    return make


def _multimodal(kind: str, side: int, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vision_config=transformers.CLIPVisionConfig(**_vision(side)),
            text_config=transformers.LlamaConfig(**_text()),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
            **options,
        )
        model = getattr(transformers, f"{kind}ForConditionalGeneration")
        return model._from_config(config, attn_implementation=attention)  # type: ignore[no-any-return]

    return make


_PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]

_RECIPES = (
    Family("llama", "decoder", _decoder("Llama", num_key_value_heads=4), main=True, bare=True),
    Family("llama-gqa", "decoder", _decoder("Llama"), bare=True),
    Family("mistral", "decoder", _decoder("Mistral", sliding_window=None), bare=True),
    Family("mistral-window", "decoder", _decoder("Mistral", sliding_window=12), bare=True),
    Family("qwen2", "decoder", _decoder("Qwen2"), bare=True),
    Family("qwen3", "decoder", _decoder("Qwen3", head_dim=8), bare=True),
    Family("llava", "llava", _multimodal("Llava", 20), main=True),
    Family(
        "llava_next",
        "llava_next",
        _multimodal("LlavaNext", TILE, image_grid_pinpoints=_PINPOINTS),
        main=True,
        anyres=True,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _RECIPES})
"""Every recipe: name -> family."""
