"""How a vision tower runs shorter: hooks that merge tokens between a layer's attention and MLP.

A layer keeps its own sums. The norm in front of its MLP is given the merged tokens, so the MLP runs
on those; its output is spread over the groups, so that the layer's sum fits; after the layer the
groups are merged. Merging is linear, and what was spread is equal within a group: the result is
that of merging between attention and MLP.

Shapes: n pictures, o tokens that the tower begins with (class tokens first), p tokens left, k kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from tokenreduce.engine.hooks import Hook, bind, parameters
from tokenreduce.strategy import TowerStrategy
from tokenreduce.tokens import Merge, Places, Plan, Tokens, gather
from tokenreduce.tower import Part, Tower

CARRIED = "tokenreduce_merged"
"""The attribute under which hidden states between two layers carry what was merged so far."""


@dataclass(frozen=True)
class Merged:
    """What was merged on the way to one layer.

    Never changed: a layer that checkpointing runs again finds what it found the first time.

    Attributes:
        counts: tokens after each layer (host).
        group: (n, o) the token that each original one is in by now.
        size: (n, p) how many original ones each token represents.
        first: (n, p) an original one that represents each.
        plans: of the layers so far.
    """

    counts: tuple[int, ...]
    group: Tensor
    size: Tensor
    first: Tensor
    plans: Mapping[int, Plan]

    @classmethod
    def nothing(
        cls, counts: tuple[int, ...], n: int, o: int, device: torch.device, **rest: Any
    ) -> Self:
        """At the beginning of a tower."""
        place = torch.arange(o, device=device).expand(n, o)
        return cls(counts, place, torch.ones(n, o, device=device), place, {}, **rest)

    @property
    def began(self) -> int:
        """Tokens that the tower began with."""
        return self.group.shape[1]

    def group_after(self, layer: int) -> Tensor:
        """(n, o) the token after `layer` that each original one is in."""
        o = self.began
        group = torch.arange(o, device=self.group.device).expand_as(self.group)
        for i in sorted(self.plans):
            plan = self.plans[i].group
            if i <= layer and plan is not None:
                group = plan.gather(1, group)
        return group

    def after(self, layer: int, plan: Plan) -> Self:
        """What is merged after `layer`."""
        assert plan.group is not None  # `Merging` checks it
        size = self.size.new_zeros(plan.keep.shape).scatter_add(1, plan.group, self.size)
        return replace(
            self,
            group=plan.group.gather(1, self.group),
            size=size,
            first=plan.take(self.first),
            plans={**self.plans, layer: plan},
        )

    def spread(self, x: Tensor, layer: int) -> Tensor:
        """What left `layer` (-1: what entered the first), every token as its group became."""
        return gather(x, self.group_after(layer)) if layer >= 0 else x

    def pairs(self, layer: int) -> tuple[int, int]:
        """Queries times keys of a picture in `layer`: as it was, and had nothing been merged."""
        entering = self.counts[layer - 1] if layer else self.began
        return entering**2, self.began**2


class Merging:
    """Puts the hooks on a tower; `remove()` takes them off.

    Args:
        tower: the facts of the tower.
        strategy: which tokens merge.
        counts: tokens after each layer, from how many there are.
        remember: told about every pass, after the last layer.
        seed: for strategies that draw.

    Raises:
        ValueError: attention that adds no mask under a proportional strategy, or a tower that is
            reduced already.
    """

    def __init__(
        self,
        tower: Tower,
        strategy: TowerStrategy,
        counts: Callable[[int], tuple[int, ...]],
        remember: Callable[[Merged], None],
        seed: int = 0,
    ) -> None:
        self.tower, self.strategy, self.counts = tower, strategy, counts
        self.remember, self.seed = remember, seed
        self._local = threading.local()
        self.handles: list[Any] = []
        if strategy.proportional and not tower.adds_mask():
            other = "load the vision tower with attn_implementation='sdpa' or 'eager', or "
            why = other if tower.takes_mask else "this tower's takes none; "
            raise ValueError(
                "attention proportional to size needs attention that adds a mask to its scores: "
                f"{why}choose prop_attn=False"
            )
        for hook in tower.layers[0]._forward_pre_hooks.values():
            if isinstance(getattr(hook, "call", None), LayerPreHook):
                raise ValueError(
                    "this tower is already reduced: remove() the other reduction first"
                )
        for i, layer in enumerate(tower.layers):
            norm, *_, mlp = tower.mlp(layer)
            enter = Hook(LayerPreHook(partial(self._enter, i, parameters(layer))), self)
            # checkpointing may run a layer's modules again without the layer's own hooks
            self.handles += [
                layer.register_forward_pre_hook(enter, with_kwargs=True),
                tower.entrance(layer).register_forward_pre_hook(
                    Hook(partial(self._begin, i), self)
                ),
                tower.key_module(layer).register_forward_hook(Hook(partial(self._keys, i), self)),
                norm.register_forward_pre_hook(Hook(partial(self._merge, i), self)),
                mlp.register_forward_hook(Hook(partial(self._spread, i), self)),
                # in front of the hooks that record hidden states
                layer.register_forward_hook(
                    Hook(partial(self._leave, i), self), always_call=True, prepend=True
                ),
            ]

    def remove(self) -> bool:
        """Takes every hook off; False when they were off already."""
        handles, self.handles = self.handles, []
        for handle in handles:
            handle.remove()
        return bool(handles)

    def _at(self, i: int) -> LayerState | None:
        """What this thread knows of layer `i`, while it runs."""
        here: LayerState | None = getattr(self._local, "here", None)
        return here if here is not None and here.layer == i else None

    def _enter(
        self, i: int, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = bind(names, args, kwargs)
        x: Tensor = given[names[0]]
        merged: Merged | None = getattr(x, CARRIED, None)
        if merged is None or not merged.plans:
            return None
        if given.get(self.tower.mask) is not None:
            raise ValueError(
                "a vision tower whose attention is masked cannot be reduced: the mask is for all "
                "of its tokens"
            )
        if not self.strategy.proportional:
            return None
        bias = merged.size.log().to(x.dtype)[:, None, None]
        rest = {name: given[name] for name in given if name not in (names[0], self.tower.mask)}
        return (x,), {**rest, self.tower.mask: bias}

    def _begin(self, i: int, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        merged: Merged | None = getattr(x, CARRIED, None)
        if merged is None:
            n, o = x.shape[:2]
            merged = Merged.nothing(self.counts(o), n, o, x.device)
            self._follows(i, merged)
        self._local.here = LayerState(i, merged)

    @staticmethod
    def _follows(i: int, merged: Merged) -> None:
        """Refuses to take as new what layers before `i` have merged."""
        if i and merged.counts[i - 1] < merged.began:
            raise RuntimeError(
                f"layer {i} of the vision tower got hidden states that do not come from the "
                "layer before it, so that what was merged is not known (reentrant activation "
                "checkpointing does this: use use_reentrant=False)"
            )

    def _keys(self, i: int, module: nn.Module, args: Any, output: Tensor) -> None:
        here = self._at(i)
        if here is not None:
            here.keys = output

    def _merge(self, i: int, norm: nn.Module, args: tuple[Tensor, ...]) -> Any:
        here = self._at(i)
        if here is None:
            return None
        (x,), count = args, here.merged.counts[i]
        keys, here.keys = here.keys, None
        if x.shape[-2] == count or keys is None:
            return None
        with torch.no_grad():
            here.plan = self._plan(x.detach(), here, keys.detach())
        return (_in_rows(here.plan.merge, x),)

    def _plan(self, x: Tensor, here: LayerState, keys: Tensor) -> Plan:
        """One for all rows of a layer, each a picture."""
        merged, tower = here.merged, self.tower
        n, p = x.shape[:2]
        valid = torch.ones(n, p, dtype=torch.bool, device=x.device)
        tokens = Tokens(
            hidden=x,
            valid=valid,
            origin=merged.first,
            places=Places.unknown(valid),
            counts=(p,) * n,
            original=merged.began,
            layer=here.layer,
            seed=self.seed,
            fixed=tower.classes,
            size=merged.size,
            ordered=False,
            evidence={"keys": lambda: tower.keys(keys)},
        )
        return self._planned(tokens, (merged.counts[here.layer],) * n)

    def _planned(self, tokens: Tokens, budget: tuple[int, ...]) -> Plan:
        """The strategy's plan, which keeps exactly `budget` and groups every token."""
        plan, n = self.strategy.plan(tokens, budget), len(budget)
        uneven = plan.valid is None and len(set(budget)) > 1
        size = plan.keep.shape == (n, max(budget))
        if uneven or not size or not isinstance(plan.content, Merge) or plan.content.how != "mean":
            raise ValueError(
                f"{type(self.strategy).__name__} kept {plan.keep.shape[1]} tokens in layer "
                f"{tokens.layer} of the vision tower, where the budget was {max(budget)}: in a "
                "tower a plan keeps exactly its budget and has a group for every token"
            )
        return plan

    def _spread(self, i: int, mlp: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        here = self._at(i)
        if here is None or here.plan is None:
            return None
        return _in_rows(here.plan.unmerge, output)

    def _leave(self, i: int, layer: nn.Module, args: Any, output: Any) -> Any:
        here, self._local.here = self._at(i), None
        if here is None or output is None:  # the layer raised
            return None
        merged, x = here.merged, output
        if here.plan is not None:
            x, merged = _in_rows(here.plan.merge, output), merged.after(i, here.plan)
        self._carry(i, x, merged)
        return x

    def _carry(self, i: int, x: Tensor, merged: Merged) -> None:
        """Passes on what was merged, to the next layer or to `remember`."""
        if i == len(self.tower.layers) - 1:
            self.remember(merged)
        elif merged.plans:
            setattr(x, CARRIED, merged)


@dataclass
class LayerState:
    """A layer that runs: what was merged before it, its keys and its plan."""

    layer: int
    merged: Merged
    keys: Tensor | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class LayerPreHook:
    """The call of a hook at the input of a layer of a reduced tower."""

    call: Callable[[tuple[Any, ...], dict[str, Any]], Any]

    def __call__(self, layer: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the hook calls."""
        return self.call(args, kwargs)


def _in_rows(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`work` on (n, p, d), or on (p, d) as one row."""
    return work(x) if x.dim() == 3 else work(x[None])[0]
