"""AutoInt: multi-head self-attention over the fields.

logit = Linear(flatten(A_L(... A_1(e)))) [+ LR(x)]  (arXiv 1810.11921), A_l the interacting layer.

Shape letters: B rows of a batch, F fields (numeric columns included), N numeric columns,
D embedding width, H heads, A attention width of all heads together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from embtables.features import Feature
from models import products
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import (
    DropoutRate,
    FieldVectors,
    FirstOrder,
    Linear,
    Logit,
    Width,
    linear_features,
    main_features,
)

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class AttentionConfig(ModelConfig):
    """Options of AutoInt and AutoInt+."""

    layers: int = Field(3, ge=1, description="interacting layers")
    heads: int = Field(2, ge=1)
    attention_dim: Width = Field(64, description="attention width of all heads together")
    residual: bool = Field(True, description="add the layer's input to its output")
    scale: bool = Field(True, description="divide scores by the square root of the head width")
    layer_norm: bool = Field(False, description="LayerNorm before the final ReLU of each layer")
    head_split: Literal["width", "flat"] = Field(
        "width",
        description="width: a head has its part of every vector; flat: its part of the fields, as in "
        "published runs",
    )
    wide: bool = Field(False, description="add first-order weights")
    dropout: DropoutRate = Field(0.0, description="on the attention weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> AttentionConfig:
        if self.attention_dim % self.heads:
            raise ValueError(
                f"attention_dim={self.attention_dim} is the width of all heads together and must "
                f"be a multiple of heads={self.heads}"
            )
        return self


class AutoIntConfig(AttentionConfig):
    """Options of AutoInt."""

    kind: Literal["autoint"] = "autoint"


class InteractingLayer(nn.Module):
    """relu([LayerNorm](softmax(Q K^T [/ sqrt(A/H)]) V [+ residual])), head by head.

    Projections have no bias; the residual is projected only where widths differ (FuxiCTR).

    With ``head_split="flat"`` the F * A projected numbers of a row are cut into H pieces where they
    lie, and each is read as F vectors of A / H, so that a head sees a part of the fields. FuxiCTR
    computed this until its issue 30 was mended (June 2022), and so did the runs on the BARS boards.

    Args:
        inputs: width of the vectors that come in.
        config: attention_dim A, heads H and the switches.
    """

    def __init__(self, inputs: int, config: AttentionConfig) -> None:
        super().__init__()
        width = config.attention_dim
        self.heads, self.dropout = config.heads, config.dropout
        self.flat = config.head_split == "flat"
        self.scale = (width // config.heads) ** -0.5 if config.scale else 1.0
        self.query = Linear(inputs, width, bias=False)
        self.key = Linear(inputs, width, bias=False)
        self.value = Linear(inputs, width, bias=False)
        self.residual: nn.Module | None = None
        if config.residual:
            same = inputs == width
            self.residual = nn.Identity() if same else Linear(inputs, width, bias=False)
        self.norm = nn.LayerNorm(width) if config.layer_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, F, A] from [B, F, inputs]."""
        out = self._attend_flat(x) if self.flat else self._attend(x)
        if self.residual is not None:
            out = out + self.residual(x)
        return functional.relu(self.norm(out))

    def _attend_flat(self, x: Tensor) -> Tensor:
        """Return [B, F, A] of [B, F, inputs]; a head's piece of a row is handled as a row."""
        rows, fields = x.shape[0] * self.heads, x.shape[1]
        q, k, v = (layer(x).view(rows, fields, -1) for layer in (self.query, self.key, self.value))
        # For vectors this short two batched products are faster than torch's fused attention.
        scores = torch.bmm(q, k.transpose(1, 2)) * self.scale
        weights = functional.dropout(scores.softmax(2), self.dropout, self.training)
        return torch.bmm(weights, v).view(x.shape[0], fields, -1)

    def _attend(self, x: Tensor) -> Tensor:
        """Return softmax(Q K^T * scale) V, [B, F, A], of [B, F, inputs]."""
        weights = torch.cat((self.query.weight, self.key.weight, self.value.weight))
        projected = products.linear(x, weights)
        dropout = self.dropout if self.training else 0.0
        if projected.device.type == "cpu" and projected.dtype != torch.float64:
            from models.attention import attend

            key = int(torch.randint(2**32, ())) if dropout else 0
            return attend(projected, self.heads, self.scale, dropout, key)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(3, 2)
        )
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


@models.register("autoint")
class AutoInt(CTRModel):
    """Self-attentive feature interaction."""

    Config = AutoIntConfig

    @classmethod
    def embeddings(cls, config: AttentionConfig, inputs: Inputs) -> list[Feature]:
        """Return a vector a field, and first-order weights if `wide`."""
        wide = linear_features(inputs) if config.wide else []
        return main_features(inputs, config.dim) + wide

    def __init__(self, config: AttentionConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.fields = FieldVectors(inputs, dims)
        widths = [self.fields.dim] + [config.attention_dim] * (config.layers - 1)
        self.attention = nn.Sequential(*(InteractingLayer(width, config) for width in widths))
        self.out = Logit(self.fields.count * config.attention_dim)
        self.first_order = FirstOrder(inputs, bias=False) if config.wide else None

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and pooled vectors."""
        logit = self.interact(self.fields(dense, pooled))
        if self.first_order is None:
            return logit
        return logit + self.first_order(dense, pooled)

    def interact(self, vectors: Tensor) -> Tensor:
        """Return the logit [B] of the vectors [B, F, D]."""
        return self.out(self.attention(vectors).flatten(1))
