"""AutoInt+: AutoInt with an MLP beside the attention.

logit = AutoInt(x) + MLP(flatten(e))  (arXiv 1810.11921, section 5.5).

Shape letters: B rows of a batch, F fields (numeric columns included), D embedding width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.autoint import AttentionConfig, AutoInt
from models.base import Inputs, models
from models.layers import MLP, Activation, DropoutRate, Widths


class AutoIntPlusConfig(AttentionConfig):
    """Options of AutoInt+."""

    kind: Literal["autoint_plus"] = "autoint_plus"
    hidden: Widths = Field((400, 400, 400), min_length=1, description="hidden layers of the MLP")
    activation: Activation = "relu"
    batch_norm: bool = Field(False, description="BatchNorm in every hidden layer")
    dropout: DropoutRate = Field(0.0, description="on attention weights and after hidden layers")


@models.register("autoint_plus")
class AutoIntPlus(AutoInt):
    """AutoInt and MLP side by side, on the same vectors."""

    Config = AutoIntPlusConfig

    def __init__(self, config: AutoIntPlusConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.mlp = MLP(
            self.fields.count * self.fields.dim,
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def interact(self, vectors: Tensor) -> Tensor:
        """Return the logit [B] of the vectors [B, F, D]."""
        return super().interact(vectors) + self.mlp(vectors.flatten(1))
