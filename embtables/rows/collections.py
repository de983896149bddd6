"""TorchRec collections that hold the physical tables which ranks share out.

Each look-up of each feature is one key. Pooled look-ups are keys of one EmbeddingBagCollection; the
ids of the others stand in one bag a key, which an EmbeddingCollection does not add up: so keys may
have any numbers of ids, without padding.

Shape letters: K rows read for an id, S segments of a group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
import torchrec
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable

from embtables.rows.sharding import Places, padded
from embtables.rows.store import Read
from embtables.torchrec_types import KeyedJaggedTensor, KeyedTensor


def key_of(group: int, probe: int, segment: int) -> str:
    """Return the key of a look-up."""
    return f"{group}.{probe}.{segment}"


class Collections(nn.Module):
    """One collection of pooled tables, and one a width of the others.

    Args:
        places: which tables are where.
        reads: what each group reads.
        device: meta, where only a plan is wanted or shards will be allocated.

    Attributes:
        keys: physical table -> its keys.
    """

    def __init__(self, places: Places, reads: Sequence[Read], device: torch.device) -> None:
        super().__init__()
        self.places = places
        self.keys: dict[str, list[str]] = defaultdict(list)
        for group, read in enumerate(reads):
            for probe, names in enumerate(read.tables):
                for segment, name in enumerate(names):
                    self.keys[name].append(key_of(group, probe, segment))
        self.bags = (
            torchrec.EmbeddingBagCollection(
                [self._config(torchrec.EmbeddingBagConfig, name) for name in places.bags],
                device=device,
            )
            if places.bags
            else None
        )
        self.sequences = nn.ModuleDict(
            {
                str(dim): torchrec.EmbeddingCollection(
                    [self._config(torchrec.EmbeddingConfig, name) for name in names], device=device
                )
                for dim, names in places.sequences.items()
            }
        )

    def _config(self, kind: Any, name: str) -> Any:
        table = self.places.tables[name]
        return kind(
            name=name,
            num_embeddings=table.rows,
            embedding_dim=padded(table.dim),
            feature_names=self.keys[name],
        )

    def forward(
        self, bags: KeyedJaggedTensor | None, sequences: dict[str, KeyedJaggedTensor]
    ) -> dict[str, Tensor]:
        """Return key -> vectors: of each bag, or of each id."""
        # All of them are asked before one is waited for: what they send overlaps.
        pooled = None if self.bags is None else self.bags(bags)
        ragged = [collection(sequences[dim]) for dim, collection in self.sequences.items()]
        found = {} if pooled is None else cast(KeyedTensor, _arrived(pooled)).to_dict()
        for vectors in ragged:
            found |= {key: one.values() for key, one in _arrived(vectors).items()}
        return found


def _arrived(found: Any) -> Any:
    """Wait for what a sharded collection returns; a plain one returns it at once."""
    return found.wait() if isinstance(found, LazyAwaitable) else found
