"""Contract: gradients are right, training learns, and a saved state goes on identically."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from searching import begin, train_step
from torch import Tensor
from world import BAGS, ROWS, begun, build, kjt, minus_size, outputs, random_loss, step, trained

from embtables import SGD, Adagrad, Adam, DenseAdam, EmbeddingTables, RowWiseAdagrad
from embtables.search import search_of

OPTIMIZERS = [
    pytest.param(SGD(lr=0.1, weight_decay=0.1), id="sgd"),
    pytest.param(Adagrad(lr=0.1), id="adagrad"),
    pytest.param(RowWiseAdagrad(lr=0.1), id="rowwise_adagrad"),
    pytest.param(Adam(lr=0.1), id="adam"),
    pytest.param(DenseAdam(lr=0.1, l2=0.01), id="dense_adam"),
]


def _weighted(tables: EmbeddingTables) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    loss = torch.zeros((), dtype=torch.float64)
    for found in outputs(tables).values():
        weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        loss = loss + (found * weight).sum()
    return loss


def test_finite_differences(case: Case) -> None:
    tables = build(case, optimizer=None, dtype=torch.float64)
    _weighted(tables).backward()
    generator = torch.Generator().manual_seed(4)
    parameters = list(tables.parameters())
    assert parameters
    for parameter in parameters:
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if case.prunes:
            direction = direction * (parameter != 0)  # zeros stay
        with torch.no_grad():
            parameter.add_(1e-3 * direction)
            above = _weighted(tables)
            parameter.sub_(2e-3 * direction)
            below = _weighted(tables)
            parameter.add_(1e-3 * direction)
            difference = (above - below) / 2e-3
            # Outputs are at most quadratic in one tensor: the central difference is exact.
            slope = (parameter.grad * direction).sum()
            torch.testing.assert_close(slope, difference, rtol=1e-7, atol=1e-9)


def test_only_rows_that_are_read_move(case: Case) -> None:
    tables = build(case)
    before = {name: rows.clone() for name, rows in _rows(tables).items()}
    expected = outputs(tables)
    step(tables, 0)
    moved = {name: (rows != before[name]).any(dim=1) for name, rows in _rows(tables).items()}
    assert any(rows.any() for rows in moved.values())
    assert not all(rows.all() for rows in moved.values())
    # Rows that did not move were not read: anything may stand there.
    for name, rows in before.items():
        kept = rows.clone()
        # Rows that were pruned do not move, read or not.
        pruned = case.prunes & ~rows.any(dim=1)
        kept[~moved[name] & ~pruned] = 3.0
        tables.store.load(name, kept)
    fresh = build(case)
    if tables.groups.state_dict():
        tables.groups.load_state_dict(fresh.groups.state_dict())
    for name, found in outputs(tables).items():
        torch.testing.assert_close(found, expected[name])


def _rows(tables: EmbeddingTables) -> dict[str, Tensor]:
    """Return the float rows of every physical table."""
    places = {row.name: one for one in tables.plan.values() for row in one.places}
    rows = {}
    for name, one in places.items():
        held = tables.store.export(name)
        rows[name] = one.precision.decode(held) if len(held) > 1 else held["values"].float()
    return rows


def test_learns(case: Case) -> None:
    """One planted number an item, read by a fixed readout: the squared error falls."""
    tables = build(case, optimizer=Adagrad(lr=0.2), seed=2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (64,), generator=generator).tolist()
    planted = torch.randn(ROWS["item"], generator=generator)[ids]
    readout = torch.randn(tables.dims["item"], generator=generator)
    batch = kjt({**{key: [[]] * 64 for key in BAGS}, "item": [[i] for i in ids]})
    projections = list(tables.parameters())
    losses = []
    for _ in range(40):
        error = (tables.lookup(batch)[0].to_dict()["item"] @ readout - planted).square().mean()
        error.backward()
        with torch.no_grad():
            for projection in projections:
                if projection.grad is not None:
                    projection.sub_(0.01 * projection.grad)
        tables.step()
        tables.zero_grad()
        losses.append(error.item())
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_round_trip(case: Case, optimizer) -> None:
    if case.held and optimizer.kind == "dense_adam":
        with pytest.raises(ValueError, match="dense_adam"):
            build(case, optimizer=optimizer)
        return
    going = trained(case, optimizer=optimizer)
    state = {name: tensor.clone() for name, tensor in going.training_state().items()}
    found = {n: one.table.width for n, one in going.plan.items()} if case.searches else None
    resumed = begun(case, seed=9, optimizer=optimizer, found=found)
    resumed.load_training_state(state)
    for tables in (going, resumed):
        step(tables, 7)
        step(tables, 8)
    after = resumed.training_state()
    for name, tensor in going.training_state().items():
        assert torch.equal(tensor, after[name]), name
    read = outputs(resumed)
    for name, vectors in outputs(going).items():
        assert torch.equal(vectors, read[name]), name


def test_search_state_round_trip(searching: Case) -> None:
    """A search goes on identically from the middle of any of its stages."""
    found: dict[str, int] = {}
    going = begun(searching, optimizer=Adam(lr=0.1))
    search = search_of(going)
    assert search is not None
    for stage in search.stages(search.config):
        begin(search, stage)
        for number in (1, 2):
            train_step(going, search, stage, random_loss, number, 10)
        state = {name: tensor.clone() for name, tensor in going.training_state().items()}
        resumed = begun(searching, seed=9, optimizer=Adam(lr=0.1), found=found)
        other = search_of(resumed)
        assert other is not None
        begin(other, stage)
        resumed.load_training_state(state)
        for number in (3, 4):
            over = train_step(going, search, stage, random_loss, number, 10)
            assert over == train_step(resumed, other, stage, random_loss, number, 10)
        for name, tensor in going.training_state().items():
            assert torch.equal(tensor, resumed.training_state()[name]), name
        going.eval()
        resumed.eval()
        for name, expected in outputs(resumed).items():
            assert torch.equal(outputs(going)[name], expected), name
        rebuild = search.end(stage, lambda rows, now=going: minus_size(now))
        if rebuild is not None:
            found |= rebuild.widths
            going = begun(searching, optimizer=Adam(lr=0.1), found=found)
            rebuild.fill(going)
            search = search_of(going)
            assert search is not None
        going.train()
