"""What is trained of a model: parts that are frozen, and adapters around it."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce.adapter import adapter_for
from tokenreduce.checks import integer
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.inference.lora import holds_adapters


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Leaves parameters with one of `parts` in their names as they are.

    Raises:
        ValueError: a part that is in no name, or nothing left to train.
    """
    for part in parts:
        found = [p for name, p in model.named_parameters() if part in name]
        if not found:
            names = sorted({name.split(".")[1] for name, _ in model.named_parameters()})
            raise BadOption(
                f"task.frozen={part}: no parameter has that in its name"
                f"{did_you_mean(part, names)} (there are {', '.join(names)})"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadOption("task.frozen leaves nothing to train")


def adapted(model: nn.Module, peft: Mapping[str, Any], revision: str | None = None) -> Any:
    """The model inside the adapters that `peft` names; the model itself for `none`.

    The adapters note where the model came from, at which `revision`: without it they are nothing.

    peft: `name`, `"lora"` or `"none"`, and of LoRA `rank`, `alpha`, `dropout`, `targets`, `also`.

    Raises:
        ValueError: an unknown kind, or peft is not installed.
    """
    if peft["name"] == "none":
        return model
    if peft["name"] != "lora":
        raise BadOption(f"no peft {peft['name']!r} (known: lora, none)")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise BadOption('peft=lora needs peft: pip install "tokenreduce[train]"') from error
    config = LoraConfig(
        r=peft["rank"],
        lora_alpha=peft["alpha"],
        lora_dropout=peft["dropout"],
        target_modules=_targets(model, peft["targets"]),
        modules_to_save=_named(model, list(peft["also"])) or None,
    )
    try:
        with warnings.catch_warnings():
            # PEFT's own, on transformers 5.23 and later
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            found = get_peft_model(model, config, revision=revision)
    except ValueError as error:
        raise BadOption(f"peft.targets={peft['targets']}: {error}") from error
    base = config.base_model_name_or_path
    if base is not None and os.path.isdir(base):  # it is read from another folder later
        config.base_model_name_or_path = os.path.abspath(base)
    return found


def check_peft(peft: Mapping[str, Any], source: str) -> None:
    """Refuses adapters on top of adapters, or of no size, before anything is loaded.

    They would be saved next to the name of the model under both, without what was trained first.

    Raises:
        ValueError: `source` holds adapters, and `peft` names new ones; or numbers that are none
            of adapters; or peft is not installed.
    """
    if peft["name"] == "none":
        return
    if importlib.util.find_spec("peft") is None:
        raise BadOption(f'peft={peft["name"]} needs peft: pip install "tokenreduce[train]"')
    integer(peft.get("rank", 1), "peft.rank", least=1)
    alpha, dropout = peft.get("alpha", 1), peft.get("dropout", 0.0)
    if not isinstance(alpha, int | float) or not alpha > 0:
        raise BadOption(f"peft.alpha must be a number above 0, not {alpha!r}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise BadOption(f"peft.dropout must be at least 0 and below 1, not {dropout!r}")
    if holds_adapters(Path(source)):
        raise BadOption(
            f"model.id={source} holds adapters already, which peft={peft['name']} would leave out "
            "of what it saves: use peft=none, which trains and saves the merged model"
        )


def _named(model: nn.Module, names: list[str]) -> list[str]:
    """`names`, each of which ends the name of a module.

    Raises:
        ValueError: a name that is of no module.
    """
    for name in names:
        if not any(f".{found}".endswith(f".{name}") for found, _ in model.named_modules()):
            raise BadOption(f"peft.also={name}: no module has that name")
    return names


def _targets(model: Any, targets: Any) -> list[str] | str:
    """Names of modules, or what the user wrote for them."""
    if not isinstance(targets, str):
        return [str(target) for target in targets]
    if targets == "all":
        return "all-linear"
    if targets != "decoder":
        return targets
    layers = adapter_for(model).decoder(model).layers
    inside = {id(part) for part in layers.modules() if isinstance(part, nn.Linear)}
    return [name for name, part in model.named_modules() if id(part) in inside]
