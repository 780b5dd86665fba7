"""The cost of whole models: equal to torch's own count on every tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tests.pairwise import in_turn
from tokenreduce.cost import (
    CONVENTIONS,
    DecoderShape,
    Grid,
    TowerShape,
    connector_of,
    cost,
    grids_of,
    model_cost,
    tower_macs,
    tower_of,
)
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.scheduler import Stop
from tokenreduce.schedulers import Pyramid
from tokenreduce.testing.batches import batch
from tokenreduce.testing.families.family import vision
from tokenreduce.testing.models import FAMILIES

SEEING = [name for name, family in FAMILIES.items() if not family.bare]


def counted(model, run) -> int:
    """FLOPs by torch's counter, which sees no grouped product of experts and no fused attention."""
    for config in (model.config, model.config.get_text_config()):
        config._experts_implementation = "eager"
    quiet = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), quiet as counter:
        run()
    return counter.get_total_flops()


def test_every_family_is_there():
    assert len(SEEING) >= 33
    kinds = {FAMILIES[name].model().config.vision_config.model_type for name in SEEING}
    ours = {k for k, rule in tr.cost.towers.items() if "tokenreduce" in str(rule.__module__)}
    # read as Qwen3-VL's, whose sizes it has; what a page of the documentation registers is not ours
    assert kinds == ours - {"qwen3_vl_moe_vision"}


@pytest.mark.parametrize(("name", "images"), in_turn(SEEING, [(1,), (2,), (3,)]), ids=str)
def test_a_whole_forward_is_what_torch_counts(name, images):
    family = FAMILIES[name]
    model, given = family.model("eager"), batch(family, images)
    seen = counted(model, lambda: given.run(model, use_cache=False))
    length, visual = given.real.shape[1], given.counts[0]
    grids = grids_of(model.config, given.inputs)
    for config in (model.config, model.config.to_dict()):
        price = model_cost(config, (), grids, visual, length - visual, logits=length)
        assert price.flops_full == price.flops == seen
    tower = tower_of(model.config)
    tokens = connector_of(model.config, tower, model.config.get_text_config().hidden_size)
    assert tokens.tokens(grids) in (None, visual)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_a_reduced_forward_is_what_torch_counts(name):
    """With `stride`, which scores nothing, the parts add up to what is left."""
    family = FAMILIES[name]
    model, given = family.model("eager"), batch(family, (2,))
    schedule = tr.Explicit((0, 2, 4), (0.75, 0.5, 0.2))
    with tr.reduce(model, "stride", schedule) as reduction:
        seen = counted(model, lambda: given.run(model, use_cache=False))
        report = reduction.report
    length, visual = given.real.shape[1], given.counts[0]
    grids = grids_of(model.config, given.inputs)
    price = model_cost(model.config, schedule, grids, visual, length - visual, logits=length)
    assert price.flops - 2 * price.decoder.selection_macs == seen < price.flops_full
    assert price.decoder.flops == report.flops


def test_a_tower_alone_with_its_pooling_head():
    for kind in (transformers.SiglipVisionConfig, transformers.CLIPVisionConfig):
        config = kind(**vision(20), attn_implementation="eager")
        model = transformers.AutoModel.from_config(config).eval()
        seen = counted_tower(model)
        tower = tr.cost.towers[config.model_type](config)
        assert 2 * tower_macs(tower, tower.grids(2)) == seen
    assert tower_of({"vision_config": {"model_type": "siglip_vision_model", **vision(20)}}).pooled


def counted_tower(model) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(2, 3, 20, 20))
    return counter.get_total_flops()


def test_published_towers():
    """CLIP-L/14 at 336 pixels in LLaVA-1.5-7B."""
    llava = transformers.LlavaConfig()
    price = model_cost(llava, tr.Pyramid(), 1, text=60)
    assert price.visual == 576
    layer = 577 * (4 * 1024**2 + 2 * 577 * 1024 + 2 * 1024 * 4096)
    assert price.tower == 24 * layer + 576 * 1024 * 3 * 14**2
    assert price.connector == 576 * (1024 * 4096 + 4096 * 4096)
    assert price.head == 4096 * 32000
    assert price.decoder == cost(llava, tr.Pyramid(), 576, 60)
    assert price.macs == sum(n for _, _, n in price.rows()) / 2
    assert price.macs_full == sum(n for _, n, _ in price.rows()) / 2
    assert price.share == price.flops / price.flops_full


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_part_of_a_model_follows_the_convention(convention):
    price = model_cost(transformers.LlavaConfig(), Pyramid(), 1, convention=convention)
    per_mac = CONVENTIONS[convention].flops_per_mac
    assert price.flops == per_mac * price.macs == sum(row[2] for row in price.rows())
    assert price.flops_full == per_mac * price.macs_full


