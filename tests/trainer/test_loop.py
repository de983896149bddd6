"""The loop: resuming, choosing the epoch, lowering learning rates, clipping, and the summary."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from trainer import loop
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.dryrun import dry_run
from trainer.evaluation import measure
from trainer.loop import Trainer, train
from trainer.predict import PackedModel
from trainer.runs import evaluate_run
from trainer.signals import Interrupted
from trainer.step import TrainStep

Tiny = Callable[..., RunConfig]
WALL = {"seconds", "train_seconds", "search_seconds", "rows_per_second", "peak_memory_bytes"}


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what a clock or the machine decides."""
    plain = {key: value for key, value in summary.items() if key not in WALL}
    plain["stages"] = [
        {key: value for key, value in one.items() if key not in WALL} for one in summary["stages"]
    ]
    return plain


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something in the middle of a training step."""
    plain = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> torch.Tensor:
        if self.state.step + 1 == step:
            action()
        return plain(self, *batches)

    monkeypatch.setattr(TrainStep, "__call__", train_step)


def crash() -> None:
    raise RuntimeError("power cut")


def test_summary_has_everything_and_the_model_has_learnt(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny(), tmp_path / "run")
    for split in ("valid", "test"):
        assert summary[split].keys() == {"auc", "logloss", "calibration", "rows"}
        assert summary[split]["auc"] > 0.85
    assert summary["bytes"].keys() == {"inference", "training", "uncompressed", "file"}
    assert summary["bytes"]["file"] == summary["bytes"]["inference"]
    assert summary["seconds"].keys() == {
        *("prepare", "build", "train", "evaluate", "search", "pack", "total")
    }
    assert summary["seed"] == 5
    assert summary["table"] == "full"
    assert summary["rows"] == {"train": 600, "valid": 300, "test": 300}
    assert summary["rows_per_second"] > 0
    assert summary["peak_memory_bytes"] > 10**7
    assert summary["parameters"]["network"] == 4 * 10 * 8 + 8 + 8 + 1
    best = max(history(tmp_path / "run"), key=lambda row: row["auc"])
    assert (summary["epoch"], summary["step"]) == (best["epoch"], best["step"])
    # float32 rows packed and read back: the same numbers as while training
    assert summary["valid"]["auc"] == pytest.approx(best["auc"], abs=1e-9)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(
        json.dumps(summary)
    )
    for name in ("config.yaml", "env.json", "log.txt", "model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.parametrize("table", ["full", "hash+int8(train=true)", "qr"])
@pytest.mark.parametrize("how", ["killed", "interrupted", "interrupted at the end of an epoch"])
def test_resumed_run_equals_an_unbroken_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, how: str
) -> None:
    config = tiny(
        f"table={table}", "train.checkpoint_every=3", "train.eval_every=7", "train.patience=9"
    )
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if how == "killed":
            stop_at(patch, 14, crash)
            with pytest.raises(RuntimeError, match="power cut"):
                train(config, tmp_path / "broken")
        else:
            step = 14 if how == "interrupted" else 10
            stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Interrupted):
                train(config, tmp_path / "broken")
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = train(config, tmp_path / "broken")
    assert numbers(resumed) == numbers(whole)
    assert history(tmp_path / "broken") == history(tmp_path / "whole")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_interrupted_before_it_begins_a_fresh_run_throws_nothing_away(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny("train.epochs=1"), tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    monkeypatch.setattr(loop.StopSignal, "__call__", lambda self: True)
    with pytest.raises(Interrupted):
        train(tiny("train.epochs=2"), tmp_path, fresh=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()} == before


def test_run_interrupted_while_evaluating_resumes_with_the_evaluation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = iter(range(100))

        def asked(self: object) -> bool:
            return next(calls) > 10  # before, 10 steps an epoch: in the first batch evaluated

        patch.setattr(loop.StopSignal, "__call__", asked)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "broken")
    assert not (tmp_path / "broken" / "metrics.jsonl").exists()
    assert numbers(train(config, tmp_path / "broken")) == numbers(whole)
    assert history(tmp_path / "broken") == history(tmp_path / "whole")


def test_finished_run_gives_its_summary_without_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("train.epochs=1")
    first = train(config, tmp_path)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    assert train(config, tmp_path) == first


def test_same_seed_same_numbers_other_seed_others(tiny: Tiny, tmp_path: Path) -> None:
    runs = [
        train(tiny(f"train.seed={seed}", "train.epochs=1"), tmp_path / name)["test"]
        for name, seed in {"a": 1, "b": 1, "c": 2}.items()
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_plateau_lowers_both_learning_rates_then_stops(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.6, 0.7, 0.7 + 5e-7, 0.65, 0.69, 0.99])
    plain = Trainer.measure
    monkeypatch.setattr(
        Trainer,
        "measure",
        lambda self, split, predict, keep=None: (
            plain(self, split, predict, keep)
            | ({"auc": next(values)} if predict == self.predict else {})
        ),
    )
    config = tiny(
        "train.epochs=50", "train.patience=3", "train.reduce_lr={factor: 0.1, min_lr: 5e-4}"
    )
    summary = train(config, tmp_path)
    rows = history(tmp_path)
    assert [row["best"] for row in rows] == [True, True, False, False, False]
    assert [row["lr_dense"] for row in rows] == pytest.approx([0.01, 0.01, 0.01, 1e-3, 5e-4])
    assert [row["lr_rows"] for row in rows] == pytest.approx([0.01, 0.01, 0.01, 1e-3, 5e-4])
    assert summary["epoch"] == 2
    assert summary["epochs_trained"] == 5


def test_lowered_rates_reach_both_optimizers(tiny: Tiny) -> None:
    config = tiny()
    trainer = Trainer(config, open_store(config))
    trainer._reduce_lr()
    assert trainer.tables.lr == pytest.approx(1e-3)
    assert [group["lr"] for group in trainer.train_step.optimizer.param_groups] == pytest.approx(
        [1e-3]
    )


def test_monitored_logloss_is_minimised(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("train.monitor=logloss"), tmp_path)
    best = min(history(tmp_path), key=lambda row: row["logloss"])
    assert summary["step"] == best["step"]


def test_clipping_bounds_the_norm_over_tables_and_network(tiny: Tiny) -> None:
    config = tiny(
        "train.clip_norm=0.01", "rows.kind=sgd", "rows.lr=1", "dense.kind=sgd", "dense.lr=1"
    )
    trainer = Trainer(config, open_store(config))
    before = [weight.detach().clone() for weight in trainer.train_step.weights]
    rows = {key: value.clone() for key, value in trainer.tables.training_state().items()}
    trainer.train_step(next(iter(trainer.loader)))
    after = trainer.tables.training_state()
    moved = [
        (a.detach() - b).square().sum()
        for a, b in zip(trainer.train_step.weights, before, strict=True)
    ]
    moved += [(after[key] - value).square().sum() for key, value in rows.items() if "values" in key]
    # with plain SGD at lr 1 the move is the gradient
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(0.01, rel=1e-3)


def test_diverging_loss_is_an_error_with_step_and_rates(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("dense.kind=sgd", "dense.lr=1e30", "train.epochs=4")
    with pytest.raises(ValueError, match=r"the loss became (nan|inf) .*steps 1 and 10.*dense.lr"):
        train(config, tmp_path)


def test_gauc_needs_groups(tiny: Tiny) -> None:
    config = tiny("train.monitor=gauc")
    with pytest.raises(ValueError, match=r"train\.monitor: gauc needs group ids"):
        Trainer(config, open_store(config))


def test_one_label_of_the_validation_rows_is_told_before_training(tiny: Tiny) -> None:
    store = open_store(tiny())
    splits = {**store.stats["splits"], "valid": {"rows": 300, "label_mean": 1.0}}
    clicks = replace(store, stats={**store.stats, "splits": splits})
    with pytest.raises(ValueError, match=r"train\.monitor: auc .* is undefined .*logloss"):
        Trainer(tiny(), clicks)
    Trainer(tiny("train.monitor=logloss"), clicks)


def test_gauc_chooses_the_epoch_where_rows_have_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user, item = np.divmod(np.arange(60 * 40), 40)
    rating = np.clip(item // 8 + 1 + rng.integers(-1, 2, len(item)), 1, 5)
    columns = {"user": user + 1, "item": item + 1, "rating": rating}
    pl.DataFrame(columns).write_parquet(tmp_path / "ratings.parquet")
    lines = [f"{one}::F::25::{one % 3}::{one}\n" for one in range(1, 61)]
    (tmp_path / "users.dat").write_text("".join(lines))
    place = [f"data.root={tmp_path}", f"data.store={tmp_path / 'prepared'}"]
    options = ["train.epochs=2", "train.monitor=gauc", "train.batch_size=128", "model.dim=4"]
    config = load_config("movielens_1m/dcnv2", [*place, *options]).config
    summary = train(config, tmp_path / "run")
    test = summary["test"]
    assert 0.8 < test["gauc"] <= 1
    assert test["gauc_groups"] + test["gauc_dropped_groups"] <= 60
    best = max(history(tmp_path / "run"), key=lambda row: row["gauc"])
    assert summary["step"] == best["step"]


def test_few_steps_are_pointed_out(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tiny())
    for overrides in (["train.epochs=10"], ["train.limit_batches=1"]):
        Trainer(tiny(*overrides), store)
    assert "steps in all" not in caplog.text
    searched = "table=magnitude", "train.epochs=4"
    Trainer(tiny(*searched), store)
    assert "steps in all" not in caplog.text
    Trainer(tiny("train.epochs=9"), store)
    assert "90 steps in all (9 epochs of 10)" in caplog.text


def test_limit_batches(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("train.limit_batches=2", "train.eval_batch_size=50"), tmp_path)
    assert summary["epochs_trained"] == 3
    assert history(tmp_path)[-1]["step"] == 6
    assert summary["test"]["rows"] == 100


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_bfloat16_trains(tiny: Tiny, tmp_path: Path, precision: str) -> None:
    assert train(tiny(f"train.precision={precision}"), tmp_path)["test"]["auc"] > 0.8


def test_dry_run_reports_and_keeps_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run(tiny("table=hash", "ratio=0.5"))
    assert list(tmp_path.iterdir()) == []
    for word in ("user:linear", "tables ", "network    337 parameters", "memory", "10 an epoch"):
        assert word in text


def test_budget_is_kept_by_the_measured_file(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("table=hash", "ratio=0.5", "train.epochs=1"), tmp_path)
    assert summary["bytes"]["file"] <= 0.5 * summary["bytes"]["uncompressed"]


def test_packed_model_predicts_what_was_measured(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("train.epochs=1")
    summary = train(config, tmp_path)
    model = PackedModel.load(tmp_path / "model.safetensors")
    again = measure(open_store(config), "test", model, 7)
    assert again == {key: pytest.approx(value) for key, value in summary["test"].items()}


def test_packed_model_refuses_another_file(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("train.epochs=1"), tmp_path)
    with pytest.raises(ValueError, match="not an exported model"):
        PackedModel.load(tmp_path / "checkpoints" / "step-00000010" / "0.bin")


def test_calibration_is_near_one_after_training(tiny: Tiny, tmp_path: Path) -> None:
    assert math.isclose(train(tiny(), tmp_path)["test"]["calibration"], 1.0, abs_tol=0.2)


def test_evaluation_and_resume_refuse_other_data(tiny: Tiny, tmp_path: Path, raw: Path) -> None:
    copy = tmp_path / "raw"
    copy.mkdir()
    for file in raw.glob("*.csv"):
        (copy / file.name).write_bytes(file.read_bytes())
    config = tiny(f"data.root={copy}", f"data.store={tmp_path}", "train.epochs=1")
    train(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run", "test")["rows"] == 300
    lines = (copy / "train.csv").read_text().splitlines(keepends=True)
    (copy / "train.csv").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"was trained on frappe_x1-.* now give frappe_x1-"):
        evaluate_run(tmp_path / "run", "test")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ValueError, match="was trained on frappe_x1-"):
        train(config, tmp_path / "run")


def test_a_split_without_rows_is_refused_before_training(tiny: Tiny, tmp_path: Path) -> None:
    store = open_store(tiny())
    empty = store.schema.model_copy(update={"rows": {**store.schema.rows, "valid": 0}})
    with pytest.raises(ValueError, match=r"data\.split: too few rows for valid"):
        Trainer(tiny(), replace(store, schema=empty))


def test_a_method_without_a_size_is_pointed_out(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    Trainer(tiny(), open_store(tiny()))
    assert "without budget or ratio" not in caplog.text
    Trainer(tiny("table=hash"), open_store(tiny()))
    assert "without budget or ratio" in caplog.text
