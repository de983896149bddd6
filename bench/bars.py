"""Does the library behind the BARS boards reach its number for AutoInt on Frappe_x1 on these files?

    make bench-setup                                                  (once: the library's environment)
    python -m bench.bars DIR [--seeds 3] [--threads 1]

FuxiCTR's layers, loader, training loop and early stopping, the settings of the board (one tuned seed,
AUC .9831), as many trained parameters as the board prints. Finished seeds are kept under --runs.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench.common import arguments, over_seeds, spread_text, write_result
from bench.training import BARS_AUTOINT, FRAPPE, Cell, run_one

CELL = Cell(
    "frappe/autoint",
    FRAPPE,
    {**BARS_AUTOINT, "scale": False},
    epochs=100,
    l2=0.05,
    choose=True,
)
PUBLISHED = {"auc": 0.983085, "logloss": 0.163684}


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the answer of a seed, trained now or before."""
    file = options.work / f"seed{seed}.json"
    if not file.exists():
        answer = run_one(CELL, options, seed, "fuxictr")
        if "failure" in answer:
            raise SystemExit(f"seed {seed}: {answer['failure']}")
        file.write_text(json.dumps(answer))
    return json.loads(file.read_text())


def main() -> None:
    """Train the seeds, print their scores and write the result."""
    parser = arguments(__doc__)
    given = vars(parser.parse_args())
    work = (given["runs"] / "bars").resolve()
    work.mkdir(parents=True, exist_ok=True)
    options = argparse.Namespace(
        frappe=given["root"], lr=1e-3, rows=None, threads=given["threads"] or 1, work=work
    )
    found = [one_seed(options, seed) for seed in range(given["seeds"])]
    test = {name: over_seeds([one[name] for one in found]) for name in ("auc", "logloss")}
    for name, values in test.items():
        print(f"test {name:8} {spread_text(values)}   published {PUBLISHED[name]}")
    line = {
        "name": "autoint, trained by FuxiCTR",
        "published": PUBLISHED,
        "test": test,
        "epochs": [len(one["seconds"]) for one in found],
        "parameters": found[0]["parameters"],
        "versions": found[0]["versions"],
    }
    write_result("bars", {"cells": [line]})


if __name__ == "__main__":
    main()
