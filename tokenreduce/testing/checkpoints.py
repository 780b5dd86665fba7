"""Tiny checkpoints on disk, as a user finds real ones: model, processor and chat template.

    folder = write("qwen3_vl", tmp_path)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)

Weights are random, classes are the real ones of transformers. What a family needs besides its model
is a `Kit` in `tokenreduce.testing.families`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenreduce.testing.families import KITS, PLAIN, Kit
from tokenreduce.testing.models import FAMILIES, WORDS

FIRST = 10
"""Id of the first word."""
TEXT = "USER ASSISTANT What is this and that ? Which one How many are there in the picture video"
SYMBOLS = "0 1 2 3 4 5 6 7 8 9 . , : < > seconds s frame time"


def write(name: str, folder: Path) -> Path:
    """Saves the tiny checkpoint of a family into `folder`, and returns it.

    Args:
        name: of a kit, i.e. of the family's main recipe.
        folder: made where it does not exist.
    """
    kit = KITS[name]
    FAMILIES[name].model().save_pretrained(folder)
    kit.processor(tokenizer(kit), template(kit)).save_pretrained(folder)
    return folder


def tokenizer(kit: Kit) -> Any:
    """One token per word or sign; the special tokens have the ids that the recipe gives them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    special = {**PLAIN, **kit.tokens}
    gaps = {i: f"<spare {i}>" for i in range(FIRST) if i not in special}
    words = list(dict.fromkeys(f"{SYMBOLS} {TEXT}".split()))
    words += [f"word{i}" for i in range(FIRST + len(words), WORDS)]
    known = {token: i for i, token in (gaps | special).items()}
    known |= {word: i for i, word in enumerate(words, start=FIRST)}
    backend = Tokenizer(models.WordLevel(known, unk_token=PLAIN[9]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(True),
        ]
    )
    first = PLAIN[1]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, 1)]
    )
    marks = [AddedToken(text, special=True, normalized=False) for text in special.values()]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PLAIN[0],
        bos_token=first,
        eos_token=PLAIN[2],
        unk_token=PLAIN[9],
        padding_side="left",
        model_max_length=512,
        extra_special_tokens=dict(kit.names),
    )
    made.add_tokens(marks, special_tokens=True)
    return made


def template(kit: Kit) -> str:
    """A chat template: every message's parts in order, pictures as the family marks them."""
    parts = [
        f"{{% if part['type'] == '{kind}' %}}{mark}{{% endif %}}"
        for kind, mark in kit.marks.items()
    ]
    text = "{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    return (
        "{% for message in messages %}{{ message['role'].upper() }}: "
        f"{{% for part in message['content'] %}}{''.join(parts)}{text}{{% endfor %}}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
