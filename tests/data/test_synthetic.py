"""Synthetic clicks: what is planted is there, and each row depends on seed and number alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from data import synthetic
from data.hashing import MISSING
from data.source import Chunk
from data.synthetic import CARDINALITIES, ITEM, MISSING_SHARE, USER, Synthetic, SyntheticConfig


def _make(**options) -> Synthetic:
    return Synthetic(SyntheticConfig(**{"rows": 30_000, **options}))


def _all(source: Synthetic) -> Chunk:
    return source.slice(0, source.config.rows)


def _day(chunk: Chunk) -> np.ndarray:
    assert chunk.day is not None
    return chunk.day


def _probability(chunk: Chunk) -> np.ndarray:
    assert chunk.probability is not None
    return chunk.probability.astype(np.float64)


def _arrays(chunk):
    yield from [("label", chunk.label), ("day", _day(chunk)), ("probability", _probability(chunk))]
    yield from chunk.numeric.items()
    yield from chunk.single.items()
    for name, (values, lengths) in chunk.jagged.items():
        yield from [(f"{name}.values", values), (f"{name}.lengths", lengths)]


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4999), max_size=4),
    seed=st.integers(0, 2**40),
    history=st.booleans(),
)
def test_rows_do_not_depend_on_how_they_are_sliced(cuts, seed, history):
    source = _make(rows=5000, seed=seed, history=history)
    edges = sorted({0, 5000, *cuts})
    parts = [dict(_arrays(source.slice(a, b))) for a, b in pairwise(edges)]
    for name, whole in _arrays(_all(_make(rows=5000, seed=seed, history=history))):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole, name)


def test_chunks_are_bounded_and_make_up_all_rows(monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK", 4096)
    chunks = list(_make(rows=10_000, history=True).chunks())
    assert [len(chunk.label) for chunk in chunks] == [4096, 4096, 1808]
    whole = dict(_arrays(_all(_make(rows=10_000, history=True))))
    for name, values in whole.items():
        got = np.concatenate([dict(_arrays(chunk))[name] for chunk in chunks])
        np.testing.assert_array_equal(got, values, name)


def test_another_seed_gives_other_rows():
    one, other = (_all(_make(seed=seed)) for seed in (1, 2))
    assert (one.label != other.label).mean() > 0.3
    assert not set(one.single["C5"].tolist()) & set(other.single["C5"].tolist()) - {MISSING}


def test_columns_are_criteos():
    source = _make(history=True, vocabulary="open", min_count=3)
    names = [*(f"I{j}" for j in range(1, 14)), *(f"C{j}" for j in range(1, 27)), "C4_history"]
    assert [column.name for column in source.columns()] == names
    assert source.columns()[-1].table_name == "C4"
    assert {c.vocabulary for c in source.columns() if c.kind != "numeric"} == {"open"}
    chunk = _all(source)
    assert [*chunk.numeric, *chunk.single, *chunk.jagged] == names


def test_cardinalities_are_scaled_and_small_fields_are_full():
    source = _make(rows=60_000, scale=0.001)
    chunk = _all(source)
    for field, full in zip(source.fields, CARDINALITIES, strict=True):
        assert field.ids == (full if full <= 100 else max(100, round(full * 0.001)))
        values = chunk.single[f"C{field.number}"]
        found = len(np.unique(values[values != MISSING]))
        assert found <= field.ids
        if full <= 30:
            assert found == full


def test_missing_shares_and_click_rate():
    chunk = _all(_make(rows=60_000))
    for number in range(1, 27):
        share = (chunk.single[f"C{number}"] == MISSING).mean()
        assert share == pytest.approx(MISSING_SHARE.get(number, 0), abs=0.01)
    for j, (missing, *_) in enumerate(synthetic.INTEGERS, 1):
        values = chunk.numeric[f"I{j}"]
        known = values[~np.isnan(values)]
        assert np.isnan(values).mean() == pytest.approx(missing, abs=0.01)
        np.testing.assert_array_equal(known, np.floor(known))
        assert known.min() >= (-1 if j == 2 else 0)
    assert chunk.label.mean() == pytest.approx(0.25, abs=0.01)
    none = _all(_make(missing=0))
    assert all((values != MISSING).all() for values in none.single.values())


@pytest.mark.parametrize("offset", [0, 7.5])
@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.1, 2.5])
def test_ranks_follow_the_power_law(exponent, offset):
    law = synthetic.PowerLaw(50, exponent, offset)
    uniform = (np.arange(200_000) + 0.5) / 200_000
    counts = np.bincount(law.ranks(uniform), minlength=50)
    edges = np.arange(1, 52) + offset
    mass = np.log(edges) if exponent == 1 else edges ** (1 - exponent) / (1 - exponent)
    np.testing.assert_allclose(counts / 200_000, np.diff(mass) / (mass[-1] - mass[0]), atol=1e-5)
    fine = np.arange(0, 50, 0.001) + 0.0005
    assert law.density(fine).mean() * 50 == pytest.approx(1, rel=1e-4)


def test_rare_ids_have_faded_effects():
    field = _make(rows=100_000, scale=0.01).fields[11]
    ids = np.array([0, 10, 100, field.core, field.ids - 1, -1])
    strength = field.strength(ids)
    assert (np.diff(strength) < 0).all()
    assert strength[-1] == 0
    expected = 100_000 * field.popularity.density(ids[:-1])
    np.testing.assert_allclose(strength[:-1], expected / (expected + synthetic.LEARNABLE))


def test_the_planted_probabilities_are_those_of_the_labels():
    chunk = _all(_make(rows=100_000))
    order = np.argsort(_probability(chunk))
    for part in np.array_split(order, 20):
        expected = _probability(chunk)[part].mean()
        error = np.sqrt(expected * (1 - expected) / len(part))
        assert abs(chunk.label[part].mean() - expected) < 4.5 * error
    # The AUC that these probabilities promise, whatever the labels turn out to be.
    p = np.sort(_probability(chunk))
    below = np.cumsum(1 - p) - (1 - p) / 2
    promised = (p * below).sum() / (p.sum() * (1 - p).sum())
    assert roc_auc_score(chunk.label, _probability(chunk)) == pytest.approx(promised, abs=0.006)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert log_loss(chunk.label, _probability(chunk)) == pytest.approx(entropy, abs=0.006)
    assert 0.78 < promised < 0.83


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ids_tell_the_clicks(seed):
    """An additive model of shrunk means of each id, which knows no planted truth, comes close."""
    chunk = _all(_make(rows=60_000, seed=seed, scale=0.0005))
    train = np.arange(60_000) % 5 > 0
    score = np.zeros(60_000)
    for values in chunk.single.values():
        _, code = np.unique(values, return_inverse=True)
        shown = np.bincount(code[train], minlength=code.max() + 1)
        clicks = np.bincount(code[train], chunk.label[train], code.max() + 1)
        mean = (clicks + 0.25 * 30) / (shown + 30)
        score += np.log(mean / (1 - mean))[code]
    learned = roc_auc_score(chunk.label[~train], score[~train])
    best = roc_auc_score(chunk.label[~train], _probability(chunk)[~train])
    assert best - 0.06 < learned < best


def test_users_and_items_hold_co_clusters():
    source = _make(rows=60_000, missing=0)
    made = source._make(np.arange(60_000))
    user, item = source.fields[USER - 1], source.fields[ITEM - 1]
    users, items = made.ids[USER - 1], made.ids[ITEM - 1]
    inside = (user.cluster(users) == item.cluster(items)).mean()
    expected = synthetic.COHERENCE + (1 - synthetic.COHERENCE) / synthetic.CLUSTERS
    assert inside == pytest.approx(expected, abs=0.02)
    # Without the planted clusters: the edges alone find them, by the second eigenvectors.
    frequent = (users < 160) & (items < 160)
    edges = np.zeros((160, 160))
    np.add.at(edges, (users[frequent], items[frequent]), 1)
    scaled = edges / np.sqrt(np.outer(edges.sum(1) + 1, edges.sum(0) + 1))
    _, values, vectors = np.linalg.svd(scaled)
    truth = item.cluster(np.arange(160))
    places = vectors[1 : synthetic.CLUSTERS].T
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    alike = places @ places.T
    np.fill_diagonal(alike, -np.inf)
    nearest = alike.argmax(1)
    assert (truth[nearest] == truth).mean() > 0.8
    assert values[synthetic.CLUSTERS - 1] > 1.2 * values[synthetic.CLUSTERS]


def test_a_cluster_holds_every_popularity():
    field = _make(scale=0.01).fields[ITEM - 1]
    ids = np.arange(field.ids // 16 * 16)
    clusters = field.cluster(ids).reshape(-1, 16)
    np.testing.assert_array_equal(np.sort(clusters), np.tile(np.arange(16), (len(clusters), 1)))
    wanted = ids % 7
    moved = field.move(ids, wanted)
    np.testing.assert_array_equal(field.cluster(moved), wanted)
    np.testing.assert_array_equal(moved // 16, ids // 16)


def test_new_ids_appear_every_day_and_popularity_drifts():
    source = _make(rows=100_000, days=5, scale=0.01, missing=0)
    chunk = _all(source)
    np.testing.assert_array_equal(_day(chunk), np.arange(100_000) // 20_000)
    key = chunk.single["C12"]
    made = source._make(np.arange(100_000)).ids[11]
    field = source.fields[11]
    for day in range(1, 5):
        today, before = _day(chunk) == day, _day(chunk) < day
        newest = made[today].max()
        assert newest >= made[before].max() + field.step // 2
        assert len(set(key[today].tolist()) - set(key[before].tolist())) > 100
    first, last = (np.bincount(made[_day(chunk) == day], minlength=field.ids) for day in (0, 4))
    tail = np.arange(field.ids) >= field.core
    assert np.minimum(first[tail], last[tail]).sum() < 0.7 * first[tail].sum()
    assert np.minimum(first[~tail], last[~tail]).sum() > 0.7 * first[~tail].sum()
    assert made.max() < field.ids


def test_the_relevance_of_the_history_decides_the_click():
    source = _make(rows=60_000, history=True, missing=0)
    chunk = _all(source)
    values, lengths = chunk.jagged["C4_history"]
    assert len(values) == lengths.sum()
    assert lengths.min() == 1
    assert lengths.max() == synthetic.HISTORY_LENGTH
    item = source.fields[ITEM - 1]
    everything = np.arange(item.ids)
    cluster_of = dict(
        zip(item.keys(everything).tolist(), item.cluster(everything).tolist(), strict=True)
    )
    past = np.array([cluster_of[key] for key in values.tolist()])
    candidate = np.array([cluster_of[key] for key in chunk.single["C4"].tolist()])
    owner = np.repeat(np.arange(60_000), lengths)
    share = np.bincount(owner, past == candidate[owner]) / lengths
    clicked = [chunk.label[(share >= low) & (share <= low + 0.1)].mean() for low in (0, 0.9)]
    assert clicked[1] > clicked[0] + 0.2
    assert roc_auc_score(chunk.label, share) > 0.6
