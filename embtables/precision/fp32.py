"""float32: the rows as they are trained. 4 bytes a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embtables.compressor import Parts, Precision, precisions
from embtables.registry import Config


@precisions.register("fp32")
class Float32(Precision):
    """No quantization."""

    class Config(Config):
        """No options."""

        kind: Literal["fp32"] = "fp32"

    def row_bytes(self, dim: int) -> int:
        """4 bytes a number."""
        return 4 * dim

    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        """Return the rows themselves."""
        return {"values": rows}

    def decode(self, parts: Parts) -> Tensor:
        """Return the rows themselves."""
        return parts["values"]
