"""The contract of a compressor: read this first when adding one.

An embedding table is three decisions, each an axis with one file a method:

    sharing    id -> row(s)          embtables/sharing/<kind>.py      class below @sharings.register
    width      row -> dimensions     embtables/width/<kind>.py        class below @widths.register
    precision  dimension -> bits     embtables/precision/<kind>.py    class below @precisions.register

A method's file holds its paper, a frozen `Config` (its `kind` is the file's name) and its class; the
decorator is the only wiring. `TableConfig` joins one method of each axis and reads the compact form
``hash+mde+int8``, or ``multiplex(lookups=2)+fp16``; a part left out is full, uniform or fp32.

How a size is found. A byte budget becomes one number, the `share` in [0, 1], that every method turns
into sizes, monotonically: 1 leaves the table as it is, 0 is the smallest the method can be. The
largest share whose bytes fit is taken (`embtables.budget`). A table that a method would not shrink
stays a plain table.

How a batch flows. The features of one model are cut into groups of one method and one stored width.
A group holds S segments (a segment: the ids of one feature, in the order of the batch), n ids in all:

    Sharing.encode   ids [n]            -> rows [K, n]       K rows read for each id, or fewer
    RowStore         rows [K, n]        -> vectors [.., W]   the K rows of an id combined as
                                                             `Sharing.combine` says, and pooled if
                                                             `Width.linear`; W: stored width
    Width.decode     [.., W], rows      -> [.., D]           D: width granted to the model

where ".." is [S, B] if every bag of the batch holds one id or has been pooled, so that the rest is a
matter of strides, and [n] otherwise.

A width that learns its structure while training names its `Search` (`embtables.search`): the stages
of training, what is learned in each, and what is pruned or narrowed at its end.

All of it is tensor code over the whole group: constants of a segment are spread over its ids by
`Segments`, never by a loop. Everything a method learns or fits must be a parameter or a persistent
buffer of its module: that is what is trained, saved, packed and counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor, nn

from embtables.registry import Config, Registry, nearest

if TYPE_CHECKING:
    from embtables.search import Search


@dataclass(frozen=True)
class Table:
    """A logical table while its size is being decided.

    Attributes:
        name: its name; hashes are salted by it.
        rows: ids of a closed vocabulary, or distinct training ids of an open one.
        dim: width D the model asks for.
        open: True if any 64-bit id may come.
        width: stored width W, set by the width axis (W <= D).
        ordered: whether ids come by falling training count, as a dictionary makes them (id 0, which
            may stand for all rare ids, is not looked at).
        counts: [rows] training count of each id, or None where they are not known. A packed table
            has none.
    """

    name: str
    rows: int
    dim: int
    open: bool = False
    width: int = 0
    ordered: bool = False
    counts: np.ndarray | None = field(default=None, compare=False, repr=False)

    def narrowed(self, width: int) -> Table:
        """Return the table with a stored width."""
        return replace(self, width=width)


@dataclass(frozen=True)
class RowTable:
    """A physical table: rows that exist.

    Attributes:
        name: unique name. Two logical tables that name one physical table share its rows.
        rows: number of rows.
        dim: numbers in a row.
        scale: factor on the standard deviation of the initial values.
        mean: mean of the initial values.
    """

    name: str
    rows: int
    dim: int
    scale: float = 1.0
    mean: float = 0.0


class Segments:
    """How the n ids of a group are cut into S segments, to spread constants over ids.

    Args:
        lengths: [S] ids of each segment.
        single: every bag holds one id. Ids are then handled as [S, B] and a constant is broadcast;
            otherwise ids are flat and a constant is gathered.
    """

    def __init__(self, lengths: Sequence[int], single: bool = False) -> None:
        self.lengths = list(lengths)
        self.total = sum(self.lengths)
        self.single = single and self.total > 0
        self._index: Tensor | None = None

    def shape(self, ids: Tensor) -> Tensor:
        """View ids [n] so that they broadcast with spread constants: [S, B] or [n]."""
        return ids.view(len(self.lengths), -1) if self.single else ids

    def spread(self, constants: Tensor) -> Tensor:
        """Spread [..., S] over ids: [..., S, 1] or [..., n]."""
        if self.single:
            return constants.unsqueeze(-1)
        return constants[..., self.index(constants.device)]

    def spread_vectors(self, constants: Tensor) -> Tensor:
        """Spread [S, D] over the vectors of ids: [S, 1, D] or [n, D]."""
        return self.spread(constants.T).movedim(0, -1)

    def index(self, device: torch.device) -> Tensor:
        """Return [n], the segment of each id."""
        if self._index is None:
            lengths = torch.tensor(self.lengths, device=device)
            order = torch.arange(len(self.lengths), device=device)
            self._index = torch.repeat_interleave(order, lengths, output_size=self.total)
        return self._index

    @cached_property
    def bounds(self) -> np.ndarray:
        """First position of each segment, and n: int64 [S + 1]."""
        # NumPy's sum of a short list takes longer than the rest of a small look-up's bookkeeping.
        return np.fromiter(accumulate(self.lengths, initial=0), np.int64, len(self.lengths) + 1)


@dataclass(frozen=True)
class Bags:
    """What is added up: bag o holds the vectors of ids offsets[o] .. offsets[o + 1] - 1.

    The ids of a feature that is not pooled are bags of one, behind those of the pooled features.

    Attributes:
        offsets: [O + 1] int64.
        divisors: [O] what each sum is divided by, or None.
        weights: [n] factor of each vector, or None.
        segments: how the O sums are cut into segments.
    """

    offsets: Tensor
    divisors: Tensor | None
    weights: Tensor | None
    segments: Segments


Combine = Literal["concat", "sum", "mult"]
"""How the K rows of an id become one vector: side by side, added, or multiplied."""


class Pairs(NamedTuple):
    """Ids of two tables that occur together in training rows: [m], [m], and the labels [m]."""

    left: np.ndarray
    right: np.ndarray
    labels: np.ndarray


class Interactions(Protocol):
    """Which ids occur together in the training rows."""

    def partner(self, table: str, named: str | None = None) -> str:
        """Return what a table learns against: the named one, unless it has the same ids.

        For those, and where nothing is named, it is the largest table with other ids.
        """
        ...

    def pairs(self, left: str, right: str) -> Pairs:
        """Return the ids of two tables in the training rows, one pair a row."""
        ...


class Sharing(nn.Module, ABC):
    """Which rows an id reads. One instance serves one group.

    Args:
        config: the method's Config.
        tables: [S] logical table of each segment, with its stored width.
        places: [S] physical tables of each segment, K each, from `allocate`.
    """

    Config: ClassVar[type[Config]]
    sized: ClassVar[bool] = True
    """Whether `allocate` follows the share; False for a method that has one size."""
    counted: ClassVar[bool] = False
    """Whether `allocate` needs the training counts of the tables."""

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__()
        self.config = config
        self.width = tables[0].width

    @property
    def combine(self) -> Combine:
        """How the K rows of an id become one vector; a concatenation is cut off at W numbers."""
        return "concat"

    @property
    def skips(self) -> bool:
        """Whether `encode` may say -1: no row is read there, zeros stand for it, nothing is trained."""
        return False

    @classmethod
    @abstractmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """Return the physical tables of each logical table; one left out stays a plain table.

        Args:
            config: the method's Config.
            tables: all logical tables that use this config, with stored widths.
            share: 0 (smallest) .. 1 (nothing saved). Total size must not fall as share rises.
        """

    @classmethod
    def map_bytes(cls, config: Any, table: Table, places: Sequence[RowTable]) -> int:
        """Return the bytes of what a table needs beside its rows to find them (a map)."""
        return 0

    def fit(self, interactions: Interactions | None) -> None:
        """Learn maps from training rows, once, before training; counts are in the tables.

        Args:
            interactions: which ids occur together, or None where nobody knows.

        Raises:
            ValueError: what the method needs is not known.
        """

    def assign(self, table: str, known: Pairs, new: Pairs) -> int:
        """Give ids that `fit` saw in no pair the row of ids that share their neighbours.

        Args:
            table: logical table; its ids are the left ones of the pairs.
            known: the training pairs that `fit` saw.
            new: further pairs.

        Returns:
            How many ids have such a row now.

        Raises:
            ValueError: the method reads no pairs.
        """
        raise ValueError(
            f"the ids of table {table!r} are not clustered by pairs: graphhash and double_graphhash do"
        )

    @abstractmethod
    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return rows [K, n] of ids [n], each in its physical table; -1 only if `skips`."""

    def cut(self, vectors: Tensor) -> Tensor:
        """Return combined vectors at the stored width W; the backward of a slice would copy them."""
        return vectors if vectors.shape[-1] == self.width else vectors[..., : self.width]


