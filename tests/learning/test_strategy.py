"""Strategies that own parameters: gradients reach them, and inference does not notice."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import tokenreduce as tr
from tokenreduce.learning.gate import gated, soft_top
from tokenreduce.testing import laws
from tokenreduce.testing.batches import batch
from tokenreduce.testing.choices import GRIDS, LINES, tokens_of
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.trial import Replay

LLAVA = FAMILIES["llava"]
SCHEDULE = tr.Explicit((1, 3), (0.5, 0.2))


@dataclass(eq=False)
class Mixer(tr.LearnedStrategy):
    """Every slot contains the kept token and a learned share of the mean."""

    def build(self, width):
        self.share = nn.Parameter(torch.tensor(0.1))

    def decide(self, tokens, budget):
        plan = tr.select(tokens.hidden.float().norm(dim=-1), tokens, budget)
        among = tokens.valid.float()
        mean = among / among.sum(dim=1, keepdim=True).clamp(min=1)
        own = nn.functional.one_hot(plan.keep, tokens.valid.shape[1]).float()
        return replace(plan, content=tr.Mix(own * (1 - self.share) + mean[:, None] * self.share))

    def scheduler(self):
        return tr.Single(1, 0.5)


def trained_step(model, strategy, given, scheduler=SCHEDULE):
    """Loss and gradients of one step, of the model and of the strategy."""
    model.zero_grad()
    with tr.reduce(model, strategy, scheduler) as reduction:
        loss = model(**given.inputs, labels=given.labels).loss
        loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, reduction


# -- the soft choice and its gate ------------------------------------------------------------------


def test_soft_shares_sum_to_the_budget():
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3
    among = torch.arange(40) < torch.tensor([40, 12, 1, 0, 30])[:, None]
    k = torch.tensor([[10], [3], [1], [0], [29]])
    for temperature in (0.05, 1.0, 20.0):
        soft = soft_top(scores, among, k, temperature)
        assert (soft >= 0).all()
        assert (soft <= 1).all()
        sums = soft.masked_fill(~among, 0).sum(1)
        torch.testing.assert_close(sums, k[:, 0].float(), atol=1e-3, rtol=1e-4)
        assert torch.equal(soft[2:4], torch.ones(2, 40))  # everything stays
        order = soft[0].argsort(descending=True, stable=True)[:10].sort().values
        best = scores[0].argsort(descending=True)[:10].sort().values
        assert temperature < 1 or torch.equal(order, best)
    hard = soft_top(scores[:1], among[:1], k[:1], 1e-3)
    assert set(hard[0].gt(0.5).nonzero()[:, 0].tolist()) == set(best.tolist())


def test_the_gradient_of_a_soft_share_is_that_of_finite_differences():
    scores = torch.tensor([[0.3, -1.2, 0.8, 2.0, -0.4, 50.0]])
    among, k = torch.tensor([[True] * 5 + [False]]), torch.tensor([[2]])
    for temperature in (0.5, 2.0):
        leaf = scores.clone().requires_grad_()
        soft = soft_top(leaf, among, k, temperature)
        for i in range(5):
            (mine,) = torch.autograd.grad(soft[0, i], leaf, retain_graph=True)
            step = 0.02
            for j in range(6):
                nudge = torch.zeros_like(scores)
                nudge[0, j] = step
                up, down = (soft_top(scores + s * nudge, among, k, temperature) for s in (1, -1))
                assert abs(mine[0, j] - (up - down)[0, i] / (2 * step)) < 2e-3
            assert abs(mine.sum()) < 1e-5  # raising every score alike changes nothing


def test_a_straight_through_gate_is_one_and_has_the_soft_gradient():
    for samples in (GRIDS, LINES):
        tokens = replace(tokens_of(samples), learning=True)
        budget = tuple(n // 2 for n in tokens.counts)
        scores = torch.randn(tokens.valid.shape, generator=torch.Generator().manual_seed(3))
        scores = (20 * scores).requires_grad_()
        plan = tr.select(scores, tokens, budget)
        hard = gated(plan, scores, tokens, "straight_through")
        soft = gated(plan, scores, tokens, "soft")
        assert torch.equal(hard.gate.value, torch.ones(plan.keep.shape))
        assert not torch.equal(soft.gate.value, hard.gate.value)
        weight = torch.randn(plan.keep.shape, generator=torch.Generator().manual_seed(4))
        values = hard.gate.value, soft.gate.value
        grads = [torch.autograd.grad((value * weight).sum(), scores)[0] for value in values]
        assert torch.equal(*grads)
        assert grads[0].abs().sum() > 0
        assert not grads[0][~tokens.valid].any()
        assert not grads[0][tokens.places.separator].any()
        assert torch.equal(hard.merge(tokens.hidden), plan.merge(tokens.hidden))


def test_behind_a_shut_gate_stands_the_mean():
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    gate = torch.tensor([[1.0, 0.0]])
    plan = tr.Plan(torch.tensor([[1, 3]]), gate=tr.Gate(gate))
    assert plan.changes
    assert not plan.merges
    torch.testing.assert_close(plan.merge(x)[0], torch.stack([x[0, 1], torch.zeros(3)]))
    plan = replace(plan, gate=tr.Gate(gate, torch.full((1, 4), 0.25)))
    torch.testing.assert_close(plan.merge(x)[0], torch.stack([x[0, 1], x[0].mean(0)]))


def test_a_plan_as_data_holds_no_graph():
    gate = torch.ones(1, 2, requires_grad=True) * 1
    plan = tr.Plan(torch.tensor([[0, 1]]), gate=tr.Gate(gate))
    assert not plan.detach().gate.value.requires_grad
    plain = tr.Plan(torch.tensor([[0, 1]]))
    assert plain.detach() is plain


# -- in a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "llava_next"])
def test_the_loss_reaches_the_scorer_and_the_model_does_not_notice(family, text):
    """Straight through: loss and the model's gradients are, to the bit, those without a gate."""
    family = FAMILIES[family]
    model, given = family.model().train(), batch(family, (1, 0, 2))
    strategy = tr.ScorerMLP(hidden=8, text=text)
    loss, grads, reduction = trained_step(model, strategy, given)
    for name, parameter in strategy.named_parameters():
        assert parameter.grad is not None, name
        if name != "last.bias":  # raising every score alike changes nothing
            assert parameter.grad.abs().max() > 0, name
    again = Replay(reduction.plans, reduction.stops)
    assert all(plan.gate is not None for plan in again.plans.values())
    again.plans = {i: replace(p, gate=None) for i, p in again.plans.items()}
    plain_loss, plain, _ = trained_step(model, again, given, None)
    assert torch.equal(loss, plain_loss)
    assert grads.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.equal(grads[name], gradient), name


