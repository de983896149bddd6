"""Do the models reach the public BARS numbers on Frappe_x1 with full tables?

    python -m bench.frappe DIR [--jobs 2]

Test AUC of each model against the value printed on the BARS board (one tuned seed).
"""

from __future__ import annotations

from bench.common import Cell, arguments, run_cells

BARS = {
    "deepfm": 0.9842,
    "dcnv2": 0.9845,
    "dlrm": 0.9840,
    "autoint": 0.9831,
    "autoint_plus": 0.9848,
}
# Attention over ten fields of 128 numbers takes a CPU hours in float32.
BFLOAT16 = ("autoint", "autoint_plus")

if __name__ == "__main__":
    cells = [
        Cell(
            model,
            f"frappe_x1/{model}",
            ("train.precision=bf16",) if model in BFLOAT16 else (),
            published={"auc": auc},
        )
        for model, auc in BARS.items()
    ]
    run_cells("frappe", cells, arguments(__doc__).parse_args())
