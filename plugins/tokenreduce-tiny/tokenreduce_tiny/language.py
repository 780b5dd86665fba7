"""Stage 3: the decoder learns to answer; tower frozen, projector and embeddings trained along."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from tokenreduce.data.batching import IGNORED
from tokenreduce_tiny.packing import NAMES, PackedBatch, score

MEASURES = NAMES


class AnsweringModel(nn.Module):
    """The whole model under its usual loss: cross entropy of the answer's tokens.

    It holds the stock `LlavaModel` and reads the logits off the tied embedding at the places that
    have a label only, which is what `LlavaForConditionalGeneration` computes, for less. In training
    it runs under autocast to `precision`; weights, residual stream, logits and all evaluation are
    fp32.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.precision = precision
        self.model = model.model
        self.model.vision_tower.requires_grad_(False)

    def forward(
        self,
        labels: torch.Tensor,
        blocks: torch.Tensor,
        types: torch.Tensor,
        **inputs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss and tallies (2, measures) of a packed batch (see `PackedBatch` for the shapes)."""
        lower = self.training and self.precision != torch.float32
        with torch.autocast("cpu", self.precision if lower else torch.bfloat16, enabled=lower):
            hidden = self.model(**inputs, use_cache=False).last_hidden_state[:, :-1].float()
        asked = labels[:, 1:] != IGNORED
        logits = hidden[asked] @ self.model.get_input_embeddings().weight.t()
        loss = F.cross_entropy(logits, labels[:, 1:][asked])
        with torch.no_grad():
            predicted = torch.full_like(labels, IGNORED)
            predicted[:, :-1][asked] = logits.argmax(-1)
            right = score(predicted, PackedBatch(inputs, labels, blocks, types))
            tallies = tally(right, types)
        return {"loss": loss, "tallies": tallies}


def tally(right: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Right answers and questions by type: (2, measures) from two (b, q)."""
    asked = torch.bincount(types.flatten(), minlength=len(NAMES))
    return torch.stack([torch.bincount(types[right], minlength=len(NAMES)), asked])
