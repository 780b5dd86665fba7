"""TRL's `SFTTrainer` around a reduced model, from a data set of pictures and conversations.

It replaces the model's forward by one that takes the decoder's hidden states and the labels to a
fused head, and counts accuracy and entropy there.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.training.loops import Look, Step
from tests.training.reference import SCHEDULE, assert_close, assert_same, recorded, replayed
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.checkpoints import write

pytest.importorskip("trl", minversion="1.15", reason="TRL's fused head needs trl >= 1.15")
datasets = pytest.importorskip("datasets", minversion="4.7", reason="TRL reads a datasets.Dataset")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # TRL and PEFT of their own options
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SLOW = pytest.mark.slow
NAMES = ("qwen2_5_vl", "smolvlm", "gemma3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Any:
        if not (made / name).is_dir():
            write(name, made / name)
        return made / name

    return get


def rows(kind: str) -> Any:
    """Four pictures, each with a question and an answer of its own length."""
    draw = np.random.default_rng(0)
    shapes = [(48, 64), (64, 48), (64, 64), (48, 48)]
    shown = [Image.fromarray(draw.integers(0, 255, (*s, 3), dtype=np.uint8)) for s in shapes]
    asked = [[{"role": "user", "content": "What is this ?"}] for _ in shown]
    said = [
        [{"role": "assistant", "content": " ".join(["How many are there"] * n)}]
        for n in (1, 3, 2, 4)
    ]
    columns: dict[str, list[Any]] = {"images": [[picture] for picture in shown]}
    if kind == "messages":
        columns["messages"] = [a + b for a, b in zip(asked, said, strict=True)]
    else:
        columns |= {"prompt": asked, "completion": said}
    return datasets.Dataset.from_dict(columns)


def trainer(folder: Any, tmp_path: Any, kind: str, model: Any = None, **options: Any) -> Any:
    """A stock script's trainer."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    outside = {name: options.pop(name, None) for name in ("compute_loss_func", "peft_config")}
    arguments = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_length": None,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    } | options
    if model is None:
        model = AutoModelForImageTextToText.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the trainer, not about what is in it
        return SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=str(tmp_path), **arguments),
            train_dataset=rows(kind),
            eval_dataset=rows(kind),
            processing_class=AutoProcessor.from_pretrained(folder),
            **outside,
        )


