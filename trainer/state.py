"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """Where a run stands: with weights, optimizers and generators, all that resuming needs.

    Attributes:
        epoch, batch: position in the data: the next batch to train on.
        step: batches trained on so far.
        stage, stage_step: which stage is on, and how many batches it was trained on.
        stage_over: it is, and what it hands on is to be made.
        pending: an evaluation is due before training goes on.
        finished: training is over.
        failures: evaluations without gain since the last gain.
        best, best_epoch, best_step: the monitored value, and where it was reached.
        best_checkpoint: the name of the checkpoint with those weights.
        lr_dense, lr_rows: learning rates now.
        loss_sum, loss_rows: of the training loss since the last evaluation.
        seconds, rows: spent and seen in training, evaluations left out.
        found: stored widths that a search has found.
        candidates: what those were worth that the end of this stage has measured, in their order.
        training_bytes: of rows and optimizer state on all ranks, in the stage that has most.
        past: what the stages that are over cost (`Trainer._stage_cost`).
    """

    lr_dense: float
    lr_rows: float
    epoch: int = 0
    batch: int = 0
    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stage_over: bool = False
    pending: bool = False
    finished: bool = False
    failures: int = 0
    best: float | None = None
    best_epoch: float = 0.0
    best_step: int = 0
    best_checkpoint: str | None = None
    loss_sum: float = 0.0
    loss_rows: int = 0
    seconds: float = 0.0
    rows: int = 0
    training_bytes: int = 0
    found: dict[str, int] = field(default_factory=dict)
    candidates: list[float] = field(default_factory=list)
    past: list[dict[str, Any]] = field(default_factory=list)
