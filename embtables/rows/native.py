"""native: Numba kernels on the CPU, one process. Fused backward and optimizer, any width from 1.

A look-up writes the vectors of a batch into a leaf tensor, the ids of a batch row side by side, so
that pooling single-valued features copies nothing. After backward the leaf holds the gradients, and
the step sums them by row and updates the distinct rows in one pass (`kernels.step`).

Shape letters: B rows of a batch, S segments of a group, K rows read for an id, n ids, N = n * K rows
read, d width of a row, C width of a combined vector.

Memory beside rows and optimizer state is bounded by the batch (`batch_bytes`) and kept from step to
step, so that a steady state allocates nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from embtables import parallel
from embtables.compressor import Bags, Segments
from embtables.hashing import MAX_ROWS
from embtables.rows import kernels
from embtables.rows.arena import Arena, ArenaReader, ArenaStore
from embtables.rows.gather import (
    FORMS,
    NO_FACTORS,
    NO_SOURCES,
    Buffers,
    Gather,
    Gathered,
    bucket_shift,
    stored_rows,
)
from embtables.rows.optimizers import Adam, DenseAdam
from embtables.rows.store import StoreSpec, backends


def batch_bytes(reads: int, dim: int, rows: int, threads: int) -> int:
    """Return a bound on the bytes of a training step beside rows and optimizer state.

    Args:
        reads: N of the arena.
        dim: d.
        rows: R of the arena.
        threads: T.

    For each read 8 (id) + 8 (row) + 8 (place) + 8 (entry) + 4 (source) + 8 (factor), a vector and its
    gradient, and where rows are multiplied a sum, its row (8) and its source (4); for each thread
    the sums and places of a bucket's rows, and counts of buckets; buffers have an eighth to spare.
    """
    bucket = 1 << bucket_shift(rows)
    sums = 4 * bucket + min(bucket, reads) * (8 + 4 * dim)
    each = sums + 8 * ((1 << kernels.BUCKET_BITS) + 1)
    return (reads * (56 + 12 * dim) + threads * each) * 9 // 8


_KINDS = ("sgd", "rowwise_adagrad", "adagrad", "adam", "dense_adam")


class _Gradients(NamedTuple):
    """Gradients of the reads of rows; fields as in `kernels.deal`."""

    place: Tensor
    grads: Tensor
    repeat: int = 1
    sources: Tensor = NO_SOURCES
    factors: Tensor = NO_FACTORS

    def each(self, base: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return place, source, counted from `base`, and factor of every read."""
        reads, sources, factors = len(self.place), self.sources, self.factors
        if not len(sources):
            sources = torch.arange(reads, dtype=torch.int32).div_(
                self.repeat, rounding_mode="floor"
            )
        if not len(factors):
            factors = torch.ones(-(-reads // self.repeat))
        return self.place, sources + base, factors.repeat_interleave(self.repeat)


@dataclass
class _Read:
    """What the backward of one look-up needs; the leaf holds the gradients of its vectors."""

    gathered: Gathered
    gather: Gather
    probes: int

    def gradients(self) -> _Gradients:
        """Return the gradients of the rows read, or of products of rows."""
        one = self.gathered
        assert one.vectors.grad is not None
        dim = self.gather.arena.dim
        repeat = 1 if self.gather.combine == "concat" and not len(one.sources) else self.probes
        return _Gradients(
            one.place, one.vectors.grad.reshape(-1, dim), repeat, one.sources, one.factors
        )


@backends.register("native")
class NativeStore(ArenaStore):
    """Rows in arenas, read and updated by the kernels."""

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        self.seed = spec.seed % 2**32
        self._gathers = [
            Gather(cast(ArenaReader, reader), self.arena(name))
            for reader, name in zip(self.readers, self.read_arenas, strict=True)
        ]
        self._memory = Buffers()
        self._reads: dict[str, list[_Read]] = {}
        self._dealt: dict[str, tuple[Any, ...]] = {}
        self._factor = 1.0
        self._kept_heads = torch.empty(0, 0, dtype=torch.int32)

    @classmethod
    def refusals(cls, spec: StoreSpec) -> list[str]:
        """It is made for training with fused optimizers on the CPU."""
        reasons = []
        if spec.device.type != "cpu":
            reasons.append(f"backend native runs on cpu, not {spec.device.type}; use torchrec")
        if spec.dtype != torch.float32:
            reasons.append(f"backend native computes in float32, not {spec.dtype}; use reference")
        if spec.optimizer is None:
            reasons.append(
                "backend native updates rows itself; give a row optimizer (rows.kind), or use "
                "backend=reference for any torch optimizer"
            )
        elif spec.optimizer.kind not in _KINDS:
            reasons.append(f"backend native has no {spec.optimizer.kind}; use backend=reference")
        rows: Counter[int] = Counter()
        for table in spec.tables:
            rows[table.dim] += table.rows
        for dim, count in rows.items():
            if count > MAX_ROWS:
                reasons.append(
                    f"backend native addresses {MAX_ROWS:,} rows of one width, not the {count:,} of "
                    f"width {dim}; lower the budget, or use backend=reference"
                )
        unknown = [kind for kind in spec.held if kind not in FORMS]
        if unknown:
            reasons.append(f"backend native cannot train {unknown[0]} rows; use backend=reference")
        if spec.held and spec.optimizer is not None and spec.optimizer.every_row:
            reasons.append(
                f"{', '.join(spec.held)}(train=true): {spec.optimizer.kind} would round every row at "
                "every step; use rows.kind=adagrad or adam, or pack after training"
            )
        return reasons

    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Gather, combine and add up, remembering the rows while training."""
        training = self.training and torch.is_grad_enabled()
        found = []
        for gather, name, row, cut, bag in zip(
            self._gathers, self.read_arenas, rows, segments, bags, strict=True
        ):
            gathered = gather(row, cut, bag)
            if training:
                gathered.vectors = gathered.vectors.detach().requires_grad_()
                self._reads.setdefault(name, []).append(_Read(gathered, gather, len(row)))
            found.append(gathered.result())
        return found

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows read since the last step, or with dense_adam all rows."""
        self.steps += 1
        for name, arena in self.named_arenas():
            if dealt := self._deal(name):
                self._update(arena, self.state[name], dealt)
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what was read."""
        super().zero_grad(set_to_none)
        self._reads, self._dealt, self._factor = {}, {}, 1.0

    @torch.no_grad()
    def grad_square_sum(self) -> Tensor:
        """Return the sum of squares over the distinct rows (all rows with dense_adam)."""
        return torch.tensor(sum(self._square_sum(*named) for named in self.named_arenas()))

    def scale_grads(self, factor: Tensor) -> None:
        """Multiply the gradients that the next step will use."""
        self._factor *= float(factor)

    def training_state(self) -> dict[str, Tensor]:
        """Return rows, optimizer state, step, and the seed of stochastic rounding if any rows round."""
        flat = super().training_state()
        return flat | {"seed": torch.tensor(self.seed)} if self.rounds else flat

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in place; another backend's has no such seed."""
        super().load_training_state(state)
        self.seed = int(state.get("seed", self.seed))

    def _update(self, arena: Arena, state: dict[str, Tensor], dealt: tuple[Any, ...]) -> None:
        stored = stored_rows(arena)
        states = [*state.values(), None, None][:2]
        factor, rates = np.float32(self._factor), self._rates()
        if isinstance(self.optimizer, DenseAdam):
            l2 = np.float32(self.optimizer.l2)
            parallel.call(kernels.dense_step, False, stored[0], *states, l2, factor, rates, *dealt)
            return
        assert self.optimizer is not None
        key = np.uint32(_key(self.seed, self.steps))
        parallel.call(kernels.step, *stored, *states, factor, rates, key, *dealt)

    def _square_sum(self, name: str, arena: Arena) -> float:
        dealt = self._deal(name)
        if dealt is None:
            return 0.0
        if not isinstance(self.optimizer, DenseAdam):
            return parallel.call(kernels.square_sum, *dealt)
        l2, one, states = np.float32(self.optimizer.l2), np.float32(1), self.state[name].values()
        return parallel.call(
            kernels.dense_step,
            True,
            arena.values,
            *states,
            l2,
            one,
            self._rates(),
            *dealt,
        )

    def _rates(self) -> np.ndarray:
        """Return what the kernels call `rates`."""
        optimizer = self.optimizer
        assert optimizer is not None
        rates = [self.lr, 1 - self.lr * optimizer.weight_decay, getattr(optimizer, "eps", 0.0)]
        if isinstance(optimizer, Adam):
            beta1, beta2 = optimizer.betas
            count = max(self.steps, 1)
            rates += [1 - beta1, beta2, 1 - beta2]
            rates += [1 / (1 - beta1**count), (1 - beta2**count) ** -0.5]
        return np.array(rates, np.float32)

    def _deal(self, name: str) -> tuple[Any, ...] | None:
        """Deal the reads of an arena into buckets, once a step.

        Returns:
            `kernels.step`'s arguments from `grads` on, or None if there is nothing to do.
        """
        if name in self._dealt:
            return self._dealt[name]
        reads = [r for r in self._reads.get(name, []) if r.gathered.vectors.grad is not None]
        every_row = self.optimizer is not None and self.optimizer.every_row
        if not reads and not every_row:
            return None
        arena = self.arena(name)
        found = [
            self._sum_products(name, read)
            if read.gather.multiplies(read.probes)
            else read.gradients()
            for read in reads
        ]
        joined = self._joined(found, arena.dim)
        shift, entries, factors, starts, heads = self._buckets(name, joined, len(arena.values))
        most = min(1 << shift, int(starts.diff().max()))
        threads = parallel.thread_count()
        rows = self._memory.take("rows", threads, most, dtype=torch.int64)
        sums = self._memory.take("sums", threads, most, arena.dim)
        self._dealt[name] = (joined.grads, shift, entries, factors, starts, heads, rows, sums)
        return self._dealt[name]

    def _sum_products(self, name: str, read: _Read) -> _Gradients:
        """Return the gradients of the distinct rows of products."""
        gather, one, take = read.gather, read.gradients(), self._memory.take
        one = one._replace(repeat=1)  # each factor has a gradient of its own
        shift, entries, _, starts, heads = self._buckets(name, one, len(gather.arena.values))
        count = len(one.place)
        rows = take("factor rows", count, dtype=torch.int64)
        sources = take("factor sources", count, dtype=torch.int32)
        sums = take("factor sums", count, gather.arena.dim)
        ends = take("factor ends", len(starts) - 1, dtype=torch.int64)
        distinct = parallel.call(
            kernels.sum_products, *stored_rows(gather.arena), gather.skips, one.place, one.grads,
            shift, entries, starts, heads, ends, rows, sources, sums,
        )  # fmt: skip
        return _Gradients(rows[:distinct], sums, sources=sources[:distinct])

    def _buckets(
        self, name: str, one: _Gradients, rows: int
    ) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        """Return what `kernels.step` calls shift, entries, factors, starts and heads."""
        count, shift, take = len(one.place), bucket_shift(rows), self._memory.take
        buckets = max(0, rows - 1 >> shift) + 1
        entries = take(f"{name}/entries", count, dtype=torch.int64)
        factors = take(f"{name}/factors", count if len(one.factors) else 0)
        starts = take(f"{name}/starts", buckets + 2, dtype=torch.int64)
        counts = take(f"{name}/counts", parallel.thread_count(), buckets + 1, dtype=torch.int64)
        shares = one.repeat, one.sources, one.factors
        parallel.call(kernels.deal, one.place, *shares, shift, counts, entries, factors, starts)
        # A bucket behind the last held the reads of no row.
        return shift, entries, factors, starts[:-1], self._heads(1 << shift)

    def _joined(self, found: list[_Gradients], dim: int) -> _Gradients:
        """Return the gradients of several look-ups as those of one."""
        if len(found) == 1:
            return found[0]
        nothing = torch.empty(0, dtype=torch.int64), NO_SOURCES, NO_FACTORS
        each, base = [nothing], 0
        for one in found:
            each.append(one.each(base))
            base += len(one.grads)
        place, sources, factors = (torch.cat(parts) for parts in zip(*each, strict=True))
        grads = torch.cat([torch.empty(0, dim), *(one.grads for one in found)])
        return _Gradients(place, grads, 1, sources, factors)

    def _heads(self, size: int) -> Tensor:
        """Return [T, size] of -1 for any number of threads; the kernels leave it as they found it."""
        if self._kept_heads.shape[1] < size:
            self._kept_heads = torch.full((parallel.MOST, size), -1, dtype=torch.int32)
        return self._kept_heads


def _key(seed: int, step: int) -> int:
    """Return the 32-bit key of the stochastic rounding in a step."""
    return (seed * 0x9E3779B1 + step * 0x85EBCA6B) % 2**32
