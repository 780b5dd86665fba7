"""Options of a stock script that change how a step runs, and no number of it."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.training.loops import make, run
from tests.training.reference import SCHEDULE, assert_close, assert_same, recorded
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.models import FAMILIES


def step(folder, name="llava", strategy="pyramid_drop", logits="full", **options):
    """What a step computed, and what was kept; the tower's checkpoints ask for other inputs."""
    model = FAMILIES[name].model()
    checkpointing = options.get("gradient_checkpointing", False)
    if checkpointing and options["gradient_checkpointing_kwargs"]["use_reentrant"]:
        model.enable_input_require_grads()  # as PEFT does: reentrant checkpoints want it
    loop, found = make(model, folder, name, **options)
    with (
        tr.reduce(model, strategy, SCHEDULE, positions="keep", logits=logits) as reduction,
        recorded(model, reduction) as kept,
    ):
        follow(loop, reduction)
        run(loop, found)
    return found, kept


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # new name in 5.23
@pytest.mark.parametrize(
    ("name", "strategy", "reentrant"),
    [
        ("llava", "pyramid_drop", False),
        pytest.param("llava", "pyramid_drop", True, marks=pytest.mark.slow),
        pytest.param("qwen2_vl", "fastv", False, marks=pytest.mark.slow),
        pytest.param("qwen2_vl", "fastv", True, marks=pytest.mark.slow),
    ],
)
def test_activation_checkpointing(tmp_path, name, strategy, reentrant):
    options = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    (ours, kept), (theirs, others) = (
        step(tmp_path, name, strategy, "text", parts=2, **more) for more in (options, {})
    )
    assert ours.losses == theirs.losses
    for mine, their in zip(kept, others, strict=True):
        for layer, rows in their.items():
            assert all(map(torch.equal, rows, mine[layer]))
    if reentrant:  # the pictures are no variables, on which such checkpoints give no gradient
        tower = [n for n in theirs.gradients if n not in ours.gradients]
        assert all("vision" in n or "visual" in n for n in tower), tower
        theirs.gradients = {n: g for n, g in theirs.gradients.items() if n in ours.gradients}
    assert len(ours.gradients) > 60
    assert ours.gradients.keys() == theirs.gradients.keys()
    for entry, gradient in theirs.gradients.items():
        assert torch.equal(ours.gradients[entry], gradient), entry


@pytest.mark.parametrize(
    ("name", "logits"),
    [("llava", "text"), pytest.param("qwen2_vl", "full", marks=pytest.mark.slow)],
)
def test_autocast_to_bf16(tmp_path, name, logits):
    """`random` keeps the same tokens: what is left are the products in half the bits."""
    (ours, kept), (theirs, others) = (
        step(tmp_path, name, "random", logits, bf16=bf16) for bf16 in (True, False)
    )
    for layer, rows in others[0].items():
        assert all(map(torch.equal, rows, kept[0][layer]))
    assert ours.losses != theirs.losses
    assert ours.losses == pytest.approx(theirs.losses, rel=0.01)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for entry, gradient in theirs.gradients.items():
        mine = ours.gradients[entry]
        assert mine.dtype == torch.float32
        if gradient.abs().max() > 1e-3:
            alike = torch.cosine_similarity(mine.flatten(), gradient.flatten(), dim=0)
            assert alike > 0.95, f"{entry}: {alike:.3f}"


@pytest.mark.parametrize(
    "strategy", ["pyramid_drop", pytest.param("fastv", marks=pytest.mark.slow)]
)
def test_autocast_ranks_in_fp32(tmp_path, strategy):
    """Scores are of half the bits, ranks are not: nearly all of the choice stays."""
    (ours, kept), (theirs, others) = (step(tmp_path, strategy=strategy, bf16=x) for x in (1, 0))
    assert ours.losses == pytest.approx(theirs.losses, rel=0.05)
    for layer, rows in others[0].items():
        for mine, their in zip(kept[0][layer], rows, strict=True):
            assert len(mine) == len(their)
            assert torch.isin(mine, their).sum() >= 0.8 * len(their)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's, about its own ways
def test_a_compiled_model(tmp_path):
    """`torch_compile=True`: the reduction's decisions stay outside of the graphs."""
    found = []
    torch._dynamo.reset()
    try:
        for options in ({"torch_compile": True, "torch_compile_backend": "eager"}, {}):
            model = FAMILIES["llava"].model()
            decoder = model.get_decoder()
            del decoder.layers[2:]  # for the time that it takes
            decoder.config.num_hidden_layers = 2
            loop, step = make(model, tmp_path, **options)
            with tr.reduce(model, "pyramid_drop", tr.Single(1, 0.2)) as reduction:
                follow(loop, reduction)
                found.append((run(loop, step), reduction.kept[1]))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 2
    finally:
        torch._dynamo.reset()
    (ours, kept), (theirs, others) = found
    assert all(map(torch.equal, kept, others))
    assert_close(ours.losses, theirs.losses)
    assert_same(ours.gradients, theirs.gradients)
