"""Runs a job of `bench.training` on embtables, with the trainer that its users get."""

from __future__ import annotations

from typing import Any

from job import Stopwatch, answer

from trainer.config import RunConfig
from trainer.datasets import open_store
from trainer.loop import Trainer


class TimedTrainer(Trainer):
    """The trainer, with a stopwatch around the training of each epoch."""

    def advance(self) -> None:
        """Train one epoch, and time it."""
        if not hasattr(self, "watch"):
            self.watch = Stopwatch()
        with self.watch.epoch():
            super().advance()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    config = RunConfig.model_validate(job["config"])
    trainer = TimedTrainer(config, open_store(config))
    trainer.fit()
    test = trainer.measure("test", trainer.predict)
    return {
        "parameters": trainer.parameters(),
        "seconds": trainer.watch.seconds,
        "auc": test["auc"],
        "logloss": test["logloss"],
    }


if __name__ == "__main__":
    answer(run, ("embtables",))