def test_the_gradient_is_that_of_shutting_the_gates_a_little():
    """The model's loss, as a function of a soft gate, by finite differences."""
    model, given = LLAVA.model().double(), batch(LLAVA, (1,))
    given.inputs["pixel_values"] = given.inputs["pixel_values"].double()
    strategy = tr.ScorerMLP(hidden=8, gate="soft", temperature=2.0).train()
    _, _, reduction = trained_step(model, strategy, given, tr.Single(1, 0.5))
    kept = reduction.kept[1][0]

    def loss():
        with tr.reduce(model, strategy, tr.Single(1, 0.5)) as again:
            found = model(**given.inputs, labels=given.labels).loss.item()
        assert torch.equal(again.kept[1][0], kept)
        return found

    weight = strategy.last.weight
    gradient, step = weight.grad.clone(), 2e-3
    for i in gradient[0].abs().topk(3).indices:
        before = weight.data[0, i].item()
        ends = []
        for sign in (1, -1):
            weight.data[0, i] = before + sign * step
            ends.append(loss())
        weight.data[0, i] = before
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient[0, i].item(), rel=0.05)


def test_a_soft_gate_acts_in_training_alone():
    given = batch(LLAVA, (1, 2))
    logits = {}
    for gate in ("straight_through", "soft", "none"):
        model, strategy = LLAVA.model(), tr.ScorerMLP(gate=gate)
        strategy.silence_untrained()
        with tr.reduce(model, strategy, SCHEDULE):
            found = [model(**given.inputs).logits]  # gradients are on, nobody trains
            found.append(model.train()(**given.inputs).logits)
            found.append(model.eval()(**given.inputs).logits)
            strategy.train()
            found.append(model(**given.inputs).logits)
            with torch.no_grad():
                found.append(model(**given.inputs).logits)
        logits[gate] = found
    plain = logits["none"][0]
    for gate, found in logits.items():
        for i, mine in enumerate(found):
            faded = gate == "soft" and i in (1, 3)
            assert torch.equal(mine, plain) != faded, (gate, i)


