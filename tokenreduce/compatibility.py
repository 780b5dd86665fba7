"""Whether a strategy, a family and the options of `reduce()` go together, before a model runs."""

from __future__ import annotations

from tokenreduce.adapter import Adapter
from tokenreduce.errors import BadOption, Incompatible
from tokenreduce.recipe import Recipe
from tokenreduce.strategy import Positions, Strategy, TowerStrategy, tower_output
from tokenreduce.tower import Part


def check_compatible(strategy: Strategy, reader: Adapter, model: Part) -> None:
    """Refuses a strategy whose evidence, or whose work in the tower, the adapter cannot provide."""
    if strategy.acts_on_pixels:
        raise Incompatible(
            f"{type(strategy).__name__} acts on pictures, before the processor: make the model's "
            "inputs of tokenreduce.downsample(processor, images, keep).images (task=generate does)"
        )
    missing = reader.missing_evidence(strategy.needs, model)
    if missing:
        raise Incompatible(
            f"{type(strategy).__name__} needs {', '.join(sorted(missing))}, which the "
            f"{type(reader).__name__} adapter cannot measure (it has: "
            f"{', '.join(sorted(reader.evidence)) or 'nothing'})"
        )
    wanted = strategy.tower if isinstance(strategy, TowerStrategy) else None
    if wanted is None:
        return
    allowed = frozenset(map(tower_output, reader.merging(reader.base(model))))
    if wanted not in allowed:
        known = f"knows {', '.join(sorted(allowed))}" if allowed else "cannot merge in its tower"
        raise BadOption(
            f"tower={wanted!r} is not possible for {type(model).__name__}: the "
            f"{type(reader).__name__} adapter {known}; tower=None merges at decoder layers"
        )


def check_options(recipe: Recipe, reader: Adapter) -> Positions:
    """The position rule that holds; refuses options that the family or the strategy lacks."""
    strategy, min_tokens = recipe.strategy, recipe.min_tokens
    own: Positions = strategy.positions if strategy.positions in reader.positions else "keep"
    rule = own if recipe.positions is None else recipe.positions
    if rule not in reader.positions:
        raise BadOption(
            f"positions={rule!r} is not defined for {type(reader).__name__} models, whose tokens "
            f"have no single position number: use positions={min(reader.positions)!r}"
        )
    if min_tokens and isinstance(strategy, TowerStrategy) and strategy.tower is not None:
        raise BadOption(
            f"min_tokens={min_tokens} is decided at decoder layers, and tower={strategy.tower!r} "
            "merges before: use tower=None, or leave min_tokens out"
        )
    return rule
