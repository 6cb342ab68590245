"""Sampling a flow or a diffusion model with chance in every step, so that policy gradients apply.

Shape key: B = songs, ... = the rest of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from apex_reward.errors import UsageError

Listener = Callable[[int, Tensor, Tensor], None]


class NoisyPath:
    """Steps that draw, each a decision with a probability; the path can be gone again.

    A step knows the model's estimates of the clean signal x and of the noise n, and how much of
    each comes next, a and s. It draws a x + s (cos(h) n + sin(h) e) with normal noise e and
    h = noise pi / 2 (coefficients-preserving sampling, arXiv 2509.05952): the result has the noise
    that the model expects at the next step, for any `noise`, and 0 is the sampler without chance.
    The last step, after which no noise is left, decides nothing.

    Args:
        noise: in (0, 1], the share of chance.
        random: where the noise is drawn from, on the CPU.

    Attributes:
        log_probabilities: (B,) of each decision, as a mean over the latent's numbers: up to a
            constant, -((drawn - mean) / deviation)^2 / 2.
        means: (B, ...) of each decision.
        deviations: of each decision, the standard deviation of what was drawn.

    Raises:
        UsageError: a noise out of range.
    """

    def __init__(self, noise: float, random: torch.Generator) -> None:
        if not 0 < noise <= 1:
            raise UsageError(f"noise is {noise}; expected a share of chance in (0, 1]")
        self.noise, self._random = noise, random
        self.drawn: list[Tensor] = []
        self.means: list[Tensor] = []
        self.deviations: list[float] = []
        self.log_probabilities: list[Tensor] = []

    def step(self, clean: Tensor, noise: Tensor, keep: float, level: float) -> Tensor:
        """The next latent (B, ...).

        Args:
            clean, noise: (B, ...) estimates.
            keep, level: their shares next, a and s.
        """
        if level == 0:
            return keep * clean
        angle = self.noise * math.pi / 2
        mean = keep * clean + level * math.cos(angle) * noise
        deviation = level * math.sin(angle)
        drawn = self._next(mean, deviation)
        errors = ((drawn - mean) / deviation).square()
        self.deviations.append(deviation)
        self._keep(mean, -0.5 * errors.flatten(1).mean(dim=1))
        return drawn

    def again(self, listener: Listener | None = None, rows: Tensor | None = None) -> RepeatedPath:
        """The same path for another policy (or the same one later).

        Args:
            listener: called at each decision with its number, mean (B, ...) and log-probability
                (B,) under that policy. Steps share no graph: it may call `backward`.
            rows: of these songs alone.
        """
        drawn = self.drawn if rows is None else [latent[rows] for latent in self.drawn]
        return RepeatedPath(self.noise, drawn, listener)

    def _next(self, mean: Tensor, deviation: float) -> Tensor:
        noise = torch.randn(mean.shape, generator=self._random).to(mean)
        drawn = (mean + deviation * noise).detach()
        self.drawn.append(drawn)
        return drawn

    def _keep(self, mean: Tensor, log_probability: Tensor) -> None:
        self.means.append(mean.detach())
        self.log_probabilities.append(log_probability.detach())


class RepeatedPath(NoisyPath):
    """A path that was drawn before; made by `NoisyPath.again`."""

    def __init__(self, noise: float, drawn: list[Tensor], listener: Listener | None) -> None:
        super().__init__(noise, torch.Generator())
        self.drawn, self.listener = drawn, listener

    def _next(self, mean: Tensor, deviation: float) -> Tensor:
        return self.drawn[len(self.means)]

    def _keep(self, mean: Tensor, log_probability: Tensor) -> None:
        super()._keep(mean, log_probability)
        if self.listener is not None:
            self.listener(len(self.means) - 1, mean, log_probability)


def euler_step(path: NoisyPath, x: Tensor, velocity: Tensor, now: float, after: float) -> Tensor:
    """A step of a flow from time `now` to `after`; x = (1 - t) clean + t noise at time t."""
    return path.step(x - now * velocity, x + (1 - now) * velocity, 1 - after, after)


@contextmanager
def noisy_scheduler(scheduler: Any, path: NoisyPath) -> Iterator[None]:
    """Let a diffusers pipeline's scheduler step along the path.

    Takes flow-matching schedulers (ACE-Step) and those of EDM's form (Stable Audio).

    Raises:
        UsageError: a scheduler of another kind.
    """
    flow = "FlowMatch" in type(scheduler).__name__
    if not flow and not hasattr(scheduler, "precondition_outputs"):
        raise UsageError(
            f"{type(scheduler).__name__} is neither a flow-matching scheduler nor one of EDM's "
            "form; give the pipeline FlowMatchEulerDiscreteScheduler or EDMEulerScheduler"
        )

    def step(
        model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> Any:
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        now, after = (float(s) for s in scheduler.sigmas[scheduler.step_index :][:2])
        x, output = sample.float(), model_output.float()
        if flow:
            following = euler_step(path, x, output, now, after)
        else:
            clean = scheduler.precondition_outputs(x, output, now)
            following = path.step(clean, (x - clean) / now, 1.0, after)
        scheduler._step_index += 1
        following = following.to(sample.dtype)
        return _Stepped(following) if return_dict else (following,)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


class _Stepped:
    """What a pipeline reads of a scheduler's step."""

    def __init__(self, prev_sample: Tensor) -> None:
        self.prev_sample = prev_sample