class Width(nn.Module, ABC):
    """How wide a stored row is, and how it becomes what the model reads. One instance a group.

    Args:
        config: the method's Config.
        tables: [S] logical table of each segment, with its stored width.
    """

    Config: ClassVar[type[Config]]
    prunes: ClassVar[bool] = False
    """Whether numbers of the rows may be zeros that stay zero, and are packed away."""

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__()
        self.config = config

    @property
    def linear(self) -> bool:
        """Whether `decode` is linear and one for all ids of a segment: bags are then added up first."""
        return True

    @classmethod
    def sized(cls, config: Any) -> bool:
        """Whether the widths follow the share. Without any such method a budget calls `widths` too."""
        return True

    @classmethod
    @abstractmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """Return the stored width of each table, not falling as share rises; D at share 1."""

    @classmethod
    def granted(cls, table: Table) -> int:
        """Return the width D that the model gets for a table with its stored width."""
        return table.dim

    @classmethod
    def search(cls, config: Any) -> type[Search] | None:
        """Return how the structure is learned while training, or None where it is not.

        The size of the tables is then met by the search: a budget takes their rows for as large as the
        share says.
        """
        return None

    @classmethod
    def needs(cls, config: Any) -> Literal["any rows", "one row", "own rows"]:
        """Return what the sharing must offer: one row an id, or that of a table of one's own too."""
        return "any rows"

    @classmethod
    def extra_numbers(cls, config: Any, table: Table) -> dict[str, int]:
        """Return name -> float32 numbers that a table needs beside its rows (a projection).

        What two tables give one name is one.
        """
        return {}

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial values of what the method learns."""

    @abstractmethod
    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return [.., D] from stored vectors [.., W]; ".." as in the module's text.

        Args:
            vectors: combined vectors, of bags where they were added up first.
            rows: [K, n] rows read for each id, as `Sharing.encode` returned them.
            segments: how the vectors are cut into S segments.
        """


