"""Packs many questions about one image, so that the image is read once for all of them.

The row of a batch is: image prefix, question 1, answer 1, question 2, answer 2, ... A
block-diagonal causal mask shows each question only the prefix and itself, and its positions start
anew after the prefix; so every question is answered exactly as if it stood alone (tested to 1e-5).

Shapes: b images, l packed length, q questions per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenreduce.data.batching import IGNORED
from tokenreduce.data.questions import Question
from tokenreduce.data.stream import Sample
from tokenreduce_tiny.lessons import ASKED

if TYPE_CHECKING:
    from transformers import LlavaProcessor

NAMES = tuple(ASKED)  # the nine types, then the lessons


@dataclass(frozen=True)
class PackedBatch:
    """Inputs of a stock `LlavaForConditionalGeneration`, and what is needed to score its output.

    inputs: input_ids (b, l), pixel_values (b, 3, 96, 96), attention_mask (b, 1, l, l) bool,
    position_ids (b, l). labels (b, l): the answer's tokens at their own places, else -100.
    blocks (b, l): 0 for the prefix, n for question n, -1 for padding. types (b, q): index into
    NAMES.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    blocks: torch.Tensor
    types: torch.Tensor


class Packer:
    """Turns samples into packed batches in the format that the processor's chat template writes."""

    def __init__(self, processor: LlavaProcessor, visual_tokens: int, block: int = 8) -> None:
        self.processor = processor
        self.block = block  # the packed length is a multiple of it: fewer distinct shapes
        tokenizer = processor.tokenizer
        self.end, self.padding = tokenizer.eos_token_id, tokenizer.pad_token_id
        marker = "prompt"
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": marker}]}
        ]
        before, after = processor.apply_chat_template(messages, add_generation_prompt=True).split(
            marker
        )
        image = processor.image_token
        self.prefix: list[int] = tokenizer.encode(before.replace(image, image * visual_tokens))
        self.suffix: list[int] = tokenizer.encode(after, add_special_tokens=False)
        self._encoded: dict[str, list[int]] = {}

    def __call__(self, samples: Sequence[Sample]) -> PackedBatch:
        """One row per sample; every sample must carry the same number of questions."""
        rows = [self._row(sample.questions) for sample in samples]
        longest = max(len(ids) for ids, *_ in rows)
        length = -(-longest // self.block) * self.block

        def padded(column: int, value: int) -> torch.Tensor:
            return torch.tensor(
                [row[column] + [value] * (length - len(row[column])) for row in rows]
            )

        blocks = padded(3, -1)
        return PackedBatch(
            inputs={
                "input_ids": padded(0, self.padding),
                "pixel_values": self.pixels(samples),
                "attention_mask": block_mask(blocks),
                "position_ids": padded(2, 0),
            },
            labels=padded(1, IGNORED),
            blocks=blocks,
            types=torch.tensor([[NAMES.index(q.type) for q in s.questions] for s in samples]),
        )

    def pixels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """(b, 3, 96, 96): what the processor makes of the images, which already have its size."""
        images = self.processor.image_processor
        values = np.stack([sample.image for sample in samples]).astype(np.float32)
        mean, deviation = np.float32(images.image_mean), np.float32(images.image_std)
        values = (values * np.float32(images.rescale_factor) - mean) / deviation
        return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()

    def encode(self, text: str) -> list[int]:
        """Token ids of a question or an answer, remembered: there are only some hundreds."""
        if text not in self._encoded:
            self._encoded[text] = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return self._encoded[text]

    def _row(self, questions: Sequence[Question]) -> tuple[list[int], ...]:
        prefix = len(self.prefix)
        ids, labels = list(self.prefix), [IGNORED] * prefix
        positions, blocks = list(range(prefix)), [0] * prefix
        for number, question in enumerate(questions, start=1):
            prompt = self.encode(question.text) + self.suffix
            answer = [*self.encode(question.answer), self.end]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            positions += range(prefix, prefix + len(prompt) + len(answer))
            blocks += [number] * (len(prompt) + len(answer))
        return ids, labels, positions, blocks


def block_mask(blocks: torch.Tensor) -> torch.Tensor:
    """Who sees whom, (b, 1, l, l): what came before and is of the prefix or the same question."""
    length = blocks.shape[1]
    before = torch.ones(length, length, dtype=torch.bool).tril()
    seen = (blocks[:, None, :] == 0) | (blocks[:, :, None] == blocks[:, None, :])
    return (seen & before)[:, None]


def score(predicted: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Which questions are answered exactly, end of answer included: (b, q) bool.

    predicted (b, l): the token that the model expects AFTER each place (teacher-forced greedy
    decoding, which on an exactly right answer is the same as free decoding).
    """
    wrong = torch.zeros_like(batch.labels)
    wrong[:, 1:] = (predicted[:, :-1] != batch.labels[:, 1:]) & (batch.labels[:, 1:] != IGNORED)
    errors = torch.zeros(len(batch.types), batch.types.shape[1] + 1, dtype=torch.long)
    errors.scatter_add_(1, batch.blocks.clamp(min=0), wrong)
    return errors[:, 1:] == 0
