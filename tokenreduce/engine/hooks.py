"""Hooks that leave with their reduction, and that a copy of the model does not take along."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """A module hook. In a deep copy or a pickle of the model it does nothing: a copy is plain."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        """What torch calls."""
        return None if self.call is None else self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Watched:
    """A method of a module, put over the original on one instance, that reports every call."""

    def __init__(
        self, module: nn.Module, name: str, report: Callable[[dict[str, Any], Any], None]
    ) -> None:
        self.module, self.name, self.report = module, name, report
        self.original = getattr(module, name)
        self.signature = inspect.signature(self.original)
        self.__wrapped__ = self.original  # transformers reads the signature of encoders
        self.__name__ = name
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The original method, reported."""
        output = self.original(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs).arguments
        self.report({**bound, **bound.get("kwargs", {})}, output)
        return output

    def remove(self) -> None:
        """Uncovers the original method."""
        self.module.__dict__.pop(self.name, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain(memo.get(id(self.module), self.module), self.name)

    def __reduce__(self) -> tuple[Any, tuple[nn.Module, str]]:
        return _plain, (self.module, self.name)


def _plain(module: nn.Module, name: str) -> Any:
    """The method `name` as the module's class defines it."""
    return types.MethodType(getattr(type(module), name), module)


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; `names` are the parameters after self."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
