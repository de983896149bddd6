"""The learning rate of each line of a benchmark."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

import pytest

from bench import graphhash
from bench.common import Cell

PEAKS = {"hash": 1e-3, "narrow": 1.0, "double_hash": 1e-6}
"""Rate near which a method is planted to be best; others fail at every rate."""


def test_a_rate_beyond_the_ends_is_tried_where_an_end_is_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: dict[str, list[float]] = {}

    def outcomes(
        _: str, cells: list[Cell], seeds: list[int], __: Any
    ) -> list[list[dict[str, Any]]]:
        assert seeds == [0]
        return [[outcome(cell)] for cell in cells]

    def outcome(cell: Cell) -> dict[str, Any]:
        method, rate = cell.name.split()[0], float(cell.overrides[-1].removeprefix("rows.lr="))
        tried.setdefault(method, []).append(rate)
        if method not in PEAKS:
            return {"failure": "planted"}
        return {"valid": {"recall": 1 - abs(math.log(rate / PEAKS[method])) / 100}}

    monkeypatch.setattr(graphhash, "run_seeds", outcomes)
    options = Namespace(methods=["hash", "narrow", "double_hash", "frequency"], ratios=[0.05])
    chosen = {name.split()[0]: one for name, one in graphhash.tune(options).items()}
    rates = list(graphhash.RATES)
    assert tried == {
        "full": rates,
        "hash": rates,
        "narrow": [*rates, 0.1],
        "double_hash": [*rates, 1e-4],
        "frequency": rates,
    }
    assert {name: one.lr for name, one in chosen.items()} == {
        "full": rates[0],
        "hash": 1e-3,
        "narrow": 0.1,
        "double_hash": 1e-4,
        "frequency": rates[0],
    }
    assert chosen["narrow"].cell.overrides[-1] == "rows.lr=0.1"
    assert list(chosen["double_hash"].valid) == tried["double_hash"]
    assert chosen["frequency"].valid == {}
