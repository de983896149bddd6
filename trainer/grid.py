"""The grid of a sweep: axes, their cells, and what is tried in each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from trainer.config import RunConfig, load_config
from trainer.overrides import parse_override
from trainer.validation import ConfigError

Texts = tuple[str, ...]
"""Overrides ``key=value``."""

_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Axis:
    """Values of one key, as texts."""

    key: str
    values: Texts

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Return the axis of ``key=a,b,c``; commas within brackets do not part values.

        Raises:
            ValueError: it has no key, no value, one twice, or brackets that do not match.
        """
        key, _, listed = text.partition("=")
        values = split_values(listed)
        if not key or not all(values):
            raise ValueError(f"expected key=value,value, such as ratio=0.5,0.1, got {text!r}")
        if key == "train.seed":
            raise ValueError("train.seed: seeds are counted by --seeds")
        read = [parse_override(f"{key}={value}")[1] for value in values]
        twice = [value for at, value in enumerate(values) if read[at] in read[:at]]
        if twice:
            raise ValueError(f"{key}: {', '.join(twice)} given twice")
        return cls(key, values)

    def texts(self) -> list[str]:
        """Return ``key=value`` of every value."""
        return [f"{self.key}={value}" for value in self.values]


def split_values(text: str) -> Texts:
    """Split at commas that stand in no bracket.

    Raises:
        ValueError: a bracket is not closed, or closed without being open.
    """
    parts, depth = [""], 0
    for char in text:
        depth += _BRACKETS.get(char, 0)
        if depth < 0:
            break
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ValueError(f"brackets do not match in {text!r}")
    return tuple(part.strip() for part in parts)


@dataclass(frozen=True)
class Grid:
    """What a sweep runs.

    Attributes:
        recipe: name of a recipe or path of a YAML file.
        overrides: of all cells.
        over: axes; their product is the cells.
        tune: axes whose product is tried in every cell, on the first seed.
        seeds: runs of each cell: seeds 0, 1, ...
    """

    recipe: str
    overrides: Texts = ()
    over: tuple[Axis, ...] = ()
    tune: tuple[Axis, ...] = ()
    seeds: int = 1
    _configs: dict[tuple[Texts, int], RunConfig] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if any(parse_override(text)[0] == ("train", "seed") for text in self.overrides):
            raise ValueError("train.seed: seeds are counted by --seeds; leave it out")
        keys = [axis.key for axis in (*self.over, *self.tune)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: more than one axis of this key")

    @cached_property
    def cells(self) -> list[Texts]:
        """Overrides of every cell."""
        return list(product(*(axis.texts() for axis in self.over)))

    @cached_property
    def tunings(self) -> list[Texts]:
        """Overrides of everything that is tried in a cell; one empty one without tuning."""
        return list(product(*(axis.texts() for axis in self.tune)))

    def base(self) -> RunConfig:
        """Return the configuration that the cells change."""
        return load_config(self.recipe, self.overrides).config

    def config(self, changes: Texts, seed: int) -> RunConfig:
        """Return the configuration of a run."""
        if (changes, seed) not in self._configs:
            given = (*self.overrides, *changes, f"train.seed={seed}")
            self._configs[changes, seed] = load_config(self.recipe, given).config
        return self._configs[changes, seed]

    def check(self) -> None:
        """Raise ValueError with all that is wrong with the cells, each problem once."""
        lines: dict[str, None] = {}
        for cell, tuned in product(self.cells, self.tunings):
            try:
                self.config((*cell, *tuned), 0)
            except ConfigError as error:
                lines |= dict.fromkeys(str(error).splitlines()[1:])
        if lines:
            raise ValueError("\n".join([f"{self.recipe}: the cells have problems", *lines]))
