"""How two rows of an id become one vector: their widths, and concatenation, sum or product."""

from __future__ import annotations

from embtables.compressor import Combine


def part_width(width: int, combine: Combine) -> int:
    """Return the width of each of two parts that combine to `width`."""
    return (width + 1) // 2 if concatenates(width, combine) else width


def concatenates(width: int, combine: Combine) -> bool:
    """Return whether parts are concatenated: a vector of one number cannot be, it is summed."""
    return combine == "concat" and width > 1


def combination(width: int, combine: Combine) -> Combine:
    """Return how two parts become a vector of `width` numbers."""
    return "sum" if combine == "concat" and not concatenates(width, combine) else combine
