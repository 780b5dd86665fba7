"""A pyramid against one stop, attention against choices that read nothing, at equal FLOPs.

    python docs/studies/pyramid.py

Three budgets, without training. The shares of every schedule are solved for, so that each costs the
same; positions stay for all. Writes docs/results/pyramid.json.
"""

from common import Study

import tokenreduce as tr

BUDGETS = (0.7, 0.5, 0.35)
SEEDS = range(5)
RULES = {
    "pyramid": {"rule": "pyramid", "stages": 4},
    "one stop at 2": {"rule": "single", "layer": 2},
    "one stop at 4": {"rule": "single", "layer": 4},
}

if __name__ == "__main__":
    study = Study("pyramid", __doc__)
    for budget in BUDGETS:
        for name, options in RULES.items():
            try:
                schedule = tr.solve(
                    study.shape, visual=study.visual, text=study.text, flops=budget, **options
                )
            except ValueError as error:
                study.record.setdefault("infeasible", {})[f"{name} at {budget}"] = str(error)
                study.write()
                continue
            for strategy in ("pyramid_drop", "stride", "pooling"):
                study.cell(
                    f"{strategy}, {name}, {budget:g} of FLOPs", strategy, schedule, positions="keep"
                )
            for seed in SEEDS if not study.given.smoke else (0,):
                label = f"random {seed}, {name}, {budget:g} of FLOPs"
                study.cell(label, "random", schedule, seed=seed, positions="keep")
