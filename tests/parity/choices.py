"""Recorded choices: what a method that looks at pictures alone was given, and what it kept.

The originals ran on a small CLIP (and a projector), without a language model, or on given features.
`Choice` reads such a case; `llava` assembles a LLaVA around the recorded tower, so that the same
choice can be made by a whole model. Shapes: b samples, v visual tokens, d width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import tokenreduce as tr
from tokenreduce.geometry import Picture, places

from .cases import GOLDEN

IMAGE = 30
"""The image token of `llava`."""
TEXT = 2
"""Text tokens before the picture in `prompt`."""


@dataclass(frozen=True)
class Choice:
    """One recorded choice."""

    folder: Path

    def __str__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "data.safetensors")

    def clip(self) -> CLIPModel:
        """The CLIP that was recorded, in evaluation mode."""
        weights = (self.folder / self.settings["weights"]).parent
        return CLIPModel.from_pretrained(weights, attn_implementation="sdpa").eval()

    def projector(self) -> nn.Sequential:
        """The projector that was recorded: one linear layer, or two with a GELU between.

        Where the original stopped before its projector, one that changes nothing.
        """
        state = {n[10:]: x for n, x in self.tensors.items() if n.startswith("projector.")}
        if not state:
            return nn.Sequential(nn.Identity())
        if "weight" in state:
            state = {f"0.{name}": x for name, x in state.items()}
        shapes = {int(n.split(".")[0]): x.shape for n, x in state.items() if x.dim() == 2}
        depth = max(shapes) + 1
        found = nn.Sequential(
            *(nn.Linear(*shapes[i][::-1]) if i in shapes else nn.GELU() for i in range(depth))
        )
        found.load_state_dict(state)
        return found.eval()


def choices(method: str) -> list[Choice]:
    """The recorded choices of `method`: the project's own, then those of TOKENREDUCE_GOLDEN."""
    roots = [GOLDEN, *(Path(x) for x in [os.environ.get("TOKENREDUCE_GOLDEN")] if x)]
    found: dict[str, Path] = {}
    for root in roots:
        for folder in sorted((root / method).glob("*/")):
            found.setdefault(folder.name, folder)
    return [Choice(folder) for folder in found.values()]


def own(method: str) -> set[str]:
    """The names of the project's own cases of `method`, as its index lists them."""
    index = json.loads((GOLDEN / "index.json").read_text())
    return {f"{x['method']}/{x['case']}" for x in index if x["method"] == method}


def tokens(hidden: Tensor, **evidence: Tensor) -> tr.Tokens:
    """The visual tokens (b, v, d) of one picture per sample, with what is known of them."""
    b, v, _ = hidden.shape
    where = places([[Picture.grid(1, v)] for _ in range(b)], torch.device("cpu"))
    return tr.Tokens(
        hidden=hidden,
        valid=torch.ones(b, v, dtype=torch.bool),
        origin=torch.arange(v).expand(b, v),
        places=where,
        counts=(v,) * b,
        original=v,
        evidence={name: partial(torch.clone, x) for name, x in evidence.items()},
    )


def llava(case: Choice) -> LlavaForConditionalGeneration:
    """A LLaVA with the recorded tower and projector, and a small random decoder."""
    clip, projector = case.clip(), case.projector()
    width = projector(torch.zeros(1, clip.config.vision_config.hidden_size)).shape[-1]
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=case.settings["vision_select_layer"],
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    state = {n.removeprefix("vision_model."): x for n, x in clip.vision_model.state_dict().items()}
    getattr(tower, "vision_model", tower).load_state_dict(state)
    model.model.multi_modal_projector = projector
    return model


def prompt(case: Choice, tokens: int = 576) -> dict[str, Tensor]:
    """One recorded picture per sample, between text."""
    pixels = case.tensors["pixel_values"]
    row = torch.tensor([1, 2, *[IMAGE] * tokens, 3, 4, 5])
    return {"input_ids": row.expand(len(pixels), -1), "pixel_values": pixels}


def tower(case: Choice) -> Any:
    """What the recorded tower says of the recorded pictures: every layer's output."""
    with torch.no_grad():
        vision = case.clip().vision_model
        return vision(case.tensors["pixel_values"], output_hidden_states=True)


def entering(model: LlavaForConditionalGeneration, inputs: dict[str, Tensor], k: int) -> Tensor:
    """(b, k, d) the visual tokens that the first layer of a reduced `llava` is given."""
    given: list[Tensor] = []
    handle = (
        model.get_decoder().layers[0].register_forward_pre_hook(_taken(given), with_kwargs=True)
    )
    model(**inputs)
    handle.remove()
    return given[0][:, TEXT : TEXT + k]


def _taken(into: list[Tensor]) -> Callable[..., None]:
    def take(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    return take
