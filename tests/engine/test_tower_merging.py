"""What holds where tokens are merged inside the vision tower of a vision-language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import tokenreduce as tr
from tests.gradients import checkpointing_changes_no_gradient
from tokenreduce.engine.tower.bridge import GROUP, TowerBridge
from tokenreduce.geometry import Picture
from tokenreduce.testing import model_laws, state_laws
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.trial import Stops, Trial
from tokenreduce.tower import Tower

CLOSE = 3e-5
SIDE, PATCH, LAYERS, HEADS = 24, 4, 4, 4
PATCHES = (SIDE // PATCH) ** 2
IMAGE = 7


def llava(kind: str, attention: str = "sdpa") -> Any:
    """LLaVA whose language model gets the tower's last layer but one."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    towers: dict[str, Any] = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig}
    config = hf.LlavaConfig(
        vision_config=towers[kind](**vision),
        text_config=hf.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=99,
            pad_token_id=0,
        ),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )
    model: Any = hf.LlavaForConditionalGeneration._from_config(
        config, attn_implementation=attention
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if any(part in name for part in ("q_proj.w", "k_proj.w")):
                value.mul_(10)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    """Two samples, left-padded: one picture, and two pictures."""
    generator = torch.Generator().manual_seed(1)
    picture = [IMAGE] * PATCHES
    rows = [[11, 12, *picture, 13, 14], [15, *picture, 16, *picture, 17, 18, 19]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def by_hand(model: Any, pixels: Tensor, tome: tr.ToMe) -> tuple[Tensor, list[list[list[int]]]]:
    """What the projector gets (n, patches, d), and per picture the patches of every group."""
    tower = model.model.vision_tower
    inner = getattr(tower, "vision_model", tower)
    x = inner.embeddings(pixels)
    x = inner.pre_layrnorm(x) if hasattr(inner, "pre_layrnorm") else x
    fixed, rows, found = x.shape[1] - PATCHES, [], []
    for one in x:  # a picture after the other
        h, groups = one, [[i] for i in range(len(one))]
        counts = tome.counts(LAYERS, len(one), fixed)
        for layer, left in list(zip(inner.encoder.layers, counts, strict=True))[:-1]:
            attention, y = layer.self_attn, layer.layer_norm1(h)
            q, k, v = (
                project(y).view(len(h), HEADS, -1).transpose(0, 1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
            if tome.prop_attn:
                scores = scores + scores.new_tensor([float(len(g)) for g in groups]).log()
            h = h + attention.out_proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
            key = torch.nn.functional.normalize(k.mean(dim=0), dim=-1)
            best = []
            for i in range(0, len(h), 2):
                others = [(float(key[i] @ key[j]), j) for j in range(1, len(h), 2) if j >= fixed]
                if i >= fixed:
                    best.append((*max(others), i))
            best.sort(reverse=True)
            size = [len(g) for g in groups]
            joined, total = [list(g) for g in groups], [r * n for r, n in zip(h, size, strict=True)]
            gone = set()
            for _, j, i in best[: len(h) - left]:
                joined[j] += joined[i]
                total[j] = total[j] + total[i]
                gone.add(i)
            seeking = [i for _, _, i in best if i not in gone]
            order = list(range(fixed)) + (sorted(seeking) if fixed else seeking)
            order += [j for j in range(1, len(h), 2) if j >= fixed]
            if left == len(h):
                order = list(range(left))
            groups = [joined[i] for i in order]
            h = torch.stack([total[i] / len(joined[i]) for i in order])
            h = h + layer.mlp(layer.layer_norm2(h))
        whole = h.new_empty(len(one), h.shape[-1])
        for row, group in zip(h, groups, strict=True):
            whole[group] = row
        rows.append(whole[fixed:])
        found.append([sorted(i - fixed for i in g) for g in groups if min(g) >= fixed])
    return torch.stack(rows), found


KINDS = ("clip", "siglip")


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_projector_gets_what_is_merged_by_hand(kind: str, prop_attn: bool) -> None:
    # in fp64: attention this sharp carries rounding to the tolerance, by the weights that are drawn
    model, given = llava(kind).double(), inputs()
    given["pixel_values"] = given["pixel_values"].double()
    tome = tr.ToMe(r=[5, 0, 9, 3], prop_attn=prop_attn, tower="expanded")
    seen: list[Tensor] = []
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        with tr.reduce(model, tome):
            model(**given)
        expected, groups = by_hand(model, given["pixel_values"], tome)
    handle.remove()
    assert (seen[0] - expected).abs().max() < 1e-7 * expected.abs().max()
    assert [len(g) for g in groups] == [PATCHES - 14] * 3  # the last layer is behind the features


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_gets_every_group_once(kind: str) -> None:
    model, given = llava(kind), inputs()
    tome = tr.ToMe(r=6, tower="merged")
    with torch.no_grad():
        with tr.reduce(model, tome) as reduction:
            logits = model(**given).logits
            kept, report = reduction.kept, reduction.report
        features, groups = by_hand(model, given["pixel_values"], tome)
        features = model.model.multi_modal_projector(features)
        first = 0
        for i, pictures in enumerate((1, 2)):
            ids = given["input_ids"][i][given["attention_mask"][i] > 0]
            x = model.get_input_embeddings()(ids)
            visual = ids == IMAGE
            x[visual] = features[first : first + pictures].flatten(0, 1)
            own = [
                min(group) + PATCHES * at for at in range(pictures) for group in groups[first + at]
            ]
            assert kept[0][i].tolist() == sorted(own)
            stays = ~visual
            stays[visual.nonzero()[sorted(own), 0]] = True
            place = torch.arange(len(ids))[stays]
            alone = model.model.language_model(
                inputs_embeds=x[stays][None], position_ids=place[None]
            ).last_hidden_state
            expected = model.lm_head(alone)[0]
            mine = logits[i][-len(ids) :][stays]
            assert (mine - expected).abs().max() < CLOSE * 10
            first += pictures
    assert report.stops == [
        {"layer": 0, "keep": 18 / PATCHES, "kept": [PATCHES - 18, 2 * PATCHES - 36]}
    ]
    assert report.flops < report.flops_full
    assert report.tower is not None
    assert report.tower.flops < report.tower.flops_full
    assert "vision tower" in str(report)
    assert report.to_dict()["tower"]["tokens_per_layer"] == report.tower.tokens_per_layer


@pytest.mark.parametrize("tower", ["merged", "expanded"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_on_fewer_tokens(kind: str, tower: Any) -> None:
    model, given, classes = llava(kind), inputs(), int(kind == "clip")
    inner = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    ran: list[int] = []
    handles = [
        layer.mlp.fc1.register_forward_hook(lambda _, args, y: ran.append(y.shape[1]))
        for layer in inner.encoder.layers
    ]
    language: list[int] = []
    mlp = model.model.language_model.layers[0].mlp
    handles.append(mlp.register_forward_hook(lambda _, args, y: language.append(y.shape[1])))
    with torch.no_grad(), tr.reduce(model, tr.ToMe(r=7, tower=tower)) as reduction:
        model(**given)
        assert reduction.report.tower is not None
        assert ran == reduction.report.tower.tokens_per_layer
    for handle in handles:
        handle.remove()
    assert ran == [PATCHES + classes - 7 * (i + 1) for i in range(LAYERS)]
    full = given["input_ids"].shape[1]
    assert language == [full - 2 * 21 if tower == "merged" else full]


@pytest.mark.parametrize("tower", ["merged", "expanded"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_merges_it_is_the_plain_model_to_the_bit(kind: str, tower: Any) -> None:
    model, given = llava(kind), inputs()
    with torch.no_grad():
        plain = model(**given).logits
        with tr.reduce(model, tr.ToMe(r=0, tower=tower)):
            assert torch.equal(model(**given).logits, plain)
        with tr.reduce(model, tr.ToMe(r=9, tower=tower)):
            assert not torch.equal(model(**given).logits, plain)
        assert torch.equal(model(**given).logits, plain)


@pytest.mark.parametrize("tower", ["merged", "expanded"])
def test_decoding_with_a_cache_is_recomputing(tower: Any) -> None:
    model, given = llava("clip"), inputs()
    with torch.no_grad(), tr.reduce(model, tr.ToMe(r=8, tower=tower)):
        out = model.generate(
            **given,
            max_new_tokens=5,
            do_sample=False,
            suppress_tokens=[IMAGE, 0, 2],
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[:, :-1]
        mask = torch.nn.functional.pad(given["attention_mask"], (0, 4), value=1)
        again = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            pixel_values=given["pixel_values"],
        ).logits
    assert (torch.stack(out.logits, dim=1) - again[:, -5:]).abs().max() < CLOSE * 10


TOWERS = {
    "paligemma": ("expanded", "merged"),
    "gemma3": ("expanded",),
    "llava_next_video": ("expanded",),
    "llava_onevision": ("expanded",),
}
"""Other families, and what their language models may get."""


@pytest.mark.parametrize("family", TOWERS)
def test_other_families_towers_run_shorter(family: str) -> None:
    """What leaves is what the tower by itself gives when it is reduced, spread over its groups."""
    trial = Trial(tr.ToMe(r=2, tower="expanded"), Stops(()), FAMILIES[family])
    model, seen = trial.model, []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        plain = trial.plain()
        for which in TOWERS[family]:
            with tr.reduce(model, tr.ToMe(r=0, tower=which)):  # type: ignore[arg-type]
                assert torch.equal(trial.batch().run(model, use_cache=False).logits, plain)
        seen.clear()
        with trial.reduce() as reduction:
            trial.batch().run(model)
            assert reduction.tower is not None
            short = reduction.tower.report
        handle.remove()
        assert short.tokens_per_layer == list(reduction.tower.counts(short.tokens))
        assert short.tokens_per_layer[-1] < short.tokens
        args, kwargs, out = seen[-1]
        with tr.reduce(tower, tr.ToMe(r=2)) as alone:
            last = tower(*args, **kwargs).last_hidden_state
        assert last.shape[1] == short.tokens_per_layer[-1]
    index = alone.group[..., None].expand(-1, -1, last.shape[-1])
    assert (out.last_hidden_state - last.gather(1, index)).abs().max() < CLOSE
    assert reduction.report.applied == [False] * len(plain)
    model_laws.rows_stand_alone(trial)


def test_pooled_patches_cannot_come_once() -> None:
    for family, possible in TOWERS.items():
        if "merged" not in possible:
            with pytest.raises(ValueError, match="knows expanded; tower=None"):
                tr.reduce(FAMILIES[family].model(), tr.ToMe(tower="merged"))


@pytest.mark.parametrize("tower", ["merged", "expanded"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "paligemma"])
def test_laws_hold(family: str, tower: Any) -> None:
    tome = tr.ToMe(r=6, tower=tower)
    trial = Trial(tome, Stops(()) if tower == "expanded" else tome.scheduler(), FAMILIES[family])
    model_laws.rows_stand_alone(trial)
    model_laws.decoding_stores_what_is_left(trial)
    state_laws.text_logits_give_the_same_loss(trial)
    state_laws.answers_change_no_choice(trial)
    state_laws.the_model_is_left_as_it_was(trial)
    state_laws.generations_do_not_disturb_each_other(trial)


def test_newlines_stay_alone_and_the_tiles_padding_is_no_token() -> None:
    trial = Trial(tr.ToMe(r=3, tower="merged"), tr.Single(0, 0.5), FAMILIES["llava_next"])
    with torch.no_grad(), trial.reduce() as reduction:
        trial.batch().run(trial.model)
        plan, kept, pictures = reduction.plans[0], reduction.kept[0], reduction.pictures
    assert plan.group is not None
    for row, index, own in zip(plan.group, kept, pictures, strict=True):
        newline = torch.cat([p.separator for p in own]) if own else torch.zeros(0).bool()
        groups = row[: len(newline)]
        for at in newline.nonzero()[:, 0].tolist():
            assert (groups == groups[at]).sum() == 1
            assert at in index.tolist()
        # and no group is of two tiles: the tower sees them one by one
        view = torch.cat([p.patches[:, 0] // 9 + 99 * i for i, p in enumerate(own)] or [row[:0]])
        for group in groups[~newline].unique().tolist():
            assert len(view[(groups == group) & ~newline].unique()) == 1


def test_groups_of_several_calls_of_the_tower_are_told_apart() -> None:
    bridge = TowerBridge(torch.nn.Identity(), Tower([], 0, 1, classes=1), expanded=False)
    passes = [torch.tensor([[0, 1, 1], [0, 2, 1]]), torch.tensor([[0, 1, 2]])]
    pictures = [Picture.grid(1, 4).of(0), Picture.grid(1, 2).of(4)]
    first, second = (p.measures[GROUP].tolist() for p in bridge.grouped(pictures, passes))
    assert first[0] == first[1]
    assert len({*first, *second}) == 5


def test_training_with_checkpointing_gives_the_same_gradients() -> None:
    model, given = llava("clip").train(), inputs()

    def backward() -> None:
        with tr.reduce(model, tr.ToMe(r=8, tower="merged")):
            model(**given, labels=given["input_ids"]).loss.backward()

    checkpointing_changes_no_gradient(model, backward, "vision_tower", CLOSE)


def test_it_travels_beside_a_checkpoint(tmp_path: Any) -> None:
    model, given = llava("siglip"), inputs()
    with torch.no_grad():
        with tr.reduce(model, tr.ToMe(r=4, tower="merged")) as reduction:
            logits = model(**given).logits
            reduction.save(tmp_path)
        with tr.load(model, tmp_path) as again:
            assert torch.equal(model(**given).logits, logits)
            assert again.tower is not None
            assert sorted(again.tower.plans) == [0, 1, 2, 3]


def test_what_cannot_be_is_refused_and_nothing_stays_behind() -> None:
    with pytest.raises(ValueError, match="no tower 'expande'; did you mean"):
        tr.ToMe(tower="expande")  # type: ignore[arg-type]
    masked = FAMILIES["idefics3"].model()
    with pytest.raises(ValueError, match="cannot merge in its tower; tower=None"):
        tr.reduce(masked, tr.ToMe(tower="merged"))
    model = llava("clip")
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match=r"tower='merged' is not possible .* knows expanded"):
        tr.reduce(model, tr.ToMe(tower="merged"))
    model.config.vision_feature_select_strategy = "default"
    hooks = [len(part._forward_hooks) for part in model.modules()]
    model.model.vision_tower.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="prop_attn=False"):
        tr.reduce(model, tr.ToMe(tower="merged"))
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
