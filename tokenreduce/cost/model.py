"""What a whole model costs: vision tower, connector, decoder, head, and the choice of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenreduce.checks import integer
from tokenreduce.cost.activations import Activations, activations
from tokenreduce.cost.connector import connector_of
from tokenreduce.cost.conventions import convention_of
from tokenreduce.cost.prefill import Cost, cost, head_macs, shape_of
from tokenreduce.cost.tower_sizes import Grid, tower_macs, tower_of
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import Scheduler, Stop


@dataclass(frozen=True)
class ModelCost:
    """The cost of one prefill of a whole model under a schedule, and of the unreduced (`_full`).

    Attributes:
        tower: MACs of the vision tower.
        connector: MACs between tower and decoder.
        head: MACs of the LM head.
        decoder: of the layers, by the convention that it names; the other parts multiply what they
            multiply, whatever the convention. Its `selection_macs` are in `macs` here.
        visual: visual tokens at the decoder's entry.
        patches: that the tower works on, class tokens included.
        activations: bytes that the tensors between the layers' operations take.
    """

    tower: int
    connector: int
    head: int
    decoder: Cost
    visual: int
    patches: int
    activations: Activations
    activations_full: Activations

    @property
    def macs(self) -> int:
        """MACs of all parts, the choice of tokens among them."""
        return self._around + self.decoder.macs + self.decoder.selection_macs

    @property
    def macs_full(self) -> int:
        """MACs of all parts of the unreduced model."""
        return self._around + self.decoder.macs_full

    @property
    def flops(self) -> int:
        """FLOPs as the convention prints them: of published ones, the MACs."""
        return self._per_mac * self.macs

    @property
    def flops_full(self) -> int:
        """The same of the unreduced model."""
        return self._per_mac * self.macs_full

    @property
    def share(self) -> float:
        """`macs / macs_full`."""
        return self.macs / self.macs_full if self.macs_full else 1.0

    @property
    def _around(self) -> int:
        return self.tower + self.connector + self.head

    @property
    def _per_mac(self) -> int:
        return convention_of(self.decoder.convention).flops_per_mac

    def rows(self) -> list[tuple[str, int, int]]:
        """Part by part, FLOPs of the unreduced and of the reduced model, for a table."""
        same = {"vision tower": self.tower, "connector": self.connector}
        found = [(name, n, n) for name, n in same.items()]
        found.append(("decoder layers", self.decoder.macs_full, self.decoder.macs))
        found.append(("LM head", self.head, self.head))
        found.append(("token selection, at most", 0, self.decoder.selection_macs))
        return [(name, self._per_mac * a, self._per_mac * b) for name, a, b in found]


def model_cost(
    config: Any,
    schedule: Scheduler | Iterable[Stop],
    pictures: int | Sequence[Grid],
    visual: int | None = None,
    text: int = 0,
    *,
    logits: int = 1,
    convention: str = "matmul",
    bytes_per_value: float = 2,
) -> ModelCost:
    """The cost of a prefill of a whole vision-language model under a schedule.

    Args:
        config: a transformers configuration or its dict; no weights.
        schedule: a scheduler, or its stops.
        pictures: how many pictures (tiles, frames) a tower of one size is given, or their grids
            of patches: `[Grid(h, w, frames=t) for t, h, w in image_grid_thw]`.
        visual: visual tokens at the decoder's entry; None where they follow from the pictures.
        text: all other tokens.
        logits: positions whose logits are computed: 1 when generating, all in training.
        convention: of the decoder's layers, a name in `CONVENTIONS`.
        bytes_per_value: bytes of a number in the KV cache and the activations.

    Raises:
        ValueError: a tower, connector or decoder that no formula describes (the cost of the
            decoder alone, `tokenreduce.cost.cost`, needs no tower), or `visual` left out where the
            arrangement of tiles decides.
    """
    tower, shape = tower_of(config), shape_of(config)
    grids = tower.grids(pictures)
    connector = connector_of(config, tower, shape.hidden)
    if visual is None:
        visual = connector.tokens(grids)
    if visual is None:
        raise BadOption(
            "visual is needed: how many tokens these tiles become depends on how they are "
            "arranged; count the image tokens that the processor made"
        )
    decoder = cost(shape, schedule, visual, text, convention, bytes_per_value)
    unreduced = (visual + text,) * shape.layers
    working = (tower, tower.places(grids))
    return ModelCost(
        tower=tower_macs(tower, grids),
        connector=connector.macs(grids),
        head=head_macs(shape, integer(logits, "logits", least=0)),
        decoder=decoder,
        visual=visual,
        patches=tower.places(grids),
        activations=activations(shape, decoder.tokens_per_layer, bytes_per_value, *working),
        activations_full=activations(shape, unreduced, bytes_per_value, *working),
    )