def test_parts_under_a_published_convention_are_macs():
    price = model_cost(transformers.LlavaConfig(), (), 1, convention="F3")
    assert price.decoder.flops_full == price.decoder.macs_full
    assert price.flops_full == price.macs_full
    assert price.rows()[0] == ("vision tower", price.tower, price.tower)


def test_windows_save_what_they_say():
    whole = TowerShape(2, 32, 48, 4, 8, 96, merge=2)
    grid = Grid(6, 8)
    cut = replace(whole, window=4, unwindowed=(1,))
    squares = 48**2 - sum((r * c) ** 2 for r in (4, 2) for c in (4, 4))
    assert tower_macs(whole, [grid]) - tower_macs(cut, [grid]) == 2 * 32 * squares


def test_frames_see_themselves_and_pixtral_everything():
    frames = TowerShape(1, 32, 48, 4, 8, 96)
    call = replace(frames, sight="call")
    one, other = Grid(2, 3), Grid(3, 2)
    between = 2 * 32 * (12**2 - 2 * 6**2)
    padding = (2 * 9 - 12) * 32 * 96
    assert tower_macs(call, [one, other]) - tower_macs(frames, [one, other]) == between + padding
    video = tower_macs(frames, [Grid(2, 3, frames=2)])
    assert video == 2 * tower_macs(frames, [one])


def test_no_pictures_cost_no_tower():
    price = model_cost(transformers.LlavaConfig(), (), 0, text=60)
    assert (price.tower, price.connector, price.visual) == (0, 0, 0)
    assert price.activations_full == tr.cost.activations(
        tr.cost.shape_of(transformers.LlavaConfig()), (60,) * 32
    )


REFUSED = {
    "no tower": (transformers.LlamaConfig(), 1, "'llama' has no vision tower.*cost.cost"),
    "unknown tower": (
        {"model_type": "llava", "vision_config": {"model_type": "clip_vision_modle"}},
        1,
        "vision tower 'clip_vision_modle'; did you mean 'clip_vision_model'.*decoder alone",
    ),
    "unknown family": (
        transformers.LlavaConfig().to_dict() | {"model_type": "llavva"},
        1,
        "how 'llavva' connects.*did you mean 'llava'",
    ),
    "any size": (transformers.Qwen2VLConfig(), 1, "pictures=1 does not say how large.*Grid"),
    "tiles": (transformers.LlavaNextConfig(), 5, "visual is needed.*arranged"),
    "truth": (transformers.LlavaConfig(), True, "pictures must be a whole number"),
    "timm": (
        transformers.PerceptionLMConfig(),
        1,
        "timm's 'resnet50' with model_args .*vit_pe_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_formula_describes_is_refused(case):
    config, pictures, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        model_cost(config, (), pictures)
    assert "\n" not in str(caught.value)


def test_a_resampler_knows_its_sizes():
    with pytest.raises(ValueError, match=r"4 patches has no queries.*1225, 4900"):
        model_cost(transformers.AriaConfig(), (), [Grid(2, 2)])


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"columns": 2.5}, {"frames": -1}])
def test_grids_have_sides(wrong):
    with pytest.raises(ValueError, match=f"a grid's {next(iter(wrong))} must be"):
        Grid(**{"rows": 2, "columns": 2, **wrong})


def test_perception_encoders_by_name():
    """What timm builds under these names, in its own numbers."""
    timm = pytest.importorskip("timm")
    for name in ("tiny_patch16_384", "large_patch14_336"):
        with torch.device("meta"):
            built = timm.create_model(f"vit_pe_core_{name}", pretrained=False, global_pool="")
        given = {"global_pool": "", "img_size": [336, 336]}
        part = {"architecture": f"vit_pe_core_{name}", "model_args": given}
        tower = tr.cost.towers["timm_wrapper"](part)
        block = built.blocks[0]
        assert (tower.layers, tower.hidden) == (len(built.blocks), built.embed_dim)
        assert tower.intermediate == block.mlp.fc1.out_features
        assert (tower.heads, tower.classes) == (block.attn.num_heads, built.num_prefix_tokens)


def test_the_embedded_model_without_its_weights():
    config = transformers.AutoConfig.from_pretrained(checkpoint_dir())
    price = model_cost(config, (Stop(2, 0.5),), 1, text=30)
    assert price.visual == 144
    assert price.macs < price.macs_full


def test_a_bare_decoder_has_its_old_cost():
    shape = DecoderShape(2, 8, 16, 2, 2, 4, 10)
    assert cost(shape, (), 4).macs == tr.cost.macs(shape, [4, 4])