def test_no_graph_outlives_the_pass():
    model, given = LLAVA.model().train(), batch(LLAVA, (1,))
    _, _, reduction = trained_step(model, tr.ScorerMLP(), given)
    assert not any(plan.gate.value.requires_grad for plan in reduction.plans.values())


def test_frozen_parameters_need_no_gate():
    model, strategy = LLAVA.model().train(), tr.ScorerMLP()
    strategy.materialize(32)
    strategy.requires_grad_(False)
    _, _, reduction = trained_step(model, strategy, batch(LLAVA, (1,)))
    assert all(plan.gate is None for plan in reduction.plans.values())


def test_the_model_keeps_its_parameters_for_itself():
    model = LLAVA.model()
    names, weights = [n for n, _ in model.named_modules()], list(model.state_dict())
    with tr.reduce(model, tr.ScorerMLP(), tr.Single(0, 1.0)) as reduction:
        assert [n for n, _ in model.named_modules()] == names
        assert list(model.state_dict()) == weights
        assert [id(p) for p in reduction.parameters()] == [
            id(p) for p in reduction.strategy.parameters()
        ]
        twin = copy.deepcopy(model)
    assert len(list(reduction.parameters())) == 6
    assert torch.equal(
        twin(**batch(LLAVA, (1,)).inputs).logits, model(**batch(LLAVA, (1,)).inputs).logits
    )
    with tr.reduce(model, "random", tr.Single(0, 1.0)) as reduction:
        assert not list(reduction.parameters())


def test_a_batch_without_pictures_gives_no_gradient():
    model, strategy = LLAVA.model().train(), tr.ScorerMLP()
    with tr.reduce(model, strategy, SCHEDULE):
        given = batch(LLAVA, (0, 0))
        model(**given.inputs, labels=given.labels).loss.backward()
        assert all(p.grad is None for p in strategy.parameters())
        given = batch(LLAVA, (1,))
        model(**given.inputs, labels=given.labels).loss.backward()
        assert all(p.grad is not None for p in strategy.parameters())


def test_autocast_and_bf16_rank_in_fp32():
    model, given = LLAVA.model().train(), batch(LLAVA, (1, 2))
    strategy = tr.ScorerMLP()
    with tr.reduce(model, strategy, SCHEDULE), torch.autocast("cpu", dtype=torch.bfloat16):
        seen = []
        strategy.last.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        model(**given.inputs, labels=given.labels).loss.backward()
    assert seen == [torch.float32] * 2
    assert all(p.grad.dtype == torch.float32 for p in strategy.parameters())
    model.to(torch.bfloat16)
    inputs = given.inputs | {"pixel_values": given.inputs["pixel_values"].bfloat16()}
    with tr.reduce(model, strategy, SCHEDULE):
        model(**inputs, labels=given.labels).loss.backward()
    assert seen[2:] == [torch.float32] * 2


@pytest.mark.parametrize("gate", ["straight_through", "soft"])
@pytest.mark.parametrize("text", [False, True])
def test_the_checkpointing_law_holds_with_gates(gate, text):
    trial = laws.trial(tr.ScorerMLP(hidden=8, text=text, gate=gate), "llava", "explicit")
    laws.checkpointing_changes_nothing(trial)
    # and it has compared something
    assert all(p.grad is not None for p in trial.strategy.parameters())


def test_a_learned_mixture_learns_and_obeys_the_laws():
    laws.check_choices(Random())  # of any learned strategy, not of one class
    model, given = LLAVA.model().train(), batch(LLAVA, (1, 2))
    strategy = Mixer()
    with tr.reduce(model, strategy) as reduction:
        model(**given.inputs, labels=given.labels).loss.backward()
    assert strategy.share.grad.abs() > 0
    assert not reduction.plans[1].mix.requires_grad
    laws.checkpointing_changes_nothing(laws.trial(Mixer(), "llava"))


