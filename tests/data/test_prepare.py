from __future__ import annotations

import json
import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from criteo_files import Row, criteo, delivered, prepared, random_rows, splits, write
from hypothesis import given, settings
from hypothesis import strategies as st

from data.criteo import Criteo
from data.features import logarithm
from data.hashing import MISSING
from data.prepare import open_source, prepare
from data.schema import SPLITS
from data.splits import splitmix64
from data.store import Store


def signed(text: str) -> int:
    if not text:
        return MISSING
    value = int(text, 16)
    return value - 2**64 if value >= 2**63 else value


def dictionary(keys: list[int], min_count: int) -> dict[int, int]:
    """The documented order of ids: by falling count, ties by key, from 1 on."""
    counts = Counter(keys)
    kept = [key for key in counts if counts[key] >= min_count or key == MISSING]
    return {key: 1 + i for i, key in enumerate(sorted(kept, key=lambda k: (-counts[k], k)))}


def random_split(count: int, parts: tuple[float, ...], seed: int) -> list[int]:
    """The documented random split, one row at a time in plain Python."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    edges = [parts[0] / sum(parts), (parts[0] + parts[1]) / sum(parts)]
    uniform = [(mix(i ^ mix(seed)) >> 11) / 2**53 for i in range(count)]
    return [sum(u >= edge for edge in edges) for u in uniform]


def expected(rows: list[Row], split: list[int], min_count: int) -> dict[str, list]:
    """What a loader must deliver, by plain Python."""
    train = [row for row, s in zip(rows, split, strict=True) if s == 0]
    maps = [dictionary([signed(row[2][c]) for row in train], min_count) for c in range(26)]
    out: dict[str, list] = {name: [] for name in SPLITS}
    for row, s in zip(rows, split, strict=True):
        dense = [0.0 if v is None else math.log1p(max(v, 0)) for v in row[1]]
        ids = [[maps[c].get(signed(text), 0)] for c, text in enumerate(row[2])]
        out[SPLITS[s]].append((float(row[0]), pytest.approx(dense, rel=1e-6), ids))
    return out


hexes = st.integers(0, 2**64 - 1).map(lambda v: f"{v:x}") | st.sampled_from(
    ["", "0", "00000000", "68fd1e64", "ffffffffffffffff", "ABCDEF0123"]
)
cells = st.none() | st.integers(-10, 10) | st.integers(-(2**40), 2**40)
criteo_rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.lists(cells, min_size=13, max_size=13),
        st.lists(hexes, min_size=26, max_size=26),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(
    rows=criteo_rows, repeats=st.integers(2, 4), min_count=st.integers(1, 3), seed=st.integers(0)
)
def test_round_trip(tmp_path_factory, rows, repeats, min_count, seed):
    rows = rows * repeats
    split = random_split(len(rows), (0.5, 0.3, 0.2), seed % 2**64)
    if 0 not in split:
        return
    folder = tmp_path_factory.mktemp("criteo")
    path = write(folder / "train.txt", rows)
    options = {"split": {"kind": "random", "parts": (0.5, 0.3, 0.2), "seed": seed}}
    store = prepared(folder, path, min_count=min_count, **options)
    assert splits(store) == expected(rows, split, min_count)
    store.verify()


def test_open_vocabulary_delivers_raw_keys(tmp_path):
    rows = random_rows(40)
    write(tmp_path / "train.txt", rows)
    store = prepared(tmp_path, vocabulary="open")
    got = [row[2] for part in splits(store).values() for row in part]
    assert sorted(got) == sorted([[signed(text)] for text in row[2]] for row in rows)
    train = delivered(store, "train")
    for at, table in enumerate(store.schema.tables):
        assert table.vocabulary == "open"
        assert table.rows == len({row[2][at][0] for row in train})
    assert store.counts == {}


def test_counts_and_keys(tmp_path):
    rows = random_rows(200)
    write(tmp_path / "train.txt", rows)
    store = prepared(tmp_path, min_count=25)
    train = delivered(store, "train")
    for at, table in enumerate(store.schema.tables):
        counts = store.counts[table.name]
        found = Counter(row[2][at][0] for row in train)
        assert counts.tolist() == [found[i] for i in range(table.rows)]
        assert all(a >= b for a, b in pairwise(counts[1:]))
        common = (counts[1:] >= 25) | (store.keys(table.name)[1:] == MISSING)
        assert common.all()
    assert any(store.counts[t.name][0] > 0 for t in store.schema.tables)


def test_missing_is_kept_when_rare(tmp_path):
    rows = random_rows(60)
    for row in rows:
        row[2][0] = "a"
    rows[0][2][0] = ""
    write(tmp_path / "train.txt", rows)
    store = prepared(tmp_path, min_count=5, split={"kind": "last_seventh"})
    assert store.keys("C1")[1:].tolist() == [10, MISSING]
    assert delivered(store, "train")[0][2][0] == [2]


@pytest.mark.parametrize("normalize", ["standard", "minmax"])
def test_statistics_are_those_of_training_rows(tmp_path, normalize):
    rows = random_rows(70)
    for row in rows[60:]:
        row[1][0] = 10**6
        row[2][0] = "ffff"
    rows[3][1][0] = None
    write(tmp_path / "train.txt", rows)
    store = prepared(tmp_path, normalize=normalize, split={"kind": "last_seventh"})
    values = [row[1][0] for row in rows[:60]]
    logs = np.log1p([max(v, 0) for v in values if v is not None])
    stats = store.stats["columns"]["I1"]
    assert stats["mean"] == pytest.approx(logs.mean())
    assert stats["std"] == pytest.approx(logs.std())
    assert (stats["min"], stats["max"]) == (logs.min(), logs.max())
    assert stats["missing"] == pytest.approx(values.count(None) / 60)
    center, scale = (
        (logs.mean(), logs.std()) if normalize == "standard" else (logs.min(), np.ptp(logs))
    )
    assert delivered(store, "test")[-1][1][0] == pytest.approx(
        (math.log1p(10**6) - center) / scale, rel=1e-5
    )
    assert delivered(store, "train")[3][1][0] == 0
    assert delivered(store, "test")[-1][2][0] == [0]
    assert store.stats["columns"]["C1"]["cardinality"] == len({row[2][0] for row in rows[:60]})


def test_integers_as_categories(tmp_path):
    rows = random_rows(30)
    for value, row in zip([-2, None, 0, 1, 2, 3, 100], rows, strict=False):
        row[1][0] = value
    write(tmp_path / "train.txt", rows)
    store = prepared(
        tmp_path, integers="category", vocabulary="open", split={"kind": "last_seventh"}
    )
    assert store.schema.numeric == ()
    ids = [row[2][0][0] for row in delivered(store, "train")[:7]]
    assert ids == [-2, MISSING, 0, 1, 2, 3 + 1, 3 + 21]
    values = np.array([3, 7, 8, 1000, 2**62])
    assert logarithm(values).tolist() == [math.floor(math.log(v) ** 2) + 3 for v in values.tolist()]


def test_random_split_is_one_in_ten(tmp_path):
    x = splitmix64(np.arange(3, dtype=np.uint64))
    # First outputs of the published generator for the states 0, 1 and 2.
    assert x.tolist()[0] == 0xE220A8397B1DCDAF
    write(tmp_path / "train.txt", random_rows(1) * 5000)
    sizes = prepared(tmp_path, split={"seed": 3}).schema.rows
    other = prepared(tmp_path, split={"seed": 4}).schema.rows
    assert sum(sizes.values()) == 5000
    assert sizes != other
    # Three standard deviations of a binomial: 3 * sqrt(5000 * .1 * .9) = 64.
    assert abs(sizes["valid"] - 500) < 64
    assert abs(sizes["test"] - 500) < 64


def test_last_day(tmp_path):
    days = [random_rows(count, seed) for seed, count in enumerate([9, 11, 7])]
    for day, rows in enumerate(days):
        write(tmp_path / f"day_{day}.gz", rows)
    store = prepared(tmp_path, split={"kind": "last_day"})
    assert store.schema.rows == {"train": 20, "valid": 3, "test": 4}
    labels = {split: [row[0] for row in part] for split, part in splits(store).items()}
    assert labels["train"] == [row[0] for row in days[0] + days[1]]
    assert labels["valid"] == [row[0] for row in days[2][:3]]
    assert labels["test"] == [row[0] for row in days[2][3:]]


def test_day_files_come_by_number(tmp_path):
    for day in (10, 9, 2):
        write(tmp_path / f"day_{day}", random_rows(1))
    write(tmp_path / "day_2.gz", random_rows(1))
    names = [path.name for path in criteo(tmp_path).inputs()]
    assert names == ["day_2", "day_9", "day_10"]
    chosen = criteo(tmp_path, files=("day_10", "day_9")).inputs()
    assert [path.name for path in chosen] == ["day_10", "day_9"]


def test_last_day_of_one_file_is_refused(tmp_path):
    write(tmp_path / "train.txt", random_rows(5))
    with pytest.raises(ValueError, match=r"last_day.*one day.*last_seventh"):
        prepared(tmp_path, split={"kind": "last_day"})


def test_fixed_split_needs_a_source_that_has_one(tmp_path):
    write(tmp_path / "train.txt", random_rows(5))
    with pytest.raises(ValueError, match=r"split.kind=fixed.*Choose random"):
        prepared(tmp_path, split={"kind": "fixed"})


def test_gzip_crlf_and_small_blocks_change_nothing(tmp_path, monkeypatch):
    rows = random_rows(50)
    plain = splits(prepared(tmp_path, write(tmp_path / "a.txt", rows)))
    assert splits(prepared(tmp_path, write(tmp_path / "b.gz", rows))) == plain
    assert splits(prepared(tmp_path, write(tmp_path / "c.txt", rows, "\r\n"))) == plain
    unnamed = write(tmp_path / "d.gz", rows).rename(tmp_path / "d.txt")
    assert splits(prepared(tmp_path, unnamed)) == plain
    last = write(tmp_path / "e.txt", rows)
    last.write_bytes(last.read_bytes().removesuffix(b"\n"))
    monkeypatch.setattr("data.text.BLOCK", 1000)
    monkeypatch.setattr("data.arrays.WINDOW", 8)
    assert splits(prepared(tmp_path, last)) == plain


def test_same_input_is_not_prepared_again(tmp_path):
    path = write(tmp_path / "train.txt", random_rows(20))
    first = prepare(criteo(tmp_path))
    written = first.stat().st_mtime_ns
    source = criteo(tmp_path)
    source.chunks = lambda: pytest.fail("read again")
    assert prepare(source) == first
    assert first.stat().st_mtime_ns == written
    assert prepare(criteo(tmp_path, min_count=2)) != first
    write(path, random_rows(21))
    assert prepare(criteo(tmp_path)) != first


def test_content_is_named_alike_wherever_and_whenever_the_files_lie(tmp_path):
    def store(folder: str, rows: int) -> Store:
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.txt", random_rows(20)[:rows])
        return prepared(tmp_path / folder)

    here, there, other = store("here", 20), store("there", 20), store("other", 19)
    assert here.path.name != there.path.name
    assert here.content == there.content != other.content


def test_interrupted_run_leaves_nothing(tmp_path):
    write(tmp_path / "train.txt", random_rows(20))
    source = criteo(tmp_path)

    def interrupted(what, done, total):
        if what == "tables":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, progress=interrupted)
    assert list((tmp_path / "store").iterdir()) == []


def test_remains_of_a_killed_run_are_removed(tmp_path):
    write(tmp_path / "train.txt", random_rows(20))
    stale = tmp_path / "store" / ".criteo-0123456789abcdef.tmp"
    (stale / "train").mkdir(parents=True)
    path = prepare(criteo(tmp_path))
    assert list((tmp_path / "store").iterdir()) == [path]


def test_two_at_once_prepare_once(tmp_path):
    write(tmp_path / "train.txt", random_rows(20))
    passes: list[int] = []

    def counting() -> Criteo:
        source = criteo(tmp_path)
        read = source.chunks

        def chunks():
            passes.append(1)
            time.sleep(0.2)
            return read()

        source.chunks = chunks
        return source

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [counting(), counting()])
    assert first == second
    assert len(passes) == 1
    Store.open(first).verify()


def test_damage_is_found(tmp_path):
    write(tmp_path / "train.txt", random_rows(20))
    store = prepared(tmp_path)
    store.verify()
    label = store.path / "train" / "label.npy"
    data = bytearray(label.read_bytes())
    data[-1] ^= 1
    label.write_bytes(data)
    with pytest.raises(ValueError, match=r"train/label.npy is damaged"):
        store.verify()


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(ValueError, match="not a prepared data set"):
        Store.open(tmp_path)
    write(tmp_path / "train.txt", random_rows(20))
    store = prepared(tmp_path)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        store.split("dev")
    stats = store.path / "stats.json"
    stats.write_text(json.dumps({**store.stats, "format": -1}))
    with pytest.raises(ValueError, match="layout -1"):
        Store.open(store.path)


def test_stats_of_splits(tmp_path):
    rows = random_rows(70)
    write(tmp_path / "train.txt", rows)
    stats = prepared(tmp_path, split={"kind": "last_seventh"}).stats["splits"]
    labels = [row[0] for row in rows]
    assert stats["train"] == {"rows": 60, "label_mean": sum(labels[:60]) / 60}
    assert stats["valid"] == {"rows": 5, "label_mean": sum(labels[60:65]) / 5}


def test_open_source_knows_the_kind(tmp_path):
    source = criteo(tmp_path)
    assert type(open_source(source.config)) is type(source)
