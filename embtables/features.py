"""What a model asks of its embedding tables: features (vectors out) and tables (ids in)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Pooling = Literal["sum", "mean", "none"]


@dataclass(frozen=True)
class Feature:
    """One embedding that a model reads.

    Attributes:
        name: name of the output vector.
        dim: width D the model would like, in numbers.
        key: key of the KeyedJaggedTensor that holds its ids (default: the name).
        table: logical table it reads (default: the name). Features that name one table share it.
        pooling: "sum" or "mean" over the ids of a bag, or "none" for a sequence (one vector an id).
    """

    name: str
    dim: int
    key: str = ""
    table: str = ""
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"feature {self.name!r}: dim must be at least 1, got {self.dim}")
        object.__setattr__(self, "key", self.key or self.name)
        object.__setattr__(self, "table", self.table or self.name)


@dataclass(frozen=True)
class Vocabulary:
    """The ids a logical table is asked for.

    Attributes:
        rows: closed vocabulary: ids are 0 .. rows-1. Open vocabulary: number of distinct ids seen in
            training, which is what an uncompressed table would need.
        open: True if any 64-bit id may come.
        oov: row that an id outside a closed vocabulary reads; None makes such an id an error.
        counts: [rows] training frequency of each id of a closed vocabulary, or None.
    """

    rows: int
    open: bool = False
    oov: int | None = None
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a vocabulary needs at least one row, got {self.rows}")
        if self.oov is not None and not 0 <= self.oov < self.rows:
            raise ValueError(
                f"oov row {self.oov} is outside the vocabulary's rows (0 .. {self.rows - 1})"
            )


def by_name(features: Sequence[Feature]) -> dict[str, Feature]:
    """Return name -> feature.

    Raises:
        ValueError: two features have one name.
    """
    named = {feature.name: feature for feature in features}
    if len(named) < len(features):
        names = [feature.name for feature in features]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two features are called {', '.join(map(repr, twice))}")
    return named
