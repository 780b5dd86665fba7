"""Sees where Python asks a tensor for a number: on a GPU it waits there for all earlier work.

Both ways are watched: what Python calls (`.item()`, `bool(x)`, `.tolist()`, `x[mask]` …) and what
an operator calls in turn. Only what tokenreduce's own code asks for counts: transformers looks at
padding once per pass by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

import tokenreduce

PACKAGE = str(Path(tokenreduce.__file__).parent)
COUNTING = frozenset(
    {"item", "nonzero", "masked_select", "unique_consecutive", "equal", "is_nonzero", "bincount"}
)
ASKS = COUNTING | {"tolist", "numpy", "cpu", "argwhere", "unique", "allclose", "__contains__"}
ASKS |= {"__bool__", "__int__", "__float__", "__index__", "__complex__"}
OPERATORS = COUNTING | {"_local_scalar_dense", "_unique2", "unique_dim"}


class HostSyncs:
    """Lists (phase, function, line of tokenreduce) of every question to a tensor."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []
        self.phase = "before"
        self._modes = (_Functions(self), _Operators(self))

    def __enter__(self) -> HostSyncs:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def watch(self, model: Any) -> list[Any]:
        """Phases of a forward pass: before the first layer, `layers`, after the root's exit.

        Call it before `reduce()`: the first layer's own hook then already counts as `layers`; and
        restoring the logical length, at the decoder's exit, still does.
        """

        def enter(*_: Any) -> None:
            self.phase = "layers"

        def leave(*_: Any) -> None:
            self.phase = "before"

        decoder = model.get_decoder()
        first = decoder.layers[0].register_forward_pre_hook(enter)
        return [first, model.register_forward_hook(leave, always_call=True)]

    def note(self, name: str) -> None:
        """Remembers a question, if tokenreduce asked it."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(PACKAGE) and "testing" not in file:
                place = f"{Path(file).name}:{frame.f_code.co_name}"
                self.found.append((self.phase, name, place))
                return
            if "/transformers/" in file:
                return
            frame = frame.f_back

    def of(self, phase: str) -> list[tuple[str, str]]:
        """(function, place) of the questions of a phase."""
        return [(name, place) for at, name, place in self.found if at == phase]


class _Functions(TorchFunctionMode):
    def __init__(self, seen: HostSyncs) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in ASKS or (name in ("__getitem__", "__setitem__") and _by_mask(args[1])):
            self.seen.note(name)
        if name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], Tensor):
            self.seen.note(name)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, seen: HostSyncs) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATORS:
            self.seen.note(f"aten.{name}")
        return func(*args, **(kwargs or {}))


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, Tensor) and p.dtype in (torch.bool, torch.uint8) for p in parts)
