"""What the same questions are answered under: the full model, a reduction, a harmless change.

Everything that a comparison needs is planned with the reduction that was asked for: the unreduced
model of the same run, the baselines under the same schedule and position rule, and the
changes of the input that set the scale.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.data.items import Item
from tokenreduce.evaluation.perturbation import perturbations
from tokenreduce.inference.loaded import Loaded
from tokenreduce.recipe import Recipe

BASELINES = ("random", "stride", "pooling", "downsample")
"""Reducers that read nothing of the model or the question."""


@dataclass(frozen=True)
class Condition:
    """One way to answer the questions.

    Attributes:
        recipe: with what the model is reduced; None is the full model.
        change: of the questions, by name; None leaves them as they are.
    """

    recipe: Recipe | None = None
    change: str | None = None

    @property
    def key(self) -> str:
        """A name for files: what it is, and a digest of every option."""
        parts = [self.change] if self.recipe is None else [self.recipe.name, self.schedule]
        name = re.sub(r"[^\w.-]+", "_", "-".join(str(part) for part in parts if part) or "full")
        text = json.dumps(self.to_dict(), sort_keys=True)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        if self.recipe is None:
            return self.change or "full model"
        return f"{self.recipe.name}, {self.schedule}"

    @property
    def schedule(self) -> str | None:
        """The scheduler's name."""
        return None if self.recipe is None else tr.schedulers.name_of(self.recipe.schedule)

    def to_dict(self) -> dict[str, Any]:
        """What is noted of it: names, options that are not the defaults of their class, the rest.

        So the same condition has the same key however it was written.
        """
        names = ("strategy", "scheduler", "positions")
        data: dict[str, Any] = dict.fromkeys(names) | {"seed": 0, "min_tokens": 0}
        recipe = self.recipe
        if recipe is not None:
            data = {name: getattr(recipe, name) for name in data}
            data["strategy"] = tr.strategies.node(recipe.strategy, defaults=False)
            data["scheduler"] = tr.schedulers.node(recipe.schedule, defaults=False)
        return data | {"change": self.change}

    def reduction(self, loaded: Loaded) -> Callable[[], Any]:
        """A context in which the model answers under this condition; the full one does nothing."""
        if self.recipe is None:
            return nullcontext
        recipe = self.recipe.in_model()
        return lambda: tr.reduce(loaded.model, recipe)

    def questions(self, items: Sequence[Item]) -> list[Item]:
        """The questions as this condition puts them; those that it cannot change are left out."""
        if self.change is None:
            return list(items)
        changed = (perturbations[self.change](item) for item in items)
        return [item for item in changed if item is not None]


FULL = Condition()


def spelled_out(recipe: Recipe, loaded: Loaded) -> Condition:
    """A recipe as a condition with its position rule spelled out; `FULL` for one of nothing."""
    strategy = recipe.strategy
    if not strategy.reduces and not strategy.acts_on_pixels:
        return FULL
    if recipe.positions is None:
        defined = adapter_for(tr.unwrap(loaded.model)).positions
        rule = strategy.positions if strategy.positions in defined else "keep"
        recipe = replace(recipe, positions=rule)
    return Condition(recipe)


def plan(
    tested: Condition, baselines: Sequence[str], seeds: int, changes: Sequence[str]
) -> list[Condition]:
    """What is run for the reduction that was asked for, each once, itself first.

    What cannot be done with the model is then refused before anything else is computed. A smaller
    picture is not among the baselines here: its share is solved for when the others' cost is
    known.
    """
    rows = [tested, FULL, *(Condition(change=name) for name in changes)]
    if tested.recipe is not None:
        for name in baselines:
            same = replace(tested.recipe, strategy=tr.strategies.build(name))
            draws = {"random": seeds, "downsample": 0}.get(name, 1)
            rows += [Condition(replace(same, seed=seed)) for seed in range(draws)]
    return list({row.key: row for row in rows}.values())


def draws_beside(tested: Condition, planned: Sequence[Condition]) -> str | None:
    """What to say where the tested reduction is a baseline, and so a part of its row."""
    recipe = tested.recipe
    if recipe is None or recipe.name not in BASELINES:
        return None
    name, key = recipe.name, recipe.key()
    others = [one.recipe for one in planned if one.recipe is not None]
    seeds = [one.seed for one in others if replace(one, seed=recipe.seed).key() == key]
    if len(seeds) == 1:
        return f"{name}: is in the table as a baseline"
    return (
        f"{name}, seed {recipe.seed}: one of the {len(seeds)} draws of the baseline {name} "
        f"(seeds {', '.join(map(str, sorted(seeds)))}), which the table has as one row"
    )


def smaller_pictures(keep: float) -> Condition:
    """The baseline that acts on pictures, at a share of their visual tokens."""
    return Condition(Recipe(tr.Downsample(), tr.Single(layer=0, keep=keep), "keep"))
