"""Which tokens of a stage are text, visual, queries: rows of what a layer is given.

Shapes: b samples, r query tokens, p physical tokens, v visual tokens, t text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.engine.sequence import Layout, Sequence, Stage
from tokenreduce.tokens import keep_from_mask


@dataclass(frozen=True)
class TokenRows:
    """The rows of one stage of a pass with visual tokens.

    Attributes:
        seq: the pass.
        stage: which of its tokens are present.
    """

    seq: Sequence
    stage: Stage

    @property
    def layout(self) -> Layout:
        """Where the visual tokens are."""
        return self.stage.kept

    @property
    def order(self) -> Tensor:
        """(b, p) absolute logical index of every token, -1 for filler."""
        return self.stage.order

    def queries(self) -> tuple[Tensor, Tensor]:
        """(b, r) physical index of the query tokens, and which entries count."""
        prompt = self.seq.visual
        if self.stage.whole:
            return prompt.query_index, prompt.query_valid
        # a query token may itself be a dropped image token: then the last one left before it
        at = prompt.query_index + self.seq.start
        rows = torch.searchsorted(self.order.contiguous(), at, right=True) - 1
        return rows.clamp(min=0), prompt.query_valid

    def text(self) -> tuple[Tensor, Tensor]:
        """(b, t) physical index of the question's text tokens, and which entries count."""
        most = max(max(self.seq.texts), 1)
        return self.stage.made.once("text", lambda: keep_from_mask(self.shown(text=True), most))

    def after_picture(self) -> Tensor:
        """(b, t) True at the text tokens that follow the sample's first visual token."""
        rows, valid = self.text()
        far = self.order.shape[1]
        there = self.layout.visual_valid
        first = torch.where(there, self.layout.visual, far).amin(dim=1, keepdim=True)
        return valid & (rows > first)

    def shown(self, text: bool) -> Tensor:
        """(b, p) True at the question's text tokens, or at the visual ones."""
        b, p = self.order.shape
        spare = torch.zeros(b, p + 1, dtype=torch.bool, device=self.order.device)
        at = torch.where(self.layout.visual_valid, self.layout.visual, p)
        visual = spare.scatter(1, at, True)[:, :p]
        return self.question() & ~visual if text else visual

    def question(self) -> Tensor:
        """(b, p) True at what a choice may depend on: real tokens before the first answer."""
        real, before_answer = self.real(), self.seq.visual.before_answer
        if before_answer is None:
            return real
        return real & before_answer.gather(1, (self.order - self.seq.start).clamp(min=0))

    def real(self) -> Tensor:
        """(b, p) False at padding and filler."""
        valid, real = self.order >= 0, self.seq.visual.real
        return valid & real if self.stage.whole and real is not None else valid
