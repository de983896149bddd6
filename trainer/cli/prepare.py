"""`embtables prepare`: raw files to a columnar store."""

from __future__ import annotations

import typer

from trainer.cli.arguments import Overrides, Recipe


def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prepare the data set of a recipe, or of a source with its default options.

    Doing it again with the same files and options does nothing. `train` does it by itself.

    Examples:
        embtables prepare synthetic/autoint
        embtables prepare criteo data.root=/data/criteo data.min_count=10
    """
    from trainer.config import load_data_config

    config = load_data_config(recipe, overrides or ())

    from trainer.datasets import prepared

    typer.echo(prepared(config))
