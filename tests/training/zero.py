"""One of two processes that train a tiny model under DeepSpeed's ZeRO-3; prints what it found."""

from __future__ import annotations

import sys
from typing import Any

import torch

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

RATE = 0.1
STOPS = tr.Explicit((2, 4), (0.5, 0.25))


def step(name: str, strategy: str) -> tuple[float, float, bool]:
    """How far loss and weights of one step are from those of the whole model, and its choices."""
    import deepspeed
    from deepspeed.runtime.zero import GatheredParameters

    family = FAMILIES[name]
    model, given = family.model().train(), batch(family, (1, 2), seed=3)

    def loss_of(caller: Any, reduced: Any) -> tuple[torch.Tensor, list[Any]]:
        with tr.reduce(reduced, strategy, STOPS) as reduction:
            loss = caller(**given.inputs, labels=given.labels).loss
            return loss, [x.tolist() for x in reduction.kept[4]]

    expected, kept = loss_of(model, model)
    expected.backward()
    wanted = {
        n: p.detach() - RATE * p.grad for n, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        },
    )
    loss, chosen = loss_of(engine, engine)
    engine.backward(loss)
    engine.step()
    far = 0.0
    for n, p in engine.module.named_parameters():
        with GatheredParameters([p]):
            if n in wanted:
                far = max(far, float((p.detach() - wanted[n]).abs().max()))
    return abs(float(loss) - float(expected)), far, kept == chosen


if __name__ == "__main__":
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    for strategy in sys.argv[2:]:
        off, far, same = step(sys.argv[1], strategy)
        print(f"RESULT {strategy} {off} {far} {same}", flush=True)
