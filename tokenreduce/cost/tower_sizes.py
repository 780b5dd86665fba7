"""What a vision tower costs: its sizes, and the pictures that it is given.

Per layer with n places (patches and class tokens), width d, FFN width m, h heads of size e and an
FFN of f matrices, the MACs are `4 n d h e + 2 h e S + f n d m`, where S is the sum of squares of
the stretches that see each other: a picture, a frame, a window, or all pictures of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenreduce.checks import integer
from tokenreduce.cost.entries import read, size
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.registry import Registry

Sight = Literal["frame", "call"]


@dataclass(frozen=True)
class Grid:
    """One picture as a tower is given it: patches in rows and columns.

    A tile of a picture that is cut is a grid of its own. A row of `image_grid_thw` is
    `Grid(rows=h, columns=w, frames=t)`; a video of a tower that takes single frames has as many
    frames as are shown.

    Raises:
        ValueError: a side or a number of frames below 1.
    """

    rows: int
    columns: int
    frames: int = 1
    video: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "frames"):
            integer(getattr(self, name), f"a grid's {name}", least=1)

    @property
    def patches(self) -> int:
        """Patches of all frames."""
        return self.rows * self.columns * self.frames


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a vision tower whose layers are all alike.

    Attributes:
        layers: number of layers; all of them run, also those after the feature layer.
        hidden: width, d.
        intermediate: width of the FFN, m.
        heads: attention heads, h.
        head_dim: size of a head, e.
        patch: numbers that a patch is made of (colours, pixels, frames).
        side: patches on a side of the square pictures that it takes, (rows, columns); None where
            it takes any.
        classes: class tokens besides the patches of a picture.
        ffn_matrices: f, 3 for a gated FFN, 2 for a plain one.
        alive: tensors of the FFN's width that are alive at once: 3 where it is gated, or where
            the activation makes one more (CLIP's); read by `activations` alone.
        sight: what sees itself in an unwindowed layer: each `"frame"`, or all pictures of a
            `"call"`, which are then padded to the largest one for the patch embedding.
        merge: patches on a side of a token, by which windows are cut.
        window: patches on a side of a window, 0 without windows.
        unwindowed: the layers that see whole frames all the same.
        pooled: whether a picture ends in one vector by an attention-pooling head, which runs
            although the language model does not read it (SigLIP's).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    patch: int
    side: tuple[int, int] | None = None
    classes: int = 0
    ffn_matrices: int = 2
    alive: int = 2
    sight: Sight = "frame"
    merge: int = 1
    window: int = 0
    unwindowed: tuple[int, ...] = ()
    pooled: bool = False

    def places(self, grids: Iterable[Grid]) -> int:
        """Patches and class tokens of all pictures: what a layer works on."""
        return sum(grid.patches + grid.frames * self.classes for grid in grids)

    def grids(self, pictures: int | Sequence[Grid]) -> tuple[Grid, ...]:
        """`pictures` as grids; a number means so many pictures (tiles) of the tower's one size.

        Raises:
            ValueError: a number, for a tower that takes pictures of any size.
        """
        if isinstance(pictures, Sequence):
            return tuple(pictures)
        integer(pictures, "pictures", least=0)
        if self.side is None:
            raise BadOption(
                f"pictures={pictures} does not say how large they are, and this vision tower takes "
                "any size: list the rows and columns of their patches "
                "(tokenreduce.cost.Grid; task.pictures=[[rows,columns]])"
            )
        return (Grid(*self.side),) * pictures


def tower_macs(shape: TowerShape, grids: Sequence[Grid]) -> int:
    """MACs of a vision tower: patch embedding, all layers, and a pooling head where it has one."""
    d, across = shape.hidden, shape.heads * shape.head_dim
    places = shape.places(grids)
    each = places * d * (4 * across + shape.ffn_matrices * shape.intermediate)
    seen = sum(_squares(shape, grids, layer) for layer in range(shape.layers))
    head = 0
    if shape.pooled:
        pictures = sum(grid.frames for grid in grids)
        head = pictures * d * (2 * d + 2 * shape.intermediate) + places * d * (2 * d + 2)
    return (
        _embedded(shape, grids) * d * shape.patch + shape.layers * each + 2 * across * seen + head
    )


def _embedded(shape: TowerShape, grids: Sequence[Grid]) -> int:
    """Patches that the patch embedding works on."""
    if shape.sight == "frame" or not grids:
        return sum(grid.patches for grid in grids)
    largest = max(grid.rows for grid in grids) * max(grid.columns for grid in grids)
    return largest * sum(grid.frames for grid in grids)


def _squares(shape: TowerShape, grids: Sequence[Grid], layer: int) -> int:
    """The sum of squares of the stretches that see themselves in a layer."""
    if shape.sight == "call":
        return shape.places(grids) ** 2
    if not shape.window or layer in shape.unwindowed:
        return sum(grid.frames * (grid.rows * grid.columns + shape.classes) ** 2 for grid in grids)
    step = shape.window // shape.merge
    total = 0
    for grid in grids:
        rows, columns = (_cut(n // shape.merge, step) for n in (grid.rows, grid.columns))
        total += grid.frames * sum(n**2 for n in rows) * sum(n**2 for n in columns)
    return total * shape.merge**4


def _cut(n: int, step: int) -> list[int]:
    """`n` in pieces of `step`, the last of which may be shorter."""
    return [min(step, n - start) for start in range(0, n, step)]


Rule = Callable[[Any], TowerShape]

towers: Registry[Rule] = Registry("vision tower", "tokenreduce.cost.tower_kinds")
"""How the configuration of a kind of tower is read: its `model_type` -> a function."""


def tower_of(config: Any) -> TowerShape:
    """The sizes of the vision tower in a transformers configuration or its dict.

    Raises:
        ValueError: no vision tower in it, one of an unknown kind, or a size is missing.
    """
    if isinstance(config, TowerShape):
        return config
    part = read(config, "vision_config")
    if part is None:
        raise BadOption(
            f"the configuration of {read(config, 'model_type')!r} has no vision tower "
            "(`vision_config`): use tokenreduce.cost.cost for the decoder alone"
        )
    kind = str(read(part, "model_type"))
    if kind not in towers:
        raise BadOption(
            f"no formula here describes the vision tower {kind!r}{did_you_mean(kind, towers)} "
            f"(known: {', '.join(towers)}): pass a TowerShape, or use tokenreduce.cost.cost for "
            "the decoder alone"
        )
    return towers[kind](part)


def square(part: Any) -> tuple[int, int]:
    """Patches on the two sides of the pictures of a tower that takes one size."""
    sides = (read(part, name) for name in ("image_size", "patch_size"))
    (height, width), (down, across) = (_pair(x) for x in sides)
    return height // down, width // across


def pixels(part: Any, frames: int = 1) -> int:
    """Numbers that a patch of `frames` pictures is made of."""
    down, across = _pair(read(part, "patch_size"))
    return down * across * frames * (read(part, "num_channels") or read(part, "in_channels") or 3)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if value is None:
        size({}, "image_size")
    return int(value[0]), int(value[1])
