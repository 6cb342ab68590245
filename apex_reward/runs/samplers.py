"""Samplers of flows and diffusion models: gradients through the last steps, and random steps.

Reward back-propagation (DRaFT, arXiv 2309.17400; ReFL, arXiv 2304.05977; DITTO, arXiv 2401.12179)
needs `run_sampler` or `LastSteps`; policy gradients need the random steps of `NoisyPath`.

Shape key: B = songs, ... = the rest of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from apex_reward.errors import UsageError

Listener = Callable[[int, Tensor, Tensor], None]


class NoisyPath:
    """Sampler steps with random noise, each with a probability; the path can be repeated.

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
        self._former: Sequence[Tensor] | None = None  # the decisions of a path that is repeated
        self._listener: Listener = lambda number, mean, log_probability: None
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
        number = len(self.means)
        if self._former is None:
            chance = torch.randn(mean.shape, generator=self._random).to(mean)
            drawn = (mean + deviation * chance).detach()
        else:
            drawn = self._former[number]
        log_probability = -0.5 * ((drawn - mean) / deviation).square().flatten(1).mean(dim=1)
        self.drawn.append(drawn)
        self.means.append(mean.detach())
        self.deviations.append(deviation)
        self.log_probabilities.append(log_probability.detach())
        self._listener(number, mean, log_probability)
        return drawn

    def again(self, listener: Listener | None = None) -> NoisyPath:
        """The same path for another policy (or the same one later).

        Args:
            listener: called at each decision with its number, mean (B, ...) and log-probability
                (B,) under that policy. Steps share no graph: it may call `backward`.
        """
        path = NoisyPath(self.noise, self._random)
        path._former = self.drawn
        path._listener = listener or path._listener
        return path


def euler_step(path: NoisyPath, x: Tensor, velocity: Tensor, now: float, after: float) -> Tensor:
    """A step of a flow from time `now` to `after`; x = (1 - t) clean + t noise at time t."""
    return path.step(x - now * velocity, x + (1 - now) * velocity, 1 - after, after)


@contextmanager
def noisy_scheduler(scheduler: Any, path: NoisyPath) -> Iterator[None]:
    """Let a diffusers pipeline's scheduler step along the path.

    Takes FlowMatchEulerDiscreteScheduler and schedulers of EDM's form (Stable Audio's own). With
    `invert_sigmas` (LongCat) a sigma is the share of the song, and the model's velocity leads from
    the noise to the song. With `stochastic_sampling` (Stable Audio 3) the scheduler's own step is
    that of a path with noise 1.

    Raises:
        UsageError: a scheduler of another kind.
    """
    flow = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    if not flow and not hasattr(scheduler, "precondition_outputs"):
        raise UsageError(
            f"{type(scheduler).__name__} is neither FlowMatchEulerDiscreteScheduler nor of EDM's "
            "form; give the pipeline FlowMatchEulerDiscreteScheduler or EDMEulerScheduler"
        )
    inverted = flow and bool(scheduler.config.invert_sigmas)

    def step(
        model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any
    ) -> Any:
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        now, after = (float(s) for s in scheduler.sigmas[scheduler.step_index :][:2])
        x, output = sample.float(), model_output.float()
        if inverted:
            following = euler_step(path, x, -output, 1 - now, 1 - after)
        elif flow:
            following = euler_step(path, x, output, now, after)
        else:
            clean = scheduler.precondition_outputs(x, output, now)
            following = path.step(clean, (x - clean) / now, 1.0, after)
        scheduler._step_index += 1
        following = following.to(sample.dtype)
        return SimpleNamespace(prev_sample=following) if return_dict else (following,)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


def run_sampler(
    step: Callable[[Tensor, int], Tensor],
    state: Tensor,
    steps: int,
    last: int | None = None,
    recompute: bool = False,
) -> Tensor:
    """Run a sampler with back-propagation through its last steps only.

    DRaFT-K: `last=K`. ReFL: stop early at a random step, `last=1`. DITTO (the initial noise is what
    is optimised): `last=None` and `recompute=True`.

    For DDP or FSDP wrap a module whose `forward` runs the whole sampler, so that the wrapper sees
    one forward pass per backward pass.

    Args:
        step: (state, index) to the next state; any shape.
        state: the initial state, usually noise.
        steps: how many steps, at least 1.
        last: through how many of them gradients flow, in [1, steps]; None: all.
        recompute: keep only the states between those steps and recompute the rest in the backward
            pass: memory of one step, for one more forward pass. Random numbers are repeated.

    Returns:
        The state after the last step, on the graph of the last `last` steps.

    Raises:
        UsageError: `steps` or `last` out of range.
    """
    last = steps if last is None else last
    if steps < 1 or not 1 <= last <= steps:
        raise UsageError(f"last is {last} of {steps} steps; expected 1 <= last <= steps")
    with torch.no_grad():
        for index in range(steps - last):
            state = step(state, index)
    for index in range(steps - last, steps):
        if recompute:
            state = checkpoint(step, state, index, use_reentrant=False)
        else:
            state = step(state, index)
    return state


class LastSteps:
    """Gradients for the last steps of another library's sampler, through its callback.

    For diffusers pipelines, whose `__call__` runs all steps itself. `inspect.unwrap` takes their
    no-grad decorator off; the callback then switches gradients on in time. Where gradients are off
    already (an evaluation under `torch.no_grad`), they stay off.

        with LastSteps(steps, last) as callback:
            run = inspect.unwrap(type(pipeline).__call__)
            audio = run(pipeline, prompt, num_inference_steps=steps, output_type="pt",
                        callback=callback, callback_steps=1).audios

    Args:
        steps: how many steps the sampler makes, at least 1.
        last: through how many of them gradients flow, in [1, steps].

    Raises:
        UsageError: `last` out of range.
    """

    def __init__(self, steps: int, last: int) -> None:
        if not 1 <= last <= steps:
            raise UsageError(f"last is {last} of {steps} steps; expected 1 <= last <= steps")
        self.first = steps - last
        self._done = 0
        self._before = True

    def __enter__(self) -> LastSteps:
        self._before = torch.is_grad_enabled()
        self._done = 0
        torch.set_grad_enabled(self._before and self.first == 0)
        return self

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Called after every step, whatever the pipeline hands over; changes nothing there."""
        self._done += 1
        if self._done == self.first:
            torch.set_grad_enabled(self._before)
        return {}

    def __exit__(self, *error: object) -> None:
        torch.set_grad_enabled(self._before)
