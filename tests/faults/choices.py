"""Faults of the choice: a plan that is not what was asked for."""

import math
from dataclasses import replace

import torch

import tokenreduce as tr
from tests.faults import checks
from tests.faults.checks import law
from tests.faults.fault import Register, choice, row
from tokenreduce import tokens
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.testing import laws

FAULTS = Register()


@FAULTS.noticed_by(checks.EXACT, choice("stride"))
def kept_indices_unsorted(patch):
    in_order = tokens.keep_from_mask

    def reversed_(mask, k):
        index, valid = in_order(mask, k)
        return index.flip(1), valid.flip(1)

    patch.setattr(tokens, "keep_from_mask", reversed_)


@FAULTS.noticed_by(checks.BUDGET, row("pyramid_drop", "llava_next"))
def rounding_up_where_down_was_asked(patch):
    patch.setattr(tr.Stop, "count", lambda self, n: math.ceil(n * self.keep))


@FAULTS.noticed_by(checks.BUDGET, row("pyramid_drop", "llama"))
def shares_of_what_is_left(patch):
    """The budget compounds: a share of the tokens of the stop before."""
    budget = EngineConfig.budget

    def compounding(self, layer, counts, left):
        return budget(self, layer, tuple(max(0, n - 1) for n in counts), left)

    patch.setattr(EngineConfig, "budget", compounding)


@FAULTS.noticed_by(law(laws.rows_stand_alone), row("pyramid_drop", "llama"))
def the_ranking_of_row_0_for_every_row(patch):
    score = tr.PyramidDrop.score

    def first(self, tokens):
        return score(self, tokens)[:1].expand_as(tokens.valid)

    patch.setattr(tr.PyramidDrop, "score", first)


@FAULTS.noticed_by(checks.SEPARATORS, choice("random"))
def newlines_dropped_while_their_row_is_kept(patch):
    def ignored(order, separator, tokens, limit):
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1]).expand_as(order)
        )
        return rank < limit

    patch.setitem(tr.select.__globals__, "_with_separators", ignored)


@FAULTS.noticed_by(checks.READ_ONLY, choice("pyramid_drop"))
def the_scores_are_changed_in_place(patch):
    patch.setattr(
        tr.PyramidDrop, "score", lambda self, tokens: tokens["attention"].mul_(2).mean(dim=1)
    )


@FAULTS.noticed_by(checks.PADDING, choice("pooling"))
def padding_is_merged(patch):
    plan = tr.Pooling.plan
    patch.setattr(
        tr.Pooling,
        "plan",
        lambda self, tokens, budget: (
            (p := plan(self, tokens, budget)) and replace(p, content=tr.Merge(p.group.clamp(min=0)))
        ),
    )


@FAULTS.noticed_by(checks.MEMORY, choice("divprune"), choice("pact"))
def every_pair_of_many_tokens_is_held_at_once(patch):
    patch.setattr("tokenreduce.selection.dense", lambda v: True)
