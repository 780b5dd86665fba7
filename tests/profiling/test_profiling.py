"""Measuring, planning and searching: each part of a profile by itself."""

from __future__ import annotations

import json
from itertools import combinations, product
from math import inf, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenreduce as tr
from tokenreduce.cost import DecoderShape, cost
from tokenreduce.data.conversations import shapes_conversations
from tokenreduce.data.encoding import Encoder
from tokenreduce.data.rows import Conversation
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.divergence import jensen_shannon, kullback_leibler
from tokenreduce.profiling import (
    Cells,
    CostTable,
    Measurement,
    Prompt,
    ScheduleEvaluator,
    Sensitivity,
    alone,
    candidates,
    first,
    load_schedule,
    prompts_of,
    refine,
    schedule_of,
    sensitivity,
    topped,
    write_preset,
)
from tokenreduce.profiling.forcing import forced_logits, greedy_answers
from tokenreduce.profiling.refining import neighbours

SHAPE = DecoderShape(6, 64, 172, 4, 4, 16, 100)
PRICES = CostTable(SHAPE, [(100, 10)] * 3 + [(49, 7)])


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(checkpoint_dir())


@pytest.fixture(scope="module")
def prompts(processor: Any) -> list[Prompt]:
    scenes = shapes_conversations(3, "heldout", 4, questions=3)
    asked = (one for scene in scenes for one in alone(scene))
    return prompts_of(asked, Encoder(processor), 10)


@pytest.fixture(scope="module")
def meter(model: Any, processor: Any, prompts: list[Prompt]) -> ScheduleEvaluator:
    return ScheduleEvaluator(model, processor, prompts, "pyramid_drop", "keep", batch=4)


# -- prompts ---------------------------------------------------------------------------------------


def test_a_prompt_ends_where_its_answer_begins(prompts: list[Prompt], processor: Any) -> None:
    assert len(prompts) == 10
    assert [p.picture for p in prompts] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    scene = shapes_conversations(3, "heldout", 1, questions=3)[0]
    turns = zip(scene.messages[::2], scene.messages[1::2], strict=True)
    for prompt, (question, message) in zip(prompts, turns, strict=False):
        said = processor.decode(prompt.given, skip_special_tokens=True).strip()
        assert said == message["content"][0]["text"]
        asked = processor.decode(prompt.inputs["input_ids"], skip_special_tokens=True)
        assert asked.replace(" ", "") == question["content"][-1]["text"].replace(" ", "")
        assert "labels" not in prompt.inputs
        assert prompt.inputs["attention_mask"].shape == prompt.inputs["input_ids"].shape


def test_questions_alone_and_the_first() -> None:
    scene = shapes_conversations(0, "heldout", 1, questions=3)[0]
    parts = list(alone(scene))
    assert [len(p.messages) for p in parts] == [2, 2, 2]
    for part in parts:
        assert [x["type"] for x in part.messages[0]["content"]] == ["image", "text"]
    assert parts[2].messages[1] == scene.messages[5]
    assert first(scene).messages == scene.messages[:2]
    blank = Image.new("RGB", (8, 8))
    later: list[Any] = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]
    two = Conversation("two", (blank, blank), tuple(later * 2))
    assert len(first(two).images) == 1


def test_rows_without_pictures_are_left_out_and_bad_ones_refused(processor: Any) -> None:
    text: Any = {"type": "text", "text": "what is there?"}
    said: Any = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    plain = Conversation("plain", (), ({"role": "user", "content": [text]}, said))
    encode = Encoder(processor)
    with pytest.raises(ValueError, match="no conversation about a picture"):
        prompts_of([plain], encode)
    asked: Any = {"role": "user", "content": [{"type": "image"}, {**text, "text": "<image>"}]}
    bad = Conversation("bad", (Image.new("RGB", (96, 96)),), (asked, said))
    with pytest.raises(ValueError, match=r"bad: placeholder.*bad=skip"):
        prompts_of([bad], encode)
    good = shapes_conversations(0, "heldout", 1)[0]
    assert [p.name for p in prompts_of([plain, bad, good], encode, bad="skip")] == [good.name]


