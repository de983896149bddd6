# pyright: reportMissingImports=false
"""Runs a job of `bench.training` on FuxiCTR: its layers, its BaseModel.fit, its loader.

FuxiCTR's wheel holds no model zoo for these models, so they are put together here from its layers,
as its zoo does. Evaluation is off, and the last weights are tested, unless the job chooses the epoch:
then its own early stopping and learning rates are on.

Shape letters: B rows of a batch, F fields (numeric columns included), D embedding width,
A attention width, T length of a padded history, E width of a behaviour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import (
    CrossNetV2,
    DIN_Attention,
    FeatureEmbedding,
    FeatureEmbeddingDict,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
    ScaledDotProductAttention,
)
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from job import Data, Split, Stopwatch, answer, metrics
from parts import count, start
from torch import Tensor, nn

NEVER = 10**9


class Model(BaseModel, ABC):
    """What the models share: how they are trained, timed, and started."""

    def __init__(self, features: FeatureMap, job: dict[str, Any]) -> None:
        super().__init__(
            features,
            embedding_regularizer=float(job["l2"]) or None,
            eval_steps=None if job["choose"] else NEVER,
            verbose=0,
            model_root=job["work"],
            metrics=["AUC"],
        )
        self.watch, self.choose = Stopwatch(), job["choose"]
        self.build(features, job["model"])
        self.compile("adam", "binary_crossentropy", job["lr"])
        self.reset_parameters()
        start(self)

    @abstractmethod
    def build(self, features: FeatureMap, model: dict[str, Any]) -> None:
        """Make the layers."""

    @abstractmethod
    def logit(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return [B, 1] of a batch of columns."""

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the probabilities of a batch."""
        return {"y_pred": self.output_activation(self.logit(self.get_inputs(inputs)))}

    def train_epoch(self, data_generator: Any) -> None:
        """Train an epoch, and time it."""
        with self.watch.epoch():
            super().train_epoch(data_generator)

    def load_weights(self, checkpoint: str) -> None:
        """Keep the last weights where no epoch is chosen."""
        if self.choose:
            super().load_weights(checkpoint)


def mlp(inputs: int, model: dict[str, Any], logit: bool = True) -> MLP_Block:
    """Return the MLP of a model's options."""
    return MLP_Block(
        inputs,
        hidden_units=list(model["hidden"]),
        hidden_activations=_activation(model["activation"]),
        output_dim=1 if logit else None,
        dropout_rates=model["dropout"],
        batch_norm=model["batch_norm"],
    )


def _activation(name: str) -> str:
    return {"relu": "ReLU", "dice": "Dice"}[name]


