"""What was measured of each schedule, kept in a file of JSON lines: a killed profile goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption
from tokenreduce.files import append_lines, read_lines
from tokenreduce.profiling.prices import Stops

MEASURES = ("jsd", "kl", "same", "right", "nll")
"""What a schedule may be judged by."""
BETTER_HIGH = ("same", "right")


@dataclass(frozen=True)
class Measurement:
    """Means over prompts, for the model whose tokens are reduced at `stops`.

    Attributes:
        stops: layers and shares; none for the whole model.
        jsd: Jensen-Shannon divergence from the whole model's next-token distribution, in bits,
            along the whole model's own answer.
        kl: Kullback-Leibler divergence of the reduced model from the whole, likewise.
        same: share of prompts with the whole model's answer, word for word.
        right: share with the right answer; None where none is known.
        nll: negative log-likelihood of a token of the right answer; None likewise.
        seconds: that measuring took.
        each: `jsd` and `right` of every prompt.
    """

    stops: Stops
    jsd: float
    kl: float
    same: float
    right: float | None
    nll: float | None
    seconds: float
    each: Mapping[str, list[float]] = field(default_factory=dict, repr=False)

    def loss(self, measure: str) -> float:
        """What a measure says, turned so that less is better.

        Raises:
            ValueError: a measure that needs right answers where none is known.
        """
        value = getattr(self, measure)
        if value is None:
            raise BadOption(f"measure={measure} needs right answers: use jsd, kl or same")
        return 1 - float(value) if measure in BETTER_HIGH else float(value)


class Cells:
    """Cells by their stops, each appended to a file as soon as it is measured.

    Args:
        path: of the file; made where it is not.
        about: what the cells depend on: model, data, strategy ...

    Raises:
        ValueError: the file holds cells that depend on something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._cells: dict[Stops, Measurement] = {}
        about = json.loads(json.dumps(about))  # as the file will give it back
        rows = list(read_lines(path))
        if rows:
            before = rows[0]
            other = [k for k in {**before, **about} if before.get(k) != about.get(k)]
            if other:
                raise BadOption(
                    f"{path} holds the profile of another {', '.join(other)}: use another "
                    "hydra.run.dir, or move it away"
                )
            for row in rows[1:]:
                row["stops"] = tuple((int(layer), float(keep)) for layer, keep in row["stops"])
                self._cells[row["stops"]] = Measurement(**row)
            return
        append_lines(path, [about])

    def __contains__(self, stops: Stops) -> bool:
        return stops in self._cells

    def __getitem__(self, stops: Stops) -> Measurement:
        return self._cells[stops]

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._cells.values())

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, cell: Measurement) -> Measurement:
        """Notes a cell, in the file too; returns it."""
        append_lines(self.path, [asdict(cell)])
        self._cells[cell.stops] = cell
        return cell
