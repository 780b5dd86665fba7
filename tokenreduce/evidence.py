"""What a strategy may ask to be measured of the visual tokens: the one table of it, as data.

Shapes: b samples, v visual tokens at the stop, o visual tokens at layer 0, t text tokens, d width,
h heads, e head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tokenreduce.checks import layer_or_share
from tokenreduce.errors import BadOption, did_you_mean

Source = Literal["stop", "before", "input", "tower", "picture"]


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence.

    Attributes:
        name: by which a strategy names it in `needs`, and reads it: `tokens["keys"]`.
        dims: of the tensor, after b; empty where it is no tensor (`Tokens.places`).
        source: what it is measured on: the layer of the `"stop"`, the layer `"before"`, the
            `"input"` of layer 0, the vision `"tower"`, or the `"picture"`.
        meaning: what it is, for people.
        queries: whether every token's query is read, and not those of a few rows.
        flags: whether it is a mask, and no measure.
        layer: of the tower, where the name has none: the `"first"`, the `"last"`, or the one whose
            `"feature"`s are used; None where it is of no layer.
    """

    name: str
    dims: tuple[str, ...]
    source: Source
    meaning: str
    queries: bool = False
    flags: bool = False
    layer: Literal["first", "feature", "last"] | None = None

    def __str__(self) -> str:
        shape = f"(b, {', '.join(self.dims)}) " if self.dims else ""
        return f"{shape}{self.meaning}"


_KINDS = (
    Evidence(
        "attention",
        ("h", "v"),
        "stop",
        "attention of the instruction's last token at the layer of the stop",
    ),
    Evidence("attention_before", ("h", "v"), "before", "the same row, one layer earlier"),
    Evidence(
        "attention_received",
        ("h", "v"),
        "before",
        "mean over every query, one layer earlier",
        queries=True,
    ),
    Evidence(
        "text_attention",
        ("h", "t", "v"),
        "stop",
        "attention of every text token at the layer of the stop",
    ),
    Evidence(
        "text_attention_before",
        ("h", "t", "v"),
        "before",
        "the same rows, one layer earlier",
    ),
    Evidence(
        "received_from_text",
        ("v",),
        "before",
        "sum over text queries of the largest head's, one layer earlier",
        queries=True,
    ),
    Evidence(
        "received_from_visual",
        ("v",),
        "before",
        "mean over visual queries of the same, one layer earlier",
        queries=True,
    ),
    Evidence("keys", ("h", "v", "e"), "stop", "rotated keys at the layer of the stop"),
    Evidence("keys_before", ("h", "v", "e"), "before", "the same, one layer earlier"),
    Evidence("queries", ("h", "v", "e"), "stop", "rotated queries at the layer of the stop"),
    Evidence(
        "plain_keys",
        ("h", "v", "e"),
        "stop",
        "keys at the layer of the stop, before rotation",
    ),
    Evidence(
        "plain_queries",
        ("h", "v", "e"),
        "stop",
        "queries at the layer of the stop, before rotation",
    ),
    Evidence(
        "text_keys_before",
        ("h", "t", "e"),
        "before",
        "rotated keys of the text tokens, one layer earlier",
    ),
    Evidence(
        "text_rotation_before",
        ("t", "v"),
        "before",
        "scaled product of a query and a key of ones, rotated as text and visual tokens are, "
        "one layer earlier",
    ),
    Evidence("text", ("t", "d"), "stop", "hidden states of the text tokens"),
    Evidence("text_valid", ("t",), "stop", "True at text tokens, False at filler", flags=True),
    Evidence(
        "text_behind",
        ("t",),
        "stop",
        "True at text tokens after the sample's first visual token",
        flags=True,
    ),
    Evidence("normed", ("v", "d"), "stop", "hidden states through the decoder's last norm"),
    Evidence("text_normed", ("t", "d"), "stop", "the text tokens' through the same norm"),
    Evidence(
        "embedding",
        ("o", "d"),
        "input",
        "every visual token's input of layer 0, dropped ones included",
    ),
    Evidence(
        "embedding_valid",
        ("o",),
        "input",
        "True at these tokens, False at filler",
        flags=True,
    ),
    Evidence("text_embedding", ("t", "d"), "input", "the text tokens' input of layer 0"),
    Evidence(
        "class_attention",
        ("h", "v"),
        "tower",
        "attention of the vision tower's class token (without one: mean over all patches) in "
        "the layer whose features are used",
        layer="feature",
    ),
    Evidence(
        "class_attention_first",
        ("h", "v"),
        "tower",
        "the same in the tower's first layer",
        layer="first",
    ),
    Evidence(
        "tower_attention",
        ("h", "v"),
        "tower",
        "attention of all of the tower's tokens, their mean, in the layer whose features are used",
        layer="feature",
    ),
    Evidence("tower_features", ("v", "e"), "tower", "the features that the projector gets"),
    Evidence(
        "tower_keys",
        ("v", "e"),
        "tower",
        "keys in the layer whose features are used, mean over heads",
        layer="feature",
    ),
    Evidence(
        "class_match",
        ("v",),
        "tower",
        "softmax of the class token's query with the patches' keys in the last layer of the "
        "tower, over the full width as one head",
        layer="last",
    ),
    Evidence("match_keys", ("v", "e"), "tower", "these keys", layer="last"),
    Evidence(
        "grid",
        (),
        "picture",
        "image, frame, tile, row and column of every token (`Tokens.places`)",
    ),
)

