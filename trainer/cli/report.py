"""`embtables report`: one page of what runs and sweeps have found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_SWEEP...", help="Run or sweep directories, or results.json."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the report.")] = Path(
        "report"
    ),
    fields: Annotated[
        bool,
        typer.Option(
            "--fields",
            help="Measure what each field collides in and brings: some seconds to minutes a table.",
        ),
    ] = False,
) -> None:
    """Write a page of quality against bytes, with what is difference and what is noise.

    The page needs no network and no script. Beside it: its plots as PNG, results.csv and results.json
    for data frames, and records/ from which the report can be made again without the runs.

    Examples:
        embtables report runs/frappe_x1-deepfm-1a2b3c4d runs/frappe_x1-deepfm-5e6f7a8b
        embtables report sweeps/frappe_x1-deepfm -o report --fields
        embtables report report/records/frappe_x1-deepfm.json
    """
    try:
        from trainer.report import write_report
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError(
            "a report draws with matplotlib, which is not here: pip install matplotlib"
        ) from None

    typer.echo(write_report(paths, output, fields=fields))
