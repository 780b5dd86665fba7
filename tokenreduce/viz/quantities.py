"""Numbers as people read them."""

from __future__ import annotations


def quantity(value: float, unit: str, base: int) -> str:
    """`value` with three digits and a prefix: 1.23 G, or 1.20 MiB where the base is 1024."""
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}".rstrip()


def counted(number: int, noun: str) -> str:
    """A count with its noun: 1 picture, 2 pictures."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
