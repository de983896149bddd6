"""Two ranks give the tables of one process: every sharing, pooled features and sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case
from launching import HERE, once, run
from sharded_worker import tables_of, wanted
from torch.testing import assert_close

from embtables import RowOptimizer
from embtables.compressor import sharings
from embtables.rows.sharding import ShardingType

Found = dict[str, Any]
CASES: dict[str, tuple[Case, ShardingType, RowOptimizer]] = {
    name: (case, kind, optimizer) for name, case, kind, optimizer in wanted()
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Return what one process and what two found."""

    def make(folder: Path) -> None:
        for world in (1, 2):
            run([str(HERE / "sharded_worker.py"), str(folder)], world)

    folder = once(tmp_path_factory, "sharded", make)
    one, two = (torch.load(folder / f"found{world}.pt", weights_only=True) for world in (1, 2))
    return one, two


def test_every_sharing_is_among_the_cases() -> None:
    assert {name.split("+")[0].split("(")[0] for name in CASES} == set(sharings.names())


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(found: tuple[Found, Found], name: str) -> None:
    one, two = (every[name] for every in found)
    assert_close(two["losses"], one["losses"], rtol=1e-6, atol=0)
    for what in ("outputs", "rows"):
        assert two[what].keys() == one[what].keys()
        for key, tensor in one[what].items():
            assert_close(two[what][key], tensor, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_ranks_pack_what_one_process_packs(found: tuple[Found, Found], name: str) -> None:
    two = found[1][name]
    case, kind, optimizer = CASES[name]
    tables = tables_of(case, kind, optimizer, "native")
    for table, rows in two["rows"].items():
        tables.store.load(table, rows)
    tables.groups.load_state_dict(two["groups"])
    packed = tables.pack_tensors()[0]
    assert packed.keys() == two["packed"].keys()
    for key, tensor in packed.items():
        assert torch.equal(tensor, two["packed"][key]), key
