"""MovieLens ratings as clicks: ml-1m, ml-100k, or a Parquet file of user, item, rating.

A rating of 4 or 5 is a click, 1 or 2 is none, and a 3 is left out: the protocol of the Unified
Embedding experiments (Coleman et al., NeurIPS 2023, arXiv 2305.12102). The files of one folder are
read whole: the largest of these data sets has a million rows.

Shape letters: n rows of a file or a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from data import text
from data.hashing import MISSING, string_keys
from data.rows import KEPT, Rows
from data.schema import Column
from data.source import Chunk, Source, SourceConfig, sources

CHUNK = 1 << 18

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flags at the end of a line of u.item, in file order."""

Layout = tuple[str, tuple[str, ...]]
"""Separator of a text file, names of its cells."""


@dataclass(frozen=True)
class Form:
    """One way in which the data set is distributed: names of the files, layout of the last two."""

    ratings: str
    users: str
    movies: str
    user_layout: Layout = ("::", ("user_id", "gender", "age", "occupation", "zip"))
    movie_layout: Layout = ("::", ("movie_id", "title", "genres"))


FORMS = (
    Form("ratings.dat", "users.dat", "movies.dat"),
    Form(
        "u.data",
        "u.user",
        "u.item",
        user_layout=("|", ("user_id", "age", "gender", "occupation", "zip")),
        movie_layout=("|", ("movie_id", "title", "released", "on_video", "url", *GENRES)),
    ),
    Form("ratings.parquet", "users.dat", "movies.dat"),
)


def _lines(path: Path, separator: str, names: tuple[str, ...]) -> Rows:
    """Return the rows of a text file without header; the separator may be longer than one byte."""
    try:
        # One column of whole lines; titles are ISO-8859-1, and nothing but ASCII is read from them.
        whole = pl.read_csv(
            path,
            has_header=False,
            separator="\x1f",
            quote_char=None,
            encoding="utf8-lossy",
            infer_schema=False,
        ).to_series()
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty") from None
    cells = whole.str.strip_chars_end("\r").str.split_exact(separator, len(names)).struct.unnest()
    good = (cells[:, -1].is_null() & cells[:, -2].is_not_null()).to_numpy()
    lines = np.arange(1, len(whole) + 1)
    reasons = {
        line: f"expected {len(names)} cells separated by {separator!r}, got {whole[line - 1]!r}"
        for line in lines[~good][:KEPT].tolist()
    }
    frame = cells[:, :-1].rename(dict(zip(cells.columns, names, strict=False)))
    frame = frame.with_columns(pl.all().replace("", None)).filter(good)
    return Rows(path, frame, lines[good], int((~good).sum()), reasons)


def _rating_rows(path: Path) -> Rows:
    if path.suffix != ".parquet":
        separator = "::" if path.suffix == ".dat" else "\t"
        return _lines(path, separator, ("user_id", "movie_id", "rating", "time"))
    try:
        frame = pl.read_parquet(path, columns=["user", "item", "rating"])
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: expected Parquet with user, item and rating: {error}") from error
    frame = frame.rename({"user": "user_id", "item": "movie_id"})
    return Rows(path, frame, np.arange(1, len(frame) + 1), unit="row ")


def _ids(rows: Rows, name: str) -> np.ndarray:
    """Return [n] int64 ids, which identify a line of the file."""
    rows.expect(name, rows.frame[name].is_null(), "an integer id")
    ids = rows.integers(name)
    rows.expect(name, ~pl.Series(ids).is_first_distinct(), "an id that no line before has")
    return ids


def _ratings(rows: Rows) -> pl.DataFrame:
    """Return [n] user_id, movie_id, rating (all int64)."""
    rating = rows.integers("rating")
    rows.expect("rating", (rating < 1) | (rating > 5), "a whole rating from 1 to 5")
    for name in ("user_id", "movie_id"):
        rows.expect(name, rows.frame[name].is_null(), "an integer id")
    ids = {name: rows.integers(name) for name in ("user_id", "movie_id")}
    return pl.DataFrame({**ids, "rating": rating})


def _users(rows: Rows) -> pl.DataFrame:
    """Return [n] raw keys of the user's fields."""
    strings = {name: rows.strings(name) for name in ("gender", "occupation", "zip")}
    return pl.DataFrame({"user_id": _ids(rows, "user_id"), "age": rows.integers("age"), **strings})


