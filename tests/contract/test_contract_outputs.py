"""Contract: what comes out has the right shape and depends on nothing but ids, weights and seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import Case
from world import BAGS, FEATURES, build, digest, kjt, outputs, step

from embtables.torchrec_types import JaggedTensor, KeyedTensor

FRESH = """
import sys
sys.path[:0] = sys.argv[1:]
from cases import CASES
from world import digest
cases = {str(case): case for case in CASES}
for line in sys.stdin:
    print(digest(cases[line.strip()]), flush=True)
"""


def test_shapes(case: Case) -> None:
    tables = build(case)
    pooled, sequences = tables(kjt(BAGS))
    assert isinstance(pooled, KeyedTensor)
    names = [feature.name for feature in FEATURES if feature.pooling != "none"]
    assert pooled.keys() == names
    assert pooled.length_per_key() == [tables.dims[name] for name in names]
    assert pooled.values().shape == (4, sum(tables.dims[name] for name in names))
    assert pooled.values().dtype == torch.float32
    history = sequences["history"]
    assert isinstance(history, JaggedTensor)
    assert history.lengths().tolist() == [3, 0, 1, 2]
    assert history.values().shape == (6, tables.dims["history"])
    assert torch.isfinite(pooled.values()).all()


def test_empty(case: Case) -> None:
    tables = build(case)
    nothing = outputs(tables, {key: [[], []] for key in BAGS})
    assert all((found == 0).all() for found in nothing.values())
    assert nothing["item"].shape == (2, tables.dims["item"])
    assert nothing["history"].shape == (0, tables.dims["history"])
    no_rows = outputs(tables, {key: [] for key in BAGS})
    assert no_rows["item"].shape == (0, tables.dims["item"])
    step(tables, 0, {key: [[], []] for key in BAGS})


def test_repeated_and_pooled_ids(case: Case) -> None:
    tables = build(case)
    found = outputs(tables)
    single = outputs(tables, {key: [[1], [1], [3]] for key in BAGS})
    one = {name: vectors[0] for name, vectors in single.items()}
    three = {name: vectors[2] for name, vectors in single.items()}
    assert torch.equal(single["item"][0], single["item"][1])
    other = outputs(
        tables, {**{key: [[]] for key in BAGS}, "shop": [[1, 1, 3]], "tag": [[3, 1, 3]]}
    )
    torch.testing.assert_close(other["shop"][0], (2 * one["shop"] + three["shop"]) / 3)
    torch.testing.assert_close(other["tag"][0], one["tag"] + 2 * three["tag"])
    # The history shares the item table: same id, same vector.
    torch.testing.assert_close(found["history"][0], found["item"][0])
    torch.testing.assert_close(found["history"][4], found["item"][2])


def test_batch_is_one_by_one(case: Case) -> None:
    tables = build(case)
    whole = outputs(tables)
    rows = [outputs(tables, {key: [bags[row]] for key, bags in BAGS.items()}) for row in range(4)]
    for name, found in whole.items():
        torch.testing.assert_close(found, torch.cat([row[name] for row in rows]))


def test_key_order_and_int32_ids(case: Case) -> None:
    tables = build(case)
    expected = outputs(tables)
    backwards = outputs(tables, dict(reversed(BAGS.items())))
    pooled, _ = tables.lookup(kjt(BAGS, torch.int32))
    for name, found in expected.items():
        assert torch.equal(found, backwards[name])
    assert torch.equal(pooled.to_dict()["item"], expected["item"])


def test_seed(case: Case) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = digest(case)
    assert torch.equal(before, torch.get_rng_state()), "the global random state was touched"
    torch.manual_seed(6)
    assert digest(case) == first
    assert not torch.equal(outputs(build(case, 1))["item"], outputs(build(case, 0))["item"])


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[[Case], str]]:
    """Case -> its digest in another process, with another seed of Python's own hash."""
    command = [sys.executable, "-c", FRESH, *map(str, Path(__file__).parents[:2])]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        questions, answers = process.stdin, process.stdout

        def ask(case: Case) -> str:
            print(case, file=questions, flush=True)
            return answers.readline().strip()

        yield ask
        questions.close()
    assert process.returncode == 0


def test_same_in_a_fresh_process(case: Case, fresh: Callable[[Case], str]) -> None:
    assert digest(case) == fresh(case)
