"""Sizes that follow from the published rules, for the cardinalities of Criteo Kaggle and Avazu."""

from __future__ import annotations

import math

import pytest

from embtables import parse_table
from embtables.budget import Plan, plan, plan_bytes, uncompressed_bytes
from embtables.compressor import Table

CRITEO = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
AVAZU = [
    240, 7, 7, 4737, 7745, 26, 8552, 559, 36, 2686408, 6729486, 8251, 5, 4, 2626, 8, 9, 435, 4, 68,
    172, 60,
]  # fmt: skip


def _tables(cardinalities: list[int], dim: int = 16) -> list[Table]:
    return [Table(f"C{i}", rows, dim) for i, rows in enumerate(cardinalities)]


def _plan(cardinalities: list[int], text: str, ratio: float | None = None, dim: int = 16) -> Plan:
    return plan(_tables(cardinalities, dim), parse_table(text), {}, ratio=ratio)


def _rows(decided: Plan) -> int:
    return sum({row.name: row.rows for one in decided.values() for row in one.places}.values())


def _ratio(decided: Plan) -> float:
    return plan_bytes(decided) / uncompressed_bytes(one.table for one in decided.values())


@pytest.mark.parametrize(
    ("cardinalities", "rows", "size"),
    [
        pytest.param(CRITEO, 33_762_577, 2_160_804_928, id="criteo"),
        pytest.param(AVAZU, 9_449_445, 604_764_480, id="avazu"),
    ],
)
def test_full(cardinalities: list[int], rows: int, size: int) -> None:
    decided = _plan(cardinalities, "full")
    assert _rows(decided) == rows
    assert plan_bytes(decided) == uncompressed_bytes(_tables(cardinalities)) == size


@pytest.mark.parametrize(
    ("cardinalities", "share", "rows"),
    [
        pytest.param(CRITEO, 0.5, 16_881_296, id="criteo-50%"),
        pytest.param(CRITEO, 0.1, 3_376_271, id="criteo-10%"),
        pytest.param(CRITEO, 0.01, 337_641, id="criteo-1%"),
        pytest.param(CRITEO, 0.001, 33_780, id="criteo-0.1%"),
        pytest.param(AVAZU, 0.5, 4_724_727, id="avazu-50%"),
        pytest.param(AVAZU, 0.1, 944_953, id="avazu-10%"),
        pytest.param(AVAZU, 0.01, 94_509, id="avazu-1%"),
        pytest.param(AVAZU, 0.001, 9_466, id="avazu-0.1%"),
    ],
)
def test_hash_rows(cardinalities: list[int], share: float, rows: int) -> None:
    """ceil(share * n_f) rows a field: the bytes of the check value give the same rows back."""
    size = rows * 16 * 4
    decided = plan(_tables(cardinalities), parse_table("hash"), {}, budget=size)
    assert _rows(decided) == rows
    assert rows == sum(math.ceil(share * n) for n in cardinalities)
    # One byte less and a row has to go.
    assert _rows(plan(_tables(cardinalities), parse_table("hash"), {}, budget=size - 1)) < rows


@pytest.mark.parametrize(
    ("cardinalities", "collisions", "rows"),
    [
        pytest.param(CRITEO, 2, 16_881_347, id="criteo-2"),
        pytest.param(CRITEO, 3, 11_254_277, id="criteo-3"),
        pytest.param(CRITEO, 10, 3_376_515, id="criteo-10"),
        pytest.param(CRITEO, 11, 3_069_604, id="criteo-11"),
        pytest.param(CRITEO, 101, 336_312, id="criteo-101"),
        pytest.param(CRITEO, 1557, 46_673, id="criteo-floor"),
        pytest.param(AVAZU, 2, 4_724_771, id="avazu-2"),
        pytest.param(AVAZU, 11, 859_253, id="avazu-11"),
        pytest.param(AVAZU, 101, 94_906, id="avazu-101"),
        pytest.param(AVAZU, 102, 94_000, id="avazu-102"),
        pytest.param(AVAZU, 1151, 17_909, id="avazu-floor"),
    ],
)
def test_qr_rows_of_a_shared_divisor(cardinalities: list[int], collisions: int, rows: int) -> None:
    assert _rows(_plan(cardinalities, f"qr(collisions={collisions})")) == rows


