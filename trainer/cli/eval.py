"""`embtables eval`: measure the packed tables of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.cli.arguments import Run


def evaluate(
    run: Run,
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="Rows to measure on.")
    ] = "test",
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="RUN2", help="Another run on the same rows."),
    ] = None,
) -> None:
    """Measure a finished run again, and print the metrics as JSON.

    With --compare: what differs from another run, with its 95 % interval over the rows, as JSON and, on
    standard error, in lines for people.

    Examples:
        embtables eval runs/frappe_x1-deepfm-1a2b3c4d
        embtables eval runs/frappe_x1-deepfm-1a2b3c4d --split valid
        embtables eval runs/frappe_x1-deepfm-1a2b3c4d --compare runs/frappe_x1-deepfm-5e6f7a8b
    """
    from trainer.rundir import json_values

    if compare is not None:
        from trainer.compare import compare_runs

        found = compare_runs(run, compare, split)
        typer.echo(json.dumps(json_values(found.plain()), indent=2))
        typer.echo(found.text(), err=True)
        return

    from trainer.runs import evaluate_run

    typer.echo(json.dumps(json_values(evaluate_run(run, split)), indent=2))
