"""Loads the model and the processor that a `ModelSpec` names."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tokenreduce import plugins
from tokenreduce.adapter import adapter_for
from tokenreduce.checks import MOST, one_of
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.errors import BadOption
from tokenreduce.files import named
from tokenreduce.inference.hub import asked_once
from tokenreduce.inference.lora import Base, base_of, holds_adapters, merged
from tokenreduce.inference.spec import ModelSpec
from tokenreduce.registry import short

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXTRAS = {"num2words": "smolvlm", "peft": "train", "accelerate": "train"}
"""What transformers may miss for a checkpoint, and the extra of ours that brings it."""
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A model, ready for inference on its device, and its processor.

    `source` is the hub id or folder that it came from, `embedded` whether that is the checkpoint
    that ships with the package; `base` is the model under the adapters in `source`, if it is these.
    """

    model: Any
    processor: Any
    source: str
    embedded: bool
    base: Base | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lies and its inputs must go."""
        return cast(torch.device, self.model.device)

    def text(self, ids: Tensor) -> str:
        """The words of the tokens `ids` (n,), without special tokens."""
        return str(self.processor.decode(ids, skip_special_tokens=True)).strip()


def load(spec: ModelSpec, weights: Path | None = None, precision: str | None = None) -> Loaded:
    """The model and processor that `spec` names, on its device, ready for inference.

    `weights` is a folder that weights are read from in place of the model's own: a checkpoint of
    its training. `precision` stands in for `spec.dtype`.

    Weights are read from safetensors only, and code that comes with a checkpoint is not run unless
    `spec.trust_remote_code` says so for a fixed `spec.revision`. Whether any adapter reads the
    family, and whether its processor can be made, is known before the weights are fetched.

    Raises:
        ValueError: nothing there to load, a family that no adapter reads, an unknown dtype,
            attention or device; in one line, with the way out.
    """
    source = model_source(spec)
    base, complete, options = _complete(source, spec)
    device = pick_device(spec.device)
    dtype = one_of(precision or spec.dtype, DTYPES, "model.dtype")
    attention = one_of(spec.attention, ATTENTIONS, "attention")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    _calm_progress_bars()
    family = _attempt(lambda: AutoConfig.from_pretrained(complete, **options), complete)
    check_family(family)
    words = source if any(Path(source).glob("*processor_config.json")) else complete
    processor = _attempt(lambda: AutoProcessor.from_pretrained(words, **options), words)
    model = _attempt(
        lambda: AutoModelForImageTextToText.from_pretrained(
            complete if weights is None else str(weights),
            config=family,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            **options,
        ),
        complete,
    )
    if base is not None and weights is None:
        model = merged(model, source)
    return Loaded(model.to(device).eval(), processor, source, spec.id is None, base)


def load_random(spec: ModelSpec) -> Any:
    """A model of the sizes that `spec` names, with random weights, on its device.

    The sizes are those of `read_sizes`. The time that a model takes does not depend on its weights.

    Raises:
        ValueError: no sizes to be found, a family that no adapter reads, or an unknown dtype,
            attention or device.
    """
    device = pick_device(spec.device)
    dtype = one_of(spec.dtype, DTYPES, "model.dtype")
    attention = one_of(spec.attention, ATTENTIONS, "attention")
    import transformers

    family, source = read_sizes(spec)
    check_family(family)
    whole = type(family) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind: Any = transformers.AutoModelForImageTextToText if whole else None
    kind = kind or transformers.AutoModelForCausalLM
    number = getattr(torch, dtype) if dtype != "auto" else family.dtype or torch.float32
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(spec.seed)
        model = _attempt(
            lambda: kind.from_config(family, dtype=number, attn_implementation=attention), source
        )
    return model.to(device).eval()


def read_sizes(spec: ModelSpec) -> tuple[Any, str]:
    """The transformers configuration that `spec` names, and where it came from.

    That of a local folder or `config.json`, else of `spec.shape`, else of the embedded model,
    else of the hub. No weights are read.

    Raises:
        ValueError: none to be found, or one that transformers cannot read.
    """
    from transformers import AutoConfig

    shape = spec.shape
    path = None if spec.id is None else named(spec.id, "model.id")
    if path is not None and path.suffix == ".json" and path.is_file():
        return _attempt(lambda: AutoConfig.from_pretrained(str(path)), str(path)), str(path)
    if shape is not None and (path is None or not path.is_dir()):
        _check_depth(shape, "model.shape")
        return _attempt(lambda: AutoConfig.for_model(**shape), spec.name), spec.name
    _, source, options = _complete(model_source(spec), spec)
    try:
        return _attempt(lambda: AutoConfig.from_pretrained(source, **options), source), source
    except ValueError as error:
        raise BadOption(
            f"{error} Without it, name a file with model.id=path/to/config.json, or give the "
            "sizes: +model.shape={model_type: llama, hidden_size: ...}"
        ) from error


def _check_depth(sizes: Any, place: str) -> None:
    """Refuses a number of layers that would take minutes to write out, wherever it is given."""
    for key, value in sizes.items() if isinstance(sizes, Mapping) else ():
        if key == "num_hidden_layers" and isinstance(value, int) and value > MOST:
            raise BadOption(f"{place}.{key}={short(value)}: no model has more than {MOST:,}")
        _check_depth(value, f"{place}.{key}")


def model_source(spec: ModelSpec) -> str:
    """The hub id or folder of a model; the embedded checkpoint's folder for `id` None.

    Raises:
        ValueError: a shape has no weights, the embedded checkpoint is not there, or a path leads
            nowhere.
    """
    name = spec.id
    if name is None and spec.shape is not None:
        raise BadOption(
            f"model={spec.name} is a shape without weights, for task=benchmark: "
            "choose a model that has some, or give model.id=..."
        )
    if name is None:
        folder = checkpoint_dir()
        if not (folder / "config.json").is_file():
            raise BadOption(
                f"the embedded checkpoint is missing ({folder}): reinstall "
                "tokenreduce, or name another with model.id=..."
            )
        return str(folder)
    path = named(name, "model.id")
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.is_dir()
    if looks_local and not ((path / "config.json").is_file() or holds_adapters(path)):
        raise BadOption(
            f"model.id={name} holds no config.json: give the folder of a checkpoint saved with "
            "`save_pretrained`, or a hub id such as llava-hf/llava-1.5-7b-hf"
        )
    return str(path) if looks_local else name


def check_family(family: Any) -> None:
    """Stop a checkpoint that no adapter reads before its weights are loaded.

    Raises:
        ValueError: no adapter reads it; the supported families are listed.
    """
    plugins.load()
    adapter_for(cast(torch.nn.Module, SimpleNamespace(config=family)))


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is an accelerator where there is one, else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    if name == "auto":
        there = torch.accelerator.is_available()
        return (torch.accelerator.current_accelerator() if there else None) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadOption(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}): "
            "use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    return device


def _complete(source: str, spec: ModelSpec) -> tuple[Base | None, str, dict[str, Any]]:
    """The model under adapters, if `source` holds these; the complete one; how it is fetched."""
    base, options = base_of(source, spec), _hub_options(spec)
    name = source
    if base is not None:
        name, options = base.name, options | {"revision": base.revision}
    return base, name, options | asked_once(name, options["revision"])


def _hub_options(spec: ModelSpec) -> dict[str, Any]:
    trust, revision = spec.trust_remote_code, spec.revision
    if trust and revision is None:
        raise BadOption(
            "model.trust_remote_code=true runs code from the hub: pin it with "
            "model.revision=<commit> that you have read"
        )
    if trust:
        warnings.warn(f"running code of {spec.id} at revision {revision}", stacklevel=3)
    return {"trust_remote_code": trust, "revision": revision}


def _attempt(read: Callable[[], T], source: str) -> T:
    """What `read` returns; what transformers cannot read is said in one line."""
    try:
        return read()
    except (OSError, ImportError, ValueError, KeyError) as error:
        missing = _missing(error)
        if missing is not None:
            raise BadOption(
                f'loading {source!r} needs {missing}: pip install "tokenreduce[{EXTRAS[missing]}]"'
            ) from error
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise BadOption(f"cannot load {source!r}: {reason}") from error


def _missing(error: Exception) -> str | None:
    """The package that an ImportError is about, where an extra of ours brings it."""
    if not isinstance(error, ImportError):
        return None
    return next((name for name in EXTRAS if re.search(rf"\b{name}\b", str(error))), None)


def _calm_progress_bars() -> None:
    """No progress bars in files and pipes."""
    import sys

    from transformers.utils import logging

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        logging.disable_progress_bar()
