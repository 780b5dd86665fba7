"""The checks that must notice a fault: one law, one score or one test of geometry each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module

import torch

import tokenreduce as tr
from tests.laws.scores import check_scores
from tokenreduce.testing import choices, laws
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES


@dataclass(frozen=True)
class Check:
    """A check by name; called, it raises an AssertionError where it notices something."""

    name: str
    run: Callable[[], None] = field(compare=False)

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        self.run()


# -- kinds of checks ----------------------------------------------------------------------------


def law(
    rule, family="llama-gqa", strategy="pyramid_drop", scheduler="explicit", **options
) -> Check:
    """A law of the live model, on one trial."""

    def run():
        made = laws.trial(tr.strategies.build(strategy), family, scheduler)
        rule(replace(made, memory={}, **options))

    return Check(f"{rule.__name__}-{strategy}-{family}-{scheduler}", run)


def score(family, attention="sdpa", training=False) -> Check:
    """What strategies are told about attention."""
    name = f"scores-{family}-{attention}{'-training' if training else ''}"
    return Check(name, partial(check_scores, family, attention, training))


def choice(rule, strategy) -> Check:
    """A law of a strategy by itself."""
    return Check(f"{rule.__name__}-{strategy}", lambda: rule(tr.strategies.build(strategy)))


def tested(module, function, *arguments) -> Check:
    """A test of the default run, called as the function that it is."""

    def run():
        getattr(import_module(f"tests.{module}"), function)(*arguments)

    return Check("-".join([function.removeprefix("test_"), *map(str, arguments)]), run)


# -- checks that several faults have in common --------------------------------------------------


MASKING = law(laws.dropping_is_masking)
DECODING = law(laws.decoding_is_recomputing)
RENUMBERING = law(laws.compacting_is_renumbering)
BUDGET = law(laws.order_ascends_and_budget_is_exact, scheduler=tr.Single(2, 0.3, rounding="floor"))
LEFT_ALONE = law(laws.the_model_is_left_as_it_was)
LOUD = law(laws.asking_without_getting_is_loud)
SCORES = score("qwen2")


CHECKPOINTING = tested(
    "laws.test_matrix", "test_a_plan_is_made_once_and_kept_for_the_backward_pass"
)


def _flex(family):
    """A block mask that was rewritten gives what a dense one gives."""
    given, found = batch(FAMILIES[family], (1, 0, 2), "left"), []
    for kind in ("sdpa", "flex_attention"):
        model = FAMILIES[family].model(kind)
        with (
            tr.reduce(model, "stride", tr.Explicit((0, 2), (0.75, 0.5))) as reduction,
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # that the kernel is not compiled: masks are tested
            found.append(given.run(model, reduction, use_cache=False).logits[given.real])
    assert (found[0] - found[1]).abs().max() < 1e-4


def flex(family) -> Check:
    """Flex attention against sdpa."""
    return Check(f"flex-{family}", partial(_flex, family))


def _tower(family):
    from tests.engine import test_tower

    run = test_tower.Watched(family)
    run.name = family
    test_tower.test_a_token_is_made_of_the_patches_that_it_names(run)
    test_tower.test_attention_and_features_are_the_towers_own(run)


def tower(family) -> Check:
    """What the vision tower says about every token, against its own maps and gradients."""
    return Check(f"tower-{family}", partial(_tower, family))


def pictures(family) -> list[tr.Picture]:
    """Where the tokens of three images or videos stand."""
    model, given = FAMILIES[family].model(), batch(FAMILIES[family], (1, 2))
    with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction, torch.no_grad():
        given.run(model, reduction, use_cache=False)
    return [picture for row in reduction.pictures for picture in row]


def _newlines():
    """Every row of the high-resolution grid ends with a newline."""
    for picture in pictures("llava_next"):
        grid = picture.tile == 1
        rows = picture.row[grid].unique()
        assert torch.equal(picture.row[grid & picture.separator], rows)
        assert not picture.separator[~grid].any()


NEWLINES = Check("every_row_ends_with_a_newline", _newlines)


def _clips():
    """Every frame of a video is a grid of its own, and a newline ends the last one."""
    for picture in pictures("llava_onevision-video"):
        frames = int(picture.frame.max()) + 1
        cells = (len(picture) - 1) // frames
        assert picture.separator.nonzero().flatten().tolist() == [len(picture) - 1]
        assert torch.equal(picture.frame[:-1], torch.arange(frames).repeat_interleave(cells))


CLIPS = Check("a_newline_ends_a_video", _clips)


def _thumbnail():
    """The last tile of an image is its thumbnail; the others count from 1."""
    from PIL import Image
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    from tests.adapters import painting
    from tests.adapters import test_geometry_internvl as internvl

    size = {"height": internvl.SIDE, "width": internvl.SIDE}
    processor = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=15)
    image = Image.fromarray(painting.texture(30, 60))
    _, (picture,) = internvl.encode(painting.local("internvl"), processor, image)
    order = torch.tensor([1, 2, 0]).repeat_interleave(internvl.TOKENS)
    assert torch.equal(picture.tile, order), picture.tile.unique_consecutive()


THUMBNAIL = Check("the_last_tile_is_the_thumbnail", _thumbnail)


def _images():
    """Every image is one picture, of however many tiles."""
    assert len(pictures("internvl")) == 3


IMAGES = Check("every_image_is_one_picture", _images)

PADDING = choice(choices.keeps_exactly_the_budget, "pooling")
SEPARATORS = choice(choices.separators_follow_their_row, "random")
EXACT = choice(choices.keeps_exactly_the_budget, "stride")
READ_ONLY = choice(choices.writes_to_nothing, "pyramid_drop")
MEMORY = choice(choices.memory_grows_linearly, "divprune")