# -- divergences, forced answers -------------------------------------------------------------------


def test_divergences_by_hand() -> None:
    one, other = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert float(kullback_leibler(one, other)) == pytest.approx(1)
    assert float(kullback_leibler(other, one)) == inf
    # middle (3/8, 3/8, 1/4)
    by_hand = 0.5 * log2(0.5 / 0.375) + 0.5 * (0.5 * log2(0.25 / 0.375) + 0.5)
    assert float(jensen_shannon(one, other)) == pytest.approx(by_hand, rel=1e-6)
    assert float(jensen_shannon(other, one)) == pytest.approx(by_hand, rel=1e-6)
    assert float(jensen_shannon(one, one)) == 0
    apart = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert float(jensen_shannon(*apart)) == pytest.approx(1)


def test_forced_logits_are_those_of_one_long_pass(model: Any, meter: ScheduleEvaluator) -> None:
    """In a padded batch, with answers of different lengths."""
    at = [0, 3, 7]
    answers = [(11, 12, 13), (20,), (15, 16)]
    logits = forced_logits(model, meter._inputs(at), answers)
    assert logits.shape[:2] == (3, 3)
    for row, (i, answer) in enumerate(zip(at, answers, strict=True)):
        inputs = {
            k: v[None] if k != "pixel_values" else v for k, v in meter.prompts[i].inputs.items()
        }
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            whole = model(**inputs).logits[0, -len(answer) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(answer)], whole, atol=1e-4, rtol=1e-4)


def test_greedy_answers_end_with_what_ends_them(
    model: Any, meter: ScheduleEvaluator, processor: Any
) -> None:
    answers, logits = greedy_answers(model, meter._inputs([0, 1, 2, 3]), 6)
    for row, answer in enumerate(answers):
        assert answer[-1] == processor.tokenizer.eos_token_id
        assert answer.count(processor.tokenizer.eos_token_id) == 1
        assert logits[row, : len(answer)].argmax(-1).tolist() == list(answer)
    cut, _ = greedy_answers(model, meter._inputs([0, 1, 2, 3]), 1)
    assert cut == [answer[:1] for answer in answers]


# -- the meter -------------------------------------------------------------------------------------


def test_the_whole_model_is_not_apart_from_itself(meter: ScheduleEvaluator) -> None:
    cell = meter.measure(())
    assert cell.jsd < 1e-7
    assert cell.same == 1
    assert cell.right == 1  # the embedded model knows these
    assert cell.nll is not None
    assert 0 <= cell.nll < 0.2


def test_a_measurement_is_what_generation_says(
    model: Any, meter: ScheduleEvaluator, processor: Any
) -> None:
    """Divergence at the first token by hand; right where the greedy answer is the right one."""
    stops = ((1, 0.1),)
    one = ScheduleEvaluator(
        model, processor, meter.prompts, "pyramid_drop", "keep", tokens=1, batch=3
    )
    cell, whole = one.measure(stops), meter.measure(stops)
    apart, rights = [], []
    for prompt in meter.prompts:
        inputs = {k: v[None] if k != "pixel_values" else v for k, v in prompt.inputs.items()}
        with torch.inference_mode():
            full = model(**inputs).logits[0, -1].log_softmax(-1)
            with tr.reduce(model, "pyramid_drop", tr.Single(1, 0.1), positions="keep"):
                less = model(**inputs).logits[0, -1].log_softmax(-1)
                said = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        apart.append(float(jensen_shannon(full, less)))
        new = said[0, inputs["input_ids"].shape[1] :].tolist()
        rights.append(new[: len(prompt.given)] == list(prompt.given))
    assert cell.jsd == pytest.approx(np.mean(apart), rel=1e-3)
    assert cell.each["jsd"] == pytest.approx(apart, abs=1e-4)
    assert 0 < np.mean(rights) < 1, "a case that tells nothing"
    assert whole.right == pytest.approx(np.mean(rights))
    assert whole.each["right"] == [float(x) for x in rights]
    assert 0 < cell.jsd < 1


