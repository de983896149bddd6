"""Planted truth: what is noise, of low dimension or never seen is what each search gives up.

Shape letters: n rows of a split, R ids of a field, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from searching import searched
from torch import Tensor, nn
from torch.nn import functional

from embtables import Adam, EmbeddingTables, Feature, Init, Vocabulary
from embtables.rows.pruned import pruned_bytes
from embtables.search import search_of
from embtables.torchrec_types import KeyedJaggedTensor
from embtables.width._pruned import PruningSearch

D, R, BATCH = 8, 200, 500


@dataclass
class Data:
    """Rows with planted labels; the last 3000 are held out.

    Attributes:
        fields: names.
        ids: [n, fields].
        context: [n, fields, D] numbers that are read beside the ids.
        labels: [n].
    """

    fields: list[str]
    ids: np.ndarray
    context: np.ndarray
    labels: np.ndarray

    @property
    def train(self) -> int:
        return len(self.ids) - 3000

    def counts(self, field: int) -> np.ndarray:
        return np.bincount(self.ids[: self.train, field], minlength=R)

    def batch(self, rows: np.ndarray) -> tuple[KeyedJaggedTensor, Tensor, Tensor]:
        ids = torch.from_numpy(self.ids[rows].T.reshape(-1).copy())
        features = KeyedJaggedTensor(
            keys=self.fields, values=ids, lengths=torch.ones(len(ids), dtype=torch.long)
        )
        context = torch.from_numpy(self.context[rows].astype(np.float32))
        return features, context, torch.from_numpy(self.labels[rows].astype(np.float32))


def _skewed(rng: np.random.Generator, rows: int, fields: int) -> np.ndarray:
    return (R * rng.random((rows, fields)) ** 2).astype(np.int64)


def _labels(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return rng.random(len(logits)) < 1 / (1 + np.exp(-2 * logits / logits.std()))


class Readout(nn.Module):
    """Logit: sum over fields of <M_f e_f, context_f>; M learned, or the identity.

    A loss of training rows first steps M by the gradients of the one before.
    """

    def __init__(self, data: Data, learned: bool) -> None:
        super().__init__()
        self.data = data
        generator = torch.Generator().manual_seed(1)
        count = len(data.fields)
        mixed = torch.eye(D).repeat(count, 1, 1)
        if learned:
            mixed = mixed + 0.3 * torch.randn(count, D, D, generator=generator)
        self.mix = nn.Parameter(mixed, requires_grad=learned)
        self.optimizer = torch.optim.Adam([self.mix], lr=0.01)
        self.rng = np.random.default_rng(2)

    def loss(self, tables: EmbeddingTables, step: int, held_out: bool) -> Tensor:
        if not held_out:
            self.optimizer.step()
            self.optimizer.zero_grad()
        low, high = (self.data.train, len(self.data.ids)) if held_out else (0, self.data.train)
        return self._loss(tables, self.rng.integers(low, high, BATCH))

    def fitness(self, tables: EmbeddingTables) -> float:
        rows = np.arange(self.data.train, len(self.data.ids))
        return -float(self._loss(tables, rows))

    def _loss(self, tables: EmbeddingTables, rows: np.ndarray) -> Tensor:
        features, context, labels = self.data.batch(rows)
        vectors = tables.lookup(features)[0].values().view(len(rows), -1, D)
        logits = (torch.einsum("nfd,fde->nfe", vectors, self.mix) * context).sum((1, 2))
        return functional.binary_cross_entropy_with_logits(logits, labels)


def _found(
    data: Data, table: str, ratio: float, steps: int | Mapping[str, int], learned: bool = False
) -> EmbeddingTables:
    """Return the tables that a search has found."""
    torch.manual_seed(0)
    features = [Feature(name, D) for name in data.fields]
    counts = {name: Vocabulary(R, counts=data.counts(f)) for f, name in enumerate(data.fields)}
    model = Readout(data, learned)

    def build(found: Mapping[str, int]) -> EmbeddingTables:
        return EmbeddingTables(
            features,
            counts,
            table=table,
            ratio=ratio,
            optimizer=Adam(lr=0.01),
            init=Init(scale=0.05),
            found=found,
        )

    return searched(build({}), build, model.loss, model.fitness, steps=steps, lr=0.05)


def _bytes_a_row(tables: EmbeddingTables) -> dict[str, float]:
    """Return the bytes a row of each field when packed."""
    search = search_of(tables)
    assert search is not None
    if isinstance(search, PruningSearch):
        return {
            name: pruned_bytes(search.rows(name), search.placed[name].precision) / R
            for name in tables.plan
        }
    return {name: 4.0 * one.table.width for name, one in tables.plan.items()}


STEPS = {"warm-up": 150, "search": 250, "prune": 150, "supernet": 250, "evolve": 0, "retrain": 1}
METHODS = {
    "dnis": "dnis(l1=1e-4, blocks=3)",
    "dnis-element": "dnis(form=element, l1=1e-4, blocks=3)",
    "optembed": "optembed(population=12, generations=6, retrain=found)",
    "pep": "pep(retrain=found)",
    "magnitude": "magnitude",
    "autodim": "autodim(lr=0.05)",
}


@pytest.fixture(scope="module")
def noisy() -> Data:
    """Fields a and b tell the label, noise does not; ids and contexts of all are alike."""
    rng = np.random.default_rng(0)
    ids, context = _skewed(rng, 23_000, 3), rng.standard_normal((23_000, 3, D))
    planted = rng.standard_normal((2, R, D))
    logits = sum((planted[f][ids[:, f]] * context[:, f]).sum(1) for f in range(2))
    return Data(["a", "b", "noise"], ids, context, _labels(rng, np.asarray(logits)))


_TIED = pytest.mark.xfail(
    reason="autodim takes the likeliest candidate even where bytes are left, and its weights of 2 and 8 "
    "numbers are nearly tied for an informative field: b gets 2 numbers a row, as noise does",
    strict=True,
)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[_TIED] if name == "autodim" else []) for name in METHODS],
)
def test_noise_gets_fewer_bytes(noisy: Data, method: str) -> None:
    tables = _found(noisy, METHODS[method], 0.6, STEPS, learned=method == "autodim")
    sizes = _bytes_a_row(tables)
    assert sizes["noise"] < 0.8 * min(sizes["a"], sizes["b"]), sizes


def test_autodim_takes_the_narrowest_for_noise(noisy: Data) -> None:
    sizes = _bytes_a_row(_found(noisy, METHODS["autodim"], 0.6, STEPS, learned=True))
    assert sizes["noise"] == 4 * 2
    assert sizes["a"] + sizes["b"] > 2 * sizes["noise"]


@pytest.fixture(scope="module")
def dimensions() -> Data:
    """Field `one` has a planted vector in one dimension, `six` in six; both tell as much."""
    rng = np.random.default_rng(1)
    ids, context = _skewed(rng, 23_000, 2), rng.standard_normal((23_000, 2, D))
    planted = np.zeros((2, R, D))
    planted[0, :, 0] = rng.standard_normal(R)
    planted[1, :, :6] = rng.standard_normal((R, 6)) / 6**0.5
    logits = sum((planted[f][ids[:, f]] * context[:, f]).sum(1) for f in range(2))
    return Data(["one", "six"], ids, context, _labels(rng, np.asarray(logits)))


@pytest.mark.parametrize("method", [*METHODS, "lowrank"])
def test_more_dimensions_get_more_width(dimensions: Data, method: str) -> None:
    table = METHODS.get(method, "lowrank(after=true)")
    steps = STEPS | {"train": 300}
    tables = _found(dimensions, table, 0.6, steps, learned=method == "autodim")
    sizes = _bytes_a_row(tables)
    # Single numbers by their size: chance leaves some in the seven dimensions that say nothing.
    share = 0.8 if method in ("pep", "magnitude") else 0.7
    assert sizes["one"] < share * sizes["six"], sizes


@pytest.fixture(scope="module")
def unseen() -> Data:
    """Every other id of both fields is never in a row."""
    rng = np.random.default_rng(3)
    ids, context = _skewed(rng, 23_000, 2), rng.standard_normal((23_000, 2, D))
    ids -= ids % 2
    planted = rng.standard_normal((2, R, D))
    logits = sum((planted[f][ids[:, f]] * context[:, f]).sum(1) for f in range(2))
    return Data(["a", "b"], ids, context, _labels(rng, np.asarray(logits)))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "autodim"])
def test_rows_never_seen_are_gone(unseen: Data, method: str) -> None:
    tables = _found(unseen, METHODS[method], 0.5, STEPS)
    search = search_of(tables)
    assert search is not None
    for field, name in enumerate(unseen.fields):
        never = torch.from_numpy(unseen.counts(field) == 0)
        assert never[1::2].all()
        kept = search.rows(name).any(1)
        assert not kept[never].any()
        assert kept[~never].double().mean() > 0.9


@pytest.mark.parametrize("rest", ["shared", "zero"])
def test_frequency_cut_reads_no_row_of_its_own_for_what_was_never_seen(
    unseen: Data, rest: str
) -> None:
    table = f"frequency_cut(rest={rest})" if rest == "zero" else "frequency_cut"
    tables = _found(unseen, table, 0.5, 0)
    ids = torch.arange(R)
    for field, name in enumerate(unseen.fields):
        seen = torch.from_numpy(unseen.counts(field) > 0)
        lengths = torch.zeros(2, R, dtype=torch.long)
        lengths[field] = 1
        batch = KeyedJaggedTensor(keys=["a", "b"], values=ids, lengths=lengths.flatten())
        vectors = tables.lookup(batch)[0][name]
        assert len(vectors[~seen].unique(dim=0)) == 1
        assert (rest == "zero") == (not vectors[~seen].any())
        assert len(vectors[seen].unique(dim=0)) > 0.9 * int(seen.sum())
