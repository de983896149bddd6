"""The k best of all items by inner product, exact, in an order that ties do not change.

Shape letters: I items, V distinct item vectors, D their width, b users of a call, k items kept for
each, n items of the first block, m pairs (user, item) to leave out, c candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.products import linear

BLOCK = 8192
"""Item vectors whose scores are held at a time: 4 MB for 128 users."""

MASKED = torch.iinfo(torch.int32).min
"""Below the code of every number, infinities included."""


class Ranking:
    """Exact top-k of inner products; of equal scores the item that comes first.

    A score becomes an integer of the same order, with the place of the item below it: the largest of
    these 64-bit keys are wanted. The first block of items is searched in full; from there on only items
    that reach the k-th score of that block get a key. Equal vectors are multiplied once: matrix products
    may round a column differently by where it stands.

    Args:
        items: [I, D] vectors.
        top_k: k, or I where there are fewer items.
    """

    def __init__(self, items: Tensor, top_k: int) -> None:
        self.last = len(items) - 1
        self.top_k = min(top_k, len(items))
        # Adding 0.0 turns -0.0 into 0.0, here and below.
        vectors, owner = torch.unique(items + 0.0, dim=0, return_inverse=True)
        places = torch.arange(len(items), device=items.device)
        first = places.new_zeros(len(vectors)).scatter_reduce(
            0, owner, places, "amin", include_self=False
        )
        # First the vectors of the items that come first: popular ones, and with high scores.
        order = first.argsort()
        self.vectors, owner = vectors[order], torch.argsort(order)[owner]
        # Items of one vector stand side by side in slots, the smallest place first.
        self.owner, self.items = torch.sort(owner, stable=True)
        self.slots = torch.argsort(self.items)
        self.counts = torch.bincount(owner, minlength=len(self.vectors))
        self.starts = self.counts.cumsum(0) - self.counts

    def __call__(self, users: Tensor, rows: Tensor, masked: Tensor) -> Tensor:
        """Return the best items [b, k] of users [b, D], the best first.

        Where a user has fewer than k items that are not masked, masked ones come behind them.

        Args:
            users: [b, D] vectors.
            rows: [m] row in `users` of who is meant by each of the next.
            masked: [m] items that are not to be recommended to that user.
        """
        rows, slots = rows.to(users.device), self.slots[masked.to(users.device)]
        size = max(BLOCK, self.top_k)
        scores = linear(users, self.vectors[:size])
        keys = self._first(scores[:, self.owner[:size]], rows, slots)
        if size <= self.last:
            # Of one vector's items no more than these can be among the best: k, and the masked ones.
            most = self.top_k + int(torch.bincount(rows, minlength=1).max())
            owners, codes, behind = self._reaching(users, scores, keys, most)
            masks = rows * len(self.items) + slots
            allowed = ~torch.isin(owners * len(self.items) + behind, masks)
            keys = _largest(keys, owners[allowed], self._keys(codes[allowed], behind[allowed]))
        else:
            keys = keys.sort(descending=True).values
        return self.last - (keys & 0xFFFFFFFF)

    def _reaching(
        self, users: Tensor, scores: Tensor, keys: Tensor, most: int
    ) -> tuple[Tensor, ...]:
        """Return the candidates behind the first block: their users, codes and slots, [c] each.

        Args:
            users: [b, D].
            scores: [b, ..] of the first block of vectors.
            keys: [b, k] the best of the first block of slots.
            most: slots of one vector to return.
        """
        size, found = max(BLOCK, self.top_k), []
        least = _scores(keys.amin(1, keepdim=True) >> 32)
        for start in range(0, len(self.vectors), size):
            if start:
                scores = linear(users, self.vectors[start : start + size])
            owners, vectors = (scores >= least).nonzero(as_tuple=True)
            codes = order_codes(scores[owners, vectors])
            pairs, slots = self._slots(vectors + start, most)
            behind = slots >= size
            pairs = pairs[behind]
            found.append((owners[pairs], codes[pairs], slots[behind]))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _first(self, scores: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        """Return the keys [b, k] of the best of the first slots by their scores [b, n]."""
        codes = order_codes(scores)
        inside = slots < codes.shape[1]
        codes[rows[inside], slots[inside]] = MASKED
        first = torch.arange(codes.shape[1], device=codes.device)
        return self._keys(codes, first).topk(self.top_k, sorted=False).values

    def _keys(self, codes: Tensor, slots: Tensor) -> Tensor:
        return codes.long().bitwise_left_shift_(32).add_(self.last - self.items[slots])

    def _slots(self, vectors: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return [c] indices into `vectors` and the first slots of each vector, at most that many."""
        counts = self.counts[vectors].clamp(max=most)
        pairs = torch.arange(len(vectors), device=counts.device).repeat_interleave(counts)
        within = torch.arange(len(pairs), device=counts.device) - (counts.cumsum(0) - counts)[pairs]
        return pairs, self.starts[vectors][pairs] + within


def order_codes(scores: Tensor) -> Tensor:
    """Return int32 codes in the order of float32 scores, equal where they are equal.

    Floats are sign and magnitude: the magnitude of the negative ones is turned round.
    """
    return _turned((scores + 0.0).view(torch.int32))


def _scores(codes: Tensor) -> Tensor:
    """Return the scores of codes, -infinity for masked items."""
    scores = _turned(codes.int()).view(torch.float32)
    return scores.masked_fill(codes == MASKED, -torch.inf)


def _turned(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(first: Tensor, owners: Tensor, keys: Tensor) -> Tensor:
    """Return the k largest keys of each user, [b, k], the largest first.

    Args:
        first: [b, k] keys of every user.
        owners: [c] users of further keys.
        keys: [c].
    """
    users, top_k = first.shape
    each = torch.arange(users, device=keys.device).repeat_interleave(top_k)
    keys, order = torch.cat([first.flatten(), keys]).sort(descending=True)
    owners, by_owner = torch.cat([each, owners])[order].sort(stable=True)
    counts = torch.bincount(owners, minlength=users)
    starts = counts.cumsum(0) - counts
    return keys[by_owner][starts[:, None] + torch.arange(top_k, device=keys.device)]
