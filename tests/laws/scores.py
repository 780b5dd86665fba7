"""The evidence of a live reduction against attention written out from the weights."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import tokenreduce as tr
from tokenreduce.testing.batches import Batch, batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import handed
from tokenreduce.testing.reference import attention
from tokenreduce.testing.trial import shared_model

STOP = 3
EXPECTED = {"attention": (STOP, "asking"), "attention_before": (STOP - 1, "asking")}
EXPECTED["attention_received"] = (STOP - 1, "all")


@dataclass
class Probe(tr.Stride):
    """Notes down what it is told."""

    seen: dict[str, Any] = field(default_factory=dict)
    needs: ClassVar[frozenset[str]] = frozenset(EXPECTED)

    def plan(self, tokens: tr.Tokens, budget: Any) -> tr.Plan:
        self.seen = {name: tokens[name] for name in EXPECTED}
        return super().plan(tokens, budget)


def asking(alone: Batch, training: bool) -> torch.Tensor:
    """Positions whose attention counts: the last one, or every one right before an answer."""
    labels = alone.labels[0].tolist()
    spans = [i - 1 for i in range(1, len(labels)) if labels[i] != -100 and labels[i - 1] == -100]
    return torch.tensor(spans if training else [len(labels) - 1])


def question(alone: Batch, training: bool) -> torch.Tensor:
    """Positions before the first answer, which alone may decide in training."""
    answers = (alone.labels[0] != -100).nonzero()
    return torch.arange(int(answers[0]) if training else alone.labels.shape[1])


def check_scores(family: str, kind: str = "sdpa", training: bool = False) -> None:
    model, given = shared_model(family, kind), batch(FAMILIES[family], (1, 0, 2), "right")
    probe = Probe()
    options = {"labels": given.labels} if training else {}
    at = tr.Single(STOP, 0.5)
    with tr.reduce(model, probe, at, positions="keep") as reduction, torch.no_grad():
        given.run(model, reduction, use_cache=False, **options)
    for i, n in enumerate(given.counts):
        if not n:
            continue
        alone = given.row(i)
        slots = alone.visual[0].nonzero()[:, 0]
        calls, axes = handed(model, alone.inputs), None
        if FAMILIES[family].own_positions:
            axes = model.base_model.get_rope_index(**alone.inputs)[0][:, 0]
        for name, (layer, who) in EXPECTED.items():
            whole = attention(model, layer, *(x[0] for x in calls[layer]), axes)
            rows = asking(alone, training) if who == "asking" else question(alone, training)
            expected = whole[:, rows].mean(dim=1)[:, slots]
            mine = probe.seen[name][i, :, :n]
            worst = (mine - expected).abs().max().item()
            assert worst < 1e-5, f"{name} on {family}, sample {i}, is off by {worst:.2g}"
