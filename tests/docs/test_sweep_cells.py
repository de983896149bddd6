"""Records of a sweep as the cells of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import common
from trainer.records import Record, Records, read_records


def _run(table: str, ratio: float, seed: int, auc: float, rows: list[int]) -> Record:
    summary: dict[str, Any] = {
        "valid": {"auc": auc + 0.1},
        "test": {"auc": auc},
        "bytes": {"file": 10, "uncompressed": 100},
        "epoch": 1.0,
        "rows_per_second": 5.0,
        "tables": [{"width": 8}, {"width": 1}],
        "stages": [{"rows": count} for count in rows],
    }
    return Record(cell={"table": table, "ratio": ratio}, seed=seed, summary=summary)


def test_cells_have_names_means_and_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    failure = Record(cell={"table": "full", "ratio": 0.01}, seed=0, failure="too small")
    runs = [
        _run("dnis", 0.1, 0, 0.6, [300, 100]),
        _run("dnis", 0.1, 1, 0.7, [500, 100]),
        _run("full", 0.1, 0, 0.6, [150]),
        failure,
        _run("full", 1.0, 0, 0.8, [150]),
        _run("full", 1.0, 1, 0.8, [250]),
    ]
    records = Records(name="planted", recipe="a/b", config={}, runs=runs)
    records.write(tmp_path / "sweep_planted.json")
    cells = {cell["name"]: cell for cell in common.known_cells("sweep_planted")}
    assert list(cells) == ["full", "dnis 0.1", "narrow 0.1", "narrow 0.01"]
    assert cells["full"]["overrides"] == []
    assert cells["dnis 0.1"]["overrides"] == ["table=dnis", "ratio=0.1"]
    assert cells["dnis 0.1"]["test"]["auc"]["mean"] == pytest.approx(0.65)
    assert [cells[name].get("cost") for name in cells] == [1.0, 2.5, 0.75, None]
    assert cells["dnis 0.1"]["width"] == 8
    assert cells["narrow 0.01"]["failures"] == ["too small"]
    assert "test" not in cells["narrow 0.01"]
    assert common.known_cells("sweep_absent") == []


def test_records_are_a_run_a_line(tmp_path: Path) -> None:
    runs = [_run("hash", 0.1, seed, 0.6, [100]) for seed in range(3)]
    records = Records(name="planted", recipe="a/b", config={}, runs=runs)
    records.write(tmp_path / "one.json")
    text = (tmp_path / "one.json").read_text()
    assert sum(line.startswith('{"cell"') for line in text.splitlines()) == 3
    assert read_records(tmp_path / "one.json") == records
