"""LR: logistic regression, one weight per id and per numeric column.

logit = b + sum_f w_f[id_f] + sum_n w_n x_n.

Shape letters: B rows of a batch, N numeric columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from embtables.features import Feature
from models.base import CTRModel, Inputs, ModelConfig, models
from models.layers import FirstOrder, linear_features

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class LRConfig(ModelConfig):
    """LR has no options; `dim` is not used, its tables have width 1."""

    kind: Literal["lr"] = "lr"


@models.register("lr")
class LR(CTRModel):
    """Logistic regression."""

    Config = LRConfig

    @classmethod
    def embeddings(cls, config: LRConfig, inputs: Inputs) -> list[Feature]:
        """Return one first-order weight a field."""
        return linear_features(inputs)

    def __init__(self, config: LRConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.first_order = FirstOrder(inputs, bias=True)

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N] and the first-order weights."""
        return self.first_order(dense, pooled)
