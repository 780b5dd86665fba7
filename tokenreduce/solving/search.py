"""From a budget to a schedule: how much to keep so that a target is met.

The counts are those that the schedule really produces, rounded as it rounds them. The answer is
the largest share whose cost does not exceed the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from tokenreduce.checks import integer, one_of, sequence
from tokenreduce.cost import average_tokens, cost, shape_of
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.schedulers import Explicit

FREE: Mapping[str, str] = {
    "pyramid": "ratio",
    "single": "keep",
    "linear": "keep",
    "cosine": "keep",
    "explicit": "keeps",
}
"""The rules that `solve` knows, and the option of each that it finds."""

_UNITS = {
    "average": "visual tokens per layer",
    "flops": "of the unreduced FLOPs",
    "kv_bytes": "bytes of KV cache",
}


def solve(
    config: Any,
    *,
    visual: int,
    text: int = 0,
    average: float | None = None,
    flops: float | None = None,
    kv_bytes: float | None = None,
    rule: str = "pyramid",
    convention: str = "matmul",
    bytes_per_value: float = 2,
    **options: Any,
) -> Scheduler:
    """The schedule of a rule that keeps the most tokens within one target.

    Args:
        config: a transformers configuration, its dict, or a `tokenreduce.cost.DecoderShape`.
        visual: visual tokens of a sample before any reduction.
        text: all its other tokens; they count towards `flops` and `kv_bytes`, not `average`.
        average: target in visual tokens per layer, averaged over the layers.
        flops: target as a share (0 to 1) of the unreduced decoder's FLOPs.
        kv_bytes: target for the KV cache after the prefill: bytes, or a share where at most 1.
        rule: `"pyramid"` (finds `ratio`), `"single"`, `"linear"`, `"cosine"` (find `keep`), or
            `"explicit"` (finds `keeps` r, r^2, r^3, ... for the given `layers`).
        convention: the FLOPs convention of `tokenreduce.cost`.
        bytes_per_value: bytes of one number in the KV cache.
        **options: the rule's other options: `stages`, `layer`, `layers`, `rounding`, ...

    Raises:
        ValueError: not exactly one target, a target out of range, an unknown rule, or a target
            that the rule does not meet even if its stops keep no visual token.
        TypeError: an option that the rule does not have.
    """
    shape = shape_of(config)
    integer(visual, "visual", least=1)
    build = by_share(rule, options)
    name, goal = _only({"average": average, "flops": flops, "kv_bytes": kv_bytes})
    full = cost(shape, (), visual, text, convention, bytes_per_value)
    limit = _limit(name, goal, {"average": visual, "flops": 1, "kv_bytes": full.kv_bytes}[name])

    def spent(share: float) -> float:
        schedule = build(share)
        if name == "average":
            return average_tokens(schedule.stops(shape.layers), shape.layers, visual)
        price = cost(shape, schedule, visual, text, convention, bytes_per_value)
        return price.share if name == "flops" else price.kv_bytes

    least = spent(0.0)
    if least > limit:
        layers = [str(stop.layer) for stop in build(0.0).stops(shape.layers)]
        where = ", ".join(layers if len(layers) < 6 else [*layers[:3], "...", layers[-1]])
        raise BadOption(
            f"infeasible: the minimum is {_short(least)} {_UNITS[name]} with stops at layers "
            f"{where} of {shape.layers}, even with {FREE[rule]} at 0, and {_short(limit)} "
            "is asked for: stop at earlier layers, or raise the target"
        )
    return build(_largest(spent, limit))


def _largest(spent: Callable[[float], float], limit: float) -> float:
    """The largest share within the limit, written with as few decimals as do the same."""
    low, high = 0.0, 1.0
    if spent(high) <= limit:
        return high
    for _ in range(60):  # past the resolution of a float between 0 and 1
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= limit else (low, middle)
    best = spent(low)
    shorter = (int(low * 10**digits) / 10**digits for digits in range(1, 16))
    return next((share for share in shorter if spent(share) == best), low)


def by_share(rule: str, options: Mapping[str, Any]) -> Callable[[float], Scheduler]:
    """The schedules of a rule, as a function of the share that is looked for.

    Args:
        rule: a name in `FREE`.
        options: the rule's other options.

    Raises:
        ValueError: an unknown rule, or the share among the options.
    """
    one_of(rule, FREE, "rule to solve for")
    if FREE[rule] in options:
        raise BadOption(f"{FREE[rule]} is what solve finds for {rule!r}: leave it out")

    def build(share: float) -> Any:
        found: Any = share
        if rule == "explicit":
            layers = sequence(options.get("layers", Explicit.layers), "layers")
            found = tuple(round(share ** (i + 1), 4) for i in range(len(layers)))
        return schedulers.build(rule, **{FREE[rule]: found}, **options)

    return build


def _only(targets: Mapping[str, Any]) -> tuple[str, Any]:
    """The name and value of the one target that is given."""
    given = [(name, value) for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise BadOption(
            f"solve takes exactly one target out of {', '.join(targets)}, "
            f"not {' and '.join(name for name, _ in given) or 'none'}"
        )
    return given[0]


def _limit(name: str, goal: Any, most: float) -> float:
    """The target in its unit, checked to lie between nothing and what no reduction costs."""
    number = isinstance(goal, Real) and not isinstance(goal, bool)
    limit = goal * most if number and name == "kv_bytes" and goal <= 1 else goal
    if not number or not 0 <= limit <= most:
        raise BadOption(
            f"{name} must be between 0 and {_short(most)} {_UNITS[name]} (no reduction), "
            f"not {goal!r}"
        )
    return float(limit)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
