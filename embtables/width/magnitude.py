"""Magnitude pruning: the smallest numbers of all tables go, a few more every few steps.

    pruned share after a part t of the stage:  S * (1 - 0.001^t) / 0.999,   S = 1 - budget / bytes

Papers: Deng et al., DeepLight, WSDM 2021 (the schedule); arXiv 2406.17335 (global magnitude with
fine-tuning as the baseline of every search). One threshold for all tables, so that it also decides
how the budget is divided among them; rows that training never reads are zeros where counts are known.
Stages: warm-up; prune, where a pruned number may grow back; retrain, where zeros stay. The last
threshold is found with the bytes of the packed form, indices included, and so meets the budget.
Bytes: those of `rows.pruned`. When to use: the baseline of methods that learn what to prune.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from embtables.compressor import widths
from embtables.registry import Config
from embtables.search import Fitness, Stage
from embtables.width._pruned import PrunedWidth, PruningSearch, Retrain

_TIMES = 50
"""How often numbers are pruned within the stage."""
_SAMPLE = 2**20
"""Numbers from which the threshold of an intermediate pruning is estimated."""


class MagnitudeSearch(PruningSearch["Magnitude"]):
    """The schedule, and the threshold on |E|."""

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Warm-up, prune, retrain."""
        return (
            Stage("warm-up"),
            Stage("prune", epochs=config.prune_epochs, keep="last"),
            Stage("retrain", restart=config.retrain == "initial"),
        )

    def begin(self, stage: Stage) -> None:
        """Let zeros grow back until the last pruning."""
        self.on = stage.name == "prune"
        for width in self.widths:
            width.learns = stage.name != "retrain"

    @torch.no_grad()
    def step(self, step: int, steps: int) -> bool:
        """Prune now and then."""
        if self.on and step * _TIMES // steps > (step - 1) * _TIMES // steps:
            rows = self._rows()
            stride = 1 + sum(table.numel() for table in rows.values()) // _SAMPLE
            sample = torch.cat([table.flatten()[::stride] for table in rows.values()])
            # What indices take is left to the end.
            share = (1 - max(self.share, 0.0)) * (1 - 0.001 ** (step / steps)) / 0.999
            threshold = torch.quantile(sample.abs().float(), share)
            for name, table in rows.items():
                self.set_rows(name, torch.where(table.abs() >= threshold, table, 0.0))
        return False

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> None:
        """Prune to the budget, at the end of the pruning."""
        if stage.name == "prune":
            rows = self._rows()
            self.prune(rows, {name: table.abs() for name, table in rows.items()})

    def _rows(self) -> dict[str, Tensor]:
        return {name: self.read_in_training(name, self.rows(name)) for name in self.physical}


@widths.register("magnitude")
class Magnitude(PrunedWidth):
    """Rows that lose their smallest numbers."""

    class Config(Config):
        """Options of magnitude pruning."""

        kind: Literal["magnitude"] = "magnitude"
        prune_epochs: int = Field(default=2, ge=1, description="epochs of the stage that prunes")
        retrain: Retrain = "found"

    @classmethod
    def search(cls, config: Any) -> type[MagnitudeSearch]:
        """The stages above."""
        return MagnitudeSearch
