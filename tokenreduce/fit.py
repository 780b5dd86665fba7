"""Whether a strategy, a family and the options of `reduce()` go together, before a model runs."""

from __future__ import annotations

from typing import Any, Literal, get_args

from tokenreduce.adapter import Adapter
from tokenreduce.registry import did_you_mean
from tokenreduce.scheduler import whole
from tokenreduce.strategy import Positions, Strategy, TowerStrategy
from tokenreduce.tower import Part

Logits = Literal["full", "text"]


def check_fit(strategy: Strategy, reader: Adapter, model: Part) -> None:
    """Refuses a strategy whose evidence, or whose work in the tower, the adapter cannot provide."""
    if strategy.site == "pictures":
        raise TypeError(
            f"{type(strategy).__name__} acts on pictures, before the processor: make the model's "
            "inputs of tokenreduce.downsample(processor, images, keep).images (task=generate does)"
        )
    missing = reader.lacks(strategy.needs, model)
    if missing:
        raise TypeError(
            f"{type(strategy).__name__} needs {', '.join(sorted(missing))}, which the "
            f"{type(reader).__name__} adapter cannot measure (it has: "
            f"{', '.join(sorted(reader.evidence)) or 'nothing'})"
        )
    wanted = strategy.tower if isinstance(strategy, TowerStrategy) else None
    if wanted is None:
        return
    allowed = reader.merging(reader.base(model))
    if wanted not in allowed:
        known = f"knows {', '.join(sorted(allowed))}" if allowed else "cannot merge in its tower"
        raise ValueError(
            f"tower={wanted!r} is not possible for {type(model).__name__}: the "
            f"{type(reader).__name__} adapter {known}; tower=None merges at decoder layers"
        )


def check_options(
    strategy: Strategy,
    reader: Adapter,
    positions: Positions | None,
    logits: Logits,
    min_tokens: int,
) -> Positions:
    """The position rule that holds; refuses options that nobody knows or the family lacks."""
    own: Positions = strategy.positions if strategy.positions in reader.positions else "keep"
    rule = own if positions is None else positions
    for name, value, known in (("positions", rule, Positions), ("logits", logits, Logits)):
        if value not in get_args(known):
            hint = did_you_mean(value, get_args(known))
            raise ValueError(f"no {name} {value!r}{hint} (known: {', '.join(get_args(known))})")
    if rule not in reader.positions:
        raise ValueError(
            f"positions={rule!r} is not defined for {type(reader).__name__} models, whose tokens "
            f"have no single position number: use positions={min(reader.positions)!r}"
        )
    whole(min_tokens, "min_tokens", least=0)
    if min_tokens and isinstance(strategy, TowerStrategy) and strategy.tower is not None:
        raise ValueError(
            f"min_tokens={min_tokens} is decided at decoder layers, and tower={strategy.tower!r} "
            "merges before: use tower=None, or leave min_tokens out"
        )
    return rule


def instance(given: Any, registry: Any, kind: type) -> Any:
    """What `reduce()` was given by its registered name, or as it is.

    Raises:
        KeyError: an unknown name.
        TypeError: neither a name nor a `kind`.
    """
    if isinstance(given, str):
        return registry.build(given)
    if isinstance(given, kind):
        return given
    raise TypeError(
        f"a {registry.kind} is a registered name or an instance, not {given!r} "
        f"(known names: {', '.join(registry)})"
    )
