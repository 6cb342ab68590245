"""The one training loop: epochs, which stop by a validation figure.

`Training` is the loop. Its subclasses are `Loop`, a predictor, which reads stored embeddings
(`SampleLoop`) or audio (`tune.py`), and the student of `distill.py`.
Every random choice follows from (seed, epoch, rank), so that a resumed run has nothing to restore
and a predictor trains alike alone, as a member of an ensemble and in a grid.

Shape key: N = samples of a batch, n = samples, L = layers, W = embedding width, H = heads.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apex_reward.data.shards import FloatArray
from apex_reward.errors import DataError, listed
from apex_reward.files.atomic import atomic
from apex_reward.files.stamps import Stamp
from apex_reward.model.config import ApexConfig
from apex_reward.model.predictor import LayerPooling, Predictor
from apex_reward.train.losses import combine
from apex_reward.train.settings import Schedule, TrainSettings
from apex_reward.train.shards import Samples

if TYPE_CHECKING:
    from accelerate import Accelerator

HistoryRow = dict[str, float | int]
Reduce = Callable[[Tensor], Tensor]
ORDER, DROPOUT = 0, 1  # purposes, so that two streams never coincide
CLIP = 1.0  # largest norm of a gradient
EVALUATION_ROWS = 4096
MEMBER_SHARE = 0.5
"""Share of the samples that a member of an ensemble trains on in each epoch, drawn anew."""
MEMBER_LEAST = 1536
"""Least number of samples of such a draw; a smaller data set is drawn whole."""
KEPT = ("epoch", "best_epoch", "best_figure", "best")  # of a saved state
SAVE_SECONDS = 10.0
"""Least time between two saved states of a run; longer where saving takes more than 5% of it."""


def stream(*key: int) -> int:
    """A 63-bit generator seed from whole numbers, as (seed, epoch, purpose, rank).

    >>> stream(42, 1, ORDER) != stream(42, 1, DROPOUT)
    True
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw from a seed of its own within the block; the global random state stays as it was."""
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.manual_seed(seed)
        yield


def epoch_batches(
    samples: int,
    seed: int,
    epoch: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    share: float = 1.0,
) -> list[Tensor]:
    """One epoch's batches for one process: sample numbers, (N,) each.

    Every drawn sample is used once. Batches differ by at most one sample, so none is nearly empty;
    all have at most `batch_size` samples per process.

    Args:
        share: share of the samples that the epoch draws, in as many steps as all would take.
    """
    generator = torch.Generator().manual_seed(stream(seed, epoch, ORDER))
    steps = max(1, math.ceil(samples / (batch_size * world)))
    drawn = max(2 * steps * world, math.ceil(share * samples))
    batches = torch.randperm(samples, generator=generator)[:drawn].tensor_split(steps)
    return [batch.tensor_split(world)[rank] for batch in batches]


def weighted_mean(tensors: Sequence[Tensor], weight: float, reduce: Reduce) -> list[Tensor]:
    """The mean of every tensor over the processes, in one exchange.

    Args:
        tensors: this process's values.
        weight: their weight: the number of samples that they are means of.
        reduce: sums a tensor over the processes.
    """
    flat = torch.cat([t.reshape(-1) for t in tensors] + [tensors[0].new_ones(1)]) * weight
    flat = reduce(flat)
    pieces = (flat[:-1] / flat[-1]).split([t.numel() for t in tensors])
    return [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]


class Network(nn.Module):
    """What a run trains: predictor, learned log sigmas and, where they train, others.

    Args:
        pooling: the layer pooling, where it trains.
        adapters: modules inside an encoder, where they train.
    """

    def __init__(
        self,
        predictor: Predictor,
        pooling: LayerPooling | None = None,
        adapters: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.predictor, self.pooling, self.adapters = predictor, pooling, adapters
        self.log_sigma = nn.Parameter(torch.zeros(len(predictor.heads)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, H) of (N, W) embeddings, or of (N, L, W) where the pooling trains."""
        if self.pooling is not None:
            x = self.pooling(x.to(self.pooling.weight.dtype))
        return self.predictor(x).float()


