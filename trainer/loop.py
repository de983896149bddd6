"""The training loop: any model on any tables, to a finished and measured run directory.

Shape letters: B rows of a batch, N rows of a split.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from data.loader import Loader
from data.store import Store
from embtables import EmbeddingTables
from embtables.budget import follows_share
from embtables.ranks import on_first, rank, ranks
from embtables.search import Rebuild, Search, Stage, search_of, stages_of
from models.base import CTRModel, models
from trainer import checkpoint
from trainer.checkpoint import Checkpoints
from trainer.config import RunConfig
from trainer.datasets import (
    StoreInteractions,
    check_same_data,
    closing,
    model_inputs,
    open_store,
    vocabularies,
)
from trainer.evaluation import measure_trained
from trainer.machine import pick_device, use_bfloat16
from trainer.memory import keep_freed_memory, peak_memory
from trainer.metrics import sign_of
from trainer.predict import PackedModel, Predictor, save
from trainer.progress import Progress
from trainer.ranks import (
    any_rank,
    is_first,
    job_size,
    joined,
    own_seed,
    total,
)
from trainer.retrieval import retrieval_of
from trainer.rundir import RunDir, config_hash
from trainer.signals import Interrupted, StopSignal
from trainer.state import State
from trainer.step import TrainStep

log = logging.getLogger("embtables")

MIN_GAIN = 1e-6
"""An evaluation is better than the best one if it gains more than this (FuxiCTR's rule)."""

SHOWN = ("auc", "logloss", "gauc", "recall", "ndcg")
"""Metrics in the line that an evaluation logs."""

FEW_STEPS = 100
"""Training of fewer steps is pointed out: rates and schedules are made for hundreds."""

CHECK_EVERY = 20
"""Steps between two looks at the loss: a look waits for the device."""


def train(config: RunConfig, run_dir: str | Path, *, fresh: bool = False) -> dict[str, Any]:
    """Train, choose the epoch on validation, measure the packed tables, and write it all down.

    The same call on the same directory resumes, and gives the numbers of an unbroken run. Processes
    that torchrun started train together, and share out the tables and the rows of every batch.

    Args:
        config: the run.
        run_dir: where the run is kept.
        fresh: throw away what an earlier run left there, once it is known that this one can begin.

    Returns:
        The summary, which is also in ``summary.json``; nothing on ranks other than 0.

    Raises:
        ValueError: bad data, a configuration that does not fit the data, a directory of another
            run, or a loss that is no longer finite.
        Interrupted: Ctrl-C or SIGTERM; what was done is in the directory.
    """
    with (
        RunDir(
            Path(run_dir), config.plain(), fresh=fresh, writes=is_first(), log_to=config.log.to
        ) as run,
        StopSignal() as stop,
    ):
        summary = run.summary() if is_first() else None
        if summary is not None and job_size() == 1:
            log.info("%s is finished already; --fresh trains it again", run.path)
            return summary
        began = time.perf_counter()
        store = open_store(config)
        trainer = None
        with joined(pick_device(config.train.device), config.train.rank_timeout):
            if on_first(lambda: summary) is None:
                trainer = Trainer(config, store, run, stop)
                if any_rank(stop(), trainer.device):
                    raise Interrupted
                on_first(run.begin)
                trainer.seconds["prepare"] = trainer.began - began
                trainer.fit()
                if job_size() > 1:
                    trainer = None
        if summary is not None or not is_first():
            return summary or {}
        if trainer is None:
            # Packing needs whole tables: one process takes the checkpoint that all of them wrote.
            trainer = Trainer(config, store, run, stop, packing=True)
            trainer.fit()
        return trainer.finish()


class Trainer:
    """Model, tables, optimizers and data of one run.

    Args:
        config: the run.
        store: the prepared data set.
        run: its directory, or None to keep nothing (a dry run).
        stop: says when to stop early.
        packing: only to pack and measure what ranks have trained: on the CPU, without the optimizer of
            the rows.

    Raises:
        ValueError: the configuration does not fit the data set.
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        run: RunDir | None = None,
        stop: Callable[[], bool] = lambda: False,
        packing: bool = False,
    ) -> None:
        self.packing = packing
        self.began = self._clock = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.config, self.store, self.run, self.stop = config, store, run, stop
        self.options = config.train
        self.checkpoints = self._checkpoints()
        self._check_rows()
        self._check_monitor()
        if config.budget is None and config.ratio is None and follows_share(config.table):
            log.warning("table %s without budget or ratio: nothing shrinks", config.table)
        self.device = pick_device("cpu" if packing else self.options.device)
        self.bfloat16 = use_bfloat16(self.options.precision, self.device)
        self.inputs = model_inputs(store)
        self.state = State(lr_dense=config.dense.lr, lr_rows=config.rows.lr)
        self._build_tables()
        self.model = self._first_model()
        self.stages = stages_of(self.search)
        self.loader = self._shuffled("train")
        self.steps_per_epoch = self._limited(len(self.loader))
        if not packing:
            self._check_steps()
        self._begin_stage()

    # -- what is trained ---------------------------------------------------------------------------

    def _build_tables(self) -> None:
        """Make the tables, with the widths that a search has found so far."""
        config = self.config
        features = models.get(config.model.kind).embeddings(config.model, self.inputs)
        self.tables = EmbeddingTables(
            features,
            vocabularies(self.store, features),
            table=config.table,
            fields=config.fields,
            budget=config.budget,
            ratio=config.ratio,
            optimizer=None if self.packing else config.rows,
            backend="auto" if self.packing else config.backend,
            seed=self.options.seed,
            init=config.init,
            device=self.device,
            mini_batch_l2=config.mini_batch_l2,
            interactions=StoreInteractions(self.store, features),
            found=self.state.found,
            sharding=config.sharding,
        )
        if self.options.clip_norm is not None:
            self.tables.require("clip")
        self.search = search_of(self.tables)
        if self.search is not None and ranks() > 1:
            raise ValueError(
                f"table={config.table}: {self.search.config.kind} searches in one process, for it looks "
                "at whole tables; train without torchrun, or take a width that does not search "
                "(uniform, mde, lowrank)"
            )

    def _first_model(self) -> CTRModel:
        """Return the network with its initial weights."""
        kind = models.get(self.config.model.kind)
        torch.manual_seed(self.options.seed)
        model = kind(self.config.model, self.inputs, self.tables.dims).to(self.device)
        own_seed(self.options.seed)
        return model

    @property
    def stage(self) -> Stage:
        """The stage that is on."""
        return self.stages[self.state.stage]

    def _begin_stage(self) -> None:
        """Make what the stage trains with: optimizers, and the structure it learns."""
        if self.search is not None:
            self.search.begin(self.stage)
        mine = torch.tensor(self.tables.training_bytes(), dtype=torch.float64, device=self.device)
        self.state.training_bytes = max(self.state.training_bytes, int(total(mine)))
        self.predict = Predictor(self.model, self.tables, self.device, self.bfloat16)
        self.retrieval = retrieval_of(self.store, self.model, self.options)
        steps = self._epochs(self.stage) * self.steps_per_epoch
        self.train_step = TrainStep(
            self.config,
            self.predict,
            self.tables,
            self.search,
            self.stage,
            self.state,
            steps,
            self.retrieval,
        )

    def _end_stage(self) -> None:
        """Hand over from the stage that is over, and begin the next one if there is one."""
        state = self.state
        self._lap("train")
        if self.stage.keep == "best" and self.checkpoints and state.best_checkpoint:
            self._load_weights(self.checkpoints, self.checkpoints.folder / state.best_checkpoint)
        if self.search is not None:
            total, done = self.stage.candidates, len(state.candidates)
            with Progress(self._title, total, done, unit="candidate") as progress:
                rebuild = self._end_search(self.search, progress)
            if rebuild is not None:
                state.found = state.found | rebuild.widths
                self._build_tables()
                rebuild.fill(self.tables)
        self._lap("search")
        past = [*state.past, self._stage_cost()]
        if state.finished:
            state.past = past
            return
        self.tables.restart()
        self.state = State(
            self.config.dense.lr,
            self.config.rows.lr,
            step=state.step,
            stage=state.stage + 1,
            seconds=state.seconds,
            rows=state.rows,
            training_bytes=state.training_bytes,
            found=state.found,
            past=past,
        )
        log.info("stage %s: %d of %d", self.stage.name, self.state.stage + 1, len(self.stages))
        if self.stage.restart:
            self.model.load_state_dict(self._first_model().state_dict())
        self._begin_stage()
        self.train_step.set_lr()
        self.state.stage_over = self.stage.epochs == 0
        self.save()

    def _end_search(self, search: Search, progress: Progress) -> Rebuild | None:
        """End the stage of a search; one that was interrupted goes on behind the last candidate.

        Raises:
            Interrupted: asked to stop; what the candidates measured so far are worth is in the state.
        """
        known = iter(tuple(self.state.candidates))

        def fitness(rows: int | None) -> float:
            value = next(known, None)
            if value is None:
                value = self._fitness(rows, progress)
                self.state.candidates.append(value)
            return value

        try:
            return search.end(self.stage, fitness)
        except Interrupted:
            self._lap("search")
            raise

    def _stage_cost(self) -> dict[str, Any]:
        """Return what the stage took: epochs, steps, rows (held-out ones too), seconds.

        Seconds in training, and of the search at its end.
        """
        state = self.state
        kinds = ("rows", "train_seconds", "search_seconds")
        past = [sum(one[kind] for one in state.past) for kind in kinds]
        return {
            "name": self.stage.name,
            "epochs": round(state.epoch + state.batch / self.steps_per_epoch, 6),
            "steps": state.stage_step,
            "rows": state.rows - past[0],
            "train_seconds": state.seconds - past[1],
            "search_seconds": self.seconds["search"] - past[2],
        }

    def _fitness(self, rows: int | None, progress: Progress) -> float:
        """Return the monitored value on so many validation rows, its sign such that more is better."""
        options = self.options
        every = self.store.schema.rows["valid"]
        if rows is not None:
            limit = self._limited(-(-rows // options.eval_batch_size))
            options = options.model_copy(update={"limit_batches": limit})
        found = measure_trained(
            self.store, "valid", self.predict, options, self.retrieval, self.stop
        )
        progress.advance(every if rows is None else min(rows, every))
        return sign_of(self.options.monitor) * self._monitored(found)

    def _monitored(self, valid: dict[str, float]) -> float:
        """Return the monitored metric of validation rows.

        Raises:
            ValueError: it is undefined.
        """
        value = valid[self.options.monitor]
        if math.isnan(value):
            raise self._undefined()
        return value

    # -- training --------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the last epoch or until patience ends, resuming if there is a checkpoint.

        Raises:
            Interrupted: asked to stop; a checkpoint is written.
            ValueError: the loss is no longer finite.
        """
        self._resume()
        keep_freed_memory()
        self._lap("build")
        try:
            while not self.state.finished:
                if self.state.pending:
                    self.evaluate()
                elif self.state.stage_over:
                    self._end_stage()
                else:
                    self.advance()
        except Interrupted:
            self.save()
            raise

    def advance(self) -> None:
        """Train up to the next evaluation."""
        state, options = self.state, self.options
        self.model.train(self.stage.network)  # at rest it moves no statistics and drops nothing out
        self.tables.train()
        title = f"epoch {state.epoch + 1}/{self._epochs(self.stage)}"
        if len(self.stages) > 1:
            title = f"{self._title}, {title}"
        self.loader.set_position(state.epoch, state.batch)
        with (
            Progress(title, self.steps_per_epoch, state.batch) as progress,
            closing(self.loader) as batches,
            closing(self._held_out()) as held_out,
        ):
            begun = time.perf_counter()
            before = state.loss_sum if rank() == 0 else 0.0
            loss_sum = torch.tensor(before, dtype=torch.float64, device=self.device)
            for batch in batches:
                other = next(held_out) if self.stage.structure == "valid" else None
                rows = self._batch_rows()
                loss = self.train_step(batch, other, rows)
                loss_sum += loss.double() * (rows / ranks())
                self._count(rows, 0 if other is None else len(other.label))
                checkpoint_due = _every(options.checkpoint_every, state.step)
                due = state.pending or checkpoint_due or state.step % CHECK_EVERY == 0
                stopping = self._asked_to_stop(due)
                look = stopping or due
                if look:
                    state.loss_sum = self._finite(total(loss_sum).item())
                mean = state.loss_sum / state.loss_rows if look else None
                progress.advance(rows, mean)
                if look:
                    now = time.perf_counter()
                    state.seconds, begun = state.seconds + now - begun, now
                if stopping:
                    raise Interrupted
                if state.pending:
                    break
                if checkpoint_due:
                    self.save()

    @property
    def _title(self) -> str:
        return f"{self.stage.name} ({self.state.stage + 1}/{len(self.stages)})"

    def _held_out(self) -> Iterator[Batch]:
        """Yield shuffled batches of validation rows without end, from where the stage stands."""
        loader = self._shuffled("valid")
        loader.set_position(*divmod(self.state.stage_step, len(loader)))
        while True:
            yield from loader

    def _shuffled(self, split: str) -> Loader:
        rows, size = self.store.schema.rows[split], self.options.batch_size
        # One row alone has no batch statistics, and every rank needs a row.
        drop = 0 < rows % size < max(2, ranks()) and rows > size
        return Loader(
            self.store,
            split,
            size,
            shuffle=True,
            seed=self.options.seed,
            rank=rank(),
            world_size=ranks(),
            drop_last=drop,
        )

    def _batch_rows(self) -> int:
        """Return the rows of the next batch, over all ranks."""
        size = self.options.batch_size
        return min(size, self.loader.rows - self.state.batch * size)

    def _asked_to_stop(self, due: bool) -> bool:
        """Return whether some rank was asked to; several find out together, where a look is due."""
        return self.stop() if ranks() == 1 else due and any_rank(self.stop(), self.device)

    def _epochs(self, stage: Stage) -> int:
        return self.options.epochs if stage.epochs is None else stage.epochs

    def _count(self, rows: int, held_out: int) -> None:
        """Move the position behind the batch just trained on, and the one of held-out rows."""
        state = self.state
        state.batch, state.step = state.batch + 1, state.step + 1
        state.stage_step += 1
        state.rows, state.loss_rows = state.rows + rows + held_out, state.loss_rows + rows
        epoch_ends = state.batch >= self.steps_per_epoch
        if epoch_ends:
            state.epoch, state.batch = state.epoch + 1, 0
        due = epoch_ends or _every(self.options.eval_every, state.step)
        state.pending = due or state.stage_over

    def _finite(self, loss_sum: float) -> float:
        if math.isfinite(loss_sum):
            return loss_sum
        first = (self.state.step - 1) // CHECK_EVERY * CHECK_EVERY + 1
        raise ValueError(
            f"the loss became {loss_sum} between steps {first} and {self.state.step} "
            f"(dense.lr {self.state.lr_dense:g}, rows.lr {self.state.lr_rows:g}); "
            "lower the learning rates, or set train.clip_norm=10"
        )

    # -- evaluation ------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Measure on validation; keep the best, lower the learning rates, or finish."""
        state = self.state
        self._lap("train")
        valid = self.measure("valid", self.predict)
        value = self._monitored(valid)
        gained = (
            state.best is None or sign_of(self.options.monitor) * (value - state.best) > MIN_GAIN
        )
        epoch = state.epoch + state.batch / self.steps_per_epoch
        row = {"split": "valid", "stage": self.stage.name, "epoch": round(epoch, 6)}
        row |= {"step": state.step, **valid}
        row |= {"train_loss": state.loss_sum / max(state.loss_rows, 1)}
        row |= {"lr_dense": state.lr_dense, "lr_rows": state.lr_rows, "best": gained}
        if gained:
            state.best, state.best_epoch, state.best_step = value, row["epoch"], state.step
            state.failures = 0
        elif self.stage.epochs is None:
            state.failures += 1
            self._reduce_lr()
        state.pending, state.loss_sum, state.loss_rows = False, 0.0, 0
        state.stage_over |= (
            state.epoch >= self._epochs(self.stage) or state.failures >= self.options.patience
        )
        state.finished = state.stage_over and state.stage + 1 == len(self.stages)
        log.info(_evaluation_line(row, state))
        self._lap("evaluate")
        if self.run is not None:
            self.run.record(row)
        if gained and self.checkpoints is not None:
            state.best_checkpoint = self.checkpoints.name(state.step)
        self.save()

    def measure(self, split: str, predict: Predictor, keep: Path | None = None) -> dict[str, float]:
        """Return the metrics of a split; `keep` is a file for its scores.

        Raises:
            Interrupted: asked to stop.
        """
        alone = ranks() == 1  # several stop together, while training
        stop = self.stop if alone else lambda: False
        return measure_trained(self.store, split, predict, self.options, self.retrieval, stop, keep)

    def _reduce_lr(self) -> None:
        rule = self.options.reduce_lr
        if rule is not None:
            self.state.lr_dense = rule.reduced(self.state.lr_dense)
            self.state.lr_rows = rule.reduced(self.state.lr_rows)
            self.train_step.set_lr()

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Pack the best tables, measure what was packed, and write the summary.

        Raises:
            Interrupted: asked to stop; the same command does this last part again.
        """
        assert self.run is not None
        state = self.state
        self._end_stage()
        save(self.run.model, self.model, self.config.model, self.inputs, self.tables)
        served = PackedModel.load(self.run.model)
        self._lap("pack")
        measured = {
            "valid": self.measure("valid", served),
            "test": self.measure("test", served, keep=self.run.scores / "test.npy"),
        }
        self._lap("evaluate")
        size = asdict(self.tables.bytes()) | {"file": served.tables.file_bytes}
        size["training"] = state.training_bytes
        summary = {
            **measured,
            "monitor": self.options.monitor,
            "epoch": state.best_epoch,
            "step": state.best_step,
            "epochs_trained": sum(stage["epochs"] for stage in state.past),
            "stages": state.past,
            "seed": self.options.seed,
            "data": self.store.content,
            "model": self.config.model.kind,
            "table": str(self.config.table),
            "budget": self.config.budget,
            "ratio": self.config.ratio,
            "bytes": size,
            "parameters": self.parameters(),
            "rows": self.store.schema.rows,
            "rows_per_second": state.rows / state.seconds if state.seconds else None,
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
            "peak_memory_bytes": peak_memory(),
            "tables": self.tables.report(),
        }
        self.run.finish(summary)
        return summary

    def parameters(self) -> dict[str, int]:
        """Return the numbers that are trained: in tables (rows) and in the network."""
        rows = self.tables.store.tables.values()
        return {
            "tables": sum(table.rows * table.dim for table in rows),
            "network": sum(weight.numel() for weight in self.model.parameters()),
        }

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint. Training waits: the rows it would change are written from where they are.

        Raises:
            OSError: the disk is full; the run can be resumed from the checkpoint before.
        """
        if self.checkpoints is None:
            return
        tensors = {
            **checkpoint.under("model", self.model.state_dict()),
            **checkpoint.under("tables", self.tables.training_state()),
            **checkpoint.under(
                "optimizer", checkpoint.optimizer_tensors(self.train_step.optimizer)
            ),
            "rng/cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        values = {
            "state": asdict(self.state),
            "seconds": self.seconds,
            "data": self.store.content,
        }
        self.checkpoints.save(self.state.step, tensors, values, self.state.best_checkpoint)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one.

        Raises:
            ValueError: there are checkpoints, and none is whole; or it was trained on other data.
        """
        if self.run is None or self.checkpoints is None:
            return
        path = self.checkpoints.latest()
        if path is not None:
            self.load(self.checkpoints, path)
            self.run.rewind(self.state.step - self.state.pending)
            if not self.packing:
                log.info("resuming at epoch %d, step %d", self.state.epoch + 1, self.state.step)

    def load(self, checkpoints: Checkpoints, path: Path) -> None:
        """Continue from a checkpoint."""
        values = checkpoints.values(path)
        check_same_data(values["data"], self.store)
        for stage, seconds in values["seconds"].items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.state = State(**values["state"])
        if self.state.batch >= self.steps_per_epoch:  # more ranks may leave out a short last batch
            self.state.epoch, self.state.batch, self.state.pending = self.state.epoch + 1, 0, True
        if self.state.found:
            self._build_tables()
        self._begin_stage()
        tensors = self._load_weights(checkpoints, path)
        checkpoint.load_optimizer_tensors(
            self.train_step.optimizer, checkpoint.taken("optimizer", tensors)
        )
        self.train_step.set_lr()
        rng = checkpoint.taken("rng", tensors)
        if "cpu" in rng:
            torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)

    def _load_weights(self, checkpoints: Checkpoints, path: Path) -> dict[str, Tensor]:
        """Take the network and the tables, these in place, from a checkpoint; return its tensors."""
        tables = checkpoint.under("tables", self.tables.training_state())
        state_of_rows = "tables/store.optimizer." if self.packing else None
        tensors = checkpoints.load(path, tables, without=state_of_rows)
        self.model.load_state_dict(checkpoint.taken("model", tensors))
        self.tables.load_training_state(checkpoint.taken("tables", tensors))
        return tensors

    # -- small things ----------------------------------------------------------------------------

    def _checkpoints(self) -> Checkpoints | None:
        """Return where checkpoints are kept, None where nothing is."""
        if self.run is None:
            return None
        run = config_hash(self.config.plain())
        return Checkpoints(self.run.checkpoints, run, self.options.keep_checkpoints)

    def _check_rows(self) -> None:
        rows = self.store.schema.rows
        if self.options.batch_size < ranks():
            raise ValueError(
                f"train.batch_size={self.options.batch_size} is of all ranks together, and there are "
                f"{ranks()}: every rank needs a row"
            )
        least = {"train": max(2, ranks())}
        empty = [split for split, count in rows.items() if count < least.get(split, 1)]
        if empty:
            raise ValueError(
                f"data.split: too few rows for {' and '.join(empty)} ({rows}); training takes two "
                "rows at least and one for each rank, validation and test one: change data.split or "
                "add files"
            )

    def _check_monitor(self) -> None:
        if self.options.monitor == "gauc" and self.store.schema.group is None:
            raise ValueError(
                "train.monitor: gauc needs group ids, and the data source "
                f"{self.config.data.kind!r} names no group; use train.monitor=auc"
            )
        clicked = self.store.stats["splits"]["valid"]["label_mean"]
        if self.options.monitor in ("auc", "gauc") and clicked in (0, 1):
            raise self._undefined()

    def _undefined(self) -> ValueError:
        return ValueError(
            f"train.monitor: {self.options.monitor} of the validation rows is undefined (one "
            "label only); use train.monitor=logloss, or more validation rows"
        )

    def _check_steps(self) -> None:
        each = self.steps_per_epoch
        epochs = sum(self._epochs(stage) for stage in self.stages)
        if epochs * each < FEW_STEPS and self.options.limit_batches is None:
            log.warning(
                "%d steps in all (%d epochs of %d): few to learn from; lower train.batch_size=%d or "
                "raise train.epochs",
                *(epochs * each, epochs, each, self.options.batch_size),
            )

    def _limited(self, batches: int) -> int:
        limit = self.options.limit_batches
        return batches if limit is None else min(limit, batches)

    def _lap(self, what: str) -> float:
        """Book the time since the last lap, and return it."""
        now = time.perf_counter()
        spent, self._clock = now - self._clock, now
        self.seconds[what] = self.seconds.get(what, 0.0) + spent
        return spent


def _every(period: int | None, step: int) -> bool:
    return period is not None and step % period == 0


def _evaluation_line(row: dict[str, Any], state: State) -> str:
    parts = [
        f"epoch {row['epoch']:g}",
        f"step {row['step']}",
        f"train loss {row['train_loss']:.5f}",
    ]
    parts += [f"{name} {row[name]:.5f}" for name in SHOWN if name in row]
    parts.append("best" if row["best"] else f"no gain ({state.failures})")
    return "  ".join(parts)