Parts = dict[str, Tensor]
"""Stored form of rows: named tensors whose first dimension is the row."""


class Precision(ABC):
    """Which bits hold a row."""

    Config: ClassVar[type[Config]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def while_training(self) -> bool:
        """Whether rows are held in these bits during training, or only once packed."""
        return False

    @abstractmethod
    def row_bytes(self, dim: int) -> int:
        """Return the bytes of one row of `dim` numbers."""

    @abstractmethod
    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        """Return the stored form of rows [n, d].

        Args:
            rows: float32.
            noise: rounds stochastically (unbiased) with this generator, to nearest without it.
        """

    @abstractmethod
    def decode(self, parts: Parts) -> Tensor:
        """Return float32 rows [n, d] of the stored form."""


sharings: Registry[Sharing] = Registry("embtables.sharing", "sharing")
widths: Registry[Width] = Registry("embtables.width", "width")
precisions: Registry[Precision] = Registry("embtables.precision", "precision")
AXES: dict[str, Registry[Any]] = {"sharing": sharings, "width": widths, "precision": precisions}
DEFAULTS = {"sharing": "full", "width": "uniform", "precision": "fp32"}


def _axis(registry: Registry[Any]) -> Any:
    """Validator of one axis: a Config, a mapping with its kind, or the kind alone."""

    def read(value: Any) -> Any:
        options = {"kind": value} if isinstance(value, str) else value
        if isinstance(value, Config):
            options = value.model_dump()
        if not isinstance(options, dict) or not isinstance(options.get("kind"), str):
            raise ValueError(f'say which {registry.what}: "kind" is missing (got {value!r})')
        method = registry.get(options["kind"]).Config
        try:
            return method.model_validate(options)
        except ValidationError as error:
            raise ValueError(_problems(options["kind"], method, error)) from None

    return Annotated[Any, BeforeValidator(read)]


def _problems(kind: str, method: type[Config], error: ValidationError) -> str:
    """Return what is wrong with the options of a method, in one line."""
    known = sorted(method.model_fields.keys() - {"kind"})
    found = []
    for problem in error.errors():
        option = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            options = ", ".join(known) or "none"
            found.append(
                f"{kind} has no option {option!r}.{nearest(option, known)} Options: {options}"
            )
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found.append(f"{kind}: {option}: {message} (got {problem['input']!r})")
    return "; ".join(found)


class TableConfig(Config):
    """One method of each axis: what a table is made of."""

    sharing: _axis(sharings) = Field(default="full", validate_default=True)  # pyright: ignore[reportInvalidTypeForm]
    width: _axis(widths) = Field(default="uniform", validate_default=True)  # pyright: ignore[reportInvalidTypeForm]
    precision: _axis(precisions) = Field(default="fp32", validate_default=True)  # pyright: ignore[reportInvalidTypeForm]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _parse(value) if isinstance(value, str) else value

    def __str__(self) -> str:
        """Return the compact form, e.g. ``hash+mde+int8``; it reads back as the same config."""
        parts = [self._part(axis) for axis in AXES]
        return "+".join(part for part in parts if part) or "full"

    def _part(self, axis: str) -> str:
        config = getattr(self, axis)
        options = config.model_dump(exclude_defaults=True, exclude={"kind"})
        if not options:
            return "" if config.kind == DEFAULTS[axis] else config.kind
        text = ", ".join(
            f"{key}={yaml.dump(value).split(chr(10))[0]}" for key, value in options.items()
        )
        return f"{config.kind}({text})"


def parse_table(value: str | dict[str, Any] | TableConfig) -> TableConfig:
    """Return the TableConfig of a compact form, a mapping, or itself.

    Raises:
        ValueError: unknown method or option, two methods of one axis, or a malformed text.
    """
    return TableConfig.model_validate(value)


def _parse(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in _split(text, "+"):
        kind, options = _call(part)
        axis = next((axis for axis, registry in AXES.items() if kind in registry.names()), None)
        if axis is None:
            known = [name for registry in AXES.values() for name in registry.names()]
            raise ValueError(
                f"unknown method {kind!r} in {text!r}.{nearest(kind, known)} "
                + "; ".join(f"{axis}: {', '.join(reg.names())}" for axis, reg in AXES.items())
            )
        if axis in found:
            raise ValueError(f"{text!r} names two methods of the {axis} axis; choose one")
        found[axis] = {"kind": kind, **options}
    return found


def _call(part: str) -> tuple[str, dict[str, Any]]:
    """Read ``kind`` or ``kind(option=value, ...)``."""
    kind, bracket, rest = part.partition("(")
    if not bracket:
        return kind.strip(), {}
    if not rest.rstrip().endswith(")"):
        raise ValueError(f"{part!r}: the bracket is not closed")
    options = {}
    for option in _split(rest.rstrip()[:-1], ","):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"{part!r}: expected option=value, got {option.strip()!r}")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{part!r}: cannot read {value.strip()!r} as a value") from None
    return kind.strip(), options


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside brackets."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
