"""Families without an adapter: read by the generic one, or refused with the check that failed."""

from __future__ import annotations

import pytest
import torch
import transformers

import tokenreduce as tr
from tokenreduce.adapter import adapter_for
from tokenreduce.testing.batches import batch
from tokenreduce.testing.families.family import text, vision
from tokenreduce.testing.families.generic import LATENTS
from tokenreduce.testing.models import FAMILIES, IMAGE

WAY_OUT = "subclass tokenreduce.Adapter.*register"


@pytest.fixture
def aria():
    return FAMILIES["aria"].model()


def test_what_is_read(aria):
    given = batch(FAMILIES["aria"], (1, 0, 2))
    at = tr.Explicit((0, 3), (0.75, 0.25))
    with tr.reduce(aria, "pyramid_drop", at) as reduction, torch.no_grad():
        given.run(aria, reduction)
    assert type(reduction.adapter).__name__ == "Generic"
    assert reduction.positions == "keep"
    assert reduction.report.visual_tokens == [LATENTS, 0, 2 * LATENTS]
    assert [len(x) for x in reduction.kept[3]] == [5, 0, 10]


def test_no_places_are_claimed(aria):
    given = batch(FAMILIES["aria"], (2,))
    with tr.reduce(aria, "stride", tr.Single(0, 0.5)) as reduction, torch.no_grad():
        given.run(aria, reduction)
    (pictures,) = reduction.pictures
    assert [len(picture) for picture in pictures] == [LATENTS] * 2
    for picture in pictures:
        assert torch.equal(picture.column, torch.arange(LATENTS))
        assert not picture.box.any()

    class Rows(tr.Stride):
        needs = frozenset({"grid"})

    with pytest.raises(TypeError, match="grid"):
        tr.reduce(aria, Rows())


def test_a_check_leaves_no_trace(aria):
    aria.train()
    for layer in aria.model.language_model.layers:
        layer.gradient_checkpointing = True
    before = {name: dict(vars(module)) for name, module in aria.named_modules()}
    state = torch.get_rng_state()
    assert adapter_for(aria).positions == {"keep"}
    assert {name: dict(vars(module)) for name, module in aria.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_has_no_weights_yet_is_taken_as_it_is_built():
    with torch.device("meta"):
        model = FAMILIES["vipllava"].make("sdpa")
    assert type(adapter_for(model)).__name__ == "Generic"


def _mllama():
    return transformers.MllamaForConditionalGeneration(
        transformers.MllamaConfig(
            text_config=text(
                cross_attention_layers=[1, 3],
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            ),
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "attention_heads": 4,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "image_size": 32,
                "patch_size": 4,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
                "max_num_tiles": 2,
            },
            image_token_index=IMAGE,
        )
    )


def _fuyu():
    options = {"image_size": 16, "patch_size": 4, "num_channels": 3, "image_token_id": IMAGE}
    decoder = text(num_key_value_heads=4)
    return transformers.FuyuForCausalLM(
        transformers.FuyuConfig(
            **decoder | options, text_config=decoder | {"model_type": "persimmon"}
        )
    )


