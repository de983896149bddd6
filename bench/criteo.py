"""Does every compressor train on Criteo-style rows, at one tenth of the bytes, without NaN?

    python -m bench.criteo PATH --data kaggle     python -m bench.criteo PATH --data tb

A smoke test on real rows, not a ranking: pieces of Criteo this small have a standard error of about
.013 in AUC. AutoInt and DLRM, and every method of the three axes.
"""

from __future__ import annotations

from bench.common import Cell, arguments, run_cells

TABLES = (
    "full",
    "hash",
    "double_hash",
    "double_hash(combine=concat)",
    "qr",
    "qr(combine=sum)",
    "qr(combine=concat)",
    "multiplex",
    "multiplex(lookups=2, subtables=2)",
    "mde",
    "hash+mde",
    "hash+fp16",
    "hash+int8",
    "multiplex+int8(train=true)",
    "qr+mde+fp16(train=true)",
)
DATA = {
    "kaggle": ("criteo_kaggle/autoint", "criteo_kaggle/dlrm"),
    "tb": ("criteo_kaggle/autoint", "criteo_tb/dlrm"),
}
# Small pieces of the data: all values kept, random 8:1:1, small models and batches, one epoch.
SMALL = (
    "data.vocabulary=closed",
    "data.min_count=1",
    "data.split.kind=random",
    "train.batch_size=512",
    "train.epochs=1",
)
SMALL_MODEL = {
    "autoint": ("model.layers=2", "model.attention_dim=32"),
    "dlrm": ("model.bottom=[64]", "model.top=[64]"),
}

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=DATA, required=True, help="the layout of PATH")
    options = parser.parse_args()
    cells = []
    for recipe in DATA[options.data]:
        small = (*SMALL, *SMALL_MODEL[recipe.rpartition("/")[2]])
        uncompressed = (*small, "table=full", "ratio=null", "budget=null")
        cells.append(Cell(f"{recipe} uncompressed", recipe, uncompressed))
        for table in TABLES:
            overrides = (*small, f"table={table}", "ratio=0.1", "budget=null")
            cells.append(Cell(f"{recipe} {table}", recipe, overrides))
    run_cells(f"criteo_{options.data}", cells, options)
