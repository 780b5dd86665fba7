"""Which model a config names: whole checkpoints, and adapters with the model under them."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.quiet import quiet_transformers
from tokenreduce.config import compose, model_spec, plain
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.identity import weights_of
from tokenreduce.inference import loaded as loading
from tokenreduce.inference.spec import ModelSpec
from tokenreduce.tasks import train as training
from tokenreduce.training.parts import adapted

ROOT = Path(__file__).resolve().parents[2]
PEFT = ["task=train", "peft=lora", "peft.rank=2"]


@pytest.fixture(autouse=True)
def _quiet_transformers():
    with quiet_transformers():
        yield


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of adapters that are not zero, and the weights that they make of the model's."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapters")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = adapted(model, plain(compose(PEFT).peft))
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    found.save_pretrained(folder)
    wanted = {name: x.clone() for name, x in found.merge_and_unload().state_dict().items()}
    return folder, wanted


def load(folder: Path, *more: str) -> loading.Loaded:
    return loading.load(model_spec(compose([f"model.id={folder}", "device=cpu", *more])))


def test_adapters_are_loaded_with_the_model_that_they_name(adapters) -> None:
    folder, wanted = adapters
    loaded = load(folder)
    found = loaded.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not loaded.model.training
    assert (loaded.source, loaded.embedded) == (str(folder), False)
    assert loaded.base is not None
    assert Path(loaded.base.name) == checkpoint_dir()
    assert loaded.processor.image_token == "<image>"  # of the base: these adapters have none
    sizes, source = loading.read_sizes(ModelSpec(str(folder)))
    assert sizes.model_type == "llava"
    assert Path(source) == checkpoint_dir()


def test_answers_of_adapters_are_not_those_of_their_model(adapters) -> None:
    folder, _ = adapters
    assert weights_of(load(folder)) != weights_of(loading.load(ModelSpec(device="cpu")))


def changed(folder: Path, to: Path, **entries: Any) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "adapter_config.json").read_text()) | entries
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


def test_a_model_that_has_moved_is_named_anew(adapters, tmp_path: Path) -> None:
    folder = changed(adapters[0], tmp_path / "moved", base_model_name_or_path="/no/such/folder")
    with pytest.raises(ValueError, match=r"'/no/such/folder', which has no config.json .*\+model"):
        load(folder)
    found = load(folder, f"+model.base={checkpoint_dir()}").model.state_dict()
    assert all(torch.equal(found[name], x) for name, x in adapters[1].items())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"r": 4}, "do not fit the model"),
        ({"target_modules": ["no_such_module"]}, "do not fit the model"),
        ({"target_modules": ["q_proj", "fc1"]}, "do not fit the model"),  # more than was trained
        ({"base_model_name_or_path": None}, "which has no config.json here"),
        ({"base_model_name_or_path": "../elsewhere"}, "which has no config.json here"),
    ],
)
def test_adapters_of_another_model_are_refused_in_one_line(
    adapters, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        load(changed(adapters[0], tmp_path / "other", **entries))
    assert "\n" not in str(refusal.value)


def test_broken_adapters_are_refused_before_the_model_is_read(adapters, tmp_path: Path) -> None:
    folder = changed(adapters[0], tmp_path / "broken")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is broken"):
        load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors"):
        load(folder)


def test_without_peft_the_extra_is_named(adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"need peft: pip install .tokenreduce\[train\]"):
        load(adapters[0])


def test_adapters_on_top_of_adapters_are_refused(
    adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would note the model under both, and the first ones would be lost."""
    monkeypatch.setattr(training, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="peft=lora would leave out of what it saves"):
        training.train(compose([*PEFT, f"model.id={adapters[0]}"]), tmp_path)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("num2words")
    from tests.adapters.user import load as saved

    folder = tmp_path_factory.mktemp("smolvlm")
    saved("smolvlm", folder)
    return folder


def test_a_package_that_a_processor_misses_is_told_with_its_extra(
    smolvlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights are read."""
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    monkeypatch.setattr(
        AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(ValueError, match=r'num2words: pip install "tokenreduce\[smolvlm\]"$'):
        load(smolvlm)


def test_extras_that_messages_name_bring_what_they_say() -> None:
    """`pip install "tokenreduce[...]"` in a message must help whoever follows it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    brought = {
        name: {re.split(r"[<>=;\[ ]", line)[0].replace("_", "-") for line in extras[name]}
        for name in extras
    }
    for package, extra in loading.EXTRAS.items():
        assert package in brought[extra], f"[{extra}] does not bring {package}"
    for path in sorted((ROOT / "tokenreduce").rglob("*.py")):
        for extra in re.findall(r"tokenreduce\[([a-z-]+)\]", path.read_text()):
            assert extra in extras, f"{path.name} names the extra {extra!r}"
