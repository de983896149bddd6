"""reference: plain PyTorch on any device, for tests and for whoever wants to read it.

A lookup gathers rows into a leaf tensor; after backward the leaf holds the gradient of every row that
was read, and the step sums it by row and applies the optimizer to the distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from embtables.compressor import Bags, Segments
from embtables.rows.arena import ArenaReader, ArenaStore, combined
from embtables.rows.optimizers import (
    DenseAdam,
    slices,
    sum_by_row,
    write_back,
)
from embtables.rows.store import StoreSpec, backends


@backends.register("reference")
class ReferenceStore(ArenaStore):
    """Rows in arenas, updated row by row in plain PyTorch."""

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        self.generator = torch.Generator(spec.device).manual_seed(spec.seed)
        self._skipping = {self.where[read.tables[0][0]] for read in spec.reads if read.skips}
        self._reads: list[tuple[str, Tensor, Tensor]] = []
        self._grads: dict[str, tuple[Tensor | None, Tensor]] | None = None

    @classmethod
    def refusals(cls, spec: StoreSpec) -> list[str]:
        """Rows in few bits take a row optimizer that touches the rows of the batch."""
        if not spec.held:
            return []
        kinds = ", ".join(spec.held)
        if spec.dtype != torch.float32:
            return [
                f"{kinds}(train=true) computes in float32, not {spec.dtype}; pack after training "
                f"({kinds} without train)"
            ]
        if spec.optimizer is None:
            return [
                f"{kinds}(train=true): gradients do not reach rows held in {kinds}; give a row "
                f"optimizer (rows.kind=adagrad), or pack after training ({kinds} without train)"
            ]
        if spec.optimizer.every_row:
            return [
                f"{kinds}(train=true): {spec.optimizer.kind} would round every row at every step; use "
                f"rows.kind=adagrad or adam, or pack after training ({kinds} without train)"
            ]
        return []

    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Gather, remembering the rows while training."""
        found = []
        for reader, name, row, cut, bag in zip(
            self.readers, self.read_arenas, rows, segments, bags, strict=True
        ):
            reader = cast(ArenaReader, reader)
            place = reader(row, cut)
            vectors = self.arena(name).gather(place, reader.skips)
            if self.optimizer and self.training and torch.is_grad_enabled():
                vectors = vectors.detach().requires_grad_()
                self._reads.append((name, place, vectors))
            found.append(combined(vectors, reader.combine, cut, bag))
        return found

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows read since the last step, or with dense_adam all rows."""
        if self.optimizer is None:
            return
        self.steps += 1
        for name, (rows, grads) in self._gradients().items():
            arena = self.arena(name)
            if rows is None:
                new = self.optimizer.apply(
                    arena.values, grads, self.state[name], self.steps, self.lr
                )
                arena.values.copy_(new)
                continue
            part = slices(self.state[name], rows)
            new = self.optimizer.apply(arena.gather(rows), grads, part, self.steps, self.lr)
            write_back(self.state[name], rows, part)
            stored = arena.precision.encode(new, self.generator) if arena.precision else None
            write_back(arena.parts, rows, stored or {"values": new})
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what was read."""
        super().zero_grad(set_to_none)
        self._reads, self._grads = [], None

    @torch.no_grad()
    def grad_square_sum(self) -> Tensor:
        """Return the sum of squares over the distinct rows (all rows with dense_adam)."""
        if self.optimizer is None:
            return _square_sum([p.grad for p in self.parameters() if p.grad is not None])
        return _square_sum([grads for _, grads in self._gradients().values()])

    @torch.no_grad()
    def scale_grads(self, factor: Tensor) -> None:
        """Multiply the gradients that the next step will use."""
        if self.optimizer is None:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            return
        for _, grads in self._gradients().values():
            grads.mul_(factor)

    def training_state(self) -> dict[str, Tensor]:
        """Return rows, optimizer state, step, and the rounding generator if any rows round."""
        flat = super().training_state()
        return flat | {"generator": self.generator.get_state()} if self.rounds else flat

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in place; another backend's has no rounding generator."""
        super().load_training_state(state)
        if "generator" in state:
            self.generator.set_state(state["generator"].cpu())

    def _gradients(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Return arena -> (distinct rows or None for all, summed gradients), once a step."""
        if self._grads is not None:
            return self._grads
        dense = self.optimizer if isinstance(self.optimizer, DenseAdam) else None
        self._grads = {}
        for name, arena in self.named_arenas():
            reads = [(rows, leaf) for at, rows, leaf in self._reads if at == name]
            reads = [
                (rows.flatten(), leaf.grad.flatten(0, -2))
                for rows, leaf in reads
                if leaf.grad is not None
            ]
            if name in self._skipping:
                reads = [(rows[rows >= 0], grad[rows >= 0]) for rows, grad in reads]
            if dense:
                grads = arena.values * dense.l2
                for rows, grad in reads:
                    grads.index_add_(0, rows, grad)
                self._grads[name] = (None, grads)
            elif reads:
                rows = torch.cat([rows for rows, _ in reads])
                self._grads[name] = sum_by_row(rows, torch.cat([grad for _, grad in reads]))
        return self._grads


def _square_sum(grads: list[Tensor]) -> Tensor:
    if not grads:
        return torch.zeros(())
    return torch.stack([grad.square().sum() for grad in grads]).sum()
