"""sharded: tables shared out among the ranks of torch.distributed, by TorchRec.

What the torchrec backend becomes under torchrun. Tables lie in TorchRec collections under
DistributedModelParallel (`rows.collections`), placed by its planner (`rows.sharding`); FBGEMM's
optimizer updates them inside backward. Data-parallel tables are whole on every rank: their gradients
are averaged over ranks in `step`, and the row optimizer is applied to all of their rows, which for
SGD and both Adagrads is the same as applying it to the rows of the batch.

Gradients are averaged over ranks, as DistributedDataParallel does: a loss that is the mean over the
rows of this rank is the mean over the batch where ranks have equally many.

Shape letters: K rows read for an id, S segments of a group, P of them pooled, B rows of this rank's
batch, n ids of a group, d numbers in a row, C of a combined vector, O bags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.nn import functional
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from embtables.compressor import Bags, Combine, Parts, Segments
from embtables.ranks import averaged
from embtables.rows import sharding
from embtables.rows.arena import combined
from embtables.rows.collections import Collections, key_of
from embtables.rows.store import Read, RowStore, StoreSpec, backends, put
from embtables.rows.torchrec import fused_optimizers, fused_options, fused_refusals, slot_of
from embtables.torchrec_types import KeyedJaggedTensor

BATCH = 512
"""Rows of a batch that the planner reckons with; it compares plans, whose order hardly depends on it."""


@dataclass
class Key:
    """One look-up of one segment in one batch.

    Attributes:
        rows: [m] rows to read, -1 taken out.
        lengths: [B] rows in each bag, or None where they are not added up.
        present: [n] where rows are not -1, or None where all are.
    """

    rows: Tensor
    lengths: Tensor | None
    present: Tensor | None

    @property
    def bags(self) -> int:
        """B, for a key that is added up."""
        assert self.lengths is not None
        return len(self.lengths)

    @classmethod
    def of(cls, rows: Tensor, counts: Tensor | None, skips: bool) -> Key:
        """Leave out rows that are -1 from the bags of so many ids [B]."""
        if not skips:
            return cls(rows, counts, None)
        present = rows >= 0
        if counts is not None:
            total = functional.pad(present.cumsum(0), (1, 0))
            ends = counts.cumsum(0)
            counts = total[ends] - total[ends - counts]
        return cls(rows[present], counts, present)

    def pool(self, vectors: Tensor) -> Tensor:
        """Add up the vectors of rows by bags, where they are to be."""
        if self.lengths is None:
            return vectors
        return torch.segment_reduce(
            vectors, "sum", lengths=self.lengths, axis=0, initial=0, unsafe=True
        )

    def restore(self, vectors: Tensor) -> Tensor:
        """Return vectors of all ids, zeros where a row was -1; those of bags as they are."""
        if self.present is None or self.lengths is not None:
            return vectors
        whole = vectors.new_zeros(len(self.present), vectors.shape[1])
        return whole.index_copy(0, self.present.nonzero().flatten(), vectors)


@backends.register("sharded")
class ShardedStore(RowStore):
    """Physical tables over all ranks."""

    clips = False
    weighs = False

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        assert spec.optimizer is not None
        self.reads, self.device = spec.reads, spec.device
        self.places = sharding.Places.of(spec.tables, spec.reads, spec.sharding, spec.optimizer)
        self.steps = 0
        self._whole = {name: self._first_whole(spec, name) for name in self.places.replicated}
        self._state = {
            name: spec.optimizer.state(*rows.shape, like=rows.detach())
            for name, rows in self._whole.items()
        }
        # Behind a list: tables that are trained inside backward are no parameters of anyone else's.
        self._sharded: list[Any] = []
        if len(self.places.replicated) < len(spec.tables):
            self._sharded.append(self._shard(spec))
            for name, tensor in self._rows().items():
                for shard in tensor.local_shards():
                    shard.tensor.detach().zero_()  # padding columns stay zero
                self._fill(tensor, spec.first_rows(self.tables[name]))

    @classmethod
    def refusals(cls, spec: StoreSpec) -> list[str]:
        """What FBGEMM cannot do, what needs a whole table, and what column-wise tables change."""
        if spec.optimizer is None:
            return ["tables of several ranks are trained by a row optimizer; give optimizer=..."]
        found = fused_refusals(spec, way_out="train in one process")
        found += sharding.refusals(spec.sharding, spec.optimizer, spec.device.type, spec.strict)
        return found

    @property
    def _module(self) -> Any:
        """The collections under DistributedModelParallel, None where all tables are replicated."""
        return self._sharded[0] if self._sharded else None

    def _first_whole(self, spec: StoreSpec, name: str) -> Tensor:
        table = self.tables[name]
        rows = torch.empty(table.rows, table.dim, device=spec.device)
        for place, piece in spec.first_rows(table):
            rows[place] = piece.to(spec.device)
        return rows.requires_grad_()

    def _shard(self, spec: StoreSpec) -> Any:
        """Plan on every rank, and allocate the shards of this one."""
        assert spec.optimizer is not None
        collections = Collections(self.places, spec.reads, torch.device("meta"))
        topology = sharding.this_topology(spec.device, dist.get_world_size())
        whole = sum(rows.nbytes for rows in self._whole.values())
        self.plan, _ = sharding.plan(collections, spec.optimizer, topology, BATCH, whole=whole)
        apply_optimizer_in_backward(
            fused_optimizers(spec.device)[spec.optimizer.kind],
            collections.parameters(),
            fused_options(spec.optimizer),
        )
        return DistributedModelParallel(
            collections,
            env=ShardingEnv.from_process_group(cast(dist.ProcessGroup, dist.group.WORLD)),
            device=spec.device,
            plan=self.plan,
            sharders=sharding.sharders(),
        )

    # -- reading -----------------------------------------------------------------------------------

    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Read every look-up of every group in one call of the collections."""
        keys = {
            key_of(group, probe, segment): key
            for group, (row, cut, bag, read) in enumerate(
                zip(rows, segments, bags, self.reads, strict=True)
            )
            for segment, counts in enumerate(_counts(read, cut, bag))
            for probe, key in enumerate(_cut(row, cut, segment, counts, read.skips))
        }
        found = self._read_shared(keys) | self._read_whole(keys)
        return [
            self._combine(group, read, keys, found, cut, bag)
            for group, (read, cut, bag) in enumerate(zip(self.reads, segments, bags, strict=True))
        ]

    def _read_shared(self, keys: dict[str, Key]) -> dict[str, Tensor]:
        """Return the vectors of keys whose tables are in collections."""
        if self._module is None:
            return {}
        if torch.is_grad_enabled():
            self._hand_over_lr()
        names, collections = self._module.module.keys, self.places
        bags = None
        if collections.bags:
            mine = {k: keys[k] for name in collections.bags for k in names[name]}
            bags = _jagged(mine, self._as_many([key.lengths for key in mine.values()]))
        sequences = {}
        for dim, tables in collections.sequences.items():
            mine = {k: keys[k] for name in tables for k in names[name]}
            counts = torch.tensor([len(key.rows) for key in mine.values()], device=self.device)
            sequences[str(dim)] = _jagged(mine, [counts])
        found = self._module(bags, sequences)
        by_id = {k for one in sequences.values() for k in one.keys()}  # noqa: SIM118
        return {
            k: keys[k].pool(found[k]) if k in by_id else found[k][: keys[k].bags] for k in found
        }

    def _as_many(self, lengths: list[Tensor | None]) -> list[Tensor]:
        """Return bag lengths [B] of all keys with empty bags behind, as many as on the fullest rank.

        Gloo's collectives take ranks with batches of one size.
        """
        batch = max(len(cast(Tensor, one)) for one in lengths)
        most = torch.tensor(batch, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        behind = max(1, int(most)) - batch
        return [functional.pad(cast(Tensor, one), (0, behind)) for one in lengths]

    def _read_whole(self, keys: dict[str, Key]) -> dict[str, Tensor]:
        """Return the vectors of keys whose tables are on every rank."""
        found = {}
        for group, read in enumerate(self.reads):
            for probe, names in enumerate(read.tables):
                for segment, name in enumerate(names):
                    if name in self._whole:
                        key = key_of(group, probe, segment)
                        found[key] = _embed(self._whole[name], keys[key])
        return found

    def _combine(
        self,
        group: int,
        read: Read,
        keys: dict[str, Key],
        found: dict[str, Tensor],
        cut: Segments,
        bag: Bags | None,
    ) -> Tensor:
        """Return the combined vectors of a group as `lookup` does."""
        dim = self.tables[read.tables[0][0]].dim
        vectors = torch.stack(
            [
                torch.cat(
                    [
                        keys[key].restore(found[key][:, :dim])
                        for key in (key_of(group, probe, s) for s in range(len(names)))
                    ]
                )
                for probe, names in enumerate(read.tables)
            ]
        )
        if not read.pooled:
            return combined(vectors, read.combine, cut, bag)
        sums = bag.segments if bag else cut
        return _divided(_merge(vectors, read.combine), bag, sums)

    # -- training ----------------------------------------------------------------------------------

    def _hand_over_lr(self) -> None:
        """Give the next backward, which updates the rows, the learning rate of now."""
        fused = self._module.fused_optimizer
        for group in fused.param_groups:
            group["lr"] = self.lr
        fused.step()

    @torch.no_grad()
    def step(self) -> None:
        """Update data-parallel tables; the others were updated inside backward."""
        self.steps += 1
        if not self._whole:
            return
        optimizer = self.optimizer
        assert optimizer is not None
        grads = [
            torch.zeros_like(rows) if rows.grad is None else rows.grad
            for rows in self._whole.values()
        ]
        for (name, rows), grad in zip(self._whole.items(), averaged(grads), strict=True):
            rows.copy_(optimizer.apply(rows, grad, self._state[name], self.steps, self.lr))
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of data-parallel tables."""
        for rows in self._whole.values():
            rows.grad = None

    # -- state -------------------------------------------------------------------------------------

    def export(self, name: str) -> Parts:
        """Return the float rows of a table, gathered on every rank: all ranks call this together."""
        if name in self._whole:
            return {"values": self._whole[name].detach()}
        whole = _gathered(_unpadded(self._rows()[name], self.tables[name].dim), self.device)
        return {"values": whole}

    @torch.no_grad()
    def load(self, name: str, rows: Tensor) -> None:
        """Set a table from whole rows, which every rank has."""
        if name in self._whole:
            self._whole[name].copy_(rows)
        else:
            self._fill(self._rows()[name], [(slice(0, len(rows)), rows)])

    def training_state(self) -> dict[str, Any]:
        """Return rows and optimizer state: whole tensors, and ShardedTensors.

        Those of tables whose rows are padded are copies without the padding.
        """
        flat: dict[str, Any] = {
            key: _unpadded(tensor, self.tables[name].dim)
            if isinstance(tensor, ShardedTensor)
            else tensor
            for key, (name, tensor) in self._held().items()
        }
        flat["step"] = torch.tensor(self.steps)
        return flat

    @torch.no_grad()
    def load_training_state(self, state: dict[str, Any]) -> None:
        """Copy a saved state in place, from whole tensors or from shards placed as these are."""
        for key, (_, tensor) in self._held().items():
            new = state[key]
            if not isinstance(tensor, ShardedTensor):
                put(tensor, new)
            elif isinstance(new, ShardedTensor):
                own = {
                    tuple(one.metadata.shard_offsets): one.tensor for one in tensor.local_shards()
                }
                for shard in new.local_shards():
                    held = own[tuple(shard.metadata.shard_offsets)]
                    put(held[..., : shard.tensor.shape[-1]], shard.tensor)
            else:
                self._fill(tensor, [(slice(0, len(new)), new)])
        self._set_steps(int(state["step"]))

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the optimizer's state of all rows."""
        for key, (_, tensor) in self._held().items():
            if key.startswith("optimizer."):
                for part in _local(tensor):
                    part.zero_()
        self._set_steps(0)

    def _set_steps(self, steps: int) -> None:
        """Go on from a step: Adam corrects its moments by their number."""
        self.steps = steps
        if self._module is not None:
            self._module.fused_optimizer.set_optimizer_step(steps)

    def training_bytes(self) -> int:
        """Return the bytes of rows and optimizer state on this rank."""
        return sum(part.nbytes for _, t in self._held().values() for part in _local(t))

    def _held(self) -> dict[str, tuple[str, Tensor | ShardedTensor]]:
        """Return all rows and optimizer state as they lie in memory, each with its table."""
        found: dict[str, tuple[str, Tensor | ShardedTensor]] = {
            f"rows.{name}.values": (name, rows.detach()) for name, rows in self._whole.items()
        }
        for name, state in self._state.items():
            found |= {f"optimizer.{name}.{slot}": (name, t) for slot, t in state.items()}
        found.update((f"rows.{name}.values", (name, t)) for name, t in self._rows().items())
        found.update(self._slots())
        return found

    def _rows(self) -> dict[str, ShardedTensor]:
        """Return the shared tables by name."""
        if self._module is None:
            return {}
        return {key.split(".")[-2]: t for key, t in self._module.state_dict().items()}

    def _slots(self) -> dict[str, tuple[str, ShardedTensor]]:
        """Return the optimizer state of the shared tables."""
        if self._module is None:
            return {}
        assert self.optimizer is not None
        found = {}
        for key, state in self._module.fused_optimizer.state_dict()["state"].items():
            name = key.split(".")[-2]
            for slot, tensor in state.items():
                own = slot_of(self.optimizer.kind, slot)
                # Row-wise Adagrad has one number for each part of a row that is cut.
                whole = tensor.size()[0] == self.tables[name].rows
                found[f"optimizer.{name}.{own if whole else own + '_by_part'}"] = (name, tensor)
        return found

    @torch.no_grad()
    def _fill(self, tensor: ShardedTensor, pieces: Iterable[tuple[slice, Tensor]]) -> None:
        """Set the shards of this rank from whole rows, piece by piece."""
        for place, rows in pieces:
            for shard in tensor.local_shards():
                first, *column = shard.metadata.shard_offsets
                start, stop = max(place.start, first), min(place.stop, first + len(shard.tensor))
                if start < stop:
                    mine, held = rows[start - place.start : stop - place.start], shard.tensor
                    if column:
                        mine = mine[:, column[0] : column[0] + held.shape[1]]
                        held = held[:, : mine.shape[1]]
                    held[start - first : stop - first] = mine.to(self.device)


def _counts(read: Read, cut: Segments, bag: Bags | None) -> Iterator[Tensor | None]:
    """Yield for each segment how many ids its bags hold, [B]; None where they are not added up."""
    lengths = None
    if bag is not None and read.pooled:
        batch = bag.segments.lengths[0]
        lengths = bag.offsets.diff()[: read.pooled * batch].view(read.pooled, batch)
    for segment, count in enumerate(cut.lengths):
        if segment >= read.pooled:
            yield None
        elif lengths is None:
            yield torch.ones(count, dtype=torch.int64)
        else:
            yield lengths[segment]


def _cut(
    rows: Tensor, cut: Segments, segment: int, counts: Tensor | None, skips: bool
) -> list[Key]:
    """Return the K keys of a segment."""
    start, stop = cut.bounds[segment : segment + 2]
    counts = None if counts is None else counts.to(rows.device)
    return [Key.of(row[start:stop], counts, skips) for row in rows]


def _jagged(keys: dict[str, Key], lengths: Sequence[Tensor]) -> KeyedJaggedTensor:
    """Return keys with bags of so many rows."""
    values = torch.cat([key.rows for key in keys.values()]).long()
    return KeyedJaggedTensor(list(keys), values, lengths=torch.cat(list(lengths)))


def _embed(rows: Tensor, key: Key) -> Tensor:
    """Read a whole table."""
    return key.pool(functional.embedding(key.rows, rows))


def _merge(vectors: Tensor, combine: Combine) -> Tensor:
    """Combine sums [K, O, d] of look-ups to [O, C]."""
    assert combine != "mult"
    return vectors.sum(0) if combine == "sum" else vectors.transpose(0, 1).flatten(1)


def _divided(sums: Tensor, bag: Bags | None, cut: Segments) -> Tensor:
    """Divide sums [O, C] as the bags ask, and shape them as a store's look-up returns them."""
    if bag is not None and bag.divisors is not None:
        sums = sums / bag.divisors.unsqueeze(-1)
    return sums.view(len(cut.lengths), -1, sums.shape[1]) if cut.single else sums


def _local(tensor: Tensor | ShardedTensor) -> list[Tensor]:
    if isinstance(tensor, ShardedTensor):
        return [shard.tensor for shard in tensor.local_shards()]
    return [tensor]


def _unpadded(tensor: ShardedTensor, dim: int) -> ShardedTensor:
    """Return a ShardedTensor without the columns that pad rows, copied where there are any."""
    about = tensor.metadata()
    if len(about.size) == 1 or about.size[1] == dim:
        return tensor

    def cut(shard: ShardMetadata) -> ShardMetadata | None:
        (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
        columns = min(columns, dim - column)
        if columns <= 0:
            return None
        return ShardMetadata([row, column], [rows, columns], shard.placement)

    local = [
        Shard(shard.tensor[:, : size.shard_sizes[1]].contiguous(), size)
        for shard in tensor.local_shards()
        if (size := cut(shard.metadata)) is not None
    ]
    every = [size for shard in about.shards_metadata if (size := cut(shard)) is not None]
    whole = ShardedTensorMetadata(every, torch.Size([about.size[0], dim]), about.tensor_properties)
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        local, whole, process_group=dist.group.WORLD
    )


def _gathered(tensor: ShardedTensor, device: torch.device) -> Tensor:
    """Return a ShardedTensor whole, on every rank."""
    whole = torch.zeros(tensor.size(), device=device)
    for shard in tensor.local_shards():
        (row, *column), part = shard.metadata.shard_offsets, shard.tensor
        here = whole[row : row + len(part)]
        (here[:, column[0] : column[0] + part.shape[1]] if column else here).copy_(part)
    dist.all_reduce(whole)
    return whole
