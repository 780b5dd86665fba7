"""Runs the contract suite on releases of transformers, and writes down what holds on which.

    python scripts/check_versions.py                           # every minor that is supported
    python scripts/check_versions.py 5.10 5.24.0               # a minor: its newest patch
    python scripts/check_versions.py --only oldest --no-write  # one end of what is supported
    python scripts/check_versions.py --pre                     # and the coming pre-release

A release is laid over the running environment: pip says what would have to be installed for it
(transformers, and tokenizers or huggingface-hub where the installed ones do not suit it), that is
put into a folder of its own, and the suite (tests/contract) runs with this folder on PYTHONPATH.
What is found goes into docs/results/versions.json, a row for each minor; a release that is run
again replaces its row. scripts/generate.py makes the tables of it. Needs a package index.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "versions.json"
CACHE = ROOT / "build" / "versions"
SUITE = "tests/contract"

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the suite on the releases that are asked for; returns the exit code.

    It is 1 if anything fails and the committed table does not say so: what is known not to work on
    a release stands there.
    """
    options = parser().parse_args(arguments)
    chosen = selected(options)
    print(f"{len(chosen)} of transformers to run, {chosen[0]} to {chosen[-1]}", flush=True)
    commanded = " ".join(["python scripts/check_versions.py", *options.versions])
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda version: checked(version, options.cache), chosen):
            failed += news(row, options.output)
            if not options.no_write:
                write(options.output, commanded, row)
    print("\n".join(["fails, and the table does not say so:", *failed]) if failed else "no news")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    found = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit code 1: something fails, and the table does not say so.",
    )
    found.add_argument("versions", nargs="*", help="minors (5.10) or releases (5.10.4)")
    found.add_argument("--only", choices=("oldest", "newest"), help="one end of what is supported")
    found.add_argument("--pre", action="store_true", help="also the pre-release after the newest")
    found.add_argument("--jobs", type=int, default=1, help="releases at a time (1)")
    found.add_argument("--cache", type=Path, default=CACHE, help="where releases are laid out")
    found.add_argument("--output", type=Path, default=RESULTS, help="the table to write")
    found.add_argument("--no-write", action="store_true", help="only run and say what fails")
    return found


# -- which releases ------------------------------------------------------------------------------


def selected(options: argparse.Namespace) -> list[Version]:
    """The releases to run, ascending.

    Raises:
        SystemExit: a version that the index does not have.
    """
    known = released()
    finals = newest_patches(v for v in known if not v.is_prerelease)
    if options.versions:
        chosen = [named(text, finals, known) for text in options.versions]
    else:
        from tokenreduce.engine.contract import OLDEST

        chosen = [v for v in finals.values() if v.release[:2] >= OLDEST and v.major == OLDEST[0]]
        ends = {"oldest": chosen[:1], "newest": chosen[-1:]}
        chosen = ends.get(options.only, chosen)
    if options.pre:
        coming = [v for v in known if v.is_prerelease and v > max(finals.values())]
        print(f"pre-release: {max(coming)}" if coming else "no pre-release after the newest")
        chosen += [max(coming)] if coming else []
    return sorted(set(chosen))


def released() -> list[Version]:
    """Every release of transformers on the index, pre-releases too."""
    answer = pip("index", "versions", "transformers", "--pre")
    line = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
    if line is None:
        raise SystemExit(f"pip names no versions of transformers: {answer.strip()}")
    return [Version(text) for text in line[1].split(", ")]


def newest_patches(versions: Iterable[Version]) -> dict[str, Version]:
    """Minor -> its newest patch, ascending."""
    return {f"{v.major}.{v.minor}": v for v in sorted(versions)}


def named(text: str, finals: dict[str, Version], known: list[Version]) -> Version:
    """The release that is meant: of a minor, the newest patch."""
    if text in finals:
        return finals[text]
    if re.fullmatch(r"\d+(\.\d+)+\w*", text) and Version(text) in known:
        return Version(text)
    raise SystemExit(f"no transformers {text} on the index (newest: {list(finals)[-1]})")


# -- one release ---------------------------------------------------------------------------------


def checked(version: Version, cache: Path) -> Row:
    """Lay one release over the environment and run the suite on it."""
    say(version, "laying it over the environment")
    folder = cache.resolve() / str(version)
    laid = lay(version, folder)
    say(version, ", ".join(["running", *(f"with {n} {v}" for n, v in laid.items())]))
    started, report = time.monotonic(), folder / "report.xml"
    report.unlink(missing_ok=True)
    run = suite(folder, report)
    seconds = round(time.monotonic() - started)
    (folder / "output.txt").write_text(run.stdout + run.stderr)
    if not report.exists():
        raise SystemExit(f"the suite did not run on {version}:\n{run.stdout}{run.stderr}")
    row = {"transformers": str(version), "with": laid, **read(report), "seconds": seconds}
    if row["ground"]["transformers"] != str(version):
        raise SystemExit(f"the suite ran on transformers {row['ground']}, not on {version}")
    for trouble in troubles(row):
        say(version, trouble)
    say(version, summary(row))
    return row


def lay(version: Version, folder: Path) -> dict[str, str]:
    """Install into `folder` what `version` needs beyond this environment, unless it is there.

    Returns the packages and their versions, transformers left out.
    """
    wanted = f"transformers=={version}"
    answer = pip("install", "--dry-run", "--quiet", "--report", "-", wanted)
    plan = json.loads(answer[answer.index("{") :])["install"]
    laid = {part["metadata"]["name"]: part["metadata"]["version"] for part in plan}
    known, note = json.dumps({"python": sys.version, "laid": laid}), folder / "laid.json"
    if not note.exists() or note.read_text() != known:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if pins := [f"{name}=={number}" for name, number in laid.items()]:
            target = ("--no-deps", "--no-compile", "--quiet", "--target", str(folder))
            pip("install", *target, *pins)
        note.write_text(known)
    return {name: number for name, number in laid.items() if name != "transformers"}


