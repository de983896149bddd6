"""Groups: the features that one method serves at one width, handled together as tensors.

Shape letters: S segments (features) of the group, B rows of the batch, n ids of the group, K rows
read for an id, d width of physical rows, W stored width, D width granted to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from embtables.budget import Placed, Plan
from embtables.compressor import Segments, Sharing, Width, sharings, widths
from embtables.features import Feature, Vocabulary
from embtables.rows.store import Read
from embtables.torchrec_types import JaggedTensor, KeyedJaggedTensor

POOLINGS = ("sum", "mean", "none")


@dataclass
class Ids:
    """The ids of one group in one batch.

    Attributes:
        values: [n] int64, segment after segment.
        segments: how they are cut into S segments.
        lengths: [S, B] bag lengths, or None where every bag holds one id.
    """

    values: Tensor
    segments: Segments
    lengths: Tensor | None


class Group(nn.Module):
    """S features of one method and one stored width; all features of a table are in one group.

    Args:
        features: [S], sorted by pooling as `build_groups` does: sum, mean, none.
        placed: [S] what the budget decided for the table of each.
        vocabularies: [S].
    """

    limits: Tensor
    unknown: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        placed: Sequence[Placed],
        vocabularies: Sequence[Vocabulary],
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.pooled = tuple(feature for feature in features if feature.pooling != "none")
        self.dim = placed[0].granted
        tables = [one.table for one in placed]
        places = [one.places for one in placed]
        self.read = Read(
            tuple(tuple(t.name for t in column) for column in zip(*places, strict=True))
        )
        config = placed[0].config
        self.sharing: Sharing = sharings.get(config.sharing.kind)(config.sharing, tables, places)
        self.width: Width = widths.get(config.width.kind)(config.width, tables)
        self.closed = [not vocabulary.open for vocabulary in vocabularies]
        limits = [0 if v.open else v.rows for v in vocabularies]  # 0: any id is inside
        unknown = [-1 if v.oov is None else v.oov for v in vocabularies]
        self.register_buffer("limits", torch.tensor(limits), persistent=False)
        self.register_buffer("unknown", torch.tensor(unknown), persistent=False)

    def select(self, kjt: KeyedJaggedTensor, order: Tensor, keys: list[int], single: bool) -> Ids:
        """Take the group's ids out of a batch.

        Args:
            kjt: the batch.
            order: [S] position of each feature's key, as a tensor.
            keys: the same as a list.
            single: whether every bag of the batch holds one id.
        """
        if single:
            values = kjt.values().view(len(kjt.keys()), -1)
            if keys != list(range(values.shape[0])):
                values = values.index_select(0, order)
            return Ids(values.reshape(-1), Segments([values.shape[1]] * len(keys)), None)
        mine = kjt.permute(keys)
        lengths = mine.lengths().view(len(keys), -1)
        return Ids(mine.values().long(), Segments(mine.length_per_key()), lengths)

    def check(self, ids: Ids) -> Ids:
        """Send unknown ids of closed vocabularies to their out-of-vocabulary row.

        Raises:
            ValueError: an unknown id where none is configured, with the feature, the id, the rows.
        """
        if not any(self.closed):
            return ids
        shaped, limits = ids.segments.shape(ids.values), ids.segments.spread(self.limits)
        outside = ((shaped >= limits) | (shaped < 0)) & (limits > 0)
        if not bool(outside.any()):
            return ids
        unknown = ids.segments.spread(self.unknown).expand_as(shaped)
        if bool((outside & (unknown < 0)).any()):
            self._refuse(ids, outside & (unknown < 0))
        return Ids(torch.where(outside, unknown, shaped).flatten(), ids.segments, ids.lengths)

    def _refuse(self, ids: Ids, bad: Tensor) -> None:
        position = int(bad.flatten().nonzero()[0])
        segment = int(ids.segments.index(bad.device)[position])
        feature, rows = self.features[segment], int(self.limits[segment])
        raise ValueError(
            f"feature {feature.name!r}: id {int(ids.values[position])} is outside the vocabulary of "
            f"table {feature.table!r} (0 .. {rows - 1}). Was the batch prepared with another "
            "vocabulary? Give the vocabulary an oov row to accept unknown ids"
        )

    def pool(self, vectors: Tensor, ids: Ids) -> Tensor:
        """Return pooled features [B, P * D] from the vectors [n, D] of all ids."""
        count = len(self.pooled)
        if ids.lengths is None:
            pooled = vectors.view(len(self.features), -1, self.dim)[:count]
            return pooled.transpose(0, 1).flatten(1)
        pieces, first, start = [], 0, 0
        for pooling, run in groupby(self.pooled, key=lambda feature: feature.pooling):
            last = first + len(list(run))
            lengths = ids.lengths[first:last]
            end = start + sum(ids.segments.lengths[first:last])
            reduced = torch.segment_reduce(
                vectors[start:end],
                pooling,
                lengths=lengths.flatten(),
                axis=0,
                initial=0,
                unsafe=True,
            )
            pieces.append(reduced.view(*lengths.shape, self.dim).transpose(0, 1).flatten(1))
            first, start = last, end
        return torch.cat(pieces, dim=1)

    def sequences(self, vectors: Tensor, ids: Ids, batch: int) -> dict[str, JaggedTensor]:
        """Return the features that are not pooled, one vector an id."""
        first = len(self.pooled)
        lengths = ids.lengths
        if lengths is None:
            lengths = torch.ones(len(self.features), batch, dtype=torch.long, device=vectors.device)
        parts = vectors.split(ids.segments.lengths)
        return {
            feature.name: JaggedTensor(part, lengths=length)
            for feature, part, length in zip(
                self.features[first:], parts[first:], lengths[first:], strict=True
            )
        }


def as_packed(tensor: Tensor) -> Tensor:
    """Return a tensor as it is packed: nothing is stored in more than float32."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def build_groups(
    features: Sequence[Feature], plan: Plan, vocabularies: Mapping[str, Vocabulary]
) -> list[Group]:
    """Cut features into groups; the same features and plan always give the same groups."""
    members: dict[object, list[Feature]] = {}
    for feature in features:
        one = plan[feature.table]
        key = (
            one.config.sharing,
            one.config.width,
            one.precision.config,
            len(one.places),
            one.places[0].dim,
            one.table.width,
            one.granted,
        )
        members.setdefault(key, []).append(feature)
    groups = []
    for group in members.values():
        group.sort(key=lambda feature: POOLINGS.index(feature.pooling))
        mine = [plan[feature.table] for feature in group]
        groups.append(Group(group, mine, [vocabularies[feature.table] for feature in group]))
    return groups
