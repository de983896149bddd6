"""Criteo-shaped clicks from planted logits, so that the best reachable AUC and logloss are known.

26 categorical fields with Criteo's cardinalities times a factor, power-law ids and Criteo's missing
shares; 13 heavy-tailed integers; days with drifting popularity and new ids. Each number of a row is a
hash of (seed, row, what it is for), so any slice of the rows can be made alone, in any chunks.

The planted logit of a row is the sum of
- an effect of each id: its own part and a part it shares with the other ids of its latent cluster;
- an effect of the clusters of some pairs of fields;
- a linear effect of each integer's standardised log1p;
- with `history`, the share of past items that belong to the candidate's cluster;
scaled to one standard deviation and shifted to one click rate. Effects are hashes of ids, not tables,
so memory does not grow with the cardinalities. An id expected in fewer than about `LEARNABLE` rows
fades, a missing value has no effect: what no table could learn from the rows is not planted.

C3 ("user") and C4 ("item") hold co-clusters: most rows pair a user and an item of one cluster, and
the pair of clusters has an effect, so a graph of (C3, C4) edges tells what the labels tell.

Shape letters: n rows of a chunk, R ids of a field, H ids of the histories of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data.hashing import MISSING
from data.schema import Column
from data.source import Chunk, Source, SourceConfig, sources

CHUNK = 1 << 15
"""Rows made at a time: the arrays of one field stay in the processor's cache."""

PILOT = 1 << 15
"""Rows that tell spread and mean of the planted logits."""

CLICK_RATE = 0.25
SPREAD = 1.5
"""Standard deviation of the planted logits."""

LEARNABLE = 200
"""Expected rows of an id at which half of its effect is planted."""

CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Distinct values of C1..C26 of the Criteo Kaggle data."""

SMALL = 100
"""Fields of at most so many ids keep them at any scale, and larger ones keep at least so many."""

MISSING_SHARE = {
    **dict.fromkeys((3, 4, 12, 16, 21, 24), 0.035),
    **dict.fromkeys((19, 20, 25, 26), 0.45),
    **{6: 0.13, 22: 0.8},
}
"""Number of a categorical field -> share of missing values, where not 0; about as in Criteo."""

INTEGERS = (
    *((0.45, 0.8, 1.0), (0.0, 2.1, 2.1), (0.2, 2.2, 1.3), (0.2, 1.7, 1.0), (0.05, 7.2, 2.9)),
    *((0.25, 3.6, 1.8), (0.05, 1.5, 1.4), (0.0, 2.1, 1.2), (0.05, 3.6, 1.7), (0.45, 0.4, 0.4)),
    *((0.05, 0.9, 0.7), (0.77, 0.3, 0.6), (0.2, 1.9, 1.1)),
)
"""I1..I13: share of missing values, mean and standard deviation of log1p; about as in Criteo."""

USER, ITEM = 3, 4
COHERENCE = 0.6
"""Share of rows whose user is taken from the item's cluster."""

CLUSTERS = 16
RANK = 2
PAIRS = ((USER, ITEM), (2, 25), (5, 8), (6, 14), (17, 23))
"""Fields whose clusters interact: each cluster has `RANK` latent factors, as in an FM."""

FLAT = 0.02
"""Offset of the power law of popularity, as a share of the ids alive: so many ids of the head are
nearly alike, and when a hash joins two of them both lose."""

OWN, SHARED = 0.85**0.5, 0.15**0.5
"""Weights of the two parts of an id's effect."""

LARGE, PAIR, NUMERIC, RELEVANCE = 1.6, 0.8, 0.3, 8.0
"""Weights of an id's effect in a drifting field, of a pair's, an integer's and the history's, where
that of an id in any other field is 1."""

DRIFTING = 1000
"""Fields of at least so many ids have new ones every day."""