def test_batches_change_nothing(model: Any, meter: ScheduleEvaluator, processor: Any) -> None:
    alone_ = ScheduleEvaluator(model, processor, meter.prompts, "pyramid_drop", "keep", batch=1)
    mine, theirs = alone_.measure(((2, 0.25),)), meter.measure(((2, 0.25),))
    assert mine.each["jsd"] == pytest.approx(theirs.each["jsd"], abs=2e-5)
    assert mine.right == theirs.right
    assert mine.nll == pytest.approx(theirs.nll, rel=1e-3)


def test_a_right_answer_that_the_whole_model_does_not_give_is_asked_for(
    model: Any, processor: Any, prompts: list[Prompt]
) -> None:
    """Its likelihood is measured, and it counts as wrong as long as it is not said."""
    odd = [Prompt(p.inputs, (17, 18), p.picture, p.name) for p in prompts[:3]]
    mixed = ScheduleEvaluator(model, processor, [*odd, *prompts[3:5]], "pyramid_drop", "keep")
    cell = mixed.measure(())
    assert cell.same == 1
    assert cell.each["right"] == [0, 0, 0, 1, 1]
    assert cell.nll is not None
    assert cell.nll > 1
    unknown = [Prompt(p.inputs, (), p.picture, p.name) for p in prompts[:3]]
    blind = ScheduleEvaluator(model, processor, unknown, "pyramid_drop", "keep").measure(
        ((1, 0.1),)
    )
    assert (blind.right, blind.nll) == (None, None)
    assert "right" not in blind.each
    assert blind.jsd > 0
    with pytest.raises(ValueError, match="measure=right needs right answers"):
        blind.loss("right")


def test_draws_are_averaged(model: Any, processor: Any, prompts: list[Prompt]) -> None:
    def of(seed: int, draws: int, batch: int) -> Measurement:
        made = ScheduleEvaluator(
            model, processor, prompts[:4], "random", None, seed, draws, batch=batch
        )
        return made.measure(((1, 0.2),))

    one, two, both = of(0, 1, 4), of(1, 1, 4), of(0, 2, 4)
    assert one.jsd != pytest.approx(two.jsd)
    assert both.jsd == pytest.approx((one.jsd + two.jsd) / 2, rel=1e-4)
    parts = of(0, 1, 2)  # two batches: the seeds 0 and 1
    order = sorted(range(4), key=lambda i: len(prompts[i].inputs["input_ids"]))
    for place, i in enumerate(order):
        expected = (one if place < 2 else two).each["jsd"][i]
        assert parts.each["jsd"][i] == pytest.approx(expected, rel=1e-2, abs=1e-5)


@pytest.mark.filterwarnings("ignore:the reduction was removed without")
def test_spared_prompts_are_as_the_whole_model(
    model: Any, processor: Any, prompts: list[Prompt]
) -> None:
    spared = ScheduleEvaluator(model, processor, prompts[:2], "pyramid_drop", min_tokens=145)
    assert spared.measure(((0, 0.0),)).jsd < 1e-7
    assert spared.prices.share(((0, 0.0),)) == 1


def test_costs_are_those_of_the_prompts(meter: ScheduleEvaluator) -> None:
    texts = {len(p.inputs["input_ids"]) - 144 for p in meter.prompts}
    assert set(meter.prices.counts) == {(144, text) for text in texts}
    assert sum(meter.prices.counts.values()) == len(meter.prompts)


def test_sums_change_with_weights_and_prompts(
    model: Any, processor: Any, prompts: list[Prompt]
) -> None:
    def sums(asked: list[Prompt]) -> dict[str, str]:
        return ScheduleEvaluator(model, processor, asked, "random").fingerprint()

    before = sums(prompts[:2])
    assert sums(prompts[:2]) == before
    assert sums(prompts[1:3])["prompts"] != before["prompts"]
    weight = next(model.parameters())
    kept = weight.data.clone()
    try:
        weight.data += 1
        assert sums(prompts[:2])["weights"] != before["weights"]
    finally:
        weight.data = kept


