"""Stages: resumed anywhere they equal an unbroken run; who learns from which rows; what is counted."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batch import Batch
from data.frappe_x1 import FIELDS
from data.loader import Loader
from data.store import Store
from embtables.search import Stage
from embtables.width.autodim import AutoDim
from embtables.width.dnis import DNIS
from trainer import loop
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.loop import Trainer, train
from trainer.progress import Progress
from trainer.state import State
from trainer.step import TrainStep

Tiny = Callable[..., RunConfig]

TABLES = {
    "dnis": "dnis(search_epochs=1, blocks=2)",
    "optembed": "optembed(population=4, generations=1)",
    "pep": "pep(search_epochs=3)",
    "autodim": "autodim(search_epochs=1)",
    "magnitude": "magnitude(prune_epochs=1)",
    "lowrank": "lowrank(after=true)",
}
STAGES = {
    "dnis": ["warm-up", "search", "retrain"],
    "optembed": ["supernet", "evolve", "retrain"],
    "pep": ["search", "retrain"],
    "autodim": ["search", "retrain"],
    "magnitude": ["warm-up", "prune", "retrain"],
    "lowrank": ["train"],
    "uniform": ["train"],
}
RECIPE = """
data: {kind: frappe_x1}
model: {kind: deepfm, dim: 4, hidden: [8], dropout: 0.2}
rows: {kind: adam, lr: 0.01}
dense: {kind: adam, lr: 0.01}
train: {batch_size: 64, epochs: 3, seed: 5}
"""
WALL = {"seconds", "train_seconds", "search_seconds", "rows_per_second", "peak_memory_bytes"}
OPTIONS = (
    "ratio=0.75",
    "train.epochs=2",
    "train.patience=1",
    "train.batch_size=100",
    "train.checkpoint_every=4",
    "train.reduce_lr={factor: 0.3, min_lr: 1e-5}",
)
"""6 steps an epoch; a checkpoint in the middle of it."""


def _options(kind: str) -> tuple[str, ...]:
    return OPTIONS if kind in TABLES else ("ratio=1", *OPTIONS[1:])


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what a clock or the machine decides."""
    plain = {key: value for key, value in summary.items() if key not in WALL}
    plain["stages"] = [{k: v for k, v in one.items() if k not in WALL} for one in summary["stages"]]
    return plain


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def packed(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Configurations of a run on fields of 40 ids: tables of 6 have nothing to prune."""
    folder = tmp_path_factory.mktemp("stages")
    rng = np.random.default_rng(0)
    for split, rows in {"train": 600, "valid": 300, "test": 300}.items():
        ids = (40 * rng.random((rows, len(FIELDS))) ** 1.5).astype(int)
        logit = (ids[:, 0] - ids[:, 1]) / 6 + 0.5 * rng.normal(size=rows)
        table = np.column_stack([logit > 0, ids]).astype(int)
        header = ",".join(["label", *FIELDS])
        file = folder / f"{split}.csv"
        np.savetxt(file, table, fmt="%d", delimiter=",", header=header, comments="")
    (folder / "tiny.yaml").write_text(RECIPE)

    def build(*overrides: str) -> RunConfig:
        place = (f"data.root={folder}", f"data.store={folder / 'prepared'}")
        return load_config(str(folder / "tiny.yaml"), (*place, *overrides)).config

    return build


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple]:
    """Unbroken run of a method: its configuration, directory and summary; made once."""
    done: dict[str, tuple[RunConfig, Path, dict[str, Any]]] = {}

    def made(kind: str) -> tuple[RunConfig, Path, dict[str, Any]]:
        if kind not in done:
            run = tmp_path_factory.mktemp(kind)
            config = tiny(f"table={TABLES.get(kind, kind)}", *_options(kind))
            done[kind] = config, run, train(config, run)
        return done[kind]

    return made


class Cut(Exception):
    """The power is cut."""


def cut(
    patch: pytest.MonkeyPatch,
    what: str,
    when: Callable[[State], bool],
    after: bool,
) -> None:
    """Cut the power before or after the first step, or call of the trainer, for which `when`."""
    owner, what = (TrainStep, "__call__") if what == "train_step" else (Trainer, what)
    plain = getattr(owner, what)

    def broken(self: Trainer | TrainStep, *args: Any, **options: Any) -> Any:
        due = when(self.state)
        if due and not after:
            raise Cut
        found = plain(self, *args, **options)
        if due:
            raise Cut
        return found

    patch.setattr(owner, what, broken)


def _in_stage(number: int) -> Callable[[State], bool]:
    return lambda state: state.stage == number


PLACES: dict[str, tuple[str, Callable[[int], Callable[[State], bool]], bool]] = {
    "in the first step": ("train_step", _in_stage, False),
    "before a checkpoint": (
        "train_step",
        lambda n: lambda state: state.stage == n and state.stage_step == 3,
        False,
    ),
    "behind a checkpoint": (
        "train_step",
        lambda n: lambda state: state.stage == n and state.stage_step == 5,
        False,
    ),
    "while evaluating": ("measure", _in_stage, False),
    "after evaluating": ("evaluate", _in_stage, True),
    "before the stage ends": ("_end_stage", _in_stage, False),
    "after the stage has ended": ("_end_stage", _in_stage, True),
}
BREAKS = [
    pytest.param(kind, number, place, id=f"{kind}-{stage}-{place}")
    for kind in ("dnis", "optembed", "pep", "autodim", "magnitude")
    for number, stage in enumerate(STAGES[kind])
    for place in (PLACES if stage != "evolve" else ["before the stage ends"])
]


@pytest.mark.parametrize(("kind", "number", "place"), BREAKS)
def test_resumed_anywhere(
    whole: Callable[[str], tuple],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
    place: str,
) -> None:
    config, unbroken, summary = whole(kind)
    what, when, after = PLACES[place]
    with monkeypatch.context() as patch:
        # The state is that of the next stage once a stage has ended: `when` is asked before.
        cut(patch, what, when(number), after)
        with pytest.raises(Cut):
            train(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    torch.manual_seed(1234)
    assert numbers(train(config, tmp_path)) == numbers(summary)
    assert history(tmp_path) == history(unbroken)
    assert packed(tmp_path) == packed(unbroken)


@pytest.mark.parametrize("kind", ["dnis", "magnitude"])
def test_resumed_before_a_stage_whose_first_checkpoint_is_damaged(
    whole: Callable[[str], tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It has the step of the last one of the stage before, which hands on its best weights again."""
    config, unbroken, summary = whole(kind)
    with monkeypatch.context() as patch:
        cut(patch, "_end_stage", _in_stage(0), True)
        with pytest.raises(Cut):
            train(config, tmp_path)
    last, first = sorted((tmp_path / "checkpoints").iterdir())[-2:]
    assert first.name == f"{last.name}.1"
    (first / "0.bin").write_bytes(b"")
    assert numbers(train(config, tmp_path)) == numbers(summary)
    assert history(tmp_path) == history(unbroken)
    assert packed(tmp_path) == packed(unbroken)


def test_evolution_shows_how_many_candidates_are_left(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.progress.PLAIN_EVERY", 0.0)
    config = tiny("table=optembed(population=4, generations=3, eval_rows=100)", *OPTIONS)
    with caplog.at_level("INFO", "embtables"):
        train(config, tmp_path)
    found = re.findall(r"evolve \(2/3\)  candidate (\d+)/(\d+)  ", caplog.text)
    assert found == [(str(number), "10") for number in range(1, 11)]


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
def test_resumed_in_the_middle_of_evolution(
    whole: Callable[[str], tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What was measured before a stop is not measured again, and its seconds count."""
    config, unbroken, summary = whole("optembed")
    measured: list[float] = []  # seconds of each
    plain, most = Trainer._fitness, 3

    def fitness(self: Trainer, rows: int | None, progress: Progress) -> float:
        if len(measured) == most:
            raise Cut if how == "killed" else loop.Interrupted
        began = time.perf_counter()
        value = plain(self, rows, progress)
        time.sleep(0.3 if len(measured) < 3 else 0)  # more than all else that a resumed end does
        measured.append(time.perf_counter() - began)
        return value

    monkeypatch.setattr(Trainer, "_fitness", fitness)
    with pytest.raises((Cut, loop.Interrupted)):
        train(config, tmp_path)
    most = 1000
    resumed = train(config, tmp_path)
    assert numbers(resumed) == numbers(summary)
    assert packed(tmp_path) == packed(unbroken)
    candidates = 4 + 2  # of the first generation, and of the second
    assert len(measured) == candidates + (3 if how == "killed" else 0)
    assert resumed["stages"][1]["search_seconds"] >= sum(measured[-candidates:])


def test_resumed_in_the_middle_of_packing(
    whole: Callable[[str], tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lowrank(after=true) does at the end of the last stage is done again."""
    config, unbroken, summary = whole("lowrank")

    def stopped(self: Trainer, split: str, predict: Any) -> dict[str, float]:
        if predict is not self.predict:
            raise loop.Interrupted
        return plain(self, split, predict)

    plain = Trainer.measure
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "measure", stopped)
        with pytest.raises(loop.Interrupted):
            train(config, tmp_path)
    assert numbers(train(config, tmp_path)) == numbers(summary)
    assert packed(tmp_path) == packed(unbroken)


@pytest.mark.parametrize("kind", ["autodim", "pep", "lowrank"])
def test_training_takes_the_bytes_of_its_largest_stage(
    whole: Callable[[str], tuple], kind: str
) -> None:
    full, searched = whole("uniform")[2]["bytes"], whole(kind)[2]["bytes"]
    assert searched["training"] >= full["training"]


def test_a_search_with_nothing_to_choose_trains(tiny: Tiny, tmp_path: Path) -> None:
    """Tables of one number have one candidate: no structure, and no gradient of it."""
    summary = train(
        tiny("table=autodim(search_epochs=1)", "model={kind: lr}", *OPTIONS[1:]), tmp_path
    )
    assert [stage["name"] for stage in summary["stages"]] == STAGES["autodim"]


@pytest.mark.parametrize("kind", STAGES)
def test_summary_counts_all_stages(whole: Callable[[str], tuple], kind: str) -> None:
    _, run, summary = whole(kind)
    stages = summary["stages"]
    assert [one["name"] for one in stages] == STAGES[kind]
    assert summary["epochs_trained"] == sum(one["epochs"] for one in stages)
    assert history(run)[-1]["step"] == sum(one["steps"] for one in stages)
    total = sum(one["train_seconds"] for one in stages)
    searching = sum(one["search_seconds"] for one in stages)
    assert searching == pytest.approx(summary["seconds"]["search"])
    assert summary["rows_per_second"] == pytest.approx(sum(o["rows"] for o in stages) / total)
    assert total <= summary["seconds"]["train"]
    named = [row["stage"] for row in history(run)]
    assert list(dict.fromkeys(named)) == [name for name in STAGES[kind] if name != "evolve"]
    for one in stages:
        assert one["steps"] == pytest.approx(6 * one["epochs"], abs=1e-4)
        searches = kind in ("dnis", "autodim") and one["name"] == "search"
        # A batch of 100 validation rows for each one of training.
        assert one["rows"] == one["steps"] * 100 * (2 if searches else 1)
        if one["name"] == "evolve":
            assert one["steps"] == one["rows"] == 0
            assert one["search_seconds"] > 0
        else:
            assert one["train_seconds"] > 0
    assert summary["bytes"]["file"] == summary["bytes"]["inference"]
    assert summary["bytes"]["file"] <= 0.75 * summary["bytes"]["uncompressed"] or kind == "uniform"


@pytest.mark.parametrize("kind", [*TABLES, "uniform"])
def test_test_rows_are_read_by_finish_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    read: list[str] = []
    plain, packing = Store.split, loop.save

    def split(self: Store, name: str) -> Any:
        read.append(name)
        return plain(self, name)

    def save(*args: Any) -> None:
        assert read
        assert "test" not in read
        packing(*args)

    monkeypatch.setattr(Store, "split", split)
    monkeypatch.setattr(loop, "save", save)
    train(tiny(f"table={TABLES.get(kind, kind)}", *_options(kind), "train.epochs=1"), tmp_path)
    assert "test" in read


# -- who learns from which rows ----------------------------------------------------------------------


def _at_search(config: RunConfig) -> Trainer:
    """A trainer in the stage that learns the structure from validation rows."""
    trainer = Trainer(config, open_store(config))
    trainer.state.stage = [one.structure for one in trainer.stages].index("valid")
    trainer._begin_stage()
    trainer.model.train()
    trainer.tables.train()
    return trainer


def _structure(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.train_step.structure]


def _rows(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.tables.training_state()
    learned = ("alpha", "size", "choice", "heat")
    return {k: v.clone() for k, v in state.items() if not k.endswith(learned)}


def _batches(trainer: Trainer, other: bool = False) -> tuple[Batch, Batch]:
    """Return training rows, and held-out ones: the first, or other rows with other labels."""
    train = next(iter(Loader(trainer.store, "train", 64)))
    loader = Loader(trainer.store, "valid", 64)
    loader.set_position(0, int(other))
    held_out = next(iter(loader))
    if other:
        held_out.label.copy_(1 - held_out.label)
    return train, held_out


@pytest.mark.parametrize("kind", ["dnis", "autodim"])
def test_weights_never_see_the_validation_loss(tiny: Tiny, kind: str) -> None:
    config = tiny(f"table={TABLES[kind]}", "ratio=0.75", "model.dropout=0")
    after, learned = [], []
    for other in (False, True):
        trainer = _at_search(config)
        torch.manual_seed(0)
        for _ in range(3):
            # Rows that alpha scales see what alpha was: one and the same for the first step.
            for parameter in trainer.train_step.structure:
                parameter.data.fill_(1.0)
            trainer.train_step(*_batches(trainer, other))
            trainer.state.stage_step += 1
        after.append(_rows(trainer) | trainer.model.state_dict())
        learned.append(_structure(trainer))
    assert all(torch.equal(after[1][key], tensor) for key, tensor in after[0].items())
    assert any(not torch.equal(a, b) for a, b in zip(*learned, strict=True))


@pytest.mark.parametrize("kind", ["dnis", "autodim"])
def test_the_structure_never_sees_the_training_loss(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # Without a budget to keep and without its penalty, alpha has nothing else to follow.
    given = (
        (TABLES[kind].replace(")", ", l1=0)"),) if kind == "dnis" else (TABLES[kind], "ratio=0.75")
    )
    trainer = _at_search(tiny(f"table={given[0]}", *given[1:]))
    before, rows = _structure(trainer), _rows(trainer)
    plain = TrainStep._loss
    seen: list[bool] = []
    batch, held_out = _batches(trainer)

    def loss(self: TrainStep, given: Batch, rows: int | None = None) -> Tensor:
        seen.append(given is held_out)
        # Constant in all that is learned, but a function of it.
        return plain(self, given, rows) * (0.0 if given is held_out else 1.0)

    monkeypatch.setattr(TrainStep, "_loss", loss)
    trainer.train_step(batch, held_out)
    assert seen == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(_structure(trainer), before, strict=True))
    assert any(not torch.equal(_rows(trainer)[key], tensor) for key, tensor in rows.items())
    assert all(p.grad is None for p in trainer.train_step.structure)


@pytest.mark.parametrize("kind", ["dnis", "autodim"])
def test_batches_of_the_structure_are_validation_rows(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In every epoch of the search each validation row as often as any other, to one."""
    given: list[int] = []
    plain = TrainStep.__call__

    def train_step(self: TrainStep, batch: Batch, held_out: Batch | None, rows: int) -> Tensor:
        assert (held_out is not None) == (self.stage.structure == "valid")
        if held_out is not None:
            given.append(len(held_out.label))
            labels.append(held_out.label)
        return plain(self, batch, held_out, rows)

    labels: list[Tensor] = []
    monkeypatch.setattr(TrainStep, "__call__", train_step)
    config = tiny(f"table={TABLES[kind]}", *OPTIONS)
    train(config, tmp_path)
    assert given == [100] * 6
    valid = torch.from_numpy(open_store(config).split("valid").label.astype("float32"))
    assert torch.cat(labels).sum() == 2 * valid.sum()


def test_the_network_is_at_rest_while_dnis_searches(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: dict[str, list[bool]] = {}
    plain = TrainStep.__call__

    def train_step(self: TrainStep, batch: Batch, held_out: Batch | None, rows: int) -> Tensor:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        loss = plain(self, batch, held_out, rows)
        after = self.model.state_dict()
        same = all(torch.equal(after[name], value) for name, value in before.items())
        moved.setdefault(self.stage.name, []).append(not same)
        return loss

    monkeypatch.setattr(TrainStep, "__call__", train_step)
    train(tiny(f"table={TABLES['dnis']}", *OPTIONS), tmp_path)
    assert {name: set(found) for name, found in moved.items()} == {
        "warm-up": {True},
        "search": {False},
        "retrain": {True},
    }


@pytest.mark.parametrize("kind", ["pep", "optembed", "autodim", "dnis", "magnitude"])
@pytest.mark.parametrize("retrain", ["initial", "found"])
def test_the_network_restarts_where_asked(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, retrain: str
) -> None:
    table = TABLES[kind]
    asked = kind in ("pep", "optembed", "autodim")
    if asked:
        table = table.replace(")", f", retrain={retrain})")
    config = tiny(f"table={table}", *OPTIONS, "train.epochs=1")
    first: dict[str, dict[str, Tensor]] = {}
    plain = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> Tensor:
        if self.stage.name not in first:
            first[self.stage.name] = {n: v.clone() for n, v in self.model.state_dict().items()}
        return plain(self, *batches)

    monkeypatch.setattr(TrainStep, "__call__", train_step)
    train(config, tmp_path)
    begun, again = first[STAGES[kind][0]], first["retrain"]
    same = all(torch.equal(again[name], value) for name, value in begun.items())
    assert same == (asked and retrain == "initial")


def test_each_stage_begins_with_fresh_rates_and_optimizers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, float, float, bool]] = []
    plain = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> Tensor:
        if self.state.stage_step == 0:
            state = self.tables.store.training_state()
            moments = [value for key, value in state.items() if key.startswith("optimizer.")]
            assert moments
            rested = all(not value.any() for value in moments)
            rested &= not self.optimizer.state
            rate = self.optimizer.param_groups[0]["lr"]
            begun.append((self.stage.name, self.tables.lr, rate, rested))
        return plain(self, *batches)

    values = iter([0.9, 0.8, 0.7, 0.6, *[0.5] * 90])
    measure = Trainer.measure
    monkeypatch.setattr(TrainStep, "__call__", train_step)
    monkeypatch.setattr(
        Trainer,
        "measure",
        lambda self, split, predict, keep=None: (
            measure(self, split, predict, keep) | {"auc": next(values)}
        ),
    )
    config = tiny(f"table={TABLES['magnitude']}", *OPTIONS, "train.patience=3", "train.epochs=4")
    train(config, tmp_path)
    lowered = [row["lr_rows"] for row in history(tmp_path) if row["stage"] == "warm-up"]
    assert lowered[-1] < lowered[0]
    assert begun == [(name, 0.01, 0.01, True) for name in STAGES["magnitude"]]


def test_a_stage_hands_on_its_best_or_its_last_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm-up hands on those of its best epoch, the pruning those of its last step."""
    values = iter([0.9, 0.5, 0.9, 0.5, 0.6, 0.5, *[0.4] * 9])
    measure = Trainer.measure
    monkeypatch.setattr(
        Trainer,
        "measure",
        lambda self, split, predict, keep=None: (
            measure(self, split, predict, keep) | {"auc": next(values)}
        ),
    )
    rows: dict[tuple[str, int], Tensor] = {}
    handed: dict[str, Tensor] = {}

    def _values(trainer: Trainer) -> Tensor:
        state = trainer.tables.training_state()
        return torch.cat([v.flatten() for k, v in state.items() if "rows." in k]).clone()

    evaluate = Trainer.evaluate

    def evaluated(self: Trainer) -> None:
        evaluate(self)
        rows[self.stage.name, self.state.epoch] = _values(self)

    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    config = tiny("table=magnitude(prune_epochs=2)", *OPTIONS, "train.patience=5")
    store = open_store(config)
    del store
    from embtables.width.magnitude import MagnitudeSearch

    end = MagnitudeSearch.end
    trainers: list[Trainer] = []
    begin = Trainer._end_stage

    def ended(self: Trainer) -> None:
        trainers.append(self)
        begin(self)

    def ends(self: MagnitudeSearch, stage: Stage, fitness: Any) -> None:
        handed[stage.name] = _values(trainers[-1])
        end(self, stage, fitness)

    monkeypatch.setattr(Trainer, "_end_stage", ended)
    monkeypatch.setattr(MagnitudeSearch, "end", ends)
    train(config, tmp_path)
    assert torch.equal(handed["warm-up"], rows["warm-up", 1])
    assert not torch.equal(handed["warm-up"], rows["warm-up", 2])
    assert torch.equal(handed["prune"], rows["prune", 2])
    assert torch.equal(handed["retrain"], rows["retrain", 1])


def test_structure_is_there_only_while_it_is_learned(tiny: Tiny) -> None:
    config = tiny(f"table={TABLES['dnis']}", "ratio=0.75")
    trainer = Trainer(config, open_store(config))
    seen = []
    for number in range(3):
        trainer.state.stage = number
        trainer._begin_stage()
        learned = {id(parameter) for parameter in trainer.train_step.structure}
        assert not learned & {id(weight) for weight in trainer.train_step.weights}
        seen.append(len(learned))
        assert all(
            isinstance(width, DNIS | AutoDim) and not parameter.requires_grad
            for width in (trainer.search.widths if trainer.search else [])
            for parameter in width.parameters()
        )
    assert seen == [0, 2, 0]


def test_candidates_are_not_chosen_by_an_undefined_metric(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("table=optembed", *OPTIONS)
    trainer = Trainer(config, open_store(config))
    monkeypatch.setattr(loop, "measure_trained", lambda *_: {"auc": float("nan")})
    undefined = pytest.raises(ValueError, match=r"train\.monitor: auc .* is undefined")
    with Progress("evolve", 1) as progress, undefined:
        trainer._fitness(100, progress)
