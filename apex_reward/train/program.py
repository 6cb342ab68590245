"""Train a stack of models on one set of samples in memory.

One step serves all models: a look-up of the batch, a forward pass, the sum of the models' losses
(no model's gradient reaches another), a clip per model, AdamW.

Shape key: M = models still training, A = all models, S = distinct seeds, N = samples of a batch,
n = samples, m = distinct samples of a bootstrap draw, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apex_reward.errors import DataError
from apex_reward.model.predictor import LayerPooling
from apex_reward.train.draws import bootstrap_samples, epoch_batches
from apex_reward.train.loop import Loop
from apex_reward.train.settings import Condition, TrainSettings
from apex_reward.train.split import Samples
from apex_reward.train.stack import PredictorStack, Shape
from apex_reward.train.steps import predict, running_statistics

if TYPE_CHECKING:
    from accelerate import Accelerator


class Program(Loop):
    """Models of one shape in training on samples in memory.

    Args:
        conditions: A of them, alike but for loss and seed.
        shape: of every model.
        train, val: samples in the conditions' mode and task.
        settings: of the optimiser and schedule.
        accelerator: device, precision and processes.
        poolings: the layer pooling that each model starts from, where it trains.
        together: as in `Loop`.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        shape: Shape,
        train: Samples,
        val: Samples,
        settings: TrainSettings,
        accelerator: Accelerator,
        poolings: Sequence[LayerPooling] | None = None,
        together: bool = True,
    ) -> None:
        processes = accelerator.num_processes if together else 1
        if len(train) < 2 * processes:
            raise DataError(f"{len(train)} training samples; expected 2 or more per process")
        device = accelerator.device
        self.train_samples = train
        self.features = torch.as_tensor(train.features).to(device)
        self.labels = torch.as_tensor(train.labels).to(device)
        self.val_features = torch.as_tensor(val.features).to(device)
        self.val_labels = torch.as_tensor(val.labels).double()
        initial = {c.seed: shape.initial_state(c.seed) for c in conditions}
        states = [initial[condition.seed] for condition in conditions]
        stack = PredictorStack(shape, states, poolings).to(device)
        super().__init__(
            conditions, stack, stack.parameters(), train.labels, settings, accelerator, together
        )

    def index_active(self) -> None:
        """What follows from which models still train; (S, m) samples that each seed draws."""
        super().index_active()
        if self.settings.bootstrap and self.seeds:
            song, least = self.train_samples.song, 2 * self.world
            drawn = [bootstrap_samples(song, seed, least) for seed in self.seeds]
            rows, weights = zip(*drawn, strict=True)
            self.drawn, self.times = torch.stack(rows), torch.stack(weights)

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        """All steps of an epoch; mean errors (M, H) and losses (M,) over its samples."""
        device = self.accelerator.device
        bootstrap = self.settings.bootstrap
        batches = epoch_batches(
            self.drawn.shape[1] if bootstrap else len(self.features),
            self.seeds,
            self.epoch,
            self.settings.batch_size,
            self.rank,
            self.world,
        )
        errors = torch.zeros_like(self.stack.log_sigma)
        losses = torch.zeros(len(self.active), device=device)
        for batch in batches:
            rows = self.drawn.gather(1, batch) if bootstrap else batch
            weights = self.times.gather(1, batch).to(device) if bootstrap else None
            step_errors, step_losses = self.train_step(rows.to(device), weights)
            errors += step_errors * rows.shape[1]
            losses += step_losses * rows.shape[1]
        total = torch.tensor(float(sum(batch.shape[1] for batch in batches)), device=device)
        if self.world > 1:
            errors, losses, total = (
                self.accelerator.reduce(value, "sum") for value in (errors, losses, total)
            )
            # Each process normalises by its own batch; the statistics become their mean.
            for _, buffer in running_statistics(self.stack):
                buffer.copy_(self.accelerator.reduce(buffer, "mean"))
        return (errors / total).cpu(), (losses / total).cpu()

    def train_step(self, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One optimisation step of every model on samples (S, N); its errors (M, H), losses (M,).

        A process with more samples than another counts for more, as its samples do.

        Args:
            weights: (S, N) how often each sample was drawn; None where each counts once.
        """
        features, labels = self.look_up(rows)
        masks = self.draws.draw(rows.shape[1], self.seed_of)
        own = None if weights is None else weights[self.seed_of].T
        return self.step(features, labels, masks, own)

    def look_up(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, M or 1, ...) and labels (N, M or 1, H) of samples (S, N)."""
        by_model = rows if len(rows) == 1 else rows[self.seed_of]
        flat = by_model.reshape(-1)
        features = self.features.index_select(0, flat).unflatten(0, by_model.shape)
        labels = self.labels.index_select(0, flat).unflatten(0, by_model.shape)
        return features.transpose(0, 1), labels.transpose(0, 1)

    def validation_errors(self) -> Tensor:
        """(M, H) mean squared errors over the validation samples, float64 on the CPU."""
        scores = predict(
            self.stack, self.val_features, self.accelerator.reduce, self.rank, self.world
        )
        return (scores.double() - self.val_labels.unsqueeze(1)).square().mean(dim=0)
