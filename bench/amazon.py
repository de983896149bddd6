"""Does DIN's attention beat the mean of the history, in GAUC, with both kinds of negatives?

python -m bench.amazon DIR [--jobs 2]
"""

from __future__ import annotations

from bench.common import Cell, arguments, run_cells

if __name__ == "__main__":
    cells = [
        Cell(
            f"{history} history, {negatives} negatives",
            "amazon/din",
            (f"model.history={history}", f"data.negatives={negatives}"),
        )
        for negatives in ("uniform", "frequency")
        for history in ("attention", "mean")
    ]
    run_cells("amazon", cells, arguments(__doc__).parse_args())
