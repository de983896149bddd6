# pyright: reportMissingImports=false
"""Runs a job of `bench.training` on Torch-RecHub: its layers, its CTRTrainer, its DataGenerator.

DCNv2 is its own class. Its DeepFM has no first-order weights of ids, its AutoInt adds a linear map
of the embeddings and projects the residual, its DIN attends to each history column alone: these are
put together here from its layers. Its MLP always normalises batches; where the architecture does
not, that layer is taken out.

Shape letters: B rows of a batch, F fields (numeric columns included), D embedding width,
T length of a padded history.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from job import CannotError, Data, Split, Stopwatch, answer, metrics
from parts import NumericVectors, NumericWeights, count, square_only, start
from torch import Tensor, nn
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.basic.layers import FM, MLP, EmbeddingLayer, InteractingLayer
from torch_rechub.models.ranking import DCNv2
from torch_rechub.models.ranking.din import ActivationUnit
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

Rows = dict[str, Tensor]


class TimedTrainer(CTRTrainer):
    """Its trainer, with a stopwatch around each epoch."""

    def train_one_epoch(self, data_loader: Any, log_interval: int = 10) -> float:
        """Train an epoch, and time it."""
        with self.watch.epoch():
            return super().train_one_epoch(data_loader, log_interval)


def mlp(inputs: int, model: dict[str, Any], logit: bool = True) -> MLP:
    """Return its MLP of a model's options."""
    if "dice" in (model["activation"], model.get("attention_activation")):
        raise CannotError("its Dice has another form: one alpha a layer, no statistics of batches")
    made = MLP(inputs, logit, model["hidden"], model["dropout"], model["activation"])
    return made if model["batch_norm"] else without_batch_norm(made)


def without_batch_norm(made: MLP) -> MLP:
    """Take the batch norms out of an MLP."""
    made.mlp = nn.Sequential(*(one for one in made.mlp if not isinstance(one, nn.BatchNorm1d)))
    return made


class Fields(nn.Module):
    """The vectors [B, F, D] of all fields, numeric columns included."""

    def __init__(self, data: Data, dim: int) -> None:
        super().__init__()
        self.sparse = [SparseFeature(one.name, one.rows, dim) for one in data.candidates]
        self.embedding = EmbeddingLayer(self.sparse)
        self.columns = data.numeric
        self.numeric = NumericVectors(len(data.numeric), dim) if data.numeric else None
        self.count = len(self.sparse) + len(data.numeric)

    def forward(self, x: Rows) -> Tensor:
        """Return [B, F, D]."""
        vectors = self.embedding(x, self.sparse)
        if self.numeric is None:
            return vectors
        return torch.cat([vectors, self.numeric(values(x, self.columns))], 1)


def values(x: Rows, columns: tuple[str, ...]) -> Tensor:
    """Return the numeric columns side by side, [B, N]."""
    return torch.stack([x[name].float() for name in columns], 1)


class DeepFM(nn.Module):
    """First order, FM and MLP."""

    def __init__(self, data: Data, model: dict[str, Any]) -> None:
        super().__init__()
        self.fields = Fields(data, model["dim"])
        self.weights = [SparseFeature(one.name, one.rows, 1) for one in data.candidates]
        self.first_order = EmbeddingLayer(self.weights)
        self.columns = data.numeric
        self.linear = NumericWeights(len(data.numeric)) if data.numeric else None
        self.fm = FM()
        self.mlp = mlp(self.fields.count * model["dim"], model)

    def forward(self, x: Rows) -> Tensor:
        """Return probabilities [B]."""
        vectors = self.fields(x)
        logit = self.first_order(x, self.weights, squeeze_dim=True).sum(1, keepdim=True)
        if self.linear is not None:
            logit = logit + self.linear(values(x, self.columns))
        logit = logit + self.fm(vectors) + self.mlp(vectors.flatten(1))
        return torch.sigmoid(logit.squeeze(1))


