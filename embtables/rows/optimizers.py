"""Row optimizers: how the rows that a batch has read are updated.

Shape letters: U distinct rows of a batch, R rows of a table, d numbers in a row.

Gradients of a row that was read several times are summed before the optimizer sees the row. All but
`dense_adam` touch only the rows of the batch and their state; `weight_decay` is decoupled
(Loshchilov and Hutter, ICLR 2019) and touches them only.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, PositiveFloat
from torch import Tensor

from embtables.registry import Config
from embtables.rows.pages import large_zeros

State = dict[str, Tensor]


class _RowOptimizer(Config):
    """Options that every row optimizer has."""

    lr: PositiveFloat = Field(default=0.01, description="learning rate")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of the rows of the batch"
    )

    every_row: ClassVar[bool] = False
    """Whether a step updates all rows of a table instead of those of the batch."""

    def state(self, rows: int, dim: int, like: Tensor) -> State:
        """Return the state of a new table [R, d]."""
        return {}

    def update(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Return new rows [U, d]; change `state` (its rows of the batch) in place.

        Args:
            rows: [U, d] current values.
            grads: [U, d] summed gradients.
            state: name -> [U, ...].
            step: number of this step, from 1.
            lr: learning rate now.
        """
        raise AssertionError("every row optimizer defines its update")

    def apply(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Decay, then update."""
        if self.weight_decay:
            rows = rows * (1 - lr * self.weight_decay)
        return self.update(rows, grads, state, step, lr)


class SGD(_RowOptimizer):
    """w - lr * g."""

    kind: Literal["sgd"] = "sgd"

    def update(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Return w - lr * g."""
        return rows - lr * grads


class Adagrad(_RowOptimizer):
    """s + g^2;  w - lr * g / (sqrt(s) + eps). Duchi et al., JMLR 2011."""

    kind: Literal["adagrad"] = "adagrad"
    eps: PositiveFloat = 1.0e-8

    def state(self, rows: int, dim: int, like: Tensor) -> State:
        """Return the sums of squares [R, d]."""
        return {"sum": large_zeros(like, rows, dim)}

    def update(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Return the Adagrad step."""
        total = state["sum"].addcmul_(grads, grads)
        return rows - lr * grads / (total.sqrt() + self.eps)


class RowWiseAdagrad(_RowOptimizer):
    """Adagrad with one sum a row: s + mean(g^2). Mudigere et al., ISCA 2022 (FBGEMM)."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    eps: PositiveFloat = 1.0e-8

    def state(self, rows: int, dim: int, like: Tensor) -> State:
        """Return the sums of mean squares [R]."""
        return {"sum": large_zeros(like, rows)}

    def update(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Return the row-wise Adagrad step."""
        total = state["sum"].add_(grads.square().mean(dim=1))
        return rows - lr * grads / (total.sqrt() + self.eps).unsqueeze(1)


class Adam(_RowOptimizer):
    """Lazy Adam: moments of a row move only when it is read; bias correction by the global step.

    Kingma and Ba, ICLR 2015; the correction counts all steps, as torch.optim.SparseAdam does, and eps
    is added to the corrected root, as torch.optim.Adam does.
    """

    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-8

    def state(self, rows: int, dim: int, like: Tensor) -> State:
        """Return both moments [R, d]."""
        return {name: large_zeros(like, rows, dim) for name in ("mean", "square")}

    def update(self, rows: Tensor, grads: Tensor, state: State, step: int, lr: float) -> Tensor:
        """Return the Adam step."""
        beta1, beta2 = self.betas
        mean = state["mean"].lerp_(grads, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(self.eps)
        return rows - (lr / (1 - beta1**step)) * (mean / root)


class DenseAdam(Adam):
    """Adam over every row at every step, with coupled L2: the protocol of FuxiCTR and BARS.

    The gradient of (l2 / 2) * sum(w^2) over all rows of all tables is added at each step, so rows that
    are not in the batch shrink too. Cost grows with the tables: for parity runs on small ones.
    """

    kind: Literal["dense_adam"] = "dense_adam"  # pyright: ignore[reportIncompatibleVariableOverride]
    l2: float = Field(default=0.0, ge=0, description="coupled L2 over every row")

    every_row: ClassVar[bool] = True


RowOptimizer = Annotated[SGD | Adagrad | RowWiseAdagrad | Adam | DenseAdam, Discriminator("kind")]


def slices(state: State, rows: Tensor) -> State:
    """Return the state of some rows [U], copied."""
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}


def write_back(state: State, rows: Tensor, part: State) -> None:
    """Put the state of some rows [U] back."""
    for name, tensor in part.items():
        state[name][rows] = tensor


def sum_by_row(rows: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return distinct rows [U] and their summed gradients [U, d]."""
    distinct, inverse = torch.unique(rows, return_inverse=True)
    return distinct, grads.new_zeros(len(distinct), grads.shape[1]).index_add_(0, inverse, grads)
