"""ToMe, against the recorded runs of facebookresearch/ToMe: its matching, and whole encoders.

The recorded encoder is timm's; the same weights run here in timm and in transformers.
Shapes: n pictures, t tokens, k kept, d width.
"""

from __future__ import annotations

import json
import os
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tokenreduce as tr
from tokenreduce.testing.encoders import from_transformers
from tokenreduce.tokens import Places, Tokens
from tokenreduce.tower import encoder_tower

from .cases import GOLDEN

CLOSE = 1e-4


def folders(prefix: str) -> list[Path]:
    """The case folders; the project's own, then further ones of TOKENREDUCE_GOLDEN."""
    extra = os.environ.get("TOKENREDUCE_GOLDEN")
    found: dict[str, Path] = {}
    for root in (GOLDEN, *([Path(extra)] if extra else [])):
        for path in sorted((root / "tome").glob(f"{prefix}*/case.json")):
            found.setdefault(path.parent.name, path.parent)
    return list(found.values())


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((folder / "case.json").read_text()), load_file(folder / "data.safetensors")


def name(folder: Path) -> str:
    return folder.name


MATCHES, ENCODERS = folders("match_"), folders("vit_")
ROWS = json.loads((GOLDEN / "tome" / "parse_r" / "case.json").read_text())["cases"]


def test_every_case_is_tested() -> None:
    own = {path.name for path in (GOLDEN / "tome").iterdir()}
    assert own == {f.name for f in (*MATCHES, *ENCODERS) if f.is_relative_to(GOLDEN)} | {"parse_r"}
    assert (len(MATCHES) >= 3, len(ENCODERS) >= 4, len(ROWS)) == (True, True, 7)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['r']}-{row['num_layers']}")
def test_the_schedule_is_the_recorded_one(row: dict[str, Any]) -> None:
    assert list(method(row["r"]).merges(row["num_layers"])) == row["out"]


def method(r: str, prop_attn: bool = True) -> tr.ToMe:
    """From the original's `r`: a number, a list, or a pair of a number and its inflection."""
    given = literal_eval(r)
    if isinstance(given, tuple):
        return tr.ToMe(given[0], given[1], prop_attn)
    return tr.ToMe(given, prop_attn=prop_attn)


@pytest.mark.parametrize("folder", MATCHES, ids=name)
def test_the_matching_is_the_recorded_one(folder: Path) -> None:
    case, data = read(folder)
    metric, x, size = data["metric"], data["x"], data["size"][..., 0]
    n, t = metric.shape[:2]
    fixed = case["class_token"] + case["distill_token"]
    tome = tr.ToMe(case["r"])
    (left,) = tome.counts(1, t, fixed)
    assert left == t - case["r_effective"]
    place = torch.arange(t).expand(n, t)

    def plan(size: Tensor | None) -> tr.Plan:
        valid = torch.ones(n, t, dtype=torch.bool)
        evidence = {"keys": lambda: metric[:, None]}
        where = Places.unknown(valid)
        rest = {"fixed": fixed, "size": size, "ordered": False, "evidence": evidence}
        return tome.plan(Tokens(x, valid, place, where, (t,) * n, t, **rest), (left,) * n)

    equal, weighted = plan(None), plan(size)
    assert equal.group is not None
    assert torch.equal(equal.group, weighted.group)
    halves = [case[f"{which}_idx_{of}_half"] for which, of in (("src", "even"), ("dst", "odd"))]
    for i, (sources, targets) in enumerate(zip(*halves, strict=True)):
        for source, target in zip(sources, targets, strict=True):
            assert equal.group[i, 2 * source] == equal.group[i, 2 * target + 1]
    source = nn.functional.one_hot(equal.group, left).transpose(1, 2).float()
    assert torch.equal(source, data["source"])
    close(equal.merge(x), data["merge_mean"])
    close(source @ x, data["merge_sum"])
    close(weighted.merge(x), data["wavg_x"])
    close(source @ size[..., None], data["wavg_size"])
    if not case["distill_token"]:  # there the original takes the second token for a seeking one
        close(equal.unmerge(data["merge_mean"]), data["unmerged"])


@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("folder", ENCODERS, ids=name)
def test_the_encoder_is_the_recorded_one(folder: Path, library: str) -> None:
    case, data = read(folder)
    model = encoder(folder / case["weights"].partition("/{")[0], library)
    tower: Any = encoder_tower(model)
    blocks = tower.layers
    if case["prop_attn"] and not tower.adds_mask():
        pytest.skip("the attention of this release's ViT takes no mask (transformers up to 5.8)")
    behind: list[Tensor] = []
    tome = method(case["r"], case["prop_attn"])
    merging = data["logits"] is not None and case["r"] != "0"
    with torch.no_grad(), tr.reduce(model, tome) as reduction:
        handles = [b.register_forward_hook(lambda _, __, x: behind.append(x)) for b in blocks]
        out = model(data["pixel_values"])
        for handle in handles:
            handle.remove()
    close(out if library == "timm" else out.logits, data["logits"])
    assert reduction.report.tokens_per_layer == case["tokens_after_block"]
    assert reduction.report.applied is merging
    assert [x.shape[1] for x in behind] == case["tokens_after_block"]
    assert f"block_out.{len(behind) - 1}" in data
    for i, x in enumerate(behind):
        if f"block_out.{i}" in data:
            close(x, data[f"block_out.{i}"])
    if merging:
        close(reduction.size[..., None], data["final_size"])
        left = data["final_source"].shape[1]
        source = nn.functional.one_hot(reduction.group, left).transpose(1, 2)
        assert torch.equal(source, data["final_source"].long())


def encoder(weights: Path, library: str) -> Any:
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(weights).eval()
    return from_transformers(model) if library == "timm" else model


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= CLOSE
