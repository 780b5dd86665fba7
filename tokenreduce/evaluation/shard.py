"""Which part of an evaluation a process does, where `accelerate launch` has started several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tokenreduce.errors import BadOption


@dataclass(frozen=True)
class Shard:
    """One of `world` processes that share the batches of every condition."""

    rank: int = 0
    world: int = 1
    state: Any = None

    @classmethod
    def begin(cls, device: str) -> Shard:
        """The share of this process, as its launcher has it.

        Raises:
            ValueError: several processes without accelerate to bring them together.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise BadOption(
                "several processes need accelerate: pip install 'tokenreduce[train]'"
            ) from None
        state = PartialState(cpu=device == "cpu")
        return cls(state.process_index, state.num_processes, state)

    @property
    def first(self) -> bool:
        """Whether this process also puts together, measures and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits until every process has come here."""
        if self.state is not None:
            self.state.wait_for_everyone()
