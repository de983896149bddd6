"""Numbers as people read them."""

from __future__ import annotations

import math

UNITS = ("B", "kB", "MB", "GB", "TB")


def unit_of(size: float) -> int:
    """Return the place in `UNITS` of the largest unit that a number of bytes holds once."""
    return min(len(UNITS) - 1, int(math.log10(max(size, 1))) // 3)


def bytes_text(size: float | str) -> str:
    """Return bytes in the unit that fits, three digits: 1.94 MB. What is no number stays as it is."""
    if isinstance(size, str):
        return size
    unit = unit_of(size)
    return f"{three_digits(size / 1000**unit)} {UNITS[unit]}"


def round_bytes_text(size: float) -> str:
    """Return bytes in the unit that fits, no digit more than it takes: 20 kB."""
    unit = unit_of(size)
    return f"{size / 1000**unit:g} {UNITS[unit]}"


def three_digits(value: float) -> str:
    """Return a number with three digits, or with all of those before the point."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def p_text(p: float) -> str:
    """Return a p-value: two digits, or that it is below 0.0001."""
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def signed(value: float) -> str:
    """Return a difference with its sign, four digits behind the point."""
    return f"{value:+.4f}".replace("-", "−")
