"""FM: factorization machine, first-order weights and the dot product of every pair of fields.

logit = LR(x) + sum_{i<j} <e_i, e_j>  (Rendle, "Factorization Machines", ICDM 2010).

Shape letters: B rows of a batch, F fields (numeric columns included), N numeric columns,
D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import FieldVectors, FirstOrder, linear_features, main_features

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


def pair_sum(vectors: Tensor) -> Tensor:
    """Return sum_{i<j} <e_i, e_j> [B] of [B, F, D], in O(F D) as ((sum e)^2 - sum e^2) / 2."""
    return _PairSum.apply(vectors)  # pyright: ignore[reportReturnType]


class _PairSum(torch.autograd.Function):
    """The gradient of e_i is the sum of the others; autograd would write every square and its own."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        total = vectors.sum(1)
        ctx.save_for_backward(vectors, total)
        of_all, of_each = (torch.linalg.vector_norm(e, dim=1) for e in (total, vectors.flatten(1)))
        return 0.5 * (of_all.square() - of_each.square())

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> Tensor:
        vectors, total = ctx.saved_tensors
        return (total.unsqueeze(1) - vectors).mul_(grads[0].view(-1, 1, 1))


class FMConfig(ModelConfig):
    """FM has no options but the width."""

    kind: Literal["fm"] = "fm"


@models.register("fm")
class FM(CTRModel):
    """Factorization machine of second order."""

    Config = FMConfig

    @classmethod
    def embeddings(cls, config: FMConfig, inputs: Inputs) -> list[Feature]:
        """Return a vector and a first-order weight a field."""
        return main_features(inputs, config.dim) + linear_features(inputs)

    def __init__(self, config: FMConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.fields = FieldVectors(inputs, dims)
        self.first_order = FirstOrder(inputs, bias=True)

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and pooled vectors."""
        return self.first_order(dense, pooled) + pair_sum(self.fields(dense, pooled))