def train(loop: Any) -> dict[str, list[float]]:
    """What the logs say of every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.train()
    logs = [row for row in loop.state.log_history if "loss" in row]
    wanted = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    return {name: [float(row[name]) for row in logs] for name in wanted}


@pytest.mark.parametrize(("logits", "kind"), [("full", "messages"), ("text", "completion")])
@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(n, marks=SLOW) for n in NAMES[1:])])
def test_steps_are_those_of_the_masked_reference(folder, tmp_path, name, logits, kind):
    steps = Step(), Step()
    loop = trainer(folder(name), tmp_path, kind)
    loop.add_callback(Look(steps[0]))
    with (
        tr.reduce(loop.model, "pyramid_drop", SCHEDULE, positions="keep", logits=logits) as cut,
        recorded(loop.model, cut) as kept,
    ):
        follow(loop, cut)
        ours = train(loop)
        assert cut.report.applied == [True, True]
    assert all("tokenreduce/kept_share" in x for x in loop.state.log_history if "loss" in x)
    other = trainer(folder(name), tmp_path, kind)
    other.add_callback(Look(steps[1]))
    with replayed(other.model, kept):
        theirs = train(other)
    assert len(ours["loss"]) == 2
    assert ours["num_tokens"] == theirs["num_tokens"]
    for entry in ("loss", "entropy", "mean_token_accuracy"):
        torch.testing.assert_close(ours[entry], theirs[entry], atol=2e-5, rtol=2e-5)
    assert_same(steps[0].gradients, steps[1].gradients, share=1e-3)


@pytest.mark.slow
def test_reduce_before_the_trainer_is_made(folder, tmp_path):
    """As in the documentation: reduce, then hand the model over."""
    from transformers import AutoModelForImageTextToText

    name, found = folder("qwen2_5_vl"), []
    for first in (True, False):
        model = AutoModelForImageTextToText.from_pretrained(name)
        if not first:
            loop = trainer(name, tmp_path, "completion", model)
        with tr.reduce(model, "pyramid_drop", SCHEDULE) as reduction:
            if first:
                loop = trainer(name, tmp_path, "completion", model)
            follow(loop, reduction)
            found.append(train(loop))
    assert found[0] == found[1]


OUTSIDE = {
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"compute_loss_func": lambda out, labels, **_: out.logits.square().mean()},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", OUTSIDE)
def test_losses_that_need_logits(folder, tmp_path, what):
    """TRL runs the model twice then, without labels and with: both keep the same tokens."""
    name = folder("qwen2_5_vl")
    loop = trainer(name, tmp_path, "completion", max_steps=1, **OUTSIDE[what])
    with (
        tr.reduce(loop.model, "pyramid_drop", SCHEDULE, positions="keep") as reduction,
        recorded(loop.model, reduction) as kept,
    ):
        follow(loop, reduction)
        ours = train(loop)
    assert len(kept) == 2
    for layer, rows_ in kept[0].items():
        assert all(map(torch.equal, rows_, kept[1][layer]))
    other = trainer(name, tmp_path, "completion", max_steps=1, **OUTSIDE[what])
    with replayed(other.model, kept):
        theirs = train(other)
    assert_close(ours["loss"], theirs["loss"])
    refused = trainer(name, tmp_path, "completion", **OUTSIDE[what])
    with (
        tr.reduce(refused.model, "none", logits="text") as reduction,
        pytest.raises(ValueError, match=rf'{what}.* reduce with logits="full"'),
    ):
        follow(refused, reduction)


def test_evaluation(folder, tmp_path):
    name = folder("qwen2_5_vl")
    loop, other = (trainer(name, tmp_path, "completion") for _ in range(2))
    with (
        tr.reduce(loop.model, "pyramid_drop", SCHEDULE, positions="keep", logits="text") as cut,
        recorded(loop.model, cut) as kept,
    ):
        follow(loop, cut)
        ours = loop.evaluate()
    with replayed(other.model, kept):
        theirs = other.evaluate()
    for entry in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert_close(ours[entry], theirs[entry])


@pytest.mark.slow
def test_lora_inside_the_trainer(folder, tmp_path):
    peft = pytest.importorskip("peft")
    name, found = folder("qwen2_5_vl"), []
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q_proj|k_proj|v_proj)", lora_dropout=0.0
    )
    for reduced in (True, False):
        torch.manual_seed(0)
        loop = trainer(name, tmp_path, "completion", peft_config=config)
        core = loop.model.get_base_model()
        before = {n: p.clone() for n, p in core.named_parameters() if "lora" not in n}
        if reduced:
            with (
                tr.reduce(loop.model, "pyramid_drop", SCHEDULE, positions="keep") as reduction,
                recorded(core, reduction) as kept,
            ):
                follow(loop, reduction)
                found.append(train(loop))
        else:
            with replayed(core, kept):
                found.append(train(loop))
        after = dict(core.named_parameters())
        assert all(torch.equal(x, after[n]) for n, x in before.items())
    assert_close(found[0]["loss"], found[1]["loss"])


def test_cut_placeholders_are_an_error(folder, tmp_path):
    """`max_length` counts placeholders: TRL says so, with and without a reduction."""
    loop = trainer(folder("qwen2_5_vl"), tmp_path, "completion", max_length=6)
    with tr.reduce(loop.model, "pyramid_drop", tr.Single(2, 1.0)) as reduction:
        follow(loop, reduction)
        with pytest.raises(ValueError, match="max_length"):
            train(loop)