def _blip2():
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Blip2Config(
        text_config={
            "model_type": "opt", **wide, "vocab_size": 99, "ffn_dim": 48, "word_embed_proj_dim": 32,
        },
        vision_config={**wide, "intermediate_size": 48, "image_size": 16, "patch_size": 4},
        qformer_config={
            **wide, "vocab_size": 99, "intermediate_size": 48, "encoder_hidden_size": 32,
        },
        num_query_tokens=16,
        image_token_index=IMAGE,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def _llama4():
    decoder = text(
        head_dim=8,
        attention_chunk_size=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        intermediate_size_mlp=48,
        use_qk_norm=False,
    )
    tower = vision(32, intermediate_size=128, vision_output_dim=32, projector_input_dim=32)
    config = transformers.Llama4Config(
        text_config=decoder,
        vision_config=tower | {"projector_output_dim": 32, "pixel_shuffle_ratio": 0.5},
        image_token_index=IMAGE,
    )
    return transformers.Llama4ForConditionalGeneration(config)


def _qwen3_5():
    decoder = text(
        head_dim=8,
        layer_types=["linear_attention", "full_attention"] * 3,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48}
    config = transformers.Qwen3_5Config(
        text_config=decoder,
        vision_config=tower | {"out_hidden_size": 32, "patch_size": 4},
        image_token_id=IMAGE,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _glm46v():
    """Its own adapter aside, GLM-4.1V's successor has M-RoPE."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48}
    config = transformers.Glm46VConfig(
        text_config=text(rope_parameters=rope),
        vision_config=tower | {"out_hidden_size": 32, "patch_size": 4, "image_size": 32},
        image_token_id=IMAGE,
    )
    return transformers.Glm46VForConditionalGeneration(config)


def _cohere():
    """Rotary embeddings turn neighbours, and some layers have none."""
    config = transformers.Cohere2VisionConfig(
        text_config=transformers.Cohere2Config(**text(head_dim=8)),
        vision_config=transformers.SiglipVisionConfig(**vision(32, vision_use_head=False)),
        image_token_id=IMAGE,
        alignment_intermediate_size=32,
    )
    return transformers.Cohere2VisionForConditionalGeneration(config)


def _t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_ff=48, num_layers=2, num_heads=4, vocab_size=99)
    )


def _gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4))


def _gemma():
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**text(head_dim=8)))


REFUSED = {
    "mllama": (_mllama, "cross-attention"),
    "fuyu": (_fuyu, "self_attn.q_proj"),
    "blip2": (_blip2, "input_layernorm"),
    "llama4": (_llama4, "get_decoder"),
    "glm46v": (_glm46v, "mrope_section"),
    "cohere2": (_cohere, "other keys"),
    "t5": (_t5, "encoder"),
    "gpt2": (_gpt2, "get_decoder"),
    "gemma": (_gemma, "image_token_id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, reason = REFUSED[name]
    model = make()
    kind = model.config.model_type
    with pytest.raises(ValueError, match=f"(?s){kind}.*{reason}.*{WAY_OUT}"):
        tr.reduce(model, "random")
    with pytest.raises(ValueError, match=reason):
        tr.reduce(model, "random", adapter="generic")


@pytest.mark.parametrize("adapter", [None, "generic", "qwen3_vl"])
def test_layers_with_a_state_over_all_tokens_are_refused_for_that(adapter):
    """Not for what else is unusual about them, and with no advice that cannot help."""
    model = _qwen3_5()
    with pytest.raises(tr.ContractError, match=r"Qwen3_5.*LinearAttention.*linear_attention"):
        tr.reduce(model, "random", adapter=adapter)


def _indexed():
    """MiniMax M3: attention with an indexer that chooses blocks of keys by itself."""
    decoder = text(
        head_dim=8,
        layer_types=["full_attention", "minimax_m3_sparse"] * 3,
        mlp_layer_types=["dense"] * 6,
        index_n_heads=2,
        index_head_dim=8,
    )
    return transformers.MiniMaxM3VLForCausalLM(transformers.MiniMaxM3VLTextConfig(**decoder))


@pytest.mark.skipif(
    not hasattr(transformers, "MiniMaxM3VLForCausalLM"), reason="since transformers 5.12"
)
def test_attention_that_chooses_keys_by_itself_is_refused():
    model = _indexed()
    with pytest.raises(tr.ContractError, match="minimax_m3_sparse"):
        tr.reduce(model, "random")


def test_a_part_of_attention_that_is_not_understood_is_refused(aria):
    aria.model.language_model.layers[2].self_attn.indexer = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"layer 2.*not understood: indexer"):
        tr.reduce(aria, "random")


def test_layers_that_do_something_else_are_found(aria):
    """The same parts under the same names, put to another use."""
    attention = type(aria.model.language_model.layers[0].self_attn)

    class Scaled(attention):
        def forward(self, hidden_states, **kwargs):
            return super().forward(2 * hidden_states, **kwargs)

    aria.model.language_model.layers[4].self_attn.__class__ = Scaled
    with pytest.raises(ValueError, match=r"layer 4.*other keys"):
        adapter_for(aria)


def test_arguments_that_would_be_lost_are_found(aria):
    layer = aria.model.language_model.layers[2]

    class More(type(layer)):
        def forward(self, hidden_states, per_layer_input=None, **kwargs):
            return super().forward(hidden_states, **kwargs)

    layer.__class__ = More
    with pytest.raises(ValueError, match=r"layer 2.*per_layer_input"):
        adapter_for(aria)