@pytest.mark.parametrize(("cardinalities", "rows"), [(CRITEO, 28_800), (AVAZU, 9_494)])
def test_qr_floor_with_a_divisor_a_field(cardinalities: list[int], rows: int) -> None:
    size = rows * 16 * 4
    assert _rows(plan(_tables(cardinalities), parse_table("qr"), {}, budget=size)) == rows
    with pytest.raises(ValueError, match=f"smallest reachable size is {size:,} bytes"):
        plan(_tables(cardinalities), parse_table("qr"), {}, budget=size - 1)


@pytest.mark.parametrize("cardinalities", [CRITEO, AVAZU])
def test_qr_shared_divisor_does_not_enlarge_silently(cardinalities: list[int]) -> None:
    """c=101 on Avazu is .010044 of the full table: a budget of 1 % refuses it, naming the size."""
    size = plan_bytes(_plan(cardinalities, "qr(collisions=101)"))
    with pytest.raises(ValueError, match=f"smallest reachable size is {size:,} bytes"):
        plan(_tables(cardinalities), parse_table("qr(collisions=101)"), {}, budget=size - 1)


@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01, 0.002])
def test_qr_pairs_are_unique_and_fit(ratio: float) -> None:
    decided = _plan(CRITEO, "qr", ratio)
    assert ratio * 0.9 < _ratio(decided) <= ratio
    for one in decided.values():
        if len(one.places) == 2:
            quotients, remainders = one.places
            assert quotients.rows == math.ceil(one.table.rows / remainders.rows)
            assert quotients.rows + remainders.rows < one.table.rows


