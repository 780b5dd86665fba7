"""CDPruner, against the recorded choices of Theia-4869/CDPruner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import tokenreduce as tr
from tokenreduce.strategies.cdpruner import greedy, likeness_to_question, scaled

from .choices import Choice, choices, llava, own, prompt, tokens, tower

CASES = choices("cdpruner")
PARITY = {
    "k20_two_segments_b1": ("kept, order", "kept"),
    "k32_short_b2": ("kept, order, by a scale over both samples", "not compared, see below"),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""


def relevance(case: Choice) -> Tensor:
    """(b, 576) minus the cosine of CLIP's picture and text embeddings, mean over segments."""
    image, text = (normalize(case.tensors[f"{kind}_embeds"], dim=-1) for kind in ("image", "text"))
    return -(image @ text.T).mean(dim=-1)


def projector(case: Choice) -> nn.Sequential:
    """One for both of the project's own cases."""
    there = any(name.startswith("projector.") for name in case.tensors)
    return (case if there else CASES[0]).projector()


def features(case: Choice) -> Tensor:
    """(b, 576, d) what the original's language model would get."""
    hidden = tower(case).hidden_states[case.settings["vision_select_layer"]][:, 1:]
    with torch.no_grad():
        found: Tensor = projector(case)(hidden)
    return found


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("cdpruner")
    assert len(own("cdpruner")) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_relevance_gives_the_recorded_order(case: Choice) -> None:
    """Scaled as it was recorded: over the whole batch."""
    rows, x, k = relevance(case), features(case), case.settings["visual_token_num"]
    together = scaled(rows.view(1, -1), torch.ones(1, rows.numel(), dtype=torch.bool))
    order = greedy(together.view_as(rows), x, torch.ones_like(rows, dtype=torch.bool), k)
    picked = order.argsort(dim=1, descending=True)[:, :k]
    assert picked.tolist() == case.settings["greedy_order"]
    assert picked.sort(dim=1).values.tolist() == case.settings["kept"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_whole_model_keeps_the_recorded_tokens(case: Choice) -> None:
    """From the pixels on, a sample at a time: a batch of one is scaled as a sample is here."""
    rows, k = relevance(case), case.settings["visual_token_num"]
    model = llava(case)
    model.model.multi_modal_projector = projector(case)
    if len(rows) > 1:
        pytest.skip("recorded with a scale over its two samples, which no sample alone has")
    strategy = tr.CDPruner(relevance=lambda given: rows.to(given.hidden.device))
    with torch.no_grad(), tr.reduce(model, strategy, tr.Single(0, k / 576)) as reduction:
        model(**prompt(case))
    assert [row.tolist() for row in reduction.kept[0]] == case.settings["kept"]


def test_greedy_maximises_the_determinant() -> None:
    """Each choice against all others, with the determinants computed outright."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 14, 6, generator=generator)
    rows = scaled(torch.rand(1, 14, generator=generator), torch.ones(1, 14, dtype=torch.bool))
    order = greedy(rows, x, torch.ones(1, 14, dtype=torch.bool), 6).argsort(descending=True)[0]
    unit = (normalize(x, dim=-1) * rows[..., None])[0].double()
    kernel, chosen = unit @ unit.T, []
    for pick in order[:6].tolist():
        sets = [[*chosen, i] for i in range(14) if i not in chosen]
        best = max(sets, key=lambda s: torch.linalg.det(kernel[s][:, s]).item())
        assert pick == best[-1]
        chosen = best


def test_behind_the_rank_the_most_relevant_follow() -> None:
    """Where the original returns NaN: six dimensions, and more tokens."""
    generator = torch.Generator().manual_seed(4)
    x, rows = torch.randn(1, 14, 6, generator=generator), torch.rand(1, 14, generator=generator)
    plan = tr.CDPruner(relevance=lambda _: rows).plan(tokens(x), [10])
    first = set(tr.CDPruner(relevance=lambda _: rows).plan(tokens(x), [6]).keep[0].tolist())
    mine = set(plan.keep[0].tolist())
    left = rows[0].clone()
    left[sorted(first)] = -1
    assert mine - first == set(left.topk(4).indices.tolist())


def test_relevance_is_the_cosine_with_the_mean_of_the_question() -> None:
    generator = torch.Generator().manual_seed(5)
    x, text = (torch.randn(1, n, 8, generator=generator) for n in (5, 4))
    behind = torch.tensor([[False, True, True, False]])
    given = tokens(x, embedding=x, text_embedding=text, text_behind=behind)
    mean = text[0, 1:3].mean(dim=0)
    expected = torch.stack([torch.dot(v, mean) / (v.norm() * mean.norm()) for v in x[0]])
    torch.testing.assert_close(likeness_to_question(given)[0], expected)


def test_without_a_question_diversity_decides() -> None:
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(6))
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    given = tokens(x, embedding=x, text_embedding=torch.zeros(1, 4, 8), text_behind=nothing)
    even = tr.CDPruner(relevance=lambda t: torch.ones(1, 9)).plan(given, [4])
    assert torch.equal(tr.CDPruner().plan(given, [4]).keep, even.keep)


def test_another_question_keeps_other_tokens() -> None:
    """On a whole model, whose own embeddings say what is relevant."""
    from tokenreduce.testing.batches import batch
    from tokenreduce.testing.models import FAMILIES

    family = FAMILIES["llava"]
    model, given = family.model(), batch(family, (1,))
    kept = []
    for shift in (0, 1):
        ids = given.inputs["input_ids"].clone()
        words = ~given.visual & (ids >= 10)
        ids[words] = 10 + (ids[words] - 10 + 7 * shift) % 40
        with torch.no_grad(), tr.reduce(model, "cdpruner", tr.Single(0, 0.3)) as reduction:
            model(**given.inputs | {"input_ids": ids})
        kept.append(reduction.kept[0][0].tolist())
    assert kept[0] != kept[1]
