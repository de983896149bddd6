"""torchrec: TorchRec collections with FBGEMM's fused optimizers, one process.

Every physical table of every compressor is a TorchRec table; each look-up of each feature is one of
its keys, an id being a bag of one. The optimizer runs inside backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torchrec
import torchrec.optim
from torch import Tensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from embtables.compressor import Bags, Parts, Segments
from embtables.rows.arena import combined
from embtables.rows.sharding import MULTIPLE, padded
from embtables.rows.store import Read, RowStore, StoreSpec, backends
from embtables.torchrec_types import KeyedJaggedTensor

_CPU_FUSED = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
}
_CUDA_FUSED = {**_CPU_FUSED, "adam": torch.optim.Adam}


@backends.register("torchrec")
class TorchRecStore(RowStore):
    """Physical tables in one EmbeddingBagCollection, fused when there is an optimizer."""

    clips = False

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)
        self.reads = spec.reads
        self.device = spec.device
        self.steps = 0
        keys = _keys(spec.reads)
        configs = [
            torchrec.EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.rows,
                embedding_dim=padded(table.dim) if spec.optimizer else table.dim,
                feature_names=keys[table.name],
            )
            for table in spec.tables
        ]
        if spec.optimizer is None:
            self.collection: Any = torchrec.EmbeddingBagCollection(configs, device=spec.device)
        else:
            fused = FusedEmbeddingBagCollection(
                configs,
                fused_optimizers(spec.device)[spec.optimizer.kind],
                fused_options(spec.optimizer),
                device=spec.device,
            )
            # Behind a list: a fused table is trained by its own optimizer, so its weights must not
            # appear among the parameters that a dense optimizer is given.
            self._fused_collection = [fused]
        for table in spec.tables:
            weight = self._weight(table.name).zero_()  # padding columns stay zero
            for place, rows in spec.first_rows(table):
                weight[place, : table.dim] = rows.to(spec.device)

    @classmethod
    def refusals(cls, spec: StoreSpec) -> list[str]:
        """FBGEMM's limits, each with the way out."""
        return fused_refusals(spec, way_out="use backend=reference")

    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Read every look-up of every group in one call of the collection."""
        if self.optimizer and torch.is_grad_enabled():
            self._hand_over_lr()
        cuts = [cut.lengths * len(row) for row, cut in zip(rows, segments, strict=True)]
        lengths = [length for cut in cuts for length in cut]
        names = [name for name, _ in _numbered(self.reads)]
        values = torch.cat([row.flatten() for row in rows])
        bags_of = _bags_of_one(lengths, self.device)
        if any(read.skips for read in self.reads):  # an empty bag is a vector of zeros
            bags_of[bags_of == 1] = (values >= 0).long()
            values = values[values >= 0]
        ids = KeyedJaggedTensor(keys=names, values=values, lengths=bags_of)
        vectors_of = self._module()(ids).to_dict()
        found, start = [], 0
        for row, cut, segment, bag, read in zip(
            rows, cuts, segments, bags, self.reads, strict=True
        ):
            dim = self.tables[read.tables[0][0]].dim
            parts = [
                vectors_of[name][:length, :dim]
                for name, length in zip(names[start : start + len(cut)], cut, strict=True)
            ]
            vectors = torch.cat(parts).view(len(row), -1, dim)
            found.append(combined(vectors, read.combine, segment, bag))
            start += len(cut)
        return found

    def _hand_over_lr(self) -> None:
        """Give the next backward, which updates the rows, the learning rate of now."""
        fused = self._module().fused_optimizer()
        for group in fused.param_groups:
            group["lr"] = self.lr
        fused.step()

    def step(self) -> None:
        """Count the step; rows were updated inside backward."""
        self.steps += 1

    def export(self, name: str) -> Parts:
        """Return the float rows of a table."""
        return {"values": self._weight(name)[:, : self.tables[name].dim]}

    @torch.no_grad()
    def load(self, name: str, rows: Tensor) -> None:
        """Set a table; padding columns become zero and stay so."""
        weight = self._weight(name)
        weight.zero_()
        weight[:, : rows.shape[1]].copy_(rows)

    def training_state(self) -> dict[str, Tensor]:
        """Return rows and optimizer state by table, without the columns that pad them, and the step."""
        flat = {f"rows.{name}.values": self.export(name)["values"] for name in self.tables}
        flat["step"] = torch.tensor(self.steps)
        if self.optimizer is not None:
            states = self._module().fused_optimizer().state_dict()["state"]
            for key, state in states.items():
                name = key.split(".")[-2]
                for slot, tensor in state.items():
                    own = slot_of(self.optimizer.kind, slot)
                    unpadded = tensor if tensor.dim() == 1 else tensor[:, : self.tables[name].dim]
                    flat[f"optimizer.{name}.{own}"] = unpadded
        return flat

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in place."""
        super().load_training_state(state)
        self._set_steps(int(state["step"]))

    def restart(self) -> None:
        """Forget the optimizer's state, and count steps from one again."""
        super().restart()
        self._set_steps(0)

    def _set_steps(self, steps: int) -> None:
        """Go on from a step: Adam corrects its moments by their number."""
        self.steps = steps
        if self.optimizer is not None:
            self._module().fused_optimizer().set_optimizer_step(steps)

    def _module(self) -> Any:
        return self.collection if self.optimizer is None else self._fused_collection[0]

    def _weight(self, name: str) -> Tensor:
        return self._module().state_dict()[f"embedding_bags.{name}.weight"].detach()


