"""Amazon reviews as clicks with a history, by the sample recipe of DIN.

Each position i >= 1 of a user's reviews in time order gives two rows with the history before it:
the reviewed item as a click, and an item the user never reviews as none (Zhou et al., KDD 2018,
arXiv:1706.06978, and its public demo). The last position of each user is tested. The position
before it validates, unlike in the demo, which chooses its epoch on test.

Shape letters: E reviews of all users, U users, I items, S rows of a chunk, H its history ids.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from data import text
from data.hashing import MISSING, string_keys
from data.rows import BadRows, Rows
from data.schema import Column
from data.source import Chunk, Source, SourceConfig, SplitConfig, sources
from embtables.registry import nearest

CHUNK = 1 << 14
"""Reviews that make one chunk; each gives two rows."""

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Reviews:
    """All reviews by user and time.

    Attributes:
        starts: [U+1] where each user's reviews begin, and E.
        item: [E] item of each review, 0 .. I-1.
        user_keys: [U] raw keys. item_keys, category_keys: [I] raw keys.
    """

    starts: np.ndarray
    item: np.ndarray
    user_keys: np.ndarray
    item_keys: np.ndarray
    category_keys: np.ndarray

    @cached_property
    def user(self) -> np.ndarray:
        """[E] user of each review, 0 .. U-1."""
        return np.repeat(np.arange(len(self.user_keys)), np.diff(self.starts))

    @cached_property
    def split(self) -> np.ndarray:
        """[E] uint8: a user's last review is tested, the one before it validates."""
        split = np.full(len(self.item), TRAIN, np.uint8)
        ends, lengths = self.starts[1:], np.diff(self.starts)
        split[ends[lengths > 1] - 2] = VALID
        split[ends[lengths > 0] - 1] = TEST
        return split

    @cached_property
    def before(self) -> np.ndarray:
        """[E] number of reviews of the same user before each review."""
        return np.arange(len(self.item)) - np.repeat(self.starts[:-1], np.diff(self.starts))


def collect(user: np.ndarray, item: np.ndarray, categories: dict[int, int]) -> Reviews:
    """Return the reviews of [E] raw user and item keys, each user's already in time order.

    Args:
        user: [E] raw keys, in any order of users.
        item: [E] raw keys.
        categories: raw item key -> raw category key; items without one get `MISSING`.
    """
    user_keys, user_codes = np.unique(user, return_inverse=True)
    item_keys, item_codes = np.unique(item, return_inverse=True)
    order = np.argsort(user_codes, kind="stable")
    starts = np.searchsorted(user_codes[order], np.arange(len(user_keys) + 1))
    known = pl.Series(item_keys).replace_strict(categories, default=MISSING, return_dtype=pl.Int64)
    return Reviews(starts, item_codes[order], user_keys, item_keys, known.to_numpy())


