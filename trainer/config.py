"""The configuration of a run: one strict schema for YAML, the command line and Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from torch.optim.optimizer import ParamsT

from data.source import SourceConfig, sources
from embtables.budget import parse_bytes
from embtables.compressor import TableConfig, parse_table
from embtables.registry import Config, nearest
from embtables.rows.optimizers import Adam as RowAdam
from embtables.rows.optimizers import RowOptimizer
from embtables.rows.sharding import Sharding
from embtables.rows.store import Init, backends
from models.base import ModelConfig, models
from trainer.overrides import Keys, merge, read_preset
from trainer.recipes import find_recipe
from trainer.validation import validate

if TYPE_CHECKING:
    DataConfig = SourceConfig
    AnyModelConfig = ModelConfig
else:
    DataConfig = sources.config_union()
    AnyModelConfig = models.config_union()


class Adam(Config):
    """Adam on the network's weights."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="L2, added to the gradient")

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters."""
        return torch.optim.Adam(parameters, fused=True, **self.model_dump(exclude={"kind"}))


class Adagrad(Config):
    """Adagrad on the network's weights."""

    kind: Literal["adagrad"] = "adagrad"
    lr: float = Field(default=1e-2, gt=0)
    eps: float = Field(default=1e-10, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="L2, added to the gradient")

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters."""
        return torch.optim.Adagrad(parameters, **self.model_dump(exclude={"kind"}))


class SGD(Config):
    """Gradient descent on the network's weights."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=1e-1, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, description="L2, added to the gradient")

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters."""
        return torch.optim.SGD(parameters, **self.model_dump(exclude={"kind"}))


DenseOptimizer = Annotated[Adam | Adagrad | SGD, Discriminator("kind")]


class ReduceLR(Config):
    """What an evaluation without improvement does to both learning rates."""

    factor: float = Field(default=0.1, gt=0, le=1, description="on both learning rates")
    min_lr: float = Field(default=1e-6, ge=0, description="no rate is lowered below")

    def reduced(self, lr: float) -> float:
        """Return the next learning rate; one below the floor stays as it is."""
        return min(lr, max(lr * self.factor, self.min_lr))


MONITORS = {"bce": ("auc", "logloss", "gauc"), "bpr": ("recall", "ndcg")}
"""What is measured with each loss; the first chooses the epoch unless another is asked for."""


class TrainConfig(Config):
    """How long, in which portions, and when to stop."""

    loss: Literal["bce", "bpr"] = Field(
        default="bce",
        description="bce: of clicks; bpr: an item taken above one drawn, measured by retrieval",
    )
    batch_size: int = Field(default=4096, ge=1, description="rows of a step, of all ranks together")
    eval_batch_size: int = Field(default=16384, ge=1, description="rows predicted at a time")
    epochs: int = Field(default=1, ge=1, description="at most that many")
    seed: int = Field(
        default=0, ge=0, description="of initial weights, the order of rows and dropout"
    )
    monitor: Literal["auc", "logloss", "gauc", "recall", "ndcg"] = Field(
        default_factory=lambda given: MONITORS[given.get("loss", "bce")][0],
        description="chooses the epoch; recall and ndcg with loss=bpr, the others with bce",
    )
    negatives: int = Field(default=1, ge=1, description="bpr: items drawn for every row")
    top_k: int = Field(default=20, ge=1, description="bpr: items recommended to a user")
    ties: Literal["popularity", "arbitrary"] = Field(
        default="popularity", description="bpr: what comes first of items with equal scores"
    )
    patience: int = Field(
        default=2, ge=1, description="stop after that many evaluations without gain"
    )
    reduce_lr: ReduceLR | None = Field(
        default=ReduceLR(), description="after an evaluation without gain; null: rates stay"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="of all gradients, tables included"
    )
    eval_every: int | None = Field(default=None, ge=1, description="steps; default: once an epoch")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps between checkpoints besides those at evaluations"
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="the last ones; the best one is kept besides"
    )
    limit_batches: int | None = Field(
        default=None,
        ge=1,
        description="at most that many batches of every split, to try things out",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32",
        description="of the network while training; tables and loss are float32, and so is the "
        "packed model that is measured; auto: bf16 where the device has the instructions",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rank_timeout: int = Field(
        default=60, ge=1, description="seconds that ranks wait for one that does not answer"
    )

    @field_validator("monitor")
    @classmethod
    def _measured(cls, monitor: str, info: ValidationInfo) -> str:
        loss = info.data.get("loss")
        if loss is not None and monitor not in MONITORS[loss]:
            raise ValueError(
                f"{monitor} is not measured with train.loss={loss}; "
                f"use {' or '.join(MONITORS[loss])}, or another train.loss"
            )
        return monitor


class LogConfig(Config):
    """Where evaluations are written to."""

    to: tuple[Literal["jsonl", "tensorboard"], ...] = Field(
        default=("jsonl",),
        description="jsonl: metrics.jsonl of the run directory, always; tensorboard: event files",
    )

    @field_validator("to")
    @classmethod
    def _keeps_jsonl(cls, to: tuple[str, ...]) -> tuple[str, ...]:
        if "jsonl" not in to:
            raise ValueError("jsonl is always written, for a run resumes from it; add jsonl")
        return to


class RunConfig(Config):
    """A whole run."""

    data: DataConfig
    model: AnyModelConfig
    table: TableConfig = Field(default=parse_table("full"), description="such as hash+int8")
    fields: dict[str, TableConfig] = Field(default={}, description="other tables, by logical table")
    budget: Annotated[
        int | None, BeforeValidator(lambda b: None if b is None else parse_bytes(b))
    ] = Field(None, description="bytes of all tables, such as 10MB")
    ratio: float | None = Field(
        default=None, gt=0, le=1, description="share of the uncompressed bytes"
    )
    backend: str = Field(default="auto", description="row store: native, torchrec or reference")
    sharding: Sharding = Sharding()
    rows: RowOptimizer = RowAdam(lr=1e-3, weight_decay=0.0)
    init: Init | None = None
    mini_batch_l2: float = Field(
        default=0.0, ge=0, description="decay of the rows in the batch (DIN)"
    )
    dense: DenseOptimizer = Adam()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _usual_optimizers(cls, tree: Any) -> Any:
        """Take an optimizer without its kind for the usual one with other options."""
        if not isinstance(tree, dict):
            return tree
        found = dict(tree)
        for name in ("rows", "dense"):
            given = found.get(name)
            if isinstance(given, dict) and "kind" not in given:
                found[name] = cls.model_fields[name].default.model_dump() | given
        return found

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, name: str) -> str:
        known = ["auto", *backends.names()]
        known.remove("sharded")  # what torchrec is among several ranks
        if name not in known:
            raise ValueError(
                f"unknown backend {name!r}.{nearest(name, known)} Known: {', '.join(known)}"
            )
        return name

    @field_validator("ratio")
    @classmethod
    def _one_size(cls, ratio: float | None, info: ValidationInfo) -> float | None:
        budget = info.data.get("budget")
        if ratio is not None and budget is not None:
            raise ValueError(
                f"ratio={ratio} and budget={budget} both say how large the tables are; choose one "
                "(take the other back with =null)"
            )
        return ratio

    @field_serializer("table")
    def _table_text(self, table: TableConfig) -> str:
        return str(table)

    @field_serializer("fields")
    def _fields_text(self, fields: dict[str, TableConfig]) -> dict[str, str]:
        return {name: str(table) for name, table in fields.items()}

    def plain(self) -> dict[str, Any]:
        """Return the configuration as JSON values, which validate to the same one again."""
        return self.model_dump(mode="json")


@dataclass
class Loaded:
    """A validated configuration and where its values come from.

    Attributes:
        name: recipe name, or the file's stem.
        config: the validated configuration.
        preset: what the YAML said.
        overridden: paths that the command line set.
    """

    name: str
    config: RunConfig
    preset: dict[str, Any]
    overridden: set[Keys] = field(default_factory=set)


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Loaded:
    """Return the configuration of a recipe with ``key=value`` texts laid over it.

    Args:
        recipe: name of a shipped preset, or path of a YAML file.
        overrides: such as ``["train.batch_size=512", "table=hash+int8"]``.

    Raises:
        ValueError: unknown recipe, malformed override, or a configuration with problems, all of
            them listed.
    """
    name, file = find_recipe(recipe)
    preset = read_preset(file)
    tree, overridden = merge(RunConfig, preset, overrides)
    return Loaded(name, validate(RunConfig, tree, name), preset, overridden)


class _DataOnly(Config):
    data: DataConfig


def load_data_config(recipe: str, overrides: Sequence[str] = ()) -> DataConfig:
    """Return the data section of a recipe, or the options of a source given by its kind.

    Raises:
        ValueError: as `load_config`.
    """
    if recipe not in sources.names():
        return load_config(recipe, overrides).config.data
    tree, _ = merge(_DataOnly, {"data": {"kind": recipe}}, overrides)
    return validate(_DataOnly, tree, recipe).data