def fused_refusals(spec: StoreSpec, way_out: str) -> list[str]:
    """Return what FBGEMM's fused tables cannot do, each reason with the way out."""
    reasons = []
    optimizer = spec.optimizer
    if spec.held:
        kinds = ", ".join(spec.held)
        reasons.append(
            f"backend torchrec trains float32 rows, not {kinds}(train=true); "
            f"pack after training ({kinds} without train) or {way_out}"
        )
    if spec.dtype != torch.float32:
        reasons.append(f"backend torchrec computes in float32, not {spec.dtype}; {way_out}")
    dotted = [table.name for table in spec.tables if "." in table.name]
    if dotted:
        reasons.append(
            f"backend torchrec takes no dot in a table's name, as {dotted[0]!r} has; rename the "
            f"column or {way_out}"
        )
    if optimizer is None:
        return reasons
    known = fused_optimizers(spec.device)
    if optimizer.kind not in known:
        reasons.append(
            f"backend torchrec has no fused {optimizer.kind} on {spec.device.type}; "
            f"choose rows.kind from {', '.join(known)}, or {way_out}"
        )
    if optimizer.weight_decay:
        reasons.append(
            f"backend torchrec has no decoupled weight decay for {optimizer.kind}; "
            f"set rows.weight_decay=0 or {way_out}"
        )
    odd = sorted({table.dim for table in spec.tables if table.dim % MULTIPLE})
    if odd and optimizer.kind == "rowwise_adagrad":
        reasons.append(
            f"backend torchrec pads widths {odd} to a multiple of {MULTIPLE}, which changes the "
            f"mean that rowwise_adagrad takes over a row; use rows.kind=adagrad or {way_out}"
        )
    return reasons


def fused_optimizers(device: torch.device) -> dict[str, Any]:
    """Return the fused optimizer of each kind of row optimizer that a device has."""
    return _CPU_FUSED if device.type == "cpu" else _CUDA_FUSED


def slot_of(kind: str, fused: str) -> str:
    """Return what `rows.optimizers` calls a state that TorchRec calls ``<table>.<name>``."""
    name = fused.rpartition(".")[2]
    if kind != "adam":
        return "sum"
    return "square" if name.endswith(("2", "sq")) else "mean"


def fused_options(optimizer: Any) -> dict[str, Any]:
    """Return the options of a fused optimizer."""
    options = {"lr": optimizer.lr}
    if optimizer.kind == "adam":
        options["betas"] = optimizer.betas
    if optimizer.kind != "sgd":
        options["eps"] = optimizer.eps
    return options


def _numbered(reads: Sequence[Read]) -> list[tuple[str, str]]:
    """Return (key, table) of every look-up, in the order of the flat rows."""
    return [
        (f"{group}.{probe}.{segment}", name)
        for group, read in enumerate(reads)
        for probe, names in enumerate(read.tables)
        for segment, name in enumerate(names)
    ]


def _keys(reads: Sequence[Read]) -> dict[str, list[str]]:
    keys = defaultdict(list)
    for key, name in _numbered(reads):
        keys[name].append(key)
    return keys


def _bags_of_one(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return bag lengths of a batch as long as the longest key, at least one: ones, then zeros."""
    longest = max(1, *lengths)
    counts = torch.tensor(lengths, device=device).unsqueeze(1)
    return (torch.arange(longest, device=device) < counts).long().flatten()
