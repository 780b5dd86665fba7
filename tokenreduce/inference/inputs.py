"""Turns a question and its pictures into the inputs that a checkpoint was trained to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.data import transcripts
from tokenreduce.data.transcripts import begins
from tokenreduce.errors import BadOption
from tokenreduce.inference.loaded import Loaded
from tokenreduce.recipe import Recipe
from tokenreduce.strategy import Prepared
from tokenreduce.viz.quantities import counted


def image_token(loaded: Loaded) -> str:
    """The text that stands for a picture in a prompt of this model."""
    if getattr(loaded.processor, "image_token", None) is None:
        return str(loaded.processor.tokenizer.decode([loaded.model.config.image_token_id]))
    return transcripts.image_token(loaded.processor)


def full_prompt(loaded: Loaded, question: str, pictures: int) -> str:
    """The text the model reads: the question within the checkpoint's chat template.

    A question that already holds the image token is the user's own complete prompt. A processor
    without a template gets LLaVA's plain form.
    """
    token = image_token(loaded)
    if token in question:
        return question
    if getattr(loaded.processor, "chat_template", None):
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        template = loaded.processor.apply_chat_template
        return str(template(messages, tokenize=False, add_generation_prompt=True))
    return f"USER: {(token + chr(10)) * pictures}{question} ASSISTANT:"


def encode(loaded: Loaded, question: str, images: Sequence[Image.Image]) -> Any:
    """Model inputs for one question on `images`, on the model's device and in its dtype.

    Raises:
        ValueError: the user's own prompt has another number of image tokens than pictures.
    """
    return encode_all(loaded, [question], [images])


def encode_all(
    loaded: Loaded, questions: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> Any:
    """The same for several questions at once, each on its own pictures; padded on the left.

    Raises:
        ValueError: as `encode`.
    """
    texts = [full_prompt(loaded, q, len(own)) for q, own in zip(questions, images, strict=True)]
    token = image_token(loaded)
    for question, own in zip(questions, images, strict=True):
        if token in question and question.count(token) != len(own):
            raise BadOption(
                f"the prompt has {question.count(token)} times {token!r} for "
                f"{counted(len(own), 'picture')}: write it once for each, or leave it out"
            )
    padded = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    # nested by prompt: a flat list is several prompts of one picture each to some processors
    inputs = loaded.processor(
        images=[list(own) for own in images],
        text=texts,
        return_tensors="pt",
        add_special_tokens=not begins(loaded.processor.tokenizer, texts[0]),
        **padded,
    )
    inputs.pop("labels", None)  # PaliGemma's processor makes them of every prompt
    return inputs.to(loaded.device, loaded.model.dtype)


def prepare(loaded: Loaded, recipe: Recipe | None, images: Sequence[Image.Image]) -> Prepared:
    """The pictures as the processor is to get them under a recipe; None changes nothing.

    Raises:
        ValueError: a method that acts on pixels, with a schedule that reduces elsewhere than before
            the first layer.
    """
    if recipe is None:
        return Prepared(images)
    model = tr.unwrap(loaded.model)
    stops = recipe.schedule.stops(len(adapter_for(model).decoder(model).layers))
    if recipe.strategy.acts_on_pixels and [stop.layer for stop in stops] != [0]:
        raise BadOption(
            "smaller pictures have fewer tokens from layer 0 on, but the schedule stops at layers "
            f"{[stop.layer for stop in stops]}: use scheduler=input scheduler.keep=..."
        )
    keep = stops[0].keep if stops and stops[0].layer == 0 else 1.0
    return recipe.strategy.prepare(loaded.processor, images, keep)
