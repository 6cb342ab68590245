"""Samplers of flows and diffusion models with gradients through their last steps.

For reward back-propagation (DRaFT, arXiv 2309.17400; ReFL, arXiv 2304.05977; DITTO, arXiv
2401.12179).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from apex_reward.errors import UsageError


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
