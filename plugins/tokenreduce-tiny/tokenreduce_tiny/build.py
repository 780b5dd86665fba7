"""Builds the embedded model and its processor: a configuration of stock transformers classes.

`LlavaForConditionalGeneration` with a CLIP tower and a Llama decoder; `LlavaProcessor` with a CLIP
image processor and a word-level tokenizer whose vocabulary is the task's.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tokenreduce.data.glyphs import GLYPHS
from tokenreduce.data.questions import COLUMNS, ROWS
from tokenreduce.data.shapes import COLOURS, SHAPES, SIZE

ENGLISH = (
    *("what", "is", "in", "the", "of", "on", "there", "a", "how", "many", "are", "where"),
    *("colour", "shape", "has", "word", "written", "row", "column", "object", "objects"),
    *("yes", "no", "nothing", "left", "right", "above", "below", "?"),
)
VOCABULARY = (
    *ENGLISH,
    *SHAPES,
    *(f"{shape}s" for shape in SHAPES),
    *COLOURS,
    *GLYPHS,
    *ROWS,
    *COLUMNS,
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:")
WORDS = tuple(dict.fromkeys((*SPECIAL, *VOCABULARY)))
PIXEL_MEAN, PIXEL_DEVIATION = 0.7, 0.3  # of all three channels, after division by 255
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_config(architecture: dict[str, Any]) -> LlavaConfig:
    """The model's configuration from `task.architecture`."""
    vision, text = architecture["vision"], architecture["text"]
    ids = {f"{name}_token_id": WORDS.index(token) for name, token in _ROLES.items()}
    vision_config = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=vision["patch_size"],
        hidden_size=vision["width"],
        intermediate_size=vision["feed_forward"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["heads"],
        projection_dim=vision["width"],
    )
    text_config = LlamaConfig(
        vocab_size=-(-len(WORDS) // 8) * 8,
        hidden_size=text["width"],
        intermediate_size=text["feed_forward"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        num_key_value_heads=text["heads"],
        max_position_embeddings=text["positions"],
        rope_parameters={"rope_type": "default", "rope_theta": float(text["rope_theta"])},
        tie_word_embeddings=True,
        **ids,
    )
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=WORDS.index("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // vision["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )


_ROLES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}


def build_model(architecture: dict[str, Any], seed: int) -> LlavaForConditionalGeneration:
    """A freshly initialised model in fp32.

    Matrices of decoder and projector: normal with deviation 1/sqrt(fan-in), those that write into
    the residual stream times 0.3; the tower as transformers initialises CLIP.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(architecture))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "vision_tower" not in name:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(std=weight.shape[1] ** -0.5 * (0.3 if writes_residual else 1.0))
    ids = {f"{name}_token_id": WORDS.index(token) for name, token in _ROLES.items()}
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8, **ids)
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, punctuation split off, case kept.

    A word of the vocabulary may begin with a capital ("What is ..."); glyphs are single capitals,
    so the two do not collide. "color" is read as "colour".
    """
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    long_words = [word for word in WORDS if word.isalpha() and word.islower() and len(word) > 1]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(rf"\b{word.capitalize()}\b"), word) for word in long_words]
        + [normalizers.Replace(Regex(r"\b[Cc]olor\b"), "colour")]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", WORDS.index("<s>"))]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # one space between words
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>", "user_token": "USER:", "assistant_token": "ASSISTANT:",
        },
        padding_side="left",
        model_max_length=512,
    )  # fmt: skip


def build_processor(patch_size: int) -> LlavaProcessor:
    """Tokenizer, image processor and chat template in one."""
    from transformers.models.clip import CLIPImageProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_DEVIATION] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )
