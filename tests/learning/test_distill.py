"""A scorer learns what deep layers attend to, or what the loss of a task needs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import tokenreduce as tr
from tokenreduce.learning.distill import TEACHERS, divergence, ranks
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]
TAUGHT = {"layer": 2, "teacher": "text_attention"}


def batches(first, n, images=(1,) * 8):
    return [dict(batch(LLAVA, images, seed=first + i).inputs) for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("text", [False, True])
def test_what_is_distilled_agrees_better_on_prompts_never_seen(text):
    model, held_out = LLAVA.model(), batches(1000, 3)
    scorer = tr.ScorerMLP(hidden=64, text=text)
    before = tr.agreement(model, scorer, held_out, **TAUGHT)
    log = tr.distill(model, scorer, batches(0, 40), lr=1e-2, **TAUGHT)
    after = tr.agreement(model, scorer, held_out, **TAUGHT)
    assert before < 0.2
    assert after > 0.4
    losses = [row["loss"] for row in log]
    assert len(log) == 40
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:3]) / 3
    assert [row["step"] for row in log] == list(range(40))
    assert log[-1]["agreement"] > log[0]["agreement"] + 0.2
    assert scorer.trained


def test_the_model_is_left_as_it_was():
    model, prompts = LLAVA.model().train(), batches(0, 2, (1, 0, 2))
    model(**prompts[0])  # transformers puts its own hooks on at the first call
    weights = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    scorer = tr.ScorerMLP(hidden=8)
    tr.distill(model, scorer, prompts)
    assert model.training
    assert not scorer.training
    assert all(p.grad is None for p in model.parameters())
    for name, x in model.state_dict().items():
        assert torch.equal(x, weights[name])
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    with pytest.raises(FloatingPointError), torch.no_grad():
        tr.distill(model, scorer, _broken())
    assert model.training
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


def _broken():
    yield batches(0, 1)[0]
    raise FloatingPointError


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "gemma3"])
def test_the_target_is_what_an_eager_layer_attends_to(family, teacher):
    """One step of every teacher, on families of every kind; the targets are checked below."""
    family = FAMILIES[family]
    prompts = [dict(batch(family, (1, 2)).inputs)]
    log = tr.distill(family.model(), tr.ScorerMLP(hidden=8), prompts, teacher=teacher)
    assert len(log) == 1
    assert 0 < log[0]["loss"] < 10


def test_the_teacher_is_the_attention_of_the_plain_model():
    model, given = LLAVA.model("eager"), batch(LLAVA, (1, 2))
    seen = []

    class Seen(tr.ScorerMLP):
        def score(self, tokens):
            return super().score(tokens)

    from tokenreduce.learning.distill import _recording

    scorer = Seen(hidden=8)
    with _recording(model, scorer, None, 4, "attention", None, 0) as watch:
        with torch.no_grad():
            maps = model(**given.inputs, output_attentions=True).attentions[4]
        seen = watch.take()
    assert len(seen) == 1
    scores, target, among = seen[0]
    assert scores.requires_grad
    assert not target.requires_grad
    for i in range(2):
        wanted = maps[i, :, -1, given.visual[i]].mean(0)
        torch.testing.assert_close(target[i, among[i]], wanted, atol=1e-6, rtol=1e-4)


def test_steps_begin_again_and_text_is_left_out():
    model = LLAVA.model()
    prompts = [*batches(0, 2, (1,)), *batches(5, 1, (0, 0))]
    assert len(tr.distill(model, tr.ScorerMLP(hidden=8), prompts)) == 2
    assert len(tr.distill(model, tr.ScorerMLP(hidden=8), prompts, steps=5)) == 5
    for steps in (None, 3):
        with pytest.raises(ValueError, match="no batch had visual tokens"):
            tr.distill(model, tr.ScorerMLP(hidden=8), prompts[2:], steps=steps)


def test_every_stop_of_the_schedule_learns():
    model, scorer = LLAVA.model(), tr.ScorerMLP(hidden=8)
    calls = []
    scorer.materialize(32)
    scorer.last.register_forward_hook(lambda *_: calls.append(1))
    tr.distill(model, scorer, batches(0, 1), scheduler=tr.Explicit((0, 2, 4), (0.5, 0.2, 0.1)))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("strategy", "options", "kind", "message"),
    [
        (tr.Random(), {}, TypeError, "only a LearnedScorer can be taught, not Random"),
        (tr.ScorerMLP(), {"teacher": "atention"}, ValueError, "did you mean 'attention'"),
        (tr.ScorerMLP(), {"layer": 99}, ValueError, "99"),
    ],
)
def test_what_cannot_be_taught_is_refused(strategy, options, kind, message):
    model = LLAVA.model()
    with pytest.raises(kind, match=message):
        tr.distill(model, strategy, batches(0, 1), **options)
    tr.reduce(model, "none").remove()


def test_divergence_and_ranks_are_what_they_are_called():
    scores = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 0.0, 0.0]])
    among = torch.tensor([[True, True, True, False], [True, False, False, False]])
    target = torch.tensor([[0.1, 0.3, 0.6, 5.0], [0.0, 0.0, 0.0, 0.0]])
    share = target[0, :3]
    wanted = (share * (share / scores[0, :3].softmax(0)).log()).sum()
    torch.testing.assert_close(divergence(scores, target, among), wanted)
    assert divergence(share.log()[None], share[None], among[:1, :3]).abs() < 1e-6
    assert ranks(scores, target, among) == pytest.approx(1)
    assert ranks(-scores, target, among) == pytest.approx(-1)
    assert divergence(scores[1:], target[1:], among[1:]) == 0


def test_equal_scores_share_their_ranks():
    """By hand: ranks 1.5, 1.5, 3 against 1, 2, 3; in whatever order the tokens come."""
    scores, target = torch.tensor([[2.0, 2.0, 5.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    among = torch.ones(1, 3, dtype=torch.bool)
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert ranks(scores[:, order], target[:, order], among) == pytest.approx(0.75**0.5)
    assert ranks(torch.ones(1, 3), target, among) == 0  # nothing is ordered


# -- the loss of a task ----------------------------------------------------------------------------

TOKENS, WIDTH, CODES = 16, 32, 8


class Riddle:
    """Every visual token says a code; the two that are marked say the right one, the answer."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.mark, self.codes = self.randn(WIDTH), self.randn(CODES, WIDTH)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def draw(self, n):
        """(n, v, d) pictures, (n,) answers, (n, 2) where the marked tokens are."""
        answer = torch.randint(0, CODES, (n,), generator=self.generator)
        where = torch.rand(n, TOKENS, generator=self.generator).argsort(1)[:, :2]
        wrong = torch.randint(0, CODES, (n, TOKENS), generator=self.generator)
        x = self.codes[wrong] + 0.5 * self.randn(n, TOKENS, WIDTH)
        right = (self.codes[answer] + self.mark)[:, None] + 0.3 * self.randn(n, 2, WIDTH)
        return x.scatter(1, where[..., None].expand(-1, -1, WIDTH), right), answer, where


