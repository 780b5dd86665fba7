"""What a call of the model says before its decoder runs: labels, logits, pictures, placeholders.

Shapes: b samples, l sequence, t positions whose logits are wanted.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import VIDEO, Adapter
from tokenreduce.engine import contract, prompt
from tokenreduce.engine.cache import short_layers
from tokenreduce.engine.call import SHIFTED, ModelCall, foreign
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.losses import aligned_loss, unaligned
from tokenreduce.engine.prompt import Given, PictureQueue, Prompt
from tokenreduce.engine.restore import text_rows
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.state import MARKED, CallState, CallStates, Marks
from tokenreduce.engine.tower.observe import capturing, check_patches, measure
from tokenreduce.errors import ReductionWarning
from tokenreduce.tower import Part

PICTURES = "tokenreduce_pictures"
"""The attribute under which an encoder's output carries the geometry of its pictures."""

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class CallReader:
    """Reads the calls of one model.

    Args:
        base: the multimodal module.
        config: what the engine is set to do.
        only_text: whether logits of visual positions are left out.
        calls: the calls that run now.
        marks: what the caller says around calls.
        root: the module that computes logits and loss.
    """

    def __init__(
        self,
        base: Part,
        config: EngineConfig,
        only_text: bool,
        calls: CallStates,
        marks: Marks,
        root: nn.Module,
    ) -> None:
        self.base, self.config, self.only_text = base, config, only_text
        self.calls, self.marks = calls, marks
        self.tower = config.adapter.tower(base)
        self.names = tuple(config.adapter.visual_ids(base.config))
        self._local = threading.local()
        self._warned = False
        self.root, self.aligned = root, not only_text or aligned_loss(root)

    @property
    def queue(self) -> PictureQueue:
        """The pictures of this thread's latest encoder calls."""
        if not hasattr(self._local, "queue"):
            adapter = self.config.adapter
            whole = type(adapter).assemble is Adapter.assemble  # the encoder is given whole ones
            self._local.queue = PictureQueue(assemble=None if whole else adapter.assemble)
        queue: PictureQueue = self._local.queue
        return queue

    def of_root(self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords) -> Any:
        """The root is called: with labels, and for some logits. Its arguments, where they change.

        Raises:
            ValueError: logits are left out that a loss outside of the model may need.
        """
        if state.rows is not None:  # called by a wrapper that has been through this
            return None
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or torch.compiler.is_exporting():
            raise contract.exported()
        labels, ahead = _labels(given)
        known = self.marks.labels.get() if labels is None else labels
        if known is not None:
            state.labels = known
        elif self.marks.unlabelled():
            self._warn_of_threads()
        state.drafts = _drafts(given)
        state.positions = given.position_ids
        if not self.only_text:
            return None
        kind = self.visual(given)
        if kind is None:
            return None
        if ahead is None and self.base.training and torch.is_grad_enabled():
            raise ValueError(
                'logits="text" leaves out the logits of visual positions, but the model is trained '
                "without labels: a loss that is computed outside of it (label smoothing, "
                'compute_loss_func, log-probabilities) needs logits="full", or pass labels'
            )
        visual = kind > 0
        real = prompt.real_tokens(given.mask, given.start, visual.shape[1])
        rows = text_rows(visual, real, None if ahead is None else ahead != -100)
        if rows.shape[1] == visual.shape[1]:
            # nothing is left out; moved to the right, they would still fit the caller's own labels
            return None
        if ahead is not None and not self.aligned:
            raise unaligned(self.root)
        state.rows = rows
        if ahead is None:
            return None
        # the loss aligns positions and labels itself: hand it labels that are aligned already
        picked = ahead.gather(1, rows.clamp(min=0)).masked_fill(rows < 0, -100)
        return args, {**kwargs, SHIFTED: picked}

    def of_encoder(self, kind: str, call: Keywords, run: Callable[[], Any]) -> Any:
        """An encoder is called: with pictures, whose geometry and evidence is kept.

        Args:
            kind: of its pictures.
            call: its arguments by name.
            run: makes the call.
        """
        adapter, state = self.config.adapter, self.calls.now()
        clips = None if state is None else state.clips
        if clips is not None and any(value is clips for value in call.values()):
            kind = VIDEO  # some families have one encoder for both
        bridge = self.config.bridge
        groups: AbstractContextManager[list[Tensor]] = nullcontext([])
        if bridge is not None:
            groups = bridge.encoding()
        with capturing(self.tower, self.config.strategy.needs) as capture, groups as passes:
            output = run()
        read = adapter.clips if kind == VIDEO else adapter.pictures
        pictures = read(self.base, call, output)
        if capture is not None or (bridge is not None and not bridge.expanded and passes):
            check_patches(self.base, pictures)
        if capture is not None:
            pictures = measure(pictures, capture)
        if bridge is not None:
            pictures = bridge.grouped(pictures, passes)
        self.queue.put(kind, pictures)
        if isinstance(output, dict):  # features may be used later, after other pictures
            setattr(output, PICTURES, (kind, pictures))
        return output

    def of_base(
        self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords
    ) -> None:
        """The multimodal module is called: with the token ids, and maybe encoded pictures."""
        contract.check_encoded(self.base, given)
        for output in given.encoded.values():
            known = getattr(output, PICTURES, None)
            if known is not None:
                self.queue.put(*known)
        state.clips, state.ids = given.videos, given.ids
        state.positions = given.position_ids if state.positions is None else state.positions
        state.found = (self.visual(given), given.mask)

    def visual(self, given: ModelCall) -> Tensor | None:
        """(b, l) the kinds of this call's visual tokens: marked by the caller, or placeholders."""
        marked = self.marks.mark.get()
        if marked is None:
            found = prompt.placeholders(self.config.adapter, self.base, given)
            if found is None and self.marks.unseen():
                self._warn_of_threads()
            return found
        x = given.tokens
        mask = prompt.chunk(marked.mask.to(x.device), x.shape[0], given.start, x.shape[1])
        return None if mask is None else mask.long()

    def of_decoder(self, state: CallState, given: ModelCall) -> Sequence | None:
        """The decoder is called: the pass that begins; None where it is left as it is.

        Raises:
            ContractError: a cache of an unknown kind, a pass that goes on from tokens whose cache
                is missing, or several prompts in one row, where tokens are to be reduced.
        """
        x, stops = given.tokens, self.config.stops
        seq = Sequence(x.shape[0], x.shape[1], given.start, x.device, self.config)
        (kind, mask), state.found = state.found, (None, None)
        if foreign(given.cache):
            if kind is not None and stops:
                raise contract.strange_cache(given.cache)
            return None  # text passes as it is
        contract.check_continued(given, seq)
        mask = given.mask if mask is None else mask
        real = prompt.real_tokens(mask, seq.start, seq.length)
        if kind is not None and kind.shape == (seq.batch, seq.length):
            seq.prompt, seq.texts = self._prompt(state, given, kind.to(x.device), (real, mask))
            if seq.prompt is not None and stops and (seq.prompt.restarts or given.packed):
                raise contract.packed_rows()
        elif not seq.start or (seq.length > 1 and not state.drafts):
            seq.texts = prompt.lengths(seq.batch, seq.length, real)
        if seq.prompt is None:
            seq.short = short_layers(given.cache)
        return seq

    def _prompt(
        self, state: CallState, given: ModelCall, kind: Tensor, seen: tuple[Tensor | None, Any]
    ) -> tuple[Prompt | None, tuple[int, ...]]:
        """What the call has told of its visual tokens, and how many others there are."""
        marked = self.marks.mark.get()
        names, queue = (self.names, self.queue) if marked is None else ((MARKED,), marked.pictures)
        positions = given.position_ids if state.positions is None else state.positions
        real, mask = seen
        told = Given(real, state.labels, state.drafts, state.ids, positions, mask)
        return prompt.read_prompt(kind, names, told, queue)

    def _warn_of_threads(self) -> None:
        """Says once that a thread runs outside a block of marks that it does not see."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            "this thread runs the model while another has an open block of reduction.visual(...) "
            "or reduction.labels(...), which it does not see: open the block inside the thread, "
            "or run it in contextvars.copy_context() (asyncio.to_thread does)",
            ReductionWarning,
            stacklevel=2,
        )


def _drafts(given: ModelCall) -> int:
    """How many of the last tokens come after the first whose logits are wanted.

    Positions given as a tensor have to be read (sync: once per call that gives them).
    """
    wanted = given.wanted
    if isinstance(wanted, Tensor):
        length = given.tokens.shape[1]
        return length - 1 - int(wanted.min()) if wanted.numel() and length > 1 else 0
    return max(wanted - 1, 0) if isinstance(wanted, int) else 0


def _labels(given: ModelCall) -> tuple[Tensor | None, Tensor | None]:
    """(b, l) labels of a call at their own tokens, and at the tokens that predict them.

    `shift_labels` are the latter, from collators that shift before they split a sequence.
    """
    labels, ahead = given.labels, given.shifted_labels
    if ahead is None and labels is not None:
        ahead = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    if labels is None and ahead is not None:
        labels = nn.functional.pad(ahead[:, :-1], (1, 0), value=-100)
    return labels, ahead