def draw_negatives(reviews: Reviews, how: Literal["uniform", "frequency"], seed: int) -> np.ndarray:
    """Return [E] items: for each review but a user's first, one that the user never reviews.

    Items are drawn uniformly, or by how often they occur in the training reviews, and drawn again
    while they are in the user's whole list, future included. A user's first review has no rows, and
    the item beside it means nothing.

    Raises:
        ValueError: a user has reviewed every item that can be drawn.
    """
    items = len(reviews.item_keys)
    counts = np.ones(items, np.int64)
    if how == "frequency":
        counts = np.bincount(reviews.item[reviews.split == TRAIN], minlength=items)
    used = np.unique(reviews.user * items + reviews.item)
    left = (counts > 0).sum() - np.bincount(used // items, counts[used % items] > 0)
    stuck = np.flatnonzero((left == 0) & (np.diff(reviews.starts) > 1))
    if len(stuck):
        raise ValueError(
            f"data.negatives={how}: {len(stuck)} users (the first is number {stuck[0] + 1}) have "
            f"reviewed all of the {(counts > 0).sum()} items that can be drawn. Use more reviews"
        )
    rng = np.random.default_rng(seed)
    ends = np.cumsum(counts)
    negative = np.zeros_like(reviews.item)
    pending, user = np.flatnonzero(reviews.before > 0), reviews.user
    while len(pending):
        drawn = np.searchsorted(ends, rng.integers(ends[-1], size=len(pending)), side="right")
        negative[pending] = drawn
        key = user[pending] * items + drawn
        pending = pending[used[np.searchsorted(used, key).clip(max=len(used) - 1)] == key]
    return negative


class AmazonConfig(SourceConfig):
    """Options of the Amazon source."""

    kind: Literal["amazon"] = "amazon"
    root: Path | None = Field(
        default=None,
        description="folder of reviews_X_5.json and meta_X.json (or .gz), or of X.txt and "
        "X_item2attributes.json",
    )
    category: str | None = Field(default=None, description="X above, if the folder holds several")
    negatives: Literal["uniform", "frequency"] = Field(
        default="uniform", description="items never reviewed: all alike, or by training frequency"
    )
    max_length: int = Field(
        default=100, ge=1, description="reviews kept of a history, the last ones"
    )
    seed: int = Field(default=0, ge=0, description="of the negatives")
    split: SplitConfig = SplitConfig(kind="fixed")


@sources.register("amazon")
class Amazon(Source):
    """Two rows a review, user by user; the 5-core reviews are held in memory as integers."""

    Config = AmazonConfig
    config: AmazonConfig
    group_name = "user"

    def columns(self) -> tuple[Column, ...]:
        """Return the candidate's item and category, and the history's, which share their tables."""
        id_type = "integer" if self._numbered(self.inputs()) else "string"
        one = partial(Column, kind="categorical", type=id_type)
        past = partial(
            Column,
            kind="sequence",
            type=id_type,
            separator="|",
            max_length=self.config.max_length,
        )
        return (
            one(name="item"),
            one(name="category"),
            past(name="item_history", table="item"),
            past(name="category_history", table="category"),
        )

    def inputs(self) -> list[Path]:
        """Return the file of reviews and the file of categories."""
        root = self.config.root
        if root is None:
            raise ValueError("data.root is not given: the folder of the reviews and their metadata")
        found = _forms(root)
        if not found:
            raise ValueError(
                f"data.root={root}: expected a folder that holds reviews_<category>_5.json or "
                "<category>_item2attributes.json"
            )
        names = sorted(found)
        name = self.config.category or names[0]
        if self.config.category is None and len(found) > 1:
            raise ValueError(f"data.root={root} holds {', '.join(names)}: choose by data.category=")
        if name not in found:
            raise ValueError(
                f"data.category={name}: not in data.root={root}.{nearest(name, names)} "
                f"It holds {', '.join(names)}"
            )
        return text.find(root, [part.format(name) for part in found[name]])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows user by user."""
        reviews = self._reviews()
        negative = draw_negatives(reviews, self.config.negatives, self.config.seed)
        with_history = np.flatnonzero(reviews.before > 0)
        for start in range(0, len(with_history), CHUNK):
            yield self._chunk(reviews, negative, with_history[start : start + CHUNK])

    def _reviews(self) -> Reviews:
        reviews, categories = files = self.inputs()
        if self._numbered(files):
            user, item = _read_lists(reviews, self.bad)
            return collect(user, item, _read_attributes(categories))
        user, item = _read_reviews(reviews, self.bad)
        return collect(user, item, _read_metadata(categories, np.unique(item), self.bad))

    def _numbered(self, inputs: list[Path]) -> bool:
        """Return whether items and categories are numbers in the files."""
        return inputs[1].name.endswith("_item2attributes.json")

    def _chunk(self, reviews: Reviews, negative: np.ndarray, at: np.ndarray) -> Chunk:
        """Return two rows for each of the reviews number `at`, [S/2]."""
        lengths = np.repeat(np.minimum(reviews.before[at], self.config.max_length), 2)
        item = np.stack([reviews.item[at], negative[at]], axis=1).ravel()
        history = reviews.item[_spans(np.repeat(at, 2) - lengths, lengths)]
        keys, categories = reviews.item_keys, reviews.category_keys
        return Chunk(
            label=np.tile(np.array([1, 0], np.float32), len(at)),
            single={"item": keys[item], "category": categories[item]},
            jagged={
                "item_history": (keys[history], lengths),
                "category_history": (categories[history], lengths),
            },
            group=np.repeat(reviews.user_keys[reviews.user[at]], 2),
            split=np.repeat(reviews.split[at], 2),
        )


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the [H] numbers start, start+1, ... of each of S spans, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)


JSON_FORM = ("reviews_{}_5.json", "meta_{}.json")
LIST_FORM = ("{}.txt", "{}_item2attributes.json")


def _forms(root: Path) -> dict[str, tuple[str, str]]:
    """Return product category -> the names of its files, for those in a folder."""
    found = {}
    for path in root.glob("*.json*"):
        if match := re.fullmatch(r"reviews_(.+)_5\.json(\.gz)?", path.name):
            found[match[1]] = JSON_FORM
        elif match := re.fullmatch(r"(.+)_item2attributes\.json", path.name):
            found[match[1]] = LIST_FORM
    return found


def _lines(path: Path) -> Iterator[Rows]:
    """Yield blocks of rows with the one column "line"."""
    for first, block in text.blocks(path):
        lines = block.decode().split("\n")[:-1]
        yield Rows(path, pl.DataFrame({"line": lines}), first + np.arange(len(lines)))


def _read_reviews(path: Path, bad: BadRows) -> tuple[np.ndarray, np.ndarray]:
    """Return [E] raw user and item keys by time; reviews of one second keep their order."""

    def parse(rows: Rows) -> tuple[np.ndarray, ...]:
        line = rows.frame["line"]
        names = ("reviewerID", "asin", "unixReviewTime")
        user, item, time = (line.str.json_path_match(f"$.{name}") for name in names)
        time = time.cast(pl.Int64, strict=False)
        wrong = user.is_null() | item.is_null() | time.is_null()
        rows.expect("line", wrong, f"a JSON object with {', '.join(names)}")
        return string_keys(user), string_keys(item), time.fill_null(0).to_numpy()

    parts = zip(*(rows.read(parse, bad) for rows in _lines(path)), strict=True)
    user, item, time = (np.concatenate(part) for part in parts)
    order = np.argsort(time, kind="stable")
    return user[order], item[order]


def _read_metadata(path: Path, wanted: np.ndarray, bad: BadRows) -> dict[int, int]:
    """Return raw item key -> raw key of its finest category, for the wanted items of a file."""
    found: dict[str, str] = {}

    def parse(rows: Rows) -> None:
        line = rows.frame["line"]
        asin = line.str.extract(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")
        rows.expect("line", asin.is_null(), "an object with asin")
        chosen = np.flatnonzero(np.isin(string_keys(asin), wanted))
        wrong = np.zeros(len(line), bool)
        # One object at a time: Python literals have no vectorised reader, and few items are wanted.
        for row in chosen.tolist():
            category = _finest_category(line[row])
            if category is None:
                wrong[row] = True
            else:
                found[asin[row]] = category
        rows.expect("line", wrong, "a JSON object or Python literal with categories [[..., name]]")

    for rows in _lines(path):
        rows.read(parse, bad)
    keys, values = string_keys(list(found)), string_keys(list(found.values()))
    return dict(zip(keys.tolist(), values.tolist(), strict=True))


def _finest_category(line: str) -> str | None:
    """Return the last name of the last category path of an item, or None where there is none."""
    try:
        return json.loads(line)["categories"][-1][-1]
    except json.JSONDecodeError:
        pass  # metadata of the 2014 release are Python literals
    except (LookupError, TypeError):
        return None
    try:
        return ast.literal_eval(line)["categories"][-1][-1]
    except (ValueError, SyntaxError, LookupError, TypeError):
        return None


def _read_lists(path: Path, bad: BadRows) -> tuple[np.ndarray, np.ndarray]:
    """Return [E] user and item numbers of a file with one line a user: user item item ..."""

    def parse(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        words = rows.frame["line"].str.strip_chars().str.split(" ")
        numbers = words.list.eval(pl.element().cast(pl.Int64, strict=False))
        wrong = numbers.list.eval(pl.element().is_null()).list.any() | (words.list.len() < 2)
        rows.expect("line", wrong, "user item item ..., integers between single spaces")
        items = numbers.list.slice(1)
        user = np.repeat(numbers.list.first().fill_null(0).to_numpy(), items.list.len().to_numpy())
        return user, items.explode().fill_null(0).to_numpy()

    parts = zip(*(rows.read(parse, bad) for rows in _lines(path)), strict=True)
    user, item = (np.concatenate(part) for part in parts)
    return user, item


def _read_attributes(path: Path) -> dict[int, int]:
    """Return item -> its last attribute, the finest category."""
    try:
        attributes = json.loads(path.read_text())
        return {int(item): int(listed[-1]) for item, listed in attributes.items() if listed}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}: expected {{"item": [attribute, ...]}}, integers: {error}'
        ) from error
