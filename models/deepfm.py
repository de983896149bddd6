"""DeepFM: a factorization machine and an MLP over the same vectors.

logit = FM(x) + MLP(flatten(e))  (arXiv 1703.04247). The bias is the MLP's.

Shape letters: B rows of a batch, F fields (numeric columns included), N numeric columns,
D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.fm import pair_sum
from models.layers import (
    MLP,
    Activation,
    DropoutRate,
    FieldVectors,
    FirstOrder,
    Widths,
    linear_features,
    main_features,
)

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class DeepFMConfig(ModelConfig):
    """Options of DeepFM."""

    kind: Literal["deepfm"] = "deepfm"
    hidden: Widths = Field((400, 400, 400), description="hidden layers of the MLP")
    activation: Activation = "relu"
    batch_norm: bool = Field(False, description="BatchNorm in every hidden layer")
    dropout: DropoutRate = Field(0.0, description="after every hidden layer")


@models.register("deepfm")
class DeepFM(CTRModel):
    """FM and MLP side by side."""

    Config = DeepFMConfig

    @classmethod
    def embeddings(cls, config: DeepFMConfig, inputs: Inputs) -> list[Feature]:
        """Return a vector and a first-order weight a field."""
        return main_features(inputs, config.dim) + linear_features(inputs)

    def __init__(self, config: DeepFMConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.fields = FieldVectors(inputs, dims)
        self.first_order = FirstOrder(inputs, bias=False)
        self.mlp = MLP(
            self.fields.count * self.fields.dim,
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and pooled vectors."""
        vectors = self.fields(dense, pooled)
        deep = self.mlp(vectors.flatten(1))
        return self.first_order(dense, pooled) + pair_sum(vectors) + deep
