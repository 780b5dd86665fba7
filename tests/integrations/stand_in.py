"""A stand-in for lmms-eval: as much of it as the door touches, as version 0.7.3 has it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

HISTORY: list[dict[str, Any]] = []


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Lmms:
    is_simple = True

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Any:
        more = {k: v for k, v in (additional_config or {}).items() if v is not None}
        return cls(**parsed(arg_string), **more)

    def clean(self) -> None:
        self.cleaned = True


class LlavaHf(Lmms):
    """Answers every request with the ids that its model generates; swallows errors, as theirs."""

    def __init__(self, pretrained: str, batch_size: int = 1, **kwargs: Any) -> None:
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        self.pretrained = pretrained
        self._model = FAMILIES["llava"].model()

    @property
    def model(self) -> Any:
        return self._model

    def generate_until(self, requests: list[Any]) -> list[Any]:
        HISTORY.append({"avg_speed": 1.0})
        found = []
        for inputs in requests:
            try:
                found.append(self.model.generate(**inputs, max_new_tokens=6, do_sample=False))
            except Exception:
                found.append("")
        return found


class Llava(LlavaHf):
    is_simple = False


class Gpt(Lmms):
    """An API's client."""

    def __init__(self, model: str = "gpt") -> None:
        self.model = model


def parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        number = value.replace(".", "", 1).isdigit()
        found[key] = (float(value) if "." in value else int(value)) if number else value
    return found


def requests(images: tuple[int, ...] = (1, 2)) -> list[Any]:
    """The inputs of prompts with so many pictures, one by one."""
    both = batch(FAMILIES["llava"], images)
    return [both.row(i).inputs for i in range(len(images))]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stand-in what `import lmms_eval` finds."""
    HISTORY.clear()
    modules: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.utils": {"simple_parse_args_string": parsed},
        "lmms_eval.models": {
            "AVAILABLE_SIMPLE_MODELS": {"llava_hf": "LlavaHf", "gpt4v": "Gpt"},
            "AVAILABLE_CHAT_TEMPLATE_MODELS": {"llava_hf": "lmms_eval.models.chat.other.Llava"},
        },
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.models.simple": {},
        "lmms_eval.models.simple.llava_hf": {"LlavaHf": LlavaHf},
        "lmms_eval.models.simple.gpt4v": {"Gpt": Gpt},
        "lmms_eval.models.chat": {},
        "lmms_eval.models.chat.other": {"Llava": Llava},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {
            "get_logged_metrics_history": lambda: list(HISTORY)
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(vars(SimpleNamespace(**content)))
        monkeypatch.setitem(sys.modules, name, module)
