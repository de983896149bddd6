"""Do the models reach the public BARS numbers on Frappe_x1 with full tables?

    python -m bench.frappe DIR [--jobs 2] [--models autoint dlrm]

Test AUC of each model against the value printed on the BARS board (one tuned seed). Lines of models that
are not asked for stay as they are.
"""

from __future__ import annotations

from bench.common import Cell, arguments, run_cells

FLAT = "autoint flat heads"
"""The network behind the published number: its heads are cut without a transposition."""

BARS = {
    "deepfm": 0.9842,
    "dcnv2": 0.9845,
    "dlrm": 0.9840,
    "autoint": 0.9831,
    "autoint float32": 0.9831,
    FLAT: 0.9831,
    "autoint_plus": 0.9848,
}
OVERRIDES = {
    # Attention over ten fields of 128 numbers takes a CPU hours in float32.
    "autoint": ("train.precision=bf16",),
    "autoint_plus": ("train.precision=bf16",),
    FLAT: ("model.head_split=flat",),
}

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=BARS, default=list(BARS))
    options = parser.parse_args()
    cells = [
        Cell(
            model,
            f"frappe_x1/{model.split()[0]}",
            OVERRIDES.get(model, ()),
            published={"auc": auc},
        )
        for model, auc in BARS.items()
    ]
    run_cells("frappe", cells, options, chosen=options.models)
