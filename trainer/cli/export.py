"""`embtables export`: one file that predicts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.arguments import Run


def export(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: <name of the run>.safetensors.")
    ] = None,
) -> None:
    """Write packed tables, network weights and the model's description into one file.

    It predicts without the training data and without the training code:
    trainer.predict.PackedModel.load(FILE).

    Examples:
        embtables export runs/frappe_x1-deepfm-1a2b3c4d
        embtables export runs/frappe_x1-deepfm-1a2b3c4d -o deepfm.safetensors
    """
    from trainer.rundir import packed_model

    file = output or Path(f"{run.resolve().name}.safetensors")
    shutil.copyfile(packed_model(run), file)
    typer.echo(f"{file}  {file.stat().st_size:,} bytes")
