"""DCN-V2: cross layers that multiply the input with itself, beside or below an MLP.

x_{l+1} = x_l + x_0 * (W_l x_l + b_l), x_0 = flatten(e)  (arXiv 2008.13535).

Shape letters: B rows of a batch, N numeric columns, D embedding width, W width of x_0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import (
    MLP,
    Activation,
    DropoutRate,
    Linear,
    Logit,
    NumericVectors,
    Width,
    Widths,
    field_names,
    flatten,
    main_features,
)

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class DCNv2Config(ModelConfig):
    """Options of DCN-V2."""

    kind: Literal["dcnv2"] = "dcnv2"
    structure: Literal["parallel", "stacked", "crossnet_only"] = Field(
        "parallel", description="MLP beside the cross layers, on top of them, or none"
    )
    cross_layers: int = Field(3, ge=1)
    rank: Width | None = Field(None, description="W = U V of this rank; default: full W")
    hidden: Widths = Field((400, 400, 400), description="hidden layers of the MLP")
    activation: Activation = "relu"
    batch_norm: bool = Field(False, description="BatchNorm in every hidden layer")
    dropout: DropoutRate = Field(0.0, description="after every hidden layer")
    numeric: Literal["vector", "value"] = Field(
        "vector", description="x_0 holds value x learned vector (BARS) or the value (paper)"
    )


class CrossNet(nn.Module):
    """Stack of cross layers x_{l+1} = x_l + x_0 * (W_l x_l + b_l), W_l full or of low rank.

    Args:
        width: W.
        layers: how many.
        rank: rank of W_l = U_l V_l, or None for a full matrix.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(width, width)
            if rank is None
            else nn.Sequential(Linear(width, rank, bias=False), Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        """Return [B, W] from [B, W]."""
        x = x0
        for layer in self.layers:
            x = x + x0 * layer(x)
        return x


@models.register("dcnv2")
class DCNv2(CTRModel):
    """Deep & Cross Network, version 2. Fields may have different widths."""

    Config = DCNv2Config

    @classmethod
    def embeddings(cls, config: DCNv2Config, inputs: Inputs) -> list[Feature]:
        """Return one vector a field."""
        return main_features(inputs, config.dim)

    def __init__(self, config: DCNv2Config, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.names = field_names(inputs)
        columns = len(inputs.numeric)
        vectors = config.numeric == "vector" and columns > 0
        self.numeric = NumericVectors(columns, config.dim) if vectors else None
        width = sum(dims[name] for name in self.names)
        width += columns * (config.dim if vectors else 1)

        self.cross = CrossNet(width, config.cross_layers, config.rank)
        parallel = config.structure == "parallel"
        hidden = () if config.structure == "crossnet_only" else config.hidden
        self.mlp = MLP(
            width,
            hidden,
            logit=not parallel,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.out = Logit(width + self.mlp.width) if parallel else None

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and pooled vectors."""
        values = dense if self.numeric is None else self.numeric(dense).flatten(1)
        x0 = torch.cat([flatten(pooled, self.names), values], 1)
        crossed = self.cross(x0)
        if self.out is None:
            return self.mlp(crossed)
        return self.out(torch.cat([crossed, self.mlp(x0)], 1))
