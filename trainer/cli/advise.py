"""`embtables advise`: which tables to try first under a budget, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.arguments import Overrides, Recipe


def advise(
    recipe: Recipe,
    overrides: Overrides = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Bytes of all tables when packed, such as 10MB.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="The same as a share of the uncompressed bytes.")
    ] = None,
    training_memory: Annotated[
        str | None,
        typer.Option(
            "--training-memory", help="That tables may take while training, with optimizer state."
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            "--latency", help="That look-ups may take, times those of a full table, such as 1.2."
        ),
    ] = None,
    sweep: Annotated[
        list[Path] | None,
        typer.Option(
            "--sweep",
            help="A sweep of these data and this model; may be repeated. Those of the recipe below "
            "./sweeps are found by themselves.",
        ),
    ] = None,
) -> None:
    """Say which tables to try first, from the data, the engine's plans and what has been measured.

    Nothing is trained. Every reason names its source: these data, a file of results, or a paper.

    Examples:
        embtables advise synthetic/autoint --ratio 0.1
        embtables advise movielens_1m/dcnv2 data.root=DIR --budget 160kB --training-memory 1MB
        embtables advise criteo_kaggle/dlrm data.root=DIR --ratio 0.05 --latency 1.0 --sweep sweeps/mine
    """
    from embtables.budget import parse_bytes
    from trainer.advice import Limits
    from trainer.advice import advise as find
    from trainer.advice.text import advice_text

    memory = None if training_memory is None else parse_bytes(training_memory)
    found = find(
        recipe,
        overrides or (),
        budget=budget,
        ratio=ratio,
        limits=Limits(memory, latency),
        sweeps=sweep or (),
    )
    typer.echo(advice_text(found))
