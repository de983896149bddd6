"""CSV, TSV and the like, plain or gzip, with the columns declared in the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from data import text
from data.generic import GenericConfig, GenericSource
from data.source import Chunk, sources


class CsvConfig(GenericConfig):
    """Options of the csv source."""

    kind: Literal["csv"] = "csv"
    delimiter: Annotated[str, BeforeValidator(lambda given: "\t" if given == r"\t" else given)] = (
        Field(
            default=",",
            min_length=1,
            max_length=1,
            pattern=r"^[\x00-\x7f]$",
            description=r"one ASCII character; \t: a tab",
        )
    )
    names: tuple[str, ...] = Field(
        default=(), description="all columns of the files, if their first line is no header"
    )


@sources.register("csv")
class Csv(GenericSource):
    """Rows of delimited text; values may stand in double quotes, an empty one is missing."""

    Config = CsvConfig
    config: CsvConfig

    def layout(self) -> text.Layout:
        """Return the layout of the files."""
        return text.Layout(
            self.config.names, self.config.delimiter, quoted=True, label=self.config.label
        )

    def _type(self, cell: str) -> Literal["string"]:
        return "string"

    def _find(self, names: Sequence[str]) -> list[Path]:
        return text.find(self.config.root, names)

    def _read(self, path: Path, wanted: list[str]) -> Iterator[Chunk]:
        yield from text.read(path, self.layout(), wanted, self._parse, self.bad)
