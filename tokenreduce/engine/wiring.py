"""The hooks of one reduction on one model: how a forward pass becomes a `Sequence`, and back.

Four kinds of modules are watched: the root (labels come in, logits go out), the multimodal base
(placeholders), the decoder (a `Sequence` begins, hidden states are restored) and its layers.
Shapes: b samples, l sequence, t positions whose logits are wanted.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import VIDEO
from tokenreduce.engine import contract, inputs, passes
from tokenreduce.engine.call import SHIFTED, LayerCall, ModelCall, cache_of, foreign
from tokenreduce.engine.hooks import Hook, Replaced, Watched, bind, parameters
from tokenreduce.engine.inputs import Album
from tokenreduce.engine.losses import aligned_loss, unaligned
from tokenreduce.engine.restore import restore_output, text_rows
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.setup import Setup
from tokenreduce.engine.state import CallState, CallStates, Mark, Marks
from tokenreduce.engine.tower import check_patches, measure, watched
from tokenreduce.errors import ReductionWarning
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part

KEY = "tokenreduce_sequence"
"""The keyword under which a `Sequence` travels from the decoder to its layers."""

PICTURES = "tokenreduce_pictures"
"""The attribute under which an encoder's output carries the geometry of its pictures."""

MARKED = "marked"
"""The kind of pictures whose tokens the caller marks."""

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Wiring:
    """Puts the hooks on; `remove()` takes them off.

    Args:
        roots: the modules that a caller may call, outermost first.
        base: the multimodal module.
        setup: what the layers do.
        only_text: whether logits of visual positions are left out.
        remember: told about every pass over a prompt or a part of one, and its cache.
        owner: the reduction whose hooks these are.

    Raises:
        ValueError: another reduction is on the model.
    """

    def __init__(
        self,
        roots: list[nn.Module],
        base: Part,
        setup: Setup,
        only_text: bool,
        remember: Callable[[Sequence, Any], None],
        owner: Any = None,
    ) -> None:
        self.base, self.setup, self.only_text, self.remember = base, setup, only_text, remember
        self.owner = self if owner is None else owner
        self.handles: list[Any] = []
        self.calls, self.marks = CallStates(), Marks()
        self._local = threading.local()
        decoder = setup.decoder
        hooks = [hook for hook in decoder._forward_pre_hooks.values() if isinstance(hook, Hook)]
        if any(hook.call is not None for hook in hooks):  # those of a copied model do nothing
            raise ValueError(
                f"this {type(roots[-1]).__name__} is already reduced: remove() the other "
                "reduction first"
            )
        self._told = False
        self.tower = setup.adapter.tower(base)
        self.names = tuple(setup.adapter.visual_ids(base.config))
        self.root = roots[-1]
        self.aligned = not only_text or aligned_loss(self.root)
        try:
            self._put_on(roots)
        except BaseException:  # a model keeps no hook of a reduction that never was
            self.remove()
            raise

    def _put_on(self, roots: list[nn.Module]) -> None:
        base, decoder, adapter = self.base, self.setup.decoder, self.setup.adapter
        for root in roots:
            self._before(root, self._root_before)
        if base not in roots or base is decoder:
            self._before(base, self._base_before)
        self._before(decoder, self._decoder_before)
        self._after(decoder, self._decoder_after)  # first, where these are one module
        for module in {id(one): one for one in (base, *roots) if one is not decoder}.values():
            self._after(module)
        for i, layer in enumerate(decoder.layers):
            hook = Hook(self._layer_before(i), self.owner)
            self.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        for name, kind in adapter.encoders.items():
            if hasattr(base, name):
                self.handles.append(Watched(base, name, partial(self._encoded, kind)))
        for name in adapter.between:
            self.handles.append(Replaced(decoder, name, self._between))

    def remove(self) -> bool:
        """Takes every hook off; False when they were off already."""
        handles, self.handles = self.handles, []
        for handle in handles:
            handle.remove()
        self.calls.clear()
        return bool(handles)

    @contextmanager
    def marked(self, mask: Tensor, pictures: list[Picture]) -> Iterator[None]:
        """The caller's visual mask (b, l) holds inside the block, in this context."""
        with self._said(self.marks.mark, Mark(mask, Album({MARKED: pictures}))):
            yield

    @contextmanager
    def labelled(self, labels: Tensor) -> Iterator[None]:
        """Calls without labels have these (b, l) inside the block, in this context."""
        with self._said(self.marks.labels, labels):
            yield

    @contextmanager
    def _said(self, where: ContextVar[Any], what: Any) -> Iterator[None]:
        token = where.set(what)
        self.marks.open += 1
        try:
            yield
        finally:
            self.marks.open -= 1
            where.reset(token)

    @property
    def album(self) -> Album:
        """The pictures of this thread's latest encoder calls."""
        if not hasattr(self._local, "album"):
            adapter = self.setup.adapter
            self._local.album = Album(
                joined=adapter.joined if adapter.runs else None,
                grouped=adapter.grouped if adapter.tagged else None,
            )
        album: Album = self._local.album
        return album

    def _before(self, module: nn.Module, call: Callable[..., Any]) -> None:
        names = parameters(module)

        def hook(called: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
            if called is not module:
                raise contract.replica(called)
            state = self.calls.enter(module)
            return call(state, ModelCall(bind(names, args, kwargs)), args, kwargs)

        self.handles.append(
            module.register_forward_pre_hook(Hook(hook, self.owner), with_kwargs=True)
        )

    def _after(self, module: nn.Module, call: Callable[..., Any] | None = None) -> None:
        def hook(_: nn.Module, args: Arguments, kwargs: Keywords, output: Any) -> Any:
            try:
                return None if call is None else call(self.calls.now(), kwargs, output)
            finally:
                self.calls.leave(module)

        handle = module.register_forward_hook(
            Hook(hook, self.owner), with_kwargs=True, always_call=True
        )
        self.handles.append(handle)

    # -- root: labels, and which logits are wanted ---------------------------------------------

    def _root_before(
        self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords
    ) -> Any:
        if state.rows is not None:  # called by a wrapper that has been through this
            return None
        if torch.compiler.is_exporting():
            raise contract.exported()
        labels, ahead = _labels(given)
        known = self.marks.labels.get() if labels is None else labels
        if known is not None:
            state.labels = known
        wanted = given.wanted
        state.drafts = wanted - 1 if isinstance(wanted, int) and wanted > 1 else 0
        state.positions = given.position_ids
        if not self.only_text:
            return None
        kind = self._visual(given)
        if kind is None:
            return None
        if ahead is None and self.base.training and torch.is_grad_enabled():
            raise ValueError(
                'logits="text" leaves out the logits of visual positions, but the model is trained '
                "without labels: a loss that is computed outside of it (label smoothing, "
                'compute_loss_func, log-probabilities) needs logits="full", or pass labels'
            )
        visual = kind > 0
        real = inputs.real_tokens(given.mask, given.start, visual.shape[1])
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

    # -- base: which tokens are visual ---------------------------------------------------------

    def _encoded(self, kind: str, call: Keywords, run: Callable[[], Any]) -> Any:
        adapter, state = self.setup.adapter, self.calls.now()
        clips = None if state is None else state.clips
        if clips is not None and any(value is clips for value in call.values()):
            kind = VIDEO  # some families have one encoder for both
        within = self.setup.inside
        groups: AbstractContextManager[list[Tensor]] = nullcontext([])
        if within is not None:
            groups = within.encoding()
        with watched(self.tower, self.setup.strategy.needs) as watch, groups as passes:
            output = run()
        read = adapter.clips if kind == VIDEO else adapter.pictures
        pictures = read(self.base, call, output)
        if watch is not None or (within is not None and not within.spread and passes):
            check_patches(self.base, pictures)
        if watch is not None:
            pictures = measure(pictures, watch)
        if within is not None:
            pictures = within.grouped(pictures, passes)
        self.album.put(kind, pictures)
        if isinstance(output, dict):  # features may be used later, after other pictures
            setattr(output, PICTURES, (kind, pictures))
        return output

    def _base_before(
        self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords
    ) -> None:
        contract.check_encoded(self.base, given)
        for output in given.encoded.values():
            known = getattr(output, PICTURES, None)
            if known is not None:
                self.album.put(*known)
        state.clips, state.ids = given.videos, given.ids
        state.positions = given.position_ids if state.positions is None else state.positions
        state.found = (self._visual(given), given.mask)

    def _visual(self, given: ModelCall) -> Tensor | None:
        """(b, l) the kinds of this call's visual tokens: marked by the caller, or placeholders."""
        marked = self.marks.mark.get()
        if marked is None:
            found = inputs.placeholders(self.setup.adapter, self.base, given)
            if found is None and self.marks.unseen():
                self._warn_of_threads()
            return found
        x = given.tokens
        mask = inputs.chunk(marked.mask.to(x.device), x.shape[0], given.start, x.shape[1])
        return None if mask is None else mask.long()

    def _warn_of_threads(self) -> None:
        """Says once that a thread runs beside a block of marks that it does not see."""
        if self._told:
            return
        self._told = True
        warnings.warn(
            "this thread runs the model while another has an open block of reduction.visual(...) "
            "or reduction.labels(...), which it does not see: open the block inside the thread, "
            "or run it in contextvars.copy_context() (asyncio.to_thread does)",
            ReductionWarning,
            stacklevel=2,
        )

    # -- decoder: a pass begins and ends -------------------------------------------------------

    def _decoder_before(
        self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords
    ) -> Any:
        x = given.tokens
        seq = Sequence(x.shape[0], x.shape[1], given.start, x.device)
        (kind, mask), state.found = state.found, (None, None)
        if mask is None:
            mask = given.mask
        if foreign(given.cache):
            if kind is not None and self.setup.stops:
                raise contract.strange_cache(given.cache)
            return None  # text passes as it is
        contract.check_continued(self.setup, given, seq)
        if kind is not None and kind.shape == (seq.batch, seq.length):
            self._describe(state, given, kind.to(x.device), mask, seq)
        elif not seq.start or (seq.length > 1 and not state.drafts):
            seq.texts = inputs.lengths(seq, inputs.real_tokens(mask, seq.start, seq.length))
        state.current = seq
        return args, {**kwargs, KEY: seq}

    def _describe(
        self, state: CallState, given: ModelCall, kind: Tensor, mask: Any, seq: Sequence
    ) -> None:
        """Fills `seq` with what the call has told of its visual tokens."""
        marked = self.marks.mark.get()
        names, album = (self.names, self.album) if marked is None else ((MARKED,), marked.album)
        real = inputs.real_tokens(mask, seq.start, seq.length)
        positions = given.position_ids if state.positions is None else state.positions
        told = inputs.Given(real, state.labels, state.drafts, state.ids, positions)
        found = inputs.describe(seq, kind, names, told, album)
        if found and self.setup.stops and (seq.restarts or given.packed):
            raise contract.packed_rows()

    def _decoder_after(self, state: CallState | None, kwargs: Keywords, output: Any) -> Any:
        seq: Sequence | None = kwargs.get(KEY)
        if state is None or seq is None:
            return None
        state.close()
        if output is None:  # the decoder raised
            return None
        cache = cache_of(output)
        contract.check_pass(self.setup, seq, cache)
        seq.cache = None  # what is asked of the pass later must not keep it
        if seq.texts:
            self.remember(seq, cache)
        if seq.layout is None and state.rows is None:
            return None
        return restore_output(seq, output, state.rows)

    def _between(self, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        state = self.calls.now()
        if state is None or state.current is None:
            return original(*args, **kwargs)
        return passes.add_between(state.current, original, *args, **kwargs)

    def _layer_before(self, i: int) -> Callable[..., Any]:
        setup, names = self.setup, self.setup.names

        def before(layer: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
            seq = kwargs.pop(KEY, None)
            if seq is None or (len(args) < 2 and passes.idle(i, kwargs, seq)):
                return None
            call = LayerCall.read(i, layer, names, args, kwargs)
            if seq.visual is None:
                return passes.follow(setup, call, seq).write()
            return passes.enter(setup, call, seq).write()

        return before


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
