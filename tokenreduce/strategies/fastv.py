"""FastV: an image is worth 1/2 tokens after layer 2, section 4 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenreduce.errors import did_you_mean
from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Strategy, select, strategies
from tokenreduce.tokens import Plan, Tokens

PAPER = Paper(
    key="chen2024image",
    title="An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration "
    "for Large Vision-Language Models",
    authors="Chen, Liang and Zhao, Haozhe and Liu, Tianyu and Bai, Shuai and Lin, Junyang and "
    "Zhou, Chang and Chang, Baobao",
    year=2024,
    arxiv="2403.06764",
    venue="European Conference on Computer Vision (ECCV)",
    code="pkunlp-icler/FastV, no licence published",
)


@strategies.register("fastv")
@dataclass
class FastV(Strategy):
    """Keep the tokens that got most attention in the layer before the stop.

    `score="last"` is the attention of the last token, as in the original code; `"received"` the
    attention averaged over all tokens, as in the paper's text. A stop at layer 0 has no layer
    before it and reads its own. In training the tokens before the answers ask, as at inference.

    With a cache tokens are ranked once, in prefill, and really leave; without one every full pass
    ranks anew. (One variant of the original redraws a mask over a full cache at every step.)
    """

    score: Literal["last", "received"] = "last"
    """last: of the last token, as in the code; received: mean over all, as in the paper."""

    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top k of the last token's attention one layer earlier, mean over heads"
    )
    cost: ClassVar[str] = (
        "O(h e v) for one row of attention with h heads e wide, O(v log v) to sort"
    )

    def __post_init__(self) -> None:
        if self.score not in _EVIDENCE:
            known = ", ".join(_EVIDENCE)
            hint = did_you_mean(self.score, _EVIDENCE)
            raise ValueError(f"no FastV score {self.score!r}{hint} (known: {known})")

    @property
    def needs(self) -> frozenset[str]:
        """The attention of the layer before, of one token or of all."""
        return frozenset({_EVIDENCE[self.score]})

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The tokens with the highest attention, mean over heads."""
        return select(tokens[_EVIDENCE[self.score]].mean(dim=1), tokens, budget)

    def scheduler(self) -> Scheduler:
        """K = 2, R = 50 %."""
        return Single(layer=2, keep=0.5)


_EVIDENCE = {"last": "attention_before", "received": "attention_received"}
