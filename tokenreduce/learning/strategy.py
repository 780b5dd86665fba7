"""The bases of strategies that own parameters: how they are built, trained and saved.

How gradients reach them is in `tokenreduce.learning.gate`.

Shapes: b samples, v visual tokens.
"""

from __future__ import annotations

import copy
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tokenreduce.checks import one_of
from tokenreduce.errors import (
    BadOption,
    Incompatible,
    Missing,
    ReductionWarning,
    read_renamed,
)
from tokenreduce.files import atomic
from tokenreduce.learning.gate import GateKind, gated
from tokenreduce.scheduler import Scheduler
from tokenreduce.selection import select
from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Plan, Tokens

EARLIER = {
    "accept_untrained": "silence_untrained",
    "begin": "initialize",
    "complaint": "untrained_warning",
    "join": "add_to_optimizer",
}
"""Methods of a `LearnedStrategy` under names of version 0.1, which still work with a warning."""


class LearnedStrategy(Strategy, nn.Module):
    """A strategy that is a `torch.nn.Module` as well: it owns parameters.

    A subclass makes its modules in `build`, and its plan in `decide` in place of `plan`. It
    is a dataclass whose fields are its options, `@dataclass(eq=False)`. Its parameters are in fp32
    and on no model: `strategy.parameters()` go to an optimiser, `state_dict()`, `to()`, `train()`
    are those of torch. They are built when the width of the model is known, by `tokenreduce.reduce`
    or at the first stop, from the reduction's seed.

    It learns where gradients are on and the model is in training mode, or itself is: like a
    pretrained model it begins in evaluation mode, and `strategy.train()` lets it learn on a model
    that stays in that mode. No gradient flows from its choice into the model.
    """

    weights: str | None = None
    """A safetensors file with its parameters; None builds untrained ones."""

    def __post_init__(self) -> None:
        if type(self).__hash__ is None:
            raise Incompatible(
                f"{type(self).__name__} must be a @dataclass(eq=False): torch asks for modules "
                "that can be told apart"
            )
        if self.weights is not None and not Path(self.weights).is_file():
            raise Missing(f"there is no file {self.weights} with weights")
        nn.Module.__init__(self)
        self._built: tuple[int, int] | None = None  # width and seed
        self._fresh: tuple[int, ...] | None = None  # writes, while untrained
        self._settled = False
        self.eval()

    def __getattr__(self, name: str) -> Any:
        if name in EARLIER:
            return read_renamed(self, name, EARLIER)
        return super().__getattr__(name)

    @abstractmethod
    def build(self, width: int) -> None:
        """Makes the modules, as attributes, for hidden states of `width` numbers."""

    @abstractmethod
    def decide(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The plan; with gradients on, where it is to learn, it may depend on the parameters."""

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The plan of `decide`, in fp32 whatever the model computes in."""
        hidden = tokens.hidden
        self.materialize(hidden.shape[-1], tokens.seed, hidden.device)
        learning = tokens.learning and any(p.requires_grad for p in self.parameters())
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(hidden.device.type, enabled=False))
            stack.enter_context(torch.set_grad_enabled(learning))
            if learning:
                # checkpointing counts what is stored inside a layer; a choice is not made again
                stack.enter_context(saved_tensors_hooks(_as_it_is, _as_it_is))
            return self.decide(replace(tokens, learning=learning), budget)

    def materialize(
        self, width: int, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        """Builds the modules, once, and brings them to `device`.

        Args:
            width: of the model's hidden states.
            seed: of the untrained parameters; torch's own generator is left alone.
            device: None leaves them where they are.

        Raises:
            ValueError: modules that were built for another width, or weights that do not fit.
            FileNotFoundError: there is no file of these weights.
        """
        if self._built is None:
            self._make(width, seed)
            if self.weights is not None:
                self.load_weights(self.weights)
        elif self._built[0] != width:
            raise BadOption(
                f"this {type(self).__name__} was built for a model of width {self._built[0]}, and "
                f"this one has {width}: make a new one for it"
            )
        here = next(self.parameters(), None)
        if device is not None and here is not None and here.device != torch.device(device):
            self.to(device)

    @property
    def trained(self) -> bool:
        """Whether its parameters are any but those that it was built with."""
        if self._built is None:
            return False
        twin = copy.deepcopy(self)
        twin._make(*self._built)
        fresh = twin.state_dict()
        return any(not torch.equal(x.cpu(), fresh[name]) for name, x in self.state_dict().items())

    def initialize(self, decoder: Any, seed: int = 0) -> None:
        """Builds the modules for a decoder, where that lies; looks whether they are trained."""
        width = int(decoder.config.get_text_config().hidden_size)
        self.materialize(width, seed, next(decoder.parameters()).device)
        self._fresh = None if self.trained else self._writes()

    def untrained_warning(self, training: bool) -> str | None:
        """Warning for inference with untrained parameters, once; None in training."""
        learning = torch.is_grad_enabled() and (training or self.training)
        if self._settled or learning or self._fresh != self._writes():
            return None
        self._settled = True
        return (
            f"this {type(self).__name__} is untrained: what it keeps is arbitrary. Give it "
            "weights (an option of that name, or tokenreduce.load) or train it "
            "(tokenreduce.distill)"
        )

    def silence_untrained(self) -> None:
        """Turns off the warning of untrained parameters: for a baseline, or a test."""
        self._settled = True

    def add_to_optimizer(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Adds the parameters as a group to an optimiser that other code steps (a `Trainer`).

        Before every step their gradients are averaged over processes, where there are several
        (a process whose batch had no picture counts as zero); after it they are cleared, since a
        trainer clears those of its model alone.

        Args:
            optimizer: of any kind.
            options: of the group, such as `lr`.

        Raises:
            ValueError: the parameters are not built yet.
        """
        if self._built is None:
            raise BadOption(
                f"this {type(self).__name__} has no parameters yet: reduce a model with it first"
            )
        optimizer.add_param_group({"params": list(self.parameters()), **options})
        optimizer.register_step_pre_hook(lambda *_: self._average())
        optimizer.register_step_post_hook(lambda *_: self.zero_grad())

    def save_weights(self, path: str | os.PathLike[str]) -> Path:
        """Writes the parameters in fp32 into a safetensors file, whole or not at all.

        Warns of parameters that are not finite: they cannot be loaded.
        """
        from safetensors.torch import save_file

        if self._built is None:
            raise BadOption(
                f"this {type(self).__name__} has no parameters yet: reduce a model with it first"
            )
        path = Path(path)
        tensors = {name: x.detach().to("cpu", copy=True) for name, x in self.state_dict().items()}
        tensors = {n: x.float() if x.is_floating_point() else x for n, x in tensors.items()}
        for name in _not_finite(tensors):
            warnings.warn(
                f"{name} of this {type(self).__name__} is not finite: its training has failed, "
                "and these weights will not load",
                ReductionWarning,
                stacklevel=2,
            )
            break
        with atomic(path) as draft:
            save_file(tensors, draft)
        return path

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Reads the parameters from a safetensors file, for a module that is built.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a broken file, tensors of other names, shapes or dtypes, or NaN or infinity
                in one of them.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(path).is_file():
            raise Missing(f"there is no file {path} with weights")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise BadOption(f"{path} is no safetensors file ({error})") from error
        _check_weights(str(path), type(self).__name__, self.state_dict(), tensors)
        self.load_state_dict(tensors)

    def _writes(self) -> tuple[int, ...]:
        """How often each parameter was written to: tells of training without a host sync."""
        return tuple(parameter._version for parameter in self.parameters())

    def _make(self, width: int, seed: int) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.device("cpu"))
            torch.default_generator.manual_seed(seed)  # not those of accelerators
            self.build(width)
        self.float().train(self.training)
        self._built = (width, seed)

    def _average(self) -> None:
        """Means of the gradients over processes."""
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        processes = torch.distributed.get_world_size() if there else 1
        if processes == 1:
            return
        for parameter in self.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= processes


class LearnedScorer(LearnedStrategy):
    """A learned strategy that keeps the tokens with the highest score.

    In training the kept tokens pass a gate (`gated`), so that gradients of the model's loss reach
    the score: `gate="straight_through"` leaves every number of the model as it is; `"soft"` fades
    tokens in training, the less the lower the `temperature`; `"none"` gives no gradient.
    """

    gate: GateKind = "straight_through"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.gate, get_args(GateKind), "gate")
        if not self.temperature > 0:
            raise BadOption(f"temperature must be above 0, not {self.temperature!r}")

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) scores; higher is kept. Values at invalid tokens do not matter."""

    def decide(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The `budget[i]` best-scored tokens of sample i; where it learns, with a gate."""
        scores = self.score(tokens)
        plan = select(scores, tokens, budget)
        if self.gate == "none" or not scores.requires_grad:
            return plan
        return gated(plan, scores, tokens, self.gate, self.temperature)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a quarter."""
        from tokenreduce.schedulers.single import Single

        return Single(layer=0, keep=0.25)


def _not_finite(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of the tensors with NaN or infinity."""
    return (name for name, x in tensors.items() if not bool(torch.isfinite(x).all()))


def _check_weights(
    path: str, kind: str, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> None:
    """Refuses tensors of other names, shapes or dtypes than a strategy has, and broken ones."""
    for name in sorted(mine.keys() | theirs.keys()):
        own, other = (_shape(found.get(name)) for found in (mine, theirs))
        if own != other:
            raise BadOption(
                f"{path} has {name} {other}, but this {kind} {own}: it was trained with other "
                "options, or for a model of another width"
            )
        wanted = torch.float32 if mine[name].is_floating_point() else mine[name].dtype
        if theirs[name].dtype != wanted:
            said, right = (str(x).removeprefix("torch.") for x in (theirs[name].dtype, wanted))
            raise BadOption(
                f"{path} has {name} in {said}, but a {kind} has it in {right}: write the file "
                "with save_weights"
            )
    for name in _not_finite(theirs):
        raise BadOption(
            f"{path} has NaN or infinity in {name}: its training has failed; take the weights of "
            "an earlier step"
        )


def _shape(x: Tensor | None) -> object:
    return "not at all" if x is None else tuple(x.shape)


def _as_it_is(x: Tensor) -> Tensor:
    return x
