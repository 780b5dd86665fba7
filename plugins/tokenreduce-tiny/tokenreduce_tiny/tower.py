"""Stage 1: the vision tower learns to see, from dense labels that the renderer knows.

Every patch is asked for the shape, colour, glyph and cell of what covers it, and the class token
for all kinds and glyphs in the image. The heads are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokenreduce.data.glyphs import GLYPHS
from tokenreduce.data.shapes import COLOURS, GRID, SHAPES
from tokenreduce.data.stream import Sample

WORD_SHAPE, WORD_COLOUR = len(SHAPES) + 1, len(COLOURS) + 1  # labels of a written letter
CLASSES = {
    "shape": len(SHAPES) + 4,  # nothing, four shapes, first to third letter of a word
    "colour": len(COLOURS) + 2,  # nothing, six colours, ink
    "glyph": len(GLYPHS) + 1,
    "cell": GRID * GRID + 1,
}
KINDS = len(SHAPES) * len(COLOURS)
EMPHASIS = {"shape": 1.0, "colour": 1.0, "glyph": 2.0, "cell": 0.5}
BACKGROUND = 0.15  # weight of a patch that shows nothing
MEASURES = (*CLASSES, "present")


class SeeingTower(nn.Module):
    """A CLIP tower with one linear head per label; `forward` returns loss and tallies.

    The patch features are those the language model will read: `hidden_states[layer]` without the
    class token. Tallies are (2, measures): right answers and answers, over patches that show
    something.
    """

    def __init__(self, tower: nn.Module, layer: int, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.layer = layer
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in CLASSES.items()})
        self.present_heads = nn.Linear(width, KINDS + len(GLYPHS))

    def forward(
        self, pixel_values: torch.Tensor, present: torch.Tensor, **labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Read (b, 3, 96, 96) against `label_presence` and `label_patches` of the samples."""
        seen = self.tower(pixel_values, output_hidden_states=True)
        patches = self.norm(seen.hidden_states[self.layer][:, 1:])
        loss = pixel_values.new_zeros(())
        tallies = []
        for name, label in labels.items():
            logits = self.heads[name](patches)
            shown = label > 0
            each = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
            weight = torch.where(shown, 1.0, BACKGROUND).flatten()
            loss = loss + EMPHASIS[name] * (each * weight).sum() / weight.sum()
            tallies.append(torch.stack([((logits.argmax(-1) == label) & shown).sum(), shown.sum()]))
        logits = self.present_heads(seen.pooler_output)
        loss = loss + 2.0 * F.binary_cross_entropy_with_logits(logits, present)
        right = (logits > 0) == (present > 0)
        tallies.append(torch.stack([right.sum(), torch.tensor(right.numel())]))
        return {"loss": loss, "tallies": torch.stack(tallies, 1).detach()}


def label_patches(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """What each patch shows, by name of head: (b, 144) long, 0 for nothing."""
    rows: dict[str, list[Any]] = {name: [] for name in CLASSES}
    for sample in samples:
        table = _labels(sample)
        for number, name in enumerate(CLASSES):
            rows[name].append(table[sample.owners.reshape(-1), number])
    return {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()}


def _labels(sample: Sample) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels by owner, (owners, 4): nothing, the items, then letters 3, 2, 1 (owners -3 to -1)."""
    colours = tuple(COLOURS)
    rows = [(0, 0, 0, 0)]
    for item in sample.scene.items:
        cell = item.cell[0] * GRID + item.cell[1] + 1
        rows.append(
            (
                SHAPES.index(item.shape) + 1,
                colours.index(item.colour) + 1,
                GLYPHS.index(item.glyph) + 1,
                cell,
            )
        )
    word = sample.scene.word
    for place in (2, 1, 0) if word else ():
        assert word is not None
        cell = word.cell[0] * GRID + word.cell[1] + 1
        rows.append((WORD_SHAPE + place, WORD_COLOUR, GLYPHS.index(word.letters[place]) + 1, cell))
    return np.array(rows, np.int64)


def label_presence(samples: Sequence[Sample]) -> torch.Tensor:
    """Which kinds (colour and shape) and which glyphs an image shows: (b, 24 + 20) in {0, 1}."""
    colours = tuple(COLOURS)
    present = torch.zeros(len(samples), KINDS + len(GLYPHS))
    for row, sample in enumerate(samples):
        for item in sample.scene.items:
            present[row, SHAPES.index(item.shape) * len(COLOURS) + colours.index(item.colour)] = 1
            present[row, KINDS + GLYPHS.index(item.glyph)] = 1
    return present
