"""Hashing: pinned for ever, uniform, independent by name and probe, and in range for any id."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from embtables import EmbeddingTables, Feature, PackedTables, Vocabulary
from embtables.compressor import RowTable, Segments, Table, sharings
from embtables.hashing import MAX_ROWS, hash_rows, mix64, salt
from embtables.sharing._hashed import HashedSharing
from embtables.torchrec_types import KeyedJaggedTensor

MASK = 2**64 - 1
EXTREMES = [0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63), 12345678901234567, -987654321]
# Pinned: a change of any of these numbers breaks every saved table.
GOLDEN_MIX = {
    0: 0,
    1: 6238072747940578789,
    -1: -5417735806833148549,
    2**63 - 1: 6514504133438201533,
    -(2**63): 2720858781877447050,
    12345678901234567: 8721909405978493183,
}
GOLDEN_SALT = {
    ("C1", 0): 1953052475120754509,
    ("C1", 1): 25142236375273020,
    ("user", 0): 4440828080198502894,
    ("Käse", 2): -378312049634113260,
}
# Rows of the ids 0, 1, -1, 2^63 - 1, 12345678901234567 in a table of 1,000,003 rows.
GOLDEN_ROWS = {
    ("C1", 0): [184706, 528317, 572918, 781656, 61722],
    ("C1", 1): [106278, 604693, 61450, 557612, 237184],
    ("user", 0): [430347, 293878, 259031, 545572, 601780],
    ("Käse", 2): [604308, 43138, 419677, 525220, 629014],
}


def _mix(x: int) -> int:
    """Return splitmix64's finaliser as a signed number, from Python's unbounded integers."""
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def _rows(ids: Tensor, name: str, probe: int, rows: int) -> Tensor:
    return hash_rows(ids, torch.tensor(salt(name, probe)), torch.tensor(rows))


def test_mix64_is_splitmix64() -> None:
    assert mix64(torch.tensor(list(GOLDEN_MIX))).tolist() == list(GOLDEN_MIX.values())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-(2**63), 2**63 - 1, (500,), generator=generator)
    assert mix64(ids).tolist() == [_mix(i) for i in ids.tolist()]
    # The first output of the published generator started at zero.
    golden_gamma = torch.tensor(0x9E3779B97F4A7C15 - 2**64)
    assert int(mix64(golden_gamma)) & MASK == 0xE220A8397B1DCDAF


def test_mix64_is_one_to_one_and_any_shape() -> None:
    ids = torch.arange(-5000, 5000)
    assert len(mix64(ids).unique()) == 10000
    assert torch.equal(mix64(ids.view(100, 100)).flatten(), mix64(ids))


@pytest.mark.parametrize(("name", "probe"), list(GOLDEN_SALT))
def test_salts_and_rows_are_pinned(name: str, probe: int) -> None:
    assert salt(name, probe) == GOLDEN_SALT[name, probe]
    ids = torch.tensor([0, 1, -1, 2**63 - 1, 12345678901234567])
    assert _rows(ids, name, probe, 1_000_003).tolist() == GOLDEN_ROWS[name, probe]


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 2**16, 10_131_227, MAX_ROWS])
def test_rows_are_in_range_and_exact(rows: int) -> None:
    """No overflow: the same as unbounded integers, for the extremes of 64 bits too."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(-(2**63), 2**63 - 1, (300,), generator=generator)
    ids = torch.cat([torch.tensor(EXTREMES), drawn])
    found = _rows(ids, "C7", 1, rows)
    assert int(found.min()) >= 0
    assert int(found.max()) < rows
    salted = [_mix(i + salt("C7", 1)) & MASK for i in ids.tolist()]
    assert found.tolist() == [(mixed >> 32) * rows >> 32 for mixed in salted]


def _hashed(names: list[str], places: list[list[RowTable]]) -> HashedSharing:
    kind = sharings.get("hash")
    assert issubclass(kind, HashedSharing)
    return kind(kind.Config(), [Table(name, 10, 4, width=4) for name in names], places)


def test_more_rows_than_a_hash_can_address_are_refused() -> None:
    place = RowTable("C1", MAX_ROWS + 1, 4)
    with pytest.raises(ValueError, match=r"'C1'.*2,147,483,648 rows.*2,147,483,647"):
        _hashed(["C1"], [[place]])


def _ids(kind: str, count: int) -> Tensor:
    if kind == "random":
        generator = torch.Generator().manual_seed(2)
        return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    stride = {"sequential": 1, "strided": 1000, "powers": 2**32, "negative": -7}[kind]
    return torch.arange(count) * stride


