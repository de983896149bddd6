"""EmbeddingTables: the layer that stands where an EmbeddingBagCollection stood.

    KeyedJaggedTensor -> encode -> row store -> decode -> pool -> KeyedTensor, JaggedTensors

Shape letters: B rows of a batch, F features, n ids of a group, D width granted to the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from embtables.budget import (
    Plan,
    byte_budget,
    parse_bytes,
    plan,
    uncompressed_bytes,
    with_widths,
)
from embtables.compressor import Interactions, Pairs, Table, TableConfig, parse_table, widths
from embtables.features import Feature, Vocabulary, by_name
from embtables.groups import Group, Ids, Keys, as_packed, build_groups
from embtables.ranks import gathered, ranks
from embtables.registry import nearest
from embtables.rows.arena import pooled
from embtables.rows.optimizers import RowOptimizer
from embtables.rows.pruned import pruned_bytes
from embtables.rows.sharding import Sharding, ShardingType
from embtables.rows.store import Init, RowStore, StoreSpec, backends, float_rows
from embtables.torchrec_types import JaggedTensor, KeyedJaggedTensor, KeyedTensor

Found = tuple[KeyedTensor, dict[str, JaggedTensor]]


@dataclass(frozen=True)
class Bytes:
    """Sizes in bytes.

    Attributes:
        inference: of the packed tables: rows, scales, maps, projections.
        training: of rows and optimizer state while training.
        uncompressed: of one float32 row for every id.
    """

    inference: int
    training: int
    uncompressed: int


class Lookup(nn.Module):
    """From ids to vectors, over any row store; what trained and packed tables have in common.

    Args:
        features: what the model reads.
        vocabularies: by table name.
        decided: the plan of every table.
        by_id: bags are added up after decoding (`Group.by_id`).
    """

    store: RowStore
    _columns: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        vocabularies: Mapping[str, Vocabulary],
        decided: Plan,
        by_id: bool = False,
    ) -> None:
        super().__init__()
        self.features = tuple(by_name(features).values())
        self.vocabularies = dict(vocabularies)
        self.plan = decided
        self.dims = {feature.name: decided[feature.table].granted for feature in self.features}
        self.groups = nn.ModuleList(build_groups(self.features, decided, vocabularies, by_id))
        self._pooled = [f for f in self.features if f.pooling != "none"]
        self._sequences = [f for f in self.features if f.pooling == "none"]
        self.register_buffer("_columns", self._column_order(), persistent=False)
        self._found_keys: dict[tuple[str, ...], list[Keys]] = {}

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor] | Found:
        """Return what the TorchRec collection in its place would.

        A KeyedTensor where all features are pooled (EmbeddingBagCollection), a dict of JaggedTensors
        where none is (EmbeddingCollection), and both as a pair otherwise.
        """
        pooled, sequences = self.lookup(kjt)
        if not self._sequences:
            return pooled
        return (pooled, sequences) if self._pooled else sequences

    def lookup(self, kjt: KeyedJaggedTensor) -> Found:
        """Return pooled features [B, sum of D] and sequences, vectors [ids of the feature, D].

        Raises:
            ValueError: a key is missing from the batch, or an id is outside its vocabulary.
        """
        groups = [cast(Group, group) for group in self.groups]
        if not self.store.weighs and self._pooled and kjt.weights_or_none() is not None:
            raise ValueError(
                "bags with weights are added up in one process only: TorchRec's collections are made "
                "with or without weights; leave them out, or train without torchrun"
            )
        single = _single(kjt)
        picked = [
            group.check(group.select(kjt, keys, single))
            for group, keys in zip(groups, self._keys(tuple(kjt.keys())), strict=True)
        ]
        cuts = [ids.segments for ids in picked]
        rows = [
            g.sharing.encode(ids.values, ids.segments)
            for g, ids in zip(groups, picked, strict=True)
        ]
        bags = [group.bags_of_store(ids) for group, ids in zip(groups, picked, strict=True)]
        read = self.store.lookup(rows, cuts, bags)
        picked = [ids.pooled() if bag else ids for ids, bag in zip(picked, bags, strict=True)]
        vectors = [
            group.width.decode(group.sharing.cut(found), row, ids.segments)
            for group, found, row, ids in zip(groups, read, rows, picked, strict=True)
        ]
        self._observe(groups, picked, vectors)
        return self._gather(groups, picked, vectors, kjt.stride())

    def _observe(self, groups: list[Group], picked: list[Ids], vectors: list[Tensor]) -> None:
        """Look at what a batch has read; trained tables do."""

    def _gather(
        self, groups: list[Group], picked: list[Ids], vectors: list[Tensor], batch: int
    ) -> Found:
        sequences, pieces = {}, []
        for group, ids, found in zip(groups, picked, vectors, strict=True):
            if ids.bags is not None:
                found, ids = pooled(found, ids.bags), ids.pooled()
            sequences |= group.sequences(found, ids)
            if group.pooled:
                pieces.append(group.pool(found, ids))
        if not pieces:
            values = vectors[0].new_zeros(batch, 0)
        else:
            values = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        if len(self._columns):
            values = values.index_select(1, self._columns)
        names = [feature.name for feature in self._pooled]
        return KeyedTensor(names, [self.dims[name] for name in names], values), sequences

    def _column_order(self) -> Tensor:
        """Return the column order that brings grouped features into feature order; empty if it does."""
        start, columns = 0, {}
        groups = [cast(Group, group) for group in self.groups]
        for feature in (feature for group in groups for feature in group.pooled):
            columns[feature.name] = range(start, start := start + self.dims[feature.name])
        order = [column for feature in self._pooled for column in columns[feature.name]]
        return torch.tensor([] if order == sorted(order) else order, dtype=torch.long)

    def _keys(self, keys: tuple[str, ...]) -> list[Keys]:
        """Return where each group finds its features in a batch with these keys."""
        if keys not in self._found_keys:
            place = {key: position for position, key in enumerate(keys)}
            missing = sorted({f.key for f in self.features} - place.keys())
            if missing:
                raise ValueError(
                    f"the batch has no key {', '.join(map(repr, missing))}; it has {', '.join(keys)}"
                )
            self._found_keys[keys] = [
                Keys.of([place[feature.key] for feature in cast(Group, group).features])
                for group in self.groups
            ]
        return self._found_keys[keys]


class EmbeddingTables(Lookup):
    """Trainable embedding tables of any compressor, under a byte budget.

    Args:
        features: what the model reads; features of one table share it and ask for one width.
        vocabularies: table name -> its ids.
        table: what tables are made of: ``"hash+int8"``, a mapping, or a TableConfig.
        fields: table name -> what that one is made of instead.
        budget: bytes of all tables when packed: a number or ``"10MB"``.
        ratio: the same as a share of the uncompressed float32 bytes.
        optimizer: row optimizer, applied by `step`; None leaves rows to any torch optimizer.
        backend: row store: native, reference, torchrec, or auto (native on CPU and torchrec on CUDA
            where they can, else reference). Among several ranks it is torchrec, sharded.
        init: initial values of rows.
        seed: seed of initial values and stochastic rounding; hashes do not depend on it.
        mini_batch_l2: lambda of the mini-batch-aware L2 of DIN (`penalty`).
        interactions: which ids occur together in training rows, for methods that learn from it.
        found: table name -> stored width that a search has found (`embtables.search.Rebuild`).
        sharding: how tables are shared out, where torch.distributed has several ranks.
        dtype: float type of the computation.
        device: where rows live.

    Raises:
        ValueError: an unknown method, a vocabulary that is missing, widths that differ within a
            table, a budget that cannot be met, or what the backend refuses.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        vocabularies: Mapping[str, Vocabulary],
        *,
        table: str | dict[str, Any] | TableConfig = "full",
        fields: Mapping[str, str | dict[str, Any] | TableConfig] | None = None,
        budget: int | str | None = None,
        ratio: float | None = None,
        optimizer: RowOptimizer | None = None,
        backend: str = "auto",
        init: Init | None = None,
        seed: int = 0,
        mini_batch_l2: float = 0.0,
        interactions: Interactions | None = None,
        found: Mapping[str, int] | None = None,
        sharding: Sharding | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        logical = logical_tables(features, vocabularies)
        size = byte_budget(logical, None if budget is None else parse_bytes(budget), ratio)
        decided = plan(
            logical,
            parse_table(table),
            {name: parse_table(value) for name, value in (fields or {}).items()},
            size,
        )
        decided = with_widths(decided, found or {})
        super().__init__(features, vocabularies, decided, by_id=mini_batch_l2 > 0)
        self.budget = size
        physical = {row.name: row for one in decided.values() for row in one.places}
        precisions = {row.name: one.precision for one in decided.values() for row in one.places}
        spec = StoreSpec(
            tables=tuple(physical.values()),
            precisions=precisions,
            reads=tuple(cast(Group, group).read for group in self.groups),
            optimizer=optimizer,
            init=init or Init(),
            seed=seed,
            dtype=dtype,
            device=device,
            sharding=types_of(decided, sharding or Sharding()),
            strict=sharding is not None and sharding.strict,
        )
        self._spec, self.device = spec, device
        self.store = backends.get(pick_backend(spec, backend))(spec)
        generator = torch.Generator().manual_seed(seed)
        for group in self.groups:
            cast(Group, group).sharing.fit(interactions)
            cast(Group, group).width.reset(generator)
        for group in self.groups:
            group.to(device=device, dtype=dtype)
        self._columns = self._columns.to(device)
        self._mini_batch_l2 = _MiniBatchL2(self, mini_batch_l2) if mini_batch_l2 else None
        self._penalty = torch.zeros((), dtype=dtype, device=device)

    @property
    def lr(self) -> float:
        """Learning rate of the row optimizer."""
        return self.store.lr

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the row optimizer."""
        self.store.lr = lr

    def step(self) -> None:
        """Apply the row optimizer to the rows read since the last step."""
        self.store.step()

    def assign(self, table: str, known: Pairs, new: Pairs) -> int:
        """Give ids of a table that had no training pairs the row of ids that share their neighbours.

        For ids of the vocabulary that occur for the first time after the clustering of `graphhash` and
        `double_graphhash`, whose rows are hashed until then. No row changes; of each rank the map does.

        Args:
            table: name; its ids are the left ones of the pairs.
            known: the training pairs that its ids were clustered by.
            new: further pairs with ids of the same other table.

        Returns:
            How many ids have a cluster's row now.

        Raises:
            ValueError: there is no such table, or its ids are not clustered.
        """
        groups = [cast(Group, group) for group in self.groups]
        of_table = [g.sharing for g in groups if any(one.name == table for one in g.tables)]
        if not of_table:
            raise ValueError(
                f"there is no table {table!r}.{nearest(table, self.plan)} "
                f"Tables: {', '.join(self.plan)}"
            )
        return max(sharing.assign(table, known, new) for sharing in of_table)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those of rows included."""
        super().zero_grad(set_to_none)
        self.store.zero_grad(set_to_none)

    def require(self, ability: str) -> None:
        """Raise ValueError unless the backend has an ability; the only one to ask for is "clip"."""
        assert ability == "clip"
        if not self.store.clips:
            raise ValueError(
                "gradients of fused tables cannot be clipped: they are applied inside backward; "
                "set train.clip_norm=null or backend=reference"
            )

    def grad_square_sum(self) -> Tensor:
        """Return the sum of squares of the row gradients, a scalar."""
        return self.store.grad_square_sum()

    def scale_grads(self, factor: Tensor) -> None:
        """Multiply the row gradients by a scalar."""
        self.store.scale_grads(factor)

    def penalty(self) -> Tensor:
        """Return the mini-batch-aware L2 of the last look-up, a scalar; zero if it is off.

        Sum over the distinct ids j of the batch of lambda / (2 n_j) * |e_j|^2, with e_j the vector the
        model reads and n_j the training count of j (Zhou et al., KDD 2018, section 5.1). It
        penalises produced vectors, so it means the same for every compressor.
        """
        return self._penalty

    def bytes(self) -> Bytes:
        """Return sizes at inference, in training, and uncompressed.

        That at inference is of the tables as they now are: before a search has pruned them, all rows.
        """
        tables = [one.table for one in self.plan.values()]
        inference = sum(self._row_bytes().values()) + _bytes_of(self.groups)
        return Bytes(inference, self.training_bytes(), uncompressed_bytes(tables))

    def training_bytes(self) -> int:
        """Return the bytes of rows and optimizer state, and of what methods keep beside them."""
        return self.store.training_bytes() + _bytes_of(self.groups)

    def bytes_beside(self, searched: Collection[Group]) -> int:
        """Return the packed bytes of all but the rows and widths of some groups."""
        names = {name for group in searched for column in group.read.tables for name in column}
        beside = sum(
            _bytes_of(group.sharing if group in searched else group)
            for group in cast("list[Group]", list(self.groups))
        )
        return sum(self._row_bytes(leave=names).values()) + beside

    def first_rows(self, name: str) -> Tensor:
        """Return the rows [R, d] that a physical table had before training."""
        pieces = self._spec.first_rows(self.store.tables[name])
        return torch.cat([rows for _, rows in pieces]).to(self.device)

    def restart(self) -> None:
        """Forget the optimizer's state of all rows, which stay as they are."""
        self.store.restart()

    def _row_bytes(self, leave: Collection[str] = ()) -> dict[str, int]:
        """Return the packed bytes of the rows of each physical table."""
        placed = {row.name: (row, one) for one in self.plan.values() for row in one.places}
        found: dict[str, int] = {}
        arenas: dict[tuple[str, int], dict[str, int]] = {}
        for name, (row, one) in placed.items():
            if name not in leave:
                found[name] = row.rows * one.precision.row_bytes(row.dim)
                if widths.get(one.config.width.kind).prunes:
                    rows = as_packed(float_rows(self.store, name, one.precision))
                    arena = arenas.setdefault((one.precision.config.kind, row.dim), {})
                    arena[name] = pruned_bytes(rows, one.precision)
        for arena in arenas.values():
            if sum(arena.values()) < sum(found[name] for name in arena):
                found |= arena
        return found

    def report(self) -> list[dict[str, Any]]:
        """Return one line a logical table: ids, physical rows, width, method, bytes of its rows."""
        rows = self._row_bytes()
        return [
            {
                "table": name,
                "method": str(one.config),
                "ids": one.table.rows,
                "rows": sum({row.name: row.rows for row in one.places}.values()),
                "width": one.table.width,
                "bytes": sum(rows[name] for name in {row.name for row in one.places})
                + one.extra_bytes,
            }
            for name, one in self.plan.items()
        ]

    def training_state(self) -> dict[str, Tensor]:
        """Return rows, optimizer state, generator state and projections as flat tensors."""
        store = {f"store.{key}": value for key, value in self.store.training_state().items()}
        return store | {f"groups.{key}": value for key, value in self.groups.state_dict().items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` returned."""
        self.store.load_training_state(_below("store.", state))
        self.groups.load_state_dict(_below("groups.", state))

    def pack_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the packed form: tensors, and what is needed to read them (JSON)."""
        from embtables.packed import pack_tensors

        return pack_tensors(self)

    def pack(self, path: Path | str) -> int:
        """Write the packed tables to one safetensors file; return the bytes of its tensors."""
        from embtables.packed import save

        return save(self, Path(path))

    def _observe(self, groups: list[Group], picked: list[Ids], vectors: list[Tensor]) -> None:
        if self._mini_batch_l2 and self.training:
            self._penalty = self._mini_batch_l2(groups, picked, vectors)


class _MiniBatchL2:
    """The penalty of `EmbeddingTables.penalty`."""

    def __init__(self, tables: Lookup, strength: float) -> None:
        self.strength = strength
        self.offset, counts, start = {}, [], 0
        for name in dict.fromkeys(feature.table for feature in tables.features):
            vocabulary = tables.vocabularies[name]
            if vocabulary.open or vocabulary.counts is None:
                raise ValueError(
                    f"mini_batch_l2: table {name!r} has no training counts (an open vocabulary has "
                    "none); set mini_batch_l2=0 or use a closed vocabulary"
                )
            self.offset[name] = start
            counts.append(torch.from_numpy(vocabulary.counts.copy()).clamp(min=1))
            start += vocabulary.rows
        self.counts = torch.cat(counts)

    def __call__(self, groups: list[Group], picked: list[Ids], vectors: list[Tensor]) -> Tensor:
        total = vectors[0].new_zeros(())
        for group, ids, found in zip(groups, picked, vectors, strict=True):
            device = found.device
            offsets = torch.tensor([self.offset[f.table] for f in group.features], device=device)
            keys = (ids.segments.shape(ids.values) + ids.segments.spread(offsets)).flatten()
            weight = 1 / (self.counts.to(device)[keys] * self._times(keys))
            total = total + (weight * found.square().sum(dim=-1).flatten()).sum()
        # Gradients are averaged over ranks, and this is a sum over all of them.
        return ranks() * self.strength / 2 * total

    def _times(self, keys: Tensor) -> Tensor:
        """Return [n], how often each key occurs in the batch: its ids share one penalty."""
        if ranks() > 1:
            every, start = gathered(keys)
            return self._times_in(every)[start : start + len(keys)]
        return self._times_in(keys)

    def _times_in(self, keys: Tensor) -> Tensor:
        if keys.device.type == "cpu":
            from embtables.rows.gather import occurrences

            return occurrences(keys, len(self.counts))
        _, inverse, times = torch.unique(keys, return_inverse=True, return_counts=True)
        return times[inverse]


def pick_backend(spec: StoreSpec, asked: str) -> str:
    """Return the name of the row store that a backend stands for.

    Args:
        spec: what it is to hold.
        asked: auto is native on CPU and torchrec on CUDA, unless that refuses: then reference. Among
            several ranks auto and torchrec are sharded.

    Raises:
        ValueError: a backend of one process among several ranks.
    """
    if ranks() > 1:
        if asked not in ("auto", "torchrec", "sharded"):
            raise ValueError(
                f"backend {asked} is of one process, and there are {ranks()} ranks; use backend=torchrec"
            )
        return "sharded"
    if asked == "sharded":
        raise ValueError("backend sharded is of several ranks: use torchrun, or backend=torchrec")
    if asked != "auto":
        return asked
    name = "torchrec" if spec.device.type == "cuda" else "native"
    return "reference" if backends.get(name).refusals(spec) else name


def types_of(decided: Plan, sharding: Sharding) -> dict[str, ShardingType]:
    """Return how each physical table is to be sharded.

    Raises:
        ValueError: a table that does not exist, or two types for one physical table.
    """
    for name in sharding.tables.keys() - decided.keys():
        raise ValueError(
            f"sharding.tables: there is no table {name!r}.{nearest(name, decided)} "
            f"Tables: {', '.join(decided)}"
        )
    types: dict[str, ShardingType] = {}
    for name, one in decided.items():
        kind = sharding.tables.get(name, sharding.type)
        for row in one.places:
            if types.setdefault(row.name, kind) != kind:
                raise ValueError(
                    f"sharding.tables: {name!r} shares its rows with a table that is to be "
                    f"{types[row.name]}, not {kind}; name one type for both"
                )
    return types


def logical_tables(
    features: Sequence[Feature], vocabularies: Mapping[str, Vocabulary]
) -> list[Table]:
    """Return the tables that features name, in order.

    Raises:
        ValueError: a table without vocabulary, or features of one table that ask for two widths.
    """
    found: dict[str, Table] = {}
    for feature in features:
        if feature.table not in vocabularies:
            raise ValueError(
                f"feature {feature.name!r} reads table {feature.table!r}, which has no vocabulary; "
                f"there are {', '.join(vocabularies)}"
            )
        vocabulary = vocabularies[feature.table]
        table = Table(
            feature.table,
            vocabulary.rows,
            feature.dim,
            vocabulary.open,
            ordered=_falls(vocabulary.counts),
            counts=vocabulary.counts,
        )
        other = found.setdefault(feature.table, table)
        if other.dim != feature.dim:
            raise ValueError(
                f"feature {feature.name!r} asks for width {feature.dim} of table {feature.table!r}, "
                f"another feature for {other.dim}; features of one table have one width"
            )
    return list(found.values())


def _single(kjt: KeyedJaggedTensor) -> list[bool]:
    """Return for each key whether every bag holds one id: none holds more, and there is one a bag."""
    bags, keys = kjt.stride(), kjt.keys()
    if not bags:
        return [True] * len(keys)
    most = kjt.lengths().view(len(keys), -1).amax(1).tolist()  # four times as fast as == 1
    return [one <= 1 and ids == bags for one, ids in zip(most, kjt.length_per_key(), strict=True)]


def _falls(counts: np.ndarray | None) -> bool:
    """Return whether ids behind the first come by falling training count."""
    return counts is not None and bool((counts[2:] <= counts[1:-1]).all())


def _bytes_of(module: nn.Module) -> int:
    """Return the packed bytes of maps and projections."""
    return sum(as_packed(tensor).nbytes for tensor in module.state_dict().values())


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
