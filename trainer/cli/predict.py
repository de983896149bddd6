"""`embtables predict`: score the rows of a file with an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    packed: Annotated[Path, typer.Argument(help="Directory that embtables export wrote.")],
    rows: Annotated[
        Path, typer.Argument(metavar="INPUT", help="TSV, CSV (both gzip too) or Parquet file.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".csv, .tsv or .parquet.  [standard output, CSV]"),
    ] = None,
) -> None:
    """Write the probability of a click for every row of a file, in order.

    The columns are those of the training files, found by name where there is a header; the label is not
    needed. Values that training never saw read the out-of-vocabulary row.

    Examples:
        embtables predict packed/frappe_x1-deepfm-1a2b3c4d new.csv
        embtables predict packed/frappe_x1-deepfm-1a2b3c4d new.csv.gz -o scores.parquet
    """
    from trainer.scores import write_scores

    count = write_scores(packed, rows, output)
    typer.echo(f"{count:,} rows", err=True)
