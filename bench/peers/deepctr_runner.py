# pyright: reportMissingImports=false
"""Runs a job of `bench.training` on DeepCTR-Torch: its layers, its BaseModel.fit, its data path.

DCN and DIN are its own classes. Its DeepFM and AutoInt feed numeric columns to an MLP alone, so both
are put together here from its layers with a vector for each numeric column. Its interacting layer
projects the residual; here it adds it as it is, as the others do.

Shape letters: B rows of a batch, F fields (numeric columns included), D embedding width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from deepctr_torch.callbacks import Callback
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.layers import DNN, FM, InteractingLayer
from deepctr_torch.layers.activation import Dice
from deepctr_torch.models import DCN, DIN
from deepctr_torch.models.basemodel import BaseModel
from job import Data, Split, Stopwatch, answer, metrics
from parts import NumericVectors, count, square_only, start
from torch import Tensor, nn

LENGTH = "history_length"


class EpochTimer(Callback):
    """Times the epochs of `fit`."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the watch."""
        self.running = self.watch.epoch()
        self.running.__enter__()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop the watch."""
        self.running.__exit__(None, None, None)


class FieldModel(BaseModel):
    """A model on vectors [B, F, D] of all fields, numeric columns included."""

    def __init__(self, linear: list[Any], columns: list[Any], job: dict[str, Any]) -> None:
        super().__init__(linear, columns, **regularizers(job), seed=job["seed"])
        numeric = sum(isinstance(column, DenseFeat) for column in columns)
        self.numeric = NumericVectors(numeric, job["model"]["dim"]) if numeric else None
        self.fields = len(columns)

    def vectors(self, x: Tensor) -> Tensor:
        """Return [B, F, D] from the matrix of all columns."""
        parts, values = self.input_from_feature_columns(
            x, self.dnn_feature_columns, self.embedding_dict
        )
        if self.numeric is not None:
            parts = [*parts, self.numeric(torch.cat(values, 1))]
        return torch.cat(parts, 1)


class DeepFM(FieldModel):
    """First order, FM and DNN."""

    def __init__(self, columns: list[Any], job: dict[str, Any]) -> None:
        super().__init__(columns, columns, job)
        model = job["model"]
        self.fm = FM()
        self.dnn = dnn(self.fields * model["dim"], model)
        self.dnn_linear = nn.Linear(model["hidden"][-1], 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities [B, 1]."""
        vectors = self.vectors(x)
        deep = self.dnn_linear(self.dnn(vectors.flatten(1)))
        return self.out(self.linear_model(x) + self.fm(vectors) + deep)


