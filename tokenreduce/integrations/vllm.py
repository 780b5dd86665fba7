r"""Kept visual tokens for vLLM: encoded and reduced here, handed over as picture embeddings.

    rows = embed(model, processor, [picture], "visionzip", 64)
    llm.generate(request("USER: <image>\nWhat is this? ASSISTANT:", rows))

vLLM (0.33) makes one placeholder for every row that it is given, and numbers positions over what is
there: this is a stop at layer 0 with compact positions. The engine of `tokenreduce.reduce` does it,
with the same strategies and the same evidence, and is stopped in front of the first decoder layer:
none of them runs. vLLM itself is not imported. Shapes: k kept tokens, d width, v visual tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreduce import plugins
from tokenreduce.adapter import unwrap
from tokenreduce.checks import share
from tokenreduce.data.images import in_rgb
from tokenreduce.errors import BadOption, Incompatible, Missing, ReductionWarning, did_you_mean
from tokenreduce.evidence import TOWER, kind_of
from tokenreduce.files import atomic
from tokenreduce.reduction import reduce
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Strategy, TowerStrategy, strategies

FAMILIES = ("llava", "llava_next", "llava_onevision")
"""Where vLLM takes rows as they are: one placeholder each, plain positions."""
GRIDDED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
"""Where it counts placeholders and positions from a picture's grid."""
BEFORE = frozenset({*TOWER, "grid", "embedding", "embedding_valid"})
"""Evidence that is there before the language model."""
ASKED = frozenset({"text", "text_valid", "text_behind", "text_embedding"})
"""Evidence that takes the embeddings of a question besides."""