EVIDENCE: Mapping[str, Evidence] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""What a strategy may name in `needs`, and the shape in which it gets it.

With labels, text tokens and queries are those in front of the sample's first answer: no choice may
depend on what it has to predict. (The rows of `attention` are the tokens before every answer.) What
the tower gives is of the patches that a visual token is made of (their mean).
"""

TOWER = MappingProxyType({n: kind for n, kind in EVIDENCE.items() if kind.source == "tower"})
"""Evidence on the vision tower. `at_layer` names what has a layer in another one."""

DECODER = MappingProxyType(
    {n: kind for n, kind in EVIDENCE.items() if kind.source in ("stop", "before", "input")}
)
"""Evidence on the decoder."""

AT_ANY_LAYER = tuple(n for n, kind in TOWER.items() if kind.layer not in (None, "first"))
"""Evidence of the tower that every layer of it has."""


def at_layer(name: str, layer: float) -> str:
    """The name of a tower's evidence in a layer: `at_layer("tower_attention", 1 / 3)`.

    Args:
        name: one of `AT_ANY_LAYER`.
        layer: a layer of the tower from 0, or a share of its depth below 1, rounded down.

    Raises:
        ValueError: evidence that is not of any layer, or neither a layer nor a share.
    """
    if name not in AT_ANY_LAYER:
        hint = did_you_mean(name, AT_ANY_LAYER)
        known = ", ".join(AT_ANY_LAYER)
        raise BadOption(f"{name!r} is not of any layer of a tower{hint} (known: {known})")
    return f"{name}@{layer_or_share(layer)!r}"


def kind_of(name: str) -> str:
    """The kind of evidence that a name stands for, without its layer: an entry of `EVIDENCE`."""
    return name.partition("@")[0]


def of_tower(needs: frozenset[str]) -> frozenset[str]:
    """The evidence among `needs` that a vision tower gives."""
    return frozenset(need for need in needs if kind_of(need) in TOWER)


def layer_of(name: str, depth: int) -> int | None:
    """The layer in the name of evidence, in a tower of `depth` layers; None without one.

    Raises:
        ValueError: the tower has no such layer.
    """
    where = name.partition("@")[2]
    if not where:
        return None
    spot = layer_or_share(float(where) if "." in where or "e" in where else int(where))
    layer = int(round(depth * spot, 9)) if isinstance(spot, float) else int(spot)
    if layer >= depth:
        raise BadOption(
            f"{name} is not in a vision tower of {depth} layers: name one of 0 to {depth - 1}, "
            "or a share of the depth such as 0.5"
        )
    return layer
