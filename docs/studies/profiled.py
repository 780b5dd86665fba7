"""A schedule found by `task=profile` against the paper's pyramid, at equal FLOPs.

    python docs/studies/profiled.py --images 80

Profiled on held-out pictures from number 0 on, tested on others (from number 1,000,000 on). Both
schedules have the same strategy, the same rule of positions and as many stops; the found one costs
no more on the test's own prompts. Writes docs/results/profiled.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Study

import tokenreduce as tr
from tokenreduce.config import compose
from tokenreduce.evaluation.intervals import difference
from tokenreduce.evaluation.statistics import sign_flip
from tokenreduce.presets import stops_of
from tokenreduce.profiling import CostTable, schedule_of
from tokenreduce.program.result import commit
from tokenreduce.tasks.profile import profile

ARMS = {
    ("pyramid_drop", "keep"): 192,
    ("fastv", "keep"): 96,
    ("pyramid_drop", "compact"): 96,
    ("random", "keep"): 192,
    ("stride", "keep"): 96,
}
"""Strategies and positions, and questions of their profile; `pyramid_drop` alone has a rule of
positions of its own that is not `keep`."""
SEEDS = range(100, 105)
"""Of what `random` keeps in the test; its profile has seeds from 0 on."""
GIVEN = tr.Pyramid()


def profiled(study: Study, strategy: str, positions: str) -> dict[str, Any]:
    """The profile of an arm, by the task itself; a killed one goes on."""
    words = [
        "task=profile", f"strategy={strategy}", "scheduler=pyramid", f"positions={positions}",
        f"model.id={study.given.model}", "device=cpu", "data.questions=4",
        f"task.samples={ARMS[strategy, positions]}",
    ]  # fmt: skip
    if study.given.smoke:
        words += ["task.samples=4", "task.layers=[2,4]", "task.keeps=[0.5,0.0]", "task.trials=1",
                  "task.candidates=1"]  # fmt: skip
    if study.record["model"] == "embedded":
        words.remove(f"model.id={study.given.model}")
    kind = "smoke/profiles" if study.given.smoke else "profiles"
    numbers = profile(compose(words), Path("outputs") / kind / f"{strategy}_{positions}")
    numbers["commit"] = commit()
    numbers["command"] = f"tokenreduce {' '.join(words)}"
    return {k: v for k, v in numbers.items() if k not in ("cells", "preset", "picture")}


def prices(study: Study) -> CostTable:
    """What schedules cost on the test's prompts."""
    counts = []
    for item in study.items:
        content = [{"type": "image"}, {"type": "text", "text": item.question}]
        text = study.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        ids = study.processor.tokenizer(text)["input_ids"]
        counts.append((study.visual, len(ids) - 1))  # one of them stands for the picture
    return CostTable(study.shape, counts)


def compare(study: Study, strategy: str, positions: str, found: Any) -> dict[str, Any]:
    """Both schedules on the test's questions, paired; over all seeds where there are several."""
    seeds = SEEDS if strategy == "random" else (0,)
    if study.given.smoke:
        seeds = seeds[:1]
    pairs = []
    for seed in seeds:
        label = f"{strategy} {seed}" if strategy == "random" else strategy
        pairs.append([
            study.cell(f"{label}, {positions}, {name}", strategy, way, seed, positions=positions)
            for name, way in (("found", found), ("pyramid", GIVEN))
        ])  # fmt: skip
    ours, theirs = np.mean(np.array(pairs, dtype=float), axis=0)
    changes = [difference(a, b, study.pictures) for a, b in pairs]
    return {
        "found": round(float(ours.mean()), 4),
        "pyramid": round(float(theirs.mean()), 4),
        **{k: difference(ours, theirs, study.pictures)[k] for k in ("difference", "interval")},
        "seeds": list(seeds),
        "gained": [c["gained"] for c in changes],
        "lost": [c["lost"] for c in changes],
        "p": sign_flip(ours - theirs, study.pictures, len(seeds)),
    }


if __name__ == "__main__":
    study = Study("profiled", __doc__)
    cost = prices(study)
    for strategy, positions in list(ARMS)[: 1 if study.given.smoke else None]:
        arm = f"{strategy}, {positions}"
        profiles = study.record.setdefault("profiles", {})
        if arm not in profiles:
            profiles[arm] = profiled(study, strategy, positions)
            study.write()
        stops = tuple((layer, keep) for layer, keep in profiles[arm]["found"]["stops"])
        spent, allowed = cost.share(stops), cost.share(stops_of(GIVEN, study.depth))
        if spent > allowed:
            raise SystemExit(f"{arm}: {stops} costs {spent} here, the pyramid {allowed}")
        study.record.setdefault("compared", {})[arm] = {
            "flops": {"found": round(spent, 6), "pyramid": round(allowed, 6)},
            "stops": stops,
            **compare(study, strategy, positions, schedule_of(stops)),
        }
        study.write()