def pip(*arguments: str) -> str:
    """What pip prints; it must succeed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"pip {' '.join(arguments)}\n{run.stdout}{run.stderr}")
    return run.stdout


def suite(folder: Path, report: Path) -> subprocess.CompletedProcess[str]:
    """Run the contract suite with `folder` before the installed packages."""
    command = [sys.executable, "-m", "pytest", SUITE, "-m", "contract", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    command += ["-o", "junit_family=xunit1", f"--junitxml={report}"]  # the kind with properties
    ground = {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        command, cwd=ROOT, env=environment | ground, capture_output=True, text=True, check=False
    )


# -- what came out -------------------------------------------------------------------------------


def read(report: Path) -> Row:
    """The outcomes in a JUnit report: families by strategies, recordings, the main job."""
    tree = ElementTree.parse(report)
    head = tree.find("./testsuite/properties")
    row: Row = {"ground": properties(head), "families": {}, "recorded": {}, "main_job": ""}
    gaps, recordings = [], []
    for test in tree.iter("testcase"):
        facts, result = properties(test.find("properties")), outcome(test)
        if "family" in facts:
            row["families"].setdefault(facts["family"], {})[facts["strategy"]] = result
        elif "main_job" in test.get("name", ""):
            row["main_job"] = result
        else:
            recordings.append((test.get("name"), result))
            gaps += [float(facts["gap"])] if "gap" in facts else []
    row["recorded"] = {
        "passed": sum(result == "passed" for _, result in recordings),
        "failed": {name: result for name, result in recordings if result != "passed"},
        "gap": float(f"{max(gaps):.2g}") if gaps else None,
    }
    return row


def properties(parent: ElementTree.Element | None) -> dict[str, str]:
    """The properties of a test or of the suite, by name."""
    found = () if parent is None else parent.iter("property")
    return {entry.get("name", ""): entry.get("value", "") for entry in found}


def outcome(test: ElementTree.Element) -> str:
    """`passed`, `failed: …` with its first line, or a skip: `absent: …` or `unable: …`.

    absent: the release has no such model; unable: the plain model fails on this release.
    """
    for child in test:
        if child.tag == "skipped":
            return child.get("message", "")
        if child.tag in ("failure", "error"):
            return f"failed: {first_line(child)}"
    return "passed"


def first_line(failure: ElementTree.Element) -> str:
    """What went wrong, on one line of at most 200 characters."""
    lines = [line.strip() for line in failure.get("message", "").splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:200].replace(str(ROOT), ".")


def troubles(row: Row) -> list[str]:
    """What failed, a line each."""
    found = [
        f"{family}, {strategy}: {result}"
        for family, results in row["families"].items()
        for strategy, result in results.items()
        if result.startswith("failed")
    ]
    found += [f"{name}: {result}" for name, result in row["recorded"]["failed"].items()]
    found += [f"main job: {row['main_job']}"] if row["main_job"] != "passed" else []
    return found + ([] if row["families"] else ["no law was tried"])


def news(row: Row, path: Path) -> list[str]:
    """The failures that the table has not, for the minor of a row."""
    known = json.loads(path.read_text())["releases"] if path.exists() else {}
    before = troubles(known[minor(row)]) if minor(row) in known else []
    names = {trouble.partition(": failed")[0] for trouble in before}
    found = (trouble for trouble in troubles(row) if trouble.partition(": failed")[0] not in names)
    return [f"{row['transformers']}: {trouble}" for trouble in found]


def summary(row: Row) -> str:
    """One line on a release."""
    results = [r for of_family in row["families"].values() for r in of_family.values()]
    passed, without = results.count("passed"), sum(map(skipped, results))
    gap = row["recorded"]["gap"]
    laws = f"laws {passed}/{len(results)}{f' ({without} cannot run)' if without else ''}"
    near = "" if gap is None else f" (within {gap:g})"
    return f"{laws}, recorded {row['recorded']['passed']}{near}, {row['seconds']} s"


def skipped(result: str) -> bool:
    """Whether a release has nothing to reduce: no such model, or one that fails by itself."""
    return result.partition(":")[0] in ("absent", "unable")


def say(version: Version, text: str) -> None:
    """A line of progress, as wide as a terminal."""
    line = f"{version!s:>8}  {text}"
    print(line if len(line) <= 80 else f"{line[:77]}...", flush=True)


def write(path: Path, command: str, row: Row) -> None:
    """Put a release's row into the table, in place of the row of its minor."""
    known = json.loads(path.read_text())["releases"] if path.exists() else {}
    known[minor(row)] = {**row, "command": command, **circumstances()}
    ordered = dict(sorted(known.items(), key=lambda item: Version(item[1]["transformers"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps({"suite": SUITE, "releases": ordered}, indent=1) + "\n")
    half.replace(path)


def minor(row: Row) -> str:
    """The minor that a row is of, under which the table has it."""
    version = Version(row["transformers"])
    return f"{version.major}.{version.minor}" + ("-pre" if version.is_prerelease else "")


def circumstances() -> Row:
    """The day, and the commit of this checkout; marked where what is run differs from it."""
    changed = git("status", "--porcelain", "--", "tokenreduce", "conf", "tests")
    commit = git("rev-parse", "--short=9", "HEAD") + ("+changes" if changed else "")
    return {"date": datetime.date.today().isoformat(), "commit": commit}


def git(*arguments: str) -> str:
    """What git prints, or nothing outside a checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
