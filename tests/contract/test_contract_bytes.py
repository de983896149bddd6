"""Contract: bytes asked, planned, measured and written agree; the packed form predicts the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case
from world import (
    BAGS,
    FEATURES,
    ROWS,
    VOCABULARIES,
    build,
    middle,
    outputs,
    planned,
    sizes,
    trained,
)

from embtables import EmbeddingTables, PackedTables
from embtables.budget import plan_bytes
from embtables.compressor import sharings


def _tensor_bytes(path: Path) -> int:
    """Return the bytes of a safetensors file behind its header, from the format's own words."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


def test_bytes_measured(case: Case, tmp_path: Path) -> None:
    tables = trained(case)
    path = tmp_path / "tables.safetensors"
    written = tables.pack(path)
    assert written <= sum(sizes(case)) // 2
    assert tables.bytes().inference == written == _tensor_bytes(path)
    assert PackedTables.load(path).file_bytes == written
    assert written <= middle(case)
    if not case.prunes:
        assert plan_bytes(tables.plan) == written
    assert sum(line["bytes"] for line in tables.report()) >= written
    assert tables.bytes().uncompressed == sum(
        4 * rows * (1 if name == "linear" else 8) for name, rows in ROWS.items()
    )


def test_packed_equals_trained(case: Case, tmp_path: Path) -> None:
    tables = trained(case)
    path = tmp_path / "tables.safetensors"
    tables.pack(path)
    packed = PackedTables.load(path)
    if not case.held:
        _round_rows(tables)
    expected = outputs(tables)
    for name, found in outputs(packed).items():
        assert torch.equal(found, expected[name]), name
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def _round_rows(tables: EmbeddingTables) -> None:
    """Replace rows by what their bits hold: from there on the packed form is exact."""
    for placed in tables.plan.values():
        for place in placed.places:
            rows = tables.store.export(place.name)["values"]
            rounded = placed.precision.decode(placed.precision.encode(rows))
            if placed.precision.config.kind == "fp32":
                assert torch.equal(rounded, rows)
            tables.store.load(place.name, rounded)


def test_packed_twice_is_the_same(case: Case, tmp_path: Path) -> None:
    tables = trained(case)
    tensors, metadata = tables.pack_tensors()
    again = PackedTables.from_tensors(tensors, metadata)
    for name, found in outputs(again).items():
        assert torch.equal(found, outputs(PackedTables.from_tensors(*tables.pack_tensors()))[name])
    assert {name: tensor.dtype for name, tensor in tensors.items() if "scale" in name} == {
        name: torch.float32 for name in tensors if "scale" in name
    }


def test_budget_is_kept_and_monotone(case: Case) -> None:
    smallest, largest = sizes(case)
    budgets = [smallest + (largest - smallest) * step // 12 for step in range(13)]
    found = [plan_bytes(planned(case, budget)) for budget in budgets]
    assert all(size <= budget for size, budget in zip(found, budgets, strict=True))
    assert found == sorted(found)
    assert found[0] == smallest
    assert found[-1] == largest


def test_budget_too_small_names_the_smallest(case: Case) -> None:
    smallest, _ = sizes(case)
    with pytest.raises(ValueError, match=f"smallest reachable size is {smallest:,} bytes"):
        build(case, budget=smallest - 1)
    size = build(case, budget=smallest).bytes().inference
    assert size <= smallest if case.prunes else size == smallest
    assert plan_bytes(planned(case, smallest)) == smallest


def test_small_fields_stay_plain(case: Case) -> None:
    """No table of its own holds more numbers than it would plain."""
    smallest, largest = sizes(case)
    for step in range(5):
        decided = planned(case, smallest + (largest - smallest) * step // 4)
        for placed in decided.values():
            mine = {row.name for row in placed.places}
            others = [o for o in decided.values() if o is not placed]
            if any(row.name in mine for other in others for row in other.places):
                continue
            rows = {row.name: row for row in placed.places}.values()
            # A search may hold more while it goes on.
            stored = sum(row.rows * min(row.dim, placed.table.dim) for row in rows)
            numbers = stored + placed.extra_bytes // 4
            assert numbers <= placed.table.rows * placed.table.dim, placed


def test_enough_rows_is_exact(case: Case) -> None:
    """With a ratio of one, every id has its own row and the output is the full table's."""
    held = "" if not case.held else f"+{case.precision}"
    tables = build(case, budget=None, ratio=1.0)
    full = EmbeddingTables(
        FEATURES, VOCABULARIES, table=f"full{held}", optimizer=tables.store.optimizer
    )
    for placed in tables.plan.values():
        assert len(placed.places) == 1
        row = placed.places[0]
        assert (row.rows, row.dim) == (placed.table.rows, placed.table.dim)
        values = torch.randn(row.rows, row.dim, generator=torch.Generator().manual_seed(row.rows))
        tables.store.load(row.name, values)
        full.store.load(row.name, values)
    expected = outputs(full)
    for name, found in outputs(tables).items():
        assert torch.equal(found, expected[name]), name
    every = {key: [[i] for i in range(4)] for key in BAGS}
    assert len(outputs(tables, every)["color"].unique(dim=0)) == ROWS["color"]
    sharing = sharings.get("full")
    assert all(placed.config.sharing == sharing.Config() for placed in tables.plan.values())
