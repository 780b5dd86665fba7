"""Evidence from the vision tower in every family that has some: which patches, and what of them.

References are the models' own: gradients say which patches a visual token is made of, eager
attention says who attends to what.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.geometry import Picture
from tokenreduce.testing.batches import Batch, batch
from tokenreduce.testing.models import FAMILIES, Family
from tokenreduce.tokens import TOWER, Tokens, at_layer, kind_of, layer_of

NEAREST = ("llava_next", "llava_onevision")
"""Families that scale a picture's patches down: the patch named is the nearest of those used."""


def tower_of(family: Family, model: Any) -> Any:
    adapter = tr.adapters[family.adapter]()
    return None if family.bare else adapter.tower(adapter.base(model))


BLIND = tuple(name for name, family in FAMILIES.items() if family.adapter == "generic")
"""Recipes whose adapter knows no tower."""
SEEING = [
    name
    for name, family in FAMILIES.items()
    if not (family.bare or name in BLIND or name.endswith("-mixed"))
]
"""Recipes with a tower that tells, one kind of picture each."""


PLACED = (
    at_layer("class_attention", 0),
    at_layer("tower_attention", 0.0),
    at_layer("tower_keys", 0.999),
    at_layer("class_match", 0.999),
)
"""Evidence in a layer: by its number, and by a share of the depth."""


class Probe(tr.Stride):
    """Notes what the tower says."""

    needs = frozenset({*TOWER, *PLACED})

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def plan(self, tokens: Tokens, budget: Any) -> tr.Plan:
        self.seen = {name: tokens[name] for name in self.needs}
        return super().plan(tokens, budget)


class Watched:
    """A run of a family on two samples, what enters layer 0, and what the tower computes."""

    def __init__(self, name: str) -> None:
        family = FAMILIES[name]
        self.model, self.given = family.model("eager"), batch(family, (1, 2), "left")
        self.tower = tower_of(family, self.model)
        self.outputs: dict[str, list[Tensor]] = {"features": [], "feature": [], "first": []}
        self.entering: list[Tensor] = []
        layers = self.tower.layers
        last = layers[self.tower.feature] if self.tower.norm is None else self.tower.norm
        last.register_forward_hook(self._take("features", 0))
        attentions = {
            id(self.tower.attention(layers[at])): which
            for which, at in (("feature", self.tower.feature), ("first", 0))
        }
        for layer in {layers[0], layers[self.tower.feature]}:
            if hasattr(self.tower.attention(layer), "fused_attn"):  # timm: no map, unless asked
                self._unfuse(self.tower.attention(layer), attentions)
        module = sys.modules[type(self.tower.attention(layers[0])).__module__]
        self.plain = getattr(module, "eager_attention_forward", None)

        def noting(attention: Any, *args: Any, **kwargs: Any) -> Any:
            found = self.plain(attention, *args, **kwargs)
            if id(attention) in attentions:
                self.outputs[attentions[id(attention)]].append(found[1])
            return found

        if self.plain is not None:
            module.eager_attention_forward = noting
        decoder = self.model.get_decoder()
        decoder.layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        self.probe = Probe()
        with tr.reduce(self.model, self.probe, tr.Single(1, 0.5)) as reduction:
            self.given.run(self.model, reduction, use_cache=False)
            self.pictures = reduction.pictures
        if self.plain is not None:
            module.eager_attention_forward = self.plain

    def _unfuse(self, attention: Any, names: dict[int, str]) -> None:
        attention.fused_attn = False
        take = self._take(names[id(attention)], 0)
        attention.attn_drop.register_forward_hook(take)

    def _take(self, name: str, of: int) -> Any:
        def take(_: Any, __: Any, output: Any) -> None:
            self.outputs[name].append(output[of] if isinstance(output, tuple) else output)

        return take

    def _enter(self, _: Any, args: Any, kwargs: Any) -> None:
        self.entering.append(args[0] if args else kwargs["hidden_states"])

    def patches(self, i: int) -> Tensor:
        """(v, m) the patches of sample `i`'s tokens."""
        parts = [picture.patches for picture in self.pictures[i]]
        most = max(part.shape[1] for part in parts)
        pad = torch.nn.functional.pad
        return torch.cat([pad(part, (0, most - part.shape[1]), value=-1) for part in parts])


@pytest.fixture(scope="module", params=SEEING)
def run(request: Any) -> Watched:
    watched = Watched(request.param)
    watched.name = request.param
    return watched


def test_many_families_have_such_a_tower() -> None:
    adapters = {FAMILIES[name].adapter for name in SEEING}
    assert adapters >= {
        *("llava", "llava_next", "llava_next_video", "llava_onevision", "internvl"),
        *("gemma3", "paligemma", "idefics3", "smolvlm", "mistral3"),
        *("qwen2_vl", "qwen3_vl", "glm4v", "perception_lm"),
    }


@pytest.mark.parametrize("name", BLIND)
def test_others_have_none(name: str) -> None:
    assert tower_of(FAMILIES[name], FAMILIES[name].model("eager")) is None


