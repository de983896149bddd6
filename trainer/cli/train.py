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
    world_size: Annotated[
        int | None,
        typer.Option(
            "--world-size", help="With --dry-run: plan for so many ranks; nothing is built."
        ),
    ] = None,
    hosts: Annotated[
        int | None, typer.Option("--hosts", help="With --world-size: hosts of the ranks.  [1]")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="With --world-size: cuda or cpu.  [cuda]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="With --world-size: of a device.  [80GB]")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="With --world-size: factor on the rows of all vocabularies."),
    ] = None,
) -> None:
    """Train a recipe, choose the epoch on validation, measure the packed tables on test.

    The same command again resumes a broken run, and prints the summary of a finished one.

    Examples:
        embtables train synthetic/autoint --dry-run
        embtables train synthetic/autoint table=hash+int8 ratio=0.1 train.limit_batches=50
        embtables train frappe_x1/deepfm data.root=/data/frappe_x1 --run-dir runs/deepfm
        embtables train synthetic/autoint --dry-run --world-size 128 --hosts 16
    """
    if world_size is not None and not dry_run:
        raise ValueError(
            "--world-size plans a run without training it: add --dry-run, or use torchrun"
        )
    beside = {"--hosts": hosts, "--device": device, "--memory": memory, "--scale": scale}
    given = [name for name, value in beside.items() if value is not None]
    if given and world_size is None:
        raise ValueError(f"{given[0]} says what machines to plan for: add --dry-run --world-size N")

    from trainer.config import load_config

    loaded = load_config(recipe, overrides or ())
    if world_size is not None:
        from trainer.dryplan import dry_plan
        from trainer.planning import machines_of

        machines = machines_of(world_size, hosts, device, memory)
        typer.echo(dry_plan(loaded.config, machines, 1.0 if scale is None else scale))
        return
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
        typer.echo(f"interrupted; the same command goes on, in {path}", err=True)
        raise
    if summary:
        typer.echo(summary_text(summary))
