"""The recorded cases: what an original implementation was given, and what it did.

A case is a folder `<method>/<name>` with `case.json` (settings, kept tokens) and
`data.safetensors` (inputs and outputs). The project's own copy is `tests/golden`; the environment
variable TOKENREDUCE_GOLDEN may name a folder of the same layout, whose further cases then run too.

Shapes: b samples, l sequence (expanded: visual tokens in place), n rows left at a layer, d width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

METHODS = ("pyramiddrop", "fastv", "vtw")
GOLDEN = Path(__file__).parents[1] / "golden"
PLACEHOLDER = -200
"""LLaVA's mark for an image in un-expanded `input_ids`."""
IGNORED = -100

Kept = dict[int, list[list[int]]]
"""Layer of a stop -> for each sample, the indices of the visual tokens that stay."""


@dataclass(frozen=True)
class Case:
    """One recorded run of an original implementation, read into one form for all methods."""

    folder: Path

    def __str__(self) -> str:
        return f"{self.method}/{self.name}"

    @property
    def method(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "data.safetensors")

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def model(self, attention: str = "sdpa") -> LlamaForCausalLM:
        """The model that was recorded, fresh, in evaluation mode."""
        weights = (self.folder / self["weights"]).parent
        return LlamaForCausalLM.from_pretrained(weights, attn_implementation=attention).eval()

    @property
    def kind(self) -> str:
        """What was recorded: `forward`, `train` or `generate`."""
        if self.settings["mode"] == "train":
            return "train"
        generated = any(name.endswith("generated") for name in self.tensors)
        return "generate" if generated else "forward"

    # the inputs

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First position and number of the visual tokens of each sample; (0, 0) without any."""
        if self.method != "pyramiddrop":
            return [(self["sys_length"], self["image_token_length"])]
        pairs = zip(self["image_token_posi"], self["image_tokens"], strict=True)
        return [(start, n) if start >= 0 else (0, 0) for start, n in pairs]

    @cached_property
    def lengths(self) -> list[int]:
        """Real positions of each sample: its text and its visual tokens."""
        if self.method != "pyramiddrop":
            return [self.tensors["inputs_embeds"].shape[1]]
        ids, mask = self.tensors["input_ids"], self.tensors.get("attention_mask")
        texts = (ids != PLACEHOLDER) & (mask.bool() if mask is not None else True)
        counts = texts.sum(dim=1).tolist()
        return [text + n for text, (_, n) in zip(counts, self.spans, strict=True)]

    @property
    def length(self) -> int:
        return max(self.lengths)

    @cached_property
    def valid(self) -> Tensor:
        """(b, l) True at real positions; the originals pad on the right."""
        return torch.arange(self.length) < torch.tensor(self.lengths)[:, None]

    @property
    def mask(self) -> Tensor | None:
        """(b, l) the attention mask; None where the original was given none."""
        return None if bool(self.valid.all()) else self.valid.long()

    @cached_property
    def visual(self) -> Tensor:
        """(b, l) True at visual positions."""
        at = torch.arange(self.length)
        return torch.stack([(at >= start) & (at < start + n) for start, n in self.spans])

    @property
    def labels(self) -> Tensor | None:
        return self.tensors.get("labels_expanded")

    def features(self) -> list[Tensor]:
        """The image features of every sample, fresh leaves that can take a gradient."""
        count = sum(name.startswith("image_features.") for name in self.tensors)
        found = (self.tensors[f"image_features.{i}"] for i in range(count))
        return [x.clone().requires_grad_() for x in found]

    def embeds(self, model: LlamaForCausalLM, features: list[Tensor] | None = None) -> Tensor:
        """(b, l, d) what the decoder is given; built from ids and `features` as LLaVA does."""
        if self.method != "pyramiddrop":
            return self.tensors["inputs_embeds"].clone()
        features = self.features() if features is None else features
        embed = model.get_input_embeddings()
        ids, rows = self.tensors["input_ids"], []
        for i, ((start, n), length) in enumerate(zip(self.spans, self.lengths, strict=True)):
            pieces = [embed(ids[i, :start])]
            pieces += [features[i], embed(ids[i, start + 1 : length - n + 1])] if n else []
            pieces += [] if n else [embed(ids[i, :length])]
            row = torch.cat(pieces)
            rows.append(torch.cat([row, row.new_zeros(self.length - length, row.shape[1])]))
        return torch.stack(rows)

    # what the original did

    @cached_property
    def kept(self) -> Kept:
        """Layer of the stop -> the visual tokens that each sample keeps, as original indices."""
        if self.method == "vtw":
            return {self["k"]: [[]]}
        if self.method == "fastv":
            first = next(self.settings[k] for k in PRUNES if k in self.settings)[0]
            return {self["K"]: [first["kept_of_original"]]}
        found: Kept = {}
        stages = {stage["rank_layer"]: stage for stage in self["stages"]}
        for layer in self["layer_list"]:
            samples = stages.get(layer, {"samples": []})["samples"]
            by_sample = {s["sample"]: s["kept_of_original"] for s in samples}
            found[layer] = [by_sample.get(i, []) for i in range(len(self.spans))]
        return found

    def scores(self) -> Iterator[tuple[int, int, Tensor]]:
        """(layer, sample, scores over the visual tokens still there), one per recorded ranking."""
        stops = list(self.kept)
        for name, value in self.tensors.items():
            head = name.split(".")
            if self.method == "pyramiddrop" and head[-1] == "scores":
                yield stops[int(head[0][5:])], int(head[1][6:]), value
            elif name in ("prune0.scores", "step0.scores", "cache.step0.scores"):
                yield stops[0], 0, value

    def survivors(self, layer: int, sample: int) -> list[int]:
        """Logical positions that are still there behind the stops up to `layer`."""
        start, n = self.spans[sample]
        alive = set(range(n))
        for stop, kept in self.kept.items():
            if stop <= layer:
                alive = set(kept[sample])
        at = range(self.lengths[sample])
        return [i for i in at if not start <= i < start + n or i - start in alive]

    def hidden_length(self, layer: int) -> int:
        """Rows inside `layer`: those of the longest sample; padding leaves with the first stop."""
        if layer < min(self.kept):
            return self.length
        return max(len(self.survivors(layer, i)) for i in range(len(self.lengths)))

    def hidden(self, layer: int, sample: int) -> Tensor | None:
        """(n, d) recorded input of `layer` behind its stop; None where nothing was computed there.

        FastV and VTW were recorded before the stop at its own layer, and FastV's mask mode at every
        position: what is compared is what survives.
        """
        built = "inputs_embeds" if self.method == "pyramiddrop" else "given"
        recorded = self.tensors.get(f"hidden.{layer}" if layer else built)
        if recorded is None:
            return None
        alive = self.survivors(layer, sample)
        return self._alive(recorded[sample], alive)

    def logits(self, sample: int) -> tuple[list[int], Tensor] | None:
        """Logical positions and the (n, vocabulary) logits recorded there; None without any."""
        alive = self.survivors(10**6, sample)
        if (tail := self.tensors.get("logits_last16")) is not None:
            return alive[-16:], tail[sample]
        recorded = self.tensors.get("logits")
        return None if recorded is None else (alive, self._alive(recorded[sample], alive))

    def _alive(self, rows: Tensor, alive: list[int]) -> Tensor:
        whole = self.method != "pyramiddrop" and rows.shape[0] == self.length
        return rows[alive] if whole else rows[: len(alive)]


PRUNES = ("prunes", "prunes_per_step", "prunes_cache")


def folders() -> list[Path]:
    """Every case folder: the project's own, then further ones of TOKENREDUCE_GOLDEN."""
    roots = [GOLDEN]
    if extra := os.environ.get("TOKENREDUCE_GOLDEN"):
        roots.append(Path(extra))
    found: dict[str, Path] = {}
    for root in roots:
        for method in METHODS:
            for folder in sorted((root / method).glob("*/")):
                found.setdefault(f"{method}/{folder.name}", folder)
    return list(found.values())


def cases(method: str, *kinds: str) -> list[Case]:
    """The cases of `method` that recorded one of `kinds`, deviating ones included."""
    of_method = (Case(folder) for folder in folders() if folder.parent.name == method)
    return [case for case in of_method if not kinds or case.kind in kinds]
