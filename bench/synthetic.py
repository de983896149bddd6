"""Does a full table reach the best AUC possible on two million synthetic rows?

    python -m bench.synthetic [--jobs 2]

The click probabilities are planted, so the Bayes-optimal AUC is known and stands in the result.
"""

from __future__ import annotations

import json

from bench.common import RESULTS, Cell, arguments, run_cells
from trainer.config import load_config
from trainer.datasets import open_store

DATA = ("data.rows=2000000", "data.scale=0.0015")
DCNV2 = (
    *DATA,
    "model.kind=dcnv2",
    "model.cross_layers=2",
    "model.hidden=[256,128]",
    "train.batch_size=4096",
    "train.epochs=2",
    "train.precision=bf16",
)
if __name__ == "__main__":
    options = arguments(__doc__, needs_data=False).parse_args()
    cells = [Cell("dcnv2 full", "synthetic/autoint", DCNV2)]
    result = run_cells("synthetic", cells, options)
    store = open_store(load_config("synthetic/autoint", DATA).config)
    result["bayes"] = store.stats["bayes"]
    (RESULTS / "synthetic.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"best possible test AUC: {result['bayes']['test']['auc']:.5f}")
