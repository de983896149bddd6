"""PyTorch parts that the runners of the other libraries share: equal starts and equal counts.

Shape letters: B rows of a batch, N numeric columns, D embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from job import CannotError
from torch import Tensor, nn

TABLE_STD = 1e-4
NUMERIC_STD = 0.01


class NumericVectors(nn.Module):
    """One learned vector for each numeric column, times its value: [B, N] -> [B, N, D]."""

    def __init__(self, columns: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(columns, dim) * NUMERIC_STD)

    def forward(self, values: Tensor) -> Tensor:
        """Return [B, N, D] from [B, N]."""
        return values.unsqueeze(2) * self.vectors


class NumericWeights(nn.Module):
    """First-order weights of the numeric columns, 0 at the start: [B, N] -> [B, 1]."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(columns))

    def forward(self, values: Tensor) -> Tensor:
        """Return [B, 1] from [B, N]."""
        return (values @ self.weight).unsqueeze(1)


def start(model: nn.Module) -> None:
    """Give a model the starting scale of all runners.

    Tables N(0, 1e-4) with a zero row for padding, matrices Xavier-normal, biases 0; the vector or
    weight of a numeric column (a linear map of one number) N(0, 0.01).
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=TABLE_STD)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            if module.in_features == 1:
                nn.init.normal_(module.weight, std=NUMERIC_STD)
            else:
                nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def count(model: nn.Module) -> dict[str, int]:
    """Return the trained numbers, in tables and in the network."""
    tables = {one.weight for one in model.modules() if isinstance(one, nn.Embedding)}
    total = sum(one.numel() for one in model.parameters() if one.requires_grad)
    in_tables = sum(one.numel() for one in tables)
    return {"tables": in_tables, "network": total - in_tables}


def square_only(model: dict[str, Any]) -> None:
    """Raise unless interacting layers are of the form that square layers can take."""
    if model["attention_dim"] != model["dim"]:
        raise CannotError("its interacting layers are as wide as the embedding")
    if model["layer_norm"] or model["wide"]:
        raise CannotError("its interacting layers have no LayerNorm and no first-order part")
