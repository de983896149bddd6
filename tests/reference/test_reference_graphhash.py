"""GraphHash against planted communities, closed forms and itself reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embtables import EmbeddingTables, Feature, PackedTables, RowWiseAdagrad, Vocabulary
from embtables.clustering import NEAR, Clusters, _split, assign, graph
from embtables.compressor import Pairs, RowTable, Segments, Table
from embtables.groups import Group
from embtables.sharing._graph import GraphSharing
from embtables.sharing._map import RowMaps, index_bytes
from embtables.torchrec_types import KeyedJaggedTensor

USERS, ITEMS, COMMUNITIES = 600, 400, 20


def _planted(seed: int = 0, noise: float = 0.02, edges: int = 12_000) -> Pairs:
    """Return pairs of users and items of one community (id mod 20), and a few of two."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, USERS, edges)
    items = rng.integers(0, ITEMS // COMMUNITIES, edges) * COMMUNITIES + users % COMMUNITIES
    astray = rng.random(edges) < noise
    items[astray] = rng.integers(0, ITEMS, astray.sum())
    return Pairs(users, items, (rng.random(edges) < 0.7).astype(np.uint8))


class Planted:
    """Interactions of the planted pairs."""

    def __init__(self, pairs: Pairs) -> None:
        self.found = pairs

    def partner(self, table: str, named: str | None = None) -> str:
        assert named in (None, "item")
        return "item" if table == "user" else "user"

    def pairs(self, left: str, right: str) -> Pairs:
        users, items, labels = self.found
        return Pairs(users, items, labels) if left == "user" else Pairs(items, users, labels)


def _tables(
    table: str = "graphhash", ratio: float = 0.06, pairs: Pairs | None = None, width: int = 32
) -> EmbeddingTables:
    return EmbeddingTables(
        [Feature("user", width), Feature("item", width)],
        {"user": Vocabulary(USERS), "item": Vocabulary(ITEMS)},
        table=table,
        ratio=ratio,
        optimizer=RowWiseAdagrad(lr=0.1),
        interactions=Planted(pairs or _planted()),
    )


def _sharing(tables: EmbeddingTables) -> GraphSharing:
    sharing = cast(Group, tables.groups[0]).sharing
    assert isinstance(sharing, GraphSharing)
    return sharing


def _clusters(pairs: Pairs) -> Clusters:
    return Clusters(graph(pairs.left, pairs.right, (USERS, ITEMS)))


def test_planted_communities_are_found() -> None:
    pairs = _planted()
    clusters = _clusters(pairs)
    for side, ids in enumerate((USERS, ITEMS)):
        labels = clusters.cut(side, COMMUNITIES)
        community = np.arange(ids) % COMMUNITIES
        assert len(np.unique(labels)) == COMMUNITIES
        assert len(np.unique(labels * COMMUNITIES + community)) == COMMUNITIES


@pytest.mark.parametrize("wanted", [3, 20, 60, 150, 299])
def test_the_number_of_clusters_is_near_what_is_wanted(wanted: int) -> None:
    rng = np.random.default_rng(1)
    users, items = rng.zipf(1.3, 9000) % USERS, rng.zipf(1.2, 9000) % ITEMS
    clusters = Clusters(graph(users, items, (USERS, ITEMS)))
    labels = clusters.cut(1, wanted)
    seen = np.unique(items)
    assert (labels[seen] >= 0).all()
    assert (labels >= 0).sum() == len(seen)
    count = labels.max() + 1
    assert count <= wanted
    assert count >= min(int(NEAR * wanted), len(seen)) - (wanted < 10)
    sizes = np.bincount(labels[seen])
    assert (np.diff(sizes) <= 0).all()


def test_more_rows_than_ids_with_an_edge_keep_every_id_apart() -> None:
    clusters = Clusters(graph(np.array([5, 5, 2]), np.array([0, 1, 1]), (8, 4)))
    assert clusters.cut(0, 3).tolist() == [-1, -1, 1, -1, -1, 0, -1, -1]


def test_more_parts_than_wanted() -> None:
    """Ten users with an item of their own each fall into ten parts; three rows must do."""
    own = np.arange(10)
    labels = Clusters(graph(own, own, (10, 10))).cut(0, 3)
    assert set(labels) == {0, 1, 2}
    assert np.bincount(labels).max() <= 4


@pytest.mark.parametrize(("ids", "wanted"), [(300, 5), (300, 120), (40, 39)])
def test_ids_that_are_all_alike_fill_the_rows_that_are_there(ids: int, wanted: int) -> None:
    """Everybody meets everything: one cluster at a low resolution, one an id at a high one."""
    users, items = np.divmod(np.arange(ids * 30), 30)
    labels = Clusters(graph(users, items, (ids, 30))).cut(0, wanted)
    assert NEAR * wanted <= len(np.unique(labels)) <= wanted
    assert labels.max() + 1 == len(np.unique(labels))


@pytest.mark.parametrize("wanted", [10, 30, 100, 300, 1000])
def test_dense_pairs_without_communities_fill_the_rows(wanted: int) -> None:
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 2000, 20_000), rng.integers(0, 10, 20_000)
    labels = Clusters(graph(users, items, (2000, 10))).cut(0, wanted)
    assert NEAR * wanted <= labels.max() + 1 <= wanted


