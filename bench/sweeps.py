"""Every table at every size: the sweeps that the report and the pages of the methods are made of.

    python -m bench.sweeps movielens DIR [--jobs 2] [--tables dnis "dnis(form=element)"] [--ratios 0.1]
    python -m bench.sweeps frappe DIR
    python -m bench.sweeps synthetic

DCN-V2 on MovieLens-1M, DeepFM and AutoInt+ on Frappe_x1, AutoInt on two million synthetic rows, at 50 to
1 % of the bytes of the full table. All train with the settings of their recipe in every stage; the epoch
and whatever a search decides are chosen on validation. A size that a method cannot reach stays in the
table as its reason. What ``results/sweep_<data>.json`` has is not run again: a command adds to it.
On Frappe the networks are smaller than those of the BARS board, which has heads of 400 x 400 x 400: the
39 runs that both files have took 74 s each in float32 on one core without AVX-512, and 146 s in bfloat16
on one with it (sweep_frappe.json, frappe_large_head.json), and the full table is as good (DeepFM .9848 ±
.0003, published .9842; AutoInt+ .9844 ± .0003, published .9848).
AutoInt on the synthetic rows has one interacting layer of 16 (.8105 with the rows of `data.scale=0.001`;
two layers of 32 have .8101) and reads the rows once, in each stage: with three passes the full table has
.8071, .8069 and .8072 (synthetic_passes.json), with one .8069 ± .0001.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bench.common import RESULTS
from trainer.grid import Axis, Grid
from trainer.records import FILE
from trainer.report import write_report
from trainer.summary import sweep_text
from trainer.sweep import sweep

DATA = {
    "movielens": ("movielens_1m/dcnv2",),
    "frappe": ("frappe_x1/deepfm", "model.hidden=[100,100]"),
    "frappe_plus": (
        *("frappe_x1/autoint_plus", "model.hidden=[100,100]"),
        *("model.layers=1", "model.heads=2", "model.attention_dim=16"),
    ),
    "synthetic": (
        *("synthetic/autoint", "data.rows=2000000", "data.scale=0.0015"),
        *("model.layers=1", "model.attention_dim=16", "train.epochs=1"),
    ),
}
TABLES = (
    *("full", "frequency_cut", "hash", "double_hash", "qr", "multiplex", "graphhash"),
    *("double_graphhash", "frequency", "double_frequency", "mde", "lowrank", "lowrank(after=true)"),
    *("autodim", "magnitude", "pep", "dnis", "dnis(form=element)", "optembed"),
    *("full+fp16", "full+int8", "dnis+fp16", "dnis+int8", "multiplex+dnis+int8"),
)
RATIOS = (0.5, 0.2, 0.1, 0.05, 0.01)


def run(options: argparse.Namespace) -> None:
    """Run what is missing, and keep the records of everything."""
    recipe, *given = DATA[options.data]
    if options.root is not None:
        given.append(f"data.root={options.root.resolve()}")
    folder, kept = options.runs / "sweeps" / options.data, RESULTS / f"sweep_{options.data}.json"
    if kept.exists() and not (folder / FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, folder / FILE)
    for tables, ratios in (("full",), (1.0,)), (options.tables, options.ratios):
        axes = Axis("table", tuple(tables)), Axis("ratio", tuple(map(str, ratios)))
        grid = Grid(recipe, tuple(given), axes, (), options.seeds)
        records = sweep(grid, folder, options.jobs, options.threads)
    print(sweep_text(records))
    # The records of a report have more: what each field brings, and errors over test rows.
    write_report([folder], folder.with_name(f"{folder.name}-report"), fields=True)
    shutil.copy(folder.with_name(f"{folder.name}-report") / "records" / f"{folder.name}.json", kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("root", type=Path, nargs="?", help="folder of the raw data")
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="of each run; default: cores / jobs")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="run directories")
    asked = parser.parse_args()
    if asked.root is None and asked.data != "synthetic":
        parser.error(f"{asked.data} needs the folder of the raw data")
    run(asked)
