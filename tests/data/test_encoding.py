"""What is labelled, for every family's processor: the answers and their end, nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.data.families import ALL, BODY, END, ONE_ANSWER, TEMPLATES, processor, talk
from tokenreduce.data.encoding import Encoder, Unusable
from tokenreduce.data.transcripts import image_token
from tokenreduce.inference.inputs import encode
from tokenreduce.inference.loaded import Loaded
from tokenreduce.testing.families import KITS

pytestmark = pytest.mark.filterwarnings(  # of processors that give numpy a tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
KINDS = (*TEMPLATES, "kit", None)
MARKED = {"chatml": END, "vicuna": "", "instruct": END, "kit": "", None: END}
"""What every kind of template writes behind an answer."""
TALKS = {
    "one": [(1, "What is this ?", "word50 word51")],
    "text": [(0, "What ?", "word50")],
    "two images": [(2, "Which one ?", "word50")],
    "turns": [(1, "What ?", "word50"), (0, "Which ?", "word51 word51"), (0, "How ?", "word51")],
    "images later": [(0, "What ?", "word50"), (1, "Which ?", "word51"), (0, "How ?", "word52")],
    "images in turns": [(1, "What ?", "word50"), (2, "Which ?", "word50"), (0, "How ?", "word52")],
}


def runs(labels):
    """The labelled stretches of a row."""
    found, at = [], -2
    for i in (labels != -100).nonzero()[:, 0].tolist():
        if i != at + 1:
            found.append([])
        found[-1].append(int(labels[i]))
        at = i
    return found


def expected(made, turns, end):
    ids = made.tokenizer(f"{turns}", add_special_tokens=False)["input_ids"]
    return ids + made.tokenizer(end, add_special_tokens=False)["input_ids"]


def takes(family, turns):
    """Whether a family takes such a conversation: one answer, with an image, of one shape."""
    if family in ONE_ANSWER:
        return len(turns) == 1 and turns[0][0] > 0
    # pictures that are cut up differently do not go into one prompt
    return family != "perception_lm" or sum(n for n, _, _ in turns) < 2


@pytest.mark.parametrize("turns", TALKS)
@pytest.mark.parametrize("family", ALL)
def test_answers_and_their_end_are_labelled(family, turns, request):
    """Under one kind of template, in turn; with `--full` under every kind."""
    full = request.config.getoption("--full", default=False)
    turn = ([*ALL].index(family) + [*TALKS].index(turns)) % len(KINDS)
    for kind in KINDS if full else [KINDS[turn]]:
        check_labels(family, TALKS[turns], kind)


def check_labels(family, said, kind):
    made = processor(family, kind)
    if not takes(family, said):
        with pytest.raises(Unusable):
            Encoder(made)(talk(*said))
        return
    encoder = Encoder(made)
    row = encoder(talk(*said))
    end = END if family in ONE_ANSWER else MARKED[kind]
    assert encoder.end_of_turn == end
    assert runs(row["labels"]) == [expected(made, answer, end) for _, _, answer in said]
    labelled = row["labels"] != -100
    assert torch.equal(row["labels"][labelled], row["input_ids"][labelled])
    for key in ("labels", "attention_mask"):
        assert row[key].shape == row["input_ids"].shape


def starts(row):
    """The first token of every labelled stretch."""
    there = row["labels"] != -100
    return (there & ~there.roll(1)).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_what_comes_before_an_answer_is_what_generation_gets(family, kind):
    """Token for token: also `<s>` only once, and all tokens of the images."""
    made, told = processor(family, kind), talk(*TALKS["one"])
    row = Encoder(made)(told)
    (start,) = starts(row)
    model = SimpleNamespace(device="cpu", dtype=torch.float32)
    ids = encode(Loaded(model, made, "", False), TALKS["one"][0][1], told.pictures())["input_ids"]
    assert torch.equal(row["input_ids"][:start], ids[0])


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("family", [name for name in ALL if name not in ONE_ANSWER])
def test_so_is_what_comes_before_later_answers(family, kind):
    """In one of two conversations, in turn."""
    turn = ([*ALL].index(family) + [*TEMPLATES].index(kind)) % 2
    turns = ("turns", "images later")[turn]
    made, told = processor(family, kind), talk(*TALKS[turns])
    row = Encoder(made)(told)
    found = starts(row)
    assert len(found) == 3
    for i, start in enumerate(found):
        asked = list(told.messages[: 2 * i + 1])
        text = made.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        images = {"images": [told.pictures()]} if i or turns == "turns" else {}
        twice = text.startswith("<s>")
        own = made(text=[text], return_tensors="pt", add_special_tokens=not twice, **images)
        assert torch.equal(row["input_ids"][:start], own["input_ids"][0])


@pytest.mark.parametrize("family", ALL)
def test_inputs_are_the_processors(family):
    """Nothing of what the processor gives is lost or changed, and the model takes it."""
    made = processor(family)
    row = Encoder(made)(talk(*TALKS["one"]))
    images = [talk(*TALKS["one"]).pictures()]
    text = made.apply_chat_template(list(talk(*TALKS["one"]).messages), tokenize=False)
    own = made(images=images, text=[text], return_tensors="pt")
    assert set(row) == set(own) | {"labels"}
    for key in set(own) - {"labels"}:
        if family in ONE_ANSWER and row[key].ndim == 1:
            continue  # the answer is a suffix there
        given = own[key][0] if own[key].shape == own["input_ids"].shape else own[key]
        assert torch.equal(row[key], given), key


@pytest.mark.parametrize("family", ONE_ANSWER)
def test_a_suffix_is_what_the_processor_makes_of_it(family):
    made = processor(family, None)
    told = talk(*TALKS["one"])
    row = Encoder(made)(told)
    prompt = "USER: <image>\nWhat is this ? ASSISTANT:"
    own = made(
        images=[told.pictures()], text=[prompt], suffix=["word50 word51"], return_tensors="pt"
    )
    for key, value in own.items():
        assert torch.equal(row[key], value[0] if value.shape[0] == 1 and value.ndim == 2 else value)


@pytest.mark.parametrize("family", ALL)
def test_plain_form(family):
    """The image's tokens, then the caption and a line's end; nothing of the question."""
    made = processor(family)
    row = Encoder(made, prompt="plain")(talk((1, "Which picture ?", "word50 word51")))
    ids = row["input_ids"]
    ends = {"idefics3", "smolvlm"}  # tokenizers that know a line's end
    tail = "</s>" if family in ONE_ANSWER else "\n" if family in ends else ""
    assert runs(row["labels"]) == [expected(made, "word50 word51", tail)]
    before = ids[row["labels"] == -100].tolist()
    words = set(made.tokenizer("Which picture ? USER assistant")["input_ids"]) - {1}
    assert not words & set(before)
    picture = Encoder(made, prompt="plain")._visual
    assert set(before) & picture
    assert before[0] == 1 or family in ONE_ANSWER


@pytest.mark.parametrize("family", ALL)
def test_too_long_rows_are_cut(family):
    """Behind the last image only, and where an answer is left."""
    made = processor(family)
    said = [(1, "What ?", "word50 word51")]
    if family not in ONE_ANSWER:
        said.append((0, "Which ?", "word52 " * 30))
    told = talk(*said)
    full = Encoder(made)(told)
    first = int((full["labels"] != -100).nonzero()[0, 0])
    length = len(full["labels"])
    assert len(Encoder(made, length)(told)["labels"]) == length
    for limit in (first + 1, length - 1):
        cut = Encoder(made, limit)(told)
        for key, value in full.items():
            per_token = value.shape == full["labels"].shape
            assert torch.equal(cut[key], value[:limit] if per_token else value), key
    visual = torch.isin(full["input_ids"], torch.tensor(sorted(Encoder(made)._visual)))
    last = int(visual.nonzero()[-1, 0])
    refused = {first: "no answer", last + 1: "no answer", last: "an image", 1: "an image"}
    for limit, reason in refused.items():
        with pytest.raises(Unusable, match=f"max_length={limit}") as caught:
            Encoder(made, limit)(told)
        assert caught.value.reason.startswith(reason)


def test_an_image_behind_the_limit():
    """An earlier answer would fit, but the pixels of the later image would have no tokens."""
    told = talk((0, "What ?", "word50"), (1, "Which ?", "word51"))
    with pytest.raises(Unusable) as caught:
        Encoder(processor("qwen2_vl"), 12)(told)
    assert caught.value.reason == "an image does not fit"


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("family", ALL)
def test_placeholders_in_texts(family, where):
    made = processor(family)
    for token in {made.image_token, getattr(made.tokenizer, "image_token", made.image_token)}:
        words = ["What ?", "word50"]
        words[where] += f" {token} "
        with pytest.raises(Unusable, match="would be taken for an image") as caught:
            Encoder(made)(talk((1, *words)))
        assert caught.value.reason == "placeholder in the text"
        assert token in caught.value.detail


def test_the_marks_around_an_image_are_refused_as_well():
    with pytest.raises(Unusable, match="vision_start"):
        Encoder(processor("qwen2_vl"))(talk((1, "<|vision_start|>", "word50")))


def test_images_are_opened_then(tmp_path):
    told = talk((1, "What ?", "word50"))
    path = tmp_path / "a.png"
    told.images[0].save(path)
    encoder = Encoder(processor("llava"))
    row = encoder(replace(told, images=(path,)))
    assert torch.equal(row["pixel_values"], encoder(told)["pixel_values"])
    grey = encoder(replace(told, images=(Image.new("L", (20, 20)),)))
    assert grey["pixel_values"].shape == row["pixel_values"].shape
    path.write_bytes(b"no picture")
    with pytest.raises(Unusable) as caught:
        encoder(replace(told, images=(path,)))
    assert caught.value.reason == "an image cannot be opened"


# -- templates that cannot be used -----------------------------------------------------------------

UNSTABLE = {
    "asks in other words": (
        "{% for message in messages %}{{ message['role'] }}: BODY {% endfor %}"
        "{% if add_generation_prompt %}How{% endif %}"
    ),
    "counts the turns": "{{ messages | length }} {% for message in messages %}BODY {% endfor %}",
    "leaves older answers out": (
        "{% for message in messages %}{{ message['role'] }}:"
        "{% if message['role'] == 'user' or loop.last %} BODY{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "ends in the middle of a word": (
        "{% for message in messages %}What BODY {% endfor %}"
        "{% if add_generation_prompt %}Wh{% endif %}"
    ),
}


@pytest.mark.parametrize("kind", UNSTABLE)
def test_an_unstable_template_is_refused_at_once(kind):
    made = processor("llava")
    made.chat_template = UNSTABLE[kind].replace("BODY", BODY.replace("MARK", ""))
    with pytest.raises(ValueError, match=r"not stable.*LlavaProcessor.*chat_template") as caught:
        Encoder(made)
    assert not isinstance(caught.value, Unusable)


def test_what_a_template_refuses():
    made = processor("llava")
    made.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
        + made.chat_template
    )
    encoder = Encoder(made)
    assert runs(encoder(talk((1, "What ?", "word50")))["labels"])
    with pytest.raises(Unusable, match="one turn") as caught:
        encoder(talk((1, "What ?", "word50"), (0, "Which ?", "word51")))
    assert caught.value.reason == "refused by the chat template"


def test_plain_form_has_one_caption_and_an_image():
    encoder = Encoder(processor("llava"), prompt="plain")
    with pytest.raises(Unusable, match="not one caption"):
        encoder(talk((1, "What ?", "word50"), (0, "Which ?", "word51")))
    with pytest.raises(Unusable, match="no image"):
        encoder(talk((0, "What ?", "word50")))


def test_arguments():
    made = processor("llava")
    with pytest.raises(ValueError, match="did you mean 'plain'"):
        Encoder(made, prompt="plane")
    with pytest.raises(ValueError, match="max_length=0"):
        Encoder(made, max_length=0)


def test_every_kit_is_here():
    assert set(KITS) < set(ALL)
    assert {"llava", "llava_next"} <= set(ALL)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_what_a_processor_cannot_stack_is_a_row_of_no_use(kind, monkeypatch):
    """Older releases let the error of `torch.stack` through, newer ones have their own."""

    def refuse(*_, **__):
        raise kind("stack expects each tensor to be equal size\nand more")

    made = processor("perception_lm")
    encoder = Encoder(made)
    monkeypatch.setattr(type(made.image_processor), "__call__", refuse)
    with pytest.raises(Unusable, match=r"refused by the processor: stack expects .* size$"):
        encoder(talk(*TALKS["one"]))


@pytest.mark.parametrize("family", ALL)
def test_the_text_of_an_image_is_what_the_processor_reads(family):
    made = processor(family)
    picture = talk(*TALKS["one"]).pictures()
    ids = made(text=[image_token(made)], images=[picture], return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 1
