"""The checkpoint that ships with tokenreduce is one that this recipe makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from tokenreduce_tiny.assess import blind, force, generate, summarise
from tokenreduce_tiny.build import build_config, build_processor, build_tokenizer
from tokenreduce_tiny.packing import Packer
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tokenreduce.config import compose, plain
from tokenreduce.data import TYPES, sample
from tokenreduce.embedded import checkpoint_dir

FOLDER = checkpoint_dir()
UNSEEN = 2_000_000  # held-out numbers that neither training nor the assessment looked at


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def encode(processor: Any, question: str, image: Image.Image) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=prompt, images=image, return_tensors="pt")


def test_the_recipe_describes_the_model_that_ships() -> None:
    """Its sizes, its words in their order, and how it writes a chat."""
    shipped = AutoConfig.from_pretrained(FOLDER)
    built = build_config(plain(compose(["task=pretrain"]).task.architecture))
    for part in ("vision_config", "text_config"):
        ours, theirs = getattr(built, part).to_dict(), getattr(shipped, part).to_dict()
        sizes = [name for name in ours if "size" in name or name.startswith("num_")]
        assert len(sizes) >= 6
        assert {name: ours[name] for name in sizes} == {name: theirs[name] for name in sizes}
    words = json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    assert build_tokenizer().get_vocab() == words
    assert build_processor(8).chat_template == (FOLDER / "chat_template.jinja").read_text()


def test_the_chat_template_writes_the_training_format(processor: Any) -> None:
    item = sample(0, "heldout", UNSEEN, questions=3)
    packer = Packer(processor, visual_tokens=144)
    batch = packer([item])
    for number, question in enumerate(item.questions, start=1):
        inputs = encode(processor, question.text, Image.fromarray(item.image))
        own = (batch.blocks[0] == 0) | (batch.blocks[0] == number)
        trained = batch.inputs["input_ids"][0][own]
        answer = (batch.labels[0][own] >= 0).sum()
        assert inputs["input_ids"][0].tolist() == trained[:-answer].tolist()
        assert torch.allclose(inputs["pixel_values"], batch.inputs["pixel_values"], atol=1e-6)


def test_its_answers_are_told_by_type_and_direction(model: Any, processor: Any) -> None:
    samples = [sample(0, "heldout", UNSEEN + i, questions=9) for i in range(4)]
    right = generate(model, processor, samples)
    answers = [answer for name in TYPES for answer in right[name]]
    assert len(answers) == 36
    assert sum(answers) / len(answers) > 0.8
    directed = [one for name in ("left of", "right of", "above", "below") for one in right[name]]
    assert sorted(directed) == sorted(right["left_of"])


def test_it_needs_the_image_early_and_not_late(model: Any, processor: Any) -> None:
    """The reason for which it is made: early layers need every visual token."""
    samples = [sample(0, "heldout", UNSEEN + i, questions=9) for i in range(20)]
    packer = Packer(processor, visual_tokens=144)
    whole = summarise(force(model, packer, samples))["macro"]
    with blind(model, 0):
        none = summarise(force(model, packer, samples))["macro"]
    with blind(model, 7):
        late = summarise(force(model, packer, samples))["macro"]
    assert none < 0.3 < whole - 0.3
    assert late > whole - 0.1
    assert summarise(force(model, packer, samples))["macro"] == whole  # hooks are gone again
