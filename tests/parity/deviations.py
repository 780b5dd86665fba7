"""Where this project does not do what an original did, and why.

`DEVIATIONS` names every recorded case that is not reproduced as a whole; `deviates` states the rule
behind it, so that further cases are sorted by what they are. `PARTIAL` names what is left out of a
case that is otherwise reproduced.
"""

from __future__ import annotations

from .cases import IGNORED, Case

DEVIATIONS = {
    "pyramiddrop/eval_with_labels_n37": (
        "Given labels in evaluation mode, the original ranks with the last token of the whole "
        "sequence, which is the last token of the answer: the choice looks at what it is scored "
        "on. Here labels mean the same in evaluation as in training: the token before each answer "
        "asks. Without labels the recorded run is reproduced."
    ),
    "pyramiddrop/train_batch2_one_without_answer": (
        "The original leaves a training sample without any supervised token unreduced, and that "
        "sample sets the length of the whole batch. Here the last token of such a sample asks, and "
        "it is reduced like the others. Loss and gradients are the recorded ones: that sample "
        "takes no part in them."
    ),
    "fastv/mask_generate_cache": (
        "The original hides image tokens by a mask that it draws anew at every decoded token, over "
        "a cache that holds all of them: nothing is saved, and earlier tokens keep states computed "
        "under other masks. Here tokens are dropped once, in the prefill, as in FastV's "
        "own code with a cache. The prefill of the recorded run is reproduced."
    ),
}

PARTIAL = {
    "fastv/lmms_K3_r050": (
        "The original runs layer K - 1 twice, so that this layer's cache holds everything twice "
        "(1262 entries for 631 tokens). Duplicates cancel in the softmax, so all its outputs are "
        "reproduced; the length of that one layer's cache is not."
    ),
}


def deviates(case: Case) -> bool:
    """Whether `case` records behaviour that is deliberately not copied."""
    if case.method == "fastv":
        return case["mode"] == "attention-mask with KV cache"
    if case.method != "pyramiddrop" or case.labels is None:
        return False
    if case.kind == "forward":
        return True
    answered = (case.labels != IGNORED).any(dim=1)
    pictured = case.visual.any(dim=1)
    return bool((pictured & ~answered).any())


def sound(*of: Case) -> list[Case]:
    """Those of the cases that are reproduced."""
    return [case for case in of if not deviates(case)]
