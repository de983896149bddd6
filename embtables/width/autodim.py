"""AutoDim: the width of every table is chosen among candidates by weights learned on validation rows.

    e = sum_c p_c * BN(E_c[x] P_c),   p = softmax((log softmax(a) + gumbel) / tau),   c in 2, 4, .., D

Paper: Zhao et al., AutoDim: Field-aware Embedding Dimension Search in Recommender Systems, WWW 2021.
Stages: search, where a row holds all candidates side by side, rows and projections learn from training
batches and the weights a of each table from validation batches (first order), while tau falls from 1;
then each table gets the candidate with which the sum of log p is largest within the byte budget, and
retrain goes on from what the candidate has learned (retrain=found) or anew (initial). The statistics
of the batch normalisation are folded into projection and bias. Bytes: n_f * c * bits + (c + 1) * D * 4,
or n_f * D * bits; while searching about twice the full table. When to use: tables of unequal worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.budget import Placed
from embtables.compressor import RowTable, Segments, Table, widths
from embtables.registry import Config
from embtables.search import Fitness, Rebuild, Search, Stage, falling_rate
from embtables.width._projection import ProjectedWidth, project
from embtables.width._pruned import Retrain, smallest

if TYPE_CHECKING:
    from embtables.tables import EmbeddingTables

_EPS = 1e-5
_MOMENTUM = 0.1
_COLDEST = 0.01


def candidates(dim: int) -> list[int]:
    """Return the widths to choose from: powers of two from 2 on, and D."""
    return [width for width in (2**k for k in range(1, 32)) if width < dim] + [dim]


class AutoDimSearch(Search["AutoDim"]):
    """Weights of the candidates, and the choice within the budget."""

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Search, retrain."""
        return (
            Stage("search", structure="valid", epochs=config.search_epochs, keep="last"),
            Stage("retrain", restart=config.retrain == "initial"),
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weights a of each group, [tables, candidates]."""
        return [width.choice for width in self.widths if width.searches]

    @property
    def statistics(self) -> list[Tensor]:
        """Means and variances of the batch normalisation."""
        return [
            s for width in self.widths if width.searches for s in (width.means, width.variances)
        ]

    def begin(self, stage: Stage) -> None:
        """Refuse a budget that cannot be met before anything is trained."""
        if stage.structure is not None:
            self._chosen()

    def penalty(self) -> Tensor:
        """Zero: bytes are counted when the choice is made."""
        return torch.zeros((), device=self.device)

    @torch.no_grad()
    def step(self, step: int, steps: int) -> bool:
        """Step the weights by their gradients, each table's divided by its mean size; cool down."""
        rate = falling_rate(self.config.lr, step, steps)
        for width in self.widths:
            if width.searches:
                width.heat.fill_(max(_COLDEST, 1 - step / steps))
                choice = width.choice
                assert choice.grad is not None
                size = choice.grad.abs().mean(dim=1, keepdim=True) + 1e-8
                choice.sub_(rate * choice.grad / size)
        return False

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> Rebuild | None:
        """Choose a candidate for each table, at the end of the search."""
        if stage.structure is None:
            return None
        width_of, chosen = self._width_of(), self._chosen()
        found = {name: width_of[name].dims[place] for name, place in chosen.items()}

        def fill(tables: EmbeddingTables) -> None:
            if self.config.retrain == "initial":
                return
            new = {n: w for w in AutoDimSearch(self.config, tables).widths for n in w.names}
            for name, place in chosen.items():
                physical = self.first_of[name]
                rows = new[name].take(width_of[name], name, place, self.rows(physical))
                tables.store.load(physical, rows)

        return Rebuild(found, fill)

    def _width_of(self) -> dict[str, AutoDim]:
        return {name: width for width in self.widths for name in width.names}

    def _chosen(self) -> dict[str, int]:
        """Return the place of the candidate of each logical table, by what is known now."""
        costs, worths, offered = {}, {}, {}
        for name, width in self._width_of().items():
            place, each = self.first_of[name], width.worths(name)
            cost = costs_of(self.placed[place], self.physical[place])
            # The projection of a small table may cost more than narrow rows save.
            offered[name] = [at for at, one in enumerate(cost[:-1]) if one < cost[-1]] + [
                len(cost) - 1
            ]
            costs[name] = [cost[at] for at in offered[name]]
            worths[name] = [each[at] for at in offered[name]]
        return {n: offered[n][at] for n, at in choose(worths, costs, self.limit).items()}

    @classmethod
    def least(cls, placed: Placed, place: RowTable) -> int:
        """Bytes with the cheapest candidate."""
        return min(costs_of(placed, place))


def costs_of(placed: Placed, place: RowTable) -> list[int]:
    """Return the bytes of a table with each candidate."""
    dim, bits = placed.table.dim, placed.precision
    return [
        place.rows * bits.row_bytes(width) + (4 * (width + 1) * dim if width < dim else 0)
        for width in candidates(dim)
    ]


def choose(
    worths: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[int]], limit: float
) -> dict[str, int]:
    """Return the place of the candidate of each table: largest sum of worths within the limit, about.

    Every table takes its best candidate at one price a byte, the lowest at which all fit; what is left
    goes to the tables that gain most a byte.

    Raises:
        ValueError: not even the cheapest candidates fit.
    """

    def best(price: float) -> dict[str, int]:
        def net(name: str, place: int) -> tuple[float, int]:
            return worths[name][place] - price * costs[name][place], -costs[name][place]

        return {n: max(range(len(costs[n])), key=lambda place: net(n, place)) for n in costs}

    def size(places: Mapping[str, int]) -> int:
        return sum(costs[name][place] for name, place in places.items())

    cheapest = {name: min(range(len(cost)), key=cost.__getitem__) for name, cost in costs.items()}
    if size(cheapest) > limit:
        raise ValueError(
            f"autodim: the narrowest candidates take {size(cheapest):,} bytes, the budget leaves "
            f"{limit:,.0f}; raise it, or hash the largest tables (fields)"
        )
    price = smallest(lambda price: size(best(price)) <= limit, 1e6)
    chosen = cheapest if price is None else best(max(price, 0.0))
    while True:
        left = limit - size(chosen)
        gains = [
            ((worths[n][c] - worths[n][old]) / max(costs[n][c] - costs[n][old], 1), n, c)
            for n, old in chosen.items()
            for c in range(len(costs[n]))
            if worths[n][c] > worths[n][old] and costs[n][c] - costs[n][old] <= left
        ]
        if not gains:
            return chosen
        _, name, place = max(gains)
        chosen[name] = place


