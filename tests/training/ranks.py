"""What two processes do together; run by `test_distributed.py`, one process per rank.

    python ranks.py FOLDER        with torch's RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT

Every rank has samples of its own and, beside the parallel model, a plain one under the same
reduction, whose mean loss over all ranks' samples is what the parallel one must compute. Each
finding is how far the two are apart; all of them go to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

SCHEDULE = tr.Explicit(layers=(2, 4), keeps=(0.5, 0.2))
PICTURES = ((1, 0, 2), (2, 1))
TEXT = ((1, 2), (0, 0))
"""Pictures of each rank's samples; of the second, one rank has none at all."""
ORDERS = ("reduce first", "wrap first")
Change = Callable[[Any], Any]


def sharded(model: Any) -> Any:
    """FSDP2 as its documentation has it: every layer, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.get_decoder().layers:
        fully_shard(layer)
    return fully_shard(model)


def replicated(model: Any) -> Any:
    """DDP, with what text alone does not use: the vision tower."""
    return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def frozen(model: Any) -> None:
    """What only pictures pass through."""
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)


def checkpointed(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def compiled(model: Any) -> None:
    """The layers before the stops, which is where it matters."""
    for layer in model.get_decoder().layers[1:4:2]:
        layer.forward = torch.compile(layer.forward, backend="eager")


def nothing(model: Any) -> None:
    """Changes nothing."""


def step(
    wrap: Change,
    order: str,
    family: str = "llava",
    strategy: str = "pyramid_drop",
    logits: Any = "full",
    images: tuple[tuple[int, ...], ...] = PICTURES,
    before: Change = nothing,
    after: Change = nothing,
) -> dict[str, float]:
    """One training step of a parallel model beside a plain one."""
    given = [batch(FAMILIES[family], own, seed=seed) for seed, own in enumerate(images)]
    plain, model = (FAMILIES[family].model().train() for _ in range(2))
    before(plain)
    before(model)
    with tr.reduce(plain, strategy, SCHEDULE, logits=logits):
        losses = [plain(**x.inputs, labels=x.labels).loss for x in given]
    torch.stack(losses).mean().backward()
    wrapped = wrap(model) if order == "wrap first" else model
    reduction = tr.reduce(wrapped, strategy, SCHEDULE, logits=logits)
    if order == "reduce first":
        wrapped = wrap(model)
    after(model)
    mine = given[dist.get_rank()]
    loss = wrapped(**mine.inputs, labels=mine.labels).loss
    loss.backward()
    applied = reduction.report.applied
    reduction.remove()
    assert applied == [n > 0 for n in mine.counts]
    return {
        "loss": (loss.detach() - losses[dist.get_rank()].detach()).abs().item(),
        **_gradients(model, plain),
    }


def _gradients(model: Any, plain: Any) -> dict[str, float]:
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    largest = max(float(x.abs().max()) for x in wanted.values())
    worst = 0.0
    for name, gradient in found.items():
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        scale = max(float(wanted[name].abs().max()), 1e-3 * largest)
        worst = max(worst, float((whole - wanted[name]).abs().max()) / scale)
    return {"gradient": worst, "largest": largest}


def generated(order: str, strategy: str) -> dict[str, float]:
    """`generate` of a sharded model, which FSDP has to be told of."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    prompt = batch(FAMILIES["llava"], (1, 0, 2))
    options = {"max_new_tokens": 4, "do_sample": False}
    plain, model = (FAMILIES["llava"].model() for _ in range(2))
    with tr.reduce(plain, strategy, SCHEDULE):
        wanted = plain.generate(**prompt.inputs, **options)
    if order == "wrap first":
        register_fsdp_forward_method(sharded(model), "generate")
    with tr.reduce(model, strategy, SCHEDULE) as reduction:
        if order == "reduce first":
            register_fsdp_forward_method(sharded(model), "generate")
        found = model.generate(**prompt.inputs, **options)
        assert reduction.report.applied == [True, False, True]
    return {"words": float((found != wanted).sum()), "said": float(found.shape[1])}


def trained(folder: Path, logits: Any) -> dict[str, float]:
    """A stock `Trainer` on both ranks: every sample once, in one step of all."""
    from tests.training.loops import make, run
    from tests.training.reference import MIXED
    from tokenreduce.integrations.trainer import follow

    model = FAMILIES["llava"].model()
    loop, found = make(
        model, folder, images=MIXED, parts=2, gradient_accumulation_steps=1,
        save_strategy="steps", save_steps=1, ddp_find_unused_parameters=True,
    )  # fmt: skip
    assert loop.args.world_size == 2
    with tr.reduce(model, "pyramid_drop", SCHEDULE, positions="keep", logits=logits) as reduction:
        follow(loop, reduction)
        run(loop, found)
    torch.save(found.weights, folder / f"{dist.get_rank()}.pt")
    logs = next(row for row in loop.state.log_history if "loss" in row)
    numbers = {name: value for name, value in logs.items() if isinstance(value, float)}
    return {"items": float(found.items[0]), **numbers}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    for logits in ("full", "text"):
        own = folder / logits
        own.mkdir(exist_ok=True)
        found[f"trainer, {logits}"] = trained(own, logits)
    for order in ORDERS:
        for strategy in ("pyramid_drop", "fastv"):
            found[f"fsdp, {strategy}, {order}"] = step(sharded, order, "llava", strategy)
        found[f"fsdp, text logits, {order}"] = step(sharded, order, logits="text")
        found[f"fsdp, text alone, {order}"] = step(sharded, order, images=TEXT, before=frozen)
        found[f"fsdp, qwen2_vl, {order}"] = step(sharded, order, "qwen2_vl")
        found[f"fsdp, checkpointing, {order}"] = step(sharded, order, after=checkpointed)
        found[f"ddp, pyramid_drop, {order}"] = step(replicated, order)
        found[f"ddp, text alone, {order}"] = step(replicated, order, images=TEXT)
        found[f"generate, fastv, {order}"] = generated(order, "fastv")
    last = ORDERS[-1]
    for strategy in ("sparsevlm", "fastervlm", "cdpruner"):
        found[f"fsdp, {strategy}"] = step(sharded, last, "llava", strategy)
    found["fsdp, generic"] = step(sharded, last, "vipllava")
    found["fsdp, compiled"] = step(sharded, last, "llava", "fastv", after=compiled)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the `training` package
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    main(Path(sys.argv[1]))