def embed(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    strategy: str | Strategy,
    keep: int | float,
    *,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """The visual tokens of each picture that are left, as the language model would get them.

    Equal to what `tokenreduce.reduce(model, strategy, Single(layer=0, keep=...),
    positions="compact")` feeds the first layer. Merging methods give merged rows. Every picture
    is reduced alone, in a prompt of its own. A model of one decoder layer does as well: none runs.

    Args:
        model: a transformers LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision, plain or wrapped.
        processor: the checkpoint's.
        images: PIL pictures.
        strategy: a name or an instance.
        keep: a whole number of tokens for every picture, or a share of its own, below 1 (1.0:
            all). vLLM refuses pictures of different numbers in one step, so that a whole number is
            what serving takes where pictures differ in size.
        prompts: the text of each picture's prompt with its placeholder, for methods that read the
            question (`cdpruner`).
        seed: for strategies that draw.

    Returns:
        (k, d) per picture, in the model's dtype, on the CPU: exactly `keep` rows.

    Raises:
        KeyError: no such strategy.
        TypeError: one that reads what only the language model knows (its attention, its keys).
        ValueError: another family, a method that chooses by a question without `prompts`, fewer
            visual tokens than `keep`, or a model that is reduced already.
    """
    plugins.load()
    core = unwrap(model)
    chosen = strategies.build(strategy) if isinstance(strategy, str) else strategy
    _check_family(core)
    _check_needs(chosen, prompts)
    if prompts is not None and len(prompts) != len(images):
        raise BadOption(f"{len(prompts)} prompts for {len(images)} pictures: give one for each")
    token: str = processor.image_token
    texts = [token] * len(images) if prompts is None else prompts
    found = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text.count(token) != 1:
            raise BadOption(f"prompt {number} has {text.count(token)} {token}, and needs one")
        plain = image if image.mode == "RGB" else in_rgb(image)
        inputs = processor(images=[plain], text=text, return_tensors="pt")
        inputs = inputs.to(core.device, core.dtype)  # whole numbers stay what they are
        try:
            found.append(kept_rows(model, inputs, chosen, keep, seed=seed))
        except ValueError as error:
            raise BadOption(f"picture {number}: {error}") from error
    if said := chosen.untrained_warning(training=False):
        warnings.warn(said, ReductionWarning, stacklevel=2)
    return found


class _Reached(Exception):  # no error: the rows are there
    """Ends a pass in front of the first decoder layer, with what that layer would get."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def kept_rows(
    model: Any, inputs: Mapping[str, Any], strategy: Strategy, keep: int | float, *, seed: int = 0
) -> Tensor:
    """(k, d) the visual tokens of one prompt with one picture that reach the first layer.

    Args:
        model: of one of `FAMILIES`.
        inputs: of the model, one sample without padding.
        strategy: what chooses.
        keep: a whole number of tokens, or a share.
        seed: for strategies that draw.

    Raises:
        ValueError: no visual tokens, fewer than `keep`, or tokens with text between them.
    """
    ids: Tensor = inputs["input_ids"]
    config: Any = unwrap(model).config
    shown: Tensor = ids[0] == int(config.image_token_id)
    at = shown.nonzero().flatten().tolist()
    v = len(at)
    if not v or at[-1] - at[0] != v - 1 or len(ids) != 1:
        raise BadOption(
            f"expected one prompt with one picture, whose tokens are in a row; found {v} of them"
        )
    k = _count(keep, v)
    hidden = None
    try:
        schedule = Single(layer=0, keep=k / v)
        with reduce(model, strategy, schedule, positions="compact", seed=seed) as reduction:
            handle = reduction.decoder.layers[0].register_forward_pre_hook(
                _reached, with_kwargs=True
            )
            try:
                model(**inputs, use_cache=False)
            finally:
                handle.remove()
    except _Reached as reached:
        hidden = reached.hidden
    assert hidden is not None  # the pass ends nowhere else
    return hidden[0, at[0] : at[0] + k].clone().cpu()


def _reached(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])


def _count(keep: int | float, v: int) -> int:
    """How many of `v` tokens stay."""
    if isinstance(keep, Integral) and not isinstance(keep, bool):
        if not 1 <= keep <= v:
            raise BadOption(f"keep={keep} tokens, but there are {v}: choose 1 to {v}")
        return int(keep)
    k = round(share(keep, "keep") * v)
    if not k:
        raise BadOption(f"keep={keep} of {v} tokens leaves none: vLLM needs at least one row")
    return k


def _check_family(core: Any) -> None:
    """Refuses families whose pictures vLLM does not take as rows of any number."""
    kind = getattr(getattr(core, "config", None), "model_type", type(core).__name__)
    known = f"(known: {', '.join(FAMILIES)})"
    if kind.startswith(GRIDDED):
        raise BadOption(
            f"vLLM counts the placeholders and the positions of {kind} from a picture's whole grid "
            f"(image_grid_thw), which no choice of tokens fills {known}: give it smaller pictures "
            "instead (tokenreduce.downsample)"
        )
    if kind not in FAMILIES:
        hint = did_you_mean(kind, FAMILIES)
        raise BadOption(f"vLLM takes no reduced picture embeddings for {kind}{hint} {known}")
    if core.config.vision_config.model_type == "pixtral":
        raise BadOption(f"vLLM takes no picture embeddings where the tower is Pixtral's {known}")


def _check_needs(strategy: Strategy, prompts: Sequence[str] | None) -> None:
    """Refuses methods that read the language model, or a question that is not given."""
    name = type(strategy).__name__
    if strategy.acts_on_pixels:
        raise Incompatible(
            f"{name} acts on pictures, before the processor: hand vLLM the pictures themselves, of "
            "tokenreduce.downsample(processor, images, keep).images"
        )
    if isinstance(strategy, TowerStrategy) and strategy.tower is not None:
        raise BadOption(
            f"{name} with tower={strategy.tower!r} leaves as many tokens as its tower says: a "
            "server needs a number that is known before"
        )
    inside = _inside(strategy.needs)
    if inside:
        raise Incompatible(
            f"{name} reads {', '.join(inside)} of the language model, which runs in vLLM: "
            f"choose one that decides before it ({', '.join(_usable())})"
        )
    if strategy.needs & ASKED and prompts is None:
        raise BadOption(f"{name} chooses by the question: give prompts=[...], one per picture")


def _inside(needs: frozenset[str]) -> list[str]:
    """The evidence among `needs` that only the language model has."""
    return sorted(need for need in needs if kind_of(need) not in BEFORE | ASKED)


def _usable() -> list[str]:
    """The strategies that decide before the language model, with their default options."""
    found = []
    for name, kind in strategies.items():
        with suppress(TypeError, ValueError):  # one that has no defaults is left out
            if kind.reduces and not _inside(kind().needs):
                found.append(name)
    return found


def request(
    prompt: str, rows: Tensor | Sequence[Tensor], image_token: str = "<image>"
) -> dict[str, Any]:
    """What `vllm.LLM.generate` takes: a prompt with one placeholder for every picture's rows.

    The engine must be made with `enable_mm_embeds=True`.

    Args:
        prompt: the text, with `image_token` where each picture lies, once.
        rows: (k, d) of the picture, or of each picture in the prompt's order.
        image_token: the model's placeholder.

    Raises:
        ValueError: another number of placeholders than of pictures, or rows of several shapes.
    """
    pictures = [rows] if isinstance(rows, Tensor) else list(rows)
    count = prompt.count(image_token)
    if count != len(pictures) or not count:
        raise BadOption(
            f"the prompt has {count} {image_token} for {len(pictures)} "
            f"picture{'s' * (len(pictures) != 1)}: write one for each"
        )
    shapes = sorted({tuple(one.shape) for one in pictures})
    if len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise BadOption(
            f"vLLM takes pictures of one shape (tokens, width) in a prompt, not of {shapes}: embed "
            "them with the same whole number to keep"
        )
    return {"prompt": prompt, "multi_modal_data": {"image": torch.stack(pictures)}}


def save_rows(path: str | Path, rows: Sequence[Tensor], **note: Any) -> None:
    """Writes the rows of pictures to a safetensors file, to be read by `load_rows` elsewhere.

    Args:
        path: of the file; half a file is never left there.
        rows: (k, d) per picture.
        **note: what they were made with, as text: the model, the method, the number.
    """
    from safetensors.torch import save_file

    tensors = {str(number): one.contiguous() for number, one in enumerate(rows)}
    with atomic(Path(path)) as draft:
        save_file(tensors, draft, {name: str(value) for name, value in note.items()})


def load_rows(path: str | Path) -> tuple[list[Tensor], dict[str, str]]:
    """The rows of pictures that `save_rows` wrote, and its note. The file holds no code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of rows.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise Missing(f"there is no {path}: write it with save_rows")
    with suppress(SafetensorError), safe_open(path, "pt") as file:
        names = set(file.keys())
        if names == {str(number) for number in range(len(names))}:
            rows = [file.get_tensor(str(number)) for number in range(len(names))]
            if all(one.dim() == 2 for one in rows):
                return rows, dict(file.metadata() or {})
    raise BadOption(f"{path} holds no rows of pictures: write it with save_rows")
