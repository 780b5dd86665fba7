"""Prints the table of docs/parity.md: `python -m tests.parity.measure`.

Everything that the tests compare, measured over both attention implementations.
"""

from __future__ import annotations

import torch

from .cases import METHODS, Case, cases
from .compare import differences
from .decoding import decode, recordings, step_differences
from .deviations import DEVIATIONS, PARTIAL, deviates
from .outcome import run
from .test_pyramiddrop import ATTENTIONS, trained


def measured(case: Case) -> dict[str, float]:
    """The largest difference of every kind in a reproduced case."""
    found: dict[str, float] = {}

    def note(values: dict[str, float]) -> None:
        for kind, value in values.items():
            found[kind] = max(found.get(kind, 0.0), value)

    for attention in ATTENTIONS:
        if case.kind == "train":
            note(trained(case, attention)[1])
            continue
        model = case.model(attention)
        with torch.no_grad():
            note(differences(case, run(case, model), model))
        for recorded in recordings(case):
            note(step_differences(case, model, recorded, decode(case, model, recorded)))
    return found


def line(case: Case) -> str:
    """One row of the table: exact agreements by name, largest differences by number."""
    if deviates(case):
        return f"| `{case}` | deviates, see below | |"
    found = measured(case)
    exact = [kind for kind, value in found.items() if not value]
    close = [f"{kind} {value:.0e}" for kind, value in found.items() if value]
    mark = " (in part, see below)" if str(case) in PARTIAL else ""
    return f"| `{case}`{mark} | {', '.join(exact)} | {', '.join(close)} |"


def main() -> None:
    """Prints the table and the reasons."""
    torch.set_num_threads(1)
    print("| case | equal | largest difference |\n|---|---|---|")
    for method in METHODS:
        for case in cases(method):
            print(line(case))
    for name, reason in (DEVIATIONS | PARTIAL).items():
        print(f"\n**`{name}`.** {reason}")


if __name__ == "__main__":
    main()
