"""Parts that several models share: reading vectors, first-order weights, the MLP, Dice.

Shape letters: B rows of a batch, F categorical fields, N numeric columns, D embedding width,
W width of all read vectors side by side, C channels of a layer.

Layers start as in FuxiCTR and BARS: linear weights Xavier-normal, biases 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from embtables.features import Feature
from embtables.ranks import ranks, summed
from models import products
from models.base import Inputs, pooling_of

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedTensor

Activation = Literal["relu", "prelu", "dice"]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1)]
Widths = tuple[Width, ...]

NUMERIC_STD = 0.01  # start of all AutoInt field vectors in the authors' code


def main_features(inputs: Inputs, dim: int) -> list[Feature]:
    """Return one pooled vector of width `dim` for every field, named after it."""
    return [Feature(f.name, dim, table=f.table, pooling=pooling_of(f)) for f in inputs.fields]


def linear_features(inputs: Inputs) -> list[Feature]:
    """Return one first-order weight (a table of width 1) for every field."""
    return [
        Feature(f"{f.name}:linear", 1, f.name, f"{f.table}:linear", pooling_of(f))
        for f in inputs.fields
    ]


def field_names(inputs: Inputs) -> list[str]:
    """Return the names of the main features, in field order."""
    return [field.name for field in inputs.fields]


def common_width(names: Sequence[str], dims: dict[str, int]) -> int:
    """Return the one width D that all main features were granted.

    Raises:
        ValueError: widths differ, so that vectors of two fields cannot be multiplied.
    """
    widths = {dims[name] for name in names}
    if len(widths) > 1:
        granted = ", ".join(f"{name}={dims[name]}" for name in names)
        raise ValueError(
            "the model multiplies the vectors of its fields and needs one width for all, but the "
            f"tables grant {granted}. Choose a width method that gives one width or projects to "
            "model.dim, or set model.kind to one that takes any widths: dcnv2, din, lr, or dlrm "
            "with model.interaction=cat"
        )
    return widths.pop()


def flatten(pooled: KeyedTensor, names: Sequence[str]) -> Tensor:
    """Return the vectors of some features side by side, [B, W].

    A view without a copy if the features are neighbours in the KeyedTensor in this order.
    """
    values, offsets = pooled.values(), pooled.offset_per_key()
    place = {key: i for i, key in enumerate(pooled.keys())}
    places = [place[name] for name in names]
    if places == list(range(places[0], places[0] + len(places))):
        return values[:, offsets[places[0]] : offsets[places[-1] + 1]]
    return torch.cat([values[:, offsets[i] : offsets[i + 1]] for i in places], 1)


def stack(pooled: KeyedTensor, names: Sequence[str], dim: int) -> Tensor:
    """Return the vectors of F features of one width, [B, F, D]; a view where `flatten` is one."""
    return flatten(pooled, names).unflatten(1, (len(names), dim))


class NumericVectors(nn.Module):
    """One learned vector v_n for each numeric column: e_n = x_n v_n (AutoInt, section 4.2).

    Args:
        columns: N, at least 1.
        dim: D.
    """

    def __init__(self, columns: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(columns, dim) * NUMERIC_STD)

    def forward(self, dense: Tensor) -> Tensor:
        """Return [B, N, D] from [B, N]."""
        return dense.unsqueeze(2) * self.vectors


class FieldVectors(nn.Module):
    """Every field and every numeric column as one vector of a common width.

    Args:
        inputs: F fields and N numeric columns.
        dims: granted widths.

    Attributes:
        count: F + N.
        dim: D.

    Raises:
        ValueError: granted widths differ.
    """

    def __init__(self, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__()
        self.names = field_names(inputs)
        self.dim = common_width(self.names, dims)
        self.count = len(inputs.fields) + len(inputs.numeric)
        self.numeric = NumericVectors(len(inputs.numeric), self.dim) if inputs.numeric else None

    def forward(self, dense: Tensor, pooled: KeyedTensor) -> Tensor:
        """Return [B, F + N, D]."""
        vectors = stack(pooled, self.names, self.dim)
        if self.numeric is None:
            return vectors
        return torch.cat([vectors, self.numeric(dense)], 1)


class FirstOrder(nn.Module):
    """Sum of the first-order weights: of fields from width-1 tables, of numeric columns here.

    Numeric weights start at 0, as the tables practically do, so that columns of any scale start
    without an opinion.
    """

    def __init__(self, inputs: Inputs, *, bias: bool) -> None:
        super().__init__()
        self.names = [feature.name for feature in linear_features(inputs)]
        self.weight = nn.Parameter(torch.zeros(len(inputs.numeric))) if inputs.numeric else None
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

    def forward(self, dense: Tensor, pooled: KeyedTensor) -> Tensor:
        """Return [B]."""
        logit = flatten(pooled, self.names).sum(1)
        if self.weight is not None:
            logit = logit + dense @ self.weight
        return logit if self.bias is None else logit + self.bias


class Linear(nn.Linear):
    """`torch.nn.Linear` with Xavier-normal weights and bias 0, by the fastest product of the CPU."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias=bias)
        nn.init.xavier_normal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return [.., U] from [.., C]."""
        return products.linear(input, self.weight, self.bias)


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over the rows of all ranks, that also trains on a batch of fewer than two rows.

    The variance of one row says nothing: such a batch is normalised by the running statistics and
    leaves them as they are. (torch's SyncBatchNorm is of GPUs only.)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised [B, C]."""
        if self.training and ranks() > 1:
            return self._over_ranks(input)
        if self.training and input.shape[0] < 2:
            return self._at_rest(input)
        return super().forward(input)

    def _at_rest(self, input: Tensor) -> Tensor:
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _over_ranks(self, input: Tensor) -> Tensor:
        count = float(summed(torch.tensor(float(len(input)), device=input.device)))
        if count < 2:
            return self._at_rest(input)
        mean = summed(input.float().sum(0)) / count
        centred = input - mean
        variance = summed(centred.float().square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        found = centred * (variance + self.eps).rsqrt()
        if self.weight is not None:
            found = found * self.weight + self.bias
        return found.to(input.dtype)


class Dice(nn.Module):
    """Data-adaptive activation of DIN (arXiv 1706.06978, section 5.3).

    y = p x + alpha (1 - p) x with p = sigmoid(norm(x)): a PReLU whose step lies where the batch
    has its mean. norm is a batch norm without scale and shift, as in FuxiCTR; alpha starts at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=1e-9, momentum=0.01, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C] from [B, C]."""
        gate = torch.sigmoid(self.norm(x))
        return x * (gate + self.alpha * (1 - gate))


ACTIVATIONS: dict[Activation, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "prelu": lambda channels: nn.PReLU(channels, init=0.1),
    "dice": Dice,
}


class Logit(nn.Linear):
    """The last layer, to one number a row, outside of autocast.

    bfloat16 has 8 bits: scores rounded to it tie, and ties cost AUC in the digits that matter.

    Args:
        inputs: C.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1)
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return [B] from [B, C]."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype)).squeeze(1)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on CPUs a mask is a hash of places and of one draw of torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each number zero with probability p, the others divided by 1 - p."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        from models.dropout import masked

        return masked(input, int(torch.randint(2**32, ())), self.p)


class MLP(nn.Sequential):
    """Hidden blocks Linear -> BatchNorm -> activation -> Dropout, then a Logit: [B, C] -> [B].

    Args:
        inputs: width C of the input.
        hidden: widths of the hidden layers; may be empty.
        logit: False ends with the last hidden block: [B, C] -> [B, width].
        activation: one of `ACTIVATIONS`.
        batch_norm: put a BatchNorm into each hidden block.
        dropout: probability of dropping a hidden unit.

    Attributes:
        width: width of the last hidden block.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        *,
        logit: bool = True,
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for channels in hidden:
            self.append(Linear(inputs, channels))
            if batch_norm:
                self.append(BatchNorm(channels))
            self.append(ACTIVATIONS[activation](channels))
            if dropout:
                self.append(Dropout(dropout))
            inputs = channels
        if logit:
            self.append(Logit(inputs))
        self.width = inputs
