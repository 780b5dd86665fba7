"""The model that is measured: with its weights, or of its sizes with random ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.cost import shape_of
from tokenreduce.data.images import load_image
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.errors import BadOption
from tokenreduce.tasks.benchmarking.pixels import noise
from tokenreduce.tasks.benchmarking.prompts import Prompt, Seen
from tokenreduce.tasks.loading import load, load_random
from tokenreduce.tasks.prompting import encode

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
    ) -> list[Prompt | Seen]:
        """What is measured: a picture where there is one, then embeddings of every count.

        visual: tokens; None for as many as the picture has.
        """
        found: list[Prompt | Seen] = []
        for batch in batches:
            seen = None
            if self.picture is not None:
                ids = self.picture["input_ids"][0]
                model = tr.unwrap(self.model)
                n = int((ids == adapter_for(model).visual_ids(model.config)["image"]).sum())
                seen = Seen(self.picture, n, len(ids) - n, batch)
                found.append(seen)
            usual = USUAL if seen is None else seen.visual
            found += [Prompt(n, text, batch, seed) for n in visual or [usual]]
        return found


def subject(config: DictConfig) -> Subject:
    """The model that `config.model` and `config.task.weights` name.

    Raises:
        ValueError: an unknown choice of weights, or what the loading refuses.
    """
    wanted, shape = config.task.weights, config.model.get("shape")
    if wanted not in (None, "stored", "random"):
        raise BadOption(f"task.weights={wanted} is unknown (known: stored, random, or null)")
    if wanted == "random" or (wanted is None and shape is not None and config.model.id is None):
        model = load_random(config)
        picture = noise(model, int(config.task.text), int(config.seed))
        return Subject(model, str(config.model.name), "random", picture)
    loaded = load(config)
    path = config.image or checkpoint_dir().parent / "example.png"
    question = config.prompt or "What is this?"
    inputs = dict(encode(loaded, question, [load_image(str(path))]))
    inputs.pop("attention_mask", None)  # one sample: nothing is padding
    name = config.model.name if config.model.id is None else loaded.source
    return Subject(loaded.model, str(name), "stored", inputs)