HISTORY_LENGTH = 20

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 finaliser of [n] uint64, a bijection (Steele et al., OOPSLA 2014)."""
    z = values ^ (values >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def gaussian(hashed: np.ndarray) -> np.ndarray:
    """Return [n] about standard normal numbers: the sum of the three upper 16-bit parts of a hash."""
    part = np.uint64(0xFFFF)
    total = (hashed >> np.uint64(16)) & part
    total += (hashed >> np.uint64(32)) & part
    total += hashed >> np.uint64(48)
    return (total.astype(np.float64) - 1.5 * 65535) * (2 / 65535)


class PowerLaw:
    """Popularity of ranks 0 .. ids-1: the density (rank + 1 + offset)^-exponent.

    This is Zipf's law, with Mandelbrot's offset. It is used as a continuous law, whose distribution
    has an inverse, and rounded down.

    Args:
        ids: number of ranks.
        exponent: 0 makes all alike.
        offset: about so many ranks of the head are nearly alike.
    """

    def __init__(self, ids: int, exponent: float, offset: float) -> None:
        self.ids = ids
        self.exponent = exponent
        self.offset = offset
        self.power = 1 - exponent
        ends = np.array([1.0, ids + 1.0]) + offset
        self.low, self.high = ends**self.power if self.power else np.log(ends)

    def ranks(self, uniform: np.ndarray) -> np.ndarray:
        """Return [n] int64 ranks from uniform numbers."""
        place = self.low + uniform * (self.high - self.low)
        place = place ** (1 / self.power) if self.power else np.exp(place)
        return np.clip((place - self.offset).astype(np.int64) - 1, 0, self.ids - 1)

    def density(self, ranks: np.ndarray) -> np.ndarray:
        """Return [n] shares of the rows that hold a rank, about."""
        total = (self.high - self.low) / (self.power or 1)
        return (ranks + 1 + self.offset) ** -self.exponent / total


class Random:
    """Random numbers of some rows: hashes of (seed, stream, row).

    Args:
        seed: of the data set.
        rows: [n] numbers of the rows.
    """

    def __init__(self, seed: int, rows: np.ndarray) -> None:
        self.seed = seed
        self.rows = rows
        self.counter = rows.astype(np.uint64) * _GOLDEN

    def bits(self, stream: int) -> np.ndarray:
        """Return [n] uint64."""
        return mix(self.counter + salt(self.seed, stream))

    def uniform(self, stream: int) -> np.ndarray:
        """Return [n] float64 in [0, 1)."""
        return (self.bits(stream) >> np.uint64(11)) * 2.0**-53


def salt(seed: int, stream: int) -> np.uint64:
    """Return the 64 bits that a use of hashing adds to its numbers."""
    start = (seed * 0xD1342543DE82EF95 + stream * 0xDABA0B6EB09322E3 + 1) % 2**64
    return mix(np.array([start], np.uint64))[0]


def _hashed(numbers: np.ndarray, of: np.uint64) -> np.ndarray:
    return mix(numbers.astype(np.uint64) * _GOLDEN + of)


# Streams of random numbers and of planted effects: the field's or column's number is added.
_RANK, _ABSENT, _KEY, _EFFECT, _CLUSTER, _CLUSTER_EFFECT = (100 * i for i in range(1, 7))
_INTEGER, _INTEGER_ABSENT, _INTEGER_EFFECT, _PAIR = (100 * i for i in range(7, 11))
_PAIRED, _LABEL, _LENGTH, _RELEVANCE, _PAST_RELEVANT, _PAST_RANK, _PAST_CLUSTER = range(2000, 2007)


class IdField:
    """One categorical field: ids 0 .. R-1, of which a core is alive every day.

    The others come and go: each day the `step` oldest of a window of ids leave and as many new ones
    come, and the newest are the most popular of the window.

    Args:
        number: its number, 1 for C1.
        config: options of the source.
    """

    def __init__(self, number: int, config: SyntheticConfig) -> None:
        full = CARDINALITIES[number - 1]
        self.number = number
        self.seed = config.seed
        self.rows = config.rows
        self.ids = full if full <= SMALL else max(SMALL, round(full * config.scale))
        self.missing = min(1.0, MISSING_SHARE.get(number, 0.0) * config.missing)
        drifts = self.ids >= DRIFTING
        self.weight = LARGE if drifts else 1.0
        self.core = self.ids // 10 if drifts else self.ids
        self.step = (self.ids - self.core) // (2 * config.days) if drifts else 0
        self.alive = self.ids - self.step * (config.days - 1)
        self.popularity = PowerLaw(self.alive, config.zipf, FLAT * self.alive)
        self.cluster_effects = gaussian(
            _hashed(np.arange(CLUSTERS), salt(self.seed, _CLUSTER_EFFECT + number))
        )

    def draw(self, uniform: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return [n] ids of the days, by popularity."""
        rank = self.popularity.ranks(uniform)
        newest = self.core + self.alive - 1 + day * self.step
        return np.where(rank < self.core, rank, newest - rank)

    def keys(self, ids: np.ndarray) -> np.ndarray:
        """Return [n] raw keys: a bijection of the ids, so that keys say nothing of popularity."""
        keys = _hashed(ids, salt(self.seed, _KEY + self.number)).view(np.int64)
        return np.where(ids < 0, MISSING, keys) if self.missing else keys

    def cluster(self, ids: np.ndarray) -> np.ndarray:
        """Return [n] clusters: each `CLUSTERS` ids in a row are spread over all clusters."""
        return (ids + self._turn(ids)) & (CLUSTERS - 1)

    def move(self, ids: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """Return for each of [n] ids one of about its popularity that is in a given cluster."""
        moved = (ids & -CLUSTERS) + ((cluster - self._turn(ids)) & (CLUSTERS - 1))
        return np.where(moved < self.ids, moved, ids)

    def _turn(self, ids: np.ndarray) -> np.ndarray:
        return _hashed(ids // CLUSTERS, salt(self.seed, _CLUSTER + self.number)).view(np.int64)

    def strength(self, ids: np.ndarray) -> np.ndarray:
        """Return [n] shares of an effect that are planted: less for rare ids, none for a missing."""
        expected = self.rows * self.popularity.density(np.maximum(ids, 0))
        return (ids >= 0) * (expected / (expected + LEARNABLE))

    def effect(self, ids: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """Return [n] effects of ids before fading: own part and part of the cluster."""
        own = gaussian(_hashed(ids, salt(self.seed, _EFFECT + self.number)))
        return OWN * own + SHARED * self.cluster_effects[cluster]


@dataclass
class Made:
    """Some rows: ids [n] of each field (-1: missing), integers, history, day and planted score [n]."""

    ids: list[np.ndarray]
    integers: list[np.ndarray]
    history: tuple[np.ndarray, np.ndarray] | None
    day: np.ndarray
    score: np.ndarray


class SyntheticConfig(SourceConfig):
    """Options of the synthetic source. It reads no files: `root` has no use."""

    kind: Literal["synthetic"] = "synthetic"
    rows: int = Field(default=200_000, ge=1000, description="of all splits")
    scale: float = Field(default=0.001, gt=0, description="factor on Criteo's cardinalities")
    seed: int = Field(default=0, ge=0, description="of all numbers of the data")
    days: int = Field(default=10, ge=1, description="the rows are spread over them in order")
    zipf: float = Field(
        default=2.5,
        ge=0,
        description="exponent of the power law of ids: 0 makes all alike",
    )
    missing: float = Field(default=1.0, ge=0, description="factor on Criteo's missing shares")
    history: bool = Field(default=False, description="add a sequence of past ids of C4")
    vocabulary: Literal["closed", "open"] = "closed"
    min_count: int = Field(default=1, ge=1, description="rarer training values share a row")


@sources.register("synthetic")
class Synthetic(Source):
    """Rows in the order of days, made in bounded memory."""

    Config = SyntheticConfig
    config: SyntheticConfig

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__(config)
        self.fields = [IdField(number, config) for number in range(1, 27)]

    def columns(self) -> tuple[Column, ...]:
        """Return I1..I13, C1..C26 and, if asked, the history of C4."""
        config = self.config
        ids = {
            "type": "integer",
            "vocabulary": config.vocabulary,
            "min_count": config.min_count,
        }
        columns = [
            Column(
                name=f"I{j}",
                kind="numeric",
                type="integer",
                transform="log1p",
                normalize="standard",
            )
            for j in range(1, 14)
        ]
        columns += [Column(name=f"C{f.number}", kind="categorical", **ids) for f in self.fields]
        if config.history:
            past = {"table": f"C{ITEM}", "separator": "|", "max_length": HISTORY_LENGTH}
            columns.append(Column(name=f"C{ITEM}_history", kind="sequence", **past, **ids))
        return tuple(columns)

    def inputs(self) -> list[Path]:
        """Return no files."""
        return []

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows."""
        for start in range(0, self.config.rows, CHUNK):
            yield self.slice(start, min(start + CHUNK, self.config.rows))

    def slice(self, start: int, stop: int) -> Chunk:
        """Return the rows start .. stop-1."""
        rows = np.arange(start, stop)
        made = self._make(rows)
        scale, bias = self._calibration
        probability = _sigmoid(scale * made.score + bias)
        chance = Random(self.config.seed, rows).uniform(_LABEL)
        chunk = Chunk(
            label=(chance < probability).astype(np.float32),
            numeric={f"I{j}": values for j, values in enumerate(made.integers, 1)},
            single={f"C{f.number}": f.keys(i) for f, i in zip(self.fields, made.ids, strict=True)},
            day=made.day,
            probability=probability.astype(np.float32),
        )
        if made.history is not None:
            ids, lengths = made.history
            chunk.jagged[f"C{ITEM}_history"] = (self.fields[ITEM - 1].keys(ids), lengths)
        return chunk

    @cached_property
    def _calibration(self) -> tuple[float, float]:
        """Factor and bias that give the scores of a sample of the rows spread and click rate."""
        rows = np.unique(np.linspace(0, self.config.rows - 1, PILOT).astype(np.int64))
        score = self._make(rows).score
        scale = SPREAD / float(score.std())
        return scale, _bias(scale * score)

    def _make(self, rows: np.ndarray) -> Made:
        """Return the rows of these numbers."""
        random = Random(self.config.seed, rows)
        day = rows * self.config.days // self.config.rows
        ids = self._ids(random, day)
        score = np.zeros(len(rows))
        clusters = {}
        for field, column in zip(self.fields, ids, strict=True):
            cluster, strength = field.cluster(column), field.strength(column)
            score += field.weight * strength * field.effect(column, cluster)
            clusters[field.number] = cluster, strength
        for pair, (one, other) in enumerate(PAIRS):
            (a, strength_a), (b, strength_b) = clusters[one], clusters[other]
            effect = self._pair_effects(pair)[a, b]
            score += PAIR * strength_a * strength_b * effect
        integers = self._integers(random, score)
        history = self._history(random, day, clusters[ITEM], score) if self.config.history else None
        return Made(ids, integers, history, day, score)

    def _pair_effects(self, pair: int) -> np.ndarray:
        """Return the [CLUSTERS, CLUSTERS] effects of a pair of fields, of rank `RANK`."""
        hashed = _hashed(np.arange(2 * CLUSTERS * RANK), salt(self.config.seed, _PAIR + pair))
        one, other = gaussian(hashed).reshape(2, CLUSTERS, RANK)
        return one @ other.T / RANK**0.5

    def _ids(self, random: Random, day: np.ndarray) -> list[np.ndarray]:
        """Return [n] ids of each field, -1 where missing."""
        ids = [f.draw(random.uniform(_RANK + f.number), day) for f in self.fields]
        user, item = self.fields[USER - 1], self.fields[ITEM - 1]
        moved = user.move(ids[USER - 1], item.cluster(ids[ITEM - 1]))
        ids[USER - 1] = np.where(random.uniform(_PAIRED) < COHERENCE, moved, ids[USER - 1])
        for field, column in zip(self.fields, ids, strict=True):
            if field.missing:
                column[random.uniform(_ABSENT + field.number) < field.missing] = -1
        return ids

    def _integers(self, random: Random, score: np.ndarray) -> list[np.ndarray]:
        """Return [n] values of I1..I13, NaN where missing, and add their effects to the scores."""
        columns = []
        effects = gaussian(_hashed(np.arange(13), salt(self.config.seed, _INTEGER_EFFECT)))
        for j, (missing, mean, deviation) in enumerate(INTEGERS):
            normal = gaussian(random.bits(_INTEGER + j))
            value = np.floor(np.exp(mean + deviation * normal)) - 1
            lowest = -1 if j == 1 else 0
            np.maximum(value, lowest, out=value)
            known = random.uniform(_INTEGER_ABSENT + j) >= missing * self.config.missing
            standard = (np.log1p(np.maximum(value, 0)) - mean) / deviation
            score += NUMERIC * effects[j] * np.where(known, standard, 0)
            columns.append(np.where(known, value, np.nan))
        return columns

    def _history(
        self,
        random: Random,
        day: np.ndarray,
        candidate: tuple[np.ndarray, np.ndarray],
        score: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return past ids [H] and lengths [n], and add the effect of their relevance to the scores."""
        item = self.fields[ITEM - 1]
        cluster, strength = candidate
        lengths = 1 + (HISTORY_LENGTH * random.uniform(_LENGTH) ** 2).astype(np.int64)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        first = np.cumsum(lengths) - lengths
        place = np.arange(len(owner)) - first[owner]
        past = Random(self.config.seed, random.rows[owner] * HISTORY_LENGTH + place)
        relevant = past.uniform(_PAST_RELEVANT) < random.uniform(_RELEVANCE)[owner]
        other = (past.bits(_PAST_CLUSTER) & np.uint64(CLUSTERS - 1)).astype(np.int64)
        wanted = np.where(relevant, cluster[owner], other)
        ids = item.move(item.draw(past.uniform(_PAST_RANK), day[owner]), wanted)
        same = item.cluster(ids) == cluster[owner]
        share = np.bincount(owner, same, len(lengths)) / lengths
        score += RELEVANCE * (share - 0.5) * (strength > 0)
        return ids, lengths


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _bias(logit: np.ndarray) -> float:
    """Return the shift of [n] logits at which the mean probability is `CLICK_RATE`, by bisection."""
    low, high = -50.0 - logit.max(), 50.0 - logit.min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _sigmoid(logit + middle).mean() < CLICK_RATE else (low, middle)
        )
    return low
