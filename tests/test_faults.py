"""Deliberate faults: each is switched on by hand, and a law must notice.

A law that passes with a fault in place is worth nothing. Every entry names the fault, the check
that has to fail, and how the fault is put in. Without the fault the same check passes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

import tokenreduce as tr
from tests.laws.scores import check_scores
from tokenreduce.adapter import Adapter
from tokenreduce.engine import cache, evidence, passes, positions, restore, wiring
from tokenreduce.testing import choices, laws
from tokenreduce.testing.trial import shared_model


@dataclass(frozen=True)
class Fault:
    """A fault and the check that notices it."""

    put: Callable[[pytest.MonkeyPatch], None]
    check: Callable[[], None]

    def __str__(self) -> str:
        return self.put.__name__


FAULTS: list[Fault] = []


def noticed_by(check: Callable[[], None]):
    def add(put):
        FAULTS.append(Fault(put, check))
        return put

    return add


# -- the checks ----------------------------------------------------------------------------------


def trial(strategy="pyramid_drop", scheduler="explicit", family="llama-gqa", **options):
    made = laws.trial(tr.strategies.build(strategy), family, scheduler)
    return replace(made, memory={}, **options)


def scores():
    check_scores("qwen2")


def training_scores():
    check_scores("llama-gqa", training=True)


def masking():
    laws.dropping_is_masking(trial())


def decoding():
    laws.decoding_is_recomputing(trial())


def renumbering():
    laws.compacting_is_renumbering(trial())


def alone():
    laws.rows_stand_alone(trial())


def budget():
    laws.order_ascends_and_budget_is_exact(trial(scheduler=tr.Single(2, 0.3, rounding="floor")))


def storage():
    laws.decoding_stores_what_is_left(trial(images=(1,)))


def choice_budget():
    choices.keeps_exactly_the_budget(tr.Stride())


def choice_separators():
    choices.separators_follow_their_row(tr.Random())


def choice_writes():
    choices.writes_to_nothing(tr.PyramidDrop())


def choice_merges():
    choices.keeps_exactly_the_budget(tr.Pooling())


def left_alone():
    laws.the_model_is_left_as_it_was(trial())


def repeated():
    laws.calls_agree(trial("random"))


def interleaved():
    laws.generations_do_not_disturb_each_other(trial())


def loud():
    laws.asking_without_getting_is_loud(trial())


def plain():
    laws.keeping_all_is_the_plain_model(trial())


class Wobbling(tr.Stride):
    """Chooses otherwise in the backward pass: harmless where a plan is made once and kept."""

    def plan(self, tokens, budget):
        backward = torch._C._current_graph_task_id() >= 0
        return tr.Random().plan(replace(tokens, seed=int(backward)), budget)


def checkpointing():
    laws.checkpointing_changes_nothing(laws.trial(Wobbling(), "llama-gqa", "explicit"))


# -- faults of the score -------------------------------------------------------------------------


@noticed_by(scores)
def the_projection_of_another_layer(patch):
    queries = Adapter.queries
    other = shared_model("qwen2", "sdpa").get_decoder().layers[0]
    patch.setattr(Adapter, "queries", lambda self, layer, *rest: queries(self, other, *rest))


@noticed_by(scores)
def no_layer_norm_before_the_score(patch):
    def projected(self, layer, projection, hidden, given):
        return projection(hidden) if given is None else given

    patch.setattr(Adapter, "_projected", projected)


@noticed_by(scores)
def no_rotary_embedding_in_the_score(patch):
    patch.setattr("tokenreduce.adapter.rotate", lambda x, *given: x)


@noticed_by(scores)
def softmax_over_the_image_alone(patch):
    visual = evidence.LayerView._visual

    def over_images(self, *given):
        share = visual(self, *given)
        valid = self.layout.visual_valid[:, None]
        return share / (share * valid).sum(dim=-1, keepdim=True).clamp(min=1e-9)

    patch.setattr(evidence.LayerView, "_visual", over_images)


@noticed_by(scores)
def padding_is_scored_by_the_last_column(patch):
    """The last position of a right-padded row is no token."""
    asking = evidence.LayerView._asking

    def last(self):
        rows, valid = asking(self)
        return torch.full_like(rows, self.seq.length - 1), valid

    patch.setattr(evidence.LayerView, "_asking", last)


@noticed_by(training_scores)
def the_last_turn_alone_asks_in_training(patch):
    from tokenreduce.engine import inputs

    every = inputs.before_answers

    def last(labels):
        asks = every(labels)
        at = torch.arange(asks.shape[1])
        return asks & (at == torch.where(asks, at, -1).amax(dim=1, keepdim=True))

    patch.setattr(inputs, "before_answers", last)


# -- faults of the choice ------------------------------------------------------------------------


@noticed_by(choice_budget)
def kept_indices_unsorted(patch):
    in_order = tr.select.__globals__["keep_from_mask"]

    def reversed_(mask, k):
        index, valid = in_order(mask, k)
        return index.flip(1), valid.flip(1)

    patch.setitem(tr.select.__globals__, "keep_from_mask", reversed_)


@noticed_by(budget)
def rounding_up_where_down_was_asked(patch):
    patch.setattr(tr.Stop, "count", lambda self, n: math.ceil(n * self.keep))


@noticed_by(budget)
def shares_of_what_is_left(patch):
    """The budget compounds: a share of the tokens of the stop before."""
    decide = passes._decide

    def compounding(setup, i, layer, hidden, kwargs, seq, cached):
        counts, seq.counts = seq.counts, tuple(max(0, n - 1) for n in seq.counts)
        decide(setup, i, layer, hidden, kwargs, seq, cached)
        seq.counts = counts

    patch.setattr(passes, "_decide", compounding)


@noticed_by(alone)
def the_ranking_of_row_0_for_every_row(patch):
    score = tr.PyramidDrop.score

    def first(self, tokens):
        return score(self, tokens)[:1].expand_as(tokens.valid)

    patch.setattr(tr.PyramidDrop, "score", first)


@noticed_by(choice_separators)
def newlines_dropped_while_their_row_is_kept(patch):
    def ignored(order, separator, tokens, limit):
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1]).expand_as(order)
        )
        return rank < limit

    patch.setitem(tr.select.__globals__, "_with_separators", ignored)


@noticed_by(choice_writes)
def the_scores_are_changed_in_place(patch):
    patch.setattr(
        tr.PyramidDrop, "score", lambda self, tokens: tokens["attention"].mul_(2).mean(dim=1)
    )


@noticed_by(choice_merges)
def padding_is_merged(patch):
    plan = tr.Pooling.plan
    patch.setattr(
        tr.Pooling,
        "plan",
        lambda self, tokens, budget: (
            (p := plan(self, tokens, budget)) and replace(p, group=p.group.clamp(min=0))
        ),
    )


# -- faults of the engine ------------------------------------------------------------------------


@noticed_by(renumbering)
def positions_kept_where_they_should_be_compact(patch):
    rotary = passes.rotary
    patch.setattr(
        passes,
        "rotary",
        lambda setup, *given: rotary(replace(setup, positions="keep"), *given),
    )


@noticed_by(renumbering)
def decode_positions_unshifted(patch):
    shifted = positions._shifted

    def unshifted(setup, layer, hidden, ids, seq, shifts):
        zeros = {id(shift): torch.zeros_like(shift) for shift in shifts if shift is not None}
        made = shifted(setup, layer, hidden, ids, seq, list(zeros.values()))
        return {key: made[id(zero)] for key, zero in zeros.items()}

    patch.setattr(positions, "_shifted", unshifted)


@noticed_by(masking)
def the_mask_is_cut_and_not_gathered(patch):
    def cut(mask, queries, keys, **given):
        return mask[:, :, : queries.shape[1], : keys.shape[1]]

    patch.setattr(passes, "gathered", cut)


@noticed_by(masking)
def filler_is_seen(patch):
    gathered = passes.gathered

    def seen(mask, queries, keys, **given):
        return gathered(mask, queries, keys.clamp(min=0), **given)

    patch.setattr(passes, "gathered", seen)


@noticed_by(storage)
def keys_are_stored_twice(patch):
    update = cache.DynamicLayer.update

    def twice(self, keys, values, *rest, **options):
        found = update(self, keys, values, *rest, **options)
        if keys.shape[-2] > 1:
            update(self, keys, values, *rest, **options)
        return found

    patch.setattr(cache.DynamicLayer, "update", twice)


@noticed_by(budget)
def padding_is_not_removed(patch):
    describe = wiring.inputs.describe

    def padded(seq, *given):
        found = describe(seq, *given)
        seq.real, seq.texts = None, tuple(seq.length - n for n in seq.counts)
        return found

    patch.setattr(wiring.inputs, "describe", padded)


@noticed_by(masking)
def zeros_where_tokens_were_dropped(patch):
    fill = restore._fill

    def zeros(seq, layout):
        source, nothing = fill(seq, layout)
        same = torch.nn.functional.pad(source[:, 1:] == source[:, :-1], (1, 0))
        return source, same if nothing is None else nothing | same

    patch.setattr(restore, "_fill", zeros)


@noticed_by(checkpointing)
def a_plan_is_made_again_when_a_layer_is_recomputed(patch):
    enter = passes.enter

    def again(setup, i, layer, args, kwargs, seq):
        if i in setup.stops and i in seq.layouts:
            before = seq.steps[i].before
            seq.layout = None if before.index is None else before
            del seq.layouts[i]
        return enter(setup, i, layer, args, kwargs, seq)

    patch.setattr(passes, "enter", again)


@noticed_by(decoding)
def stored_keys_are_taken_for_the_first_tokens(patch):
    """A short layer takes its first keys for the first tokens, whatever was dropped."""
    order = cache.ShortLayer.full_order

    def dense(self, batch, device):
        return torch.arange(order(self, batch, device).shape[1]).expand(batch, -1)

    patch.setattr(cache.ShortLayer, "full_order", dense)


@noticed_by(left_alone)
def a_hook_is_left_behind(patch):
    remove = tr.Reduction.remove

    def almost(self):
        remove(self)
        patch.setitem(self.decoder._forward_hooks, -1, lambda *given: None)

    patch.setattr(tr.Reduction, "remove", almost)


@noticed_by(left_alone)
def the_config_is_written_to(patch):
    remove = tr.Reduction.remove

    def marked(self):
        patch.setattr(self.model.config, "use_cache", not self.model.config.use_cache)
        remove(self)

    patch.setattr(tr.Reduction, "remove", marked)


@noticed_by(repeated)
def a_draw_from_the_global_generator(patch):
    patch.setattr(tr.Random, "score", lambda self, tokens: torch.rand(tokens.valid.shape))


@noticed_by(interleaved)
def the_shift_of_positions_is_shared_between_caches(patch):
    """What belongs to one KV cache is read from whichever was written last."""
    newest = []
    shared = property(lambda self: newest[-1], lambda self, value: newest.append(value))
    patch.setattr(cache.ShortLayer, "shift", shared, raising=False)


@noticed_by(loud)
def no_warning_without_effect(patch):
    patch.setattr("tokenreduce.reduction.warnings.warn", lambda *a, **k: None)


@noticed_by(loud)
def a_plan_of_another_size_passes(patch):
    patch.setattr(passes, "_check", lambda *given: None)


@noticed_by(plain)
def hidden_states_change_in_the_last_bit(patch):
    enter = passes.enter

    def rounded(*given):
        (hidden, *rest), options = enter(*given)
        return (hidden * (1 + 1e-7), *rest), options

    patch.setattr(passes, "enter", rounded)


CHECKS = {fault.check.__name__: fault.check for fault in FAULTS}


@pytest.mark.parametrize("check", CHECKS)
def test_sound(check):
    CHECKS[check]()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_noticed(fault, monkeypatch):
    fault.put(monkeypatch)
    with pytest.raises(AssertionError):
        fault.check()


def test_there_are_enough():
    assert len(FAULTS) >= 12
    assert len({str(f) for f in FAULTS}) == len(FAULTS)
