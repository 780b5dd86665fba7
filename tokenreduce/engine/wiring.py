"""The hooks of one reduction on one model: how a forward pass becomes a `Sequence`, and back.

Four kinds of modules are watched: the root (labels come in, logits go out), the multimodal base
(placeholders), the decoder (a `Sequence` begins, hidden states are restored) and its layers.
Shapes: b samples, l sequence, t positions whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokenreduce.engine import apply, contract
from tokenreduce.engine.call import LayerCall, ModelCall, cache_of
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.hooks import Hook, Intercepted, Replaced, bind, parameters
from tokenreduce.engine.reading import Arguments, CallReader, Keywords
from tokenreduce.engine.restore import restore_output
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.state import CallState, CallStates, Marks
from tokenreduce.tower import Part

KEY = "tokenreduce_sequence"
"""The keyword under which a `Sequence` travels from the decoder to its layers."""


class Wiring:
    """Puts the hooks on; `remove()` takes them off.

    Args:
        roots: the modules that a caller may call, outermost first.
        base: the multimodal module.
        config: what the engine is set to do.
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
        config: EngineConfig,
        only_text: bool,
        remember: Callable[[Sequence, Any], None],
        owner: Any = None,
    ) -> None:
        self.base, self.remember = base, remember
        self.owner = self if owner is None else owner
        self.handles: list[Any] = []
        self.calls, self.marks = CallStates(), Marks()
        hooks = config.decoder._forward_pre_hooks.values()
        # those of a copied model do nothing
        if any(isinstance(hook, Hook) and hook.call is not None for hook in hooks):
            raise ValueError(
                f"this {type(roots[-1]).__name__} is already reduced: remove() the other "
                "reduction first"
            )
        self.reader = CallReader(base, config, only_text, self.calls, self.marks, roots[-1])
        try:
            self._put_on(roots)
        except BaseException:  # a model keeps no hook of a reduction that never was
            self.remove()
            raise

    @property
    def config(self) -> EngineConfig:
        """What the engine is set to do; another one holds from the next pass on."""
        return self.reader.config

    @config.setter
    def config(self, config: EngineConfig) -> None:
        self.reader.config = config

    def _put_on(self, roots: list[nn.Module]) -> None:
        base, decoder, adapter = self.base, self.config.decoder, self.config.adapter
        for root in roots:
            self._before(root, self.reader.of_root)
        if base not in roots or base is decoder:
            self._before(base, self.reader.of_base)
        self._before(decoder, self._decoder_before)
        self._after(decoder, self._decoder_after)  # first, where these are one module
        for module in {id(one): one for one in (base, *roots) if one is not decoder}.values():
            self._after(module)
        for i, layer in enumerate(decoder.layers):
            hook = Hook(self._layer_before(i, parameters(layer)), self.owner)
            self.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        for name, kind in adapter.encoders.items():
            if hasattr(base, name):
                self.handles.append(Intercepted(base, name, partial(self.reader.of_encoder, kind)))
        for name in adapter.feature_injections:
            self.handles.append(Replaced(decoder, name, self._between))

    def remove(self) -> bool:
        """Takes every hook off; False when they were off already."""
        handles, self.handles = self.handles, []
        for handle in handles:
            handle.remove()
        self.calls.clear()
        return bool(handles)

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

    def _decoder_before(
        self, state: CallState, given: ModelCall, args: Arguments, kwargs: Keywords
    ) -> Any:
        seq = state.current = self.reader.of_decoder(state, given)
        return None if seq is None else (args, {**kwargs, KEY: seq})

    def _decoder_after(self, state: CallState | None, kwargs: Keywords, output: Any) -> Any:
        seq: Sequence | None = kwargs.get(KEY)
        if state is None or seq is None:
            return None
        state.close()
        if output is None:  # the decoder raised
            return None
        cache = cache_of(output)
        contract.check_pass(seq, cache)
        seq.cache = None  # what is asked of the pass later must not keep it
        if seq.texts:
            self.remember(seq, cache)
        if not seq.reduced and state.rows is None:
            return None
        return restore_output(seq, output, state.rows)

    def _between(self, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        state = self.calls.now()
        if state is None or state.current is None:
            return original(*args, **kwargs)
        return apply.add_between(state.current, original, *args, **kwargs)

    def _layer_before(self, i: int, names: tuple[str, ...]) -> Callable[..., Any]:
        def before(layer: nn.Module, args: Arguments, kwargs: Keywords) -> Any:
            seq = kwargs.pop(KEY, None)
            if seq is None or (seq.prompt is None and i not in seq.short):
                return None
            call = LayerCall.read(i, layer, names, args, kwargs)
            step = apply.follow if seq.prompt is None else apply.enter
            return step(seq, call).write()

        return before