def answered(model, reduction, riddle, n=32):
    """The loss of `n` riddles, the share right, and the share of marked tokens that were kept."""
    x, answer, where = riddle.draw(n)
    ends = model.get_input_embeddings()(torch.tensor([[9, 10]]).expand(n, -1))
    visual = torch.zeros(n, TOKENS + 2, dtype=torch.bool)
    visual[:, 1:-1] = True
    with reduction.visual(visual):
        whole = torch.cat([ends[:, :1], x, ends[:, 1:]], dim=1)
        logits = model(inputs_embeds=whole).logits[:, -1]
    pairs = zip(where, reduction.kept[0], strict=True)
    kept = torch.stack([torch.isin(w, k).float().mean() for w, k in pairs]).mean()
    return cross_entropy(logits, answer), (logits.argmax(1) == answer).float().mean(), kept


def solved(gate, seed=1, steps=150):
    """(accuracy, share of marked tokens kept) at inference, after training model and scorer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model, riddle = LlamaForCausalLM(config).train(), Riddle(seed)
    scorer = tr.ScorerMLP(hidden=16, gate=gate, temperature=3.0)
    with tr.reduce(model, scorer, tr.Single(0, 0.25)) as reduction:
        groups = [
            {"params": model.parameters(), "lr": 3e-3},
            {"params": reduction.parameters(), "lr": 3e-3},
        ]
        optimizer = torch.optim.AdamW(groups)
        for _ in range(steps):
            optimizer.zero_grad()
            answered(model, reduction, riddle)[0].backward()
            optimizer.step()
        model.eval()
        scorer.silence_untrained()
        with torch.no_grad():
            _, right, kept = answered(model, reduction, riddle, 256)
    return float(right), float(kept)


@pytest.mark.slow
def test_the_loss_of_a_task_teaches_which_tokens_carry_the_answer():
    """Without a gate the scorer keeps what it did: a quarter of the marked tokens, or less."""
    none, through, soft = solved("none"), solved("straight_through"), solved("soft")
    assert none[1] < 0.3
    assert through[1] > none[1] + 0.25
    assert through[0] > none[0] + 0.15
    assert soft[1] > 0.95
    assert soft[0] > 0.95