@pytest.mark.parametrize("strategy", ["none", "downsample", tr.ToMe(tower="expanded")])
def test_what_drops_nothing_has_no_profile(
    strategy: Any, model: Any, processor: Any, prompts: list[Prompt]
) -> None:
    with pytest.raises(ValueError, match="no stop to profile"):
        ScheduleEvaluator(model, processor, prompts, strategy)


# -- prices, cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(), ((0, 0.5),), ((2, 0.5), (4, 0.0)), ((5, 0.3),)])
def test_costs_are_those_of_the_cost_model(stops: Any) -> None:
    schedule = schedule_of(stops) if stops else ()
    rows = [cost(SHAPE, schedule, v, t) for v, t in [(100, 10)] * 3 + [(49, 7)]]
    expected = sum(row.macs for row in rows) / sum(row.macs_full for row in rows)
    assert PRICES.share(stops) == pytest.approx(expected, rel=1e-12)


def test_prompts_with_too_few_visual_tokens_keep_them() -> None:
    spared = CostTable(SHAPE, PRICES.counts.elements(), min_tokens=50)
    stops = ((1, 0.0),)
    rows = [cost(SHAPE, schedule_of(stops), 100, 10)] * 3 + [cost(SHAPE, (), 49, 7)]
    expected = sum(row.macs for row in rows) / sum(row.macs_full for row in rows)
    assert spared.share(stops) == pytest.approx(expected, rel=1e-12)
    assert spared.share(stops) > PRICES.share(stops)


def cell(stops: Any, jsd: float) -> Measurement:
    return Measurement(stops, jsd, jsd, 1 - jsd, None, None, 0.0)


def test_cells_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cells = Cells(path, {"model": "a", "seed": 0})
    for stops in ((), ((2, 0.5),), ((2, 0.5), (3, 0.25))):
        cells.add(cell(stops, 0.1))
    with path.open("a") as file:
        file.write('{"stops": [[1,')  # killed while it wrote
    again = Cells(path, {"seed": 0, "model": "a"})
    assert list(again) == list(cells)
    assert ((2, 0.5),) in again
    again.add(cell(((1, 0.5),), 0.2))
    assert len(Cells(path, {"model": "a", "seed": 0})) == 4


def test_cells_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Cells(path, {"model": "a", "seed": 0})
    with pytest.raises(ValueError, match="profile of another model, data: use another"):
        Cells(path, {"model": "b", "seed": 0, "data": 1})
    path.write_text("not a profile\n")
    with pytest.raises(ValueError, match="holds a line that is no JSON"):
        Cells(path, {})


def test_measures_are_turned_so_that_less_is_better() -> None:
    one = Measurement((), 0.1, 0.2, 0.9, 0.75, 0.5, 0.0)
    losses = [one.loss(name) for name in ("jsd", "kl", "same", "right", "nll")]
    assert losses == pytest.approx([0.1, 0.2, 0.1, 0.25, 0.5])


# -- planning --------------------------------------------------------------------------------------

FALLING = Sensitivity(
    (0, 1, 2, 3, 4, 5),
    (0.0, 0.25, 0.5),
    {
        (layer, keep): (1 - keep) ** 2 * price
        for layer, price in enumerate((1.0, 0.8, 0.7, 0.3, 0.02, 0.0))
        for keep in (0.0, 0.25, 0.5)
    },
)


def test_the_loss_between_measured_shares_is_on_a_line() -> None:
    assert FALLING.at(0, 0.5) == 0.25
    assert FALLING.at(0, 0.75) == pytest.approx(0.125)
    assert FALLING.at(0, 1.0) == 0
    assert FALLING.at(0, 0.375) == pytest.approx((0.25 + 0.5625) / 2)
    assert FALLING.at(0, 0.0) == 1


