"""Conversations as a model's inputs with labels, for the processor of any family.

encoder = Encoder(processor, max_length=2048)
rows = EncodedDataset(read_llava("rows.jsonl"), encoder, bad="skip", log="skipped.jsonl")
batch = Collator(processor)([rows[0], rows[1]])
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.checks import one_of
from tokenreduce.data.batching import IGNORED, Collator
from tokenreduce.data.encoded import EncodedDataset
from tokenreduce.data.rows import Conversation, Message, Unusable
from tokenreduce.data.transcripts import PROMPTS, Transcript, Writer, begins, image_token
from tokenreduce.errors import BadOption

__all__ = ["Collator", "EncodedDataset", "Encoder", "Unusable"]

Span = tuple[int, int]
UNSTABLE = "the chat template is not stable"
PLACEHOLDERS = (
    *("image_token", "video_token", "audio_token", "boi_token", "eoi_token"),
    *("start_image_token", "end_image_token", "fake_image_token"),
)


def takes_suffix(processor: Any) -> bool:
    """Whether a processor takes the answer as a suffix: PaliGemma's.

    Named in its call, or up to transformers 5.17 among the text options that the call unpacks.
    """
    parameters = inspect.signature(processor.__call__).parameters
    if "suffix" in parameters:
        return True
    rest = (p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD)
    unpacked = (getattr(kind, "__annotations__", {}) for of in rest for kind in get_args(of))
    texts = (groups.get("text_kwargs") for groups in unpacked)
    return any("suffix" in getattr(options, "__annotations__", ()) for options in texts)


class Encoder:
    """Turns a conversation into model inputs and labels.

    Labelled are the tokens of every answer and what the template writes after it to end the turn
    (`<|im_end|>`, `</s>` ...), not the white space after that. With `prompt="plain"` the text is
    LLaVA's of its first stage: the image tokens, then the answer and a line's end.

    A processor without a chat template gets LLaVA's plain form, `USER: <image>... ASSISTANT:`. One
    that takes the answer as a `suffix` (PaliGemma, which reads questions in both directions) gets
    it so, and takes one answer only.

    Attributes:
        end_of_turn: what ends an answer; empty where the template writes nothing, and then a model
            does not learn to stop.

    Raises:
        ValueError: an unknown prompt, a `max_length` below 1, a processor without an image token,
            or a chat template whose beginnings change when a conversation goes on.
    """

    def __init__(self, processor: Any, max_length: int | None = None, prompt: str = "chat") -> None:
        one_of(prompt, PROMPTS, "prompt")
        if max_length is not None and max_length < 1:
            raise BadOption(f"max_length={max_length} must be at least 1; null cuts nothing")
        self.processor = processor
        self.max_length = max_length
        self._suffixed = takes_suffix(processor)
        self._blanks: dict[int, bool] = {}
        self._write = Writer(processor, prompt)
        self.end_of_turn = self._write.end_of_turn
        if self._suffixed:
            self.end_of_turn = str(processor.tokenizer.eos_token)
        self._placeholders = self._find_placeholders()
        self._visual = self._find_visual_ids()
        self._check_template()

    def __call__(self, conversation: Conversation) -> dict[str, Tensor]:
        """Inputs of one conversation, without a dimension for the batch.

        Returns:
            What the processor gives: (l,) for whatever has an entry per token; pixel values, grids
            and sizes as they are; and `labels` (l,), -100 where nothing is learned.

        Raises:
            Unusable: an image that cannot be opened, a text with the placeholder of images in it,
                what the template or the processor refuse, more than `max_length` tokens such that
                the cut falls inside an image or leaves no answer.
        """
        self._check_text(conversation.messages)
        transcript = self._write(conversation)
        pictures = conversation.pictures()
        if self._suffixed:
            inputs, spans = self._with_suffix(transcript, conversation, pictures)
        else:
            inputs = self._process(transcript.text, pictures)
            spans = self._spans(transcript, pictures, inputs["input_ids"][0].tolist())
        return self._labelled(inputs, spans)

    def _labelled(self, inputs: dict[str, Tensor], spans: Sequence[Span]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        for start, stop in spans:
            labels[0, start:stop] = ids[0, start:stop]
        inputs["labels"] = labels
        shape, limit = ids.shape, self.max_length
        if limit is not None and shape[1] > limit:
            visual = torch.isin(ids[0], torch.tensor(sorted(self._visual)))
            if visual[limit:].any():
                raise Unusable(
                    "an image does not fit",
                    f"max_length={limit} falls before or inside an image of {shape[1]} tokens",
                )
        row = {k: v[0, :limit] if v.shape == shape else v for k, v in inputs.items()}
        if not (row["labels"] != IGNORED).any():
            raise Unusable("no answer fits", f"max_length={limit} of {shape[1]} tokens")
        return row

    def _process(self, text: str, pictures: list[Image.Image], **more: Any) -> dict[str, Tensor]:
        # nested by prompt: a flat list is several prompts of one picture each to some processors
        images = {"images": [pictures]} if pictures else {}
        if not self._suffixed:
            more["add_special_tokens"] = not begins(self.processor.tokenizer, text)
        try:
            made = self.processor(text=[text], return_tensors="pt", **images, **more)
        except (ValueError, RuntimeError) as error:  # tiles that cannot be stacked are either
            reason = " ".join(str(error).split("\n")[0].split())
            raise Unusable("refused by the processor", reason) from error
        return {k: v for k, v in made.items() if k != "labels"}

    def _with_suffix(
        self, transcript: Transcript, conversation: Conversation, pictures: list[Image.Image]
    ) -> tuple[dict[str, Tensor], list[Span]]:
        """The question as a text and the answer as its suffix, which the processor marks itself."""
        if len(transcript.answers) != 1:
            raise Unusable("several answers", f"{type(self.processor).__name__} takes one")
        (begin,) = (answer.begin for answer in transcript.answers)
        words = conversation.messages[-1]["content"][0]["text"]
        inputs = self._process(transcript.text[:begin], pictures, suffix=[words])
        answer = int(inputs["token_type_ids"].sum())
        length = inputs["input_ids"].shape[1]
        return inputs, [(length - answer, length)]

    def _spans(
        self, transcript: Transcript, pictures: list[Image.Image], ids: list[int]
    ) -> list[Span]:
        """First and last+1 token of every answer among `ids`, where images have all their tokens.

        The places come from the text with one placeholder per image; images that come before an
        answer move it on by as many tokens as they add.
        """
        text, last = transcript.text, len(pictures)
        short = self._tokens(text, text)
        spans: list[Span] = []
        shifts = {0: 0, last: len(ids) - len(short)}
        if any(answer.images not in shifts for answer in transcript.answers):
            shifts |= self._measured(transcript, pictures)
        for answer in transcript.answers:
            start, stop = self._place(text, answer.begin, answer.end, short)
            by = shifts[answer.images]
            if ids[start + by : stop + by] != short[start:stop]:
                raise Unusable("answers cannot be placed", "the processor rewrites the text")
            while stop > start and self._write.prompt == "chat" and self._blank(short[stop - 1]):
                stop -= 1
            spans.append((start + by, stop + by))
        return spans

    def _place(self, text: str, begin: int, end: int, short: list[int]) -> Span:
        """Tokens of text[begin:end] among `short`, the tokens of all of it."""
        head, tail = self._tokens(text[:begin], text), self._tokens(text[:end], text)
        if short[: len(head)] != head:
            raise Unusable(
                UNSTABLE, f"tokens of {text[max(0, begin - 20) : begin]!r} change with what follows"
            )
        stop = next((i for i, (a, b) in enumerate(zip(tail, short, strict=False)) if a != b), None)
        stop = min(len(tail), len(short)) if stop is None else stop
        if not all(self._blank(token) for token in tail[stop:]):  # a space joins the next word
            raise Unusable(UNSTABLE, f"tokens of an answer's end change: {text[end - 20 : end]!r}")
        return len(head), stop

    def _measured(self, transcript: Transcript, pictures: list[Image.Image]) -> dict[int, int]:
        """How many tokens images add before each answer, where images lie between answers.

        A token that the text does not have is put before each answer. The difference between its
        places with and without the images' tokens is what they add. Prompts of fewer images would
        not do: some processors cut an image up in another way when it is alone.
        """
        tokenizer, text = self.processor.tokenizer, transcript.text
        used = set(self._tokens(text, text))  # `<s>` may be there without being written
        every = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        spare, known = next(
            (pair for pair in every if pair[1] not in used and pair[0] not in self._placeholders),
            ("", -1),
        )
        begins = [0, *(answer.begin for answer in transcript.answers), len(text)]
        marked = spare.join(text[a:b] for a, b in pairwise(begins))
        long = self._process(marked, pictures)["input_ids"][0].tolist()
        places = [
            [i for i, token in enumerate(ids) if token == known]
            for ids in (long, self._tokens(marked, text))
        ]
        if [len(found) for found in places] != [len(transcript.answers)] * 2:
            raise Unusable("answers cannot be placed", "no special token is free to mark them")
        counts = (answer.images for answer in transcript.answers)
        return {n: a - b for n, a, b in zip(counts, *places, strict=True)}

    def _tokens(self, text: str, whole: str) -> list[int]:
        """Token ids of a beginning of `whole`."""
        tokenizer = self.processor.tokenizer
        return list(tokenizer(text, add_special_tokens=not begins(tokenizer, whole))["input_ids"])

    def _blank(self, token: int) -> bool:
        if token not in self._blanks:
            self._blanks[token] = not str(self.processor.tokenizer.decode([token])).strip()
        return self._blanks[token]

    def _check_text(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for part in message["content"]:
                hit = next((t for t in self._placeholders if t in part.get("text", "")), None)
                if hit:
                    raise Unusable(
                        "placeholder in the text",
                        f"{hit!r} would be taken for an image: write it in other words",
                    )

    def _find_placeholders(self) -> tuple[str, ...]:
        """Texts that this processor takes for a part of an image."""
        owners = (self.processor, self.processor.tokenizer)
        found = {getattr(owner, name, None) for owner in owners for name in PLACEHOLDERS}
        tokenizer = self.processor.tokenizer
        ids = tokenizer(self._write.mark, add_special_tokens=False)["input_ids"]
        special = set(tokenizer.get_added_vocab())
        found |= special & set(tokenizer.convert_ids_to_tokens(ids))
        return tuple(
            sorted({str(text) for text in found if text is not None and str(text).strip()})
        )

    def _find_visual_ids(self) -> set[int]:
        owners = (self.processor, self.processor.tokenizer)
        found = {getattr(owner, "image_token_id", None) for owner in owners}
        found.add(self.processor.tokenizer.convert_tokens_to_ids(image_token(self.processor)))
        return {int(i) for i in found if i is not None}

    def _check_template(self) -> None:
        """Refuse a template that no conversation can be labelled with, before any is read."""
        if self._suffixed or self._write.prompt == "plain":
            return
        ask = {"role": "user", "content": [{"type": "text", "text": "Which word?"}]}
        say = {"role": "assistant", "content": [{"type": "text", "text": "word"}]}
        probe = Conversation("probe", (), (ask, say, ask, say))
        try:
            transcript = self._write(probe)
            short = self._tokens(transcript.text, transcript.text)
            for answer in transcript.answers:
                self._place(transcript.text, answer.begin, answer.end, short)
        except Unusable as error:
            if error.reason != UNSTABLE:
                return  # a template of one turn: each row tells
            raise BadOption(
                f"{error} (of {type(self.processor).__name__}): what asks for an answer must be "
                "how the conversation with it begins, to the token; set processor.chat_template "
                "to one of this kind"
            ) from None
