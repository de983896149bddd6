"""MF: matrix factorization, the inner product of a user vector and an item vector.

logit = <u, v>, or <u, v> + b_item (Koren, Bell and Volinsky, "Matrix factorization techniques for
recommender systems", Computer 2009). With train.loss=bpr it is BPR-MF (Rendle et al., UAI 2009).

Shape letters: B rows of a batch, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from embtables.features import Feature
from embtables.registry import nearest
from models.base import InputField, Inputs, ModelConfig, TwoTowers, models
from models.layers import common_width, linear_features, main_features

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedTensor


class MFConfig(ModelConfig):
    """Options of MF."""

    kind: Literal["mf"] = "mf"
    user: str = Field("user", description="field of the user")
    item: str = Field("item", description="field of the item")
    item_bias: bool = Field(False, description="add a weight of the item, a table of width 1")


@models.register("mf")
class MF(TwoTowers):
    """Matrix factorization. It reads two fields and no other."""

    Config = MFConfig

    @classmethod
    def embeddings(cls, config: MFConfig, inputs: Inputs) -> list[Feature]:
        """Return a vector of the user and of the item, and the item's weight where it has one.

        Raises:
            ValueError: the data have no such field.
        """
        user, item = (_field(inputs, side, getattr(config, side)) for side in ("user", "item"))
        main = main_features(Inputs((), (user, item)), config.dim)
        return main + (linear_features(Inputs((), (item,))) if config.item_bias else [])

    def __init__(self, config: MFConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.user, self.item = config.user, config.item
        self.weight = f"{config.item}:linear" if config.item_bias else None
        common_width([self.user, self.item], dims)

    def towers(self, pooled: KeyedTensor) -> tuple[Tensor, Tensor]:
        """Return user vectors and item vectors, both [B, D], or [B, D + 1] with an item weight."""
        user, item = pooled[self.user], pooled[self.item]
        if self.weight is None:
            return user, item
        one = torch.ones_like(user[:, :1])
        return torch.cat([user, one], 1), torch.cat([item, pooled[self.weight]], 1)


def _field(inputs: Inputs, side: str, name: str) -> InputField:
    """Return a field that holds one id a row."""
    single = {field.name: field for field in inputs.fields if field.kind == "categorical"}
    if name not in single:
        raise ValueError(
            f"model.{side}={name}: the data have no such field with one id a row."
            f"{nearest(name, single)} They have: {', '.join(single) or 'none'}"
        )
    return single[name]
