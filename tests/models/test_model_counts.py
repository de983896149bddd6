"""Parameter counts against the counts logged by public benchmark runs (reczoo/BARS).

A count is the product of every design decision: biases, BatchNorm, shared tables, residual maps,
the width of the interaction. Each line reproduces a logged number exactly.
"""

from __future__ import annotations

from typing import Any

import pytest
from model_inputs import build, size

from models.base import InputField, Inputs

FRAPPE = {
    name: train + 1  # an out-of-vocabulary row for each field
    for name, train in {
        "user": 954, "item": 4082, "daytime": 7, "weekday": 7, "isweekend": 2,
        "homework": 3, "cost": 2, "weather": 9, "country": 80, "city": 233,
    }.items()
}  # fmt: skip
MOVIELENS = {"user": 20_000, "item": 20_000, "tag": 90_239 - 40_000}
CRITEO = {f"C{i}": 1_000 for i in range(25)} | {"C25": 2_086_303 - 25_000}
CRITEO_X4 = {f"C{i}": 1_000 for i in range(38)} | {"C38": 910_747 - 38_000}
AMAZON = {"item": 63_003, "category": 803}

DEEP = {"hidden": (400, 400, 400), "batch_norm": True}
ATTENTION = {"heads": 4, "attention_dim": 128}
WIDE = {"layers": 2, "layer_norm": True, "wide": True} | ATTENTION
WIDE_CRITEO = WIDE | {"layers": 3, "attention_dim": 256}


def inputs_of(rows: dict[str, int], numeric: int = 0) -> Inputs:
    fields = tuple(InputField(name, name) for name in rows)
    return Inputs(tuple(f"I{i}" for i in range(numeric)), fields)


def total(kind: str, inputs: Inputs, rows: dict[str, int], options: dict[str, Any]) -> int:
    """Return the numbers in all tables and in the network."""
    model, features, dims = build(kind, inputs, **options)
    tables = {feature.table: dims[feature.name] for feature in features}
    embeddings = sum(rows[table.partition(":")[0]] * dim for table, dim in tables.items())
    return embeddings + size(model)


@pytest.mark.parametrize(
    ("kind", "options", "logged"),
    [
        ("lr", {}, 5_390),
        ("fm", {}, 59_280),
        ("deepfm", DEEP, 423_280),
        ("dlrm", {"interaction": "cat", "top": (400, 400, 400), "batch_norm": True}, 417_891),
        ("dcnv2", {"cross_layers": 4} | DEEP, 458_391),
        ("autoint", {"layers": 6} | ATTENTION, 306_051),
        ("autoint_plus", {"layers": 5, "layer_norm": True} | ATTENTION | DEEP, 622_180),
    ],
)
def test_frappe_x1(kind: str, options: dict[str, Any], logged: int) -> None:
    assert sum(FRAPPE.values()) == 5_389
    assert total(kind, inputs_of(FRAPPE), FRAPPE, {"dim": 10} | options) == logged


@pytest.mark.parametrize(
    ("kind", "options", "logged"),
    [
        ("lr", {}, 90_240),
        ("fm", {}, 992_630),
        ("deepfm", DEEP, 1_328_630),
        ("dlrm", {"interaction": "cat", "top": (400, 400, 400), "batch_norm": True}, 1_238_391),
        ("dcnv2", {"cross_layers": 5} | DEEP, 1_243_071),
        ("autoint", WIDE, 1_047_798),
        ("autoint_plus", WIDE | DEEP, 1_383_799),
    ],
)
def test_movielens_latest(kind: str, options: dict[str, Any], logged: int) -> None:
    assert total(kind, inputs_of(MOVIELENS), MOVIELENS, {"dim": 10} | options) == logged


@pytest.mark.parametrize(
    ("kind", "options", "logged"),
    [
        ("lr", {}, 2_086_317),
        ("fm", {}, 22_949_477),
        ("deepfm", DEEP, 23_429_477),
        (
            "dlrm",
            {"bottom": (400, 400, 400), "top": (400, 400, 400), "batch_norm": True},
            21_664_241,
        ),
        ("dcnv2", {"cross_layers": 3, "hidden": (500, 500, 500)}, 22_018_021),
        ("autoint", WIDE_CRITEO, 23_364_453),
        ("autoint_plus", WIDE_CRITEO | {"heads": 2, "scale": False} | DEEP, 23_844_454),
    ],
)
def test_criteo_x1_with_13_numeric_columns(kind: str, options: dict[str, Any], logged: int) -> None:
    assert total(kind, inputs_of(CRITEO, 13), CRITEO, {"dim": 10} | options) == logged


def test_criteo_x4_dcnv2() -> None:
    options = {"dim": 16, "cross_layers": 3, "hidden": (1000,) * 5, "batch_norm": True}
    assert total("dcnv2", inputs_of(CRITEO_X4), CRITEO_X4, options) == 20_382_577


HISTORIES = Inputs(
    (),
    (
        InputField("item", "item"),
        InputField("category", "category"),
        InputField("item_history", "item", "sequence"),
        InputField("category_history", "category", "sequence"),
    ),
)


def test_amazon_electronics_din() -> None:
    options = {
        "attention_hidden": (512, 256), "hidden": (1024, 512, 256),
        "softmax": True, "batch_norm": True,
    }  # fmt: skip
    assert total("din", HISTORIES, AMAZON, {"dim": 64} | options) == 5_403_522


def test_amazon_electronics_dcnv2_reads_the_mean_of_the_history() -> None:
    options = {"cross_layers": 2, "hidden": (1024, 512, 256), "batch_norm": True}
    assert total("dcnv2", HISTORIES, AMAZON, {"dim": 64} | options) == 5_138_561


def test_din_without_attention_keeps_the_head() -> None:
    attention = {"attention_hidden": (8, 6), "attention_activation": "relu"}
    with_attention, _, _ = build("din", HISTORIES, **attention)
    baseline, _, _ = build("din", HISTORIES, history="mean")
    unit = (4 * 8 * 8 + 8) + (8 * 6 + 6) + (6 + 1)
    assert size(with_attention) - size(baseline) == unit


def test_low_rank_cross_layers_have_two_thin_matrices() -> None:
    model, _, _ = build(
        "dcnv2", inputs_of(MOVIELENS), structure="crossnet_only", cross_layers=2, rank=3
    )
    width = 3 * 4
    assert size(model) == 2 * (2 * 3 * width + width) + width + 1
