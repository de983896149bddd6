"""Raw rows become, without the store, what the loader delivers for them: every source, every form."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from criteo_files import criteo, line, random_rows, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_amazon import _write_json, _write_lists
from test_avazu_frappe import HEADER, avazu, avazu_line
from test_declared import CSV, RECIPE, make
from test_movielens import MOVIES, RATINGS, USERS, _ml1m

from data.amazon import Amazon, AmazonConfig, draw_negatives
from data.batch import Batch
from data.csv import Csv, CsvConfig
from data.encoder import Encoder
from data.frappe_x1 import FIELDS, Frappe, FrappeConfig
from data.hashing import MISSING
from data.loader import Loader
from data.movielens import MovieLens, MovieLensConfig
from data.parquet import Parquet, ParquetConfig
from data.prepare import prepare
from data.schema import SPLITS
from data.source import Source
from data.store import Store
from data.synthetic import Synthetic, SyntheticConfig

ALL = {"kind": "random", "parts": (1, 0, 0)}
"""Every row trains."""

Content = tuple[list[float], list[list[int]]]
Files = dict[str, Path]


def content(batches: Iterable[Batch]) -> list[Content]:
    """Return dense numbers and ids of every field, row by row."""
    rows: list[Content] = []
    for batch in batches:
        keys: list[str] = list(batch.features.keys())
        bags = [[bag.tolist() for bag in batch.features[key].to_dense()] for key in keys]
        rows += zip(batch.dense.tolist(), map(list, zip(*bags, strict=True)), strict=True)
    return rows


def stored(store: Store) -> list[Content]:
    """Return the rows of all splits, one after another."""
    return [row for split in SPLITS for row in content(Loader(store, split, 7, prefetch=0))]


def encoder_of(source: Source, folder: Path) -> tuple[Encoder, Store]:
    """Return the encoder as read from its files, and the store."""
    store = Store.open(prepare(source))
    folder.mkdir(exist_ok=True)
    Encoder.of(source, store).save(folder)
    return Encoder.load(folder), store


# -- sources: what is prepared, and the same rows as somebody would write them to be predicted ------


def criteo_numbers(folder: Path) -> tuple[Source, Files]:
    rows = random_rows(60, values=40)
    source = criteo(
        folder, write(folder / "train.txt", rows), normalize="standard", min_count=2,
        split={"kind": "last_seventh"},
    )  # fmt: skip
    bare = "".join(line(row).partition("\t")[2] + "\n" for row in rows)
    (folder / "bare").write_bytes(gzip.compress(bare.encode()))
    (folder / "bare.tsv").write_text(bare.replace("\n", "\r\n"))
    names = [*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    frame = pl.DataFrame(
        [[*integers, *categories] for _, integers, categories in rows], schema=names, orient="row"
    )
    frame.select(names[::-1]).write_parquet(folder / "rows.parquet")
    return source, {
        "raw": folder / "train.txt", "without label": folder / "bare",
        "windows": folder / "bare.tsv", "parquet": folder / "rows.parquet",
    }  # fmt: skip


def criteo_categories(folder: Path) -> tuple[Source, Files]:
    path = write(folder / "a.txt", random_rows(40))
    options = {"integers": "category", "vocabulary": "open", "split": ALL}
    return criteo(folder, path, **options), {"raw": path}


def generic(folder: Path) -> tuple[Source, Files]:
    (folder / "a.csv").write_text(CSV)
    bare = [re.sub("^[^,]*,", "", row) for row in CSV.splitlines()]
    (folder / "bare.csv").write_text("\n".join([*bare[:2], "", *bare[2:]]))
    frame = pl.read_csv(CSV.encode(), infer_schema_length=9)
    frame.write_csv(folder / "a.tsv", separator="\t")
    lists = [None if cell is None else cell.split("|") for cell in frame["tags"]]
    # As pandas writes them: numbers with gaps as floats.
    frame = frame.with_columns(pl.Series("tags", lists), item=pl.col("item").cast(pl.Float64))
    frame.write_parquet(folder / "a.parquet")
    return make(folder, RECIPE), {
        "csv": folder / "a.csv", "without label": folder / "bare.csv",
        "tsv": folder / "a.tsv", "parquet": folder / "a.parquet",
    }  # fmt: skip


def headerless(folder: Path) -> tuple[Source, Files]:
    (folder / "a.txt").write_text('1;"x;y";2\n0;y;\n1;;3.5\n')
    (folder / "bare.txt").write_text('"x;y";2\ny;\n;3.5\n')
    columns = [{"name": "n", "kind": "numeric", "normalize": "minmax"},
               {"name": "id", "kind": "categorical"},
               {"name": "again", "kind": "categorical", "cell": "id", "vocabulary": "open"}]  # fmt: skip
    config = CsvConfig.model_validate(
        {"root": folder, "store": folder / "store", "columns": columns, "label": "y",
         "names": ("y", "id", "n"), "delimiter": ";", "files": ("a.txt",), "split": ALL}
    )  # fmt: skip
    return Csv(config), {"raw": folder / "a.txt", "without label": folder / "bare.txt"}


def typed(folder: Path) -> tuple[Source, Files]:
    """Parquet whose ids are integers, lists of them, and strings of which one is empty."""
    frame = pl.DataFrame(
        {
            "label": [1, 0, 1],
            "user": [7, None, 9],
            "past": [[1, 2], [], [2]],
            "tag": ["", None, "b"],
        }
    )
    frame.write_parquet(folder / "a.parquet")
    frame[:, 1:].write_parquet(folder / "bare.parquet")
    columns = [{"name": "user", "kind": "categorical"}, {"name": "past", "kind": "sequence"},
               {"name": "tag", "kind": "categorical"}]  # fmt: skip
    config = ParquetConfig.model_validate(
        {"root": folder, "store": folder / "store", "columns": columns, "files": ("a.parquet",),
         "split": ALL}
    )  # fmt: skip
    return Parquet(config), {"raw": folder / "a.parquet", "without label": folder / "bare.parquet"}


def avazu_log(folder: Path) -> tuple[Source, Files]:
    hours = ["14102100", "14102123", "14102205", "14102206"]
    lines = [HEADER, *(avazu_line(n, hour) for n, hour in enumerate(hours, 1))]
    (folder / "train.csv").write_text("\n".join(lines))
    bare = [",".join([*row.split(",")[:1], *row.split(",")[2:]]) for row in lines]
    (folder / "test.csv").write_text("\n".join(bare))
    return avazu(folder), {"raw": folder / "train.csv", "without label": folder / "test.csv"}


def frappe(folder: Path) -> tuple[Source, Files]:
    rows = [[v % 2, *range(v, v + 10)] for v in [1, 2, 2, 1, 5, 2, 3]]
    text = [",".join(["label", *FIELDS]), *(",".join(map(str, row)) for row in rows)]
    for split, part in {"train": text[1:5], "valid": text[5:7], "test": text[7:]}.items():
        (folder / f"{split}.csv").write_text("\n".join([text[0], *part]))
    (folder / "all.csv").write_text("\n".join(text))
    source = Frappe(FrappeConfig(root=folder, store=folder / "store"))
    return source, {"raw": folder / "all.csv"}


def movielens(folder: Path) -> tuple[Source, Files]:
    _ml1m(folder)
    lines = ["user_id,movie_id,gender,age,occupation,zip,year,genres"]
    for user, movie, rating in RATINGS:
        title, genres = MOVIES[movie]
        year = re.findall(r"\((\d+)\)$", title)
        if rating != 3:
            cells = [user, movie, *USERS[user], *(year or [""]), "|".join(genres)]
            lines.append(",".join(map(str, cells)))
    (folder / "rows.csv").write_text("\n".join(lines))
    options = {"root": folder, "store": folder / "store", "split": ALL, "movie_features": True}
    return MovieLens(MovieLensConfig.model_validate(options)), {"joined": folder / "rows.csv"}


def amazon(
    folder: Path, form: Callable[[Path], None], item: str, category: str
) -> tuple[Source, Files]:
    """Write the rows that the source makes, in its raw values."""
    form(folder)
    source = Amazon(AmazonConfig(root=folder, store=folder / "store", max_length=2))
    reviews = source._reviews()
    negative = draw_negatives(reviews, "uniform", 0)
    texts = {key: str(key) for key in [*range(100), *reviews.item_keys.tolist()]}
    if item:
        from data.hashing import string_keys

        texts = {int(string_keys([f"{item}{n}"])[0]): f"{item}{n}" for n in range(100)}
        texts |= {int(string_keys([f"{category}{n}"])[0]): f"{category}{n}" for n in range(100)}
    items = [texts[key] for key in reviews.item_keys.tolist()]
    categories = [texts.get(key, "") for key in reviews.category_keys.tolist()]
    lines, parts = ["item,category,item_history,category_history"], {0: [], 1: [], 2: []}
    for at in np.flatnonzero(reviews.before > 0):
        past = reviews.item[at - reviews.before[at] : at].tolist()
        for now in (reviews.item[at], negative[at]):
            cells = [items[now], categories[now], "|".join(items[i] for i in past),
                     "|".join(categories[i] or "" for i in past)]  # fmt: skip
            parts[int(reviews.split[at])].append(",".join(cells))
    (folder / "rows.csv").write_text("\n".join([*lines, *chain(*parts.values())]))
    return source, {"assembled": folder / "rows.csv"}


def amazon_numbers(folder: Path) -> tuple[Source, Files]:
    return amazon(folder, _write_lists, "", "")


def amazon_names(folder: Path) -> tuple[Source, Files]:
    return amazon(folder, _write_json, "B", "c")


def synthetic(folder: Path) -> tuple[Source, Files]:
    options = {"rows": 1000, "history": True, "min_count": 3, "split": ALL}
    source = Synthetic(SyntheticConfig.model_validate({**options, "store": folder / "store"}))
    (chunk,) = source.chunks()
    (name, (values, lengths)), = chunk.jagged.items()  # fmt: skip
    past = [bag.tolist() for bag in np.split(values, np.cumsum(lengths)[:-1])]
    single = {k: pl.Series(v).replace(MISSING, None) for k, v in chunk.single.items()}
    whole = {k: pl.Series(v).fill_nan(None) for k, v in chunk.numeric.items()}
    numeric = {k: v.cast(pl.Int64) for k, v in whole.items()}
    frame = pl.DataFrame({**single, **numeric, name: past})
    frame.write_parquet(folder / "rows.parquet")
    frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join("|")).write_csv(
        folder / "a.csv"
    )
    return source, {"parquet": folder / "rows.parquet", "csv": folder / "a.csv"}


SOURCES = [
    criteo_numbers, criteo_categories, generic, headerless, typed, avazu_log, frappe, movielens,
    amazon_numbers, amazon_names, synthetic,
]  # fmt: skip


@pytest.mark.parametrize("build", SOURCES)
def test_raw_rows_give_what_the_loader_delivers(tmp_path, monkeypatch, build):
    monkeypatch.setattr("data.text.BLOCK", 1500)
    source, files = build(tmp_path)
    encoder, store = encoder_of(source, tmp_path / "encoder")
    expected = stored(store)
    shutil.rmtree(store.path)
    for form, path in files.items():
        found = [content([batch]) for batch in encoder.batches(path, 8)]
        assert [len(rows) for rows in found[:-1]] == [8] * (len(found) - 1)
        assert [*chain(*found)] == expected, form


@pytest.mark.parametrize("build", [generic, typed, criteo_numbers])
def test_frames_and_lists_give_what_files_give(tmp_path, build):
    source, files = build(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    frame = pl.read_parquet(files.get("parquet", files.get("raw")))
    expected = content(encoder.batches(files["raw" if "raw" in files else "csv"], 100))
    forms: dict[str, Any] = {
        "polars": frame,
        "pandas": frame.to_pandas(),
        "lists": frame.to_dict(as_series=False),
        "arrays": {name: column.to_numpy() for name, column in frame.to_dict().items()},
    }
    for form, values in forms.items():
        assert content([encoder.batch(values)]) == expected, form
    one = [content([encoder.batch(frame[at])]) for at in range(len(frame))]
    assert [*chain(*one)] == expected


cells = st.sampled_from(["", "a", "b", "new", "7", " a", "x y", "é"])
numbers = st.none() | st.floats(-1e6, 1e6, width=32)
Row = tuple[str, float | None, list[str]]


@settings(max_examples=25)
@given(
    rows=st.lists(st.tuples(cells, numbers, st.lists(cells, max_size=4)), min_size=7, max_size=40),
    min_count=st.integers(1, 3),
    most=st.none() | st.integers(1, 3),
    size=st.integers(1, 9),
    transform=st.sampled_from(["none", "log1p"]),
    normalize=st.sampled_from(["none", "standard", "minmax"]),
)
def test_any_rows_are_encoded_as_they_were_prepared(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row], min_count: int, most: int | None, size: int, transform: str, normalize: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    lines = [
        f"{at % 2},{one},{'' if number is None else repr(number)},{'|'.join(many)}"
        for at, (one, number, many) in enumerate(rows)
    ]
    (folder / "a.csv").write_text("\n".join(["label,one,number,many", *lines]))
    columns = [
        {"name": "one", "kind": "categorical", "min_count": min_count},
        {"name": "number", "kind": "numeric", "transform": transform, "normalize": normalize},
        {"name": "raw", "cell": "one", "kind": "categorical", "vocabulary": "open"},
        {"name": "many", "kind": "sequence", "separator": "|", "max_length": most,
         "table": "one", "min_count": min_count},
    ]  # fmt: skip
    config = CsvConfig.model_validate(
        {"root": folder, "store": folder / "store", "columns": columns, "files": ("a.csv",),
         "split": {"kind": "last_seventh"}}
    )  # fmt: skip
    encoder, store = encoder_of(Csv(config), folder / "encoder")
    assert content(encoder.batches(folder / "a.csv", size)) == stored(store)
    frame = {
        "one": [c for c, _, _ in rows],
        "number": [x for _, x, _ in rows],
        "many": [many for _, _, many in rows],
    }
    assert content([encoder.batch(frame)]) == stored(store)


def test_the_files_are_the_same_for_the_same_data(tmp_path):
    source, _ = criteo_numbers(tmp_path)
    for name in ("a", "b"):
        encoder_of(source, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    described = json.loads((tmp_path / "a" / "encoder.json").read_text())
    assert str(tmp_path) not in json.dumps(described)


def test_unseen_values_read_the_unknown_row(tmp_path):
    source, _ = generic(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    frame = {"user": ["nobody"], "item": [123], "price": [None], "tags": ["zz|b"], "history": [[5]]}
    ((dense, ids),) = content([encoder.batch(frame)])
    assert (dense, ids) == ([0.0], [[0], [123], [0, 1], [5]])


def test_no_rows(tmp_path):
    source, files = generic(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    for name, form in files.items():
        empty = tmp_path / f"empty{form.suffix}"
        if name == "parquet":
            pl.read_parquet(form)[:0].write_parquet(empty)
        else:
            empty.write_text(form.read_text().partition("\n")[0] + "\n")
        assert list(encoder.batches(empty, 8)) == []
    frame = pl.read_parquet(files["parquet"])[:0]
    assert encoder.batch(frame).features.values().tolist() == []


LINE = "1,u1,7,3.5,a|b,1 2 3"
NAMES = "time,user,item,price,tags,history"
BAD_FILES = {
    "another delimiter": ("user;item;price\n1;2;3", r"no column 'user'.*Is the delimiter ';'\?"),
    "missing column": ("user,item\n1,2", r"bad.csv:1: no column 'price'\. It has: user, item"),
    "typo": (NAMES.replace("history", "histroy"), r"'history'\. Did you mean \"histroy\"\?"),
    "integer": (f"{NAMES}\n{LINE}\n1,u,x,1,a,1", r"bad.csv:3: .*'item': .*64-bit.*'x'\. Every row"),
    "number": (f"{NAMES}\n1,u,7,cheap,a,1", r"bad.csv:2: .*'price': expected a number, got 'cheap'"),
    "element": (f"{NAMES}\n1,u,7,1,a,1 x", r"bad.csv:2: .*'history': expected a 64-bit int"),
    "short": (f"{NAMES}\n\n1,u", r"bad.csv:3: expected 6 columns, got 2: '1,u'"),
    "empty": ("", r"bad.csv: the file is empty"),
    "binary": (f"{NAMES}\n1,\0", r"bad.csv:2: found a zero byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    text, message = BAD_FILES[case]
    source, _ = generic(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        list(encoder.batches(tmp_path / "bad.csv", 8))
    assert "data." not in str(caught.value)


def test_bad_criteo_lines(tmp_path):
    source, _ = criteo_numbers(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    bare = line(random_rows(1)[0]).partition("\t")[2]
    for text, message in {
        f"{bare}\n{bare}\t\n": r"rows:2: expected 39 columns, got 40",
        "1\t2\n": r"rows:1: expected 39 columns, got 2",
        f"0\t{bare}\n0\t{bare[:-1]}zz\n": r"rows:2: column 'C26': expected a hexadecimal",
    }.items():
        (tmp_path / "rows").write_text(text)
        with pytest.raises(ValueError, match=message):
            list(encoder.batches(tmp_path / "rows", 8))


GOOD: dict[str, Any] = {
    "user": ["u1", "u2"], "item": [1, 2], "price": [1, None], "tags": ["a", "b|c"],
    "history": [[1], []],
}  # fmt: skip
BAD_VALUES = {
    "a float as text": ({"user": [1.0, None]}, r"row 1: column 'user': expected a string, got 1\.0"),
    "text as integer": ({"item": ["7", "x"]}, r"row 2: column 'item': expected a 64-bit int.* got 'x'"),
    "a broken integer": ({"item": [1, 2.5]}, r"row 2: column 'item': expected a 64-bit int.*'2.5'"),
    "mixed": ({"price": [1, "?"]}, r"row 2: column 'price': expected a number, got '\?'"),
    "element": ({"history": [[1], ["y"]]}, r"row 2: column 'history': expected a 64-bit integer"),
    "lengths": ({"item": [1]}, "rows: columns of different lengths"),
    "one value": ({"item": 7}, "column 'item': expected one value a row, in a list, got 7"),
    "one string": ({"user": "u1"}, "column 'user': expected one value a row, in a list, got 'u1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(tmp_path, case):
    changes, message = BAD_VALUES[case]
    source, _ = generic(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    assert len(content([encoder.batch(GOOD)])) == 2
    with pytest.raises(ValueError, match=message):
        encoder.batch({**GOOD, **changes})
    with pytest.raises(ValueError, match=r"rows: no column 'tags'\. It has: user, item"):
        encoder.batch({name: values for name, values in GOOD.items() if name != "tags"})


def test_hexadecimals_are_text(tmp_path):
    source, files = criteo_numbers(tmp_path)
    encoder, _ = encoder_of(source, tmp_path / "encoder")
    frame = pl.read_parquet(files["parquet"])[:2]
    with pytest.raises(
        ValueError, match=r"row 1: column 'C7': expected a hexadecimal, as text, got 17"
    ):
        encoder.batch(frame.with_columns(pl.lit(17).alias("C7")))


def test_data_of_an_earlier_version_are_refused(tmp_path):
    source, _ = frappe(tmp_path)
    store = Store.open(prepare(source))
    schema = json.loads((store.path / "schema.json").read_text())
    for column in schema["columns"]:
        del column["type"]
    (store.path / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(ValueError, match=r"does not say how to read user.*embtables prepare"):
        Encoder.of(source, Store.open(store.path))


def test_what_is_no_encoder_is_refused(tmp_path):
    source, _ = frappe(tmp_path)
    folder = tmp_path / "encoder"
    encoder_of(source, folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in whole.items():
        for broken in (content[: len(content) // 2], b"{}", b""):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=r"encoder: no encoder of raw rows in it \("):
                Encoder.load(folder)
        path.unlink()
        with pytest.raises(ValueError, match=rf"encoder: no .*{path.name}: no such file"):
            Encoder.load(folder)
        path.write_bytes(content)
    text = (folder / "encoder.json").read_text().replace('"format": 1', '"format": 2')
    (folder / "encoder.json").write_text(text)
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        Encoder.load(folder)
