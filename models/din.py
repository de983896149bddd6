"""DIN: a history weighted by an MLP that compares each behaviour with the candidate.

u = sum_t a(q, k_t) k_t, a = MLP([q, k, q - k, q * k]);  logit = head([e_1, ..., e_F, x, u])
(arXiv 1706.06978; the details follow FuxiCTR). Behaviours and candidate share their tables.

Shape letters: B rows of a batch, F categorical fields, N numeric columns, T length of a history
(jagged), L behaviours of all histories of the batch together, E width of a behaviour
(of all its fields side by side).

    lengths [2, 0, 3]:    row 0 | k k |    row 1 | |    row 2 | k k k |        L = 5
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.features import Feature
from models.base import CTRModel, InputField, Inputs, ModelConfig, models
from models.layers import MLP, Activation, DropoutRate, Widths, field_names, flatten, main_features

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class DINConfig(ModelConfig):
    """Options of DIN."""

    kind: Literal["din"] = "din"
    history: Literal["attention", "mean"] = Field(
        "attention", description="mean: the baseline, same head on mean-pooled histories"
    )
    softmax: bool = Field(False, description="normalise the attention weights of a history")
    attention_hidden: Widths = Field((64, 32), description="hidden layers of the attention MLP")
    attention_activation: Activation = "dice"
    attention_dropout: DropoutRate = 0.0
    hidden: Widths = Field((256, 128), description="hidden layers of the head")
    activation: Activation = "dice"
    batch_norm: bool = Field(False, description="BatchNorm in every hidden layer of the head")
    dropout: DropoutRate = Field(0.0, description="after every hidden layer of the head")


@dataclass(frozen=True)
class History:
    """One stream of behaviours: (item, category, ...) of the candidate, and of each behaviour.

    Attributes:
        candidates: names of the categorical fields.
        behaviours: names of the sequence fields, paired with them one by one.
    """

    candidates: tuple[str, ...]
    behaviours: tuple[str, ...]


def pair_histories(inputs: Inputs) -> list[History]:
    """Pair each sequence with the first categorical field of its table.

    The first sequences of all tables form one stream, the second ones the next: (item, category)
    histories are attended to as one, clicked and skipped items as two.

    Raises:
        ValueError: no sequence field, or one whose table no categorical field reads.
    """
    candidates: dict[str, str] = {}
    for field in inputs.fields:
        if field.kind == "categorical":
            candidates.setdefault(field.table, field.name)

    seen: dict[str, int] = {}
    streams: list[tuple[int, str, str]] = []
    for field in inputs.fields:
        if field.kind == "sequence":
            if field.table not in candidates:
                raise ValueError(_no_candidate(field, candidates))
            stream = seen[field.table] = seen.get(field.table, -1) + 1
            streams.append((stream, candidates[field.table], field.name))
    if not streams:
        raise ValueError(
            "model.kind=din needs a field of kind sequence, but the data have none "
            f"(fields: {', '.join(field_names(inputs))}). Declare one, or take another model"
        )
    streams.sort(key=lambda pair: pair[0])
    groups = [list(group) for _, group in groupby(streams, key=lambda pair: pair[0])]
    return [History(tuple(p[1] for p in g), tuple(p[2] for p in g)) for g in groups]


def _no_candidate(field: InputField, candidates: dict[str, str]) -> str:
    known = ", ".join(f"{name} (table {table})" for table, name in candidates.items())
    return (
        f"model.kind=din: the sequence {field.name!r} reads table {field.table!r}, and no "
        f"categorical field does, so there is no candidate to compare it with. Categorical "
        f"fields: {known or 'none'}. Give the sequence the table of its candidate, "
        "or set model.history=mean"
    )


def segment_softmax(scores: Tensor, lengths: Tensor) -> Tensor:
    """Return the softmax [L] of scores [L] within each of B segments of `lengths` [B]."""

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(lengths, output_size=len(scores))

    peak = torch.segment_reduce(scores.detach(), "max", lengths=lengths)
    weights = torch.exp(scores - spread(peak))
    return weights / spread(torch.segment_reduce(weights, "sum", lengths=lengths))


class InterestAttention(nn.Module):
    """Local activation unit: u = sum_t a(q, k_t) k_t, or softmax_t a(q, k_t) as weights.

    Without softmax the sum keeps the intensity of the interest (paper, section 4.3). A history
    without behaviours gives a zero vector. Dice sees the L behaviours alone, no padding.

    Args:
        width: E.
        config: `attention_*` and `softmax`.
    """

    def __init__(self, width: int, config: DINConfig) -> None:
        super().__init__()
        self.softmax = config.softmax
        self.score = MLP(
            4 * width,
            config.attention_hidden,
            activation=config.attention_activation,
            dropout=config.attention_dropout,
        )

    def forward(self, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """Return interest [B, E] from query [B, E], keys [L, E] and lengths [B]."""
        q = query.repeat_interleave(lengths, 0, output_size=len(keys))
        weights = self.score(torch.cat([q, keys, q - keys, q * keys], 1))
        if self.softmax:
            weights = segment_softmax(weights, lengths)
        return torch.segment_reduce(weights.unsqueeze(1) * keys, "sum", lengths=lengths)


@models.register("din")
class DIN(CTRModel):
    """Deep interest network. Tables may have different widths."""

    Config = DINConfig

    @classmethod
    def embeddings(cls, config: DINConfig, inputs: Inputs) -> list[Feature]:
        """Return one vector a field; of a history, one a behaviour if it is attended to.

        Raises:
            ValueError: a history has no candidate.
        """
        if config.history == "mean":
            return main_features(inputs, config.dim)
        whole = {name for history in pair_histories(inputs) for name in history.behaviours}
        return [
            Feature(f.name, f.dim, f.key, f.table, "none" if f.name in whole else f.pooling)
            for f in main_features(inputs, config.dim)
        ]

    def __init__(self, config: DINConfig, inputs: Inputs, dims: dict[str, int]) -> None:
        super().__init__(config, inputs, dims)
        self.histories = pair_histories(inputs) if config.history == "attention" else []
        self.attention = nn.ModuleList(
            InterestAttention(_paired_width(history, dims), config) for history in self.histories
        )
        whole = {name for history in self.histories for name in history.behaviours}
        self.names = [name for name in field_names(inputs) if name not in whole]
        self.head = MLP(
            sum(dims[name] for name in field_names(inputs)) + len(inputs.numeric),
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def forward(
        self, dense: Tensor, pooled: KeyedTensor, sequences: dict[str, JaggedTensor]
    ) -> Tensor:
        """Return logits [B] from dense [B, N], pooled vectors and histories."""
        parts = [flatten(pooled, self.names), dense]
        for history, attention in zip(self.histories, self.attention, strict=True):
            keys, lengths = _join([sequences[name] for name in history.behaviours], history)
            parts.append(attention(flatten(pooled, history.candidates), keys, lengths))
        return self.head(torch.cat(parts, 1))


def _paired_width(history: History, dims: dict[str, int]) -> int:
    """Return E of a stream whose candidates and behaviours have pairwise equal widths."""
    for candidate, behaviour in zip(history.candidates, history.behaviours, strict=True):
        if dims[candidate] != dims[behaviour]:
            raise ValueError(
                f"model.kind=din compares {behaviour!r} with {candidate!r} number by number, but "
                f"the tables grant them widths {dims[behaviour]} and {dims[candidate]}. "
                "Choose a width method that gives both one width, or set model.history=mean"
            )
    return sum(dims[name] for name in history.candidates)


def _join(behaviours: list[JaggedTensor], history: History) -> tuple[Tensor, Tensor]:
    """Return the vectors [L, E] of several sequences side by side, and their lengths [B]."""
    lengths = behaviours[0].lengths()
    for name, other in zip(history.behaviours[1:], behaviours[1:], strict=True):
        if not torch.equal(lengths, other.lengths()):
            raise ValueError(
                f"the sequences {history.behaviours[0]!r} and {name!r} describe the same "
                "behaviours, so they must be equally long in every row; check how they are "
                "prepared (max_length must be the same)"
            )
    return torch.cat([sequence.values() for sequence in behaviours], 1), lengths
