"""Frequency-based double hashing: frequent ids have private rows, others the sum of two shared rows.

    e(x) = E[m_f - k_f + place(x)]        for the k_f = floor(private * m_f) most frequent ids
    e(x) = E[h1(x)] + E[h2(x)]            for all others, h1 and h2 into the m_f - k_f shared rows

Paper: Zhang et al., Model Size Reduction Using Frequency Based Double Hashing for Recommender
Systems, RecSys 2020. A private row is read once, as it is: its second look-up reads no row. Rows
start with half the variance, so that a sum of two has that of a row; private rows, which are read
often, soon forget where they began. Bytes: as `frequency`, m_f * W * bits and 1.06 bits an id unless
ids come by falling count. When to use: as `frequency`, with fewer exact collisions among rare ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from embtables.compressor import Combine, RowTable, Table, sharings
from embtables.sharing.frequency import Frequency, FrequencyConfig


@sharings.register("double_frequency")
class DoubleFrequency(Frequency):
    """A private row, or two hashed rows, an id, of one physical table."""

    class Config(FrequencyConfig):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Options of frequency-based double hashing."""

        kind: Literal["double_frequency"] = "double_frequency"

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """As `frequency`: both look-ups read one table."""
        single = super().allocate(config, tables, share)
        return {name: (replace(row, scale=0.5**0.5),) * 2 for name, (row,) in single.items()}

    @property
    def combine(self) -> Combine:
        """The two rows of a rare id are added."""
        return "sum"

    @property
    def skips(self) -> bool:
        """A frequent id reads one row."""
        return True
