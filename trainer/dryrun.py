"""A run in one batch: what it would build, how large it is, and whether a step works."""

from __future__ import annotations

from trainer.config import RunConfig
from trainer.datasets import open_store
from trainer.loop import Trainer
from trainer.memory import peak_memory


def dry_run(config: RunConfig) -> str:
    """Build everything, take one training step and one evaluation step, and say what was seen.

    The data set is prepared if it is not yet; no run directory is made.

    Raises:
        ValueError: whatever would stop the run: bad data, a budget that is too small.
    """
    trainer = Trainer(config, open_store(config))
    batch = next(iter(trainer.loader))
    loss = float(trainer.train_step(batch, batch if trainer.stage.structure == "valid" else None))
    trainer.predict(batch)

    size = trainer.tables.bytes()
    network = trainer.parameters()["network"]
    state = sum(
        value.nbytes
        for slot in trainer.train_step.optimizer.state.values()
        for value in slot.values()
    )
    rows = trainer.store.schema.rows
    lines = [
        *_table_lines(trainer.tables.report()),
        "",
        f"tables     {size.inference:,} bytes packed ({size.inference / size.uncompressed:.1%} of "
        f"{size.uncompressed:,}), {size.training:,} bytes in training",
        f"network    {network:,} parameters, {8 * network + state:,} bytes in training",
        f"memory     {peak_memory():,} bytes of this process at its peak, one step included",
        f"data       {rows['train']:,} / {rows['valid']:,} / {rows['test']:,} rows "
        "(train / valid / test)",
        f"steps      {trainer.steps_per_epoch:,} an epoch of {config.train.batch_size:,} rows, "
        f"at most {config.train.epochs} epochs",
        f"loss       {loss:.5f} on the first batch",
    ]
    return "\n".join(lines)


def _table_lines(report: list[dict]) -> list[str]:
    """Return the tables as aligned columns."""
    columns = list(report[0]) if report else []
    cells = [columns] + [[_cell(row[column]) for column in columns] for row in report]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in cells]


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
