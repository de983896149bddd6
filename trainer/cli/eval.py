"""`embtables eval`: measure the packed tables of a finished run."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from trainer.cli.arguments import Run


def evaluate(
    run: Run,
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="Rows to measure on.")
    ] = "test",
) -> None:
    """Measure a finished run again, and print the metrics as JSON.

    Examples:
        embtables eval runs/frappe_x1-deepfm-1a2b3c4d
        embtables eval runs/frappe_x1-deepfm-1a2b3c4d --split valid
    """
    from trainer.runs import evaluate_run

    typer.echo(json.dumps(evaluate_run(run, split), indent=2))
