"""PruMerge and PruMerge+, against the recorded runs of 42Shawn/LLaVA-PruMerge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenreduce as tr

from .choices import Choice, choices, entering, llava, own, prompt, tokens

CASES = choices("prumerge")
PARITY = {
    "prumerge_adaptive": (
        "kept, merged features and the sum of the rest 1e-4, by its count",
        "the same",
    ),
    "prumerge_fixed_r8_b2": ("kept, merged features and the sum of the rest 1e-4", "the same"),
    "prumerge_plus_fixed_r8_b2": (
        "deviates: the recorded tokens once each, see below",
        "not compared",
    ),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""
PLAIN = [case for case in CASES if "plus" not in str(case)]
PLUS = [case for case in CASES if "plus" in str(case)]


def keys_and_features(case: Choice) -> tuple[Tensor, Tensor]:
    """(b, 576, d) keys of the tower's last layer, and the features before it."""
    vision, taken = case.clip().vision_model, []
    projection = vision.encoder.layers[-1].self_attn.k_proj
    handle = projection.register_forward_hook(lambda _, __, out: taken.append(out))
    with torch.no_grad():
        out = vision(case.tensors["pixel_values"], output_hidden_states=True)
    handle.remove()
    return taken[0][:, 1:], out.hidden_states[case.settings["vision_select_layer"]][:, 1:]


def recorded(case: Choice, i: int) -> tuple[list[int], Tensor, Tensor]:
    """What sample i keeps in reading order, what it contains, and the sum of the rest."""
    index, output = case.tensors["topk_indices"][i], case.tensors["output"][i]
    order = index.argsort()
    return index[order].tolist(), output[: len(index)][order], output[-1]


def split(kept: list[int], rows: Tensor, weight: Tensor, theirs: list[int]) -> tuple[int, Tensor]:
    """The place of the sum of the rest, and the other rows."""
    [place] = set(kept) - set(theirs)
    rest = weight.clone()
    rest[theirs] = -1
    assert place == rest.argmax(), "the rest stands where the best of it stood"
    at = kept.index(place)
    return at, torch.cat([rows[:at], rows[at + 1 :]])


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("prumerge")
    assert (len(PLAIN), len(PLUS)) >= (2, 1)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_the_recorded_weights_give_the_recorded_tokens(case: Choice) -> None:
    keys, features = keys_and_features(case)
    weight, k = case.tensors["cls_attn"], case.settings["out_tokens"]
    given = tokens(features, class_match=weight, match_keys=keys)
    plan = tr.PruMerge().plan(given, [k] * len(features))
    for i, rows in enumerate(plan.merge(features)):
        theirs, contents, rest = recorded(case, i)
        at, others = split(plan.keep[i].tolist(), rows, weight[i], theirs)
        assert (others - contents).abs().max() <= 1e-4
        assert (rows[at] - rest).abs().max() <= 1e-4


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_a_whole_model_gets_the_recorded_tokens(case: Choice) -> None:
    k = case.settings["out_tokens"]
    with tr.reduce(llava(case), tr.PruMerge(), tr.Single(0, k / 576)) as r, torch.no_grad():
        rows = entering(r.model, prompt(case), k)
    for i, mine in enumerate(r.kept[0]):
        theirs, contents, rest = recorded(case, i)
        at, others = split(mine.tolist(), rows[i], case.tensors["cls_attn"][i], theirs)
        assert (others - contents).abs().max() <= 1e-4
        assert (rows[i][at] - rest).abs().max() <= 1e-4


@pytest.mark.parametrize("case", PLUS, ids=str)
def test_plus_keeps_the_recorded_tokens_once(case: Choice) -> None:
    """The original keeps some twice; here the next best of the weights take their places."""
    keys, features = keys_and_features(case)
    weight, k = case.tensors["cls_attn"], case.settings["out_tokens"]
    plan = tr.PruMerge(plus=True).plan(
        tokens(features, class_match=weight, match_keys=keys), [k] * len(features)
    )
    step = round(1 / case.settings["reduction_ratio_in"])
    for i in range(len(features)):
        best = set(case.tensors["topk_indices"][i].tolist())
        both = best | set(range(0, 575, step))
        mine = plan.keep[i].tolist()
        assert len(set(mine)) == k
        assert both < set(mine)
        left = weight[i].clone()
        left[sorted(both)] = -1
        added = left.topk(k - len(both)).indices  # the last of them is where the rest stands
        assert set(mine) - both == set(added.tolist())


@pytest.mark.parametrize("case", PLUS, ids=str)
def test_plus_loses_nothing_from_the_sum_of_the_rest(case: Choice) -> None:
    """The original's complement leaves out as many tokens as there are doubles."""
    keys, features = keys_and_features(case)
    weight, k = case.tensors["cls_attn"], case.settings["out_tokens"]
    given = tokens(features, class_match=weight, match_keys=keys)
    plan = tr.PruMerge(plus=True).plan(given, [k] * len(features))
    assert plan.mix is not None
    for i, slots in enumerate(plan.mix):
        mine = plan.keep[i]
        whole = [s for s in range(k) if slots[s, mine[s]] != 1 and slots[s, mine[s]] > 0]
        [at] = whole
        rest = torch.ones(576, dtype=torch.bool)
        rest[mine] = False
        rest[mine[at]] = True
        assert torch.equal(slots[at] > 0, rest)
        assert torch.equal(slots[at][rest], weight[i][rest])


def test_neighbours_are_of_the_same_picture() -> None:
    from tokenreduce.testing.choices import GRIDS, tokens_of

    given = tokens_of(GRIDS[2:3])
    plan = tr.PruMerge().plan(given, [9])
    assert plan.mix is not None
    image = given.places.image[0]
    for slot, place in zip(plan.mix[0], plan.keep[0].tolist(), strict=True):
        if slot[place] == 1:
            assert set(image[slot != 0].tolist()) == {int(image[place])}
