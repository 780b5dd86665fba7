"""What counts as the right answer, and which first tokens stand for which answer."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenreduce.checks import one_of
from tokenreduce.data.items import Item

ARTICLES = re.compile(r"\b(a|an|the)\b")
TOLERANCE = 0.05
WITHIN = re.compile(r"[.,](?!\d)|-(?!\d)")
"""Marks that belong to a number where a digit follows, and to no word."""
OTHERS = str.maketrans("", "", "".join(set(string.punctuation) - set(".,-")))


def exact(answer: str, right: str) -> bool:
    """Word for word."""
    return answer == right


def normalised(answer: str, right: str) -> bool:
    """Without regard to case, articles, punctuation and white space, as VQA's scorers do."""
    return _plain(answer) == _plain(right)


def relaxed(answer: str, right: str) -> bool:
    """As `normalised`, but numbers may be off by 5 % (ChartQA, arXiv 2203.10244, section 5.1)."""
    try:
        a, b = (float(text.strip().rstrip("%").replace(",", "")) for text in (answer, right))
    except ValueError:
        return normalised(answer, right)
    return abs(a - b) <= TOLERANCE * abs(b)


MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "normalised": normalised,
    "relaxed": relaxed,
}
"""The rules, by name."""


def is_right(item: Item, answer: str, match: str = "exact") -> bool:
    """Whether an answer is one of the right ones under a rule of `MATCHES`.

    Raises:
        ValueError: an unknown rule.
    """
    same = MATCHES[one_of(match, MATCHES, "rule for right answers")]
    return any(same(answer, right) for right in item.right_answers)


def first_tokens(tokenizer: Any, answers: Sequence[str]) -> dict[str, list[int]]:
    """The ids that an answer may begin with, by answer; answers that begin alike are one entry.

    With and without a space before it, and with a capital: which of them a model writes is up to
    its template. Joined answers are parted by " | ".
    """
    groups: list[tuple[list[str], set[int]]] = []
    for answer in answers:
        ids = set()
        for text in {answer, answer[:1].upper() + answer[1:]}:
            for variant in (text, f" {text}"):
                found = tokenizer(variant, add_special_tokens=False)["input_ids"]
                if found and tokenizer.decode(found[:1]).strip():
                    ids.add(int(found[0]))
        names = [answer]
        for group in [group for group in groups if group[1] & ids]:
            groups.remove(group)
            names, ids = [*group[0], *names], ids | group[1]
        groups.append((names, ids))
    return {" | ".join(names): sorted(ids) for names, ids in groups if ids}


def _plain(text: str) -> str:
    text = WITHIN.sub("", text.lower().translate(OTHERS))
    return " ".join(ARTICLES.sub(" ", text).split()) or text.strip()  # "A" may be an option


def right(items: Sequence[Item], answers: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) whether every answer is the right one, word for word."""
    return np.array([a == item.answer for item, a in zip(items, answers, strict=True)], dtype=bool)
