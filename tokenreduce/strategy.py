"""The base of every method: which tokens stay, given the tokens and a budget.

Shapes: b samples, v visual tokens, k kept. A strategy is pure: it reads tensors and returns a
`Plan`; it never touches the model, and holds nothing but its own options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from tokenreduce.errors import read_renamed, take_renamed, warn_once
from tokenreduce.paper import Paper
from tokenreduce.registry import Registry
from tokenreduce.selection import select
from tokenreduce.tokens import Plan, Tokens

if TYPE_CHECKING:
    from tokenreduce.scheduler import Scheduler

Positions = Literal["keep", "compact"]
TowerOutput = Literal["merged", "expanded"]
"""What the language model gets of groups of tokens that were merged in its vision tower."""
EARLIER = {"watches": "observe_only"}
"""Members of a `Strategy` under their names of version 0.1, which still work with a warning."""


def tower_output(name: Any) -> Any:
    """`name`, or what is meant where it is `"spread"`, a name of version 0.1 (warns once)."""
    if name != "spread":
        return name
    warn_once("tower='spread' is called tower='expanded' from version 0.2 on")
    return "expanded"


@dataclass(frozen=True)
class Prepared:
    """Pictures as the processor is to get them.

    Attributes:
        images: PIL pictures.
        full: visual tokens of each as it was; None where nothing was changed.
    """

    images: Sequence[Any]
    full: Sequence[int] | None = None


class Strategy(ABC):
    """Decides which visual tokens stay at a stop.

    Class attributes state the facts of a method. `needs`, `positions` and `reads_text` may depend
    on its options: each is then a `@property`. They are read from an instance, never from a class.

    * `needs`: the evidence it reads (names of `tokenreduce.evidence.EVIDENCE`).
    * `positions`: its paper's position rule, used where it is defined for the model.
    * `reduces`: False where every token stays in the model, whatever the budget.
    * `reads_text`: True when the choice depends on the question, so that a cached prefix does too.
    * `observe_only`: True to have `plan` called even where every token stays; the plan is not used.
    * `site`: where it acts. A method whose whole work is that of `prepare`, before the processor,
      acts on `"pictures"`; inside a model it is refused.
    * `paper`: where the method comes from.
    * `formula`: what stays, in one line; `cost`: of choosing k of v tokens.
    * `mixes`: True when kept tokens take in others.

    An attribute docstring under an option says what it does; it becomes the comment next to it in
    the option's file, and a row on the method's page.
    """

    reduces: ClassVar[bool] = True
    observe_only: ClassVar[bool] = False
    site: ClassVar[str] = "decoder layer"
    paper: ClassVar[Paper | str] = ""
    formula: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    mixes: ClassVar[bool] = False
    training: bool = False
    """Whether it learns although the model may not; for strategies that own parameters."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        take_renamed(cls, EARLIER)

    @property
    def needs(self) -> frozenset[str]:
        """The evidence that it reads; none unless a method says otherwise."""
        return frozenset()

    @property
    def positions(self) -> Positions:
        """The position rule of its paper."""
        return "keep"

    @property
    def reads_text(self) -> bool:
        """Whether its choice depends on the question."""
        return False

    @property
    def watches(self) -> bool:
        """What version 0.1 called `observe_only`."""
        return bool(read_renamed(self, "watches", EARLIER))

    @property
    def acts_on_pixels(self) -> bool:
        """Whether its whole work is that of `prepare`, so that no model can be reduced by it."""
        return self.site == "pictures"

    def prepare(self, processor: Any, images: Sequence[Any], keep: float) -> Prepared:
        """The pictures as the processor is to get them; as they are unless a method says otherwise.

        Args:
            processor: the checkpoint's, with its tokenizer.
            images: PIL pictures.
            keep: the share of their visual tokens that is to reach the language model.
        """
        return Prepared(images)

    def initialize(self, decoder: Any, seed: int = 0) -> None:
        """What is to be done when a model is reduced with it; nothing without parameters.

        Args:
            decoder: the module whose `layers` are the decoder layers.
            seed: of untrained parameters.
        """
        return

    def untrained_warning(self, training: bool) -> str | None:
        """What a user is to be warned of, once, after a pass; None where there is nothing.

        Args:
            training: whether the model is in training mode.
        """
        return None

    @abstractmethod
    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Which of `tokens` stay: exactly `budget[i]` of sample i (never more than it has)."""

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The paper's own schedule, used when the caller names none."""


class Scorer(Strategy):
    """A strategy that keeps the tokens with the highest score."""

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) scores; higher is kept. Values at invalid tokens do not matter."""

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The `budget[i]` best-scored tokens of sample i, in reading order."""
        return select(self.score(tokens), tokens, budget)

    def scheduler(self) -> Scheduler:
        """A pyramid of four stages that halve the tokens, unless a method says otherwise."""
        from tokenreduce.schedulers.pyramid import Pyramid

        return Pyramid()


class TowerStrategy(Strategy):
    """A strategy that can also work inside a vision tower, between a layer's attention and MLP.

    There its `plan` merges (every token has a group), leaves the first `tokens.fixed` tokens alone,
    and is given `tokens.size`; `tokens["keys"]` are those of the layer's attention.
    """

    site: ClassVar[str] = "vision tower, decoder layer"
    tower: TowerOutput | None = None
    """In a vision-language model: None works at decoder layers. `"merged"` and `"expanded"` work in
    its vision tower; the language model then gets every group once, or at every place of its
    tokens."""

    @property
    @abstractmethod
    def proportional(self) -> bool:
        """Whether a token that represents n patches weighs n times in the tower's attention."""

    @abstractmethod
    def counts(self, depth: int, tokens: int, fixed: int = 0) -> tuple[int, ...]:
        """How many tokens are left after each layer of a tower of `depth` layers.

        Args:
            depth: layers of the tower.
            tokens: that the tower begins with, class tokens included.
            fixed: class tokens among them.
        """


strategies: Registry[type[Strategy]] = Registry("strategy", "tokenreduce.strategies")
"""Every known strategy: name -> class."""
