"""Two ranks train what one process trains, and either goes on from the other's checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from launching import Job, once, train
from safetensors.torch import load_file
from torch.testing import assert_close

from embtables.compressor import sharings

STOP = 25
RUNS = ["deepfm", *(f"din {kind}" for kind in sharings.names())]
"""DeepFM on its recipe's table, and DIN, which reads bags and sequences, on every sharing."""


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


@pytest.fixture(scope="module")
def root(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: unbroken on one and two ranks, and broken ones that changed ranks."""
    return once(tmp_path_factory, "runs", lambda root: _train_all(job, root))


def _train_all(job: Job, root: Path) -> None:
    runs: list[dict[str, Any]] = []
    for world in (1, 2):
        runs = [
            job(
                name.split()[0],
                root / f"{name}-{world}",
                *(f"table={kind}" for kind in name.split()[1:]),
                *("ratio=0.6" for kind in name.split()[1:] if kind != "full"),
                # Left to itself the planner replicates tables as small as these.
                *("sharding.type=row_wise" for _ in name.split()[1:]),
                losses=str(root / f"{name}-{world}.json"),
            )
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
    again = [_unpacked(one, f"{one['run']}-packed-by-1") for one in runs]
    more = [job("deepfm", root / "1-to-1", "backend=torchrec"), job("deepfm", root / "2-to-1")]
    train(root, [*again, *more], 1)
    sharded = [
        job("deepfm", root / f"{world}-to-2-{kind}", f"sharding.type={kind}")
        for world in (1, 2)
        for kind in ("row_wise", "column_wise")
    ]
    cut = ("rows.kind=rowwise_adagrad", "sharding.type=column_wise")
    train(root, [*sharded, job("din", root / "cut rows", *cut)], 2)


def _unpacked(run: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a run that stands where another one stood before it was packed."""
    shutil.copytree(run["run"], path)
    for name in ("summary.json", "model.safetensors"):
        (Path(path) / name).unlink()
    return {"recipe": run["recipe"], "overrides": run["overrides"], "run": path}


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
    assert one["bytes"]["file"] == two["bytes"]["file"]
    # On every rank: the small tables of DeepFM, and maps.
    whole, sum_of_ranks = one["bytes"]["training"], two["bytes"]["training"]
    if name == "deepfm" or "graphhash" in name:
        assert whole < sum_of_ranks <= 2 * whole
    else:
        assert sum_of_ranks == whole


@pytest.mark.parametrize("name", ["deepfm", "din full"])
def test_packed_files_are_alike(root: Path, name: str) -> None:
    one, two = (load_file(root / f"{name}-{world}" / "model.safetensors") for world in (1, 2))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert_close(two[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_one_process_packs_the_same_file_from_the_checkpoint(root: Path, name: str) -> None:
    files = [root / f"{name}-{which}" / "model.safetensors" for which in ("2", "2-packed-by-1")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_column_wise_rowwise_adagrad_is_another_optimizer_that_trains_and_packs(root: Path) -> None:
    found = summary(root / "cut rows")
    assert found["bytes"]["file"] == summary(root / "din full-1")["bytes"]["file"]
    assert found["test"]["auc"] > 0.5


@pytest.mark.parametrize(
    "path", [f"{world}-to-{to}" for world in (1, 2) for to in ("1", "2-row_wise", "2-column_wise")]
)
def test_run_goes_on_among_other_ranks(root: Path, path: str) -> None:
    whole, broken = summary(root / "deepfm-1"), summary(root / path)
    for split in ("valid", "test"):
        assert broken[split] == pytest.approx(whole[split], rel=1e-5)
    assert broken["stages"][0]["steps"] == whole["stages"][0]["steps"]
