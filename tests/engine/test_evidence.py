"""Every kind of evidence, against the model's own attention maps and hidden states.

The reference is the eager model's `output_attentions` / `output_hidden_states`, and for the vision
tower its own. A probe strategy notes what it is given and keeps everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing.batches import Batch, batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.tokens import DECODER, TOWER, Plan, Tokens
from tokenreduce.tower import rotate

LAYER = 2


@dataclass
class Probe(tr.Stride):
    """Notes all evidence at each stop, and drops every second token."""

    needs: ClassVar[frozenset[str]] = frozenset(DECODER)
    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """What stride does."""
        self.seen.append({name: tokens[name] for name in self.needs} | {"hidden": tokens.hidden})
        return super().plan(tokens, budget)


@dataclass
class TowerProbe(Probe):
    """The same with the evidence of the vision tower."""

    needs: ClassVar[frozenset[str]] = frozenset(TOWER)


def probed(model: Any, given: Batch, probe: Probe, layers: tuple[int, ...] = (LAYER,)) -> None:
    keeps = tuple(0.5 / (i + 1) for i in range(len(layers)))
    with tr.reduce(model, probe, tr.Explicit(layers, keeps)) as reduction, torch.no_grad():
        given.run(model, reduction, use_cache=False)


@pytest.fixture(scope="module", params=["llama-gqa", "qwen3", "llava_next"])
def case(request: Any) -> tuple[Any, Batch, dict[str, Tensor], Any]:
    model = FAMILIES[request.param].model("eager")
    given = batch(FAMILIES[request.param], (1, 2), "left")
    probe = Probe()
    probed(model, given, probe)
    with torch.no_grad():
        plain = given.run(model, use_cache=False, output_attentions=True, output_hidden_states=True)
    return model, given, probe.seen[0], plain


def rows(given: Batch, i: int) -> tuple[Tensor, Tensor]:
    """Positions of the visual and of the text tokens of sample i."""
    return given.visual[i].nonzero()[:, 0], (given.real[i] & ~given.visual[i]).nonzero()[:, 0]


def close(mine: Tensor, theirs: Tensor) -> None:
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() < 1e-5


def test_rows_of_attention(case: Any) -> None:
    _, given, seen, plain = case
    for suffix, layer in (("", LAYER), ("_before", LAYER - 1)):
        for i in range(2):
            visual, text = rows(given, i)
            own = plain.attentions[layer][i]
            close(seen["attention" + suffix][i, :, : len(visual)], own[:, -1, visual])
            mine = seen["text_attention" + suffix][i, :, : len(text), : len(visual)]
            close(mine, own[:, text][:, :, visual])


def test_attention_received(case: Any) -> None:
    _, given, seen, plain = case
    for i in range(2):
        visual, text = rows(given, i)
        own = plain.attentions[LAYER - 1][i]
        n = len(visual)
        close(seen["attention_received"][i, :, :n], own[:, given.real[i]].mean(1)[:, visual])
        largest = own.amax(dim=0)[:, visual]
        close(seen["received_from_text"][i, :n], largest[text].sum(0))
        close(seen["received_from_visual"][i, :n], largest[visual].mean(0))


def test_hidden_states_of_text_and_picture(case: Any) -> None:
    model, given, seen, plain = case
    norm = model.get_decoder().norm
    for i in range(2):
        visual, text = rows(given, i)
        n, t = len(visual), len(text)
        states = plain.hidden_states[LAYER][i]
        close(seen["text"][i, :t], states[text])
        close(seen["normed"][i, :n], norm(states[visual]).detach())
        close(seen["text_normed"][i, :t], norm(states[text]).detach())
        close(seen["embedding"][i, :n], plain.hidden_states[0][i, visual])
        close(seen["text_embedding"][i, :t], plain.hidden_states[0][i, text])
        assert seen["text_valid"][i].sum() == t
        assert not seen["text"][i, t:].any()
        assert seen["embedding_valid"][i].sum() == n
        assert torch.equal(seen["text_behind"][i, :t], text > visual[0])


def test_keys_and_queries_give_the_attention(case: Any) -> None:
    """The softmax over visual keys of visual queries, up to each row's constant."""
    model, given, seen, plain = case
    scale = model.get_decoder().layers[LAYER].self_attn.scaling
    visual, text = rows(given, 0)
    n = len(visual)
    queries, keys = seen["queries"][0, :, :n], seen["keys"][0, :, :n]
    own = plain.attentions[LAYER][0][:, visual][:, :, visual]
    products = (queries @ keys.transpose(1, 2) * scale).masked_fill(own == 0, float("-inf"))
    close(products.softmax(-1), own / own.sum(-1, keepdim=True))
    before = plain.attentions[LAYER - 1][0]
    keys = torch.cat(
        [seen["keys_before"][0, :, :n], seen["text_keys_before"][0, :, : len(text)]], 1
    )
    assert keys.isfinite().all()
    assert keys.shape[1] == n + len(text)
    assert before.shape[-1] >= keys.shape[1]


