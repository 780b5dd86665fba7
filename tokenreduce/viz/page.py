"""Writes one self-contained HTML page on what a reduction did to some questions.

Everything is in the file: pictures, styles, script. It opens without a network, from a disk.
"""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenreduce.data.images import in_rgb
from tokenreduce.errors import BadOption
from tokenreduce.files import write_text
from tokenreduce.viz.chart import chart
from tokenreduce.viz.overlay import HEAT, Boxes, Stage, areas, dotted, fitted, glow, ranks, veil
from tokenreduce.viz.quantities import counted, quantity
from tokenreduce.viz.scene import Scene

LEAST, MOST = 480, 960
"""Pixels of a picture's longer side in the page: smaller ones are enlarged, larger ones shrunk."""
QUALITY = 85  # of JPEG
SHEET: dict[str, Any] = {"kind": "webp", "lossless": True, "quality": 50}
"""Of what lies over a picture: a tenth of the bytes that it has as PNG."""


@dataclass(frozen=True)
class Look:
    """One question that was answered by the full model and by the reduced one, to be looked at.

    Attributes:
        question: the text.
        answers: what was said, `"full"` and `"reduced"`.
        scenes: the pictures, and what was left of them (`tokenreduce.viz.scene`).
        report: `Reduction.report.to_dict()`, of this question alone.
        expected: the right answer where it is known.
        right: whether each of the answers is; None compares them with `expected`, word for word.
        probability: how likely each of the two models says an answer: model -> answer -> number.
        prefill_ms: times of the prefill, `"full"` and `"reduced"`; empty where not measured.
        prefill_ratio: reduced over full, of the medians of these times; None where none were taken.
        kept: `{layer: indices}` among all visual tokens of the question.
    """

    question: str
    answers: Mapping[str, str]
    scenes: Sequence[Scene]
    report: Mapping[str, Any]
    expected: str | None = None
    probability: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    prefill_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prefill_ratio: float | None = None
    kept: Mapping[int, Sequence[int]] = field(default_factory=dict)
    right: Mapping[str, bool] | None = None

    @property
    def same(self) -> bool:
        """Whether both models gave the same answer."""
        return self.answers["full"] == self.answers["reduced"]


def write_page(
    path: str | Path,
    looks: Sequence[Look],
    *,
    title: str = "",
    facts: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    summary: Sequence[str] = (),
) -> Path:
    """Write the page on `looks` to `path`; the same arguments give the same bytes.

    Args:
        path: of the file; an older one is replaced.
        looks: at least one.
        title: how the model was reduced, in a few words.
        facts: short ones for the head of the page, by name: model, device, commit.
        details: longer ones for its foot, by name: configuration, versions; shown as JSON.
        summary: sentences before the questions: of how many these are, what came out over all.

    Raises:
        ValueError: nothing to look at.
    """
    if not looks:
        raise BadOption("a page needs at least one question that was looked at")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tokenreduce.viz", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        title=title,
        facts={name: value for name, value in (facts or {}).items() if value is not None},
        details={name: _written(value) for name, value in (details or {}).items()},
        looks=[_article(look, number) for number, look in enumerate(looks, start=1)],
        same=sum(look.same for look in looks),
        summary=list(summary),
        heat=HEAT,
    )
    path = Path(path)
    return write_text(path, text)


def _article(look: Look, number: int) -> dict[str, Any]:
    """What the template shows of one question."""
    figures = [
        figure for i, scene in enumerate(look.scenes) for figure in _figures(scene, number, i)
    ]
    stages = look.scenes[0].stages if look.scenes else ()
    captions = [_caption([scene.stages[i] for scene in look.scenes]) for i in range(len(stages))]
    return {
        "number": number,
        "look": look,
        "figures": figures,
        "captions": captions,
        "labels": [_label(stage) for stage in stages],
        "ranked": any(stage.score is not None for stage in stages),
        "merged": any(stage.group is not None for stage in stages),
        "chart": chart(look.report),
        "costs": _costs(look),
        "answers": _answers(look),
        "data": {
            "captions": captions,
            "stages": [stage.layer for stage in stages],
            "figures": [figure["data"] for figure in figures],
        },
    }


def _caption(parts: Sequence[Stage]) -> str:
    """One line on a stage of all pictures of a question."""
    kept = sum(len(part.kept) for part in parts)
    groups = [part.group for part in parts if part.group is not None]
    layer = parts[0].layer
    if layer is None and groups:
        return f"merged in the vision tower: {', '.join(part.caption for part in parts)}"
    if layer is None:
        return f"all {counted(kept, 'visual token')}"
    how = ", some of them merged" if groups else ""
    return f"from layer {layer} on: {counted(kept, 'visual token')}{how}"


