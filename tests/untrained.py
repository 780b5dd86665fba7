"""A model of the embedded one's shape, with its processor, that has learned nothing."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from tokenreduce.embedded import checkpoint_dir
from tokenreduce.inference.loaded import Loaded


def untrained(seed: int = 0) -> Loaded:
    """Freshly initialised in fp32: matrices normal with deviation 1/sqrt(fan-in), so that layers
    do something; those of the tower as transformers initialises CLIP.
    """
    torch.manual_seed(seed)
    folder = checkpoint_dir()
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "vision_tower" not in name:
                weight.normal_(std=weight.shape[1] ** -0.5)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return Loaded(model, AutoProcessor.from_pretrained(folder), "here", True)
