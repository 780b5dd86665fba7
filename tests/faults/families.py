"""Faults that only some families show: of attention, positions, masks, caches, features, towers."""

import torch

import tokenreduce as tr
from tests.faults import checks
from tests.faults.checks import flex, law, score
from tests.faults.fault import Register, evidence, row
from tokenreduce.adapter import Adapter
from tokenreduce.adapters.llava import PixtralTower
from tokenreduce.engine import apply, attention, cache, masks, positions
from tokenreduce.engine.sequence import rows_of
from tokenreduce.testing import laws
from tokenreduce.tower import PackedTower, rotate

FAULTS = Register()


def adapter(name):
    return tr.adapters[name]


# -- how a family makes its attention -----------------------------------------------------------


@FAULTS.noticed_by(score("qwen2"), evidence("qwen2"), evidence("llava"))
def query_heads_share_keys_in_turn(patch):
    """Grouped queries: head h reads keys h % groups, not h // heads of a group."""
    queries = Adapter.queries

    def in_turn(self, layer, *given):
        heads = queries(self, layer, *given).unflatten(1, (-1, self.key_groups(layer)))
        return heads.transpose(1, 2).flatten(1, 2)

    patch.setattr(Adapter, "queries", in_turn)


@FAULTS.noticed_by(score("glm4v"), evidence("glm4v"))
def halves_of_a_head_are_turned_and_not_neighbours(patch):
    patch.setattr(adapter("glm4v"), "interleaved", False)


@FAULTS.noticed_by(score("glm4v"), evidence("glm4v"))
def what_of_a_head_is_not_turned_is_left_out(patch):
    """Partial rotary embeddings."""

    def turned_alone(x, tables, interleaved=False):
        whole = rotate(x, tables, interleaved)
        return whole.where(torch.arange(x.shape[-1]) < tables[0].shape[-1], 0.0)

    patch.setattr("tokenreduce.adapter.rotate", turned_alone)


@FAULTS.noticed_by(score("qwen3"), evidence("qwen3"), evidence("gemma3"))
def heads_are_not_normed(patch):
    def unnormed(x, attention, norm):
        return x.view(*x.shape[:-1], -1, attention.head_dim).transpose(1, 2)

    patch.setattr("tokenreduce.adapter._heads", unnormed)


@FAULTS.noticed_by(score("paligemma2", "eager"), evidence("paligemma2", "eager"))
def scores_are_not_capped(patch):
    """Gemma 2 squeezes what its softmax gets."""
    patch.setattr(
        Adapter, "scores", lambda self, layer, products: products * layer.self_attn.scaling
    )


# -- positions ----------------------------------------------------------------------------------


@FAULTS.noticed_by(law(laws.dropping_is_masking, "qwen2_5_vl"), row("pyramid_drop", "qwen2_5_vl"))
def one_count_of_positions_for_every_axis(patch):
    """M-RoPE: tables made anew from the places of the tokens, as if these were their positions."""
    rotary = apply.rotary

    def by_count(seq, stage, call):
        tables, ids, shift = rotary(seq, stage, call)
        if stage.whole:
            return tables, ids, shift
        count = stage.layout.index if ids is None else ids
        return positions._tables(seq, call, count), ids, shift

    patch.setattr(apply, "rotary", by_count)


@FAULTS.noticed_by(
    law(laws.keeping_all_is_the_plain_model, "qwen2_vl"), row("pyramid_drop", "qwen3_vl")
)
def the_axis_of_time_stands_for_all_three(patch):
    """M-RoPE: rows and columns are lost on the way into the decoder."""
    from tokenreduce.engine.wiring import Wiring

    before = Wiring._decoder_before

    def by_time(self, *given):
        kwargs = given[-1]
        ids = kwargs.get("position_ids")
        if ids is not None and ids.dim() == 3:
            kwargs["position_ids"] = ids[-3:-2].expand_as(ids)
        return before(self, *given)

    patch.setattr(Wiring, "_decoder_before", by_time)


@FAULTS.noticed_by(law(laws.compacting_is_renumbering, "gemma3"), row("pyramid_drop", "gemma3"))
def one_rotary_table_for_every_kind_of_layer(patch):
    """Gemma 3 has one for its sliding and one for its full layers."""
    patch.setattr(adapter("gemma3"), "rotary_kind", lambda self, layer: "full_attention")


# -- masks --------------------------------------------------------------------------------------


def seen_before(at):
    keys = at.keys[:, None, None]
    return (keys <= at.queries[:, None, :, None]) & (keys >= 0)


@FAULTS.noticed_by(
    law(laws.dropping_is_masking, "mistral-window"),
    row("pyramid_drop", "mistral-window"),
    row("pyramid_drop", "mistral3-window"),
)
def the_window_is_forgotten(patch):
    """Every key before a query is seen, however far it is."""
    gathered = apply.gathered

    def wide(mask, at, *, dtype, **given):
        if mask is None or at.queries.shape[1] != at.keys.shape[1]:
            return gathered(mask, at, dtype=dtype, **given)
        seen = seen_before(at)
        return seen if mask.dtype == torch.bool else masks._additive(seen, dtype)

    patch.setattr(apply, "gathered", wide)


