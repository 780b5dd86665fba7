"""A learned scorer: a small network reads each visual token, and the question if it is told to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tokenreduce.learning.gate import GateKind
from tokenreduce.learning.strategy import LearnedScorer
from tokenreduce.strategy import strategies
from tokenreduce.tokens import Tokens


@strategies.register("scorer_mlp")
@dataclass(eq=False)
class ScorerMLP(LearnedScorer):
    """Keep the tokens to which a trained two-layer network gives the highest score.

    It reads the normalised hidden state of each token, and with `text` the mean of the question's
    as well. `tokenreduce.distill` trains it on what deep layers attend to; through its gate the
    model's own loss does. Untrained it says so once, and keeps arbitrary tokens.
    """

    hidden: int = 256
    """Width of the network."""
    text: bool = False
    """Whether it reads the question as well."""
    weights: str | None = None
    """A safetensors file; null: untrained, which it says."""
    gate: GateKind = "straight_through"
    """In training: straight_through | soft (fades tokens) | none (no gradient)."""
    temperature: float = 1.0
    """Of the soft choice in the gate."""

    formula: ClassVar[str] = "top k of w · gelu(V norm(token) + Q mean(question))"
    cost: ClassVar[str] = "O(v d w) for a network w wide"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The question's hidden states, where it is told to read them."""
        return frozenset({"text", "text_valid"} if self.text else ())

    @property
    def reads_text(self) -> bool:
        """As the option says."""
        return self.text

    def build(self, width: int) -> None:
        """One layer on each token (and one on the question), and one on both."""
        self.norm = nn.LayerNorm(width)
        self.visual = nn.Linear(width, self.hidden)
        if self.text:
            self.question = nn.Linear(width, self.hidden, bias=False)
        self.last = nn.Linear(self.hidden, 1)

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) what the network says."""
        x = self.visual(self._normed(tokens.hidden, tokens.valid))
        if self.text:
            valid = tokens["text_valid"]
            words = self._normed(tokens["text"], valid).masked_fill(~valid[..., None], 0.0)
            mean = words.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
            x = x + self.question(mean)[:, None]
        scores: Tensor = self.last(nn.functional.gelu(x))[..., 0]
        return scores

    def _normed(self, hidden: Tensor, valid: Tensor) -> Tensor:
        # padding may hold anything, and must not reach the gradients
        normed: Tensor = self.norm(hidden.float().masked_fill(~valid[..., None], 0.0))
        return normed
