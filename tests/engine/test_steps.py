"""A decoding step looks up what it needs: no work in the layers that another layer has done.

Time cannot be judged here, calls can: every call of a function, Python's or a built-in, that a
layer's hook makes is counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
import torch._dynamo  # noqa: F401  # as in most programs, which load it by one import or another

import tokenreduce as tr
from tokenreduce.engine.hooks import Hook
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

STOPS = tr.Explicit((1, 3), (0.5, 0.25))
BEFORE, FIRST, LATER = (0,), (1, 3), (2, 4, 5)
"""Layers before any stop; the first of a stage, which makes what the stage needs; the others."""
NOTHING, LOOK_UP = 24, 40
"""Calls of a layer's hook that has nothing to do, and of one that looks up; torch's included."""


class Calls:
    """Calls by decoder layer that the hooks of the layers made since `clear`."""

    def __init__(self, layers: Any) -> None:
        self.of = {layer: i for i, layer in enumerate(layers)}
        self.made: Counter[int] = Counter()

    def counted(self, call: Any, hook: Hook, *args: Any) -> Any:
        """What the hook returns; its calls are counted if it is that of a layer."""
        i = self.of.get(args[0])
        if i is None:
            return call(hook, *args)

        def see(_: Any, event: str, __: Any) -> None:
            self.made[i] += event in ("call", "c_call")

        earlier = sys.getprofile()
        sys.setprofile(see)
        try:
            return call(hook, *args)
        finally:
            sys.setprofile(earlier)


@pytest.fixture
def model() -> Any:
    return FAMILIES["llava"].model()


@pytest.fixture
def calls(model: Any, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, call = Calls(model.get_decoder().layers), Hook.__call__
    monkeypatch.setattr(Hook, "__call__", lambda hook, *args: calls.counted(call, hook, *args))
    return calls


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("images", [(1,), (1, 2)], ids=str)
def test_layers_of_a_step_look_up_or_do_nothing(
    model: Any, calls: Calls, images: tuple[int, ...], positions: Any
) -> None:
    given = batch(FAMILIES["llava"], images, "left")
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [7]}
    steps = []
    with tr.reduce(model, "pyramid_drop", STOPS, positions=positions):
        handle = model.get_decoder().register_forward_pre_hook(
            lambda *_: steps.append(dict(calls.made)) or calls.made.clear()
        )
        model.generate(**given.inputs, **options)
        handle.remove()
    last = dict(calls.made)
    assert len(steps) == 4  # what had been made before each pass; the first is a prompt's
    assert last == steps[-1], "the calls of a step grow"
    assert set(last) == {*BEFORE, *FIRST, *LATER}
    assert all(last[i] <= NOTHING for i in BEFORE), last
    assert all(last[i] <= LOOK_UP for i in LATER), last
    assert all(last[i] > LOOK_UP for i in FIRST), f"the count is blind to what is made: {last}"
