"""The order in which an epoch visits the rows of a split: a pure function of seed and epoch.

Shape letters: N rows of the split, n rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 2**12
"""Fewest neighbouring rows that move together, so that a disk reads pages and not rows."""


@dataclass(frozen=True)
class Shuffle:
    """Permutes blocks of neighbouring rows, then the rows within a window of many blocks.

    Where the split fits into the window, this is a uniform permutation of its rows.

    Attributes:
        rows: N.
        batch: rows of a batch; a window holds whole batches.
        window: rows permuted together, about.
        seed: of the run.
        epoch: counted from 0.
    """

    rows: int
    batch: int
    window: int
    seed: int
    epoch: int

    def take(self, start: int, stop: int) -> np.ndarray:
        """Return the [n] row numbers at the positions start .. stop of the epoch."""
        size = self._blocks_per_window * self._block
        parts = [
            _window(self, index)[max(start - index * size, 0) : stop - index * size]
            for index in range(start // size, -(-stop // size))
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @property
    def _block(self) -> int:
        return self.batch * -(-BLOCK // self.batch)

    @property
    def _blocks_per_window(self) -> int:
        return max(1, self.window // self._block)

    def _random(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *what])


@lru_cache(maxsize=4)
def _window(shuffle: Shuffle, index: int) -> np.ndarray:
    """Return the row numbers of one window."""
    blocks, shift = _blocks(shuffle)
    per_window, size = shuffle._blocks_per_window, shuffle._block
    mine = blocks[index * per_window : (index + 1) * per_window]
    rows = (mine[:, None] * size + np.arange(size)).ravel()
    rows = shuffle._random(1, index).permutation(rows[rows < shuffle.rows])
    return (rows + shift) % shuffle.rows


@lru_cache(maxsize=4)
def _blocks(shuffle: Shuffle) -> tuple[np.ndarray, int]:
    """Return the order of the blocks, the short one last, and how far the blocks are shifted.

    The shift gives every epoch other blocks, and other rows in the short one.
    """
    random = shuffle._random(0)
    full = random.permutation(shuffle.rows // shuffle._block)
    blocks = np.append(full, len(full)) if shuffle.rows % shuffle._block else full
    return blocks, int(random.integers(shuffle.rows))