def test_rotation_counts_from_the_first_token_of_a_sample(case: Any) -> None:
    """Keys are those of the sample alone, without padding: rotated, plain, and keys of ones."""
    model, given, seen, plain = case
    decoder = model.get_decoder()
    layers, embed = decoder.layers, decoder.rotary_emb
    assert not bool(given.real.all())
    for i in range(2):
        visual, text = rows(given, i)
        start, n = int(given.real[i].long().argmax()), len(visual)
        length = int(given.real[i].sum())
        tables = embed(plain.hidden_states[0], torch.arange(length)[None])
        for name, layer in (("", LAYER), ("_before", LAYER - 1)):
            attention = layers[layer].self_attn
            states = layers[layer].input_layernorm(plain.hidden_states[layer][i, start:])[None]
            for kind in ("keys", "queries"):
                x = getattr(attention, f"{kind[0]}_proj")(states)
                x = x.view(1, length, -1, attention.head_dim)
                norm = getattr(attention, f"{kind[0]}_norm", None)
                x = (x if norm is None else norm(x)).transpose(1, 2).detach()
                x = x.repeat_interleave(seen["queries"].shape[1] // x.shape[1], dim=1)
                if f"plain_{kind}{name}" in seen:
                    close(seen[f"plain_{kind}{name}"][i, :, :n], x[0, :, visual - start])
                for which, at in ((kind, visual), (f"text_{kind}", text)):
                    if which + name in seen:
                        mine = seen[which + name][i, :, : len(at)]
                        close(mine, rotate(x, tables)[0, :, at - start])
        ones = rotate(torch.ones(1, 1, length, tables[0].shape[-1]), tables)[0, 0]
        products = ones[text - start] @ ones[visual - start].T / ones.shape[-1] ** 0.5
        close(seen["text_rotation_before"][i, : len(text), :n], products)


def test_evidence_after_a_stop_is_about_what_is_left(case: Any) -> None:
    model, given, *_ = case
    probe = Probe()
    probed(model, given, probe, (1, 3))
    first, second = probe.seen
    assert second["attention"].shape[-1] < first["attention"].shape[-1]
    assert torch.equal(first["embedding"], second["embedding"])
    assert torch.equal(first["text_valid"], second["text_valid"])


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_what_the_tower_says(name: str) -> None:
    model = FAMILIES[name].model("eager")
    given = batch(FAMILIES[name], (1, 2), "left")
    probe = TowerProbe()
    probed(model, given, probe, (0,))
    seen = probe.seen[0]
    with torch.no_grad():
        pixels = given.inputs["pixel_values"]
        if name == "llava_next":  # the tiles that are there, picture after picture
            used = [shot.tensors["pixel_values"][0] for s in given.samples for shot in s.shots]
            pixels = torch.cat(used)
        tower = model.model.vision_tower
        out = tower(pixels, output_attentions=True, output_hidden_states=True)
    patches = out.hidden_states[-1][:, 1:].flatten(0, 1)
    share = out.attentions[-1][:, :, 0, 1:].transpose(1, 2).flatten(0, 1)
    first = out.attentions[0][:, :, 0, 1:].transpose(1, 2).flatten(0, 1)
    with tr.reduce(model, "none") as reduction, torch.no_grad():
        given.run(model, reduction, use_cache=False)
        pictures = reduction.pictures
    for i in range(2):
        which = torch.cat([picture.patches for picture in pictures[i]])[:, 0]
        n, there = len(which), which >= 0
        close(seen["tower_features"][i, :n][there], patches[which[there]])
        close(seen["class_attention"][i, :, :n].T[there], share[which[there]])
        close(seen["class_attention_first"][i, :, :n].T[there], first[which[there]])
        assert not seen["class_attention"][i, :, :n].T[~there].any()
        assert seen["class_match"][i, :n].sum() > 0
    assert (which < 0).any() == (name == "llava_next")
