"""The parts of the main task: prompts, likelihoods, times, and the numbers in its table."""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import tokenreduce as tr
from tests.untrained import untrained
from tokenreduce.inference.inputs import encode, full_prompt
from tokenreduce.inference.loaded import Loaded, pick_device
from tokenreduce.inference.measure import likelihood, prefill_times, ratio
from tokenreduce.inference.table import comparison, quantity, stages

ANSWER = torch.tensor([9, 11, 2])


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return untrained()


@pytest.fixture(scope="module")
def inputs(loaded: Loaded) -> Any:
    return encode(loaded, "what is in the red circle?", [Image.effect_noise((96, 96), 50)])


def test_a_question_enters_the_chat_template(loaded: Loaded) -> None:
    assert full_prompt(loaded, "where?", 1) == "USER: <image>\nwhere? ASSISTANT:"
    assert full_prompt(loaded, "where?", 2).count("<image>") == 2


def test_a_complete_prompt_stays_as_it_is(loaded: Loaded) -> None:
    assert full_prompt(loaded, "<image> where?", 1) == "<image> where?"


def test_without_a_template_there_is_a_plain_form(loaded: Loaded) -> None:
    class Plain:
        image_token, tokenizer = "<image>", loaded.processor.tokenizer

    plain = Loaded(loaded.model, Plain(), "here", True)
    assert full_prompt(plain, "where?", 1) == "USER: <image>\nwhere? ASSISTANT:"


def test_the_prompt_begins_once(loaded: Loaded) -> None:
    """A prompt that brings its own first token does not get another."""
    picture = [Image.new("RGB", (96, 96))]
    for prompt in ("<s> USER: <image> where? ASSISTANT:", "USER: <image> where? ASSISTANT:"):
        ids = encode(loaded, prompt, picture)["input_ids"][0].tolist()
        assert ids.count(loaded.processor.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("prompt", ["<image> and <image>?", "<image> <image> <image>"])
def test_every_picture_has_one_place(loaded: Loaded, prompt: str) -> None:
    with pytest.raises(ValueError, match="write it once for each"):
        encode(loaded, prompt, [Image.new("RGB", (96, 96))])


@pytest.mark.parametrize("length", [1, 3])
def test_likelihood_is_that_of_one_long_pass(loaded: Loaded, inputs: Any, length: int) -> None:
    answer = ANSWER[-length:]
    whole = dict(inputs)
    whole["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with torch.inference_mode():
        logits = loaded.model(**whole).logits[0, -length - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, answer[:, None]).sum().exp()
    assert likelihood(loaded.model, inputs, answer) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_likelihoods_of_all_answers_sum_to_one(loaded: Loaded, inputs: Any) -> None:
    size = loaded.model.config.text_config.vocab_size
    with tr.reduce(loaded.model, "pyramid_drop"):
        total = sum(likelihood(loaded.model, inputs, torch.tensor([i])) for i in range(size))
    assert total == pytest.approx(1, abs=1e-4)


def test_reduced_likelihood_is_that_of_generation(loaded: Loaded, inputs: Any) -> None:
    """The plan is made on the prompt alone: the answer has no part in it."""
    with tr.reduce(loaded.model, "fastv"):
        ids = loaded.model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = ids.sequences[0, inputs["input_ids"].shape[1] :]
        rows = torch.stack(ids.logits, dim=1)[0].log_softmax(-1)
        expected = rows.gather(1, new[:, None]).sum().exp()
        assert likelihood(loaded.model, inputs, new) == pytest.approx(float(expected), rel=1e-4)


def test_times_are_taken_in_turn(loaded: Loaded, inputs: Any) -> None:
    order: list[str] = []

    def context(name: str) -> Any:
        order.append(name)
        return nullcontext()

    full, reduced = prefill_times(
        loaded.model,
        (inputs, inputs),
        (lambda: context("full"), lambda: context("reduced")),
        runs=3,
    )
    assert order == ["full", "reduced"] * 4
    assert len(full) == len(reduced) == 3
    assert min(full + reduced) > 0


def test_a_ratio_is_of_the_medians_that_are_shown_with_it() -> None:
    assert ratio([3, 4, 5], [2, 5, 4]) == 1.0


@pytest.mark.parametrize(
    ("value", "unit", "base", "text"),
    [
        (0, "B", 1024, "0 B"),
        (1536, "B", 1024, "1.5 KiB"),
        (2.5e9, "", 1000, "2.5 G"),
        (7, "", 1000, "7"),
        (1e30, "", 1000, "1e+15 P"),
    ],
)
def test_quantities_are_short(value: float, unit: str, base: int, text: str) -> None:
    assert quantity(value, unit, base) == text


def test_stages_are_listed() -> None:
    report = {"visual_tokens": [144], "stops": [{"layer": 2, "kept": [72]}]}
    assert stages(report) == "144\n72 from layer 2"


def test_auto_is_a_device_that_works() -> None:
    torch.empty(1, device=pick_device("auto"))
    assert pick_device("cpu") == torch.device("cpu")


def test_a_prompt_that_is_left_alone_says_so_in_the_table() -> None:
    why = "16 visual tokens are fewer than min_tokens=20"
    report = {"visual_tokens": [16], "stops": [{"layer": 2, "kept": [16]}], "skipped": [why]}
    assert stages(report) == f"as they are: {why}"
    assert stages(report | {"skipped": [None]}) == "16\n16 from layer 2"


def numbers(**more: Any) -> dict[str, Any]:
    """What the table of the main job is made of."""
    report = {
        "visual_tokens": [144], "stops": [{"layer": 2, "kept": [72]}], "flops": 50,
        "flops_full": 100, "kv_bytes": 1, "kv_bytes_full": 2, "convention": "matmul",
        "selection_flops": 9_410_000,
    }  # fmt: skip
    return {
        "question": "what?", "expected": None, "device": "cpu", "report": report,
        "answers": {"full": "a [red] square", "reduced": "blue"},
        "probability": {name: {"a [red] square": 0.9, "blue": 0.1} for name in ("full", "reduced")},
        "prefill_ms": {"full": [74.0, 80.0, 70.0], "reduced": [75.0, 90.0, 60.0]},
        "prefill_ratio": 75 / 74, **more,
    }  # fmt: skip


def said(given: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison(given, "fastv, single"))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_main_table_uses_the_words_of_the_field() -> None:
    text = said(numbers())
    assert "probability of 'a [red] square'" in text
    assert "probability of 'blue'" in text
    assert "left answer" not in text
    assert re.search(r"selection FLOPs +up to 9.41 M", text)
    assert "74.0 ms" in text
    assert "75.0 ms  (101.4%)" in text  # of what stands before it, not of other pairs
    assert max(map(len, text.splitlines())) <= 80


def test_a_reduction_that_saves_no_time_says_what_to_do() -> None:
    assert "task=benchmark says from how many on it pays" in " ".join(said(numbers()).split())
    fast = numbers(prefill_ms={"full": [80.0], "reduced": [40.0]}, prefill_ratio=0.5)
    assert "task=benchmark" not in said(fast)
    assert "the median of 1 run in turn" in " ".join(said(fast).split())
