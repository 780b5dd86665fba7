"""The model that is measured: with its weights, or of its sizes with random ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.benchmarking.pixels import noise
from tokenreduce.benchmarking.synthetic import MarkedPrompt, PicturePrompt
from tokenreduce.cost import shape_of
from tokenreduce.data.images import load_image
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.errors import BadOption
from tokenreduce.inference.inputs import encode
from tokenreduce.inference.loaded import load, load_random
from tokenreduce.inference.spec import ModelSpec

USUAL = 576
"""Visual tokens where nothing says how many: LLaVA-1.5's."""


@dataclass(frozen=True)
class Subject:
    """A model on its device, and inputs with one picture where they can be made."""

    model: Any
    name: str
    weights: str
    picture: dict[str, Tensor] | None = field(repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share for their times to be compared."""
        config: Any = tr.unwrap(self.model).config
        shape = shape_of(config)
        kept = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab")
        return {
            "model": self.name,
            "family": config.model_type,
            "weights": self.weights,
            **{name: getattr(shape, name) for name in kept},
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": config._attn_implementation,
        }

    def prompts(
        self, visual: list[int] | None, text: int, batches: list[int], seed: int
    ) -> list[MarkedPrompt | PicturePrompt]:
        """What is measured: a picture where there is one, then embeddings of every count.

        visual: tokens; None for as many as the picture has.
        """
        found: list[MarkedPrompt | PicturePrompt] = []
        for batch in batches:
            seen = None
            if self.picture is not None:
                ids = self.picture["input_ids"][0]
                model = tr.unwrap(self.model)
                n = int((ids == adapter_for(model).visual_ids(model.config)["image"]).sum())
                seen = PicturePrompt(self.picture, n, len(ids) - n, batch)
                found.append(seen)
            usual = USUAL if seen is None else seen.visual
            found += [MarkedPrompt(n, text, batch, seed) for n in visual or [usual]]
        return found


def subject(
    spec: ModelSpec,
    weights: str | None = None,
    image: Any = None,
    question: str | None = None,
    text: int = 64,
) -> Subject:
    """The model that is measured, and inputs with one picture where they can be made.

    Args:
        spec: the model.
        weights: `"stored"` or `"random"`; None takes random ones where only sizes are known.
        image: path of the picture; None is the example that ships.
        question: about it; None asks what it is.
        text: text tokens next to a picture of noise, which a model with random weights is given.

    Raises:
        ValueError: an unknown choice of weights, or what the loading refuses.
    """
    if weights not in (None, "stored", "random"):
        raise BadOption(f"task.weights={weights} is unknown (known: stored, random, or null)")
    if weights == "random" or (weights is None and spec.shape is not None and spec.id is None):
        model = load_random(spec)
        return Subject(model, spec.name, "random", noise(model, text, spec.seed))
    loaded = load(spec)
    path = image or checkpoint_dir().parent / "example.png"
    inputs = dict(encode(loaded, question or "What is this?", [load_image(str(path))]))
    inputs.pop("attention_mask", None)  # one sample: nothing is padding
    name = spec.name if spec.id is None else loaded.source
    return Subject(loaded.model, name, "stored", inputs)
