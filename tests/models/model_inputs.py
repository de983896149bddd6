"""Inputs for model tests: fields, random vectors as tables would deliver them, built models.

Shape letters: B rows, D width, L behaviours of all histories together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from embtables.features import Feature
from models.base import CTRModel, InputField, Inputs, models

PLAIN = Inputs(
    (),
    (InputField("user", "user"), InputField("item", "item"), InputField("shop", "shop")),
)
NUMERIC = Inputs(("age", "price"), PLAIN.fields)
MULTI = Inputs(
    ("age",),
    (InputField("item", "item"), InputField("tags", "tags", "multi"), InputField("shop", "shop")),
)
HISTORY = Inputs(
    ("age",),
    (
        InputField("user", "user"),
        InputField("item", "item"),
        InputField("shop", "shop"),
        InputField("items_seen", "item", "sequence"),
        InputField("shops_seen", "shop", "sequence"),
    ),
)


@dataclass
class Read:
    """What the tables deliver for a batch, and the leaves whose gradient the tables would get."""

    dense: Tensor
    pooled: KeyedTensor
    sequences: dict[str, JaggedTensor]
    leaves: dict[str, Tensor]

    def __iter__(self):
        return iter((self.dense, self.pooled, self.sequences))

    def row(self, b: int) -> Read:
        """Return row b as a batch of one."""
        sequences = {}
        for name, jagged in self.sequences.items():
            start, end = jagged.offsets()[b : b + 2].tolist()
            sequences[name] = JaggedTensor(
                jagged.values()[start:end], lengths=jagged.lengths()[b : b + 1]
            )
        pooled = KeyedTensor(
            self.pooled.keys(), self.pooled.length_per_key(), self.pooled.values()[b : b + 1]
        )
        return Read(self.dense[b : b + 1], pooled, sequences, {})


def keyed(vectors: dict[str, Tensor]) -> KeyedTensor:
    """Return the KeyedTensor of name -> [B, D]."""
    widths = [vector.shape[1] for vector in vectors.values()]
    return KeyedTensor(list(vectors), widths, torch.cat(list(vectors.values()), 1))


def read(
    features: list[Feature],
    dims: dict[str, int],
    inputs: Inputs,
    lengths: list[int],
    dtype: torch.dtype = torch.float64,
) -> Read:
    """Return random vectors for a batch whose histories have these lengths."""
    rows, behaviours = len(lengths), sum(lengths)
    leaves, sequences = {}, {}
    for feature in features:
        jagged = feature.pooling == "none"
        shape = (behaviours if jagged else rows, dims[feature.name])
        leaves[feature.name] = torch.randn(shape, dtype=dtype).requires_grad_()
        if jagged:
            sequences[feature.name] = JaggedTensor(
                leaves[feature.name], lengths=torch.tensor(lengths)
            )
    pooled = {name: leaf for name, leaf in leaves.items() if name not in sequences}
    dense = torch.randn(rows, len(inputs.numeric), dtype=dtype)
    return Read(dense, keyed(pooled), sequences, leaves)


def build(
    kind: str, inputs: Inputs, dims: dict[str, int] | None = None, **options: Any
) -> tuple[CTRModel, list[Feature], dict[str, int]]:
    """Return a float64 model, its features and the widths granted to them."""
    cls = models.get(kind)
    config = cls.Config.model_validate({"kind": kind, "dim": 4, **options})
    features = cls.embeddings(config, inputs)
    granted = {feature.name: feature.dim for feature in features} | (dims or {})
    return cls(config, inputs, granted).double(), features, granted


def randomize(module: torch.nn.Module) -> None:
    """Give every parameter a value that matters; biases and numeric weights start at 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def size(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
