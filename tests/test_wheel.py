"""What is published: the wheel made from the sdist holds everything it needs, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONF = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml"))
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
SECRET = (".env", ".pem", ".key", ".npmrc", ".netrc", "credential", "secret", ".git/")
MADE = (
    "__pycache__",
    ".pyc",
    "outputs/",
    "site/",
    "dist/",
    ".venv",
    "mypy_cache/",
    "pytest_cache/",
    "ruff_cache/",
    ".benchmarks",
)
BUILD = "import sys; from hatchling import build; print(build.build_{}(sys.argv[1]))"


def run(*command: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    """An sdist or a wheel of `source`, without the network; returns its path."""
    return into / run(sys.executable, "-c", BUILD.format(kind), into, cwd=source).split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the unpacked sdist, where there is no git and nothing lies about."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def inside(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "install", *options, "--target", folder, wheel, cwd=folder)
    return folder


def test_what_would_be_packed_is_whole() -> None:
    """Without a build: hatchling's own list of files, and the metadata."""
    from hatchling.builders.wheel import WheelBuilder

    builder = WheelBuilder(str(ROOT))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    modules = [path.relative_to(ROOT) for path in (ROOT / "tokenreduce").rglob("*.py")]
    assert {str(path) for path in modules} <= packed
    assert {f"tokenreduce/{name}" for name in CONF} <= packed
    for name in packed:
        assert not any(part in name.lower() for part in (*SECRET, *MADE)), name
    core = builder.metadata.core
    assert core.license_expression == "Apache-2.0"
    assert core.scripts == {"tokenreduce": "tokenreduce.cli:main"}


@pytest.mark.slow
def test_the_wheel_has_every_config(inside: list[str]) -> None:
    assert len(CONF) > 20
    assert {f"tokenreduce/{name}" for name in CONF} <= set(inside)
    assert "tokenreduce/conf/__init__.py" in inside  # Hydra's pkg:// needs it


@pytest.mark.slow
def test_the_wheel_has_every_module(inside: list[str]) -> None:
    modules = [path.relative_to(ROOT) for path in (ROOT / "tokenreduce").rglob("*.py")]
    assert {str(path) for path in modules} <= set(inside)
    assert "tokenreduce/py.typed" in inside


@pytest.mark.slow
def test_the_wheel_has_model_and_data(inside: list[str]) -> None:
    assert {f"tokenreduce/embedded/checkpoint/{name}" for name in CHECKPOINT} <= set(inside)
    assert "tokenreduce/embedded/example.json" in inside
    assert "tokenreduce/embedded/example.png" in inside
    assert "tokenreduce/data/glyphs.png" in inside
    page = {f"tokenreduce/viz/template/report.{kind}" for kind in ("html", "css", "js")}
    assert page <= set(inside)


@pytest.mark.slow
def test_the_wheel_has_its_licence_and_readme(wheel: Path, inside: list[str]) -> None:
    assert [name for name in inside if name.endswith(".dist-info/licenses/LICENSE")]
    (metadata,) = [name for name in inside if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert (ROOT / "README.md").read_text().splitlines()[0] in text


@pytest.mark.slow
def test_nothing_else_is_in_the_wheel(wheel: Path, inside: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"tokenreduce"}
    for name in inside:
        assert not any(part in name.lower() for part in (*SECRET, *MADE)), name
    assert not [name for name in inside if name.startswith("conf/")]
    assert wheel.stat().st_size < 8_000_000


@pytest.mark.slow
def test_nothing_else_is_in_the_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for name in names:
        assert not any(part in name.lower() for part in (*SECRET, *MADE) if part != ".git/"), name
    for needed in (
        "LICENSE",
        "CHANGELOG.md",
        "mkdocs.yml",
        "conf/config.yaml",
        "tests/test_wheel.py",
    ):
        assert needed in names
    assert sdist.stat().st_size < 17_000_000


@pytest.mark.slow
def test_the_installed_command_runs_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    place = {"PYTHONPATH": str(site)}
    where = run(
        sys.executable,
        "-c",
        "import tokenreduce; print(tokenreduce.__file__)",
        cwd=tmp_path,
        **place,
    )
    assert Path(where.strip()).is_relative_to(site)  # not the checkout
    command = site / "bin" / "tokenreduce"
    text = run(sys.executable, command, "--help", cwd=tmp_path, **place)
    assert "Usage: tokenreduce" in text
    for strategy in ("pyramid_drop", "fastv", "random"):
        assert strategy in text
    job = run(sys.executable, command, "strategy=fastv", "--cfg", "job", cwd=tmp_path, **place)
    assert "name: fastv" in job


@pytest.mark.slow
def test_the_installed_main_job_runs_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    """The embedded model and its example came along."""
    run(
        *(sys.executable, site / "bin" / "tokenreduce", "task.runs=1", "max_new_tokens=2"),
        *("device=cpu", "hydra.run.dir=out"),
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert (tmp_path / "out" / "result.json").is_file()
