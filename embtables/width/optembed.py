"""OptEmbed: which rows are kept is learned by thresholds, how wide tables are by evolution.

    e(x) = [z(x) > 0] * prefix_w(E[x]),   z(x) = c(x) / (c(x) + kappa) * mean|E[x]| - t_table

Paper: Lyu et al., OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction,
CIKM 2022. Its rows are pruned because coupled L2 under a dense optimizer shrinks what is rarely or
never seen; row-sparse optimizers touch no such row. The factor c / (c + kappa), c the training count
of a row, stands for it: where the data term pulls a row c times with equal force and the decay kappa
times, the balance is that part of the row (ridge regression), and a row never seen is worth zero.

Stages: supernet, where prefix widths are drawn uniformly for each sample and field and thresholds t
learn with the weights, loss + alpha * sum exp(-t), by the long-tailed estimator of the step
function; evolve, an evolutionary search of one prefix width a table on the supernet, fitness the
validation metric of a candidate with as many of its best rows as fit the byte budget; retrain.
Bytes: kept rows of one width a table and their directory (`rows.pruned`). Needs closed vocabularies.
When to use: many rare ids, and tables of unequal worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.compressor import Segments, Table, widths
from embtables.registry import Config
from embtables.search import Fitness, Stage
from embtables.width._pruned import PerRow, PrunedWidth, PruningSearch, Retrain, smallest

Genome = tuple[int, ...]
"""A prefix width for each physical table."""


class OptEmbedSearch(PruningSearch["OptEmbed"]):
    """Thresholds of the supernet, and the evolution of widths."""

    counted = True

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Supernet, evolve, retrain."""
        return (
            Stage("supernet", structure="train"),
            Stage(
                "evolve",
                epochs=0,
                candidates=config.population + config.generations * (config.population // 2),
            ),
            Stage("retrain", restart=config.retrain == "initial"),
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Thresholds of each group, one a physical table."""
        return [width.thresholds for width in self.widths if width.thresholds is not None]

    def begin(self, stage: Stage) -> None:
        """Give tables thresholds, until rows are pruned."""
        searches = stage.name != "retrain"
        counts = self.reads() if searches else {}
        self.shrunk = {n: c.float() / (c.float() + self.config.kappa) for n, c in counts.items()}
        for group, width in zip(self.groups, self.widths, strict=True):
            width.learns = searches
            width.set_tables(group.read.tables[0], self.shrunk)
            width.to(self.device)

    def penalty(self) -> Tensor:
        """Sum of exp(-t), times alpha."""
        terms = [torch.exp(-one).sum() for one in self.parameters]
        return self.config.alpha * torch.stack(terms).sum()

    @torch.no_grad()
    def step(self, step: int, steps: int) -> bool:
        """Step the thresholds down their gradients; below zero rows never seen would be worth more."""
        for one in self.parameters:
            if one.grad is not None:
                one.sub_(self.config.lr * one.grad).clamp_(min=0)
        return False

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> None:
        """Search widths and prune to them, at the end of the evolution."""
        if stage.name != "evolve":
            return
        worth = self._worth()
        rising = {name: one.flatten().sort().values for name, one in worth.items()}

        def measured(genome: Genome) -> float:
            chosen = dict(zip(self.physical, genome, strict=True))
            cut = self._cut(chosen, rising)
            for width in self.widths:
                width.candidate = chosen, cut
            return fitness(self.config.eval_rows)

        best = evolve(
            [table.dim for table in self.physical.values()],
            measured,
            self.config.population,
            self.config.generations,
        )
        rows, scores = {}, {}
        for (name, table), width in zip(self.physical.items(), best, strict=True):
            prefix = torch.arange(table.dim, device=self.device) < width
            rows[name] = torch.where(prefix & (worth[name] > 0), self.rows(name), 0.0)
            scores[name] = worth[name]
        self.prune(rows, scores)

    def _worth(self) -> dict[str, Tensor]:
        """Return max(z, 0) of each row of each physical table, [R, 1]."""
        found = {}
        for width in self.widths:
            assert width.thresholds is not None
            for name, threshold in zip(width.names, width.thresholds, strict=True):
                size = self.rows(name).abs().mean(dim=1)
                z = self.shrunk[name].to(self.device) * size - threshold
                found[name] = z.clamp(min=0).unsqueeze(1)
        return found

    def _cut(self, chosen: Mapping[str, int], rising: Mapping[str, Tensor]) -> float:
        """Return the worth above which rows of the chosen widths fit the budget.

        Args:
            chosen: width of each physical table.
            rising: worth of its rows, sorted: [R].
        """

        def size(cut: float) -> int:
            total = 0
            for name, width in chosen.items():
                worths = rising[name]
                kept = len(worths) - int(torch.searchsorted(worths, cut, right=True))
                directory = -(-len(worths) // 8) if kept < len(worths) else 0
                total += kept * self.placed[name].precision.row_bytes(width) + directory
            return total

        most = max(float(worths[-1]) for worths in rising.values())
        cut = smallest(lambda value: size(value) <= self.limit, most)
        return most if cut is None else max(cut, 0.0)


def evolve(
    largest: Sequence[int],
    fitness: Callable[[Genome], float],
    population: int,
    generations: int,
) -> Genome:
    """Return the fittest widths found by evolution.

    Equal widths are among the first generation. Parents are the fittest of all that were ever measured;
    a child takes each width from either of two parents and draws one in ten anew. Widths are drawn
    uniformly by their logarithm: small budgets leave narrow ones. None is measured twice.

    Args:
        largest: width of each table at most; 1 at least.
        fitness: more is better.
        population: measured at first; each generation measures half as many more.
        generations: after the first.
    """
    rng = np.random.default_rng(0)
    most = max(largest)
    scores: dict[Genome, float] = {}

    def measure(widths: np.ndarray) -> bool:
        genome = tuple(int(width) for width in np.minimum(widths, largest))
        if genome in scores:
            return False
        scores[genome] = fitness(genome)
        return True

    def draw() -> np.ndarray:
        return np.exp(rng.random(len(largest)) * np.log1p(largest)).astype(int)

    for width in np.unique(np.geomspace(1, most, max(population // 2, 1)).round().astype(int)):
        measure(np.full(len(largest), width))
    for _ in range(10 * population):
        if len(scores) >= population:
            break
        measure(draw())
    for _ in range(generations):
        parents = sorted(scores, key=scores.__getitem__, reverse=True)[: max(population // 2, 2)]
        born = 0
        for _ in range(10 * population):
            if born >= population // 2:
                break
            pair = rng.choice(len(parents), 2)
            first, second = (np.array(parents[one]) for one in pair)
            child = np.where(rng.random(len(largest)) < 0.5, first, second)
            born += measure(np.where(rng.random(len(largest)) < 0.1, draw(), child))
    return max(scores, key=scores.__getitem__)


class _Step(torch.autograd.Function):
    """The step function with the long-tailed estimator as its derivative (Liu et al., 2020)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        size = z.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))
        return grads[0] * slope