def test_a_token_is_made_of_the_patches_that_it_names(run: Watched) -> None:
    """The gradient of a token reaches those patches of the tower and no others."""
    features = run.outputs["features"]
    assert len(features) == 1, "one call of the encoder"
    for i in range(2):
        places, patches = run.given.visual[i].nonzero()[:, 0], run.patches(i)
        assert len(patches) == len(places)
        for j in range(0, len(places), max(len(places) // 7, 1)):
            token = run.entering[0][i, places[j]]
            [found] = torch.autograd.grad(
                token.square().sum(), features, retain_graph=True, allow_unused=True
            )
            named = {p for p in patches[j].tolist() if p >= 0}
            if found is None:  # a newline
                assert not named
                continue
            reached = found.reshape(-1, found.shape[-1]).abs().amax(dim=1)
            reached = reached.view(*found.shape[:-1])[..., run.tower.classes :].flatten()
            theirs = set((reached > 1e-9 * reached.max()).nonzero()[:, 0].tolist())
            if reached.max() == 0:
                assert not named
            elif run.name.startswith(NEAREST):
                assert named
                assert named <= theirs, f"token {j} of sample {i}"
            else:
                assert named == theirs, f"token {j} of sample {i}"


def test_attention_and_features_are_the_towers_own(run: Watched) -> None:
    """The mean over a token's patches."""
    classes = run.tower.classes

    def share(which: str) -> Tensor:
        """(patches, h)."""
        # without a class token, the mean over those that see a patch at all
        asked = [
            m[:, :, 0] if classes else m.sum(dim=2) / (m > 0).sum(dim=2) for m in run.outputs[which]
        ]
        return torch.cat([x[:, :, classes:].transpose(1, 2).flatten(0, 1) for x in asked])

    def received(which: str) -> Tensor:
        """(patches, h) of the mean over all tokens, class tokens among them."""
        every = [m.sum(dim=2) / (m > 0).sum(dim=2) for m in run.outputs[which]]
        return torch.cat([x[:, :, classes:].transpose(1, 2).flatten(0, 1) for x in every])

    [features] = run.outputs["features"]
    expected = {
        "class_attention": share("feature"),
        "class_attention_first": share("first"),
        "class_attention@0": share("first"),
        "tower_attention": received("feature"),
        "tower_attention@0.0": received("first"),
        "tower_features": features.view(-1, features.shape[-2], features.shape[-1])[
            :, classes:
        ].flatten(0, 1),
    }
    for i in range(2):
        patches = run.patches(i)
        there = (patches >= 0)[..., None]
        for name, whole in expected.items():
            mine = run.probe.seen[name][i]
            mine = mine.T if "attention" in name else mine
            mean = (whole[patches.clamp(min=0)] * there).sum(1) / there.sum(1).clamp(min=1)
            close = torch.testing.assert_close
            close(mine[: len(patches)], mean.detach(), atol=1e-5, rtol=1e-4)
        assert run.probe.seen["class_match"][i, : len(patches)].sum() > 0
        last = len(run.tower.layers) - 1
        if last:  # a share of nearly one is the last layer
            same = torch.equal(run.probe.seen["class_match@0.999"], run.probe.seen["class_match"])
            assert same == (layer_of("class_match@0.999", last + 1) == last)
        assert run.probe.seen["match_keys"][i].isfinite().all()


def test_what_has_no_such_tower_is_refused_by_name() -> None:
    model = FAMILIES["vipllava"].model()
    with pytest.raises(TypeError, match="FasterVLM needs class_attention"):
        tr.reduce(model, "fastervlm")


def test_batches_are_what_they_say(run: Watched) -> None:
    assert isinstance(run.given, Batch)
    assert all(len(run.patches(i)) == n for i, n in enumerate(run.given.counts))


@pytest.mark.parametrize("strategy", ["fastervlm", tr.ToMe(r=2, tower="merged")])
def test_pictures_of_unknown_patches_are_refused_in_one_line(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a release's encoder returns another number of tokens than its adapter expects."""

    def unread(self: Any, base: Any, call: Any, output: Any) -> list[Picture]:
        return [Picture.unknown(len(features)) for features in output.pooler_output]

    monkeypatch.setattr(tr.adapters["llava"], "pictures", unread)
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], (1,))
    with pytest.raises(tr.ContractError) as error, tr.reduce(model, strategy) as reduction:
        given.run(model, reduction)
    said = str(error.value)
    assert "\n" not in said
    for part in ("LlavaModel", "visual tokens", "not known", "fastv", "remove the reduction"):
        assert part in said
    with torch.no_grad(), tr.reduce(model, "fastv", tr.Single(2, 0.5)) as reduction:
        given.run(model, reduction)  # what asks the decoder alone goes on
    assert reduction.report.applied == [True]


def test_evidence_in_a_layer_is_named() -> None:
    assert at_layer("tower_attention", 9) == "tower_attention@9"
    assert layer_of("tower_attention@9", 24) == 9
    assert layer_of(at_layer("tower_attention", 1 / 3), 24) == 8
    assert layer_of(at_layer("tower_keys", 1e-7), 24) == 0
    assert layer_of("tower_attention", 24) is None
    assert kind_of("tower_attention@9") == kind_of("tower_attention") == "tower_attention"
    with pytest.raises(ValueError, match="did you mean 'tower_attention'"):
        at_layer("tower_atention", 3)
    with pytest.raises(ValueError, match="'tower_features' is not of any layer"):
        at_layer("tower_features", 3)
    with pytest.raises(ValueError, match="-1"):
        at_layer("tower_keys", -1)
    with pytest.raises(ValueError, match="not in a vision tower of 24 layers: name one of 0 to 23"):
        layer_of("tower_attention@24", 24)


def test_a_layer_that_the_tower_lacks_is_refused() -> None:
    """Before the model runs."""
    probe = tr.FasterVLM()
    probe.needs = frozenset({at_layer("class_attention", 99)})  # type: ignore[misc]
    with pytest.raises(ValueError, match="class_attention@99 is not in a vision tower of"):
        tr.reduce(FAMILIES["llava"].model(), probe)


def test_evidence_in_a_layer_is_refused_where_there_is_no_tower() -> None:
    probe = tr.FasterVLM()
    probe.needs = frozenset({at_layer("class_attention", 1)})  # type: ignore[misc]
    with pytest.raises(TypeError, match="FasterVLM needs class_attention@1"):
        tr.reduce(FAMILIES["vipllava"].model(), probe)
