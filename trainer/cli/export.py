"""`embtables export`: a directory that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.arguments import Run


def export(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory.  [packed/<name of the run>]")
    ] = None,
) -> None:
    """Write packed tables, network and vocabularies into one directory.

    It predicts on machines that never saw the training data, by `embtables predict` or in Python by
    trainer.predict.PackedModel.load(DIR).predict(frame). Vocabularies (raw value to id) are needed
    however tables are compressed, and are not part of a table's budget.

    Examples:
        embtables export runs/frappe_x1-deepfm-1a2b3c4d
        embtables export runs/frappe_x1-deepfm-1a2b3c4d -o deepfm
    """
    from trainer.runs import export_run

    folder = output or Path("packed") / run.resolve().name
    size = export_run(run, folder)
    typer.echo(
        f"{folder}: {size.tables:,} bytes of tables, {size.network:,} of network, "
        f"{size.vocabularies:,} of vocabularies"
    )
