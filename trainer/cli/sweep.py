"""`embtables sweep`: a grid of runs on several seeds, and one table of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.arguments import Overrides, Recipe


def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", help="An axis, such as table=full,hash,qr or ratio=0.5,0.1; may be repeated."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell: seeds 0, 1, ...")] = 1,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            "--tune",
            help="Values such as rows.lr=1e-3,3e-3 that every cell tries on its first seed; the best on "
            "validation is taken for all of them. May be repeated.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each run.  [cores / jobs]")] = None,
    sweep_dir: Annotated[
        Path | None, typer.Option("--sweep-dir", help="Default: sweeps/<recipe>-<hash>.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
) -> None:
    """Run every cell of a grid on several seeds, and compare them in a table.

    Only what is missing is run: the same command goes on after an interruption, and axes, values and
    seeds may be added. A run that fails stays in the table with its reason.

    Examples:
        embtables sweep synthetic/autoint --over table=full,hash,qr --over ratio=0.2,0.05 --seeds 3
        embtables sweep frappe_x1/deepfm data.root=DIR --over table=hash,dnis(form=element) --jobs 2
        embtables sweep synthetic/autoint --over table=hash,qr ratio=0.1 --tune rows.lr=1e-3,3e-3
    """
    from trainer.grid import Axis, Grid
    from trainer.sweep import default_folder
    from trainer.sweep import sweep as run

    grid = Grid(
        recipe,
        tuple(overrides or ()),
        tuple(map(Axis.parse, over or ())),
        tuple(map(Axis.parse, tune or ())),
        seeds,
    )
    folder = sweep_dir or default_folder(grid)

    from trainer.records import FILE
    from trainer.signals import Interrupted
    from trainer.summary import sweep_text

    typer.echo(f"sweep directory: {folder}", err=True)
    try:
        records = run(grid, folder, jobs, threads, retry)
    except Interrupted:
        typer.echo(f"interrupted; {folder} is kept. The same command goes on.", err=True)
        raise
    typer.echo(sweep_text(records))
    typer.echo(f"records: {folder / FILE}")