def test_each_stop_is_charged_for_what_it_takes_away() -> None:
    assert FALLING.predicted(((2, 0.25),)) == FALLING.loss[2, 0.25]
    both = FALLING.predicted(((2, 0.5), (3, 0.0)))
    assert both == pytest.approx(0.7 * 0.25 + 0.3 * (1 - 0.25))
    uneven = Sensitivity(
        (0, 1), (0.0, 0.5), {(0, 0.5): 0.3, (0, 0.0): 0.2, (1, 0.5): 0, (1, 0.0): 0}
    )
    assert uneven.predicted(((0, 0.0),)) == 0.2
    assert uneven.step(0, 0.5, 0.0) == 0  # a loss that falls is noise, not a gain


def test_sensitivity_counts_from_the_whole_model() -> None:
    def measure(stops: Any) -> Measurement:
        right = 0.9 if not stops else 0.9 - stops[0][0] * (1 - stops[0][1]) / 10
        return Measurement(stops, 0, 0, 0, right, None, 0.0)

    found = sensitivity(measure, [2, 1], [0.0, 0.5], by="right")
    assert found.layers == (1, 2)
    assert found.keeps == (0.0, 0.5)
    assert found.loss[2, 0.0] == pytest.approx(0.2)
    assert found.loss[1, 0.5] == pytest.approx(0.05)


@pytest.mark.parametrize(("layers", "keeps"), [([], [0.5]), ([1], []), ([1], [0.5, 1.0])])
def test_nothing_to_measure_is_refused(layers: Any, keeps: Any) -> None:
    with pytest.raises(ValueError, match="needs layers and shares below 1"):
        sensitivity(lambda stops: cell(stops, 0), layers, keeps)


def every_way(levels: list[float], stops: int) -> Any:
    for n in range(1, stops + 1):
        for layers in combinations(FALLING.layers, n):
            for keeps in product(levels, repeat=n):
                if list(keeps) == sorted(set(keeps), reverse=True):
                    yield tuple(zip(layers, keeps, strict=True))


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("stops", [1, 2, 3])
def test_planning_finds_what_trying_everything_finds(budget: float, stops: int) -> None:
    levels = [0.0, 0.25, 0.5, 0.75]
    ways = [way for way in every_way(levels, stops) if PRICES.share(way) <= budget]
    assert len(ways) > 2
    best = min(FALLING.predicted(way) for way in ways)
    found = candidates(FALLING, PRICES, budget, stops=stops, grid=4)
    assert found[0][0] <= best + 1e-12  # better where the last tokens of the budget are used
    assert (
        found[0][0]
        >= min(FALLING.predicted(topped(way, FALLING, PRICES, budget)) for way in ways) - 1e-12
    )
    assert found == sorted(found)
    for loss, way in found:
        assert PRICES.share(way) <= budget
        assert FALLING.predicted(way) == pytest.approx(loss)
        assert 1 <= len(way) <= stops
        keeps = [keep for _, keep in way]
        assert keeps == sorted(set(keeps), reverse=True)
        schedule_of(way).stops(6)


def test_stops_are_where_they_were_measured() -> None:
    few = Sensitivity((1, 4), (0.0,), {(1, 0.0): 1.0, (4, 0.0): 0.1})
    for _, way in candidates(few, PRICES, 0.6, stops=3, grid=8):
        assert {layer for layer, _ in way} <= {1, 4}


def test_room_in_the_budget_is_used() -> None:
    way = topped(((2, 0.2), (4, 0.0)), FALLING, PRICES, 0.6)
    assert way[0][1] > 0.2
    assert PRICES.share(way) <= 0.6
    more = [(layer, min(1.0, keep + 0.02)) for layer, keep in way]
    assert all(PRICES.share((*way[:i], more[i], *way[i + 1 :])) > 0.6 for i in range(len(way)))


def test_budgets_that_cannot_be_met_are_refused() -> None:
    late = Sensitivity((3, 4), (0.25,), {(3, 0.25): 0.1, (4, 0.25): 0.1})
    with pytest.raises(ValueError, match=r"minimum is 0\.6.* at layer 3, and 0\.4 is asked for"):
        candidates(late, PRICES, 0.4)
    for budget in (0, 1, 1.5):
        with pytest.raises(ValueError, match="budget must lie between 0 and 1"):
            candidates(FALLING, PRICES, budget)


