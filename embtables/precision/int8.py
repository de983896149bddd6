"""int8 with a float32 scale for each row: about a quarter of the bytes.

    value = q * s,   s = max|row| / 127,   q = round(row / s)

Packed after training (rounded to nearest), or with ``int8(train=true)`` held so while training: the
rows of a batch are dequantised, stepped in float32 and quantised again with stochastic rounding
floor(v/s + u), u ~ U(0,1), which is unbiased. Bytes: d + 4 a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from embtables.compressor import Parts, Precision, precisions
from embtables.registry import Config


@precisions.register("int8")
class Int8(Precision):
    """1 byte a number and 4 a row."""

    class Config(Config):
        """Options of int8 rows."""

        kind: Literal["int8"] = "int8"
        train: bool = Field(default=False, description="hold rows so while training too")

    @property
    def while_training(self) -> bool:
        """As configured."""
        return self.config.train

    def row_bytes(self, dim: int) -> int:
        """One byte a number and the scale."""
        return dim + 4

    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        """Return {"values": int8 [n, d], "scale": float32 [n, 1]}."""
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        scaled = rows / scale.clamp(min=torch.finfo(torch.float32).tiny)
        if noise is None:
            scaled = scaled.round()
        else:
            uniform = torch.rand(
                scaled.shape, generator=noise, dtype=scaled.dtype, device=scaled.device
            )
            scaled = torch.floor(scaled + uniform)
        return {"values": scaled.clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, parts: Parts) -> Tensor:
        """Return float32 rows."""
        return parts["values"] * parts["scale"]
