"""With what to reduce, as one object: read from every way to write it, written, named, compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenreduce as tr
from tokenreduce.checkpoint import FILE
from tokenreduce.presets import load_schedule, words, write_preset
from tokenreduce.testing.batches import batch
from tokenreduce.testing.encoders import encoder
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]
FASTV = tr.Recipe(tr.FastV("received"), tr.Explicit((1, 3), (0.5, 0.25)), "compact", seed=3)
OLD = Path(__file__).parent / "checkpoints"
"""Written by the version before there was a `Recipe`."""


# -- reading and writing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        FASTV,
        {
            "strategy": {"name": "fastv", "score": "received"},
            "scheduler": {"name": "explicit", "layers": [1, 3], "keeps": [0.5, 0.25]},
            "positions": "compact",
            "seed": 3,
        },
        {
            "strategy": {"name": "fastv", "options": {"score": "received"}},
            "scheduler": {"name": "explicit", "options": {"layers": [1, 3], "keeps": [0.5, 0.25]}},
            "positions": "compact",
            "seed": 3,
        },
        {
            "strategy": tr.FastV("received"),
            "scheduler": tr.Explicit((1, 3), (0.5, 0.25)),
            "positions": "compact",
            "seed": 3,
        },
    ],
    ids=["recipe", "flat", "nested", "instances"],
)
def test_every_way_to_write_it_says_the_same(data: Any) -> None:
    assert tr.Recipe.parse(data) == FASTV


def test_a_name_and_an_instance_are_recipes() -> None:
    assert tr.Recipe.parse("fastv") == tr.Recipe.parse(tr.FastV()) == tr.Recipe(tr.FastV())
    assert tr.Recipe.parse("fastv").schedule == tr.FastV().scheduler()


def test_options_without_a_scheduler_change_the_strategys_own() -> None:
    changed = tr.Recipe.parse({"strategy": "fastv", "scheduler": {"keep": 0.25}})
    assert changed.scheduler == tr.Single(layer=2, keep=0.25)
    assert tr.Recipe.parse({"strategy": "fastv", "scheduler": {}}).scheduler is None


@pytest.mark.parametrize("name", sorted(tr.strategies))
def test_what_is_written_is_read_as_it_was(name: str) -> None:
    first = tr.Recipe(tr.strategies.build(name), tr.Curriculum(tr.Single(2, 0.3)), "keep", seed=5)
    data = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    again = tr.Recipe.parse(data)
    assert again.to_dict() == data
    assert again.key() == first.key()
    assert again.scheduler == first.scheduler


def test_it_is_written_as_in_a_checkpoint() -> None:
    assert FASTV.to_dict() == {
        "strategy": {"name": "fastv", "options": {"score": "received"}},
        "scheduler": {
            "name": "explicit",
            "options": {
                "layers": [1, 3], "keeps": [0.5, 0.25], "rounding": "nearest", "at_least": None,
            },
        },
        "positions": "compact",
        "logits": "full",
        "seed": 3,
        "min_tokens": 0,
        "adapter": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ("fastvv", KeyError, "no strategy 'fastvv'; did you mean 'fastv'"),
        (3, TypeError, "a registered name or an instance, or part of a Recipe, not 3 .*fastv"),
        ({"strateg": "fastv"}, ValueError, "no 'strateg'; did you mean 'strategy'.*known: strateg"),
        ({"seed": 1}, ValueError, "no strategy is named .*fastv"),
        ({"strategy": {"score": "last"}}, ValueError, "no strategy is named"),
        ({"strategy": 3}, ValueError, "strategy must be a name, or a mapping of name and options"),
        ({"strategy": {"name": "fastv", "scor": 1}}, TypeError, "no option 'scor'; did you mean"),
        ({"strategy": {"name": "fastv", "options": {"scor": 1}}}, TypeError, "no option 'scor'"),
        ({"strategy": "fastv", "scheduler": {"kep": 1}}, TypeError, "'single' has no option 'kep'"),
        ({"strategy": "fastv", "scheduler": "sngle"}, KeyError, "no scheduler 'sngle'"),
        ({"strategy": "fastv", "scheduler": 3}, ValueError, "scheduler must be a name"),
        ({"strategy": "fastv", "scheduler": {"keep": 2}}, ValueError, "between 0 and 1, not 2"),
        ({"strategy": "fastv", "positions": "kep"}, ValueError, "no positions 'kep'; did you mean"),
        ({"strategy": "fastv", "logits": "txt"}, ValueError, "no logits 'txt'; did you mean"),
        ({"strategy": "fastv", "seed": "x"}, ValueError, "seed must be a whole number, not 'x'"),
        ({"strategy": "fastv", "seed": True}, ValueError, "seed must be a whole number, not True"),
        ({"strategy": "fastv", "min_tokens": -1}, ValueError, "min_tokens must be a whole number"),
        ({"strategy": "fastv", "adapter": "lava"}, KeyError, "no adapter 'lava'.*'llava'"),
        ({"strategy": "downsample", "min_tokens": 4}, ValueError, "leave one of them out"),
        ({"strategy": "scorer_mlp", "weights": {}}, ValueError, "tokenreduce.load"),
    ],
)
def test_what_is_no_recipe_is_refused(data: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        tr.Recipe.parse(data)
    assert "\n" not in str(caught.value)


def test_names_are_read_by_parse_alone() -> None:
    with pytest.raises(TypeError, match=r"not 'fastv': .*Recipe\.parse"):
        tr.Recipe("fastv")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not 'single': .*Recipe\.parse"):
        tr.Recipe(tr.FastV(), "single")  # type: ignore[arg-type]


# -- names for people and files --------------------------------------------------------------------


def test_equal_recipes_have_one_key() -> None:
    key = FASTV.key()
    assert key.startswith("fastv-explicit-")
    assert len(key) < 40
    assert key == tr.Recipe.parse(FASTV.to_dict()).key()
    assert key == "fastv-explicit-5e5027fb"  # in every process: files are named by it
    own = tr.Recipe(tr.FastV())
    assert own.key() == replace(own, scheduler=own.strategy.scheduler()).key()
    ones = [tr.Recipe(tr.Random(), tr.Single(2, keep)) for keep in (1, 1.0)]
    assert ones[0] == ones[1]
    assert ones[0].key() == ones[1].key()


def test_every_part_makes_another_key() -> None:
    others: list[dict[str, Any]] = [
        {"strategy": tr.FastV()},
        {"scheduler": tr.Explicit((1, 3), (0.5, 0.2))},
        {"scheduler": tr.Explicit((1, 3), (0.5, 0.25), "floor")},
        {"scheduler": None},
        {"positions": "keep"},
        {"positions": None},
        {"logits": "text"},
        {"seed": 4},
        {"min_tokens": 2},
        {"adapter": "llava"},
    ]
    keys = {FASTV.key(), *(replace(FASTV, **other).key() for other in others)}
    assert len(keys) == 1 + len(others)


def test_one_line_for_people() -> None:
    assert tr.Recipe.parse("fastv").describe() == "fastv, single"
    assert FASTV.describe() == (
        "fastv score=received, explicit layers=[1,3] keeps=[0.5,0.25], positions=compact, seed=3"
    )
    assert "min_tokens=4" in replace(FASTV, min_tokens=4).describe()


@dataclass
class Mine(tr.Random):
    """Registered nowhere."""

    share: float = 0.5


def test_what_nobody_has_registered_works_and_is_not_written() -> None:
    recipe = tr.Recipe.parse(Mine())
    assert "Mine(share=0.5)" in recipe.describe()
    for write in (recipe.to_dict, recipe.key):
        with pytest.raises(ValueError, match=r"Mine is not a registered .*strategies\.register"):
            write()


# -- at work ---------------------------------------------------------------------------------------


def unused(reduction: Any) -> Any:
    """A reduction that nothing passes through, taken off without a warning about it."""
    reduction._applied = True
    reduction.remove()
    return reduction


def test_reduce_takes_a_recipe() -> None:
    model, given = LLAVA.model(), batch(LLAVA, (1, 2))
    recipe = replace(FASTV, logits="text", min_tokens=2, adapter="llava")
    with torch.no_grad():
        with tr.reduce(model, recipe) as reduction:
            wanted = given.run(model, use_cache=False).logits
        spelled = {"positions": "compact", "logits": "text", "seed": 3, "min_tokens": 2}
        with tr.reduce(model, recipe.strategy, recipe.scheduler, adapter="llava", **spelled):
            assert torch.equal(given.run(model, use_cache=False).logits, wanted)
    assert replace(reduction.recipe, adapter="llava") == recipe
    assert tr.Recipe.parse(reduction.recipe.to_dict()).to_dict() == reduction.recipe.to_dict()


def test_an_option_beside_a_recipe_wins() -> None:
    recipe = replace(FASTV, logits="text", min_tokens=2)
    options: dict[str, Any] = {"positions": "keep", "logits": "full", "seed": 0, "min_tokens": 0}
    found = unused(tr.reduce(LLAVA.model(), recipe, "single", **options)).recipe
    assert found.scheduler == tr.Single()
    assert {name: getattr(found, name) for name in options} == options
    found = unused(tr.reduce(LLAVA.model(), recipe)).recipe
    assert (found.logits, found.seed, found.min_tokens) == ("text", 3, 2)


def test_a_plain_call_has_the_usual_options() -> None:
    found = unused(tr.reduce(LLAVA.model(), "fastv")).recipe
    assert (found.logits, found.seed, found.min_tokens, found.positions) == ("full", 0, 0, "keep")
    assert found.scheduler == tr.FastV().scheduler()


def test_an_encoder_takes_a_recipe() -> None:
    model = encoder("clip")
    reduction = unused(tr.reduce(model, tr.Recipe.parse("tome")))
    assert reduction.decoder is None
    assert reduction.tower is not None
    assert reduction.stops == ()  # the strategy's own counts, layer by layer
    with pytest.raises(ValueError, match="positions, logits and min_tokens"):
        tr.reduce(model, tr.Recipe(tr.ToMe(), positions="keep"))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        (
            "plain",
            tr.Recipe(
                tr.FastV("received"),
                tr.Explicit((1, 0.5), (0.6, 0.2), "floor"),
                "compact", "text", 7,
            ),
        ),
        (
            "nested",
            tr.Recipe(
                tr.Random(),
                tr.Curriculum(tr.Pyramid(stages=3, ratio=0.4), begin=0.1),
                "keep", min_tokens=4,
            ),
        ),
    ],
)  # fmt: skip
def test_files_of_earlier_versions_are_read_and_written_as_they_were(
    tmp_path: Path, name: str, recipe: tr.Recipe
) -> None:
    reduction = unused(tr.load(LLAVA.model(), OLD / name))
    assert replace(reduction.recipe, adapter=None) == recipe
    old = json.loads((OLD / name / FILE).read_text())
    assert json.loads(reduction.save(tmp_path).read_text()) == old
    assert replace(tr.Recipe.parse(old), adapter=None) == recipe  # the file's content as well


def test_parameters_of_earlier_versions_are_read(tmp_path: Path) -> None:
    reduction = unused(tr.load(LLAVA.model(), OLD / "learned"))
    assert reduction.strategy.trained
    folder = shutil.copytree(OLD / "learned", tmp_path / "copy")
    reduction.save(tmp_path / "again")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match=r"parameters lie next to it.*tokenreduce\.load"):
        tr.Recipe.parse(json.loads((OLD / "learned" / FILE).read_text()))


@pytest.mark.parametrize(
    "schedule",
    [tr.Explicit((0, 4), (0.8, 0.0)), tr.Curriculum(tr.Pyramid(stages=3)), tr.VTW().scheduler()],
)
def test_an_option_file_is_read_as_it_was_written(tmp_path: Path, schedule: tr.Scheduler) -> None:
    assert load_schedule(write_preset(tmp_path, "mine", schedule)) == schedule


def test_words_choose_what_is_described() -> None:
    assert words(tr.Explicit((1, 3), (0.5, 0.25)), "fastv") == [
        "strategy=fastv",
        "scheduler=explicit",
        "scheduler.layers=[1,3]",
        "scheduler.keeps=[0.5,0.25]",
    ]


# -- pictures --------------------------------------------------------------------------------------


class Halves(tr.Strategy):
    """Acts on pixels: halves both sides."""

    reduces = False
    site = "pictures"

    def prepare(self, processor: Any, images: Any, keep: float) -> Any:
        return tr.Prepared([image.resize((image.width // 2,) * 2) for image in images], [99])

    def plan(self, tokens: Any, budget: Any) -> tr.Plan:
        raise AssertionError("nothing is left to do in the model")

    def scheduler(self) -> tr.Scheduler:
        return tr.Single(layer=0, keep=0.25)


def test_a_method_prepares_pictures_only_where_it_says_so() -> None:
    images = [object()]
    made = tr.FastV().prepare(None, images, 0.5)
    assert made.images == images
    assert made.full is None
    assert [tr.FastV().acts_on_pixels, tr.Downsample().acts_on_pixels] == [False, True]


def test_what_acts_on_pixels_leaves_nothing_for_the_model() -> None:
    recipe = tr.Recipe(Halves(), seed=4)
    assert recipe.in_model() == replace(recipe, strategy=tr.Keep(), scheduler=tr.Single(0, 0.25))
    assert FASTV.in_model() is FASTV
    with pytest.raises(TypeError, match="Halves acts on pictures, before the processor"):
        tr.reduce(LLAVA.model(), recipe)


def test_no_module_asks_where_a_method_acts_by_comparing_words() -> None:
    import ast

    package = Path(tr.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.name == "strategy.py" or path.parent.name == "strategies":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Attribute) and side.attr == "site" for side in sides):
                    found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert found == []
