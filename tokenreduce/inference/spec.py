"""Which model is loaded and how, as plain data; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSpec:
    """A model by its checkpoint or its sizes, and how it is loaded.

    Attributes:
        id: a hub id, a local folder, or None for the checkpoint that ships with the package.
        name: what messages and tables call it.
        shape: sizes, as in a `config.json`, of a model without weights.
        dtype: `"auto"` is that of the checkpoint.
        attention: the implementation that transformers takes.
        device: `"auto"` is an accelerator where there is one, else the CPU.
        revision: of the hub: a commit, a branch or a tag.
        trust_remote_code: whether code that comes with the checkpoint is run.
        base: the model under adapters, where `id` holds these and names one that is not there.
        seed: of random weights.
    """

    id: str | None = None
    name: str = "tiny"
    shape: Mapping[str, Any] | None = None
    dtype: str = "auto"
    attention: str = "sdpa"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    base: str | None = None
    seed: int = 0
