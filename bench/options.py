"""Options as tables: those of a method, and docs/configuration.md with the keys of a whole run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from data.schema import Column
from data.source import SourceConfig
from embtables.compressor import TableConfig
from trainer.config import RunConfig
from trainer.validation import fields_of, variants_of

START = "## Keys\n"
COMMON = {"data": SourceConfig}
"""Section -> keys that all its kinds have."""
REQUIRED = "required"
TEXTS = ("table",)
"""Sections that are written as texts."""


def keys() -> str:
    """Return docs/configuration.md from `START` on: a table for every section, and for every kind."""
    sections = {name: variants_of(field.annotation) for name, field in fields_of(RunConfig).items()}
    sections = {name: kinds for name, kinds in sections.items() if kinds and name not in TEXTS}
    parts = [START, options(RunConfig, without=sections)]
    for name, kinds in sections.items():
        common = COMMON.get(name)
        usual = _default(fields_of(RunConfig)[name])
        parts += [f"### {name}", "Required." if usual == REQUIRED else f"Left out: {usual}."]
        if common is not None:
            parts += ["Every kind has these, and its own:", options(common)]
        for kind, model in kinds.items():
            if len(kinds) > 1:
                parts.append(f"**{name}.kind={kind}**: {(model.__doc__ or '').splitlines()[0]}")
            parts.append(options(model, without=_as_in(common, model)))
        if name == "data":
            parts += ["**data.columns** of csv and parquet is a list of:", options(Column)]
    return "\n\n".join(parts).replace(f"{START}\n", START) + "\n"


def options(model: type[BaseModel], without: Collection[str] = ()) -> str:
    """Return the table of a configuration's keys: name, default, description."""
    lines = list(_lines(model, without))
    return table(("name", "default", "description"), lines) if lines else "None."


def _as_in(common: type[BaseModel] | None, model: type[BaseModel]) -> list[str]:
    """Return the keys of a model that are told of what it has in common with others."""
    told = {} if common is None else fields_of(common)
    own = fields_of(model)
    return [
        name
        for name, field in told.items()
        if (_default(field), _described(field)) == (_default(own[name]), _described(own[name]))
    ]


def _lines(
    model: type[BaseModel], without: Collection[str], above: str = ""
) -> Iterator[tuple[str, str, str]]:
    for name, field in fields_of(model).items():
        if name in without or (name == "kind" and len(get_args(field.annotation)) < 2):
            continue
        yield f"`{above}{name}`", _default(field), _described(field)
        inner = list(variants_of(field.annotation).values())
        if len(inner) == 1 and name not in TEXTS and field.default == inner[0]():
            yield from _lines(inner[0], (), f"{above}{name}.")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return REQUIRED
    plain = str(value) if isinstance(value, TableConfig) else value
    return f"`{json.dumps(plain, default=to_jsonable_python)}`"


def _described(field: FieldInfo) -> str:
    described = [] if field.description is None else [field.description]
    if get_origin(field.annotation) is Literal:
        values = get_args(field.annotation)
        described.insert(0, ", ".join(f"`{value}`" for value in values))
    return ": ".join(described)


def table(head: tuple[str, ...], lines: list[Any]) -> str:
    """Return a Markdown table."""
    rows = [head, ("---",) * len(head), *lines]
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
