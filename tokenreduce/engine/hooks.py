"""Hooks that leave with their reduction, and that a copy of the model does not take along."""

from __future__ import annotations

import inspect
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Hook:
    """A module hook. In a deep copy or a pickle of the model it does nothing: a copy is plain.

    Args:
        call: what torch calls.
        owner: what has put it on, with a `remove()` that takes all of its hooks off.
    """

    def __init__(self, call: Callable[..., Any] | None = None, owner: Any = None) -> None:
        self.call, self.owner = call, owner
        self._outside: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """What torch calls."""
        if self._outside is None:
            if self.call is None:
                return None
            if "torch._dynamo" not in sys.modules:  # its import takes a second
                return self.call(*args)
            # made once: every layer of every decoding step comes by here
            self._outside = torch.compiler.disable(self.call)  # type: ignore[no-untyped-call]
        return self._outside(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Replaced:
    """Replaces a method of a module, on one instance.

    Args:
        module: whose method it is.
        name: of the method.
        call: called in its place, with the original method and then its arguments.
    """

    def __init__(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self.module, self.name, self.call = module, name, call
        self.original = getattr(module, name)
        self.__wrapped__ = self.original  # transformers reads the signature of encoders
        self.__name__ = name
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What takes the place of the method."""
        return self.call(self.original, *args, **kwargs)

    def remove(self) -> None:
        """Uncovers the original method."""
        self.module.__dict__.pop(self.name, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain(memo.get(id(self.module), self.module), self.name)

    def __reduce__(self) -> tuple[Any, tuple[nn.Module, str]]:
        return _plain, (self.module, self.name)


class Intercepted(Replaced):
    """Intercepts outermost calls of a method; those of another intercepted method pass.

    Args:
        module: whose method it is.
        name: of the method.
        through: gets the arguments of a call by name and the call itself, makes it, and returns
            what it returned.
    """

    _inside = threading.local()

    def __init__(
        self,
        module: nn.Module,
        name: str,
        through: Callable[[dict[str, Any], Callable[[], Any]], Any],
    ) -> None:
        super().__init__(module, name, self._passed)
        self.through = through
        self.signature = inspect.signature(self.original)

    def _passed(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = partial(original, *args, **kwargs)
        if getattr(self._inside, "module", None) is self.module:
            return call()
        outer = getattr(self._inside, "module", None)
        self._inside.module = self.module
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
            return self.through({**bound, **bound.get("kwargs", {})}, call)
        finally:
            self._inside.module = outer


def _plain(module: nn.Module, name: str) -> Any:
    """The method `name` as the module's class defines it."""
    return types.MethodType(getattr(type(module), name), module)


def owners_of(module: nn.Module) -> list[Any]:
    """The owners of the hooks on a module, each with a `remove()`; one entry per hook."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [hook.owner for hook in hooks if isinstance(hook, Hook) and hook.owner is not None]


def parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters of a module's forward, after self."""
    return tuple(inspect.signature(module.forward).parameters)


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; `names` are the parameters after self."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


# a compiled module runs its hooks as they are: what they decide is decided on the host
Hook.__call__._torchdynamo_disable = True  # type: ignore[attr-defined]


def compiled(*modules: nn.Module) -> bool:
    """Whether `torch.compile` has made one of the modules into graphs, which hooks would break."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in modules
    )


def place_of(layer: nn.Module, hidden: Tensor) -> torch.device:
    """Where a layer computes: where `accelerate` sends it, else where its weights lie."""
    sent = _sent_to(layer)
    if sent is not None:
        return torch.device(sent)
    weight = next(layer.parameters(), hidden)
    if not weight.is_meta:
        return weight.device
    # its weights come when they are needed: where, each of its parts knows
    places = (_sent_to(part) for part in layer.modules())
    found = next((place for place in places if place is not None), weight.device)
    return torch.device(found)


def _sent_to(module: nn.Module) -> Any:
    """Where `accelerate` sends a module's inputs, if it does."""
    return getattr(getattr(module, "_hf_hook", None), "execution_device", None)
