from __future__ import annotations

import gzip
import logging
import re

import polars as pl
import pytest
from criteo_files import criteo, line, prepared, random_rows, splits, write

from data.criteo import Criteo, CriteoConfig
from data.parquet import Parquet, ParquetConfig
from data.prepare import prepare


def spoil(row: int, column: int, cell: str):
    """Put a cell into one of 30 good lines."""

    def spoiled(lines: list[str]) -> list[str]:
        cells = lines[row].split("\t")
        cells[column] = cell
        return [*lines[:row], "\t".join(cells), *lines[row + 1 :]]

    return spoiled


BAD = {
    "label": (spoil(4, 0, "2"), r"train.txt:5: column 'label': expected a label 0 or 1, got '2'"),
    "no label": (spoil(4, 0, ""), r"train.txt:5: column 'label': expected a label 0 or 1, got No"),
    "hex": (spoil(29, 14, "xyz"), r"train.txt:30: column 'C1': expected a hexadecimal.*got 'xyz'"),
    "sign": (spoil(0, 39, "-1a"), r"train.txt:1: column 'C26': expected a hexadecimal.*'-1a'"),
    "plus": (spoil(0, 39, "+1a"), r"train.txt:1: column 'C26': expected a hexadecimal.*'\+1a'"),
    "wide": (spoil(0, 39, "1" * 17), r"train.txt:1: column 'C26': .*at most 16 digits, got '1{17}"),
    "integer": (spoil(7, 3, "1.5"), r"train.txt:8: column 'I3': expected a 64-bit int.*got '1.5'"),
    "big": (spoil(7, 3, str(2**63)), r"train.txt:8: column 'I3': expected a 64-bit integer"),
    "short": (
        lambda rows: [*rows[:9], "1\t2", *rows[10:]],
        r"train.txt:10: expected 40 columns, got 2",
    ),
    "long": (lambda rows: [rows[0] + "\t", *rows[1:]], r"train.txt:1: expected 40 columns, got 41"),
    "cut": (lambda rows: [*rows[:-1], rows[-1][:50]], r"train.txt:30: expected 40 columns, got"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_row_is_an_error(tmp_path, case):
    change, message = BAD[case]
    lines = change([line(row) for row in random_rows(30)])
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as caught:
        prepare(criteo(tmp_path))
    assert "data.bad_rows=skip" in str(caught.value)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("case", BAD)
def test_bad_row_is_skipped_and_counted(tmp_path, case):
    change, message = BAD[case]
    lines = change([line(row) for row in random_rows(30)])
    (tmp_path / "train.txt").write_text("\n".join(lines))
    store = prepared(tmp_path, bad_rows="skip")
    assert sum(store.schema.rows.values()) == 29
    report = store.stats["bad_rows"]
    assert report["count"] == 1
    assert len(report["first"]) == 1
    assert re.search(message, report["first"][0])


def test_many_bad_rows(tmp_path, caplog):
    rows = random_rows(40)
    lines = [line(row) for row in rows]
    for at in range(0, 40, 2):
        lines[at] = "oops" if at % 4 else spoil(at, 20, "oops")(lines)[at]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        store = prepared(tmp_path, tmp_path / "a.txt", bad_rows="skip")
    report = store.stats["bad_rows"]
    assert report["count"] == 20
    assert [int(text.split(":")[1]) for text in report["first"]] == list(range(1, 21, 2))
    assert "dropped 20 bad rows of 40" in caplog.text
    good = prepared(tmp_path, write(tmp_path / "b.txt", rows[1::2]))
    assert splits(store) == splits(good)


def test_first_bad_line_is_reported_whatever_its_column(tmp_path):
    lines = [line(row) for row in random_rows(9)]
    lines = spoil(6, 0, "7")(spoil(2, 39, "xx")(lines))
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"train.txt:3: .*'C26'"):
        prepare(criteo(tmp_path))


def test_line_numbers_run_over_blocks_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("data.text.BLOCK", 600)
    lines = spoil(17, 5, "x")([line(row) for row in random_rows(20)])
    (tmp_path / "train.txt").write_text("\n".join([*lines[:3], "", *lines[3:], ""]))
    with pytest.raises(ValueError, match=r"train.txt:19: column 'I5'"):
        prepare(criteo(tmp_path))


FILES = {
    "empty": (b"", r"train.txt: the file is empty"),
    "blank": (b"\n\n", r"no good row in .*train.txt"),
    "zero byte": (b"1\t2\n3\t\0", r"train.txt:2: found a zero byte: a binary file"),
    "no UTF-8": (b"\t\n\xff\xfe\n", r"train.txt:2: expected UTF-8 text, got the bytes"),
    "gzip of nothing": (gzip.compress(b""), r"train.txt: the file is empty"),
}


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("case", FILES)
def test_bad_file(tmp_path, case, policy):
    content, message = FILES[case]
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(criteo(tmp_path, bad_rows=policy))


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_truncated_gzip(tmp_path, policy, monkeypatch):
    monkeypatch.setattr("data.text.BLOCK", 500)
    path = write(tmp_path / "train.txt.gz", random_rows(200))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"train.txt.gz: the gzip data end or break after line \d+"
    ):
        prepare(criteo(tmp_path, bad_rows=policy))


def test_damaged_gzip(tmp_path):
    path = write(tmp_path / "train.txt.gz", random_rows(200))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train.txt.gz"):
        prepare(criteo(tmp_path))


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("data.text.BLOCK", 1000)
    (tmp_path / "train.txt").write_bytes(b"1" * 5000)
    with pytest.raises(ValueError, match=r"train.txt:1: a line of more than 1,000 bytes"):
        prepare(criteo(tmp_path))


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"train.txt: no such file.*data.root"):
        prepare(criteo(tmp_path))
    (tmp_path / "tarin.txt").touch()
    with pytest.raises(ValueError, match=r'Did you mean "tarin.txt"'):
        prepare(criteo(tmp_path))
    with pytest.raises(ValueError, match=r"data.root is not given"):
        Criteo(CriteoConfig()).inputs()
    with pytest.raises(ValueError, match=r"nowhere/train.txt: no such file. There is no folder"):
        prepare(criteo(tmp_path, tmp_path / "nowhere"))


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_text("label,x\n1,2\n")
    columns = [{"name": "x", "kind": "numeric"}]
    options = {"root": tmp_path, "store": tmp_path / "store", "columns": columns}
    with pytest.raises(ValueError, match=r"a.parquet: not a readable Parquet file"):
        prepare(Parquet(ParquetConfig(files=("a.parquet",), **options)))
    pl.DataFrame({"label": [1, 0, 3], "y": [1, 2, 3]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: no column 'x'.*It has: label, y"):
        prepare(Parquet(ParquetConfig(files=("b.parquet",), **options)))
    pl.DataFrame({"label": [1, 0, 3], "x": [1, 2, 3]}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c.parquet:row 3: column 'label': expected a label"):
        prepare(Parquet(ParquetConfig(files=("c.parquet",), **options)))
