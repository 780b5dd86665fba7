"""How the configurations of the vision towers are read, one function for each kind."""

from __future__ import annotations

from typing import Any

from tokenreduce.cost.entries import read, size
from tokenreduce.cost.tower_sizes import TowerShape, pixels, square, towers
from tokenreduce.errors import BadOption


@towers.register("clip_vision_model")
def clip(part: Any) -> TowerShape:
    """CLIP: a class token, pictures of one size."""
    by_sigmoid = (read(part, "hidden_act") or "quick_gelu") == "quick_gelu"
    return _plain(part, classes=1, alive=3 if by_sigmoid else 2)


@towers.register("siglip_vision_model")
def siglip(part: Any) -> TowerShape:
    """SigLIP: no class token, an attention-pooling head unless it is left out."""
    with_head = read(part, "vision_use_head")
    return _plain(part, pooled=with_head is None or bool(with_head))


@towers.register("idefics3_vision")
@towers.register("smolvlm_vision")
def idefics3(part: Any) -> TowerShape:
    """Idefics3, SmolVLM and Aria: SigLIP without its head; tiles of up to the full size."""
    return _plain(part)


@towers.register("internvl_vision")
def internvl(part: Any) -> TowerShape:
    """InternVL: a class token, tiles of one size."""
    return _plain(part, classes=1)


@towers.register("pixtral")
def pixtral(part: Any) -> TowerShape:
    """Pixtral: all pictures of a call as one sequence, masked apart but multiplied whole."""
    return _plain(part, side=None, ffn_matrices=3, alive=3, sight="call")


@towers.register("qwen2_vl_vision")
def qwen2_vl(part: Any) -> TowerShape:
    """Qwen2-VL: frames of any size; `hidden_size` is the language model's."""
    width = size(part, "embed_dim")
    return _packed(part, width, int(width * (read(part, "mlp_ratio") or 4)), ffn_matrices=2)


@towers.register("qwen2_5_vl_vision")
def qwen2_5_vl(part: Any) -> TowerShape:
    """Qwen2.5-VL: a gated FFN, and windows in most layers."""
    window = size(part, "window_size") // size(part, "patch_size")
    whole = tuple(read(part, "fullatt_block_indexes") or ())
    return _packed(part, size(part, "hidden_size"), window=window, unwindowed=whole)


@towers.register("qwen3_vl_vision")
@towers.register("qwen3_vl_moe_vision")
def qwen3_vl(part: Any) -> TowerShape:
    """Qwen3-VL: frames of any size."""
    return _packed(part, size(part, "hidden_size"), ffn_matrices=2)


@towers.register("glm4v_vision")
def glm4v(part: Any) -> TowerShape:
    """GLM-4V: frames of any size; the FFN has the width of the tower's output.

    Its `intermediate_size` is the merger's.
    """
    return _packed(part, size(part, "hidden_size"), size(part, "out_hidden_size"))


PERCEPTION = {  # width, layers, heads, FFN's share of the width, class tokens; timm 1.0
    "tiny": (192, 12, 3, 4.0, 1),
    "small": (384, 12, 6, 4.0, 1),
    "base": (768, 12, 12, 4.0, 1),
    "large": (1024, 24, 16, 4.0, 1),
    "gigantic": (1536, 50, 16, 8960 / 1536, 0),
}


@towers.register("timm_wrapper")
def timm(part: Any) -> TowerShape:
    """A Perception Encoder of timm, whose `model_args` come before its defaults.

    Raises:
        ValueError: another architecture, or one that pools by attention.
    """
    name, given = str(read(part, "architecture")), dict(read(part, "model_args") or {})
    words = name.split("_")
    known = words[:2] == ["vit", "pe"] and len(words) > 3 and words[3] in PERCEPTION
    if not known or given.get("global_pool") != "" or "img_size" not in given:
        raise BadOption(
            f"no formula here describes timm's {name!r} with model_args {given}: known are "
            "vit_pe_* with img_size and global_pool=''; pass a TowerShape"
        )
    width, layers, heads, share, classes = PERCEPTION[words[3]]
    width, heads = int(given.get("embed_dim", width)), int(given.get("num_heads", heads))
    patch = given.get("patch_size") or int(words[4].removeprefix("patch"))
    if "class_token" in given:
        classes = int(given["class_token"])
    sizes = {"image_size": given["img_size"], "patch_size": patch}
    return TowerShape(
        layers=int(given.get("depth", layers)),
        hidden=width,
        intermediate=round(width * float(given.get("mlp_ratio", share))),
        heads=heads,
        head_dim=width // heads,
        patch=pixels(sizes),
        side=square(sizes),
        classes=classes,
    )


def _plain(part: Any, **facts: Any) -> TowerShape:
    """A tower with the entries of CLIP's configuration."""
    width, heads = size(part, "hidden_size"), size(part, "num_attention_heads")
    return TowerShape(
        layers=size(part, "num_hidden_layers"),
        hidden=width,
        intermediate=size(part, "intermediate_size"),
        heads=heads,
        head_dim=read(part, "head_dim") or width // heads,
        patch=pixels(part),
        **{"side": square(part) if "side" not in facts else None, **facts},
    )


def _packed(part: Any, width: int, intermediate: int | None = None, **facts: Any) -> TowerShape:
    """A tower with the entries of Qwen2-VL's configuration."""
    heads = size(part, "num_heads")
    gated = facts.get("ffn_matrices", 3) == 3
    options = {
        "ffn_matrices": 3,
        "alive": 3 if gated else 2,
        "merge": size(part, "spatial_merge_size"),
        **facts,
    }
    return TowerShape(
        layers=size(part, "depth"),
        hidden=width,
        intermediate=intermediate or size(part, "intermediate_size"),
        heads=heads,
        head_dim=width // heads,
        patch=pixels(part, frames=size(part, "temporal_patch_size")),
        **options,
    )
