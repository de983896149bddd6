"""Two runs compared on the rows that both were measured on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.cli import main
from trainer.compare import compare_runs
from trainer.config import RunConfig
from trainer.loop import train
from trainer.runs import FinishedRun
from trainer.significance import AUC

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {"full": (), "hash": ("table=hash", "ratio=0.4")}.items():
        train(tiny("train.epochs=1", *overrides), folder / name)
    return folder / "full", folder / "hash"


def edited(run: Path, target: Path, **changes: object) -> Path:
    """Return a copy of a run with another summary."""
    shutil.copytree(run, target)
    summary = json.loads((run / "summary.json").read_text())
    (target / "summary.json").write_text(json.dumps(summary | changes))
    return target


def test_values_are_those_of_the_summaries(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    summaries = [FinishedRun.open(run).summary for run in runs]
    assert found.rows == 300
    assert list(found.metrics) == ["auc", "logloss"]
    for metric, (values, difference) in found.metrics.items():
        assert values == pytest.approx([summary["test"][metric] for summary in summaries])
        assert difference.value == pytest.approx(values[0] - values[1])
        assert difference.interval[0] < difference.value < difference.interval[1]
    same = compare_runs(runs[0], runs[0]).metrics["auc"][1]
    assert (same.value, same.p) == (0, 1)


def test_a_run_keeps_the_scores_it_was_measured_by(runs: tuple[Path, Path]) -> None:
    run = FinishedRun.open(runs[0])
    scores = np.load(runs[0] / "scores" / "test.npy")
    assert scores.dtype == np.float32
    auc = AUC(run.store().split("test").label)
    assert auc.value(auc.parts(scores)) == pytest.approx(run.summary["test"]["auc"], abs=1e-12)


def test_kept_scores_of_the_test_rows_are_taken(runs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = edited(runs[0], tmp_path / "copy")
    scores = np.random.default_rng(0).normal(size=300).astype(np.float32)
    (copy / "scores").mkdir(exist_ok=True)
    np.save(copy / "scores" / "test.npy", scores)
    store = FinishedRun.open(runs[0]).store()
    label = store.split("test").label
    values, _ = compare_runs(copy, runs[0]).metrics["auc"]
    assert values[0] == pytest.approx(AUC(label).value(AUC(label).parts(scores)))
    assert compare_runs(copy, runs[0], "valid").metrics["auc"][1].value == 0


def test_other_data_or_rows_are_refused_by_name(
    tiny: Tiny, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    other = edited(runs[0], tmp_path / "other", data="frappe_x1-0123")
    with pytest.raises(
        ValueError, match=r"full was measured on frappe_x1-\w+ and .*other on .*0123"
    ):
        compare_runs(runs[0], other)
    train(tiny("train.limit_batches=1", "train.eval_batch_size=100"), tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"full was measured on 300 rows and .*fewer on 100"):
        compare_runs(runs[0], tmp_path / "fewer")
    with pytest.raises(ValueError, match="no run here"):
        compare_runs(runs[0], tmp_path)


def test_command_prints_json_and_lines_for_people(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["eval", str(runs[1]), "--compare", str(runs[0]), "--split", "valid"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["runs"] == [str(runs[1]), str(runs[0])]
    assert found["auc"]["difference"] == pytest.approx(
        found["auc"]["values"][0] - found["auc"]["values"][1]
    )
    low, high = found["auc"]["interval"]
    assert f"{low:+.5f} .. {high:+.5f}" in err
    assert "300 valid rows" in err