@widths.register("autodim")
class AutoDim(ProjectedWidth):
    """All candidates side by side while the search is on, then the chosen one, projected.

    Attributes:
        dims: the candidates, C in all.
        searches: rows hold all candidates.
    """

    means: Tensor
    variances: Tensor
    heat: Tensor

    class Config(Config):
        """Options of AutoDim."""

        kind: Literal["autodim"] = "autodim"
        search_epochs: int = Field(default=3, ge=1, description="epochs of the search")
        lr: float | None = Field(
            default=None,
            gt=0,
            description="first learning rate of the weights a; null: 0.01, more in fewer than 2,000 "
            "steps",
        )
        retrain: Retrain = "found"

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        first, count = tables[0], len(self.names)
        self.dims = candidates(first.dim)
        self.searches = first.width > first.dim
        if self.searches:
            shape = count, len(self.dims), first.dim
            self.choice = nn.Parameter(torch.zeros(shape[:2]))
            self.projection = nn.Parameter(torch.empty(count, first.width, first.dim))
            self.register_buffer("means", torch.zeros(shape))
            self.register_buffer("variances", torch.ones(shape))
            self.register_buffer("heat", torch.ones(()))

    @classmethod
    def search(cls, config: Any) -> type[AutoDimSearch]:
        """The stages above."""
        return AutoDimSearch

    @classmethod
    def needs(cls, config: Any) -> Literal["own rows"]:
        """Every table has its own width."""
        return "own rows"

    @classmethod
    def biased(cls, config: Any) -> bool:
        """The mean of the batch normalisation is taken off behind the projection."""
        return True

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """All candidates side by side; D where there is one."""
        return [sum(candidates(table.dim)) for table in tables]

    @property
    def linear(self) -> bool:
        """Not while candidates are normalised."""
        return super().linear and not self.searches

    def reset(self, generator: torch.Generator) -> None:
        """Draw projections that keep the variance of the rows (fan-in rule), for each candidate."""
        if not self.searches:
            return super().reset(generator)
        for part in self.projection.split(self.dims, dim=1):
            nn.init.normal_(part, std=part.shape[1] ** -0.5, generator=generator)

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return the mixture of the candidates during the search, else the projected vectors."""
        if not self.searches:
            return super().decode(vectors, rows, segments)
        logits = self.choice.log_softmax(1)
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            logits = (logits + noise) / self.heat
        shares = logits.softmax(1)[self.owner]
        found = vectors.new_zeros(())
        cut = vectors.split(self.dims, -1), self.projection.split(self.dims, 1)
        for place, (part, matrix) in enumerate(zip(*cut, strict=True)):
            one = self._normal(project(part, matrix[self.owner], segments), place, segments)
            found = found + segments.spread(shares[:, place]).unsqueeze(-1) * one
        return found

    def _normal(self, vectors: Tensor, place: int, segments: Segments) -> Tensor:
        """Return vectors [.., D] of a candidate, normalised over the ids of each segment."""
        mean, variance = self.means[self.owner, place], self.variances[self.owner, place]
        if self.training and len(vectors):
            mean = _mean(vectors, segments)
            variance = _mean((vectors - segments.spread_vectors(mean)).square(), segments)
            self._remember(place, mean, variance, segments)
        spread = segments.spread_vectors(torch.rsqrt(variance + _EPS))
        return (vectors - segments.spread_vectors(mean)) * spread

    @torch.no_grad()
    def _remember(self, place: int, mean: Tensor, variance: Tensor, segments: Segments) -> None:
        """Move the running statistics of tables that were read, by the mean over their segments."""
        read = (torch.tensor(segments.lengths, device=mean.device) > 0).to(mean)
        segments_of = mean.new_zeros(len(self.names)).index_add(0, self.owner, read)
        rate = _MOMENTUM * (read / segments_of[self.owner].clamp(min=1)).unsqueeze(1)
        for running, seen in ((self.means, mean), (self.variances, variance)):
            step = rate * (seen - running[self.owner, place])
            running[:, place] = running[:, place].index_add(0, self.owner, step)

    def worths(self, name: str) -> list[float]:
        """Return log p of each candidate of a table."""
        if not self.searches:
            return [0.0]
        return self.choice[self.names.index(name)].log_softmax(0).tolist()

    @torch.no_grad()
    def take(self, other: AutoDim, name: str, place: int, rows: Tensor) -> Tensor:
        """Take over what another width has learned of a table, and return its rows [R, c].

        Args:
            other: the width of the search.
            name: the table.
            place: of the chosen candidate.
            rows: [R, W] of the search.
        """
        if not other.searches:
            return rows
        slot = other.names.index(name)
        scale = torch.rsqrt(other.variances[slot, place] + _EPS)
        projection = other.projection[slot].split(other.dims)[place] * scale
        bias = -other.means[slot, place] * scale
        mine = rows.split(other.dims, 1)[place]
        if not self.projects:
            return mine @ projection + bias
        self.projection[self.names.index(name)] = projection
        self.bias[self.names.index(name)] = bias
        return mine


def _mean(vectors: Tensor, segments: Segments) -> Tensor:
    """Return the mean vector [S, D] of each segment of vectors [.., D]."""
    if segments.single:
        return vectors.mean(1)
    counts = torch.tensor(segments.lengths, device=vectors.device).clamp(min=1).unsqueeze(1)
    sums = vectors.new_zeros(len(segments.lengths), vectors.shape[-1])
    return sums.index_add(0, segments.index(vectors.device), vectors) / counts
