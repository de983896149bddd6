"""DLRM: bottom MLP for numeric columns, dot products of all pairs of vectors, top MLP.

z = bottom(x);  logit = top([z, <v_i, v_j> for i<j]) with v = (z, e_1, ..., e_F)
(arXiv 1906.00091).
Without numeric columns there is no z. interaction=cat: logit = top([z, e_1, ..., e_F]).

Shape letters: B rows of a batch, F categorical fields, N numeric columns, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import (
    ACTIVATIONS,
    MLP,
    Activation,
    DropoutRate,
    Linear,
    Widths,
    common_width,
    field_names,
    flatten,
    main_features,
)

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class DLRMConfig(ModelConfig):
    """Options of DLRM."""

    kind: Literal["dlrm"] = "dlrm"
    bottom: Widths = Field((512, 256), description="hidden layers below the width D of the tables")
    top: Widths = Field((512, 256), description="hidden layers above the interaction")
    interaction: Literal["dot", "cat"] = Field("dot", description="cat: concatenate, no products")
    activation: Activation = "relu"
    batch_norm: bool = Field(False, description="BatchNorm in every hidden layer, bottom and top")
    dropout: DropoutRate = Field(0.0, description="after every hidden layer of the top MLP")
    bottom_dropout: DropoutRate = Field(
        0.0, description="after every hidden layer of the bottom MLP"
    )


class PairDots(nn.Module):
    """Dot products of all distinct pairs of F vectors.

    Args:
        count: F.
    """

    pairs: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        first, second = torch.tril_indices(count, count, offset=-1)
        self.register_buffer("pairs", first * count + second, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return [B, F (F-1) / 2] from [B, F, D], pairs in the order (1,0) (2,0) (2,1) (3,0) ..."""
        return torch.bmm(vectors, vectors.mT).flatten(1).index_select(1, self.pairs)


@models.register("dlrm")
class DLRM(CTRModel):
    """Deep learning recommendation model of Facebook."""

    Config = DLRMConfig

    @classmethod
    def embeddings(cls, config: DLRMConfig, inputs: Inputs) -> list[Feature]:
        """Return one vector a field."""
        return main_features(inputs, config.dim)

    def __init__(self, config: DLRMConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.names = field_names(inputs)
        dot = config.interaction == "dot"
        self.dim = common_width(self.names, dims) if dot else config.dim
        self.bottom = _bottom(config, len(inputs.numeric), self.dim) if inputs.numeric else None
        vectors = len(self.names) + bool(inputs.numeric)
        self.dots = PairDots(vectors) if dot else None
        read = vectors * (vectors - 1) // 2 if dot else sum(dims[name] for name in self.names)
        self.top = MLP(
            read + (self.dim if inputs.numeric else 0),
            config.top,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and pooled vectors."""
        fields = flatten(pooled, self.names)
        below = [] if self.bottom is None else [self.bottom(dense)]
        parts = [*below, fields]
        if self.dots is not None:
            vectors = torch.cat(parts, 1).unflatten(1, (-1, self.dim))
            parts = [*below, self.dots(vectors)]
        return self.top(torch.cat(parts, 1))


def _bottom(config: DLRMConfig, columns: int, dim: int) -> nn.Sequential:
    """Return the MLP [B, N] -> [B, D], with an activation on its last layer too."""
    mlp = MLP(
        columns,
        config.bottom,
        logit=False,
        activation=config.activation,
        batch_norm=config.batch_norm,
        dropout=config.bottom_dropout,
    )
    return nn.Sequential(mlp, Linear(mlp.width, dim), ACTIVATIONS[config.activation](dim))
