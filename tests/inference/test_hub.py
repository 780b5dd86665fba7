"""Whether the hub can be asked is found out once, and said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from tokenreduce.inference import hub
from tokenreduce.inference import loaded as loading
from tokenreduce.inference.spec import ModelSpec


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: every question to the hub fails, and is noted."""
    asked: list[str] = []

    def fail(self: Any, name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def test_a_hub_that_does_not_answer_is_asked_once(unreachable: list[str]) -> None:
    message = r"model\.id=org/name is not on this disk, and http.* does not answer \(Name or"
    with pytest.raises(ValueError, match=message):
        loading.load(ModelSpec("org/name", device="cpu"))
    assert unreachable == ["org/name"]


def test_what_is_on_this_disk_is_read_from_it(
    unreachable: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "a/config.json")
    with pytest.warns(UserWarning, match="org/name is read from this disk"):
        assert hub.asked_once("org/name", None) == {"local_files_only": True}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.asked_once("org/name", None) == {"local_files_only": True}
    assert hub.asked_once(str(tmp_path), None) == {}
    assert unreachable == ["org/name"]


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not on this disk, and HF_HUB_OFFLINE is set"):
        hub.asked_once("org/name", None)
