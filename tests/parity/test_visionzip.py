"""VisionZip, against the recorded runs of dvlab-research/VisionZip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenreduce as tr

from .choices import Choice, choices, entering, llava, own, prompt, tokens, tower

CASES = choices("visionzip")
PARITY = {
    "dom162_ctx30_b1": (
        "kept, targets, merged features 1e-4",
        "kept, targets, merged features 1e-4",
    ),
    "dom54_ctx10_b2": (
        "kept, targets, merged features 1e-4",
        "kept, targets, merged features 1e-4",
    ),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""


def arrangement(case: Choice) -> tuple[tr.VisionZip, int]:
    """The method and the number of tokens; the recorded class token is not among ours."""
    patches = case.settings["dominant"] - 1
    merged = case.settings["contextual"]
    return tr.VisionZip(contextual=merged / (patches + merged)), patches + merged


def recorded(case: Choice, i: int) -> tuple[list[int], Tensor]:
    """What sample i keeps, in reading order, and what it contains; patches count from 0."""
    dominant = [at - 1 for at in case.settings["kept_dominant_sorted_incl_cls0"][i][1:]]
    targets = [at - 1 for at in case.settings["contextual_targets"][i]]
    kept, rows = dominant + targets, case.tensors["output"][i, 1:]
    order = sorted(range(len(kept)), key=kept.__getitem__)
    return [kept[j] for j in order], rows[order]


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("visionzip")
    assert len(own("visionzip")) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_scores_give_the_recorded_tokens(case: Choice) -> None:
    """The dominant set, the targets, and what is merged into them, of the tower's own features."""
    strategy, k = arrangement(case)
    hidden = tower(case).hidden_states[case.settings["vision_select_layer"]][:, 1:]
    given = tokens(
        hidden,
        class_attention=case.tensors["cls_attention_sum"][:, None],
        tower_keys=case.tensors["metric_layer_m2"][:, 1:],
    )
    plan = strategy.plan(given, [k] * len(hidden))
    for i, (mine, rows) in enumerate(zip(plan.keep.tolist(), plan.merge(hidden), strict=True)):
        theirs, contents = recorded(case, i)
        assert mine == theirs
        assert (rows - contents).abs().max() <= 1e-4


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_whole_model_gets_the_recorded_tokens(case: Choice) -> None:
    """From the pixels on; behind an identity the decoder gets what the original's encoder says."""
    strategy, k = arrangement(case)
    with tr.reduce(llava(case), strategy, tr.Single(0, k / 576)) as reduction, torch.no_grad():
        rows = entering(reduction.model, prompt(case), k)
    for i, mine in enumerate(reduction.kept[0]):
        theirs, contents = recorded(case, i)
        assert mine.tolist() == theirs
        assert (rows[i] - contents).abs().max() <= 1e-4


def test_a_mean_of_all_would_be_noticed() -> None:
    case = CASES[0]
    output = case.tensors["output"][0, 1:]
    merged = case.settings["contextual"]
    assert output[-merged:].norm(dim=1).mean() > 1.5 * output[:-merged].norm(dim=1).mean()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_outside_0_to_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"{share} is not a share"):
        tr.VisionZip(contextual=share)


def test_tokens_merge_within_their_own_picture() -> None:
    """Where each of two pictures has a target, nothing goes from one to the other."""
    from tokenreduce.testing.choices import GRIDS, tokens_of

    given = tokens_of(GRIDS[2:3])
    plan = tr.VisionZip(contextual=1.0).plan(given, [9])
    assert plan.group is not None
    image = given.places.image[0]
    assert torch.equal(image[plan.keep[0]][plan.group[0]], image)
