"""One training step: weights by the loss of training rows, structure by the rows its stage says.

Shape letters: B rows of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from embtables import EmbeddingTables
from embtables.ranks import ranks
from embtables.search import Search, Stage
from trainer.config import RunConfig
from trainer.predict import Predictor
from trainer.ranks import average_gradients, total
from trainer.retrieval import Retrieval, bpr_loss
from trainer.state import State


class TrainStep:
    """The step of one stage, and what it trains.

    Args:
        config: the run.
        predict: the model on the tables.
        tables: the tables.
        search: what learns the structure of the tables, if something does; its stage has begun.
        stage: the stage.
        state: where the run stands; a search may end the stage.
        steps: of the stage, at most.
        retrieval: what draws negatives, for a model that ranks; None: labels are clicks.

    Attributes:
        structure: what the search learns.
        weights: what is trained beside the rows: the network, and projections of the tables.
        optimizer: of the weights.
    """

    def __init__(
        self,
        config: RunConfig,
        predict: Predictor,
        tables: EmbeddingTables,
        search: Search | None,
        stage: Stage,
        state: State,
        steps: int,
        retrieval: Retrieval | None,
    ) -> None:
        self.options = config.train
        self.predict, self.model, self.device = predict, predict.model, predict.device
        self.tables = tables
        self.search, self.stage, self.state, self.steps = search, stage, state, steps
        self.retrieval = retrieval
        self.structure: list[nn.Parameter] = [] if search is None else search.parameters
        # What a forward pass moves (batch normalisation): held-out rows must leave no trace there.
        self.statistics = [*self.model.buffers(), *([] if search is None else search.statistics)]
        for parameter in self.structure:
            parameter.requires_grad_(stage.structure == "train")
        self.model.requires_grad_(stage.network)
        network = list(self.model.parameters()) if stage.network else []
        # What a method learns beside rows (a projection) is trained like the network.
        learned = {id(parameter) for parameter in self.structure}
        beside = [p for p in tables.groups.parameters() if id(p) not in learned]
        self.weights = [*network, *beside]
        # As a group, for it may be empty: matrix factorization has no weights beside its rows.
        self.optimizer = config.dense.build([{"params": self.weights}])

    def __call__(
        self, batch: Batch, held_out: Batch | None = None, rows: int | None = None
    ) -> Tensor:
        """Take one step and return its loss, a scalar; over ranks its mean is that of the batch.

        Args:
            batch: training rows.
            held_out: validation rows, where the stage learns its structure from them.
            rows: of the batch, over all ranks; where there is one, they need no telling.
        """
        self.optimizer.zero_grad()
        self.tables.zero_grad()
        loss = self._loss(batch, rows)
        objective = loss + self.tables.penalty()
        if self.search is not None and self.stage.structure == "train":
            objective = objective + self.search.penalty()
        objective.backward()
        average_gradients(self.weights)
        if self.options.clip_norm is not None:
            self._clip(self.options.clip_norm)
        self.optimizer.step()
        self.tables.step()
        if self.search is not None:
            self._learn_structure(self.search, held_out)
        return loss.detach()

    def set_lr(self) -> None:
        """Take the learning rates of the state."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.state.lr_dense
        self.tables.set_lr(self.state.lr_rows)

    def _learn_structure(self, search: Search, held_out: Batch | None) -> None:
        """Update the structure, by the gradients of the held-out batch if there is one."""
        if held_out is not None and self.structure:
            for parameter in self.structure:
                parameter.requires_grad_(True)
            before = [(statistic, statistic.clone()) for statistic in self.statistics]
            loss = self._loss(held_out) + search.penalty()
            grads = torch.autograd.grad(loss, self.structure)
            self.tables.zero_grad()
            for statistic, value in before:
                statistic.copy_(value)
            for parameter, grad in zip(self.structure, grads, strict=True):
                parameter.requires_grad_(False)
                parameter.grad = grad
        self.state.stage_over = search.step(self.state.stage_step + 1, self.steps)
        for parameter in self.structure:
            parameter.grad = None

    def _loss(self, batch: Batch, rows: int | None = None) -> Tensor:
        if self.retrieval is None:
            batch = batch.to(self.device)
            logits = self.predict.forward(batch).float()
            loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
            if ranks() == 1:
                return loss
            assert rows is not None
            # The mean over ranks is the mean over the batch, although one may have a row more.
            return loss * (len(batch.label) * ranks() / rows)
        both = self.retrieval.with_negatives(batch, self.options.negatives).to(self.device)
        loss = bpr_loss(self.predict.forward(both).float(), batch.label.to(self.device))
        if ranks() == 1:
            return loss
        taken = batch.label.sum().to(self.device)  # BPR is a mean over the rows with label 1
        return loss * (taken * ranks() / total(taken).clamp(min=1))

    def _clip(self, limit: float) -> None:
        """Scale all gradients so that their common norm is at most `limit`."""
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        squares = [grad.square().sum() for grad in grads] + [self.tables.grad_square_sum()]
        norm = torch.stack([square.to(self.device) for square in squares]).sum().sqrt()
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor)
        self.tables.scale_grads(factor)
