"""Back to logical coordinates after the last layer.

Every dropped position gets the hidden state of the last kept token before it (forward-fill): the
token that comes next is then predicted by what the model really saw last, and losses equal those
of a shortened sequence with its labels shortened alike. Positions with nothing kept before them
(left padding) become zeros. Shapes: b samples, l logical tokens, p physical tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.engine.call import last_hidden, set_states, states_of
from tokenreduce.engine.sequence import Sequence, Stage, rows_of


def restore(seq: Sequence, stage: Stage, hidden: Tensor, wanted: Tensor | None = None) -> Tensor:
    """(b, p, d) -> (b, l, d), the identity for a stage that has every token.

    With `wanted` (b, t) only these positions are copied, zeros where it is -1.
    """
    wanted = None if wanted is None else wanted.to(hidden.device)
    if stage.whole:
        return hidden if wanted is None else _pick(hidden, wanted.clamp(min=0), wanted < 0)
    if stage.order.device != hidden.device:  # of a layer that lies elsewhere
        stage = stage.to(hidden.device)
    source, nothing = stage.made.once("fill", lambda: _fill(seq, stage))
    if wanted is None:
        return _pick(hidden, source, nothing)
    at = wanted.clamp(min=0)
    empty = wanted < 0 if nothing is None else (wanted < 0) | nothing.gather(1, at)
    return _pick(hidden, source.gather(1, at), empty)


def _pick(hidden: Tensor, source: Tensor, nothing: Tensor | None) -> Tensor:
    picked = rows_of(hidden, source)
    return picked if nothing is None else picked.masked_fill(nothing[..., None], 0.0)


def _fill(seq: Sequence, stage: Stage) -> tuple[Tensor, Tensor | None]:
    """(b, l) the token that represents each position, and where there is none before it."""
    order = (stage.order - seq.start).contiguous()
    if stage.kept.valid is not None:
        order = order.masked_fill(~stage.kept.valid, -1)
    logical = torch.arange(seq.length, device=order.device).expand(seq.batch, -1).contiguous()
    source = torch.searchsorted(order, logical, right=True) - 1
    if seq.visual.text_first:  # text stays, so that every position has a token before it
        return source, None
    nothing = (source < 0) | (order.gather(1, source.clamp(min=0)) < 0)
    return source.clamp(min=0), nothing


def restore_output(seq: Sequence, output: Any, rows: Tensor | None) -> Any:
    """A decoder's output with every hidden state at logical length, or only `rows` (b, t) of it."""
    last = seq.last
    output = last_hidden(output, lambda x: restore(seq, last, x, rows))
    states = states_of(output)
    if states is not None and seq.reduced:
        # entry j is the output of layer j - 1; entry 0 the input of layer 0, after its stop.
        # Lengths say nothing: next to a long text-only sample, shortened rows stay as wide
        stages = [seq.stage(max(j - 1, 0)) for j in range(len(states) - 1)] + [last]
        whole = [
            None if state is None else restore(seq, stage, state)
            for stage, state in zip(stages, states, strict=True)
        ]
        set_states(output, tuple(whole))
    return output


def text_rows(
    visual: Tensor, real: Tensor | None = None, predicted: Tensor | None = None
) -> Tensor:
    """(b, t) logical positions whose logits a text-only run needs, left-padded with -1.

    These are the text tokens, the visual token right before a text token, for it predicts it, and
    whatever else has something to predict. Padding is left out.

    Args:
        visual: (b, l) True at visual tokens.
        real: (b, l) False at padding; None when there is none.
        predicted: (b, l) True where a label hangs on the logits.
    """
    follows = torch.cat([~visual[:, 1:], torch.ones_like(visual[:, :1])], dim=1)
    needed = ~visual | follows
    if real is not None:
        needed = needed & real.bool()
    if predicted is not None:
        needed = needed | predicted
    width = int(needed.sum(1).max())  # sync: once per prompt, it is the shape of the logits
    position = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
    return torch.where(needed, position, -1).sort(dim=1).values[:, visual.shape[1] - width :]
