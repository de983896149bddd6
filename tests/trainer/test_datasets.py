"""What tables and models ask of a prepared data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from embtables import Feature
from trainer.config import RunConfig
from trainer.datasets import StoreInteractions, open_store

Tiny = Callable[..., RunConfig]
FEATURES = [Feature("user", 4), Feature("item", 4), Feature("item", 1, table="item:linear")]


def test_a_table_learns_against_the_ids_of_another_column(tiny: Tiny) -> None:
    store = open_store(tiny())
    pairs = StoreInteractions(store, FEATURES)
    assert [pairs.partner(table) for table in ("user", "item:linear")] == ["item", "user"]
    for named in ("item", "item:linear"):
        assert pairs.partner("user", named) == named
        assert pairs.partner("item", named) == pairs.partner("item:linear", named) == "user"
    with pytest.raises(ValueError, match=r'no column with one id a row\. Did you mean "item"'):
        pairs.partner("user", "itm")
    found = pairs.pairs("user", "item")
    columns = [column.name for column in store.schema.fields]
    ids = store.split("train").ids
    np.testing.assert_array_equal(found.left, ids[:, columns.index("user")])
    np.testing.assert_array_equal(found.right, ids[:, columns.index("item")])
