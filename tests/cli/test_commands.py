"""The command line: what it prints, how it exits, and what it loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.frappe_x1 import FIELDS
from trainer.cli import main
from trainer.metrics import auc
from trainer.step import TrainStep

MAIN = "from trainer.cli import main; main()"
LOADED = (
    "import atexit, sys; atexit.register(lambda: print("
    "'LOADED', *sorted({'torch', 'torchrec', 'polars'} & set(sys.modules)), file=sys.stderr));"
)


@dataclass
class Done:
    code: int
    out: str
    err: str


def fresh(*arguments: str, code: str = LOADED + MAIN) -> Done:
    """Run in a new interpreter, which tells at its end what it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "100"},
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def embtables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run in this process, which has paid for its imports already."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("EMBTABLES_DEBUG", raising=False)

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(str(caught.value.code)), out, err)

    return run


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for split, rows in {"train": 400, "valid": 100, "test": 100}.items():
        ids = rng.integers(0, 5, (rows, len(FIELDS)))
        table = np.column_stack([ids[:, 0] > rng.integers(0, 5, rows), ids]).astype(int)
        header = ",".join(["label", *FIELDS])
        np.savetxt(folder / f"{split}.csv", table, "%d", ",", header=header, comments="")
    (folder / "tiny.yaml").write_text(
        f"data: {{kind: frappe_x1, root: {folder}, store: {folder / 'prepared'}}}\n"
        "model: {kind: fm, dim: 2}\n"
        "train: {batch_size: 50, epochs: 2}\n"
    )
    return folder / "tiny.yaml"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls"],
        ["ls", "models"],
        ["ls", "recipes"],
        ["train", "--help"],
        ["predict", "--help"],
        ["--version"],
    ],
)
def test_light_verbs_load_nothing_heavy(arguments: list[str]) -> None:
    done = fresh(*arguments)
    assert (done.code, done.err.strip()) == (0, "LOADED")


def test_ls_reads_names_and_lines_from_the_files(embtables: Run) -> None:
    text = embtables("ls").out
    for name in ("multiplex", "mde", "int8", "autoint_plus", "criteo", "amazon/din"):
        assert any(line.split()[:1] == [name] and len(line) > 30 for line in text.splitlines())


VERBS = ("ls", "show", "prepare", "train", "advise", "sweep", "eval", "export", "predict", "report")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_its_help_with_examples(embtables: Run, verb: str) -> None:
    text = embtables(verb, "--help").out
    assert f"embtables {verb}" in text.partition("Examples:")[2]


def test_typos_get_a_suggestion(embtables: Run) -> None:
    for arguments, hint in {
        ("trian",): "'train'",
        ("train", "x", "--dry-rnu"): "--dry-run",
        ("train", "frappe_x1/deepmf"): '"frappe_x1/deepfm"',
        ("ls", "modles"): '"models"',
    }.items():
        done = embtables(*arguments)
        assert done.code == 2
        assert hint in done.err


def test_show_resolves_names_origins_and_loads_no_torchrec() -> None:
    done = fresh("show", "frappe_x1/deepfm", "train.epochs=3")
    origins = {}
    for line in done.out.splitlines():
        text, _, origin = line.partition("  # ")
        origins[text.strip()] = origin
    assert origins["epochs: 3"] == "command line"
    assert origins["batch_size: 4096"] == "preset"
    assert origins["precision: fp32"] == "default"
    assert "torchrec" not in done.err


def test_plain_show_is_a_recipe(embtables: Run, tmp_path: Path) -> None:
    text = embtables("show", "frappe_x1/deepfm", "table=qr+int8", "--plain").out
    (tmp_path / "mine.yaml").write_text(text)
    assert embtables("show", str(tmp_path / "mine.yaml"), "--plain").out == text


def test_bad_configuration_is_told_before_data_is_read(embtables: Run) -> None:
    done = embtables("train", "frappe_x1/deepfm", "train.epcohs=3", "model.dim=x", "data.root=/no")
    assert (done.code, done.out) == (2, "")
    assert "frappe_x1/deepfm: 2 problems" in done.err
    assert 'train.epcohs: unknown key. Did you mean "epochs"?' in done.err
    assert "/no" not in done.err


def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--debug", "ls", "x"], ["ls", "x", "--debug"]):
        with pytest.raises(ValueError, match="unknown topic"):
            main(arguments)
    monkeypatch.setenv("EMBTABLES_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown topic"):
        main(["ls", "x"])


def test_prepare_train_eval_export_predict_and_refusal(
    embtables: Run, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert Path(embtables("prepare", str(recipe)).out.strip()).is_dir()

    done = embtables("train", str(recipe), "--run-dir", str(run))
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    test = json.loads((run / "summary.json").read_text())["test"]
    assert f"{test['auc']:.5f}" in done.out

    assert json.loads(embtables("eval", str(run)).out) == pytest.approx(test)

    out = tmp_path / "packed"
    done = embtables("export", str(run), "-o", str(out))
    assert done.code == 0
    size = json.loads((run / "summary.json").read_text())["bytes"]["file"]
    assert f"{out}: {size:,} bytes of tables, 4 of network, " in done.out

    code = (
        "import sys; sys.modules |= dict.fromkeys(['trainer.loop', 'trainer.config', 'data.prepare']);"
        + MAIN
    )
    rows = str(recipe.parent / "test.csv")
    done = fresh("predict", str(out), rows, code=code)
    assert (done.code, done.err) == (0, "100 rows\n")
    header, *scores = done.out.splitlines()
    assert (header, len(scores)) == ("score", 100)
    labels = np.loadtxt(rows, delimiter=",", skiprows=1)[:, 0]
    assert auc(labels, np.array(scores, float)) == pytest.approx(test["auc"])
    assert embtables("predict", str(out), rows).out == done.out

    done = embtables("train", str(recipe), "train.epochs=3", "--run-dir", str(run))
    assert done.code == 2
    assert "train.epochs: 2 -> 3" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_is_resumed_by_the_same_command(
    embtables: Run,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    run = tmp_path / "run"
    plain = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> object:
        if self.state.step == 2:
            os.kill(os.getpid(), number)
        return plain(self, *batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", train_step)
        done = embtables("train", str(recipe), "--run-dir", str(run))
    assert done.code == 130
    assert "the same command goes on" in done.err
    assert not (run / "summary.json").exists()

    done = embtables("train", str(recipe), "--run-dir", str(run))
    assert done.code == 0
    assert "resuming at epoch 1, step 3" in done.err
    assert (run / "summary.json").exists()


def test_undefined_metrics_are_null_in_json(
    embtables: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trainer.runs.evaluate_run", lambda run, split: {"auc": float("nan")})
    assert "NaN" not in embtables("eval", str(tmp_path)).out
    assert json.loads(embtables("eval", str(tmp_path)).out) == {"auc": None}


def test_dry_run_leaves_no_run_directory(embtables: Run, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = embtables("train", str(recipe), "--dry-run", "--run-dir", str(run))
    assert done.code == 0
    assert "steps      8 an epoch" in done.out
    assert not run.exists()


def test_unfinished_or_missing_run_is_an_error(embtables: Run, tmp_path: Path) -> None:
    for verb in ("eval", "export"):
        done = embtables(verb, str(tmp_path))
        assert done.code == 2
        assert "no run here" in done.err
