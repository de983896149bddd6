from __future__ import annotations

import threading
from itertools import chain

import numpy as np
import pytest
import torch
from criteo_files import declared, prepared, random_rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from data.arrays import Spill
from data.csv import Csv, CsvConfig
from data.features import last_ids
from data.hashing import string_keys
from data.loader import Loader
from data.order import Shuffle
from data.prefetch import WORKERS, ordered, prefetch
from data.prepare import prepare
from data.store import Store

ROWS = 101


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A categorical field, a sequence, another field, a number; row i can be told by all of them."""
    folder = tmp_path_factory.mktemp("jagged")
    lines = ["label,a,history,b,x,user"]
    for i in range(ROWS):
        history = " ".join(f"h{i}_{j}" for j in range(i % 4))
        lines.append(f"{i % 2},a{i},{history},{i},{i / 2},{i // 10}")
    (folder / "rows.csv").write_text("\n".join(lines))
    columns = [
        {"name": "a", "kind": "categorical"},
        {"name": "history", "kind": "sequence", "separator": " "},
        {"name": "x", "kind": "numeric"},
        {"name": "b", "kind": "categorical", "type": "integer", "vocabulary": "open"},
    ]
    config = CsvConfig(
        root=folder,
        store=folder / "store",
        columns=declared(columns),
        train=("rows.csv",),
        group="user",
    )
    return Store.open(prepare(Csv(config)))


def rows_of(batches) -> list[int]:
    """Return which rows came, after checking that every column tells the same."""
    rows: list[int] = []
    for batch in batches:
        size = len(batch.label)
        assert batch.dense.shape == (size, 1)
        numbers = (batch.dense[:, 0] * 2).long()
        assert torch.equal(batch.label, (numbers % 2).float())
        features = batch.features
        assert features.keys() == ["a", "history", "b"]
        assert features.values().dtype == torch.int64
        assert features.stride() == size
        assert torch.equal(features["b"].values(), numbers)
        assert torch.equal(features["history"].lengths().long(), numbers % 4)
        assert features["a"].lengths().tolist() == [1] * size
        check_shape(features)
        rows += numbers.tolist()
    return rows


def check_shape(features) -> None:
    """Compare what the loader says about the features with what their lengths tell."""
    lengths = features.lengths().reshape(len(features.keys()), -1)
    assert features.offsets().tolist() == [0, *lengths.flatten().cumsum(0).tolist()]
    assert features.length_per_key() == lengths.sum(1).tolist()
    assert features.offset_per_key() == [0, *lengths.sum(1).cumsum(0).tolist()]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_file_order_without_shuffling(store, prefetch):
    loader = Loader(store, "train", 8, prefetch=prefetch)
    assert len(loader) == 13
    batches = list(loader)
    assert [len(batch.label) for batch in batches] == [8] * 12 + [5]
    assert rows_of(batches) == list(range(ROWS))
    assert loader.epoch == 1


def test_ids_are_those_of_the_dictionary(store):
    batch = next(iter(Loader(store, "train", ROWS)))
    keys = store.keys("history")[batch.features["history"].values()]
    names = [f"h{i}_{j}" for i in range(ROWS) for j in range(i % 4)]
    assert keys.tolist() == string_keys(names).tolist()
    assert batch.group is not None
    assert len(batch.group.unique()) == 11
    assert batch.group[:10].unique().numel() == 1


@pytest.mark.parametrize("window", [8, 40, 1000])
def test_an_epoch_has_every_row_once(store, monkeypatch, window):
    monkeypatch.setattr("data.order.BLOCK", 4)
    loader = Loader(store, "train", 8, shuffle=True, window=window)
    first, second = rows_of(loader), rows_of(loader)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second != list(range(ROWS))
    assert rows_of(Loader(store, "train", 8, shuffle=True, window=window)) == first
    assert rows_of(Loader(store, "train", 8, shuffle=True, window=window, seed=1)) != first


@given(
    rows=st.integers(1, 300),
    batch=st.integers(1, 40),
    window=st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
def test_order_is_a_permutation(rows, batch, window, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.order.BLOCK", 16)
        shuffle = Shuffle(rows, batch, window, seed, epoch=2)
        order = shuffle.take(0, rows)
        assert sorted(order.tolist()) == list(range(rows))
        cut = rows // 3
        assert shuffle.take(cut, rows - cut).tolist() == order[cut : rows - cut].tolist()


def test_small_split_is_shuffled_uniformly():
    counts = np.zeros((6, 6), int)
    for seed in range(1200):
        order = Shuffle(6, 2, 100, seed, 0).take(0, 6)
        counts[np.arange(6), order] += 1
    # Chi-square with 25 degrees of freedom: below 52.6 with probability .999.
    assert ((counts - 200) ** 2 / 200).sum() < 52.6


def test_a_window_bounds_how_far_rows_mix(monkeypatch):
    monkeypatch.setattr("data.order.BLOCK", 10)
    order = Shuffle(1000, 10, 50, 0, 0).take(0, 1000)
    for start in range(0, 1000, 50):
        blocks = np.unique((order[start : start + 50] - _shift(order)) % 1000 // 10)
        assert len(blocks) == 5


def _shift(order: np.ndarray) -> int:
    """Return where blocks of 10 begin: the only shift at which 50 rows fill 5 blocks."""
    first = order[:50]
    return next(s for s in range(10) if len(np.unique((first - s) % 1000 // 10)) == 5)


@pytest.mark.parametrize("at", [(0, 0), (0, 5), (2, 12), (3, 13)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resume_at_a_position(store, shuffle, at):
    epoch, batch = at
    unbroken = Loader(store, "train", 8, shuffle=shuffle)
    unbroken.set_position(epoch, 0)
    expected = [rows_of([b]) for b in unbroken] + [rows_of([b]) for b in unbroken]
    resumed = Loader(store, "train", 8, shuffle=shuffle)
    resumed.set_position(epoch, batch)
    got = [rows_of([b]) for b in resumed] + [rows_of([b]) for b in resumed]
    assert got == expected[batch:]
    assert resumed.epoch == epoch + 2


def test_positions_that_are_none(store):
    loader = Loader(store, "train", 8)
    for epoch, batch in [(0, 14), (-1, 0), (0, -1)]:
        with pytest.raises(ValueError, match="an epoch has 13 batches"):
            loader.set_position(epoch, batch)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Loader(store, "train", 0)
    with pytest.raises(ValueError, match=r"rank must be in 0 .. 1, got 2"):
        Loader(store, "train", 8, rank=2, world_size=2)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [8, 20, 200])
def test_ranks_share_each_global_batch(store, monkeypatch, world, size):
    monkeypatch.setattr("data.loader.GROUP", 30)
    alone = [rows_of([b]) for b in Loader(store, "train", size, shuffle=True)]
    loaders = [
        Loader(store, "train", size, shuffle=True, rank=rank, world_size=world)
        for rank in range(world)
    ]
    shares = [[rows_of([b]) for b in loader] for loader in loaders]
    assert [len(share) for share in shares] == [len(alone)] * world
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert parts == [whole[rank::world] for rank in range(world)]


def test_drop_last(store):
    loader = Loader(store, "train", 8, drop_last=True, shuffle=True)
    assert len(loader) == 12
    assert len(set(rows_of(loader))) == 96


def test_empty_split(store):
    assert len(Loader(store, "valid", 8)) == 0
    assert list(Loader(store, "valid", 8)) == []


def test_one_id_a_field_comes_with_its_offsets(tmp_path):
    write(tmp_path / "train.txt", random_rows(30))
    for batch in Loader(prepared(tmp_path), "train", 7):
        size, features = len(batch.label), batch.features
        assert batch.dense.shape == (size, 13)
        assert features.lengths().tolist() == [1] * (26 * size)
        assert features.offsets().tolist() == list(range(26 * size + 1))
        assert features.offset_per_key() == [size * key for key in range(27)]
        assert features.length_per_key() == [size] * 26
        assert batch.group is None


def test_closing_early_ends_the_thread(store):
    before = threading.active_count()
    batches = iter(Loader(store, "train", 2, prefetch=1))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_prefetch_passes_exceptions_on():
    def broken():
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken(), 2)
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_prefetch_runs_ahead_no_further_than_asked():
    made: list[int] = []
    enough = threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            if i == 3:
                enough.set()
            yield i

    ahead = prefetch(items(), 2)
    next(ahead)
    assert enough.wait(5)
    assert len(made) <= 5
    ahead.close()


def test_ordered_keeps_the_order_whatever_ends_first():
    turn = threading.Barrier(2, timeout=5)

    def wait(item: int) -> int:
        if item < 2 and WORKERS > 1:
            turn.wait()  # item 1 has to run beside item 0
        return item * item

    assert list(ordered(wait, iter(range(50)))) == [item * item for item in range(50)]


@pytest.mark.parametrize("place", [0, 1, 7])
def test_ordered_raises_where_the_result_would_have_come(place):
    def items():
        yield from range(place)
        raise OSError("disk gone")

    def broken(item: int) -> int:
        if item == place:
            raise OSError("disk gone")
        return item

    for results in (ordered(broken, iter(range(20))), ordered(lambda item: item, items())):
        got = []
        with pytest.raises(OSError, match="disk gone"):
            got.extend(results)
        assert got == list(range(place))


def test_ordered_takes_no_more_items_than_it_needs():
    taken: list[int] = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    before = threading.active_count()
    results = ordered(lambda item: item, items())
    next(results)
    assert len(taken) == WORKERS + 1
    results.close()
    assert threading.active_count() == before


@given(
    lengths=st.lists(st.integers(0, 6), max_size=20),
    most=st.none() | st.integers(1, 5),
)
def test_last_ids(lengths, most):
    values = np.arange(sum(lengths))
    got, kept = last_ids(values, np.array(lengths, np.int64), most)
    bags = np.split(values, np.cumsum(lengths)[:-1]) if lengths else []
    expected = [bag[-most:] if most else bag for bag in bags]
    assert kept.tolist() == [len(bag) for bag in expected]
    assert got.tolist() == [int(i) for bag in expected for i in bag]


@settings(max_examples=20)
@given(pieces=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), min_size=1))
def test_spill_gives_back_what_it_got(tmp_path_factory, pieces):
    spill = Spill(tmp_path_factory.mktemp("spill") / "s")
    for piece in pieces:
        spill.append("single", "x", np.array(piece, np.int64))
        spill.rows += len(piece)
    spill.finish()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.arrays.WINDOW", 4)
        got = [window.tolist() for window in spill.stream("single", "x")]
    spill.close()
    assert list(chain(*got)) == list(chain(*pieces))
    assert all(len(window) == 4 for window in got[:-1])
