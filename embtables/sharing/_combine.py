"""How two vectors of an id become one: concatenation, sum or product."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Combine = Literal["sum", "concat", "mult"]


def part_width(width: int, combine: Combine) -> int:
    """Return the width of each of two parts that combine to `width`."""
    return (width + 1) // 2 if concatenates(width, combine) else width


def concatenates(width: int, combine: Combine) -> bool:
    """Return whether parts are concatenated: a vector of one number cannot be, it is summed."""
    return combine == "concat" and width > 1


def combine_two(vectors: Tensor, width: int, combine: Combine) -> Tensor:
    """Combine [2, n, d] to [n, width]."""
    if concatenates(width, combine):
        return concatenate(vectors, width)
    return vectors[0] * vectors[1] if combine == "mult" else vectors[0] + vectors[1]


def concatenate(vectors: Tensor, width: int) -> Tensor:
    """Lay the K vectors of each id side by side, [K, n, d] -> [n, width]; surplus numbers go."""
    flat = vectors.transpose(0, 1).flatten(1)
    return flat[:, :width]