class AutoInt(nn.Module):
    """Interacting layers and a linear map."""

    def __init__(self, data: Data, model: dict[str, Any]) -> None:
        super().__init__()
        square_only(model)
        self.fields = Fields(data, model["dim"])
        layers = [InteractingLayer(model["dim"], model["heads"]) for _ in range(model["layers"])]
        for layer in layers:
            layer.W_Res = nn.Identity()
            layer.scale = layer.scale if model["scale"] else 1.0
        self.interacting_layers = nn.Sequential(*layers)
        self.attn_linear = nn.Linear(self.fields.count * model["dim"], 1)

    def forward(self, x: Rows) -> Tensor:
        """Return probabilities [B]."""
        out = self.interacting_layers(self.fields(x)).flatten(1)
        return torch.sigmoid(self.attn_linear(out).squeeze(1))


class DIN(nn.Module):
    """Activation unit over the joined history columns. It has no mask: padding is a zero row."""

    def __init__(self, data: Data, model: dict[str, Any]) -> None:
        super().__init__()
        if model["softmax"]:
            raise CannotError("its activation unit has no mask, so padding would take weight")
        dim = model["dim"]
        self.target, self.history = [], []
        for candidate, one in data.histories:
            self.target.append(SparseFeature(candidate.name, one.rows, dim, padding_idx=0))
            shared = {"pooling": "concat", "shared_with": candidate.name, "padding_idx": 0}
            self.history.append(SequenceFeature(one.name, one.rows, dim, **shared))
        width = dim * len(self.target)
        self.embedding = EmbeddingLayer(self.target + self.history)
        self.attention = ActivationUnit(
            width, list(model["attention_hidden"]), model["attention_activation"]
        )
        without_batch_norm(self.attention.attention)
        self.mlp = mlp(2 * width, model)

    def forward(self, x: Rows) -> Tensor:
        """Return probabilities [B]."""
        target = self.embedding(x, self.target, squeeze_dim=True)
        history = self.embedding(x, self.history).transpose(1, 2).flatten(2)
        interest = self.attention(history, target)
        return torch.sigmoid(self.mlp(torch.cat([target, interest], 1)).squeeze(1))


def dcnv2(data: Data, model: dict[str, Any]) -> DCNv2:
    """Return its own DCNv2 with full matrices."""
    if data.numeric and model["numeric"] != "value":
        raise CannotError("its DCNv2 takes numeric columns as values")
    columns = [SparseFeature(one.name, one.rows, model["dim"]) for one in data.candidates]
    columns += [DenseFeature(name) for name in data.numeric]
    hidden = {name: model[name] for name in ("dropout", "activation")}
    found = DCNv2(
        columns,
        model["cross_layers"],
        {"dims": model["hidden"], **hidden},
        use_low_rank_mixture=False,
    )
    if not model["batch_norm"]:
        without_batch_norm(found.parallel_dnn)
    return found


MODELS = {"deepfm": DeepFM, "dcnv2": dcnv2, "autoint": AutoInt, "din": DIN}
NOTES = {
    "deepfm": "from its layers: first-order weights of ids, a vector for each numeric column",
    "autoint": "from its layers: unprojected residual, no linear map of the embeddings",
    "dcnv2": "its own DCNv2",
    "din": "from its layers: one attention over the joined history columns",
}


def inputs(data: Data, split: Split) -> dict[str, np.ndarray]:
    """Return its form of the rows: column -> values."""
    return split.ids | dict(zip(data.numeric, np.ascontiguousarray(split.dense.T), strict=True))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    data, kind = Data.open(job), job["model"]["kind"]
    train, test = data.split("train"), data.split("test")
    model = MODELS[kind](data, job["model"])
    start(model)
    trainer = TimedTrainer(
        model,
        optimizer_params={"lr": job["lr"]},
        regularization_params={"embedding_l2": job["l2"] / 2},
        n_epoch=job["epochs"],
        model_path=job["work"],
    )
    trainer.watch = Stopwatch()
    generator = DataGenerator(inputs(data, train), train.label)
    batches, _, tests = generator.generate_dataloader(
        x_val=inputs(data, test),
        y_val=test.label,
        x_test=inputs(data, test),
        y_test=test.label,
        batch_size=job["batch_size"],
        # Rows are put together one by one in Python: beside the training it costs less.
        num_workers=1,
    )
    trainer.fit(batches)
    return {
        "parameters": count(model),
        "seconds": trainer.watch.seconds,
        **metrics(test.label, np.array(trainer.predict(model, tests))),
        "note": f"{NOTES[kind]}; its loader with one worker process",
    }


if __name__ == "__main__":
    answer(run, ("torch-rechub",))