def _label(stage: Stage) -> str:
    """A word for the slider."""
    if stage.layer is not None:
        return str(stage.layer)
    return "all" if stage.group is None else "tower"


def _figures(scene: Scene, number: int, place: int) -> list[dict[str, Any]]:
    """The pictures that are shown: one for each view of a scene, and what lies over them when."""
    shown, source = _embedded(scene.image)
    found = []
    for view, tokens in scene.views():
        boxes, stages = scene.boxes[tokens], [_of_view(stage, tokens) for stage in scene.stages]
        of = (
            f"{len(tokens)} of {len(scene.boxes)} tokens" if view else counted(len(tokens), "token")
        )
        frames = f", {scene.frames} frames" if scene.frames > 1 else ""
        found.append(
            {
                "id": f"picture-{number}-{place + 1}-{view or 'whole'}",
                "name": scene.name,
                "caption": ", ".join(filter(None, [scene.name, view, of])) + frames,
                "source": source,
                "width": shown.width,
                "height": shown.height,
                "drawn": list(_drawn(boxes, stages, shown.size)),
                "data": {
                    "boxes": areas(boxes, shown.size).tolist(),
                    "tokens": (tokens + 1).tolist(),
                    "stages": [_known(stage, len(tokens)) for stage in stages],
                },
            }
        )
    return found


def _of_view(stage: Stage, tokens: npt.NDArray[np.int64]) -> Stage:
    """The part of a stage that is about some tokens; its scores are ranks among all of them."""
    place = {int(token): i for i, token in enumerate(tokens)}
    return replace(
        stage,
        kept=[place[i] for i in stage.kept if i in place],
        group=None if stage.group is None else [stage.group[i] for i in tokens],
        score=None if stage.score is None else ranks(stage.score)[tokens].tolist(),
    )


def _drawn(
    boxes: Boxes, stages: Sequence[Stage], size: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """What lies over a picture at each stage: what it is called, and its `data:` address."""
    for number, stage in enumerate(stages):
        kept = dotted(veil(boxes, stage.kept, stage.group, size), boxes, stage)
        yield f"{number} kept", _address(kept, **SHEET)
        if stage.score is not None:
            yield f"{number} scores", _address(glow(boxes, stage.score, size), **SHEET)


def _known(stage: Stage, n: int) -> dict[str, Any]:
    """What the script tells of the n tokens of a picture at a stage."""
    kept = set(stage.kept)
    data: dict[str, Any] = {"kept": "".join("01"[i in kept] for i in range(n))}
    if stage.group is not None:
        data["group"] = stage.group
    if stage.score is not None:
        data["above"] = [round(100 * x) if math.isfinite(x) else None for x in stage.score]
    return data


def _embedded(image: Image.Image) -> tuple[Image.Image, str]:
    """`image` at the size of the page, and its `data:` address."""
    side = max(image.size)
    if side >= LEAST:
        shown = in_rgb(image) if side <= MOST else fitted(image, MOST)
        return shown, _address(shown, "jpeg", quality=QUALITY)
    # enlarged by whole pixels, so that patches keep their borders
    shown = fitted(image, side * -(-LEAST // side))
    return shown, _address(shown, "png", optimize=True)


def _address(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _costs(look: Look) -> list[tuple[str, str, str, float]]:
    """Rows of the table of costs: what, full, reduced, and the share."""
    report, rows = look.report, list[tuple[str, str, str, float]]()
    full, left = report["visual_tokens"][0], report["visual_tokens"][0]
    if report["stops"]:
        left = report["stops"][-1]["kept"][0]
    rows.append(("visual tokens, last layer", str(full), str(left), left / max(full, 1)))
    for name, key, unit, base in (
        ("prefill FLOPs", "flops", "", 1000),
        ("KV cache of the prompt", "kv_bytes", "B", 1024),
    ):
        whole, part = report[f"{key}_full"], report[key]
        row = (name, quantity(whole, unit, base), quantity(part, unit, base), part / max(whole, 1))
        rows.append(row)
    if look.prefill_ratio is not None and look.prefill_ms:
        whole, part = (statistics.median(look.prefill_ms[name]) for name in ("full", "reduced"))
        rows.append(("prefill time", f"{whole:.1f} ms", f"{part:.1f} ms", look.prefill_ratio))
    return rows


def _answers(look: Look) -> list[dict[str, Any]]:
    """Rows of the table of answers: each model's answer, and how likely either model gives it."""
    return [
        {
            "who": who,
            "text": text,
            "right": _right(look, who),
            "chances": [look.probability.get(name, {}).get(text) for name in look.answers],
        }
        for who, text in look.answers.items()
    ]


def _right(look: Look, who: str) -> bool | None:
    if look.right is not None:
        return look.right[who]
    return None if look.expected is None else look.answers[who] == look.expected


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
