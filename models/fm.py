"""FM: factorization machine, first-order weights and the dot product of every pair of fields.

logit = LR(x) + sum_{i<j} <e_i, e_j>  (Rendle, "Factorization Machines", ICDM 2010).

Shape letters: B rows of a batch, F fields (numeric columns included), N numeric columns,
D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import FieldVectors, FirstOrder, linear_features, main_features

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


def pair_sum(vectors: Tensor) -> Tensor:
    """Return sum_{i<j} <e_i, e_j> [B] of [B, F, D], in O(F D) as ((sum e)^2 - sum e^2) / 2."""
    square_of_sum = vectors.sum(1).square()
    sum_of_squares = vectors.square().sum(1)
    return 0.5 * (square_of_sum - sum_of_squares).sum(1)


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
