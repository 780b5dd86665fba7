"""Faults of the engine that any family shows."""

from dataclasses import replace

import torch

import tokenreduce as tr
from tests.faults import checks
from tests.faults.checks import law
from tests.faults.fault import Register, choice, once, row
from tokenreduce.engine import apply, cache, decide, positions, prompt, restore
from tokenreduce.testing import laws

FAULTS = Register()


@FAULTS.noticed_by(checks.RENUMBERING, row("pyramid_drop", "llama"))
def positions_kept_where_they_should_be_compact(patch):
    rotary = apply.rotary

    def kept(seq, *given):
        return rotary(replace(seq, config=replace(seq.config, positions="keep")), *given)

    patch.setattr(apply, "rotary", kept)


@FAULTS.noticed_by(checks.RENUMBERING, row("pyramid_drop", "llama"))
def decode_positions_unshifted(patch):
    shifted = positions._shifted

    def unshifted(seq, call, shifts):
        zeros = {id(shift): torch.zeros_like(shift) for shift in shifts if shift is not None}
        made = shifted(seq, call, list(zeros.values()))
        return {key: made[id(zero)] for key, zero in zeros.items()}

    patch.setattr(positions, "_shifted", unshifted)


@FAULTS.noticed_by(checks.MASKING, row("pyramid_drop", "llama"))
def the_mask_is_cut_and_not_gathered(patch):
    def cut(mask, at, **given):
        return mask[:, :, : at.queries.shape[1], : at.keys.shape[1]]

    patch.setattr(apply, "gathered", cut)


@FAULTS.noticed_by(checks.MASKING, row("pyramid_drop", "llama"))
def filler_is_seen(patch):
    gathered = apply.gathered

    def seen(mask, at, **given):
        return gathered(mask, replace(at, keys=at.keys.clamp(min=0)), **given)

    patch.setattr(apply, "gathered", seen)


@FAULTS.noticed_by(
    law(laws.decoding_stores_what_is_left, images=(1,)), row("pyramid_drop", "llama")
)
def keys_are_stored_twice(patch):
    update = cache.DynamicLayer.update

    def twice(self, keys, values, *rest, **options):
        found = update(self, keys, values, *rest, **options)
        if keys.shape[-2] > 1:
            update(self, keys, values, *rest, **options)
        return found

    patch.setattr(cache.DynamicLayer, "update", twice)


@FAULTS.noticed_by(checks.BUDGET, row("pyramid_drop", "llama"))
def padding_is_not_removed(patch):
    read = prompt.read_prompt

    def padded(kind, *given):
        prompt, _ = read(kind, *given)
        texts = tuple(kind.shape[1] - n for n in prompt.counts)
        return replace(prompt, real=None), texts

    patch.setattr(prompt, "read_prompt", padded)


@FAULTS.noticed_by(checks.MASKING, row("pyramid_drop", "llama"))
def zeros_where_tokens_were_dropped(patch):
    fill = restore._fill

    def zeros(seq, stage):
        source, nothing = fill(seq, stage)
        same = torch.nn.functional.pad(source[:, 1:] == source[:, :-1], (1, 0))
        return source, same if nothing is None else nothing | same

    patch.setattr(restore, "_fill", zeros)


@FAULTS.noticed_by(
    checks.CHECKPOINTING,
    "tests/laws/test_matrix.py::test_a_plan_is_made_once_and_kept_for_the_backward_pass",
)
def a_plan_is_made_again_when_a_layer_is_recomputed(patch):
    enter = apply.enter

    def again(seq, call):
        if call.index in seq.config.stops and call.index < seq.reached:
            seq.stages = [stage for stage in seq.stages if stage.layer < call.index]
            seq.reached = call.index
        return enter(seq, call)

    patch.setattr(apply, "enter", again)


@FAULTS.noticed_by(checks.DECODING, row("pyramid_drop", "llama"))
def stored_keys_are_taken_for_the_first_tokens(patch):
    """A short layer takes its first keys for the first tokens, whatever was dropped."""
    order = cache.ShortLayer.full_order

    def dense(self, batch, device):
        return torch.arange(order(self, batch, device).shape[1]).expand(batch, -1)

    patch.setattr(cache.ShortLayer, "full_order", dense)


@FAULTS.noticed_by(checks.LEFT_ALONE, once("pyramid_drop", "llama"))
def a_hook_is_left_behind(patch):
    remove = tr.Reduction.remove

    def almost(self):
        remove(self)
        patch.setitem(self.decoder._forward_hooks, -1, lambda *given: None)

    patch.setattr(tr.Reduction, "remove", almost)


@FAULTS.noticed_by(checks.LEFT_ALONE, once("pyramid_drop", "llama"))
def the_config_is_written_to(patch):
    remove = tr.Reduction.remove

    def marked(self):
        patch.setattr(self.model.config, "use_cache", not self.model.config.use_cache)
        remove(self)

    patch.setattr(tr.Reduction, "remove", marked)


@FAULTS.noticed_by(law(laws.calls_agree, strategy="random"), choice("random"))
def a_draw_from_the_global_generator(patch):
    patch.setattr(tr.Random, "score", lambda self, tokens: torch.rand(tokens.valid.shape))


@FAULTS.noticed_by(law(laws.generations_do_not_disturb_each_other), once("pyramid_drop", "llama"))
def the_shift_of_positions_is_shared_between_caches(patch):
    """What belongs to one KV cache is read from whichever was written last."""
    newest = []
    shared = property(lambda self: newest[-1], lambda self, value: newest.append(value))
    patch.setattr(cache.ShortLayer, "shift", shared, raising=False)


@FAULTS.noticed_by(checks.LOUD, once("pyramid_drop", "llama"))
def no_warning_without_effect(patch):
    patch.setattr("tokenreduce.reduction.warnings.warn", lambda *a, **k: None)


@FAULTS.noticed_by(checks.LOUD, once("pyramid_drop", "llama"))
def a_plan_of_another_size_passes(patch):
    patch.setattr(decide, "check_plan", lambda *given: None)


@FAULTS.noticed_by(law(laws.keeping_all_is_the_plain_model), once("pyramid_drop", "llama"))
def hidden_states_change_in_the_last_bit(patch):
    enter = apply.enter

    def rounded(*given):
        call = enter(*given)
        return replace(call, hidden=call.hidden * (1 + 1e-7))

    patch.setattr(apply, "enter", rounded)
