"""Two ranks train what one process trains, and either goes on from the other's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import Job, once, train
from safetensors.torch import load_file
from torch.testing import assert_close

STOP = 25
RUNS = ("din", "deepfm")


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


@pytest.fixture(scope="module")
def root(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: unbroken on one and two ranks, and broken ones that changed ranks."""
    return once(tmp_path_factory, "runs", lambda root: _train_all(job, root))


def _train_all(job: Job, root: Path) -> None:
    for world in (1, 2):
        runs = [
            job(name, root / f"{name}-{world}", losses=str(root / f"{name}-{world}.json"))
            for name in RUNS
        ]
        parts = [
            job("deepfm", root / f"{world}-to-{to}", *overrides, stop_at=STOP)
            for to, overrides in {
                "1": (),
                "2-row_wise": ("backend=torchrec",),
                "2-column_wise": ("sharding.type=table_wise",),
            }.items()
        ]
        train(root, [*runs, *parts], world)
    train(
        root,
        [job("deepfm", root / "1-to-1", "backend=torchrec"), job("deepfm", root / "2-to-1")],
        1,
    )
    sharded = [
        job("deepfm", root / f"{world}-to-2-{kind}", f"sharding.type={kind}")
        for world in (1, 2)
        for kind in ("row_wise", "column_wise")
    ]
    train(root, sharded, 2)


@pytest.mark.parametrize("name", RUNS)
def test_losses_of_every_step_are_equal(root: Path, name: str) -> None:
    one, two = (json.loads((root / f"{name}-{world}.json").read_text()) for world in (1, 2))
    assert len(one) == len(two) > 50
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_results_are_equal(root: Path, name: str) -> None:
    one, two = (summary(root / f"{name}-{world}") for world in (1, 2))
    for split in ("valid", "test"):
        assert two[split]["auc"] == pytest.approx(one[split]["auc"], abs=5e-5)
        assert two[split]["logloss"] == pytest.approx(one[split]["logloss"], rel=1e-5)
    for fact in ("epoch", "step"):
        assert two[fact] == one[fact]
    # Every rank holds small tables whole.
    assert one["bytes"]["training"] < two["bytes"]["training"] <= 2 * one["bytes"]["training"]


@pytest.mark.parametrize("name", RUNS)
def test_packed_files_are_alike(root: Path, name: str) -> None:
    one, two = (load_file(root / f"{name}-{world}" / "model.safetensors") for world in (1, 2))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert_close(two[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "path", [f"{world}-to-{to}" for world in (1, 2) for to in ("1", "2-row_wise", "2-column_wise")]
)
def test_run_goes_on_among_other_ranks(root: Path, path: str) -> None:
    whole, broken = summary(root / "deepfm-1"), summary(root / path)
    for split in ("valid", "test"):
        assert broken[split] == pytest.approx(whole[split], rel=1e-5)
    assert broken["stages"][0]["steps"] == whole["stages"][0]["steps"]
