"""One file that predicts: packed tables, network weights and what is needed to build the model.

It reads a batch and gives logits, without the training data and without the training code.
Shape letters: B rows of a batch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embtables import EmbeddingTables, PackedTables
from embtables.tables import Lookup
from models.base import CTRModel, InputField, Inputs, ModelConfig, TwoTowers, models

if TYPE_CHECKING:
    from data.batch import Batch
    from embtables.torchrec_types import KeyedJaggedTensor

FORMAT = 1


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
    """

    tables: PackedTables

    def __init__(self, model: CTRModel, tables: PackedTables, inputs: Inputs) -> None:
        super().__init__(model.eval(), tables)
        self.inputs = inputs

    @classmethod
    def load(cls, file: str | Path) -> PackedModel:
        """Read a file that training (``RUN/model.safetensors``) or ``embtables export`` wrote.

        Raises:
            ValueError: the file is something else, or of a newer format.
        """
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