@widths.register("optembed")
class OptEmbed(PrunedWidth):
    """The supernet while the search is on, pruned rows afterwards.

    Attributes:
        names: physical tables of the thresholds.
        thresholds: t of each, [T].
        candidate: width of each physical table and the worth above which rows are kept, when measured.
    """

    class Config(Config):
        """Options of OptEmbed."""

        kind: Literal["optembed"] = "optembed"
        alpha: float = Field(default=1e-4, ge=0, description="weight of sum exp(-t) in the loss")
        lr: float = Field(default=1e-3, gt=0, description="learning rate of the thresholds")
        kappa: float = Field(
            default=10.0, gt=0, description="training count at which a row is worth half"
        )
        population: int = Field(default=20, ge=2, description="candidates of the first generation")
        generations: int = Field(default=30, ge=0, description="generations after the first")
        eval_rows: int | None = Field(
            default=100_000,
            ge=1,
            description="first validation rows, by which candidates are measured; null: all, as rows "
            "sorted by label or time need",
        )
        retrain: Retrain = "initial"

    @classmethod
    def search(cls, config: Any) -> type[OptEmbedSearch]:
        """The stages above."""
        return OptEmbedSearch

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        self.dim = tables[0].width
        self.shrink: PerRow | None = None
        self.thresholds: nn.Parameter | None = None
        self.candidate: tuple[dict[str, int], float] | None = None

    def set_tables(self, names: Sequence[str], shrunk: Mapping[str, Tensor]) -> None:
        """Give tables thresholds, of zero where they have none, or take them away.

        Args:
            names: [S] physical tables that are read.
            shrunk: factor of each row of every physical table, [R]; empty takes thresholds away.
        """
        self.names = list(dict.fromkeys(names))
        self.owner = [self.names.index(name) for name in names]
        self.shrink = PerRow(names, shrunk) if shrunk else None
        if not shrunk:
            self.thresholds = None
        elif self.thresholds is None:  # else the evolution goes on with those of the supernet
            self.thresholds = nn.Parameter(torch.zeros(len(self.names)))
        self.candidate = None

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return the kept rows' prefixes during the search, else the vectors."""
        if self.shrink is None or self.thresholds is None:
            return super().decode(vectors, rows, segments)
        threshold = segments.spread(self.thresholds[self.owner])
        z = self.shrink(rows, segments) * vectors.abs().mean(dim=-1) - threshold
        place = torch.arange(self.dim, device=vectors.device)
        if self.training:
            drawn = torch.randint(1, self.dim + 1, z.shape, device=z.device)
            return vectors * _Step.apply(z).unsqueeze(-1) * (place < drawn.unsqueeze(-1))
        if self.candidate is None:
            return vectors * (z > 0).unsqueeze(-1)
        chosen, cut = self.candidate
        width = torch.tensor([chosen[self.names[owner]] for owner in self.owner], device=z.device)
        prefix = place < segments.spread(width).unsqueeze(-1)
        return vectors * (z > cut).unsqueeze(-1) * prefix