def test_clusters_are_split_along_finer_ones_by_what_is_read() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    parts = np.array([0, 0, 1, 2, 3, 4, 4])
    reads = np.array([1, 1, 9, 3, 5, 2, 2])
    # Of the first cluster part 1 stays, and of the second part 3; then part 4 is read most, then 2.
    for wanted, expected in {
        3: [[0, 1, 2, 3], [5, 6], [4]],
        4: [[0, 1, 2], [5, 6], [3], [4]],
        5: [[0, 1], [5, 6], [2], [3], [4]],
    }.items():
        found = _split(labels, parts, reads, wanted)
        groups = [np.flatnonzero(found == cluster).tolist() for cluster in range(wanted)]
        assert sorted(groups) == sorted(expected)
        assert [len(group) for group in groups] == sorted(map(len, expected), reverse=True)


def test_louvain_beats_other_partitions_in_modularity() -> None:
    pairs = _planted(noise=0.3)
    clusters = _clusters(pairs)
    found = clusters.at(0.0)
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(labels) for labels in found]
    assert _modularity(pairs, *found) > 0.4
    assert abs(_modularity(pairs, *shuffled)) < 0.1


def _modularity(pairs: Pairs, users: np.ndarray, items: np.ndarray) -> float:
    """Barber's modularity at resolution one, from its definition; clusters by joint number."""
    weights = np.zeros((USERS, ITEMS))
    np.add.at(weights, (pairs.left, pairs.right), 1)
    # Sides are numbered separately: join a user cluster to the item cluster it meets most.
    meets = np.zeros((users.max() + 1, items.max() + 1))
    np.add.at(meets, (users[pairs.left], items[pairs.right]), 1)
    same = meets.argmax(1)[users][:, None] == items[None]
    total = weights.sum()
    expected = weights.sum(1, keepdims=True) * weights.sum(0, keepdims=True) / total
    return float(((weights - expected) * same).sum() / total)


def test_rows_follow_communities_and_are_few() -> None:
    tables = _tables()
    assert tables.bytes().inference <= 0.06 * tables.bytes().uncompressed
    for name, ids in (("user", USERS), ("item", ITEMS)):
        rows = _sharing(tables).maps.get(name)
        assert rows.max() < tables.plan[name].places[0].rows
        # Every row serves one community.
        owners = np.unique(np.stack([rows, np.arange(ids) % COMMUNITIES]), axis=1)
        assert owners.shape[1] == len(np.unique(rows))


def test_deterministic() -> None:
    first, again = (_sharing(_tables()).maps.packed for _ in range(2))
    assert torch.equal(first, again)


def test_ids_without_pairs_read_spare_rows() -> None:
    pairs = _planted()
    kept = (pairs.left % 50 != 7) & (pairs.right % 50 != 9)
    tables = _tables(pairs=Pairs(*(part[kept] for part in pairs)))
    rows = _sharing(tables).maps.get("user")
    unseen = np.arange(USERS) % 50 == 7
    count = tables.plan["user"].places[0].rows
    taken = rows[~unseen].max() + 1
    assert (rows[unseen] < count).all()
    if taken < count:
        assert (rows[unseen] >= taken).all()
    assert rows.min() >= 0


def test_assign_takes_the_cluster_of_those_who_share_neighbours() -> None:
    pairs = _planted(noise=0)
    late = pairs.left % 50 == 7
    known, new = (Pairs(*(part[rows] for part in pairs)) for rows in (~late, late))
    tables = _tables(pairs=known)
    sharing = _sharing(tables)
    before = sharing.maps.get("user")
    assert sharing.assign("user", known, new) == len(np.unique(new.left))
    after = sharing.maps.get("user")
    seen = np.unique(known.left)
    assert (after[seen] == before[seen]).all()
    for user in np.unique(new.left):
        same = seen[seen % COMMUNITIES == user % COMMUNITIES]
        assert after[user] in before[same]


def test_assign_goes_on_where_it_left_off() -> None:
    pairs = _planted(noise=0)
    late = [pairs.left % 50 == day for day in (7, 8)]
    known = Pairs(*(part[~(late[0] | late[1])] for part in pairs))
    tables = _tables(pairs=known)
    days = [Pairs(*(part[rows] for part in pairs)) for rows in late]
    assert [tables.assign("user", known, day) for day in days] == [12, 12]
    rows = _sharing(tables).maps.get("user")
    seen = np.unique(known.left)
    for user in np.unique(np.concatenate([day.left for day in days])):
        assert rows[user] in rows[seen[seen % COMMUNITIES == user % COMMUNITIES]]


