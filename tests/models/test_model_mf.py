"""MF: the inner product by hand, its towers, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from model_inputs import HISTORY, MULTI, NUMERIC, PLAIN, build, read
from torch.testing import assert_close

from models.base import InputField, Inputs, TwoTowers

ROWS = [1, 0, 2]


@pytest.mark.parametrize("inputs", [PLAIN, NUMERIC, HISTORY], ids=["plain", "numeric", "history"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_logit_is_the_inner_product_of_user_and_item(inputs: Inputs, bias: bool) -> None:
    torch.manual_seed(0)
    model, features, dims = build("mf", inputs, item_bias=bias)
    batch = read(features, dims, inputs, ROWS)
    user, item = batch.leaves["user"], batch.leaves["item"]
    expected = torch.stack([torch.dot(user[b], item[b]) for b in range(3)])
    if bias:
        expected = expected + batch.leaves["item:linear"][:, 0]
    assert_close(model(*batch), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_tower_depends_on_its_own_side_alone(bias: bool) -> None:
    torch.manual_seed(0)
    model, features, dims = build("mf", PLAIN, item_bias=bias)
    assert isinstance(model, TwoTowers)
    batch, other = (read(features, dims, PLAIN, ROWS) for _ in range(2))
    users, items = model.towers(batch.pooled)
    other.pooled["user"].data.copy_(batch.leaves["user"])
    assert_close(model.towers(other.pooled)[0], users, rtol=0, atol=0)
    # every pair of the batch, not only its rows
    scores = batch.leaves["user"] @ batch.leaves["item"].T
    if bias:
        scores = scores + batch.leaves["item:linear"].T
    assert_close(users @ items.T, scores)


def test_only_user_and_item_are_read_by_any_names() -> None:
    _, features, _ = build("mf", HISTORY)
    assert [(f.name, f.table) for f in features] == [("user", "user"), ("item", "item")]
    _, features, _ = build("mf", HISTORY, user="shop", item_bias=True)
    assert [(f.name, f.dim) for f in features] == [("shop", 4), ("item", 4), ("item:linear", 1)]


def test_a_missing_or_jagged_field_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"model.user=user: the data have no such field .* item, shop"
    ):
        build("mf", MULTI)
    with pytest.raises(ValueError, match=r'model.item=itm: .* Did you mean "item"\?'):
        build("mf", PLAIN, item="itm")
    with pytest.raises(ValueError, match=r"model.item=items_seen: .* one id a row"):
        build("mf", HISTORY, item="items_seen")
    with pytest.raises(ValueError, match="They have: none"):
        build("mf", Inputs((), (InputField("user", "user", "multi"),)))