class DeepFM(Model):
    """First order, pairwise products, and MLP."""

    def build(self, features: FeatureMap, model: dict[str, Any]) -> None:
        """Make the layers."""
        self.embedding = FeatureEmbedding(features, model["dim"])
        self.first_order = LogisticRegression(features, use_bias=False)
        self.pairs = InnerProductInteraction(features.num_fields, output="product_sum")
        self.mlp = mlp(features.num_fields * model["dim"], model)

    def logit(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return [B, 1]."""
        vectors = self.embedding(inputs)
        return self.first_order(inputs) + self.pairs(vectors) + self.mlp(vectors.flatten(1))


class DCNv2(Model):
    """Cross layers beside an MLP."""

    def build(self, features: FeatureMap, model: dict[str, Any]) -> None:
        """Make the layers."""
        numeric = [name for name, one in features.features.items() if one["type"] == "numeric"]
        self.values = numeric if model["numeric"] == "value" else []
        self.embedding = FeatureEmbedding(
            features, model["dim"], not_required_feature_columns=self.values
        )
        fields = features.num_fields - len(self.values)
        width = fields * model["dim"] + len(self.values)
        self.cross = CrossNetV2(width, model["cross_layers"])
        self.mlp = mlp(width, model, logit=False)
        self.out = nn.Linear(width + model["hidden"][-1], 1)

    def logit(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return [B, 1]."""
        x = self.embedding(inputs, flatten_emb=True)
        if self.values:
            values = torch.stack([inputs[name].float() for name in self.values], 1)
            x = torch.cat([x, values], 1)
        return self.out(torch.cat([self.cross(x), self.mlp(x)], 1))


class Interacting(nn.Module):
    """One interacting layer on FuxiCTR's scaled dot product: [B, F, D] -> [B, F, A]."""

    def __init__(self, inputs: int, model: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads = model["attention_dim"], model["heads"]
        self.scale = (width // self.heads) ** 0.5 if model["scale"] else None
        maps = 3 + (inputs != width)
        self.maps = nn.ModuleList(nn.Linear(inputs, width, bias=False) for _ in range(maps))
        self.attention = ScaledDotProductAttention(model["dropout"])
        self.norm = nn.LayerNorm(width) if model["layer_norm"] else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, F, A]."""
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.maps[:3])
        out, _ = self.attention(q, k, v, scale=self.scale)
        out = out.transpose(1, 2).flatten(2)
        out = out + (self.maps[3](x) if len(self.maps) > 3 else x)
        return self.norm(out).relu()


class AutoInt(Model):
    """Interacting layers with a residual, and a linear map."""

    def build(self, features: FeatureMap, model: dict[str, Any]) -> None:
        """Make the layers."""
        widths = [model["dim"]] + [model["attention_dim"]] * (model["layers"] - 1)
        self.embedding = FeatureEmbedding(features, model["dim"])
        self.attention = nn.Sequential(*(Interacting(width, model) for width in widths))
        self.out = nn.Linear(features.num_fields * model["attention_dim"], 1)

    def logit(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return [B, 1]."""
        return self.out(self.attention(self.embedding(inputs)).flatten(1))


class DIN(Model):
    """Target attention over one stream of histories."""

    def build(self, features: FeatureMap, model: dict[str, Any]) -> None:
        """Make the layers."""
        sequences = [name for name, one in features.features.items() if one["type"] == "sequence"]
        self.pairs = [(features.features[one]["share_embedding"], one) for one in sequences]
        width = model["dim"] * len(self.pairs)
        self.embedding = FeatureEmbeddingDict(features, model["dim"])
        self.attention = DIN_Attention(
            width,
            attention_units=list(model["attention_hidden"]),
            hidden_activations=_activation(model["attention_activation"]),
            dropout_rate=model["attention_dropout"],
            use_softmax=model["softmax"],
        )
        self.mlp = mlp(2 * width, model)

    def logit(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return [B, 1]."""
        vectors = self.embedding(inputs)
        target = torch.cat([vectors[candidate] for candidate, _ in self.pairs], -1)
        history = torch.cat([vectors[sequence] for _, sequence in self.pairs], -1)
        mask = inputs[self.pairs[0][1]] != 0
        interest = self.attention(target, history, mask)
        return self.mlp(torch.cat([target, interest], 1))


MODELS = {"deepfm": DeepFM, "dcnv2": DCNv2, "autoint": AutoInt, "din": DIN}


def feature_map(data: Data, split: Split, work: Path) -> FeatureMap:
    """Return the description of the columns that FuxiCTR's own feature build would have written."""
    features = FeatureMap("bench", str(work))
    features.labels = ["label"]
    for name in data.numeric:
        features.features[name] = {"source": "", "type": "numeric"}
    shared = {candidate.name for candidate, _ in data.histories}
    for one in data.candidates:
        padding = {"padding_idx": 0} if one.name in shared else {}
        size = {"vocab_size": one.rows}
        features.features[one.name] = {"source": "", "type": "categorical", **size, **padding}
    for candidate, one in data.histories:
        features.features[one.name] = {
            "source": "",
            "type": "sequence",
            "vocab_size": one.rows,
            "padding_idx": 0,
            "share_embedding": candidate.name,
            "max_len": split.ids[one.name].shape[1],
        }
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return features


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    seed_everything(job["seed"])
    data, work = Data.open(job), Path(job["work"])
    (work / "bench").mkdir()
    splits = {name: data.split(name) for name in data.rows}
    for name, split in splits.items():
        numeric = dict(zip(data.numeric, split.dense.T, strict=True))
        columns: dict[str, Any] = {"label": split.label, **numeric, **split.ids}
        np.savez(work / name, **columns)
    features = feature_map(data, splits["train"], work)
    model = MODELS[job["model"]["kind"]](features, job)
    common = {"batch_size": job["batch_size"], "data_format": "npz"}
    train, valid = RankDataLoader(
        features,
        "train",
        train_data=str(work / "train.npz"),
        valid_data=str(work / "valid.npz") if job["choose"] else None,
        **common,
    )
    test = RankDataLoader(features, "test", test_data=str(work / "test.npz"), **common)
    model.fit(train, epochs=job["epochs"], validation_data=valid)
    return {
        "parameters": count(model),
        "seconds": model.watch.seconds,
        **metrics(splits["test"].label, model.predict(test)),
        "note": "assembled from its layers; gradients are always clipped (norm 10); its npz loader "
        "with one worker process, which is faster than its Parquet loader",
    }


if __name__ == "__main__":
    answer(run, ("fuxictr",))