@dataclass(eq=False)
class Random(tr.LearnedScorer):
    def build(self, width):
        self.direction = nn.Parameter(torch.randn(width))

    def score(self, tokens):
        return tokens.hidden.float() @ self.direction


# -- building, and saying what is wrong ------------------------------------------------------------


def test_untrained_parameters_come_from_the_seed_alone():
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        strategy = tr.ScorerMLP(hidden=8)
        tr.reduce(LLAVA.model(), strategy, tr.Single(0, 1.0), seed=seed).remove()
        torch.manual_seed(noise)
        assert torch.equal(torch.get_rng_state(), state)
        strategy2 = tr.ScorerMLP(hidden=8)
        strategy2.materialize(32, seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(strategy.visual.weight, strategy2.visual.weight)
        found.append(strategy.visual.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_untrained_use_is_said_once():
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    strategy = tr.ScorerMLP()
    with tr.reduce(model, strategy, SCHEDULE), torch.no_grad():
        with pytest.warns(tr.ReductionWarning, match="this ScorerMLP is untrained"):
            model(**given.inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**given.inputs)


def test_training_and_what_is_trained_are_not_complained_of():
    model, given = LLAVA.model().train(), batch(LLAVA, (1,))
    strategy = tr.ScorerMLP()
    with tr.reduce(model, strategy, SCHEDULE) as reduction, warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(reduction.parameters(), lr=1e-3)
        assert not strategy.trained
        model(**given.inputs, labels=given.labels).loss.backward()
        optimizer.step()
        assert strategy.trained
        model.eval()
        with torch.no_grad():
            model(**given.inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "strait_through"}, "no gate 'strait_through'; did you mean 'straight_through'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
    ],
)
def test_odd_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tr.ScorerMLP(**options)


def test_a_dataclass_that_torch_cannot_tell_apart_is_refused():
    @dataclass
    class Equal(Random):
        pass

    with pytest.raises(TypeError, match=r"Equal must be a @dataclass\(eq=False\)"):
        Equal()


def test_another_width_is_refused_and_leaves_nothing_behind():
    strategy, model = tr.ScorerMLP(), LLAVA.model()
    strategy.materialize(16)
    with pytest.raises(ValueError, match="built for a model of width 16, and this one has 32"):
        tr.reduce(model, strategy)
    tr.reduce(model, "none").remove()


def test_what_is_not_built_has_nothing_to_save_or_to_train(tmp_path):
    for call in (
        lambda s: s.save_weights(tmp_path / "x.safetensors"),
        lambda s: s.add_to_optimizer(torch.optim.SGD([torch.zeros(1)], lr=1.0)),
    ):
        with pytest.raises(ValueError, match="has no parameters yet: reduce a model"):
            call(tr.ScorerMLP())


