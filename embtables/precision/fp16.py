"""float16: half the bytes, packed after training or held so while training.

While training, updates are computed in float32 and rounded stochastically (unbiased), so that an
update smaller than half a float16 step is not lost. Numbers beyond the float16 range are clamped.
Bytes: 2 bytes a number.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from embtables.compressor import Parts, Precision, precisions
from embtables.registry import Config

_DROPPED = 13  # a float32 mantissa has 23 bits, a float16 mantissa 10


@precisions.register("fp16")
class Float16(Precision):
    """2 bytes a number."""

    class Config(Config):
        """Options of float16 rows."""

        kind: Literal["fp16"] = "fp16"
        train: bool = Field(default=False, description="hold rows so while training too")

    @property
    def while_training(self) -> bool:
        """As configured."""
        return self.config.train

    def row_bytes(self, dim: int) -> int:
        """2 bytes a number."""
        return 2 * dim

    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        """Return {"values": float16 [n, d]}."""
        limit = torch.finfo(torch.float16).max
        rows = rows.clamp(-limit, limit)
        if noise is None:
            return {"values": rows.half()}
        return {"values": _round_randomly(rows, noise)}

    def decode(self, parts: Parts) -> Tensor:
        """Return float32 rows."""
        return parts["values"].float()


def _round_randomly(rows: Tensor, noise: torch.Generator) -> Tensor:
    """Round up or down with the probability that keeps the mean.

    Adding uniform bits below the kept mantissa and cutting them off rounds normal float16 numbers
    so; below the smallest normal one (6.1e-5) the step is constant and numbers are scaled instead.
    """
    tiny = torch.finfo(torch.float16).smallest_normal
    step = tiny / 1024
    bits = torch.randint(
        0, 1 << _DROPPED, rows.shape, generator=noise, dtype=torch.int32, device=rows.device
    )
    kept = (rows.contiguous().view(torch.int32) + bits) & -(1 << _DROPPED)
    limit = torch.finfo(torch.float16).max
    normal = kept.view(torch.float32).clamp(-limit, limit)
    subnormal = torch.floor(rows / step + bits / (1 << _DROPPED)) * step
    return torch.where(rows.abs() < tiny, subnormal, normal).half()
