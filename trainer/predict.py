"""What predicts without the training data and without the training code.

One file holds packed tables, network weights and what is needed to build the model; it reads batches of
ids. A directory of `embtables export` holds that file and what turns raw rows into such batches
(`data.encoder`).

    model.safetensors     encoder.json  vocabulary.safetensors     checksums.json

Shape letters: B rows of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embtables import EmbeddingTables, PackedTables
from embtables.tables import Lookup
from models.base import CTRModel, InputField, Inputs, ModelConfig, TwoTowers, models

if TYPE_CHECKING:
    from data.batch import Batch
    from data.encoder import Encoder, Frame
    from embtables.torchrec_types import KeyedJaggedTensor

FORMAT = 1

ROWS = 16384
"""Rows predicted at a time: the default of `train.eval_batch_size`, so that products round alike."""


class Predictor:
    """A model on its tables, trained or packed.

    Args:
        model: the network.
        tables: its embedding tables.
        device: where both are.
        bfloat16: compute the network in bfloat16.
    """

    def __init__(
        self,
        model: CTRModel,
        tables: Lookup,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
    ) -> None:
        self.model, self.tables = model, tables
        self.device, self.bfloat16 = torch.device(device), bfloat16

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return logits [B]; the probability of a click is their sigmoid."""
        self._rest()
        return self.forward(batch.to(self.device)).float()

    @torch.no_grad()
    def towers(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Return the user and item vectors [B, D] of a model that has them."""
        assert isinstance(self.model, TwoTowers)
        self._rest()
        pooled, _ = self.tables.lookup(features.to(self.device))
        with self._precision():
            return self.model.towers(pooled)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits [B] with gradients, of a batch on the device."""
        pooled, sequences = self.tables.lookup(batch.features)
        with self._precision():
            return self.model(batch.dense, pooled, sequences)

    def _rest(self) -> None:
        self.model.eval()
        self.tables.eval()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


class PackedModel(Predictor):
    """A trained model on packed tables.

    Args:
        model: the network.
        tables: its embedding tables in the form that is served.
        inputs: the columns that the model reads.
        encoder: turns raw rows into batches; None where ids alone are read.
    """

    tables: PackedTables

    def __init__(
        self,
        model: CTRModel,
        tables: PackedTables,
        inputs: Inputs,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__(model.eval(), tables)
        self.inputs, self.encoder = inputs, encoder

    def predict(self, rows: Frame) -> np.ndarray:
        """Return the probability [B] float64 of a click for each of B raw rows.

        It is the sigmoid of the logit. Where training ranked items (``train.loss=bpr``) it is no
        probability, but it ranks.

        Args:
            rows: a polars or pandas frame, or column -> B raw values.

        Raises:
            ValueError: a column is missing, a value is not what its column holds, or the model was
                loaded from a file, which reads ids.
        """
        return probabilities(self(self._encoder().batch(rows)))

    def predict_file(self, path: str | Path) -> Iterator[np.ndarray]:
        """Yield the probabilities [B] float64 of the rows of a TSV, CSV or Parquet file, in order.

        Raises:
            ValueError: as `predict`; the message names file and line.
        """
        for batch in self._encoder().batches(Path(path), ROWS):
            yield probabilities(self(batch))

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            raise ValueError(
                "this model was loaded from a file, which reads batches of ids; to predict raw rows "
                "load a directory that embtables export wrote"
            )
        return self.encoder

    @classmethod
    def load(cls, path: str | Path) -> PackedModel:
        """Read a directory of ``embtables export``, or a file (``RUN/model.safetensors``) for ids alone.

        Raises:
            ValueError: it is something else, damaged, or of a newer format.
        """
        path = Path(path)
        if path.is_file():
            return cls._load(path)
        from data.encoder import Encoder
        from data.store import verify_checksums

        if not all((path / name).is_file() for name in ("encoder.json", "checksums.json")):
            raise ValueError(
                f"{path}: not an exported model; write one with: embtables export RUN -o DIR"
            )
        verify_checksums(path, "Export the run again, or copy the whole directory again")
        model = cls._load(path / "model.safetensors")
        model.encoder = Encoder.load(path)
        return model

    @classmethod
    def _load(cls, file: Path) -> PackedModel:
        try:
            with safe_open(file, framework="pt") as stored:
                about = json.loads((stored.metadata() or {}).get("embtables_model", "{}"))
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file}: not an exported model ({error})") from None
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{file}: not an exported model of format {FORMAT}; "
                "write one with: embtables export RUN"
            )
        return cls._build(about, tensors)

    @classmethod
    def _build(cls, about: dict[str, Any], tensors: dict[str, Tensor]) -> PackedModel:
        tables = PackedTables.from_tensors(_taken("tables/", tensors), about["tables"])
        fields = tuple(InputField(**field) for field in about["inputs"]["fields"])
        inputs = Inputs(tuple(about["inputs"]["numeric"]), fields)
        kind = models.get(about["model"]["kind"])
        model = kind(kind.Config(**about["model"]), inputs, tables.dims)
        model.load_state_dict(_taken("model/", tensors))
        return cls(model, tables, inputs)


def probabilities(logits: Tensor) -> np.ndarray:
    """Return the sigmoid [B] float64 of logits [B]."""
    return torch.sigmoid(logits.double()).numpy()


def save(
    file: Path, model: CTRModel, config: ModelConfig, inputs: Inputs, tables: EmbeddingTables
) -> None:
    """Pack the tables and write everything that predicts into one safetensors file.

    Args:
        file: where to; replaced only when the new one is whole.
        model: the network.
        config: its options.
        inputs: the columns it reads.
        tables: its trained tables.
    """
    packed, plan = tables.pack_tensors()
    stored = {f"tables/{name}": tensor for name, tensor in packed.items()}
    for name, tensor in model.state_dict().items():
        stored[f"model/{name}"] = tensor.detach().cpu().contiguous()
    about = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "inputs": asdict(inputs),
        "tables": plan,
    }
    temporary = file.with_name(f".{file.name}.part")
    save_file(stored, temporary, metadata={"embtables_model": json.dumps(about)})
    temporary.replace(file)


def _taken(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
