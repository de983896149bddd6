"""One rank of a training job, that writes down the loss of every step.

    python train_worker.py JOB.json

A job lists runs: a configuration file, overrides, and the run directory. With "losses" the loss of
every step, averaged over ranks, goes to that file. With "stop_at" its last rank is asked to stop at
that step; with "kill_at" and "kill" these ranks end there by SIGKILL, the first time the job is
started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embtables.ranks import rank, ranks
from trainer import loop
from trainer.config import load_config
from trainer.ranks import total
from trainer.signals import Interrupted
from trainer.step import TrainStep


def run(job: dict[str, Any]) -> None:
    """Train once, as the job says."""
    losses: list[float] = []
    plain = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> Tensor:
        step = self.state.step + 1
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if step == job.get("kill_at") and rank() in job["kill"] and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == job.get("stop_at") and rank() == ranks() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = plain(self, *batches)
        losses.append(float(total(loss.double())) / ranks())
        return loss

    TrainStep.__call__ = train_step  # pyright: ignore[reportAttributeAccessIssue]
    try:
        config = load_config(job["recipe"], job["overrides"]).config
        loop.train(config, job["run"])
    except Interrupted:
        assert "stop_at" in job
    finally:
        TrainStep.__call__ = plain
    if "losses" in job and os.environ["RANK"] == "0":
        Path(job["losses"]).write_text(json.dumps(losses))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    try:
        for one in json.loads(Path(sys.argv[1]).read_text()):
            run(one)
    except (ValueError, OSError) as error:
        print(f"error: {error}", flush=True)
        os._exit(2)  # as the command line leaves a job