class AutoInt(FieldModel):
    """Interacting layers and a linear map."""

    def __init__(self, columns: list[Any], job: dict[str, Any]) -> None:
        super().__init__([], columns, job)
        model = job["model"]
        self.int_layers = nn.Sequential(*(interacting(model) for _ in range(model["layers"])))
        self.dnn_linear = nn.Linear(self.fields * model["dim"], 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities [B, 1]."""
        return self.out(self.dnn_linear(self.int_layers(self.vectors(x)).flatten(1)))


class Unprojected(torch.Tensor):
    """Stands in for the residual's weights: a product with it returns the other factor."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the first argument of a product, and behave as a tensor otherwise."""
        if func is torch.tensordot:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


def interacting(model: dict[str, Any]) -> InteractingLayer:
    """Return an interacting layer that adds its input as it is."""
    layer = InteractingLayer(model["dim"], model["heads"], scaling=model["scale"])
    del layer.W_Res
    layer.W_Res = torch.zeros(()).as_subclass(Unprojected)
    for weight in layer.parameters():
        nn.init.xavier_normal_(weight)
    return layer


def dnn(inputs: int, model: dict[str, Any]) -> DNN:
    """Return the hidden layers of a model's options."""
    return DNN(
        inputs,
        model["hidden"],
        activation=model["activation"],
        dropout_rate=model["dropout"],
        use_bn=model["batch_norm"],
    )


def regularizers(job: dict[str, Any]) -> dict[str, float]:
    """Return its factors of a sum of squares beside the loss summed over the batch."""
    factor = job["l2"] / 2 * job["batch_size"]
    return {"l2_reg_linear": factor, "l2_reg_embedding": factor}


def dcnv2(columns: list[Any], job: dict[str, Any]) -> DCN:
    """Return its DCN with full matrices."""
    model = job["model"]
    return DCN(
        [],
        columns,
        cross_num=model["cross_layers"],
        cross_parameterization="matrix",
        dnn_hidden_units=model["hidden"],
        dnn_activation=model["activation"],
        dnn_dropout=model["dropout"],
        dnn_use_bn=model["batch_norm"],
        l2_reg_cross=0,
        seed=job["seed"],
        l2_reg_linear=0,
        l2_reg_embedding=regularizers(job)["l2_reg_embedding"],
    )


def din(columns: list[Any], job: dict[str, Any]) -> DIN:
    """Return its DIN; Dice loses the scale and shift that no other library trains.

    The head gets its Dice here, because DIN itself asks for one of three dimensions and then feeds two.
    """
    model = job["model"]
    found = DIN(
        columns,
        [column.name for column in columns if isinstance(column, SparseFeat)],
        dnn_hidden_units=model["hidden"],
        dnn_activation="relu",
        dnn_dropout=model["dropout"],
        dnn_use_bn=model["batch_norm"],
        att_hidden_size=model["attention_hidden"],
        att_activation=model["attention_activation"],
        att_weight_normalization=model["softmax"],
        l2_reg_embedding=regularizers(job)["l2_reg_embedding"],
        seed=job["seed"],
    )
    if model["activation"] == "dice":
        found.dnn.activation_layers = nn.ModuleList(Dice(width) for width in model["hidden"])
    for module in found.modules():
        if isinstance(module, Dice):
            old = module.bn
            module.bn = nn.BatchNorm1d(old.num_features, eps=old.eps, affine=False)
    return found


def autoint(columns: list[Any], job: dict[str, Any]) -> AutoInt:
    """Return AutoInt if its layers are square."""
    square_only(job["model"])
    return AutoInt(columns, job)


MODELS = {"deepfm": DeepFM, "dcnv2": dcnv2, "autoint": autoint, "din": din}
NOTES = {
    "deepfm": "its DeepFM with a vector for each numeric column",
    "autoint": "its AutoInt with a vector for each numeric column and an unprojected residual",
    "dcnv2": "its own DCN with full matrices",
    "din": "its own DIN; Dice without scale and shift",
}


def feature_columns(data: Data, split: Split, dim: int) -> list[Any]:
    """Return its description of the columns."""
    columns: list[Any] = [SparseFeat(one.name, one.rows, dim) for one in data.candidates]
    for candidate, one in data.histories:
        ids = SparseFeat(f"hist_{candidate.name}", one.rows, dim, embedding_name=candidate.name)
        length = split.ids[one.name].shape[1]
        columns.append(VarLenSparseFeat(ids, maxlen=length, length_name=LENGTH))
    return columns + [DenseFeat(name) for name in data.numeric]


def inputs(data: Data, split: Split) -> dict[str, np.ndarray]:
    """Return its form of the rows: column -> values."""
    found = {one.name: split.ids[one.name] for one in data.candidates}
    for candidate, one in data.histories:
        found[f"hist_{candidate.name}"] = split.ids[one.name]
        found.setdefault(LENGTH, (split.ids[one.name] != 0).sum(1, dtype=np.int32))
    return found | dict(zip(data.numeric, split.dense.T, strict=True))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    data, kind = Data.open(job), job["model"]["kind"]
    train, test = data.split("train"), data.split("test")
    model = MODELS[kind](feature_columns(data, train, job["model"]["dim"]), job)
    start(model)
    model.compile(torch.optim.Adam(model.parameters(), lr=job["lr"]), "binary_crossentropy")
    watch = Stopwatch()
    model.fit(
        inputs(data, train),
        train.label,
        batch_size=job["batch_size"],
        epochs=job["epochs"],
        verbose=0,
        callbacks=[EpochTimer(watch)],
    )
    return {
        "parameters": count(model),
        "seconds": watch.seconds,
        **metrics(test.label, model.predict(inputs(data, test), 4 * job["batch_size"])),
        "note": NOTES[kind],
    }


if __name__ == "__main__":
    answer(run, ("deepctr-torch",))
