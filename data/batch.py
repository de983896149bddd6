"""The batch that a loader delivers.

Shape letters: B rows of the batch, D numeric columns, F id columns, M ids of all bags together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embtables.torchrec_types import KeyedJaggedTensor


@dataclass
class Batch:
    """B rows.

    Attributes:
        dense: [B, D] float32 numeric columns.
        features: KeyedJaggedTensor of F keys, values [M] int64 key-major, lengths [F*B].
        label: [B] float32, 0 or 1.
        group: [B] int64 group ids, or None where the source names no group.
    """

    dense: torch.Tensor
    features: KeyedJaggedTensor
    label: torch.Tensor
    group: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        group = None if self.group is None else self.group.to(device, non_blocking=True)
        return Batch(
            self.dense.to(device, non_blocking=True),
            self.features.to(device, non_blocking=True),
            self.label.to(device, non_blocking=True),
            group,
        )
