"""The shipped checkpoint: loads by the Auto classes, speaks its training format, answers right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tokenreduce.data import TYPES, sample
from tokenreduce.data.items import items_of
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.intervals import wilson
from tokenreduce.evaluation.scoring import right
from tokenreduce.inference.answer import answers

FOLDER = checkpoint_dir()
EXAMPLE = FOLDER.parent / "example.png"
UNSEEN = 2_000_000  # held-out numbers that neither training nor the assessment looked at


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def chat(question: str) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def encode(processor: Any, question: str, image: Image.Image) -> Any:
    prompt = processor.apply_chat_template(chat(question), add_generation_prompt=True)
    return processor(text=prompt, images=image, return_tensors="pt")


def test_it_is_a_stock_llava_of_the_promised_size(model: Any, processor: Any) -> None:
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert model.config.image_seq_length >= 144
    assert model.config.text_config.num_hidden_layers >= 8
    files = [file for file in FOLDER.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    # The training log travels with the weights: it shows the whole run, tower stage included.
    log = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in log} >= {"tower", "align", "language"}


def test_weights_are_fp16(processor: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}


def test_one_way_to_tokenise_a_chat_as_good_as_the_other(processor: Any) -> None:
    image = Image.open(EXAMPLE)
    messages = chat("what is in the red circle?")
    messages[0]["content"][0]["image"] = image
    at_once = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(
        at_once["input_ids"], encode(processor, "what is in the red circle?", image)["input_ids"]
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("What is in the red circle?", "what is in the red circle ?"),
        ("How many circles are there ?", "how many circles are there?"),
        ("Is there a red circle?", "is there a red circle?"),
        ("Where is the red circle?", "where is the red circle?"),
        ("what color is the object A?", "what colour is the object A?"),
    ],
)
def test_the_tokenizer_is_friendly(processor: Any, written: str, meant: str) -> None:
    encode = processor.tokenizer.encode
    assert encode(written) == encode(meant)
    assert processor.tokenizer.unk_token_id not in encode(written)


def test_a_glyph_is_not_an_article(processor: Any) -> None:
    first, second = processor.tokenizer.encode("a A", add_special_tokens=False)
    assert first != second
    assert processor.tokenizer.decode([first, second]) == "a A"
    ids = processor.tokenizer.encode("top second", add_special_tokens=False)
    end = processor.tokenizer.eos_token_id
    assert processor.tokenizer.decode([*ids, end], skip_special_tokens=True) == "top second"


def test_the_example_is_answered_right(model: Any, processor: Any) -> None:
    example = json.loads(EXAMPLE.with_suffix(".json").read_text())
    with Image.open(EXAMPLE) as image:
        inputs = encode(processor, example["question"], image.convert("RGB"))
    with torch.no_grad():
        answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True) == example["answer"]


def test_an_image_of_another_size_is_accepted(model: Any, processor: Any) -> None:
    example = json.loads(EXAMPLE.with_suffix(".json").read_text())
    with Image.open(EXAMPLE) as image:
        large = image.convert("RGB").resize((288, 288), Image.Resampling.LANCZOS)
    inputs = encode(processor, example["question"], large)
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    with torch.no_grad():
        answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True) == example["answer"]


def test_it_answers_questions_it_never_saw(model: Any, processor: Any) -> None:
    samples = [sample(0, "heldout", UNSEEN + i, questions=9) for i in range(10)]
    items = items_of(samples)
    assert len(items) == 90
    assert right(items, answers(model, processor, items)).mean() > 0.8


def test_the_published_figures_are_those_of_this_checkpoint() -> None:
    """Every type is above 92 % on 2,000 held-out questions."""
    path = Path(__file__).parents[1] / "docs" / "results" / "embedded_model.json"
    report = json.loads(path.read_text())
    assert report["questions"] >= 2000
    assert sum(row["questions"] for row in report["generated"]["types"].values()) >= 2000
    for way in ("generated", "teacher_forced"):
        for name in TYPES:
            assert report[way]["types"][name]["accuracy"] >= 0.92, (way, name)


def test_wilson_interval() -> None:
    low, high = wilson(95, 100)  # Wilson 1927; value by statsmodels proportion_confint
    assert low == pytest.approx(0.8882, abs=1e-4)
    assert high == pytest.approx(0.9785, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
