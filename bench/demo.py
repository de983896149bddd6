"""Trains AutoInt on synthetic Criteo-style data with five tables; ends with a table and a plot.

    make demo

One full table, and four that are held to a tenth of its bytes. The best possible AUC of the data is
known, because its click probabilities are planted.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from data.store import Store
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.loop import train
from trainer.rundir import config_hash

RATIO = 0.1
SMALL = ("data.rows=150000", "train.batch_size=1024", "train.epochs=4")  # minutes on two cores
TABLES = {
    "full": (),
    "full, narrow": (f"ratio={RATIO}",),
    "hash": ("table=hash", f"ratio={RATIO}"),
    "qr": ("table=qr", f"ratio={RATIO}"),
    "multiplex": ("table=multiplex", f"ratio={RATIO}"),
}
mpl.rcParams["svg.fonttype"] = "none"


def main() -> None:
    """Run the five tables and show them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("overrides", nargs="*", help="key=value laid over synthetic/autoint")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    console = Console()
    runs = {}
    for name, overrides in TABLES.items():
        console.rule(name)
        config = _config(options.out, (*options.overrides, *overrides))
        folder = f"{name.replace(', ', '-')}-{config_hash(config.plain())}"
        runs[name] = train(config, options.out / "runs" / folder)
    store = open_store(_config(options.out, options.overrides))
    best = store.stats["bayes"]["test"]["auc"]
    console.print(_table(runs, best, store))
    for suffix in ("svg", "png"):
        file = options.out / f"auc_by_bytes.{suffix}"
        _plot(runs, best).savefig(file, dpi=150)
        console.print(f"plot: {file}")


def _config(out: Path, overrides: tuple[str, ...]) -> RunConfig:
    where = f"data.store={out / 'prepared'}"
    return load_config("synthetic/autoint", [where, *SMALL, *overrides]).config


def _table(runs: dict[str, dict[str, Any]], best: float, store: Store) -> Table:
    rows = store.schema.rows
    table = Table(
        title=f"AutoInt, {rows['train']:,} training rows; test AUC on {rows['test']:,} rows",
        caption=f"The best possible test AUC of this data is {best:.4f}. One seed, and the test "
        f"rows alone give each AUC a standard error of {_standard_error(best, store):.4f}.",
    )
    for column in ("table", "AUC", "logloss", "bytes", "of full", "rows/s"):
        table.add_column(column, justify="left" if column == "table" else "right")
    for name, run in runs.items():
        size = run["bytes"]
        table.add_row(
            name,
            f"{run['test']['auc']:.4f}",
            f"{run['test']['logloss']:.4f}",
            f"{size['file']:,}",
            f"{size['file'] / size['uncompressed']:.1%}",
            f"{run['rows_per_second']:,.0f}",
        )
    return table


def _standard_error(auc: float, store: Store) -> float:
    """Return the standard error of an AUC over the test rows (Hanley and McNeil, 1982)."""
    test = store.stats["splits"]["test"]
    positive = test["rows"] * test["label_mean"]
    negative = test["rows"] - positive
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    return (variance / (positive * negative)) ** 0.5


def _plot(runs: dict[str, dict[str, Any]], best: float) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(best, color="0.6", linestyle="--", linewidth=1)
    _label(axes, "best possible", (1, best), (-4, 6), "right", ("axes fraction", "data"))
    for name, run in runs.items():
        point = (run["bytes"]["file"] / 1e6, run["test"]["auc"])
        axes.scatter(*point, s=50, zorder=3)
        text = f"{name}  {point[1]:.4f}"
        if name == "full":
            _label(axes, text, point, (-9, 0), "right")
        else:
            _label(axes, text, point, (9, 0), "left")
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.12)
    axes.set_xlabel("bytes of the packed tables (MB)")
    axes.set_ylabel("test AUC")
    axes.set_title("AutoInt on synthetic Criteo-style data", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    offset: tuple[int, int],
    side: str,
    coordinates: Any = "data",
) -> None:
    axes.annotate(
        text,
        point,
        xycoords=coordinates,
        xytext=offset,
        textcoords="offset points",
        ha=side,
        va="center",
    )


if __name__ == "__main__":
    main()
