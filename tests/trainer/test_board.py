"""Event files for TensorBoard, read back byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config import RunConfig
from trainer.loop import train
from trainer.rundir import RunDir

Tiny = Callable[..., RunConfig]


def events(folder: Path) -> list[Any]:
    """Return all events of a folder: each a length, its checksum, the record and its checksum."""
    from tensorboardX.proto import event_pb2

    event: Any = event_pb2
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_events_are_the_lines_of_metrics(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("log.to=[jsonl,tensorboard]")
    train(config, tmp_path / "run")
    rows = [
        {"split": "valid", "step": 9, "auc": 0.5, "best": True},
        {"split": "valid", "step": 18, "auc": 0.75, "stage": "train"},
    ]
    with RunDir(tmp_path / "other", {}, log_to=("jsonl", "tensorboard")) as run:
        run.begin()
        run.record(rows[0])
        (run.checkpoints / "step-00000009").mkdir(parents=True)
    with RunDir(tmp_path / "other", {}, log_to=("jsonl", "tensorboard")) as run:
        run.begin()
        run.rewind(9)
        run.record(rows[1])
    found = events(tmp_path / "other" / "tensorboard")
    points = {(v.tag, e.step): v.simple_value for e in found for v in e.summary.value}
    assert points[("valid/auc", 9)] == 0.5
    assert points[("valid/auc", 18)] == 0.75
    assert ("valid/stage", 18) not in points
    assert 10 in [e.step for e in found if e.HasField("session_log")]
    trained = {v.tag for e in events(tmp_path / "run" / "tensorboard") for v in e.summary.value}
    assert {"valid/auc", "valid/train_loss", "valid/lr_rows"} <= trained


def test_without_the_package_it_says_what_to_install(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.board.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install tensorboardX"):
        train(tiny("log.to=[jsonl,tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_jsonl_is_always_written(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="jsonl is always written"):
        tiny("log.to=[tensorboard]")
