"""The processor of every family, with chat templates of the kinds that real checkpoints bring."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tokenreduce.data.rows import Conversation
from tokenreduce.testing.checkpoints import template, tokenizer
from tokenreduce.testing.families import KITS, Kit
from tokenreduce.testing.families.family import IMAGE
from tokenreduce.testing.families.llava import PINPOINTS, SIDE, TILE

END = "</s>"
BODY = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<spare 8>{{ message['role'] }}\n"
        f"{BODY}{END}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<spare 8>assistant\n{% endif %}"
    ),
    "vicuna": (  # the last blank joins the next word; nothing ends a turn
        "{% for message in messages %}{{ message['role'].upper() }}: "
        f"{BODY} {{% endfor %}}{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
    ),
    "instruct": (  # writes <s> itself
        "<s>{% for message in messages %}{% if message['role'] == 'assistant' %}"
        f" {BODY}{END}{{% else %}}[INST] {BODY} [/INST]{{% endif %}}{{% endfor %}}"
    ),
}
"""What a template writes, with MARK for the family's image."""


def _llava(tokenizer: Any, template: str) -> Any:
    import transformers

    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _llava_next(tokenizer: Any, template: str) -> Any:
    import transformers

    return transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


TOKENS, MARKS = {IMAGE: "<image>"}, {"image": "<image>\n"}
ALL = {
    **KITS,
    "llava": Kit("llava", TOKENS, MARKS, _llava),
    "llava_next": Kit("llava_next", TOKENS, MARKS, _llava_next),
}
ONE_ANSWER = ("paligemma", "paligemma2")
"""Families that take one answer, at the end."""


def processor(name: str, kind: str = "chatml") -> Any:
    """A family's processor with a template of `TEMPLATES`, its kit's own ("kit"), or None."""
    kit = ALL[name]
    if kind in TEMPLATES:
        text = TEMPLATES[kind].replace("MARK", kit.marks["image"])
    else:
        text = template(kit) if kind == "kit" else None
    made = kit.processor(tokenizer(kit), text)
    made.chat_template = text
    return made


SIZES = ((24, 33), (48, 96), (96, 24))


def noise(i: int) -> Image.Image:
    """Pictures of three shapes."""
    pixels = np.random.default_rng(i).integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def talk(*turns: tuple[int, str, str], name: str = "row", first: int = 0) -> Conversation:
    """Turns of images, question and answer."""
    messages: list[dict[str, Any]] = []
    for images, question, answer in turns:
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    total = sum(images for images, _, _ in turns)
    return Conversation(name, tuple(noise(first + i) for i in range(total)), tuple(messages))