def test_weights_are_read_from_a_file(tmp_path):
    first = tr.ScorerMLP(hidden=8)
    first.materialize(32, seed=5)
    path = first.save_weights(tmp_path / "scorer.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["scorer.safetensors"]
    second = tr.ScorerMLP(hidden=8, weights=str(path))
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it has weights: nobody complains
        with tr.reduce(model, second, SCHEDULE):
            model(**given.inputs)
    for name, x in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], x)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    first = tr.ScorerMLP(hidden=8)
    first.materialize(32)
    path = str(first.save_weights(tmp_path / "scorer.safetensors"))
    (tmp_path / "text.safetensors").write_text("no tensors")
    model = LLAVA.model()
    for strategy, kind, message in (
        (tr.ScorerMLP(hidden=9, weights=path), ValueError, r"has last.weight \(1, 8\).*\(1, 9\)"),
        (tr.ScorerMLP(8, text=True, weights=path), ValueError, "has question.weight not at all"),
        (
            tr.ScorerMLP(8, weights=str(tmp_path / "text.safetensors")),
            ValueError,
            "is no safetensors file",
        ),
    ):
        with pytest.raises(kind, match=message) as refusal:
            tr.reduce(model, strategy)
        assert "\n" not in str(refusal.value)
        tr.reduce(model, "none").remove()  # nothing of the refused one is left on the model
    with pytest.raises(FileNotFoundError, match=r"there is no file .*safetensorsx"):
        tr.ScorerMLP(8, weights=path + "x")  # before any model is there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.half, r"has last\.bias in float16, but a ScorerMLP has it in float32"),
        (torch.Tensor.double, r"has last\.bias in float64"),
        (torch.Tensor.int, r"has last\.bias in int32"),
        (lambda x: x * torch.nan, r"has NaN or infinity in last\.bias"),
        (lambda x: x - torch.inf, r"has NaN or infinity in last\.bias"),
    ],
)
def test_weights_of_another_dtype_or_without_sense_are_refused(tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    first = tr.ScorerMLP(hidden=8)
    first.materialize(32)
    path = tmp_path / "scorer.safetensors"
    tensors = load_file(first.save_weights(path))
    save_file({n: change(x) if n == "last.bias" else x for n, x in tensors.items()}, path)
    strategy = tr.ScorerMLP(hidden=8, weights=str(path))
    with pytest.raises(ValueError, match=message) as refusal:
        tr.reduce(LLAVA.model(), strategy)
    assert "\n" not in str(refusal.value)


def test_weights_are_saved_in_fp32_and_say_when_they_are_not_finite(tmp_path):
    first = tr.ScorerMLP(hidden=8)
    first.materialize(32)
    first.bfloat16()  # as a model that is cast as a whole
    path = first.save_weights(tmp_path / "scorer.safetensors")
    second = tr.ScorerMLP(hidden=8, weights=str(path))
    second.materialize(32)
    assert torch.equal(second.visual.weight, first.visual.weight.float())
    with torch.no_grad():
        second.last.bias.fill_(torch.inf)
    with pytest.warns(tr.ReductionWarning, match=r"last\.bias of this ScorerMLP is not finite"):
        second.save_weights(path)


# -- with an optimiser that somebody else steps ----------------------------------------------------


def test_a_joined_group_is_cleared_after_a_step():
    strategy = Random()
    strategy.materialize(4)
    other = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([other], lr=1.0)
    strategy.add_to_optimizer(optimizer, lr=0.5)
    before = strategy.direction.detach().clone()
    (strategy.direction.sum() + other.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(before - strategy.direction, torch.full((4,), 0.5))
    assert strategy.direction.grad is None
    assert other.grad is not None


def test_transformers_trainer_trains_it(tmp_path):
    from transformers import Trainer

    from tests.integrations.test_trainer import collate, rows, settings

    model, strategy = LLAVA.model(), tr.ScorerMLP(hidden=8)
    arguments = settings(tmp_path, max_steps=3, save_strategy="no")
    trainer = Trainer(model, arguments, train_dataset=rows(12), data_collator=collate)
    steps = []
    with tr.reduce(model, strategy, tr.Single(1, 0.5)):
        before = strategy.visual.weight.detach().clone()
        trainer.create_optimizer()
        strategy.add_to_optimizer(trainer.optimizer, lr=1e-2)
        trainer.optimizer.register_step_pre_hook(
            lambda *_: steps.append(strategy.visual.weight.grad.norm().item())
        )
        trainer.train()
    assert len(steps) == 3
    assert all(0 < norm < 1 for norm in steps)
    assert strategy.visual.weight.grad is None
    assert (strategy.visual.weight - before).abs().max() > 1e-3


RANK = """
import sys
import torch, torch.distributed as dist
import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

rank, where = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
family = FAMILIES["llava"]
model, strategy = family.model().train(), tr.ScorerMLP(hidden=8)
wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
given = batch(family, (1, 1) if rank else (0, 0))
with tr.reduce(wrapped, strategy, tr.Single(1, 0.5)):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    strategy.add_to_optimizer(optimizer, lr=1.0)
    wrapped(**given.inputs, labels=given.labels).loss.backward()
    mine = strategy.visual.weight.grad
    mine = torch.zeros_like(strategy.visual.weight) if mine is None else mine.clone()
    before = strategy.visual.weight.detach().clone()
    optimizer.step()
    dist.all_reduce(mine)
    moved = before - strategy.visual.weight.detach()
    assert mine.abs().max() > 0
    torch.testing.assert_close(moved, mine / 2, rtol=1e-3, atol=1e-6)
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_average_although_one_has_no_picture(tmp_path):
    command = [sys.executable, "-c", RANK]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said.decode()[-2000:]
