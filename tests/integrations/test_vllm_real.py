"""vLLM's own input processor, where vLLM is installed: a placeholder for every row, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tokenreduce.embedded import checkpoint_dir
from tokenreduce.integrations.vllm import save_rows

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: pip install vllm"),
    pytest.mark.slow,
]
ROOT = Path(__file__).resolve().parents[2]
TOLD = """
import sys
import torch
from vllm.config import ModelConfig
from vllm.model_executor.models.llava import LlavaImageEmbeddingInputs
from vllm.multimodal import MULTIMODAL_REGISTRY
from tokenreduce.integrations.vllm import load_rows, request

rows, _ = load_rows(sys.argv[2])
config = ModelConfig(model=sys.argv[1], dtype="float32", enable_mm_embeds=True, max_model_len=512)
processor = MULTIMODAL_REGISTRY.create_processor(config)
image = config.hf_config.image_token_index
words = processor.info.get_tokenizer()
for prompt, given in (("<image> what is this?", rows[:1]), ("<image> and <image>", rows)):
    told = request(prompt, given)
    made = processor(prompt, processor.info.parse_mm_data(told["multi_modal_data"]))
    plain = words.encode(prompt)
    assert plain.count(image) == len(given)
    wanted = [i for word in plain for i in [word] * (len(rows[0]) if word == image else 1)]
    assert made["prompt_token_ids"] == wanted
    assert [at.length for at in made["mm_placeholders"]["image"]] == [len(x) for x in given]
    got = [item["image_embeds"].data for item in made["mm_kwargs"]["image"]]
    assert all(torch.equal(a, b) for a, b in zip(got, given, strict=True))
LlavaImageEmbeddingInputs(type="image_embeds", data=torch.stack(rows))
try:
    LlavaImageEmbeddingInputs(type="image_embeds", data=[rows[0], rows[1][1:]])
except ValueError as error:
    print("several shapes are refused:", error)
"""


def test_vllm_makes_a_placeholder_for_every_row(tmp_path: Path) -> None:
    rows = [torch.randn(36, 128), torch.randn(36, 128)]
    save_rows(tmp_path / "rows.safetensors", rows)
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    run = subprocess.run(
        [sys.executable, "-c", TOLD, str(checkpoint_dir()), str(tmp_path / "rows.safetensors")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "several shapes are refused: data contains inconsistent shapes" in run.stdout
