"""How long do exact AUC and GAUC of millions of predictions take, beside scikit-learn and FuxiCTR?

    make bench-setup                                                       (once: FuxiCTR's environment)
    python -m bench.metrics [--rows 4000000] [--groups 200000] [--rounds 3]

The same float32 predictions for all, run by turns in one go: AUC against scikit-learn's
`roc_auc_score`, GAUC against FuxiCTR's `evaluate_metrics`, in a process of its own that is timed
without its start. The values must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from bench.common import write_result
from trainer import metrics

FUXICTR = Path(".venv-peers/fuxictr/bin/python")
RUNNER = Path(__file__).parent / "peers" / "fuxictr_gauc.py"
AGREE = 1e-9
"""Most that two values may differ: sums of so many terms are rounded in another order."""


def predictions(rows: int, groups: int) -> dict[str, np.ndarray]:
    """Return label [N], score [N] and group [N] with ties and groups of very different sizes."""
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.5, rows).astype(np.float32)
    score = 1 / (1 + np.exp(-logit))
    group = (rng.random(rows) ** 1.5 * groups).astype(np.int64)
    return {"label": (rng.random(rows) < score).astype(np.float32), "score": score, "group": group}


def timed(function: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds that a function took, and its value."""
    begun = time.perf_counter()
    value = function()
    return {"seconds": time.perf_counter() - begun, "value": float(value)}


def fuxictr(arrays: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """Return FuxiCTR's GAUC, its seconds and its versions, or why there is none."""
    if not FUXICTR.exists():
        return {"failure": f"no {FUXICTR}: run make bench-setup"}
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    job = {"arrays": str(folder / "arrays.npz"), "threads": os.cpu_count()}
    (folder / "job.json").write_text(json.dumps(job))
    command = [str(FUXICTR), str(RUNNER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failure": (done.stderr.strip() or "no message").splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(rows: int, groups: int, rounds: int, peer_rounds: int) -> dict[str, list[Any]]:
    """Return what each contender found, round by round, ours right before each peer."""
    arrays = predictions(rows, groups)
    label, score, group = arrays["label"], arrays["score"], arrays["group"]
    found: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            by_name = {
                "auc embtables": timed(lambda: metrics.auc(label, score)),
                "auc scikit-learn": timed(lambda: roc_auc_score(label, score)),
                "gauc embtables": timed(lambda: metrics.gauc(label, score, group).value),
            }
            if turn < peer_rounds:
                by_name["gauc fuxictr"] = fuxictr(arrays, Path(folder))
            for name, one in by_name.items():
                found.setdefault(name, []).append(one)
                print(f"  {name}: {one}", flush=True)
    return found


def summarise(found: dict[str, list[Any]]) -> dict[str, Any]:
    """Return median seconds and value of each contender, and how many times as fast ours is."""
    lines: dict[str, Any] = {}
    for name, runs in found.items():
        done = [one for one in runs if "failure" not in one]
        if not done:
            lines[name] = {"failure": runs[0]["failure"]}
            continue
        seconds = [one["seconds"] for one in done]
        lines[name] = {**done[0], "seconds": statistics.median(seconds), "rounds": seconds}
        ours = lines[f"{name.split()[0]} embtables"]
        if lines[name] is not ours:
            lines[name]["times_as_fast"] = lines[name]["seconds"] / ours["seconds"]
            assert abs(lines[name]["value"] - ours["value"]) < AGREE, (name, lines)
    return lines


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--groups", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-rounds", type=int, default=1, help="of FuxiCTR, which takes minutes; 0: none"
    )
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    lines = summarise(measure(options.rows, options.groups, options.rounds, options.peer_rounds))
    print(f"{options.rows:,} predictions, {options.groups:,} groups")
    for name, line in lines.items():
        told = line.get("failure") or (
            f"{line['seconds']:9.3f} s   {line['value']:.12f}"
            + (f"   ours is {line['times_as_fast']:.1f} x" if "times_as_fast" in line else "")
        )
        print(f"{name:18} {told}")
    if not options.dry:
        sizes = {"rows": options.rows, "groups": options.groups}
        write_result("metrics", {**sizes, "contenders": lines})


if __name__ == "__main__":
    main()
