"""What the theory of feature multiplexing says (Coleman et al., NeurIPS 2023), on our tables.

N values of all features, N_t of feature t, M rows. theta_t is the reader of feature t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embtables import SGD, Adam, EmbeddingTables, Feature, Vocabulary
from embtables.torchrec_types import KeyedJaggedTensor

Kjt = Callable[..., KeyedJaggedTensor]


def _tables(method: str, rows: dict[str, int], dim: int, size: int, **options: Any):
    features = [Feature(name, dim) for name in rows]
    vocabularies = {name: Vocabulary(count) for name, count in rows.items()}
    return EmbeddingTables(features, vocabularies, table=method, budget=4 * dim * size, **options)


def _rows(method: str, values: dict[str, int], size: int, kjt: Kjt) -> dict[str, Tensor]:
    """Return the row of every value: tables of width one whose rows hold their own numbers."""
    tables = _tables(method, values, 1, size)
    start = 0
    for name, place in tables.store.tables.items():
        tables.store.load(name, torch.arange(start, start + place.rows).float().unsqueeze(1))
        start += place.rows
    assert start == size
    longest = max(values.values())
    ids = {name: [[i % count] for i in range(longest)] for name, count in values.items()}
    pooled, _ = tables.lookup(kjt(ids))
    return {name: pooled[name][:count, 0].long() for name, count in values.items()}


def _partners(mine: Tensor, others: Tensor) -> float:
    """Return the mean number of other values in the row of a value."""
    return float((mine[:, None] == others[None, :]).double().sum(dim=1).mean())


RUNS = 60


def test_collision_counts(kjt: Kjt) -> None:
    """T1: (N_t - 1) / M within a feature, (N - N_t) / M across; a split table: all within."""
    sizes, rows = (200, 100), 60
    sums = torch.zeros(RUNS, 5)
    alone = torch.zeros(RUNS)
    for run in range(RUNS):
        names = {f"a{run}": sizes[0], f"b{run}": sizes[1]}
        first, second = _rows("multiplex(exact_rows=0)", names, rows, kjt).values()
        split_first, split_second = _rows("hash(exact_rows=0)", names, rows, kjt).values()
        sums[run] = torch.tensor(
            [
                _partners(first, first) - 1,
                _partners(first, second),
                _partners(second, second) - 1,
                _partners(split_first, split_first) - 1,
                _partners(split_second, split_second) - 1,
            ]
        )
        crowd = (second[:, None] == second[None, :]).sum(dim=1)
        alone[run] = (crowd == 1).float().mean()
        assert not set(split_first.tolist()) & set(split_second.tolist())
    expected = torch.tensor([199 / 60, 100 / 60, 99 / 60, 199 / 40, 99 / 20])
    error = sums.std(dim=0) / RUNS**0.5
    assert ((sums.mean(dim=0) - expected).abs() < 4 * error).all()
    probability = (1 - 1 / 60) ** 99
    assert abs(float(alone.mean()) - probability) < 4 * float(alone.std()) / RUNS**0.5
    # The total is the same, N / M; only the share within a feature differs.
    assert float(sums[:, 0].mean() + sums[:, 1].mean()) == pytest.approx(299 / 60, rel=0.05)
    assert float(sums[:, 3].mean()) == pytest.approx(300 / 60, rel=0.05)


def test_all_probes_collide_with_the_power_of_the_lookups(kjt: Kjt) -> None:
    """T1: a pair shares all k rows with probability M^-k."""
    pairs, rows = 0, 8
    for run in range(RUNS):
        tables = _tables("multiplex(lookups=2, exact_rows=0)", {f"f{run}": 80}, 2, rows // 2)
        name, place = next(iter(tables.store.tables.items()))
        assert (place.rows, place.dim) == (rows, 1)
        tables.store.load(name, torch.arange(rows).float().unsqueeze(1))
        found = tables.lookup(kjt({f"f{run}": [[i] for i in range(80)]}))[0].values()
        same = (found[:, None] == found[None, :]).all(dim=2)
        pairs += int(same.triu(1).sum())
    expected = RUNS * 80 * 79 / 2 / rows**2
    assert abs(pairs - expected) < 5 * expected**0.5


VALUES = {"u": 30, "v": 20}
ROWS = 7


def _samples(count: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.randint(0, n, (count,), generator=generator) for n in VALUES.values())
    return u, v, torch.randint(0, 2, (count,), generator=generator).double()


def _logits(
    tables: EmbeddingTables, kjt: Kjt, u: Tensor, v: Tensor, readers: tuple[Tensor, Tensor]
) -> Tensor:
    batch = kjt({"u": [[i] for i in u.tolist()], "v": [[i] for i in v.tolist()]})
    pooled, _ = tables.lookup(batch)
    return pooled["u"] @ readers[0] + pooled["v"] @ readers[1]


def test_gradient_of_a_row_decomposes(kjt: Kjt) -> None:
    """T3: true + intra-feature parts are multiples of theta_1, the inter-feature part of theta_2."""
    dim = 6
    tables = _tables("multiplex(exact_rows=0)", VALUES, dim, ROWS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    one, two = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    u, v, label = _samples()
    logit = _logits(tables, kjt, u, v, (one, two)) + 0.3
    F.binary_cross_entropy_with_logits(logit, label, reduction="sum").backward()
    (values,) = tables.parameters()
    assert values.grad is not None
    codes = _rows("multiplex(exact_rows=0)", VALUES, ROWS, kjt)

    # slope[u, v] = (C_uv0 + C_uv1) * sigmoid(z_uv) - C_uv1
    counts = torch.zeros(2, 30, 20, dtype=torch.float64)
    counts.index_put_((label.long(), u, v), torch.ones(len(u)).double(), accumulate=True)
    every_u, every_v = torch.meshgrid(torch.arange(30), torch.arange(20), indexing="ij")
    z = _logits(tables, kjt, every_u.flatten(), every_v.flatten(), (one, two)).view(30, 20) + 0.3
    slope = (counts.sum(dim=0) * z.sigmoid() - counts[1]).detach()
    shared, foreign = 0, 0.0
    for value in range(30):
        row = codes["u"][value]
        same = codes["u"] == row
        same[value] = False
        true = slope[value].sum() * one
        intra = slope[same].sum() * one
        inter = slope[:, codes["v"] == row].sum() * two
        torch.testing.assert_close(values.grad[row], true + intra + inter)
        shared += int(same.any())
        foreign += float(inter.abs().sum())
    assert shared > 15
    assert foreign > 1
    span, _ = torch.linalg.qr(torch.stack([one, two], dim=1))
    outside = values.grad - values.grad @ span @ span.T
    assert float(outside.abs().max()) < 1e-12


@pytest.mark.parametrize("orthogonal", [True, False])
def test_orthogonal_readers_see_no_foreign_feature(kjt: Kjt, orthogonal: bool) -> None:
    """T4: with theta_1 orthogonal to theta_2 a shared table reads as two tables do, exactly."""
    dim = 6
    one = torch.tensor([1.0, 2, -1, 0, 0.5, 0], dtype=torch.float64)
    two = torch.tensor([0.0, 1, 2, 3, 0, -1], dtype=torch.float64)
    assert float(one @ two) == 0
    readers = (one, two if orthogonal else one)
    options: dict[str, Any] = {"dtype": torch.float64, "optimizer": SGD(lr=0.05)}
    shared = _tables("multiplex(exact_rows=0)", VALUES, dim, ROWS, **options)
    # Tables of their own, of as many rows each: the same name gives the same hash.
    equal = dict.fromkeys(VALUES, 9 * ROWS)
    apart = _tables("hash(exact_rows=0)", equal, dim, 2 * ROWS, **options)
    (start,) = (shared.store.export(name)["values"].clone() for name in shared.store.tables)
    assert {place.rows for place in apart.store.tables.values()} == {ROWS}
    for name in apart.store.tables:
        apart.store.load(name, start)
    u, v, label = _samples()
    for _ in range(20):
        for tables in (shared, apart):
            loss = F.binary_cross_entropy_with_logits(_logits(tables, kjt, u, v, readers), label)
            loss.backward()
            tables.step()
    (together,) = (shared.store.export(name)["values"] for name in shared.store.tables)
    for name, reader in zip(VALUES, readers, strict=True):
        read, alone = together @ reader, apart.store.export(name)["values"] @ reader
        assert float((alone - start @ reader).abs().max()) > 1e-3, "it has trained"
        difference = float((read - alone).abs().max())
        assert difference < 1e-12 if orthogonal else difference > 1e-3


def _angle(size: int, kjt: Kjt) -> float:
    """Return the mean angle between readers in degrees after training, all equal at the start."""
    names = [f"f{number}" for number in range(6)]
    dim, values, count = 12, 150, 1500
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, values, (len(names), count), generator=generator)
    planted = torch.randn(len(names), values, generator=generator)
    truth = planted.gather(1, ids).sum(dim=0)
    label = (truth.sigmoid() > torch.rand(count, generator=generator)).float()
    tables = _tables(
        "multiplex(exact_rows=0)", dict.fromkeys(names, values), dim, size, optimizer=Adam(lr=0.01)
    )
    readers = torch.ones(len(names), dim).mul_(dim**-0.5).requires_grad_()
    dense = torch.optim.Adam([readers], lr=0.01)
    batch = kjt({name: [[i] for i in ids[at].tolist()] for at, name in enumerate(names)})
    for _ in range(120):
        pooled = tables.lookup(batch)[0].values().view(count, len(names), dim)
        logit = (pooled * readers).sum(dim=(1, 2))
        loss = F.binary_cross_entropy_with_logits(logit, label)
        dense.zero_grad()
        loss.backward()
        dense.step()
        tables.step()
    cosine = F.normalize(readers.detach(), dim=1) @ F.normalize(readers.detach(), dim=1).T
    upper = torch.triu_indices(len(names), len(names), 1)
    return float(cosine[upper[0], upper[1]].clamp(-1, 1).acos().rad2deg().mean())


def test_readers_turn_apart_in_training(kjt: Kjt) -> None:
    """T5: readers that start in one direction spread, the more the fewer rows they share."""
    roomy, tight = _angle(900, kjt), _angle(60, kjt)
    assert 1 < roomy < tight