def _chi_square(counts: np.ndarray) -> float:
    """Return the deviation of the chi-square statistic from its mean, in standard deviations."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


KINDS = ["sequential", "strided", "powers", "negative", "random"]


@pytest.mark.parametrize("rows", [97, 256, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_uniform(kind: str, rows: int) -> None:
    for name in ("C1", "item"):
        found = _rows(_ids(kind, 100_000), name, 0, rows)
        assert abs(_chi_square(np.bincount(found.numpy(), minlength=rows))) < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [("C1", 1), ("C2", 0)], ids=["probe", "feature"])
def test_probes_and_features_are_independent(kind: str, other: tuple[str, int]) -> None:
    """Pairs of rows fill the square evenly; the same value meets its own row by chance alone."""
    ids = _ids(kind, 100_000)
    one, two = _rows(ids, "C1", 0, 31), _rows(ids, *other, 31)
    pairs = np.bincount((one * 31 + two).numpy(), minlength=31 * 31)
    assert abs(_chi_square(pairs)) < 4
    same = float((one == two).double().mean())
    assert abs(same - 1 / 31) < 4 * (1 / 31 / 100_000) ** 0.5


def test_both_probes_of_a_pair_collide_as_independent_hashes_do() -> None:
    """1/m^2 for two probes: 4,950 x 100 pairs at m = 8."""
    ids = torch.arange(100)
    upper = torch.ones(100, 100).triu(1).bool()
    together = 0
    for number in range(100):
        one, two = (_rows(ids, f"f{number}", probe, 8) for probe in (0, 1))
        both = (one[:, None] == one) & (two[:, None] == two)
        together += int(both[upper].sum())
    expected = 100 * 4950 / 64
    assert abs(together - expected) < 5 * expected**0.5


def _codes(
    features: list[str], ids: Tensor, salts: list[str] | None = None
) -> dict[str, list[int]]:
    places = [[RowTable("shared", 1000, 4)] * 2 for _ in features]
    hashed = _hashed(salts or features, places)
    segments = Segments([len(ids)] * len(features))
    rows = hashed.encode(ids.repeat(len(features)), segments).view(2, len(features), -1)
    return {name: rows[:, at].flatten().tolist() for at, name in enumerate(features)}


def test_codes_depend_on_the_name_alone() -> None:
    """Adding a feature, or another order, leaves the codes of the others as they are."""
    ids = torch.tensor(EXTREMES)
    two = _codes(["a", "b"], ids)
    assert two["a"] != two["b"]
    more = _codes(["z", "b", "new", "a"], ids)
    assert {name: more[name] for name in two} == two
    assert _codes(["x"], ids, salts=["a"])["x"] == two["a"], "features of one table agree"


def test_unequal_segments_have_the_codes_of_equal_ones() -> None:
    hashed = _hashed(["a", "b"], [[RowTable("t", 1000, 4)], [RowTable("u", 77, 4)]])
    equal = hashed.encode(torch.arange(20), Segments([10, 10]))[0]
    assert torch.equal(hashed.encode(torch.arange(13), Segments([10, 3]))[0], equal[:13])
    assert hashed.encode(torch.arange(0), Segments([0, 0])).shape == (1, 0)


@pytest.mark.parametrize("method", ["hash", "double_hash", "multiplex(lookups=2, exact_rows=0)"])
def test_codes_of_a_model_are_stable(kjt: Callable[..., KeyedJaggedTensor], method: str) -> None:
    """Neither the seed, nor the order of vocabularies, nor packing moves a row."""
    ids = {"b": [[i] for i in EXTREMES], "a": [[i] for i in EXTREMES]}
    features = [Feature("a", 4), Feature("b", 4)]
    vocabularies = {name: Vocabulary(500, open=True) for name in "ab"}
    one = EmbeddingTables(features, vocabularies, table=method, ratio=0.1, seed=0)
    two = EmbeddingTables(
        features, dict(reversed(vocabularies.items())), table=method, ratio=0.1, seed=99
    )
    for name in one.store.tables:
        two.store.load(name, one.store.export(name)["values"].detach().clone())
    packed = PackedTables.from_tensors(*one.pack_tensors())
    expected = one(kjt(ids)).values()  # pyright: ignore[reportAttributeAccessIssue]
    for tables in (two, packed):
        found, _ = tables.lookup(kjt(dict(reversed(ids.items()))))
        assert torch.equal(found.values(), expected)
