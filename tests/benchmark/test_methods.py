"""What every registered method costs at one prompt: 16 layers of width 512, 2,880 visual tokens.

The share of a reduced prefill that scoring and gathering take, each method under its own schedule.
The decoder is bare: what a method reads of the vision tower is handed in with the geometry (a whole
picture of 24 x 24 patches, then a grid of 48 x 48), and costs the tower's part elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

import tokenreduce as tr
from tests.benchmark.clock import ENGINE
from tests.benchmark.prefill import Trial
from tests.benchmark.sizes import SMALL, SMOKE, TEXT, VISUAL, Size
from tokenreduce.tokens import EVIDENCE, TOWER

DEEP = Size(8, 128) if SMOKE else SMALL
ROUNDS = 3 if SMOKE else 4
ASKED = 0.05
HEADS, WIDTH = 16, 1024
"""Of the vision tower that is stood in for: CLIP's large one."""
METHODS = [
    name
    for name, strategy in tr.strategies.items()
    if strategy.reduces and strategy.__module__.startswith("tokenreduce.") and name != "downsample"
]


class Told(tr.adapters["decoder"]):  # type: ignore[misc, name-defined]
    """A bare decoder whose pictures bring what a tower would say."""

    evidence: ClassVar[frozenset[str]] = frozenset(EVIDENCE)
    families: ClassVar[frozenset[str]] = frozenset()

    def lacks(self, needs: frozenset[str], model: Any) -> frozenset[str]:
        """Nothing: pictures have it."""
        return frozenset()


def pictures(visual: int) -> list[tr.Picture]:
    """A fifth of the tokens for the whole picture, the rest for its crops."""
    side = round((visual / 5) ** 0.5)
    whole, crops = tr.Picture.grid(side, side), tr.Picture.grid(2 * side, 2 * side, tile=1)
    picture = tr.Picture.join([whole, crops])
    assert len(picture) <= visual
    rest = tr.Picture.grid(1, visual - len(picture), tile=2) if len(picture) < visual else None
    picture = tr.Picture.join([picture, rest]) if rest is not None else picture
    generator = torch.Generator().manual_seed(0)
    shapes = {"class_attention": (HEADS,), "class_attention_first": (HEADS,), "class_match": ()}
    shapes |= {"tower_features": (WIDTH,), "tower_keys": (WIDTH // HEADS,), "match_keys": (WIDTH,)}
    assert set(shapes) == set(TOWER)
    measures = {name: torch.rand(visual, *s, generator=generator) for name, s in shapes.items()}
    return [replace(picture, measures=measures)]


@pytest.mark.filterwarnings("ignore::tokenreduce.ReductionWarning")
@pytest.mark.benchmark(group="methods", timer=ENGINE.read)
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_costs(benchmark: Any, name: str) -> None:
    strategy, shown = tr.strategies.build(name), pictures(VISUAL[-1])
    trial = Trial(DEEP, VISUAL[-1], strategy, adapter=Told(), pictures=shown)
    trial.warm_up()
    benchmark.pedantic(trial.reduced, setup=trial.unreduced, rounds=ROUNDS)
    facts = trial.facts() | {"method": name, "asked": ASKED}
    trial.close()
    benchmark.extra_info.update(facts)
    assert facts["engine_ms"] > 0
    assert facts["tokens_per_layer"][-1] < VISUAL[-1] + TEXT