@FAULTS.noticed_by(
    law(laws.dropping_is_masking, "paligemma"),
    row("pyramid_drop", "paligemma"),
    row("pyramid_drop", "gemma3"),
)
def a_mask_is_taken_for_a_causal_one(patch):
    """A prefix sees itself in both directions (PaliGemma), and so does a picture (Gemma 3)."""
    gathered = apply.gathered

    def causal(mask, at, **given):
        found = gathered(mask, at, **given)
        if found is None:
            return None
        seen = seen_before(at)
        if found.dtype == torch.bool:
            return found & seen
        return found.masked_fill(~seen, torch.finfo(found.dtype).min)

    patch.setattr(apply, "gathered", causal)


@FAULTS.noticed_by(score("paligemma"), evidence("paligemma"), evidence("gemma3"))
def a_score_reads_a_causal_mask(patch):
    visible = attention.visible

    def causal(mask, at):
        return visible(mask, at) & seen_before(at)

    patch.setattr(attention, "visible", causal)


@FAULTS.noticed_by(
    flex("mistral-window"),
    "tests/engine/test_flex.py::test_a_forward_pass_equals_sdpa",
)
def a_block_mask_is_cut_and_not_rewritten(patch):
    """Flex attention asks the model's rule about the places that tokens have come to."""
    patch.setattr(masks, "_seen", lambda rule, at, first: rule)


@FAULTS.noticed_by(
    flex("paligemma"),
    "tests/engine/test_flex.py::test_a_forward_pass_equals_sdpa",
)
def a_block_mask_is_made_anew_and_causal(patch):
    blocks = masks._blocks
    patch.setattr(masks, "_blocks", lambda rule, *given: blocks(masks._causal, *given))


# -- caches -------------------------------------------------------------------------------------


@FAULTS.noticed_by(
    law(laws.decoding_is_recomputing, "mistral-window"), row("pyramid_drop", "mistral-window")
)
def a_window_forgets_which_tokens_left_it(patch):
    """The order of the stored keys is that of the first ones, where the last ones are stored."""
    order = cache.ShortLayer.full_order

    def first(self, batch, device):
        found = order(self, batch, device)
        return found - found[:, :1] if self.windowed else found

    patch.setattr(cache.ShortLayer, "full_order", first)


# -- features that join between layers ----------------------------------------------------------


def added(patch, stepped):
    def add_between(seq, add, hidden, at, features):
        if not seq.reduced:
            return add(hidden, at, features)
        blank = hidden.new_zeros(seq.batch, seq.length, hidden.shape[-1])
        return hidden + stepped(seq, blank.masked_scatter(at[..., None], features), hidden)

    patch.setattr(apply, "add_between", add_between)


@FAULTS.noticed_by(
    law(laws.dropping_is_masking, "qwen3_vl"),
    row("pyramid_drop", "qwen3_vl-video"),
    "tests/engine/test_deepstack.py",
)
def features_join_the_first_tokens_that_are_left(patch):
    """DeepStack: not the tokens whose features they are."""
    added(patch, lambda seq, whole, hidden: whole[:, : hidden.shape[1]])


@FAULTS.noticed_by(
    checks.tested(
        "engine.test_deepstack",
        "test_each_survivor_gets_the_features_of_what_it_contains",
        "qwen3_vl",
        tr.Pooling(),
    ),
    "tests/engine/test_deepstack.py",
)
def a_merged_token_gets_the_features_of_one(patch):
    """DeepStack: of the token that it was, and of none that it contains."""

    def own(seq, whole, hidden):
        for stage in seq.stops:
            whole = rows_of(whole, stage.step.rows)
        return whole

    added(patch, own)


# -- towers that get all pictures as one sequence -----------------------------------------------


@FAULTS.noticed_by(
    law(laws.rows_stand_alone, "qwen2_vl", "fastervlm", "single"),
    row("fastervlm", "qwen2_5_vl"),
)
def pictures_of_one_sequence_see_each_other(patch):
    """Cumulated lengths are not read."""
    patch.setattr(PackedTower, "blocks", lambda self, call: None)


@FAULTS.noticed_by(
    law(laws.rows_stand_alone, "mistral3", "fastervlm", "single"), row("fastervlm", "mistral3")
)
def pictures_of_one_masked_sequence_see_each_other(patch):
    """Pixtral says by a mask which patches are of one picture."""
    patch.setattr(PixtralTower, "blocks", lambda self, call: None)


@FAULTS.noticed_by(
    checks.tower("qwen2_5_vl"),
    "tests/engine/test_tower.py::test_a_token_is_made_of_the_patches_that_it_names[qwen2_5_vl]",
)
def windows_are_taken_for_reading_order(patch):
    """Qwen2.5-VL sorts patches by its windows."""
    patch.setattr(adapter("qwen2_vl"), "_order", lambda self, vision, sizes: None)
