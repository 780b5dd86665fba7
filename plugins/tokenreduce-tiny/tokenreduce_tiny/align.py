"""Stage 2: the projector learns the decoder's vocabulary.

The projected feature of a patch must name the colour, shape, glyph, row and column of what it shows
through the tied word embeddings, as a token of the decoder would. A hundred steps are enough.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tokenreduce.data.glyphs import GLYPHS
from tokenreduce.data.questions import COLUMNS, ROWS
from tokenreduce.data.shapes import COLOURS, GRID, SHAPES
from tokenreduce_tiny.build import WORDS

NAMES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "glyph": GLYPHS,
    "row": ROWS,
    "column": COLUMNS,
}
MEASURES = tuple(NAMES)


class NamingProjector(nn.Module):
    """A frozen tower, the projector, the word embedding and the decoder's last norm."""

    def __init__(
        self, tower: nn.Module, layer: int, projector: nn.Module, embed: nn.Module, norm: nn.Module
    ) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.layer = layer
        self.projector = projector
        self.embed = embed
        self.norm = norm
        for name, words in NAMES.items():
            ids = torch.tensor([WORDS.index(word) for word in words])
            self.register_buffer(f"{name}_ids", ids, persistent=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        shape: torch.Tensor,
        colour: torch.Tensor,
        glyph: torch.Tensor,
        cell: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss and tallies (2, measures) of naming what the labels (b, 144) of stage 1 say."""
        seen = self.tower(pixel_values, output_hidden_states=True)
        features = self.norm(self.projector(seen.hidden_states[self.layer][:, 1:]))
        targets = {  # what there is to name, and where
            "shape": (shape - 1, (shape > 0) & (shape <= len(SHAPES))),
            "colour": (colour - 1, (colour > 0) & (colour <= len(COLOURS))),
            "glyph": (glyph - 1, glyph > 0),
            "row": ((cell - 1) // GRID, cell > 0),
            "column": ((cell - 1) % GRID, cell > 0),
        }
        loss = pixel_values.new_zeros(())
        tallies = []
        for name, (target, shown) in targets.items():
            words = self.embed(getattr(self, f"{name}_ids"))
            logits = features[shown] @ words.t()
            loss = loss + F.cross_entropy(logits, target[shown])
            right = (logits.argmax(-1) == target[shown]).sum()
            tallies.append(torch.stack([right, shown.sum()]))
        return {"loss": loss, "tallies": torch.stack(tallies, 1).detach()}