MDE = [
    pytest.param(
        CRITEO, 0.1, 0.0929,
        [8, 8, 1, 2, 8, 8, 4, 8, 16, 4, 4, 1, 4, 8, 4, 2, 16, 4, 8, 16, 2, 16, 16, 4, 8, 4],
        id="criteo-10%",
    ),
    pytest.param(
        CRITEO, 0.5, 0.425,
        [8, 8, 4, 8, 16, 16, 8, 8, 16, 8, 8, 8, 8, 16, 8, 8, 16, 8, 8, 16, 8, 16, 16, 8, 16, 8],
        id="criteo-50%",
    ),
    pytest.param(
        AVAZU, 0.1, 0.0810,
        [8, 16, 16, 4, 4, 16, 4, 8, 8, 2, 1, 4, 16, 16, 4, 16, 16, 8, 16, 8, 8, 8],
        id="avazu-10%",
    ),
    pytest.param(
        AVAZU, 0.5, 0.322,
        [16, 16, 16, 8, 8, 16, 8, 8, 16, 8, 4, 8, 16, 16, 8, 16, 16, 8, 16, 16, 16, 16],
        id="avazu-50%",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("cardinalities", "ratio", "real", "dims"), MDE)
def test_mde_dims(cardinalities: list[int], ratio: float, real: float, dims: list[int]) -> None:
    decided = _plan(cardinalities, "mde", ratio)
    assert [one.table.width for one in decided.values()] == dims
    assert _ratio(decided) == pytest.approx(real, abs=5e-4)


@pytest.mark.parametrize(
    ("dim", "alpha", "ratio"),
    [
        (16, 0.05, 0.501), (16, 0.1, 0.251), (16, 0.2, 0.064), (16, 0.3, 0.0625),
        (64, 0.05, 0.480), (64, 0.1, 0.234), (64, 0.2, 0.052), (64, 0.3, 0.016),
        (128, 0.05, 0.479), (128, 0.1, 0.231), (128, 0.2, 0.054), (128, 0.3, 0.012),
    ],
)  # fmt: skip
def test_mde_power_rule_without_rounding_to_powers(dim: int, alpha: float, ratio: float) -> None:
    decided = _plan(CRITEO, f"mde(alpha={alpha}, power_of_two=false)", dim=dim)
    assert _ratio(decided) == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize("cardinalities", [CRITEO, AVAZU])
@pytest.mark.parametrize("ratio", [0.06, 0.01])
def test_mde_is_infeasible_below_one_number_a_row(cardinalities: list[int], ratio: float) -> None:
    with pytest.raises(ValueError, match=r"cannot be met by mde.*ratio 0\.062"):
        _plan(cardinalities, "mde", ratio)


@pytest.mark.parametrize(
    ("dim", "ratio", "width"), [(16, 0.5, 8), (16, 0.1, 1), (16, 0.99, 15), (64, 0.1, 6)]
)
def test_narrow_widths(dim: int, ratio: float, width: int) -> None:
    decided = _plan(CRITEO, "full", ratio, dim)
    assert {one.table.width for one in decided.values()} == {width}
    assert {one.granted for one in decided.values()} == {width}
    assert plan_bytes(decided) == sum(CRITEO) * width * 4


@pytest.mark.parametrize(
    ("width", "numbers"), [(10, 708_390), (5, 354_195), (3, 212_517), (1, 70_839)]
)
def test_narrow_sizes_of_gowalla(width: int, numbers: int) -> None:
    decided = plan([Table("id", 70_839, 64)], parse_table("full"), {}, budget=4 * numbers)
    assert decided["id"].table.width == width
    assert plan_bytes(decided) == 4 * numbers


def test_the_ratio_that_a_refusal_names_is_enough() -> None:
    """116 of 200 bytes are .58 of them, but int(.58 * 200) is 115."""
    tables = [Table("a", 8, 1), Table("b", 21, 2)]
    with pytest.raises(ValueError, match=r"is 116 bytes \(ratio 0\.5801\)"):
        plan(tables, parse_table("full"), {}, budget=115)
    assert plan_bytes(plan(tables, parse_table("full"), {}, ratio=0.5801)) == 116


def test_narrow_is_infeasible_below_one_number_a_row() -> None:
    with pytest.raises(ValueError, match=r"ratio 0\.0625"):
        _plan(CRITEO, "full", 0.0624)


@pytest.mark.parametrize(("text", "rate"), [("int8", 0.3125), ("fp16", 0.5)])
def test_precision_rates(text: str, rate: float) -> None:
    """int8 with a scale a row: b/32 + 1/d at d = 16."""
    assert _ratio(_plan(CRITEO, text)) == rate


@pytest.mark.parametrize("lookups", [1, 2, 4])
@pytest.mark.parametrize("subtables", [1, 3])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.001])
def test_multiplex_rows(lookups: int, subtables: int, ratio: float) -> None:
    """M = floor(B / (4 chunk T)), with B what the exact fields of at most five values leave."""
    text = f"multiplex(lookups={lookups}, subtables={subtables})"
    decided = _plan(CRITEO, text, ratio)
    exact = [one for one in decided.values() if one.table.rows <= 5]
    assert [one.table.rows for one in exact] == [3, 4]
    assert all(str(one.config) == "full" for one in exact)
    left = int(ratio * uncompressed_bytes(_tables(CRITEO))) - 7 * 16 * 4
    chunk = 16 // lookups
    shared = {row.name: row for one in decided.values() for row in one.places if one not in exact}
    assert len(shared) == subtables
    assert {row.rows for row in shared.values()} == {left // (4 * chunk * subtables)}
    assert {row.dim for row in shared.values()} == {chunk}


def test_multiplex_size_does_not_depend_on_the_vocabulary() -> None:
    for cardinalities in (CRITEO, AVAZU, [100_000] * 4):
        tables = _tables(cardinalities)
        decided = plan(tables, parse_table("multiplex(exact_rows=0)"), {}, budget=64 * 5000)
        assert _rows(decided) == 5000


def test_hashing_with_as_many_rows_as_values_still_collides() -> None:
    """The per-feature hashing of the comparisons: asked for by name, it stays at a ratio of one."""
    decided = _plan(CRITEO, "hash(exact_rows=5)", 1.0)
    assert [one.table.rows for one in decided.values() if str(one.config) == "full"] == [3, 4]
    assert _rows(decided) == sum(CRITEO)


def test_a_form_that_costs_more_bytes_than_the_plain_one_is_not_taken() -> None:
    """Halves of two int8 numbers and a scale: four rows of 6 bytes against three of 7."""
    decided = plan([Table("a", 3, 3)], parse_table("qr(combine=concat)+int8"), {}, budget=21)
    assert str(decided["a"].config) == "int8"
    assert plan_bytes(decided) == 21