def predict(
    network: Network,
    features: Tensor,
    reduce: Reduce | None = None,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Scores (n, H) of samples (n, ...) in evaluation mode, on the CPU.

    Whole chunks are dealt to the processes in turn, so that the result has the same bytes for
    any number of them.

    Args:
        reduce: sums a tensor over the processes; needed where there are several.
    """
    training = network.training
    network.eval()
    scores = torch.zeros(len(features), len(network.log_sigma), device=features.device)
    with torch.inference_mode():
        for number, start in enumerate(range(0, len(features), EVALUATION_ROWS)):
            if number % world == rank:
                chunk = features[start : start + EVALUATION_ROWS]
                scores[start : start + EVALUATION_ROWS] = network(chunk)
    network.train(training)
    return (scores if reduce is None or world == 1 else reduce(scores)).cpu()


class Training(ABC):
    """Modules in training, epoch by epoch. Call `run_epoch` until `finished`.

    Args:
        network: what is trained, on the accelerator's device.
        accelerator: device and processes.
        schedule: epochs, patience, and the optimiser's settings.
        together: True where all processes train the network, each on its share of a batch;
            False where this process trains it alone.

    Attributes:
        history: a row per epoch.
        epoch: epochs done.
        best_epoch: the epoch with the lowest figure, `best_figure`; `best` is its snapshot.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        accelerator: Accelerator,
        together: bool = True,
    ) -> None:
        self.network: Any = network
        self.schedule, self.accelerator = schedule, accelerator
        self.rank = accelerator.process_index if together else 0
        self.world = accelerator.num_processes if together else 1
        self.parameters = list(network.parameters())
        lr, decay = schedule.lr, schedule.weight_decay
        self.optimizer = torch.optim.AdamW(self.parameters, lr, weight_decay=decay, fused=True)
        fp16 = schedule.precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=fp16)
        self.epoch, self.best_epoch, self.best_figure = 0, 0, math.inf
        self.history: list[HistoryRow] = []
        self.best = self.snapshot()

    @abstractmethod
    def run_through(self) -> tuple[HistoryRow, float]:
        """Train for the epoch `epoch` and validate: its row, and the figure that is to fall."""

    @property
    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        out_of_patience = self.epoch - self.best_epoch >= self.schedule.patience
        return self.epoch >= self.schedule.epochs or out_of_patience

    def run_epoch(self) -> None:
        """Train for one epoch, validate, and keep the network if it is the best so far."""
        self.epoch += 1
        row, figure = self.run_through()
        self.history.append({"epoch": self.epoch, **row})
        if figure < self.best_figure:
            self.best_figure, self.best_epoch = figure, self.epoch
            self.best = self.snapshot()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def descend(self, loss: Tensor, samples: int) -> None:
        """One optimisation step on a loss that is a mean over this process's samples.

        A process with more samples than another counts for more, as its samples do.
        """
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.world > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            means = weighted_mean(gradients, samples, self.accelerator.reduce)
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    @contextmanager
    def at_best(self) -> Iterator[Any]:
        """The network of the best epoch, in evaluation mode, for the length of the block."""
        last = self.snapshot()
        self.network.load_state_dict(self.best)
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.load_state_dict(last)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs: plain tensors, numbers and text."""
        return {
            **{name: getattr(self, name) for name in KEPT},
            "network": self.snapshot(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": json.dumps(self.history),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in ("network", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        for name in KEPT:
            setattr(self, name, state[name])
        self.history = json.loads(state["history"])


class Loop(Training):
    """One predictor in training.

    Args:
        settings: of this run; of an ensemble's member its own seed.
        labels: (n, H) of the training samples.
        together: as `Training` takes it.

    Raises:
        DataError: a constant label where the loss divides by its variance.
    """

    share = 1.0  # of the samples that an epoch draws

    def __init__(
        self,
        settings: TrainSettings,
        network: Network,
        labels: FloatArray,
        accelerator: Accelerator,
        together: bool = True,
    ) -> None:
        super().__init__(network, settings, accelerator, together)
        self.settings, self.samples, self.heads = settings, len(labels), network.predictor.heads
        variances = labels.astype(np.float64).var(axis=0)
        constant = [h for h, value in zip(self.heads, variances, strict=True) if value == 0]
        if constant and settings.loss == "standardized":
            raise DataError(
                f"the training labels of {listed(constant)} are all equal; the loss 'standardized' "
                "divides by their variance. Correct the labels or choose another loss"
            )
        self.variances = torch.as_tensor(variances, dtype=torch.float32).to(accelerator.device)

    @abstractmethod
    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, ...) and labels (N, H) of training samples, on the device."""

    @abstractmethod
    def validation_errors(self) -> Tensor:
        """(H,) mean squared errors over the validation samples, float64 on the CPU."""

    def train_epoch(self) -> Sequence[Tensor]:
        """All steps of an epoch: mean errors (H,) and the mean loss () over its samples."""
        settings, count = self.settings, 0
        key = self.samples, settings.seed, self.epoch, settings.batch_size
        errors, losses = torch.zeros_like(self.variances), self.variances.new_zeros(())
        for rows in epoch_batches(*key, self.rank, self.world, self.share):
            step_errors, step_loss = self.step(*self.batch(rows))
            errors, losses = errors + step_errors * len(rows), losses + step_loss * len(rows)
            count += len(rows)
        means = [errors / count, losses / count]
        if self.world > 1:
            means = weighted_mean(means, count, self.accelerator.reduce)
            # Each process normalises by its own batch; the statistics become their mean.
            for name, buffer in self.network.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(self.accelerator.reduce(buffer, "mean"))
        return means

    def run_through(self) -> tuple[HistoryRow, float]:
        """Train for one epoch and validate."""
        settings, lr = self.settings, self.settings.lr_at(self.epoch)
        self.set_lr(lr)
        self.network.train()
        key = settings.seed, self.epoch, DROPOUT, self.rank
        with seeded(stream(*key), self.accelerator.device):
            train_errors, train_loss = self.train_epoch()
        errors = self.validation_errors()
        log_sigma = self.network.log_sigma.detach().cpu().double()
        variances = self.variances.cpu().double()
        row: HistoryRow = {
            "lr": lr,
            "train_loss": float(train_loss),
            "val_loss": float(combine(settings.loss, errors, log_sigma, variances)),
            "val_error": scaled_error(errors, variances),
        }
        named = (("train_mse", train_errors), ("val_mse", errors), ("sigma", log_sigma.exp()))
        for name, values in named:
            heads = zip(self.heads, values.tolist(), strict=True)
            row |= {f"{name}_{head}": value for head, value in heads}
        figure = row[settings.select]
        if not math.isfinite(figure) and not math.isfinite(self.best_figure):
            raise DataError(
                f"the validation figure {settings.select} is {figure} in epoch {self.epoch}; "
                "try a smaller --lr or --precision no"
            )
        return row, figure

    def step(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimisation step on (N, ...) features and (N, H) labels; errors (H,) and loss."""
        with self.accelerator.autocast():
            scores = self.network(features)
        errors = (scores - labels).square().mean(dim=0)
        loss = combine(self.settings.loss, errors, self.network.log_sigma, self.variances)
        self.descend(loss, len(features))
        return errors.detach(), loss.detach()


def scaled_error(errors: Tensor, variances: Tensor) -> float:
    """Mean over the heads of squared error over label variance; 1 is the best constant's.

    Heads with a constant label are left out, unless every label is constant.

    >>> scaled_error(torch.tensor([400.0, 1.0, 3.0]), torch.tensor([800.0, 4.0, 0.0]))
    0.375
    """
    varied = variances > 0
    return float((errors[varied] / variances[varied]).mean() if varied.any() else errors.mean())


class SampleLoop(Loop):
    """A predictor in training on samples in memory.

    Args:
        config: of the model: the embeddings' width and the predictor's shape.
        train, val: samples in the settings' mode and task.
        pooling: the layer pooling to start from, where it trains.
    """

    def __init__(
        self,
        settings: TrainSettings,
        config: ApexConfig,
        train: Samples,
        val: Samples,
        accelerator: Accelerator,
        pooling: LayerPooling | None = None,
        together: bool = True,
    ) -> None:
        device = accelerator.device
        with seeded(settings.seed):
            predictor = shaped(config, settings).predictor()
        assert isinstance(predictor, Predictor)
        network = Network(predictor, pooling).to(device)
        super().__init__(settings, network, train.labels, accelerator, together)
        if len(train) < 2 * self.world:
            raise DataError(f"{len(train)} training samples; expected 2 or more per process")
        if settings.members > 1:
            self.share = max(MEMBER_SHARE, min(1.0, MEMBER_LEAST / len(train)))
        self.features = torch.as_tensor(train.features).to(device)
        self.labels = torch.as_tensor(train.labels).to(device)
        self.val_features = torch.as_tensor(val.features).to(device)
        self.val_labels = torch.as_tensor(val.labels).double()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, ...) and labels (N, H) of training samples."""
        rows = rows.to(self.features.device)
        return self.features[rows], self.labels[rows]

    def validation_errors(self) -> Tensor:
        """(H,) mean squared errors over the validation samples, float64 on the CPU."""
        ranks = self.accelerator.reduce, self.rank, self.world
        scores = predict(self.network, self.val_features, *ranks)
        return (scores.double() - self.val_labels).square().mean(dim=0)


def shaped(config: ApexConfig, settings: TrainSettings) -> ApexConfig:
    """The configuration with the task and trunk of a run.

    The 3-layer trunk has one layer more, halfway between the two of the 2-layer one, as the
    published widths have (512-256 and 512-384-256).
    """
    result = ApexConfig.from_dict(config.to_dict())
    first, last = result.trunk_widths[0], result.trunk_widths[-1]
    if settings.shared != result.shared:
        middle = [(first + last) // 2] if settings.shared == 3 else []
        result.trunk_widths = [first, *middle, last]
    result.task, result.shared, result.members = settings.task, settings.shared, 1
    # A saved mix may name heads that this task lacks; its scale belongs to other predictors.
    result.mix = result.preference = result.spread_scale = None
    return result


def run_epochs(loops: Sequence[Training], path: Path, stamp: Stamp, resume: bool) -> Iterator[bool]:
    """Train all loops to their end, an epoch of each in turn; yields after each turn.

    The state of all is in `path` at the end, and every `SAVE_SECONDS` or so of training; the
    yielded value says whether it was written. The first process writes.

    Args:
        stamp: what the result depends on.
        resume: go on from `path`, where it exists; its epochs are yielded first.

    Raises:
        UsageError: the state was left by a run with another stamp.
        DataError: the state cannot be read.
    """
    first = loops[0]
    beside = path.with_name(path.name + ".json")
    saved, wait = time.monotonic(), SAVE_SECONDS
    if resume and path.is_file():
        stamp.check(beside, path)
        try:
            states = torch.load(path, map_location=first.accelerator.device, weights_only=True)
        except Exception as error:  # torch.load raises what its readers raise
            raise DataError(f"{path} cannot be read ({error}); leave out --resume") from error
        for loop, state in zip(loops, states, strict=True):
            loop.load(state)
        yield True
    elif first.rank == 0:
        path.unlink(missing_ok=True)
        stamp.write(beside)
    while not all(loop.finished for loop in loops):
        for loop in loops:
            if not loop.finished:
                loop.run_epoch()
        finished, now = all(loop.finished for loop in loops), time.monotonic()
        due = finished or now - saved >= wait
        if due and first.rank == 0:
            with atomic(path) as temporary:
                torch.save([loop.state() for loop in loops], temporary)
        yield due
        if due:
            saved = time.monotonic()
            wait = SAVE_SECONDS * max(1.0, 2 * (saved - now))
