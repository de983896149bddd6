"""The csv and parquet sources: columns declared in a configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from criteo_files import declared
from pydantic import TypeAdapter, ValidationError

from data.csv import Csv, CsvConfig
from data.hashing import MISSING, string_keys
from data.loader import Loader
from data.parquet import Parquet, ParquetConfig
from data.prepare import open_source, prepare
from data.source import sources
from data.store import Store

RECIPE = """
kind: csv
files: [a.csv]
label: click
group: user
day: time
day_length: 86400
split: {kind: last_day}
columns:
  - {name: user, kind: categorical}
  - {name: item, kind: categorical, type: integer, vocabulary: open}
  - {name: price, kind: numeric, transform: log1p}
  - {name: tags, kind: multi, separator: "|"}
  - {name: history, kind: sequence, separator: " ", type: integer, table: item,
     vocabulary: open, max_length: 2}
"""

CSV = """click,unused,time,user,item,price,tags,history
1,?,0,u1,7,3.5,a|b,1 2 3
0,?,5,"u,2",8,,,
1,?,86399,u1,-9,-4,b||c,7
0,?,86400,new,7,0,b,
1,?,86401,,,1,"z",9 9
"""


def make(folder, text: str, **changes):
    options = {**yaml.safe_load(text), "root": folder, "store": folder / "store", **changes}
    config = TypeAdapter(sources.get(options["kind"]).Config).validate_python(options)
    return open_source(config)


def rows(store: Store, split: str, key: str) -> list[list[int]]:
    size = store.schema.rows[split]
    batch = next(iter(Loader(store, split, size, prefetch=0)))
    return [bag.tolist() for bag in batch.features[key].to_dense()]


@pytest.mark.parametrize("window", [2, 2**16])
def test_a_new_data_set_is_a_yaml_file(tmp_path, monkeypatch, window):
    monkeypatch.setattr("data.arrays.JAGGED_WINDOW", window)
    (tmp_path / "a.csv").write_text(CSV)
    store = Store.open(prepare(make(tmp_path, RECIPE)))
    assert store.schema.rows == {"train": 3, "valid": 1, "test": 1}
    assert store.schema.group == "user"
    assert [t.name for t in store.schema.tables] == ["user", "item", "tags"]
    u1, u2 = string_keys(["u1", "u,2"]).tolist()
    assert store.keys("user")[1:].tolist() == [u1, u2]
    a, b, c = string_keys(["a", "b", "c"]).tolist()
    assert store.keys("tags")[1:].tolist() == [b, *sorted([a, c])]
    ids = {key: i for i, key in enumerate(store.keys("tags").tolist())}
    assert rows(store, "train", "tags") == [[ids[a], ids[b]], [], [ids[b], ids[c]]]
    assert rows(store, "test", "tags") == [[0]]
    assert rows(store, "train", "user") == [[1], [2], [1]]
    assert rows(store, "test", "user") == [[0]]
    assert rows(store, "train", "item") == [[7], [8], [-9]]
    assert rows(store, "test", "item") == [[MISSING]]
    assert rows(store, "train", "history") == [[2, 3], [], [7]]
    assert rows(store, "test", "history") == [[9, 9]]
    # Distinct training ids of item and history together: 7, 8, -9 and 2, 3, 7.
    assert store.schema.tables[1].rows == 5
    batch = next(iter(Loader(store, "train", 9)))
    assert batch.group is not None
    assert batch.group.tolist() == [u1, u2, u1]
    assert batch.dense[:, 0].tolist() == pytest.approx([1.5040774, 0, 0])


def test_shared_table_counts_both_columns(tmp_path):
    (tmp_path / "a.csv").write_text("label,item,past\n1,a,b b\n0,b,a\n1,c,\n")
    columns: list[dict[str, Any]] = [
        {"name": "item", "kind": "categorical"},
        {"name": "past", "kind": "sequence", "separator": " ", "table": "item"},
    ]
    options = {"root": tmp_path, "store": tmp_path, "train": ("a.csv",)}
    store = Store.open(prepare(Csv(CsvConfig(columns=declared(columns), **options))))
    assert store.counts["item"].tolist() == [0, 3, 2, 1]
    assert rows(store, "train", "past") == [[1, 1], [2], []]
    assert rows(store, "train", "item") == [[2], [1], [3]]
    columns[1] |= {"min_count": 3}
    with pytest.raises(
        ValueError, match=r"'item' and 'past' share table 'item'.*min_count: 1 and 3"
    ):
        prepare(Csv(CsvConfig(columns=declared(columns), **options)))


def test_delimiter_names_and_fixed_split(tmp_path):
    for split, text in {
        "train": "1\tx\t2\n0\ty\t3\n",
        "valid": "1\tx\t4\n",
        "test": "0\tz\t5",
    }.items():
        (tmp_path / f"{split}.tsv").write_text(text)
    columns = [{"name": "n", "kind": "numeric", "normalize": "minmax"}]
    config = CsvConfig(
        root=tmp_path,
        store=tmp_path / "store",
        columns=declared(columns),
        delimiter="\t",
        names=("label", "id", "n"),
        train=("train.tsv",),
        valid=("valid.tsv",),
        test=("test.tsv",),
    )
    store = Store.open(prepare(Csv(config)))
    assert store.schema.rows == {"train": 2, "valid": 1, "test": 1}
    assert store.split("test").dense.tolist() == [[3.0]]


def test_parquet_gives_what_csv_gives(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    frame = pl.DataFrame(
        {
            "click": [True, False, True, False, True],
            "time": [0, 5, 86399, 86400, 86401],
            "user": ["u1", "u,2", "u1", "new", None],
            # Whole numbers with a gap, as pandas writes them.
            "item": [7.0, 8.0, -9.0, 7.0, float("nan")],
            "price": [3.5, None, -4, 0, 1],
            "tags": [["a", "b"], None, ["b", None, "c"], ["b"], ["z"]],
            "history": ["1 2 3", None, "7", "", "9 9"],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    columns = yaml.safe_load(RECIPE)["columns"]
    columns[3].pop("separator")
    changes = {"kind": "parquet", "files": ["a.parquet"], "columns": columns}
    text = Store.open(prepare(make(tmp_path, RECIPE)))
    store = Store.open(prepare(make(tmp_path, RECIPE, **changes)))
    for split in ("train", "valid", "test"):
        for key in ("user", "item", "tags", "history"):
            assert rows(store, split, key) == rows(text, split, key)
        assert store.split(split).dense.tolist() == text.split(split).dense.tolist()
        assert store.split(split).label.tolist() == text.split(split).label.tolist()
        assert np.array_equal(store.split(split).group, text.split(split).group)  # pyright: ignore[reportArgumentType]


def test_parquet_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("data.parquet.ROWS", 100)
    frame = pl.DataFrame({"label": [0, 1] * 500, "x": range(1000)})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=130)
    columns = declared([{"name": "x", "kind": "numeric"}])
    config = ParquetConfig(root=tmp_path, store=tmp_path, columns=columns, train=("a.parquet",))
    store = Store.open(prepare(Parquet(config)))
    assert store.split("train").dense[:, 0].tolist() == list(range(1000))


@pytest.mark.parametrize("chunk", [70, 2**18])
def test_pairs_are_clicks_and_a_share_of_the_training_rows_validates(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("data.parquet.ROWS", chunk)
    pairs = {"user": np.arange(1000) % 50, "item": np.arange(1000)}
    pl.DataFrame(pairs)[:600].write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(pairs)[600:900].write_parquet(tmp_path / "b.parquet")
    pl.DataFrame(pairs)[900:].write_parquet(tmp_path / "test.parquet")
    columns = declared([{"name": name, "kind": "categorical"} for name in pairs])

    def held(share: float, seed: int) -> set[int]:
        config = ParquetConfig.model_validate(
            {
                "root": tmp_path,
                "store": tmp_path,
                "columns": columns,
                "label": None,
                "train": ("a.parquet", "b.parquet"),
                "test": ("test.parquet",),
                "valid_share": share,
                "split": {"seed": seed},
            }
        )
        store = Store.open(prepare(Parquet(config)))
        assert all(store.split(name).label.all() for name in ("train", "valid", "test"))
        assert store.schema.rows["test"] == 100
        assert store.schema.rows["train"] + store.schema.rows["valid"] == 900
        trained = set(store.keys("item")[1:].tolist())
        assert len(trained) == store.schema.rows["train"]
        return set(range(900)) - trained

    assert held(0, 0) == set()
    drawn = held(0.2, 0)
    assert abs(len(drawn) - 180) < 5 * (900 * 0.2 * 0.8) ** 0.5
    assert min(drawn) < 100
    assert max(drawn) > 800
    assert drawn < held(0.4, 0)  # the rows do not change, more are added
    assert drawn != held(0.2, 1)


BAD_CELLS = {
    "inner quote": (
        '1,?,0,"u"x,1,1,a,1',
        r"a.csv:2: expected 8 columns, got a quote without an end or inside a value",
    ),
    "price": ("1,?,0,u,1,cheap,a,1", r"a.csv:2: column 'price': expected a number, got 'cheap'"),
    "infinite": ("1,?,0,u,1,inf,a,1", r"a.csv:2: column 'price': expected a finite number"),
    "history": ("1,?,0,u,1,1,a,1 x", r"a.csv:2: column 'history': expected a 64-bit int.*'x'"),
    "day": ("1,?,,u,1,1,a,1", r"a.csv:2: column 'time': expected a whole number"),
    "quote": (
        '1,?,0,"u,1,1,a,1',
        r"a.csv:2: expected 8 columns, got a quote without an end or inside a value",
    ),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_bad_cells(tmp_path, case):
    bad, message = BAD_CELLS[case]
    header, *good = CSV.splitlines()
    (tmp_path / "a.csv").write_text("\n".join([header, bad, *good]))
    with pytest.raises(ValueError, match=message):
        prepare(make(tmp_path, RECIPE))
    store = Store.open(prepare(make(tmp_path, RECIPE, bad_rows="skip")))
    assert store.stats["bad_rows"]["count"] == 1
    assert rows(store, "train", "history") == [[2, 3], [], [7]]


def test_header_names_are_checked(tmp_path):
    (tmp_path / "a.csv").write_text(CSV.replace("history", "histroy", 1))
    with pytest.raises(ValueError, match=r"no column 'history'.*Did you mean \"histroy\"\?"):
        prepare(make(tmp_path, RECIPE))
    (tmp_path / "a.csv").write_text(CSV.replace("unused", "user", 1))
    with pytest.raises(ValueError, match=r"a.csv:1: the header names 'user' twice"):
        prepare(make(tmp_path, RECIPE))
    (tmp_path / "a.csv").write_text("\ufeff" + CSV)
    assert prepare(make(tmp_path, RECIPE)).is_dir()


WRONG = {
    "no files": ({"files": []}, "give either `files`, or `train`"),
    "both": ({"train": ["a.csv"]}, "give either `files`, or `train`"),
    "fixed": ({"split": {"kind": "fixed"}}, "split.kind=fixed does not fit"),
    "share": ({"valid_share": 0.1}, "valid_share=0.1 takes rows out of `train` files"),
    "share and file": (
        {
            "files": [],
            "train": ["a.csv"],
            "valid": ["b.csv"],
            "valid_share": 0.1,
            "split": {"seed": 1},
        },
        "leave out `valid`",
    ),
    "separator": (
        {"columns": [{"name": "x", "kind": "numeric", "separator": "|"}]},
        "column 'x': only a multi or sequence column has a separator",
    ),
    "type": (
        {"columns": [{"name": "x", "kind": "numeric", "type": "hex"}]},
        "column 'x': a numeric column has no type",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_do_not_fit(tmp_path, case):
    changes, message = WRONG[case]
    with pytest.raises(ValidationError, match=message):
        make(tmp_path, RECIPE, **changes)


def test_column_names_must_name_files(tmp_path):
    (tmp_path / "a.csv").write_text("label,a/b\n1,2\n")
    columns = [{"name": "a/b", "kind": "categorical"}]
    config = CsvConfig(root=tmp_path, store=tmp_path, columns=declared(columns), train=("a.csv",))
    with pytest.raises(ValueError, match="'a/b' cannot name a file"):
        prepare(Csv(config))


def test_text_lists_need_a_separator(tmp_path):
    (tmp_path / "a.csv").write_text("label,tags\n1,a b\n")
    columns = [{"name": "tags", "kind": "multi"}]
    config = CsvConfig(root=tmp_path, store=tmp_path, columns=declared(columns), train=("a.csv",))
    with pytest.raises(ValueError, match=r"a.csv: column 'tags' is no list: give its separator"):
        prepare(Csv(config))
