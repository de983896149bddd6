"""Clusters of ids that occur with the same ids of another table: bipartite Louvain.

Louvain (Blondel et al., J. Stat. Mech. 2008) maximises Barber's bipartite modularity

    Q = 1/m * sum over (u, i) of (B_ui - resolution * d_u * d_i / m) * [cluster(u) = cluster(i)]

over the graph whose edges are pairs of training rows (Wu et al., GraphHash, WWW 2025). A higher
resolution gives more clusters, so that the resolution is found from the number wanted.

Shape letters: n ids of the left table, o ids of the right one, m pairs, c clusters.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
from scipy.sparse import csr_matrix

NEAR = 0.98
"""Share of the clusters wanted that is near enough to stop looking."""

MERGED = 1.15
"""Clusters found, as a multiple of those wanted, of which the smallest are dissolved."""

_TRIES = 12
_CLUSTERS = 30  # clusters that a resolution of 1 gives on graphs of ratings and check-ins


def graph(
    left: np.ndarray, right: np.ndarray, shape: tuple[int, int], weighted: bool = True
) -> csr_matrix:
    """Return the bipartite graph [n, o] of pairs [m]; a pair met twice weighs two unless unweighted."""
    found = csr_matrix((np.ones(len(left), np.float32), (left, right)), shape=shape)
    if not weighted:
        found.data[:] = 1
    return found


class Clusters:
    """The clusters of one bipartite graph, at any resolution; each is computed once.

    Deterministic: nodes are visited in the order of their ids.

    Args:
        pairs: [n, o] weights of the edges.
    """

    def __init__(self, pairs: csr_matrix) -> None:
        self.shape = cast(tuple[int, int], pairs.shape)
        rights = np.bincount(pairs.indices, minlength=self.shape[1])
        self.degrees = np.diff(pairs.indptr), rights
        self._seen = [np.flatnonzero(degrees) for degrees in self.degrees]
        self._core = pairs[self._seen[0]][:, self._seen[1]]
        self._found: dict[float, list[np.ndarray]] = {}

    def cut(self, side: int, wanted: int) -> np.ndarray:
        """Cut the ids of a side into `wanted` clusters at most, and at least `NEAR` of it.

        Args:
            side: 0 for the left table, 1 for the right one.
            wanted: clusters.

        Returns:
            [n] or [o], cluster of each id in 0 .. c - 1, larger ones first; -1 for an id without edge.
        """
        seen = self._seen[side]
        labels = np.full(self.shape[side], -1, np.int64)
        if len(seen) <= wanted:
            order = np.argsort(-self.degrees[side][seen], kind="stable")
            labels[seen[order]] = np.arange(len(seen))
        else:
            labels[seen] = self._search(side, wanted)
        return labels

    @property
    def runs(self) -> int:
        """How many times Louvain has run."""
        return len(self._found)

    def at(self, log_resolution: float) -> list[np.ndarray]:
        """Return the clusters of the ids of both sides that have an edge, by falling size."""
        from sknetwork.clustering import Louvain

        if log_resolution not in self._found:
            louvain: Any = Louvain(resolution=math.exp(log_resolution))
            louvain.fit(self._core, force_bipartite=True)
            self._found[log_resolution] = [
                _by_size(louvain.labels_row_),
                _by_size(louvain.labels_col_),
            ]
        return self._found[log_resolution]

    def _search(self, side: int, wanted: int) -> np.ndarray:
        """Return the clusters of a resolution that gives nearly as many, or others merged or split.

        The number of clusters jumps where ids are alike, as the few of a small table often are.
        """
        if not self._found:
            self.at(math.log(max(wanted / _CLUSTERS, 1e-3)))
        for _ in range(_TRIES):
            counts = {key: int(found[side].max()) + 1 for key, found in self._found.items()}
            near = [k for k, c in counts.items() if NEAR * wanted <= c <= MERGED * wanted]
            if near:
                break
            self.at(_next(sorted(counts.items()), math.log(wanted * (1 + MERGED) / 2)))
        else:
            counts = {key: int(found[side].max()) + 1 for key, found in self._found.items()}
            near = list(counts)
        best = min(near, key=lambda key: abs(math.log(counts[key] / wanted)))
        labels = self._found[best][side]
        if counts[best] < NEAR * wanted:
            finer = min((k for k, c in counts.items() if c >= wanted), default=None)
            parts = np.arange(len(labels)) if finer is None else self._found[finer][side]
            reads = np.asarray(self._core.sum(axis=1 - side)).ravel()
            return _split(labels, parts, reads, wanted)
        return self._merged(labels, side, wanted)

    def _merged(self, labels: np.ndarray, side: int, wanted: int) -> np.ndarray:
        """Dissolve the smallest clusters until as many are left as wanted.

        Their ids go where those are that share their neighbours, or anywhere if there are none.
        """
        if labels.max() < wanted:
            return labels
        pairs = self._core if side == 0 else self._core.T.tocsr()
        left = assign(np.where(labels < wanted, labels, -1), pairs, pairs)
        return _by_size(np.where(left < 0, labels % wanted, left))


def _next(tried: list[tuple[float, int]], aim: float) -> float:
    """Return the next log resolution to try.

    The number of clusters is nearly a power of the resolution: the line through the two nearest
    tries says where, at least a tenth of the way from both, or beyond the last.

    Args:
        tried: (log resolution, clusters), by rising resolution.
        aim: log of the clusters aimed at.
    """
    points = [(at, math.log(count)) for at, count in tried]
    for (low, fewer), (high, more) in pairwise(points):
        if fewer < aim <= more:
            return low + min(max((aim - fewer) / (more - fewer), 0.1), 0.9) * (high - low)
    at, count = points[0] if aim <= points[0][1] else points[-1]
    step = aim - count
    return at + math.copysign(max(1.2 * abs(step), 0.02), step)


def _split(labels: np.ndarray, parts: np.ndarray, reads: np.ndarray, wanted: int) -> np.ndarray:
    """Cut clusters along finer ones until there are as many as wanted.

    Of the parts of a cluster the one that is read most stays; of all others those that are read most
    become clusters.

    Args:
        labels: [n] c clusters.
        parts: [n] finer clusters, at least `wanted`.
        reads: [n] times that an id occurs.
        wanted: clusters, more than c.
    """
    both, part = np.unique(np.stack([labels, parts]), axis=1, return_inverse=True)
    cluster, read = both[0].copy(), np.bincount(part, reads)
    order = np.lexsort((-read, cluster))
    others = order[1:][np.diff(cluster[order]) == 0]
    own = others[np.argsort(-read[others], kind="stable")][: wanted - int(labels.max()) - 1]
    cluster[own] = np.arange(wanted - len(own), wanted)
    return _by_size(cluster[part])


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Number clusters anew from 0, by falling size."""
    _, found, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")[found]


def assign(labels: np.ndarray, known: csr_matrix, new: csr_matrix) -> np.ndarray:
    """Give ids without a cluster that of the ids which share their neighbours.

    A neighbour votes for the clusters of the ids it occurs with, each vote divided by its degree.

    Args:
        labels: [n] clusters, -1 for none.
        known: [n, o] graph that was clustered.
        new: [n, o] graph of further pairs.

    Returns:
        [n] labels; still -1 for an id whose neighbours are unknown too.
    """
    asked = np.flatnonzero((labels < 0) & (np.diff(new.indptr) > 0))
    clustered = np.flatnonzero(labels >= 0)
    found = labels.copy()
    if not len(asked) or not len(clustered):
        return found
    ones = np.ones(len(clustered), np.float32)
    member = csr_matrix(
        (ones, (clustered, labels[clustered])), shape=(len(labels), int(labels.max()) + 1)
    )
    degrees = np.maximum(np.asarray(known.sum(axis=0)).ravel(), 1)
    votes = (new[asked].multiply(1 / degrees).tocsr() @ (known.T @ member)).tocsr()
    voted = np.flatnonzero(np.diff(votes.indptr))
    found[asked[voted]] = np.asarray(votes[voted].argmax(axis=1)).ravel()
    return found
