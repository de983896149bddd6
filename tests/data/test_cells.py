"""Cells read as words of characters against plain Python and against the reader of strings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import text
from data.cells import Cells, Irregular
from data.hashing import MISSING
from data.rows import BadRows, Numbers

NAMES = ("label", "i", "h")
LAYOUT = text.Layout(NAMES, "\t")

digits = st.text("0123456789", min_size=1, max_size=16)
integers = st.builds(lambda sign, rest: sign + rest, st.sampled_from(["", "-"]), digits)
hexadecimals = st.text("0123456789abcdefABCDEF", min_size=1, max_size=16)
plain = st.lists(
    st.tuples(st.sampled_from("01"), st.just("") | integers, st.just("") | hexadecimals),
    min_size=1,
    max_size=12,
)


def lines(rows) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def signed(cell: str) -> int:
    value = int(cell, 16)
    return value - 2**64 if value >= 2**63 else value


@given(rows=plain)
def test_plain_cells_are_what_python_reads(rows):
    cells = Cells(lines(rows), NAMES, "\t")
    assert len(cells) == len(rows)
    assert cells.labels("label").tolist() == [float(label) for label, _, _ in rows]
    assert cells.integers("i").tolist() == [int(i) if i else MISSING for _, i, _ in rows]
    assert cells.hexadecimals("h").tolist() == [signed(h) if h else MISSING for *_, h in rows]


@pytest.mark.parametrize("column", NAMES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_every_character_but_the_digits_is_irregular(column, at):
    """In the first, a middle and the last place of a cell of three."""
    good = {"label": "01", "i": "0123456789", "h": "0123456789abcdefABCDEF"}[column]
    size = 1 if column == "label" else 3
    for code in {*range(1, 128)} - {ord("\n"), ord("\t")}:
        char = chr(code)
        cell = {name: "1" for name in NAMES}
        cell[column] = char if size == 1 else "1" * at + char + "1" * (2 - at)
        cells = Cells(lines([("1", "1", "1"), tuple(cell.values())]), NAMES, "\t")
        read = {"label": cells.labels, "i": cells.integers, "h": cells.hexadecimals}[column]
        if char in good or (column == "i" and char == "-" and at == 0):
            assert len(read(column)) == 2
        else:
            with pytest.raises(Irregular):
                read(column)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("label", ""),
        ("label", "10"),
        ("i", "-"),
        ("i", "1" * 17),
        ("i", "-" + "1" * 17),
        ("h", "1" * 17),
        ("h", "1" * 9 + "g"),
        ("h", "g" + "1" * 9),
        ("h", "é"),
    ],
)
def test_irregular_cells(column, cell):
    row = {**dict.fromkeys(NAMES, "1"), column: cell}
    cells = Cells(lines([tuple(row.values())]), NAMES, "\t")
    with pytest.raises(Irregular):
        {"label": cells.labels, "i": cells.integers, "h": cells.hexadecimals}[column](column)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\n",
        b"1\t2\n",
        b"1\t2\t3\t4\n",
        b"1\t2\n3\t4\t5\t6\n",
        b"1\t2\t3\n\n",
        b"1\t2\t3\n1\t\n2\n",
    ],
)
def test_irregular_lines(block):
    with pytest.raises(Irregular):
        Cells(block, NAMES, "\t")


def parse(rows: Numbers) -> list[tuple]:
    columns = rows.labels("label"), rows.integers("i"), rows.hexadecimals("h")
    return list(zip(*(column.tolist() for column in columns), strict=True))


def all_of(read, path) -> tuple[list[tuple], int, list[str]]:
    bad = BadRows("skip")
    rows = [row for block in read(path, LAYOUT, NAMES, parse, bad) for row in block]
    return rows, bad.count, bad.first


odd = st.sampled_from(["", "+1", "-", "1.0", " 1", "xyz", "12345678901234567", "00", '"1"', "-0"])


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["0", "1", "1", "2", ""]), integers | odd, hexadecimals | odd)
        | st.tuples(digits, digits)
        | st.just(("",)),
        min_size=1,
        max_size=30,
    ),
    block=st.integers(64, 400),
)
def test_both_readers_agree_on_good_and_bad_rows(tmp_path_factory, rows, block):
    path = tmp_path_factory.mktemp("both") / "rows.txt"
    path.write_bytes(lines(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.text.BLOCK", block)
        assert all_of(text.read_numbers, path) == all_of(text.read, path)


def test_regular_blocks_are_read_without_strings(tmp_path, monkeypatch):
    """Or the quick reader could be out of order and nobody would know but by the time it takes."""
    monkeypatch.setattr("data.text.BLOCK", 200)
    rows = [("1", str(i), f"{i:x}") for i in range(100)]
    rows[70] = ("1", "70", "zz")
    path = tmp_path / "rows.txt"
    path.write_bytes(lines(rows))
    slow: list[int] = []
    monkeypatch.setattr(
        "data.text._rows",
        lambda *given, original=text._rows: slow.append(given[2]) or original(*given),
    )
    found, count, first = all_of(text.read_numbers, path)
    assert len(found) == 99
    assert count == 1
    assert "rows.txt:71: column 'h'" in first[0]
    assert len(slow) == 1
    assert found[:70] == [(1.0, i, i) for i in range(70)]
    assert np.diff([i for _, i, _ in found]).max() == 2
