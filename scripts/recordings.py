"""What was recorded of the original implementations, and what the tests compare with it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from facts import shipped
from markdown import table

import tokenreduce as tr
from tokenreduce.paper import Paper

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
TESTS = ROOT / "tests" / "parity"


@cache
def cases() -> dict[str, list[dict[str, Any]]]:
    """The recorded cases of every folder in `tests/golden`, as their `case.json` has them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(GOLDEN.glob("*/*/case.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(path.parent.parent.name, []).append(
            {**case, "case": path.parent.name, "folder": path.parent}
        )
    return found


def folder(name: str) -> str:
    """The folder of a strategy: its name in one word."""
    return name.replace("_", "")


def recorded(name: str) -> int:
    """How many cases were recorded of a strategy's original."""
    return len(cases().get(folder(name), ()))


def index() -> str:
    """`tests/golden/index.json`: every case, in order."""
    rows = [
        {
            "method": method,
            "case": case["case"],
            "weights": case.get("weights"),
            "mode": case.get("mode"),
            "bytes": sum(path.stat().st_size for path in case["folder"].glob("*.safetensors")),
            "note": case.get("note"),
        }
        for method, group in cases().items()
        for case in group
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def originals() -> str:
    """What was run, at which commit, and its licence."""
    licences = {folder(name): licence(kind) for name, kind in shipped().items()}
    return table(
        ("folder", "cases", "original", "commit", "licence of the original"),
        (
            (
                f"`{method}`",
                str(len(group)),
                f"{group[0]['reference']['repo']}: {sources(group)}",
                ", ".join(dict.fromkeys(f"`{case['reference']['commit'][:7]}`" for case in group)),
                licences[method],
            )
            for method, group in cases().items()
        ),
    )


def sources(group: list[dict[str, Any]]) -> str:
    """The files that were run, each once."""
    return ", ".join(dict.fromkeys(f"`{case['reference']['file']}`" for case in group))


def licence(kind: type[tr.Strategy]) -> str:
    """The licence of the code that was run, as the strategy says it."""
    return kind.paper.code.rpartition(", ")[2] if isinstance(kind.paper, Paper) else ""


def compared() -> dict[str, tuple[str, str]]:
    """What is compared of each choice before the language model.

    A parity test says so: `PARITY`, a case's name -> (from stored tensors, in a whole model).
    """
    found = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            if [getattr(one, "id", None) for one in named] == ["PARITY"]:
                assert isinstance(node, ast.Assign | ast.AnnAssign)
                assert node.value is not None
                method = path.stem.removeprefix("test_")
                rows = ast.literal_eval(node.value)
                found |= {f"{method}/{case}": said for case, said in rows.items()}
    return found


def choices() -> str:
    """The table of the parity page."""
    return table(
        ("case", "from stored tensors", "from pixels, in a whole model"),
        ((f"`{case}`", *said) for case, said in compared().items()),
    )


def counted() -> str:
    """How many recorded runs there are, and how many of them are reproduced."""
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    written = {
        row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `") and "/" in row
    }
    rows = {**written, **{case: " ".join(said) for case, said in compared().items()}}
    total = sum(map(len, cases().values()))
    differ = sum("deviates" in row for row in rows.values())
    return (
        f"Parity: of {total} recorded runs of the original implementations, {total - differ} are "
        f"reproduced, with the same tokens kept at\nevery stop and logits within 3e-06 in fp32; "
        f"{differ} differ on purpose. The [list](docs/parity.md) says which, and why."
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "recordings": originals,
    "parity-choices": choices,
    "parity-count": counted,
}