def _movies(rows: Rows) -> pl.DataFrame:
    """Return [n] raw keys of the year of release and of the genres (a list)."""
    year = rows.frame["title"].str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).fill_null(MISSING)
    if "genres" in rows.frame.columns:
        genres = rows.frame["genres"].fill_null("").str.split("|")
    else:
        flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES]
        genres = rows.frame.select(pl.concat_list(flags).list.drop_nulls()).to_series()
    names = genres.explode().drop_nulls().unique()
    names = names.filter(names != "")
    key = pl.element().replace_strict(names, string_keys(names), default=None).drop_nulls()
    return pl.DataFrame(
        {
            "movie_id": _ids(rows, "movie_id"),
            "year": year,
            "genres": genres.to_frame("genres").select(pl.col("genres").list.eval(key)).to_series(),
        }
    )


class MovieLensConfig(SourceConfig):
    """Options of the MovieLens source."""

    kind: Literal["movielens"] = "movielens"
    root: Path | None = Field(
        default=None, description="folder of ml-1m, of ml-100k, or of ratings.parquet and users.dat"
    )
    movie_features: bool = Field(
        default=False, description="add the movie's year and genres to the six fields"
    )


@sources.register("movielens")
class MovieLens(Source):
    """Rated movies by six fields, in the order of the ratings: 739,012 rows of ml-1m."""

    Config = MovieLensConfig
    config: MovieLensConfig
    group_name = "user_id"

    def columns(self) -> tuple[Column, ...]:
        """Return user, movie and the four fields of the user, then those of the movie if asked."""
        strings = ("gender", "occupation", "zip")
        fields = [
            Column(name=name, kind="categorical", type="string" if name in strings else "integer")
            for name in ("user_id", "movie_id", "gender", "age", "occupation", "zip")
        ]
        if self.config.movie_features:
            fields.append(Column(name="year", kind="categorical", type="integer"))
            fields.append(Column(name="genres", kind="multi", type="string", separator="|"))
        return tuple(fields)

    def inputs(self) -> list[Path]:
        """Return the files of ratings, users and, if their features are read, movies."""
        form = self._form()
        movies = [form.movies] if self.config.movie_features else []
        return text.find(self.config.root, [form.ratings, form.users, *movies])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows in the order of the ratings, without those rated 3."""
        frame = self._joined()
        for start in range(0, len(frame), CHUNK):
            yield self._chunk(frame[start : start + CHUNK])

    def _form(self) -> Form:
        root = self.config.root
        if root is None:
            raise ValueError("data.root is not given: the folder of the MovieLens files")
        for form in FORMS:
            if (root / form.ratings).is_file():
                return form
        known = " or ".join(form.ratings for form in FORMS)
        raise ValueError(f"data.root={root}: expected a folder that holds {known}")

    def _joined(self) -> pl.DataFrame:
        """Return the rows that are not rated 3, with the keys of user and movie."""
        form = self._form()
        path, *others = self.inputs()
        tables = [_lines(others[0], *form.user_layout).read(_users, self.bad)]
        if self.config.movie_features:
            tables.append(_lines(others[1], *form.movie_layout).read(_movies, self.bad))

        def parse(rows: Rows) -> pl.DataFrame:
            frame = _ratings(rows)
            for file, table in zip(others, tables, strict=True):
                key = table.columns[0]
                rows.expect(key, ~frame[key].is_in(table[key].implode()), f"an id of {file.name}")
            return frame

        frame = _rating_rows(path).read(parse, self.bad).filter(pl.col("rating") != 3)
        for table in tables:
            frame = frame.join(table, on=table.columns[0], how="left", maintain_order="left")
        return frame

    def _chunk(self, frame: pl.DataFrame) -> Chunk:
        single = {
            c.name: frame[c.name].to_numpy() for c in self.columns() if c.kind == "categorical"
        }
        jagged = {}
        if self.config.movie_features:
            genres = frame["genres"]
            lengths = genres.list.len().cast(pl.Int64).to_numpy()
            jagged["genres"] = (genres.explode(empty_as_null=False).to_numpy(), lengths)
        return Chunk(
            label=(frame["rating"] > 3).cast(pl.Float32).to_numpy(),
            single=single,
            jagged=jagged,
            group=single["user_id"],
        )
