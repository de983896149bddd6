"""Groups: the features that one method serves at one width, handled together as tensors.

Shape letters: S segments (features) of the group, B rows of the batch, n ids of the group, K rows
read for an id, P pooled features, d width of physical rows, W stored width, D width granted to the
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from embtables.budget import Placed, Plan
from embtables.compressor import Bags, Segments, Sharing, Width, sharings, widths
from embtables.features import Feature, Vocabulary
from embtables.rows.store import Read
from embtables.torchrec_types import JaggedTensor, KeyedJaggedTensor

POOLINGS = ("sum", "mean", "none")


@dataclass
class Ids:
    """The ids of one group in one batch.

    Attributes:
        values: [n] int64 or int32, segment after segment.
        segments: how they are cut into S segments.
        lengths: [S, B] bag lengths.
        bags: what is to be added up; None where every bag is one id without a weight, or is pooled.
    """

    values: Tensor
    segments: Segments
    lengths: Tensor
    bags: Bags | None

    def pooled(self) -> Ids:
        """Return what is left to do once the bags are added up."""
        return self if self.bags is None else replace(self, segments=self.bags.segments, bags=None)


@dataclass(frozen=True)
class Keys:
    """Where the features of a group are among the keys of a batch.

    Attributes:
        order: [S] position of each feature's key.
        runs: the same as runs [first, last) of neighbouring keys.
    """

    order: list[int]
    runs: list[tuple[int, int]]

    @classmethod
    def of(cls, order: list[int]) -> Keys:
        """Find the runs of an order."""
        cuts = [i for i in range(1, len(order)) if order[i] != order[i - 1] + 1]
        starts, ends = [0, *cuts], [*cuts, len(order)]
        return cls(order, [(order[i], order[j - 1] + 1) for i, j in zip(starts, ends, strict=True)])

    def take(self, values: Tensor, offsets: Sequence[int]) -> Tensor:
        """Return the values of these keys, key after key; a view where they are neighbours."""
        parts = [values[offsets[first] : offsets[last]] for first, last in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Group(nn.Module):
    """S features of one method and one stored width; all features of a table are in one group.

    Args:
        features: [S], sorted by pooling as `build_groups` does: sum, mean, none.
        placed: [S] what the budget decided for the table of each.
        vocabularies: [S].
        by_id: bags are added up after `Width.decode`, because someone looks at the vector of each id.

    Attributes:
        tables: [S] logical table of each feature.
    """

    limits: Tensor
    unknown: Tensor
    mean: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        placed: Sequence[Placed],
        vocabularies: Sequence[Vocabulary],
        by_id: bool = False,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.pooled = tuple(feature for feature in features if feature.pooling != "none")
        self.dim = placed[0].granted
        self.tables = tables = [one.table for one in placed]
        places = [one.places for one in placed]
        config = placed[0].config
        self.sharing: Sharing = sharings.get(config.sharing.kind)(config.sharing, tables, places)
        self.width: Width = widths.get(config.width.kind)(config.width, tables)
        self.by_id = by_id
        sums = self.width.linear and not by_id and self.sharing.combine != "mult"
        self.read = Read(
            tuple(tuple(t.name for t in column) for column in zip(*places, strict=True)),
            self.sharing.combine,
            self.sharing.skips,
            len(self.pooled) if sums else 0,
        )
        self.closed = [not vocabulary.open for vocabulary in vocabularies]
        limits = [0 if v.open else v.rows for v in vocabularies]  # 0: any id is inside
        unknown = [-1 if v.oov is None else v.oov for v in vocabularies]
        self.register_buffer("limits", torch.tensor(limits), persistent=False)
        self.register_buffer("unknown", torch.tensor(unknown), persistent=False)
        mean = [[float(feature.pooling == "mean")] for feature in self.pooled]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def select(self, kjt: KeyedJaggedTensor, keys: Keys, single: Sequence[bool]) -> Ids:
        """Take the group's ids out of a batch.

        Args:
            kjt: the batch.
            keys: where its keys are.
            single: for each key of the batch whether every bag holds one id.
        """
        offsets = kjt.offset_per_key()
        weights = kjt.weights_or_none()
        cut = [offsets[key + 1] - offsets[key] for key in keys.order]
        mine = [single[key] for key in keys.order]
        lengths = keys.take(kjt.lengths().view(len(single), -1), range(len(single) + 1))
        bags = None
        if self.pooled and (weights is not None or not all(mine[: len(self.pooled)])):
            bags = self._bags(
                lengths, cut, None if weights is None else keys.take(weights, offsets)
            )
        values = keys.take(kjt.values(), offsets)
        return Ids(values, Segments(cut, single=all(mine)), lengths, bags)

    def _bags(self, lengths: Tensor, cut: list[int], weights: Tensor | None) -> Bags:
        """Return what pooling adds up, of bag lengths [S, B] and ids a segment [S].

        With weights a bag is the sum of weight * vector, for a mean divided by its length, as
        FBGEMM does.
        """
        count, batch = len(self.pooled), lengths.shape[1]
        single = sum(cut[count:])
        counts = torch.cat([lengths[:count].flatten(), lengths.new_ones(single)])
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        divisors = None
        if any(feature.pooling == "mean" for feature in self.pooled):
            divisors = 1 + self.mean * (lengths[:count] - 1).clamp(min=0)
            divisors = torch.cat([divisors.flatten(), divisors.new_ones(single)])
        if weights is not None and single:
            weights = torch.cat([weights[: len(weights) - single], weights.new_ones(single)])
        pooled = Segments([batch] * count + cut[count:], single=count == len(cut))
        return Bags(offsets, divisors, weights, pooled)

    def bags_of_store(self, ids: Ids) -> Bags | None:
        """Return the bags that the row store adds up: it does not learn weights."""
        bags = ids.bags if self.width.linear and not self.by_id else None
        learned = bags is not None and bags.weights is not None and bags.weights.requires_grad
        return None if learned else bags

    def check(self, ids: Ids) -> Ids:
        """Send unknown ids of closed vocabularies to their out-of-vocabulary row.

        Raises:
            ValueError: an unknown id where none is configured, with the feature, the id, the rows.
        """
        if not any(self.closed) or self._inside(ids):
            return ids
        shaped, limits = ids.segments.shape(ids.values), ids.segments.spread(self.limits)
        outside = ((shaped >= limits) | (shaped < 0)) & (limits > 0)
        unknown = ids.segments.spread(self.unknown).expand_as(shaped)
        if bool((outside & (unknown < 0)).any()):
            self._refuse(ids, outside & (unknown < 0))
        return replace(ids, values=torch.where(outside, unknown, shaped).flatten())

    def _inside(self, ids: Ids) -> bool:
        """Return whether all ids are inside their vocabularies."""
        if ids.values.device.type == "cpu":
            from embtables import parallel
            from embtables.rows import kernels

            bounds, count = ids.segments.bounds, ids.segments.total
            outside = kernels.first_outside
            return parallel.call(outside, ids.values, self.limits, bounds, items=count) < 0
        shaped, limits = ids.segments.shape(ids.values), ids.segments.spread(self.limits)
        return not bool((((shaped >= limits) | (shaped < 0)) & (limits > 0)).any())

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
        """Return pooled features [B, P * D] from the vectors [.., D] of all ids."""
        count = len(self.pooled)
        if vectors.dim() == 3:
            # The backward of a slice copies, even that of a whole one.
            mine = vectors if count == len(vectors) else vectors[:count]
        else:
            mine = vectors[: sum(ids.segments.lengths[:count])].view(
                count, ids.lengths.shape[1], self.dim
            )
        return mine.transpose(0, 1).flatten(1)

    def sequences(self, vectors: Tensor, ids: Ids) -> dict[str, JaggedTensor]:
        """Return the features that are not pooled, one vector an id."""
        first = len(self.pooled)
        if first == len(self.features):
            return {}
        single = ids.segments.single
        parts = vectors.unbind(0) if single else vectors.split(ids.segments.lengths)
        return {
            feature.name: JaggedTensor(part, lengths=lengths)
            for feature, part, lengths in zip(
                self.features[first:], parts[first:], ids.lengths[first:], strict=True
            )
        }


def as_packed(tensor: Tensor) -> Tensor:
    """Return a tensor as it is packed: nothing is stored in more than float32."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def build_groups(
    features: Sequence[Feature],
    plan: Plan,
    vocabularies: Mapping[str, Vocabulary],
    by_id: bool = False,
) -> list[Group]:
    """Cut features into groups; the same features and plan always give the same groups."""
    members: dict[object, list[Feature]] = {}
    for feature in features:
        members.setdefault(plan[feature.table].group, []).append(feature)
    groups = []
    for group in members.values():
        group.sort(key=lambda feature: POOLINGS.index(feature.pooling))
        mine = [plan[feature.table] for feature in group]
        known = [vocabularies[feature.table] for feature in group]
        groups.append(Group(group, mine, known, by_id))
    return groups
