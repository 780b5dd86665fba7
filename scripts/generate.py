"""Writes whatever follows from the registered classes and the committed results.

    python scripts/generate.py            # write it
    python scripts/generate.py --check    # only say whether it is up to date

Whole files: the options in `conf/strategy` and `conf/scheduler` (but for those written by hand), a
page of every method in `docs/methods`, the index of the recordings. Parts of files, between
`<!-- generated: NAME -->` and `<!-- end -->` (in Python and YAML `# generated: NAME` and `# end`):
tables, lists of references, the citations, the navigation, the public names of the package.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import leaderboard_tables
import method_pages
import option_files
import public_names
import recordings
import registry_tables
import study_tables
import version_tables

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python scripts/generate.py"
BLOCK = re.compile(
    r"^(?P<indent> *)(?P<begin>(?:<!--|#) generated: (?P<name>[\w-]+)(?: -->)?)\n"
    r".*?^(?P=indent)(?P<end>(?:<!--|#) end(?: -->)?)$",
    re.DOTALL | re.MULTILINE,
)
TABLES: Mapping[str, Callable[[], str]] = {
    **registry_tables.TABLES,
    **method_pages.TABLES,
    **public_names.TABLES,
    **recordings.TABLES,
    **study_tables.TABLES,
    **leaderboard_tables.TABLES,
    **version_tables.TABLES,
}


def main(arguments: list[str]) -> int:
    """Write every file, or with `--check` only compare; returns the exit code."""
    if set(arguments) - {"--check"}:
        print(f"usage: {COMMAND} [--check]", file=sys.stderr)
        return 2
    wanted = outputs()
    stale = {path: text for path, text in wanted.items() if text != written(path)}
    gone = [*option_files.stale(), *method_pages.stale()]
    if "--check" in arguments:
        for path in [*stale, *gone]:
            print(f"{path.relative_to(ROOT)} is out of date: run {COMMAND}")
        print(f"{len(wanted)} files checked, {len(stale) + len(gone)} out of date")
        return 1 if stale or gone else 0
    for path, text in stale.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")
    for path in gone:
        path.unlink()
        print(f"removed: {path.relative_to(ROOT)}")
    return 0


def outputs() -> dict[Path, str]:
    """Every file that is made in whole or in part, and what it should be."""
    whole = {
        **option_files.files(),
        **method_pages.files(),
        recordings.GOLDEN / "index.json": recordings.index(),
    }
    return {**whole, **{path: render(path) for path in pages() if path not in whole}}


def pages() -> list[Path]:
    """The files that may hold generated parts."""
    others = [ROOT / "README.md", ROOT / "mkdocs.yml", recordings.GOLDEN / "README.md"]
    return [*others, *public_names.FILES, *sorted((ROOT / "docs").rglob("*.md"))]


def written(path: Path) -> str | None:
    """What a file holds; None where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def render(path: Path) -> str:
    """The text of a file with the content of every generated part made anew.

    Raises:
        KeyError: a part of an unknown name.
    """

    def fill(found: re.Match[str]) -> str:
        name, indent = found["name"], found["indent"]
        if name not in TABLES:
            raise KeyError(f"{path}: no table {name!r} (known: {', '.join(TABLES)})")
        rows = [f"{indent}{row}" if row else "" for row in TABLES[name]().splitlines()]
        return "\n".join([f"{indent}{found['begin']}", *rows, f"{indent}{found['end']}"])

    return BLOCK.sub(fill, path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