def test_assign_knows_no_cluster_of_negative_pairs_alone() -> None:
    """With positives=true a user of negatives only was not clustered, and joins one by a click."""
    left, right, labels = _planted(noise=0)
    labels = np.where(left == 7, 0, 1).astype(np.uint8)
    known = Pairs(left, right, labels)
    tables = _tables("graphhash(positives=true)", pairs=known)
    clicks = np.arange(7, ITEMS, COMMUNITIES)
    new = Pairs(np.full_like(clicks, 7), clicks, np.ones(len(clicks), np.uint8))
    assert tables.assign("user", known, new) == 1
    rows = _sharing(tables).maps.get("user")
    assert rows[7] in rows[np.arange(27, USERS, COMMUNITIES)]


def test_assign_is_for_clustered_tables() -> None:
    pairs = _planted()
    with pytest.raises(
        ValueError, match=r"no table .users.\. Did you mean .user.\? Tables: user, item"
    ):
        _tables().assign("users", pairs, pairs)
    with pytest.raises(ValueError, match="table 'user' are not clustered by pairs: graphhash"):
        _tables("hash").assign("user", pairs, pairs)


def test_assign_leaves_out_what_nobody_knows() -> None:
    labels = np.array([0, 1, -1, -1, -1])
    known = graph(np.array([0, 0, 1]), np.array([0, 1, 2]), (5, 4))
    new = graph(np.array([2, 3, 3]), np.array([2, 3, 3]), (5, 4))
    assert assign(labels, known, new).tolist() == [0, 1, 1, -1, -1]


def test_reloaded_maps_give_the_same_rows(tmp_path: Path) -> None:
    tables = _tables()
    ids = torch.cat([torch.arange(USERS), torch.arange(ITEMS), torch.zeros(USERS - ITEMS).long()])
    batch = KeyedJaggedTensor(["user", "item"], ids, lengths=torch.ones_like(ids))
    expected = tables.lookup(batch)[0].values()
    tables.pack(tmp_path / "tables")
    assert torch.equal(PackedTables.load(tmp_path / "tables").lookup(batch)[0].values(), expected)
    other = _tables(pairs=_planted(seed=1))
    other.load_training_state(tables.training_state())
    assert torch.equal(other.lookup(batch)[0].values(), expected)


def test_options_change_the_graph() -> None:
    def packed(options: str) -> torch.Tensor:
        return _sharing(_tables(f"graphhash({options})", pairs=_planted(noise=0.4))).maps.packed

    found = [packed(options) for options in ("weighted=true", "weighted=false", "positives=true")]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_double_graphhash_without_its_hashed_half_is_graphhash() -> None:
    tables = _tables("double_graphhash", ratio=0.1)
    single = _tables("graphhash", ratio=0.1)
    ids = torch.arange(USERS)
    segments = Segments([USERS, 0])
    rows = _sharing(tables).encode(ids, segments)
    expected = _sharing(single).encode(ids, segments)
    assert torch.equal(rows[:1], expected)
    hashed = rows[1]
    assert hashed.max() < tables.plan["user"].places[0].rows
    assert len(torch.unique(rows, dim=1)[0]) > len(torch.unique(expected))


def test_no_interactions_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"learns from training pairs: .*interactions="):
        EmbeddingTables([Feature("a", 8)], {"a": Vocabulary(99)}, table="graphhash", ratio=0.3)


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (256, 1), (257, 2), (2**16, 2), (2**16 + 1, 3), (2**24 + 1, 4)]
)
def test_bytes_of_a_row_number(rows: int, width: int) -> None:
    assert index_bytes(rows) == width


@given(
    st.lists(st.sampled_from([1, 200, 300, 70_000, 2**24 + 9]), min_size=1, max_size=4), st.data()
)
def test_maps_hold_any_row(sizes: list[int], data: st.DataObject) -> None:
    tables = [Table(f"t{i}", 5 + i, 4) for i in range(len(sizes))]
    maps = RowMaps(
        tables, [RowTable(t.name, rows, 4) for t, rows in zip(tables, sizes, strict=True)]
    )
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    expected = []
    for table, rows in zip(tables, sizes, strict=True):
        values = rng.integers(0, rows, table.rows)
        values[0] = rows - 1
        maps.set(table.name, values)
        assert (maps.get(table.name) == values).all()
        expected.append(values)
    ids = [torch.from_numpy(rng.integers(0, table.rows, 6)) for table in tables]
    wanted = np.concatenate([values[i] for values, i in zip(expected, ids, strict=True)])
    for single in (False, True):
        segments = Segments([6] * len(tables), single=single)
        flat = torch.cat(ids)
        assert (maps(flat, segments).numpy() == wanted).all()
        assert (maps._by_tensors(flat, segments).numpy() == wanted).all()