# -- the search around -----------------------------------------------------------------------------


def test_what_is_measured_decides() -> None:
    """The prediction favours late stops; the truth has a stop at layer 1 for free."""
    asked: list[Any] = []

    def measure(stops: Any) -> Measurement:
        asked.append(stops)
        free = any(layer == 1 for layer, _ in stops)
        return cell(stops, FALLING.predicted(stops) * (0.1 if free else 1.0) + 0.01)

    starts = [way for _, way in candidates(FALLING, PRICES, 0.55, stops=2, grid=8)][:2]
    ranked = refine(measure, starts, FALLING, PRICES, 0.55, stops=2, trials=25, step=1 / 8)
    assert len(asked) == len(set(asked)) == len(ranked) <= 2 + 25
    assert ranked[0].jsd == min(c.jsd for c in ranked)
    assert ranked[0].jsd < min(measure(way).jsd for way in starts)
    assert all(PRICES.share(c.stops) <= 0.55 for c in ranked)


def test_without_trials_the_starts_are_ranked() -> None:
    starts = [((2, 0.2),), ((1, 0.3),)]
    ranked = refine(lambda s: cell(s, s[0][0] / 10), starts, FALLING, PRICES, 0.8, trials=0)
    assert [c.stops for c in ranked] == [((1, 0.3),), ((2, 0.2),)]
    with pytest.raises(ValueError, match="none of the schedules to start from"):
        refine(lambda s: cell(s, 0), starts, FALLING, PRICES, 0.1)


@pytest.mark.parametrize("also", [(), (((0, 0.5),),)], ids=["alone", "beside others"])
def test_a_schedule_at_layers_that_were_not_measured_competes_and_is_not_searched_around(also):
    """The paper's schedule stands beside a profile of a few layers, and may be the best."""
    theirs = ((FALLING.layers[-1] + 1, 0.25),)
    ranked = refine(
        lambda way: cell(way, 0 if way == theirs else 0.5),
        [theirs, *also], FALLING, PRICES, 1.0, trials=4,
    )  # fmt: skip
    assert ranked[0].stops == theirs
    assert (len(ranked) > 1) == bool(also)


def test_a_better_neighbour_is_where_the_search_goes_on() -> None:
    """A stop at layer 5 gets to layer 0 or 1, which takes more than one move of two layers."""
    start = topped(((5, 0.0),), FALLING, PRICES, 0.9)
    ranked = refine(
        lambda s: cell(s, s[0][0] / 10), [start], FALLING, PRICES, 0.9, stops=1, trials=12
    )
    assert start[0][0] == 5
    assert ranked[0].stops[0][0] <= 1


def test_neighbours_are_schedules_within_the_budget() -> None:
    way = ((2, 0.3), (4, 0.1))
    around = set(neighbours(way, FALLING, PRICES, 0.6, 3, 1 / 8))
    assert len(around) > 10
    assert way not in around
    assert {len(other) for other in around} == {1, 2, 3}
    for other in around:
        assert PRICES.share(other) <= 0.6
        schedule_of(other).stops(6)


# -- presets ---------------------------------------------------------------------------------------


def test_a_preset_comes_back(tmp_path: Path) -> None:
    path = write_preset(tmp_path, "mine", ((0, 0.8), (4, 0.0)), ["one\nline"])
    assert path == tmp_path / "scheduler" / "mine.yaml"
    assert path.read_text().startswith("# one line\nname: explicit\nlayers: [0, 4]\n")
    assert load_schedule(path) == tr.Explicit(layers=(0, 4), keeps=(0.8, 0.0))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name for an option"):
        write_preset(tmp_path, "../mine", ((0, 0.5),))
    with pytest.raises(ValueError, match="no file"):
        load_schedule(tmp_path / "none.yaml")
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="names no scheduler"):
        load_schedule(other)
    other.write_text("name: explizit\n")
    with pytest.raises(KeyError, match="did you mean 'explicit'"):
        load_schedule(other)
