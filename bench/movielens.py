"""Does multiplexing beat per-feature hashing on MovieLens-1M, and by more at smaller budgets?

    python -m bench.movielens DIR [--jobs 2]

The experiment of Unified Embedding (arXiv 2305.12102), DCN-V2, held against a public reproduction of
five seeds. In both hashing methods only tables of at most 5 rows stay exact, as there.
"""

from __future__ import annotations

from bench.common import Cell, arguments, run_cells

PUBLISHED = {
    "full": {1.0: 0.8985},
    "hash": {1.0: 0.8684, 0.5: 0.8407, 0.1: 0.7712},
    "multiplex": {1.0: 0.8872, 0.5: 0.8759, 0.1: 0.8263},
}

if __name__ == "__main__":
    cells = [
        Cell(
            f"{method} {ratio:g}",
            "movielens_1m/dcnv2",
            () if method == "full" else (f"table={method}(exact_rows=5)", f"ratio={ratio}"),
            {"auc": auc},
        )
        for method, by_ratio in PUBLISHED.items()
        for ratio, auc in by_ratio.items()
    ]
    narrow = [
        Cell(f"narrow full {ratio:g}", "movielens_1m/dcnv2", (f"ratio={ratio}",))
        for ratio in (0.5, 0.1)
    ]
    run_cells("movielens", [*cells, *narrow], arguments(__doc__).parse_args())
