"""Scores of a file's rows: one column `score`, one row a row of the input."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np
import polars as pl

from trainer.predict import PackedModel

ENDINGS = (".csv", ".tsv", ".parquet")


def write_scores(packed: Path, rows: Path, output: Path | None) -> int:
    """Predict the rows of a file, in bounded memory; return their number.

    Args:
        packed: directory of an exported model.
        rows: TSV, CSV or Parquet.
        output: where to, in the format of its ending; it appears whole or not at all. None: CSV on
            standard output.

    Raises:
        ValueError: another ending, no folder for the output, no exported model, a folder as input, or
            a row that cannot be read (file and line).
    """
    if output is not None and output.suffix not in ENDINGS:
        raise ValueError(f"{output}: expected a name that ends in {', '.join(ENDINGS)}")
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first")
    if rows.is_dir():
        raise ValueError(f"{rows}: a folder; give one file of rows")
    scores = PackedModel.load(packed).predict_file(rows)
    if output is None:
        return _write_text(scores, sys.stdout)
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("w") as file:
            count = _write_text(scores, file)
        if output.suffix == ".parquet":
            _to_parquet(part)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return count


def _write_text(scores: Iterable[np.ndarray], file: TextIO) -> int:
    """Write a header and the shortest numbers that are read back as the same float64."""
    count, header = 0, "score\n"
    for some in scores:
        file.write(header)
        header = ""
        file.writelines(f"{score!r}\n" for score in some.tolist())
        count += len(some)
    file.write(header)
    return count


def _to_parquet(file: Path) -> None:
    """Turn a file of scores from text into Parquet, in bounded memory."""
    parquet = file.with_name(f"{file.name}.parquet")
    pl.scan_csv(file, schema={"score": pl.Float64}).sink_parquet(parquet)
    parquet.replace(file)
