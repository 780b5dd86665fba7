"""What a tiny model's recipe says: how the model is made, and what a picture becomes as its input.

transformers is imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = 6
WIDTH = 32
WORDS = 99
START, END, IMAGE, VIDEO = 5, 6, 7, 8
"""Ids of the multimodal models: before and after a picture, and the placeholders. Text is drawn
from the ids above 9."""
SPREAD = 0.2
"""Standard deviation of the weight matrices: query-key products then spread by about 1.3."""

Inputs = dict[str, Tensor]


class AbsentError(LookupError):
    """The installed transformers has no class that a recipe needs: older releases know fewer."""


@dataclass(frozen=True)
class Shot:
    """One picture as a model is given it.

    Attributes:
        ids: its placeholders, and the special tokens around and among them.
        tensors: its part of the model's other inputs, by name.
    """

    ids: list[int]
    tensors: Inputs = field(default_factory=dict)


def joined(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """The tensors of all pictures, one after the other along dimension 0."""
    shots = [shot for sample in samples for shot in sample]
    names = dict.fromkeys(name for shot in shots for name in shot.tensors)
    return {
        name: torch.cat([shot.tensors[name] for shot in shots if name in shot.tensors])
        for name in names
    }


@dataclass(frozen=True)
class Family:
    """A tiny model's recipe.

    Attributes:
        name: of the recipe, e.g. `"llama-gqa"`.
        adapter: the registered adapter that reads it.
        make: the untouched model for an attention implementation.
        shot: the i-th picture of a batch, drawn from a generator.
        collate: the model's inputs from the pictures of every sample; called when there are any.
        marks: inputs that follow from `input_ids` (token types), by name.
        main: the one recipe per adapter that every schedule is tried on; the others are variants.
        bare: a decoder without a vision tower, whose visual positions the caller marks.
        own_positions: whether the model counts positions in its own way (M-RoPE), so that no caller
            else should.
        attentions: the attention implementations that the family has.
        pictures_first: whether a sample's pictures come before all of its text.
    """

    name: str
    adapter: str
    make: Callable[[str], nn.Module]
    shot: Callable[[int, torch.Generator], Shot]
    collate: Callable[[Sequence[Sequence[Shot]]], Inputs] = joined
    marks: Callable[[Tensor], Inputs] | None = None
    main: bool = False
    bare: bool = False
    own_positions: bool = False
    attentions: tuple[str, ...] = ("sdpa", "eager")
    pictures_first: bool = False

    def __str__(self) -> str:
        return self.name

    def marks_of(self, ids: Tensor) -> Inputs:
        """The inputs that follow from `input_ids` (b, l), by name."""
        return {} if self.marks is None else self.marks(ids)

    def model(self, attention: str | None = None) -> Any:
        """The model, fresh: the same weights at every call and for every attention kind.

        Raises:
            AbsentError: the installed transformers has no such model.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self._made(attention or self.attentions[0])
            _scale(model)
        if model.can_generate():
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0
        return model.eval()

    def _made(self, attention: str) -> Any:
        import transformers

        try:
            return self.make(attention)
        except AttributeError as missing:
            of: Any = missing.obj
            if of is not transformers:
                raise
            known = f"transformers {transformers.__version__} has no {missing.name}"
            raise AbsentError(f"{known}, which the tiny model {self.name} needs") from missing


def _scale(model: Any) -> None:
    """Draws the weights anew, by their shape and role."""
    table = model.get_input_embeddings()
    multiplied = float(getattr(table, "scalar_embed_scale", 1.0))  # what a Gemma looks up
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn_like(weight) * 0.05)
                continue
            spread = SPREAD
            if "embed_tokens" in name:
                spread = 1.0 / multiplied
            elif "lm_head" in name:
                spread = WIDTH**-0.5
            weight.normal_(std=spread)


def text(**options: Any) -> dict[str, Any]:
    """A text configuration's options, with changes."""
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


def vision(side: int, **options: Any) -> dict[str, Any]:
    """A CLIP-like tower's options for pictures of `side` pixels, with patches of 4."""
    base = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": side,
        "patch_size": 4,
    }
    return base | options


def build(kind: str, config: Any, attention: str | dict[str, str]) -> nn.Module:
    """`transformers.<kind>` from a configuration, with random weights.

    attention: one kind for the whole model, or one for each part, by its name in the configuration.
    """
    import transformers

    model = getattr(transformers, kind)
    return model._from_config(config, attn_implementation=attention)  # type: ignore[no-any-return]
