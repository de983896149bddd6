"""Are searched tables worth their search? Test AUC against bytes, beside hashing and narrow tables.

    python -m bench.search movielens DIR [--jobs 2] [--methods dnis narrow] [--ratios 0.1 0.05]
    python -m bench.search frappe DIR
    python -m bench.search synthetic

DCN-V2 on MovieLens-1M, DeepFM on Frappe_x1, AutoInt on two million synthetic rows, at 50 .. 1 % of the
bytes of the full table. All train with the settings of their recipe in every stage; the epoch and
whatever a search decides are chosen on validation. Cost is the number of rows trained on in all
stages, validation rows of a search included, over that of the full table's training; the seconds of
every stage, and of the search at its end, stand in the result (runs share the machine). A size that a
method cannot reach stays in the table as its reason.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.common import Cell, arguments, describe, run_seeds, spread_text, write_result

DATA = {
    "movielens": ("movielens_1m/dcnv2",),
    "frappe": ("frappe_x1/deepfm",),
    "synthetic": ("synthetic/autoint", "data.rows=2000000"),
}
METHODS = {
    "narrow": "full",
    "frequency_cut": "frequency_cut",
    "hash": "hash",
    "multiplex": "multiplex",
    "graphhash": "graphhash",
    "mde": "mde",
    "lowrank": "lowrank",
    "lowrank after training": "lowrank(after=true)",
    "autodim": "autodim",
    "magnitude": "magnitude",
    "pep": "pep",
    "dnis": "dnis",
    "dnis element": "dnis(form=element)",
    "optembed": "optembed",
    "int8": "full+int8",
    "dnis+int8": "dnis+int8",
    "multiplex+dnis+int8": "multiplex+dnis+int8",
}
MOST_SEEDS = 3
RATIOS = (0.5, 0.2, 0.1, 0.05, 0.01)


def cells(data: str, methods: Iterable[str], ratios: Iterable[float]) -> list[Cell]:
    recipe, *given = DATA[data]
    sized = [
        Cell(f"{m} {r:g}", recipe, (*given, f"table={METHODS[m]}", f"ratio={r}"))
        for m in methods
        for r in ratios
    ]
    return [Cell("full", recipe, tuple(given)), *sized]


def run(options: argparse.Namespace) -> dict[str, Any]:
    question, seeds = f"search_{options.data}", range(options.seeds)
    wanted = cells(options.data, options.methods, options.ratios)
    outcomes = run_seeds(question, wanted, seeds, options)
    failed = {
        cell.name: [one for one in found if one.get("failure", "not run") != "not run"]
        for cell, found in zip(wanted, outcomes, strict=True)
    }
    # The result has whatever is finished, of this command and of earlier ones.
    every = cells(options.data, METHODS, RATIOS)
    outcomes = run_seeds(
        question, every, range(MOST_SEEDS), argparse.Namespace(**vars(options) | {"finished": True})
    )
    outcomes = [
        [one for one in found if "failure" not in one] + failed.get(cell.name, [])
        for cell, found in zip(every, outcomes, strict=True)
    ]
    plain = _cost(outcomes[0])
    lines = []
    for cell, found in zip(every, outcomes, strict=True):
        if not found:
            continue
        line = describe(cell, found)
        if "test" in line and plain is not None:
            line["cost"] = (_cost(found) or 0.0) / plain
            line["stages"] = [one["stages"] for one in found if "failure" not in one]
        lines.append(line)
    return write_result(question, {"cells": lines})


def _cost(outcomes: list[dict[str, Any]]) -> float | None:
    """Return the mean rows of all stages, or None where every run failed."""
    runs = [one["stages"] for one in outcomes if "failure" not in one]
    return statistics.fmean(sum(one["rows"] for one in run) for run in runs) if runs else None


def show(result: dict[str, Any]) -> None:
    print(f"{'table':32}{'AUC':>18}{'logloss':>18}{'bytes':>12}{'ratio':>8}{'cost':>7}")
    for line in result["cells"]:
        if "test" not in line:
            print(f"{line['name']:32} failed: {line['failures'][0][:90]}")
            continue
        size = line["bytes"]
        print(
            f"{line['name']:32}{spread_text(line['test']['auc']):>18}"
            f"{spread_text(line['test']['logloss']):>18}{size['file']:12,}"
            f"{size['file'] / size['uncompressed']:8.4f}{line.get('cost', float('nan')):7.2f}"
        )


if __name__ == "__main__":
    parser = arguments(__doc__, needs_data=False)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("root", type=Path, nargs="?", help="folder of the raw data")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    given = parser.parse_args()
    if given.root is None:
        if given.data != "synthetic":
            parser.error(f"{given.data} needs the folder of the raw data")
        delattr(given, "root")
    show(run(given))
