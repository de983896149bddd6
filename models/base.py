"""What every CTR model is: a Config, the embeddings it asks for, a forward from vectors to logits.

Shape letters: B rows of a batch, F categorical fields, D embedding width, N numeric columns,
T length of a history (jagged), L ids of all histories of the batch together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from embtables.features import Feature, Pooling
from embtables.registry import Config, Registry

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


@dataclass(frozen=True)
class InputField:
    """One id column as a model sees it.

    Attributes:
        name: key of the KeyedJaggedTensor.
        table: logical table of its ids.
        kind: "categorical" (one id), "multi" (a bag) or "sequence" (ordered history).
    """

    name: str
    table: str
    kind: str = "categorical"


@dataclass(frozen=True)
class Inputs:
    """What a data set offers to a model: N numeric columns and F fields."""

    numeric: tuple[str, ...]
    fields: tuple[InputField, ...]


class ModelConfig(Config):
    """Options that every model has."""

    kind: Any

    dim: int = Field(default=16, ge=1, description="embedding width asked of the tables")


class CTRModel(nn.Module, ABC):
    """A click model on top of embedding vectors; it never sees an id or a compressor.

    `embeddings` says which vectors the model wants. The tables may grant a smaller width (a narrow
    table under a byte budget), so the layers are built from the granted widths `dims`.
    """

    Config: ClassVar[type[ModelConfig]]

    @classmethod
    @abstractmethod
    def embeddings(cls, config: Any, inputs: Inputs) -> list[Feature]:
        """Return the embeddings the model reads, main vectors first, then first-order weights."""

    def __init__(self, config: Any, inputs: Inputs, dims: dict[str, int]) -> None:
        """Build the layers. `dims`: feature name -> granted width."""
        super().__init__()

    @abstractmethod
    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N], pooled features and sequences."""


class TwoTowers(CTRModel):
    """A model of one user and one item whose logit is the inner product of two vectors.

    All items can then be ranked for a user by matrix products: this is what retrieval needs
    (``train.loss=bpr``, `trainer.retrieval`). Such a model reads these two fields alone.

    Attributes:
        user, item: names of the fields, which hold one id a row.
    """

    user: str
    item: str

    @abstractmethod
    def towers(self, pooled: KeyedTensor) -> tuple[Tensor, Tensor]:
        """Return user vectors [B, D] and item vectors [B, D]; a row of one reads none of the other."""

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from pooled vectors."""
        users, items = self.towers(pooled)
        return (users * items).sum(1)


def pooling_of(field: InputField) -> Pooling:
    """Return how a model without attention pools a field: the mean of a bag or history."""
    return "sum" if field.kind == "categorical" else "mean"


models: Registry[CTRModel] = Registry("models", "model")
