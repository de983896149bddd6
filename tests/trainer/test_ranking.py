"""The k best items: against sorting all of them, with ties, masks and blocks of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer import ranking as module
from trainer.ranking import Ranking, order_codes


def best_by_loops(
    users: Tensor, items: Tensor, masked: set[tuple[int, int]], top_k: int
) -> list[list[int]]:
    """Sort all items of each user by (score, column), leaving out what is masked."""
    return [
        sorted(
            (c for c in range(len(items)) if (row, c) not in masked),
            key=lambda c, user=user: (-float(user @ items[c]), c),
        )[:top_k]
        for row, user in enumerate(users)
    ]


@pytest.mark.parametrize("block", [1, 3, 8192])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ranking_equals_sorting(block: int, data: st.DataObject) -> None:
    sizes = st.integers(1, 7)
    many, few, width = data.draw(st.tuples(st.integers(1, 12), sizes, st.integers(1, 3)))
    # Small integers: products are exact, and many scores tie, those of other vectors too.
    numbers = st.integers(-2, 2)

    def draw(rows: int) -> Tensor:
        values = data.draw(st.lists(numbers, min_size=rows * width, max_size=rows * width))
        return torch.tensor(values, dtype=torch.float32).view(rows, width)

    users, items = draw(few), draw(many)
    top_k = data.draw(st.integers(1, many))
    every = [(row, column) for row in range(few) for column in range(many)]
    masked = data.draw(st.lists(st.sampled_from(every), unique=True))
    rows, columns = torch.tensor(masked, dtype=torch.long).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = Ranking(items, top_k)(users, rows, columns).tolist()
    for got, expected in zip(found, best_by_loops(users, items, set(masked), top_k), strict=True):
        assert got[: len(expected)] == expected  # behind them come masked ones


def test_equal_vectors_tie_exactly_however_they_are_rounded() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 64)
    items = vectors[torch.randint(0, 5, (1003,))]
    none = torch.empty(0, dtype=torch.long)
    for users in torch.randn(6, 64).split([1, 2, 3]):
        for row, best in zip(users, Ranking(items, 40)(users, none, none), strict=True):
            scores = vectors.double() @ row.double()
            bucket = vectors[scores.argmax()]
            same = (items == bucket).all(1).nonzero()[:, 0]
            assert best.tolist() == same[:40].tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_order_codes_are_in_the_order_of_the_scores(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    codes = order_codes(scores)
    assert torch.equal(codes[:, None] < codes, scores[:, None] < scores)
    assert torch.equal(codes[:, None] == codes, scores[:, None] == scores)
    assert (codes > module.MASKED).all()
