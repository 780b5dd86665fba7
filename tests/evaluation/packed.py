"""Reads what `tokenreduce.evaluation.records.pack` has written."""

from __future__ import annotations


def unpack(kept: str) -> list[int]:
    """The kept tokens of `pack`, ascending."""
    bits = int(kept or "0", 16)
    return [i for i in range(bits.bit_length()) if bits >> i & 1]
