"""`task=pretrain`: trains the embedded model from nothing, saved as a transformers checkpoint.

    tokenreduce task=pretrain model=tiny
    torchrun --nproc-per-node 2 -m tokenreduce task=pretrain model=tiny        # twice as fast

Three stages, one after the other (`conf/task/pretrain.yaml`): the tower learns to see, the
projector learns the vocabulary, the decoder learns to answer. A killed run started again with the
same output folder goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokenreduce.data.stream import Sample
from tokenreduce.errors import BadOption
from tokenreduce.files import atomic, first_process, write_json
from tokenreduce.inference.naming import name_as_published
from tokenreduce_tiny import align, language, tower
from tokenreduce_tiny.assess import assess
from tokenreduce_tiny.build import build_model, build_processor
from tokenreduce_tiny.curriculum import Curriculum, at_level, blend_weights
from tokenreduce_tiny.lessons import Level, draw
from tokenreduce_tiny.packing import Packer
from tokenreduce_tiny.stage import Stage, Tensors, run_stage

# Each stage draws its training samples from its own range of sample numbers.
FIRST_SAMPLE = {"tower": 0, "align": 10_000_000, "language": 20_000_000}
PICTURES = Level()  # without questions
BUILT = "tiny"  # the model that `task.architecture` describes
SIZE_LIMIT = 6_000_000  # bytes of the whole exported checkpoint


def pretrain(config: DictConfig, output: Path) -> dict[str, Any]:
    """Run all stages, export and measure; returns where things are and the held-out accuracies.

    output: folder of this run; `log.jsonl`, one folder per stage, `checkpoint/` (fp16 weights,
    processor, log) and `assessment.json` are written into it.
    """
    if config.model.name != BUILT:
        raise BadOption(
            f"model={config.model.name} cannot be trained from nothing; try model={BUILT}"
        )
    task = config.task
    architecture: Any = OmegaConf.to_container(task.architecture)
    _join_processes(task.threads)
    output.mkdir(parents=True, exist_ok=True)
    processor = build_processor(architecture["vision"]["patch_size"])
    model = build_model(architecture, config.seed)
    for name, numbers in task.stages.items():
        done = output / f"{name}.safetensors"
        if task.resume and done.exists():
            model.load_state_dict(load_file(done), strict=False)
            continue
        stage = STAGES[str(name)](model, processor, config.seed, numbers, task)
        run_stage(stage, task, numbers, output / str(name), output / "log.jsonl", config.seed)
        model.requires_grad_(True)
        if first_process():
            weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
            with atomic(done) as draft:
                save_file(weights, draft)
        _wait()
    result: dict[str, Any] = {"log": str(output / "log.jsonl")}
    if first_process():
        result["bytes"] = export(model, processor, output)
        result["checkpoint"] = str(output / "checkpoint")
        result["assessment"] = assess(output / "checkpoint", config.seed, **task.assess)
        write_json(output / "assessment.json", result["assessment"], indent=1)
    _wait()
    return result


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output: Path) -> int:
    """Write `output/checkpoint`, loadable by the Auto classes; returns its size in bytes."""
    folder = output / "checkpoint"
    model.half().save_pretrained(folder)
    model.float()
    name_as_published(folder, model.config)
    processor.save_pretrained(folder)
    shutil.copy(output / "log.jsonl", folder / "training_log.jsonl")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > SIZE_LIMIT:
        raise BadOption(f"the checkpoint takes {size} bytes; the limit is {SIZE_LIMIT}")
    return size


def _tower(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    numbers: DictConfig,
    task: DictConfig,
) -> Stage:
    layer, width = model.config.vision_feature_layer, model.config.vision_config.hidden_size
    module = tower.SeeingTower(model.model.vision_tower, layer, width)
    packer = Packer(processor, model.config.image_seq_length)

    def compose(indices: Sequence[int], split: str, level: float) -> Tensors:
        samples = _draw("tower", seed, indices, split)
        labels = tower.label_patches(samples)
        return {
            "pixel_values": packer.pixels(samples),
            "present": tower.label_presence(samples),
            **labels,
        }

    return Stage("tower", module, tower.MEASURES, compose, Curriculum(tower.MEASURES))


def _align(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    numbers: DictConfig,
    task: DictConfig,
) -> Stage:
    decoder = model.model.language_model
    module = align.NamingProjector(
        model.model.vision_tower,
        model.config.vision_feature_layer,
        model.model.multi_modal_projector,
        decoder.embed_tokens,
        decoder.norm,
    )
    packer = Packer(processor, model.config.image_seq_length)

    def compose(indices: Sequence[int], split: str, level: float) -> Tensors:
        samples = _draw("align", seed, indices, split)
        return {"pixel_values": packer.pixels(samples), **tower.label_patches(samples)}

    return Stage("align", module, align.MEASURES, compose, Curriculum(align.MEASURES))


def _language(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    numbers: DictConfig,
    task: DictConfig,
) -> Stage:
    packer = Packer(processor, model.config.image_seq_length)
    scenes = numbers.scenes

    def compose(indices: Sequence[int], split: str, level: float) -> Tensors:
        training = split == "train"
        asked = blend_weights(numbers.asked, level) if training else None
        at = Level(
            numbers.questions if training else task.evaluate.questions,
            at_level(scenes.difficulty, level),
            round(at_level(scenes.glyphs, level)),
            asked,
        )
        batch = packer(_draw("language", seed, indices, split, at))
        return {
            **batch.inputs,
            "labels": batch.labels,
            "blocks": batch.blocks,
            "types": batch.types,
        }

    curriculum = Curriculum(language.MEASURES, **numbers.curriculum)
    module = language.AnsweringModel(model, getattr(torch, numbers.precision))
    return Stage("language", module, language.MEASURES, compose, curriculum)


STAGES: dict[str, Callable[..., Stage]] = {
    "tower": _tower,
    "align": _align,
    "language": _language,
}


def _draw(
    name: str, seed: int, indices: Sequence[int], split: str, level: Level = PICTURES
) -> list[Sample]:
    """Samples by number; held-out numbers start at 0 in every stage."""
    first = FIRST_SAMPLE[name] if split == "train" else 0
    return [draw(seed, split, first + index, level) for index in indices]


def _join_processes(threads: int) -> None:
    """One process group of as many processes as torchrun started, each with `threads` threads."""
    torch.set_num_threads(threads)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=30))


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
