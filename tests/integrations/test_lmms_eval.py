"""The door to lmms-eval, with a stand-in for it: what is asked, what is made, what is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenreduce as tr
from tests.integrations import stand_in
from tokenreduce.integrations import lmms_eval as door
from tokenreduce.integrations.settings import flat_settings

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = "pretrained=x,strategy=fastv,scheduler.layer=1,scheduler.keep=0.5"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in.install(monkeypatch)
    door._class.cache_clear()
    yield
    door._class.cache_clear()


def named(kind: str, model: str) -> Any:
    """The class of a manifest, looked up as lmms-eval does."""
    (found,) = [one for one in door.manifests() if one.model_id == model]
    module, _, name = getattr(found, f"{kind}_class_path").rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_settings_are_split_from_the_models_own_arguments() -> None:
    settings, own = door.split_settings(
        {
            "pretrained": "x",
            "seed": 7,
            "strategy": "random",
            "scheduler": "single",
            "scheduler.keep": 0.25,
            "reduction_seed": 3,
        }
    )
    assert own == {"pretrained": "x", "seed": 7}
    given = {"strategy": "random", "scheduler": "single", "scheduler.keep": 0.25, "seed": 3}
    assert settings == flat_settings(given)
    assert door.split_settings({"pretrained": "x", "seed": 7}) == (None, own)
    config = '{"strategy": "random", "scheduler": {"name": "single", "keep": 0.25}, "seed": 3}'
    assert door.split_settings(own | {"reduction_config": config}) == (settings, own)


def test_both_ways_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction_config and strategy, scheduler.keep are both"):
        door.split_settings({"reduction_config": "{}", "strategy": "fastv", "scheduler.keep": 0.5})
    with pytest.raises(ValueError, match="no strategy is named"):
        door.split_settings({"scheduler.keep": 0.5})
    with pytest.raises(FileNotFoundError, match=r"=nowhere\.json is no file"):
        door.split_settings({"reduction_config": "nowhere.json"})


def test_manifests_keep_the_names() -> None:
    """Tasks choose prompts by the model's name: a reduced model must go by the same one."""
    found = {one.model_id: one for one in door.manifests()}
    assert set(found) == {"llava_hf", "gpt4v"}
    assert found["gpt4v"].chat_class_path is None
    assert found["llava_hf"].chat_class_path == f"{door.__name__}.chat__llava_hf"
    for kind, plain in (("simple", stand_in.LlavaHf), ("chat", stand_in.Llava)):
        made = named(kind, "llava_hf")
        assert issubclass(made, plain)
        assert made.is_simple == plain.is_simple
    with pytest.raises(AttributeError, match="has no attribute 'chat__'"):
        door.chat__  # noqa: B018


def test_without_settings_nothing_is_ours() -> None:
    made = named("chat", "llava_hf").create_from_arg_string("pretrained=x", {"batch_size": 1})
    assert type(made) is stand_in.Llava
    assert made.pretrained == "x"
    assert not made.model._forward_pre_hooks


def test_a_reduced_model_answers_as_tokenreduce_does(capsys: pytest.CaptureFixture[str]) -> None:
    made = named("chat", "llava_hf").create_from_arg_string(
        ARGUMENTS, {"batch_size": 1, "device": None}
    )
    assert type(made).__name__ == "ReducedLlava"
    assert made.reduction.scheduler == tr.Single(layer=1, keep=0.5)
    asked = stand_in.requests()
    found = made.generate_until(asked)
    plain = stand_in.Llava("x")
    with tr.reduce(plain.model, "fastv", tr.Single(layer=1, keep=0.5)):
        wanted = plain.generate_until(asked)
    full = stand_in.Llava("x").generate_until(asked)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, full, strict=True))
    said = capsys.readouterr().err
    assert "2 prompts, visual_tokens_in 37.5, visual_tokens_out 18.5, flops_share 0." in said
    assert "generate" not in vars(made.model)  # nothing stays on it but the reduction
    made.clean()
    assert made.cleaned
    assert not made.model._forward_pre_hooks


def test_what_it_did_is_in_the_logs() -> None:
    made = named("simple", "llava_hf").create_from_arg_string(ARGUMENTS)
    made.generate_until(stand_in.requests())
    (logged,) = stand_in.HISTORY
    assert logged["avg_speed"] == 1.0
    assert (logged["visual_tokens_in"], logged["visual_tokens_out"]) == (37.5, 18.5)
    assert 0 < logged["flops_share"] < 1


def test_tokens_are_counted_at_layer_0_too() -> None:
    made = named("simple", "llava_hf").create_from_arg_string(
        "pretrained=x,strategy=pooling,scheduler.keep=0.2"
    )
    made.generate_until(stand_in.requests((1, 1)))
    assert stand_in.HISTORY[0]["visual_tokens_in"] == 25
    assert stand_in.HISTORY[0]["visual_tokens_out"] == 5


def test_errors_inside_generate_are_no_empty_answers() -> None:
    made = named("simple", "llava_hf").create_from_arg_string(ARGUMENTS)
    broken = [*stand_in.requests(), {"input_ids": None, "pixel_values": torch.zeros(1)}]
    assert "" in stand_in.LlavaHf("x").generate_until(broken)  # what the plain class does
    with pytest.raises(RuntimeError, match=r"1 of 3 prompts failed inside generate\(\)"):
        made.generate_until(broken)


def test_no_reduction_at_all_is_an_error() -> None:
    """25 tokens, of which 0.999 are 25: nothing is dropped, and nobody asked for that."""
    made = named("simple", "llava_hf").create_from_arg_string(
        "pretrained=x,strategy=random,scheduler=single,scheduler.keep=0.999"
    )
    with pytest.raises(RuntimeError, match="none of 1 prompts with pictures was reduced"):
        made.generate_until(stand_in.requests((1,)))


def test_a_model_that_bypasses_generate_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote code may answer by a method of its own; then the reduction must have seen it."""
    monkeypatch.setattr(stand_in.LlavaHf, "generate_until", lambda self, asked: ["a"] * len(asked))
    made = named("simple", "llava_hf").create_from_arg_string(ARGUMENTS)
    with pytest.raises(RuntimeError, match="no prompt has passed"):
        made.generate_until(stand_in.requests())
    assert made.generate_until([]) == []


def test_a_model_elsewhere_is_refused() -> None:
    made = named("simple", "gpt4v")
    assert made.create_from_arg_string("model=gpt").model == "gpt"
    with pytest.raises(ValueError, match=r"stand_in.Gpt holds no PyTorch model .*'gpt'"):
        made.create_from_arg_string("strategy=fastv")


def test_unknown_names_are_told() -> None:
    made = named("simple", "llava_hf")
    with pytest.raises(KeyError, match="no strategy 'fastvv'; did you mean 'fastv'"):
        made.create_from_arg_string("pretrained=x,strategy=fastvv")
    with pytest.raises(TypeError, match="'single' has no option 'kep'"):
        made.create_from_arg_string("pretrained=x,strategy=fastv,scheduler.kep=0.5")


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (path,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, name = path.partition(":")
    assert getattr(importlib.import_module(module), name) is door.manifests


@pytest.mark.slow
def test_importing_the_door_loads_no_lmms_eval() -> None:
    code = (
        "import sys, tokenreduce, tokenreduce.integrations.lmms_eval\n"
        "import tokenreduce.integrations.samples\n"
        "print(*sorted({'lmms_eval', 'hydra', 'yaml'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lmms_eval" not in run.stdout.split()
    assert "hydra" not in run.stdout.split()
