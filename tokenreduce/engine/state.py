"""What one call of the model has told so far: it begins with the call, and ends with it.

torch runs a module's hooks after an `Exception`, and not after a `KeyboardInterrupt`, so that a
hook cannot be relied on to end a call. A call is over when it is no longer on its thread's stack.
Shapes: b samples, l sequence, t positions whose logits are wanted.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor, nn

from tokenreduce.engine.prompt import PictureQueue
from tokenreduce.engine.sequence import Sequence
from tokenreduce.geometry import Picture

MARKED = "marked"
"""The kind of pictures whose tokens the caller marks."""

RUNS = nn.Module.__call__.__code__.co_filename
"""The file of torch in which modules are called."""


@dataclass
class CallState:
    """Inputs that were seen so far in a forward pass of one thread.

    Attributes:
        owner: the module whose call this is: the outermost that is watched.
        runs: torch's stack frame of that call.
        labels: of the root's call, or those that its caller keeps.
        drafts: how many of the last tokens come after the query token: a caller who wants the
            logits of the last n tokens goes on from the first of them (assisted decoding verifies
            n - 1 drafts that way).
        rows: (b, t) positions whose logits are wanted; None for all.
        found: the kinds of visual tokens and the attention mask that the base was called with.
        clips, ids: the videos and the token ids that the base was called with.
        positions: position ids that the caller gave.
        current: the sequence that is passing through the decoder.
    """

    owner: nn.Module
    runs: FrameType | None
    labels: Tensor | None = None
    drafts: int = 0
    rows: Tensor | None = None
    found: tuple[Tensor | None, Any] = (None, None)
    clips: Any = None
    ids: Tensor | None = None
    positions: Tensor | None = None
    current: Sequence | None = None

    def running(self) -> bool:
        """Whether the call is still on the stack of this thread."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame is self.runs:
                return True
            frame = frame.f_back
        return False

    def close(self) -> None:
        """Takes off every hook that the pass has added."""
        if self.current is not None:
            self.current.close()
        self.current = None


class CallStates:
    """The calls that run now, one per thread."""

    def __init__(self) -> None:
        self._of: dict[int, CallState] = {}

    def enter(self, module: nn.Module) -> CallState:
        """The state of the call that `module` is called in; a new one where it is the outermost.

        What a call has left that an interrupt ended is cleared away.
        """
        thread = threading.get_ident()
        state = self._of.get(thread)
        if state is not None and state.running():
            return state
        self.clear(thread)
        state = self._of[thread] = CallState(module, _running())
        return state

    def now(self) -> CallState | None:
        """The state of this thread's call, if one runs."""
        state = self._of.get(threading.get_ident())
        return state if state is not None and state.running() else None

    def leave(self, module: nn.Module) -> None:
        """Ends the call, if it is that of `module`."""
        thread = threading.get_ident()
        state = self._of.get(thread)
        if state is not None and state.owner is module:
            self.clear(thread)

    def clear(self, *threads: int) -> None:
        """Ends the calls of some threads; of all, where none is named, and of those that ended."""
        gone = set(threads or self._of)
        gone |= set(self._of) - {thread.ident for thread in threading.enumerate()}
        for thread in gone:
            state = self._of.pop(thread, None)
            if state is not None:
                state.close()


def _running() -> FrameType | None:
    """Torch's frame of the module call whose hook has called this."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != RUNS:
        frame = frame.f_back
    return frame


@dataclass(frozen=True)
class Mark:
    """A caller's own mask (b, l) of visual tokens, and its pictures."""

    mask: Tensor
    pictures: PictureQueue = field(default_factory=PictureQueue)


class Marks:
    """What the caller says around calls: in its own context (thread, task), and counted for all.

    A context is copied to the tasks that it starts and to `asyncio.to_thread`, and not to threads.
    """

    def __init__(self) -> None:
        self.mark: ContextVar[Mark | None] = ContextVar("mark", default=None)
        self.labels: ContextVar[Tensor | None] = ContextVar("labels", default=None)
        self.open = Counter[str]()
        """How many blocks are open in any context that mark tokens, and that give labels."""

    def unseen(self) -> bool:
        """Whether a block is open, and this context sees none."""
        some = any(self.open.values())
        return some and self.mark.get() is None and self.labels.get() is None

    def unlabelled(self) -> bool:
        """Whether a block with labels is open, and this context sees none."""
        return bool(self.open[self.labels.name]) and self.labels.get() is None

    @contextmanager
    def marked(self, mask: Tensor, pictures: list[Picture]) -> Iterator[None]:
        """The caller's visual mask (b, l) holds inside the block, in this context."""
        with self._open(self.mark, Mark(mask, PictureQueue({MARKED: pictures}))):
            yield

    @contextmanager
    def labelled(self, labels: Tensor) -> Iterator[None]:
        """Calls without labels have these (b, l) inside the block, in this context."""
        with self._open(self.labels, labels):
            yield

    @contextmanager
    def _open(self, where: ContextVar[Any], what: Any) -> Iterator[None]:
        token = where.set(what)
        self.open[where.name] += 1
        try:
            yield
        finally:
            self.open[where.name] -= 1
            where.reset(token)
