"""GraphHash: ids that occur with the same ids of another table share a row.

    row(x) = cluster(x)      clusters of the bipartite graph of training pairs, m_f = ceil(share * n_f)

Paper: Wu et al., GraphHash: Graph Clustering Enables Parameter Efficiency in Recommender Systems,
WWW 2025. Each table is clustered against another one by Louvain at the resolution that gives its
rows (`embtables.clustering`); users and items share no rows. An id without training pairs reads a
hashed row among those no cluster took, or among all. Bytes: m_f * W * bits and a map of one, two,
three or four bytes an id. When to use: closed vocabularies of ids that interact, small budgets.
"""

from __future__ import annotations

from typing import Literal

from embtables.compressor import sharings
from embtables.sharing._graph import GraphConfig, GraphSharing


@sharings.register("graphhash")
class GraphHash(GraphSharing):
    """The row of an id is its cluster."""

    class Config(GraphConfig):
        """Options of GraphHash."""

        kind: Literal["graphhash"] = "graphhash"
