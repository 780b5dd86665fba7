"""Rows for vLLM are those of a stop at layer 0, and a stock model goes on from them as it would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tokenreduce as tr
from tests.adapters.user import load
from tests.pairwise import in_turn
from tests.quiet import quiet_transformers
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.integrations import vllm as door
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

USABLE = [
    name
    for name, kind in tr.strategies.items()
    if kind.reduces and not kind().needs - door.BEFORE - door.ASKED
]
PROMPT = "USER: <image>\nwhat shape has the E? ASSISTANT:"


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint_dir()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(checkpoint_dir().parent / "example.png")


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_transformers():
        yield


def strategy(name: str) -> tr.Strategy:
    made: tr.Strategy = tr.strategies.build(name)
    if isinstance(made, tr.LearnedStrategy):
        made.silence_untrained()
    return made


def pasted(model: Any, ids: Tensor, rows: Tensor, image: int) -> Tensor:
    """(1, l, d) the prompt as vLLM lays it out: text embeddings, with rows for the placeholders."""
    words = model.get_input_embeddings()(ids)
    shown = ids[0] == image
    first = int(shown.nonzero()[0])
    behind = words[:, first + int(shown.sum()) :]
    return torch.cat([words[:, :first], rows[None].to(words), behind], dim=1)


def test_every_method_that_decides_before_the_language_model_is_here() -> None:
    assert {"cdpruner", "divprune", "fastervlm", "pooling", "prumerge", "random"} <= set(USABLE)
    assert not {"fastv", "pyramid_drop", "sparsevlm", "dart", "tome"} & set(USABLE)


@pytest.mark.parametrize(("name", "kind"), in_turn(USABLE, door.FAMILIES))
@torch.no_grad()
def test_a_stock_model_goes_on_from_the_rows(kind: str, name: str) -> None:
    """Logits of the whole text, and what is generated: as under a reduction at layer 0."""
    model = FAMILIES[kind].model()
    one = batch(FAMILIES[kind], (1,))
    v, k = one.counts[0], 7
    assert v > 2 * k
    ids, image = one.inputs["input_ids"], model.config.image_token_id
    rows = door.kept_rows(model, one.inputs, strategy(name), k, seed=3)
    assert rows.shape == (k, model.config.text_config.hidden_size)
    short = pasted(model, ids, rows, image)
    said = model(inputs_embeds=short).logits
    told = model.generate(inputs_embeds=short, max_new_tokens=4, do_sample=False)
    schedule = tr.Single(layer=0, keep=k / v)
    with tr.reduce(model, strategy(name), schedule, positions="compact", seed=3) as reduction:
        wanted = model(**one.inputs).logits
        assert reduction.report.stops[0]["kept"] == [k]
        after = model.generate(**one.inputs, max_new_tokens=4, do_sample=False)
    text = int((ids[0] == image).nonzero()[-1]) + 1  # behind the picture
    torch.testing.assert_close(said[:, text - v + k :], wanted[:, text:], atol=1e-5, rtol=1e-5)
    assert told.tolist() == after[:, ids.shape[1] :].tolist()
    full = model(**one.inputs).logits
    assert (wanted[:, text:] - full[:, text:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["random", "divprune", "stride"])
@torch.no_grad()
def test_dropped_rows_are_the_towers_own(
    embedded: tuple[Any, Any], picture: Image.Image, name: str
) -> None:
    """Methods that only drop hand over rows of the projector, in reading order."""
    model, processor = embedded
    inputs = processor(images=[picture], text="<image>", return_tensors="pt")
    whole = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    (rows,) = door.embed(model, processor, [picture], name, 36)
    at = torch.cdist(rows.double(), whole.double()).argmin(dim=1)
    assert torch.equal(rows, whole[at])
    assert bool((at.diff() > 0).all())


def test_merging_methods_hand_over_merged_rows(
    embedded: tuple[Any, Any], picture: Image.Image
) -> None:
    model, processor = embedded
    inputs = processor(images=[picture], text="<image>", return_tensors="pt")
    with torch.no_grad():
        whole = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    (rows,) = door.embed(model, processor, [picture], "pooling", 36)
    windows = whole.view(6, 2, 6, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(rows, windows)


def test_the_count_is_exact(embedded: tuple[Any, Any], picture: Image.Image) -> None:
    model, processor = embedded
    both = [picture, picture.transpose(Image.Transpose.ROTATE_90)]
    for keep, k in ((1, 1), (50, 50), (144, 144), (0.25, 36), (1.0, 144), (np.int64(3), 3)):
        rows = door.embed(model, processor, both, "random", keep)
        assert [one.shape for one in rows] == [(k, 128)] * 2
    alone = door.embed(model, processor, both[1:], "random", 50)
    assert torch.equal(door.embed(model, processor, both, "random", 50)[1], alone[0])
    other = door.embed(model, processor, both[1:], "random", 50, seed=1)
    assert not torch.equal(other[0], alone[0])
    assert not model._forward_pre_hooks  # the model is as it was


def test_pictures_of_every_size_give_the_same_number(tmp_path: Path) -> None:
    """LLaVA-OneVision cuts pictures into tiles with newlines; a whole number holds for all."""
    processor, model = load("llava_onevision", tmp_path)
    rng = np.random.default_rng(0)
    sizes = ((24, 24), (24, 60), (60, 24))
    images = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    counts = [tr.downsample(processor, [one], 1.0).full[0] for one in images]
    assert len(set(counts)) > 1
    rows = door.embed(model, processor, images, "pooling", 9)
    assert {one.shape[0] for one in rows} == {9}
    shares = door.embed(model, processor, images, "pooling", 0.5)
    assert [len(one) for one in shares] == [round(n * 0.5) for n in counts]
    with pytest.raises(ValueError, match=f"picture 0: keep={max(counts)} tokens, but there are"):
        door.embed(model, processor, images, "pooling", max(counts))


def test_a_question_changes_what_cdpruner_keeps(
    embedded: tuple[Any, Any], picture: Image.Image
) -> None:
    model, processor = embedded
    with pytest.raises(ValueError, match="CDPruner chooses by the question: give prompts"):
        door.embed(model, processor, [picture], "cdpruner", 20)
    words = [PROMPT, "USER: <image>\nhow many red things are there? ASSISTANT:"]
    kept = door.embed(model, processor, [picture] * 2, "cdpruner", 20, prompts=words)
    assert not torch.equal(kept[0], kept[1])
    blind = door.embed(model, processor, [picture] * 2, "divprune", 20, prompts=words)
    assert torch.equal(blind[0], blind[1])


def test_no_layer_runs_and_one_is_enough(
    embedded: tuple[Any, Any], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who only encodes can leave all but the first decoder layer on the disk."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    model, processor = embedded
    config = AutoConfig.from_pretrained(checkpoint_dir())
    config.text_config.num_hidden_layers = 1
    small = AutoModelForImageTextToText.from_pretrained(
        checkpoint_dir(), config=config, dtype=torch.float32
    ).eval()
    for layer in small.get_decoder().layers:
        fail = wraps(layer.forward)(lambda *args, **kwargs: pytest.fail("a layer ran"))
        monkeypatch.setattr(layer, "forward", fail)
    wanted = door.embed(model, processor, [picture], "visionzip", 36)
    assert torch.equal(door.embed(small, processor, [picture], "visionzip", 36)[0], wanted[0])


def test_an_untrained_scorer_is_told(embedded: tuple[Any, Any], picture: Image.Image) -> None:
    model, processor = embedded
    with pytest.warns(tr.ReductionWarning, match="untrained|not trained|never trained"):
        door.embed(model, processor, [picture], "scorer_mlp", 36)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fastv", r"FastV reads attention_before of the language model.*choose one.*visionzip"),
        ("tome", r"ToMe reads keys of the language model"),
        ("downsample", r"acts on pictures, before the processor"),
    ],
)
def test_what_only_the_language_model_knows_is_refused(
    embedded: tuple[Any, Any], picture: Image.Image, name: str, said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        door.embed(*embedded, [picture], name, 36)


def test_what_else_is_refused(embedded: tuple[Any, Any], picture: Image.Image) -> None:
    model, processor = embedded
    with pytest.raises(ValueError, match="leaves as many tokens as its tower says"):
        door.embed(model, processor, [picture], tr.ToMe(tower="merged"), 36)
    with pytest.raises(KeyError, match="did you mean 'visionzip'"):
        door.embed(model, processor, [picture], "visonzip", 36)
    with pytest.raises(ValueError, match="picture 0: keep=145 tokens, but there are 144"):
        door.embed(model, processor, [picture], "random", 145)
    with pytest.raises(ValueError, match="choose 1 to 144"):
        door.embed(model, processor, [picture], "random", 0)
    with pytest.raises(ValueError, match=r"keep=0.001 of 144 tokens leaves none"):
        door.embed(model, processor, [picture], "random", 0.001)
    with pytest.raises(ValueError, match=r"keep must be a number between 0 and 1, not 1.5"):
        door.embed(model, processor, [picture], "random", 1.5)
    with pytest.raises(ValueError, match="1 prompts for 2 pictures"):
        door.embed(model, processor, [picture] * 2, "random", 36, prompts=[PROMPT])
    with pytest.raises(ValueError, match="prompt 0 has 0 <image>, and needs one"):
        door.embed(model, processor, [picture], "random", 36, prompts=["what is this?"])
    with (
        pytest.warns(tr.ReductionWarning),
        tr.reduce(model, "random"),
        pytest.raises(ValueError, match="already reduced"),
    ):
        door.embed(model, processor, [picture], "random", 36)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2_5_vl", r"of qwen2_5_vl from a picture's whole grid \(image_grid_thw\)"),
        ("qwen3_vl", "whole grid"),
        ("glm4v", "whole grid"),
        ("gemma3", r"takes no reduced picture embeddings for gemma3.*known: llava, llava_next"),
        ("mistral3", "no reduced picture embeddings"),
        ("llava-pixtral", "where the tower is Pixtral's"),
    ],
)
def test_families_that_count_otherwise_are_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        door.embed(FAMILIES[name].model(), None, [], "random", 4)
    assert "\n" not in str(caught.value)


def test_a_request_has_a_placeholder_for_every_picture() -> None:
    rows = [torch.randn(4, 8), torch.randn(4, 8)]
    one = door.request(PROMPT, rows[0])
    assert one["prompt"] == PROMPT
    assert torch.equal(one["multi_modal_data"]["image"], rows[0][None])
    two = door.request("<image> and <image>", rows)
    assert two["multi_modal_data"]["image"].shape == (2, 4, 8)
    assert torch.equal(door.request(PROMPT, rows[:1])["multi_modal_data"]["image"], rows[0][None])
    with pytest.raises(ValueError, match="the prompt has 1 <image> for 2 pictures"):
        door.request(PROMPT, rows)
    with pytest.raises(ValueError, match="the prompt has 0 <image> for 0 pictures"):
        door.request("hello", [])
    with pytest.raises(ValueError, match=r"one shape .* not of \[\(3, 8\), \(4, 8\)\]"):
        door.request("<image> and <image>", [rows[0], rows[1][:3]])
    with pytest.raises(ValueError, match=r"not of \[\(1, 4, 8\)\]"):
        door.request(PROMPT, rows[0][None])


def test_rows_travel_in_a_file(tmp_path: Path) -> None:
    rows = [torch.randn(n, 8).to(torch.bfloat16) for n in range(1, 12)]
    door.save_rows(tmp_path / "rows.safetensors", rows, model="tiny", keep=4)
    found, note = door.load_rows(tmp_path / "rows.safetensors")
    assert len(found) == 11
    assert all(torch.equal(a, b) for a, b in zip(found, rows, strict=True))
    assert found[0].dtype == torch.bfloat16
    assert note == {"model": "tiny", "keep": "4"}
    with pytest.raises(FileNotFoundError, match="write it with save_rows"):
        door.load_rows(tmp_path / "missing")
    (tmp_path / "text").write_text("rows")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    for name in ("text", "model.safetensors"):
        with pytest.raises(ValueError, match="holds no rows of pictures"):
            door.load_rows(tmp_path / name)


@pytest.mark.slow
def test_importing_it_loads_no_vllm() -> None:
    code = "import sys, tokenreduce.integrations.vllm\nprint('vllm' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
