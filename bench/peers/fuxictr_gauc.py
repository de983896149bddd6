# pyright: reportMissingImports=false
"""Runs the GAUC of FuxiCTR for `bench.metrics`.

    PYTHON bench/peers/fuxictr_gauc.py JOB.json

The job, one JSON object: `arrays`, a .npz file of label [N], score [N] and group [N], and `threads`,
processor cores to use. The answer, one JSON object, is the last line of standard output: `seconds`,
`value` and `versions`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fuxictr.metrics import evaluate_metrics
from job import answer


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    arrays = np.load(job["arrays"])
    label, score, group = arrays["label"], arrays["score"], arrays["group"]
    begun = time.perf_counter()
    found = evaluate_metrics(label, score, ["gAUC"], group)
    return {"seconds": time.perf_counter() - begun, "value": float(found["gAUC"])}


if __name__ == "__main__":
    answer(run, ("fuxictr", "scikit-learn", "polars"))
