"""Answers to many questions are those to each, asked as the checkpoint was trained to be asked."""

from __future__ import annotations

import torch

from tokenreduce.data.items import heldout
from tokenreduce.evaluation.scoring import right
from tokenreduce.inference.answer import answer, answers
from tokenreduce.inference.inputs import encode
from tokenreduce.inference.loaded import load
from tokenreduce.inference.spec import ModelSpec


def test_answers_in_batches_are_those_of_each_question() -> None:
    loaded, items = load(ModelSpec(device="cpu")), heldout(0, 3, 4)
    found = answers(loaded.model, loaded.processor, items, batch=5)
    for item, text in zip(items, found, strict=True):
        inputs = encode(loaded, item.question, [item.picture()])
        assert text == loaded.text(answer(loaded, inputs, 8))
    assert right(items, found).mean() > 0.8  # of a checkpoint that has nearly all of them right


def test_inputs_are_those_of_the_processor() -> None:
    loaded, (item,) = load(ModelSpec(device="cpu")), heldout(0, 1, 1)
    content = [{"type": "image", "image": item.picture()}, {"type": "text", "text": item.question}]
    theirs = loaded.processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ours = encode(loaded, item.question, [item.picture()])
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].to(value.dtype), rtol=0, atol=0)
