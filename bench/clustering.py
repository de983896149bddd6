"""What does it cost to cluster a large graph of pairs for GraphHash?

    python -m bench.clustering [--users 1000000 --items 500000 --edges 18000000] [--ratio 0.05]

Planted communities of power-law activity, six pairs in ten inside their community. Both sides are cut
to a share of their ids. Seconds and peak memory of one process, building the graph included.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from bench.common import known_cells, write_result
from embtables.clustering import Clusters, graph

IDS_A_COMMUNITY = 50


def planted(users: int, items: int, edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Return users [m] and items [m] of pairs."""
    rng = np.random.default_rng(0)
    communities = users // IDS_A_COMMUNITY
    community = rng.integers(0, communities, users)
    left = (rng.random(edges) ** 2 * users).astype(np.int64)
    size = max(1, items // communities)
    own = community[left] * size + (rng.random(edges) ** 2 * size).astype(np.int64)
    anywhere = (rng.random(edges) ** 3 * items).astype(np.int64)
    return left, np.where(rng.random(edges) < 0.6, own, anywhere) % items


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--edges", type=int, default=18_000_000)
    parser.add_argument("--ratio", type=float, default=0.05)
    options = parser.parse_args()
    size = {key: getattr(options, key) for key in ("users", "items", "edges", "ratio")}
    left, right = planted(options.users, options.items, options.edges)
    begin = time.perf_counter()
    clusters = Clusters(graph(left, right, (options.users, options.items)))
    built = time.perf_counter() - begin
    counts = [
        (wanted := int(options.ratio * ids), int(clusters.cut(side, wanted).max()) + 1)
        for side, ids in enumerate((options.users, options.items))
    ]
    cell = {
        **size,
        "seconds": round(time.perf_counter() - begin, 1),
        "seconds_graph": round(built, 1),
        "louvain_runs": clusters.runs,
        "wanted_and_found": counts,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(cell)
    others = [one for one in known_cells("clustering") if {k: one[k] for k in size} != size]
    write_result("clustering", {"cells": [*others, cell]})
