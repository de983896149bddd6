"""`embtables train`: train, evaluate and keep a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.arguments import Overrides, Recipe


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Default: runs/<recipe>-<hash of the config>.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One batch only: sizes, memory, steps. Keeps nothing.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what the run directory holds.")
    ] = False,
) -> None:
    """Train a recipe, choose the epoch on validation, measure the packed tables on test.

    The same command again resumes a broken run, and prints the summary of a finished one.

    Examples:
        embtables train synthetic/autoint --dry-run
        embtables train synthetic/autoint table=hash+int8 ratio=0.1 train.limit_batches=50
        embtables train frappe_x1/deepfm data.root=/data/frappe_x1 --run-dir runs/deepfm
    """
    from trainer.config import load_config

    loaded = load_config(recipe, overrides or ())
    if dry_run:
        from trainer.dryrun import dry_run as report

        typer.echo(report(loaded.config))
        return

    from trainer.loop import train as run
    from trainer.ranks import is_first
    from trainer.rundir import default_path
    from trainer.signals import Interrupted
    from trainer.summary import summary_text

    path = run_dir or default_path(loaded.name, loaded.config.plain())
    if is_first():
        typer.echo(f"run directory: {path}", err=True)
    try:
        summary = run(loaded.config, path, fresh=fresh)
    except Interrupted:
        typer.echo(f"interrupted; {path} is kept. The same command resumes it.", err=True)
        raise
    if summary:
        typer.echo(summary_text(summary))
