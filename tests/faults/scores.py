"""Faults of the score: what a strategy is told is not what the model computes."""

import torch

from tests.faults import checks
from tests.faults.checks import score
from tests.faults.fault import Register, evidence
from tokenreduce.adapter import Adapter
from tokenreduce.engine import attention
from tokenreduce.engine.token_rows import TokenRows
from tokenreduce.testing.trial import shared_model

FAULTS = Register()


@FAULTS.noticed_by(checks.SCORES, evidence("qwen2"))
def the_projection_of_another_layer(patch):
    queries = Adapter.queries
    other = shared_model("qwen2", "sdpa").get_decoder().layers[0]
    patch.setattr(Adapter, "queries", lambda self, layer, *rest: queries(self, other, *rest))


@FAULTS.noticed_by(checks.SCORES, evidence("qwen2"))
def no_layer_norm_before_the_score(patch):
    def projected(self, layer, projection, hidden, given):
        return projection(hidden) if given is None else given

    patch.setattr(Adapter, "_projected", projected)


@FAULTS.noticed_by(checks.SCORES, evidence("qwen2"))
def no_rotary_embedding_in_the_score(patch):
    patch.setattr("tokenreduce.adapter.rotate", lambda x, *given: x)


@FAULTS.noticed_by(checks.SCORES, evidence("qwen2"))
def softmax_over_the_image_alone(patch):
    visual = attention.LayerView._visual

    def over_images(self, *given):
        share = visual(self, *given)
        valid = self.rows.layout.visual_valid[:, None]
        return share / (share * valid).sum(dim=-1, keepdim=True).clamp(min=1e-9)

    patch.setattr(attention.LayerView, "_visual", over_images)


@FAULTS.noticed_by(checks.SCORES, evidence("qwen2"))
def padding_is_scored_by_the_last_column(patch):
    """The last position of a right-padded row is no token."""
    queries = TokenRows.queries

    def last(self):
        rows, valid = queries(self)
        return torch.full_like(rows, self.seq.length - 1), valid

    patch.setattr(TokenRows, "queries", last)


@FAULTS.noticed_by(score("llama-gqa", training=True), evidence("llama-gqa"))
def the_last_turn_alone_asks_in_training(patch):
    from tokenreduce.engine import prompt

    every = prompt.before_answers

    def last(labels):
        asks = every(labels)
        at = torch.arange(asks.shape[1])
        return asks & (at == torch.where(asks, at, -1).amax(dim=1, keepdim=True))

    patch.setattr(prompt, "before_answers", last)
