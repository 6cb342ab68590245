"""GRPO on a flow-matching audio model (Flow-GRPO, arXiv 2505.05470), or a diffusers pipeline.

    python recipes/flow_grpo_audio.py --output runs/flow
    python recipes/flow_grpo_audio.py --output runs/flow --reward recipes/panel.yaml
    accelerate launch recipes/flow_grpo_audio.py --output runs/flow --prompts FILE.txt \
        --pipeline ACE-Step/Ace-Step1.5 --reward-model amaai-lab/apex --sampler_steps 16 \
        --guidance_scale 1 --per_device_train_batch_size 1 --gradient_accumulation_steps 8 \
        --learning_rate 1e-4

The sampler draws noise at every step, so each step has a probability. The steps are then repeated
for the log-probabilities of the policy and of the start (LoRA switched off), one step's graph at a
time. A group of songs for every prompt gives the advantages.

Without other arguments it trains a small flow over melodies first and uses apex-tiny; this takes
minutes on two CPU cores. Pipelines of diffusers train LoRA on their attention: Stable Audio (needs
torchsde), Stable Audio 3, ACE-Step and LongCat-AudioDiT. Their table is
`apex_reward.runs.pipelines.PIPELINES`. The recipe prints the length, the rate and the share of the
attention weights that it adapts. ACE-Step's own guidance uses earlier steps, whose graphs are
freed, so its scale is 1 here.

Writes history.jsonl, summary.json, curves.png, audio/ before and after, and adapter/, which
`PeftModel.from_pretrained(pipeline.transformer, folder)` loads (with ACE-Step also
`pipeline.load_lora_weights(folder)`). Ctrl-C ends after the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from apex_reward.errors import UsageError
from apex_reward.runs.loop import LoopSettings, PolicyRun, clipped_gain
from apex_reward.runs.pipelines import AudioPipeline
from apex_reward.runs.settings import (
    RewardSettings,
    option,
    output_field,
    parse_settings,
    read_prompts,
)
from toys.melodies import (
    CONTROLS,
    FRAMES,
    SONG_SECONDS,
    MelodyFlow,
    melody_prompts,
    melody_references,
    synthesize,
)

Listener = Callable[[int, Tensor, Tensor], None]


@dataclass
class Settings(LoopSettings):
    """The settings of the loop with the defaults of this recipe."""

    output_dir: str = output_field("runs/flow_grpo_audio")
    max_steps: int = option(16, "steps, each with fresh songs")
    learning_rate: float = option(6e-3, "learning rate of AdamW")
    epsilon: float = option(1e-2, "distance of the ratio from 1 at which it is clipped")
    beta: float = option(0.01, "weight of the KL from the start")
    warm_steps: int = option(300, "training steps of the small generator")
    sampler_steps: int = option(6, "sampler steps of a song")
    noise: float = option(0.8, "share of the noise in a step that is drawn anew")
    pipeline: str | None = option(None, "hub id or folder of a diffusers audio pipeline")
    guidance_scale: float | None = option(None, "classifier-free guidance (the pipeline's)")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, own = parse_settings(RewardSettings, Settings, arguments=arguments)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(own.seed)
    toy = own.pipeline is None
    prompts = melody_prompts()[1] if toy else read_prompts(own.prompts)
    generator: Any = ToyGenerator(own) if toy else Pipeline(own)
    generator.to(accelerator.device)
    run = PolicyRun(
        own, settings, accelerator, prompts, generator.sample_rate,
        *((melody_references, SONG_SECONDS) if toy else ()),
    )  # fmt: skip
    parameters = [p for p in generator.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=own.learning_rate, weight_decay=0.0)
    accelerator.print(generator)
    for _ in run.steps():
        texts = run.draw()
        seeds = torch.randint(2**31, (len(texts),), generator=run.random).tolist()
        size = 1 if generator.alone else -(-len(texts) // own.gradient_accumulation_steps)
        parts = [slice(start, start + size) for start in range(0, len(texts), size)]
        rollouts = [Rollout(generator, texts[p], seeds[p], own.noise, run.random) for p in parts]
        advantages = run.advantages(texts, torch.cat([rollout.songs for rollout in rollouts]))
        for rollout, part in zip(rollouts, parts, strict=True):
            rollout.advantages = advantages[part]
        run.log_step(update(own, accelerator, generator, optimizer, rollouts))
    run.finish(generator)


class Rollout:
    """The songs of a micro-batch, and the path of the policy and of the start to them."""

    @torch.no_grad()
    def __init__(
        self, generator: Any, texts: list[str], seeds: list[int], noise: float, random: Any
    ) -> None:
        self.inputs, self.path = (texts, seeds), NoisyPath(noise, random)
        self.songs = generator.songs(*self.inputs, self.path)
        self.start = self.path.again()
        with generator.policy.disable_adapter():
            generator.run(*self.inputs, self.start)
        self.advantages = torch.empty(0)


def update(
    own: Settings,
    accelerator: Accelerator,
    generator: Any,
    optimizer: Any,
    rollouts: list[Rollout],
) -> dict[str, float]:
    """A few passes over the paths of a step; returns the means of their figures."""
    sums = {"kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
    decisions = len(rollouts) * len(rollouts[0].path.means)
    parts = own.num_iterations * decisions

    def learn(rollout: Rollout) -> None:
        """Repeat a path; each decision adds to the gradient."""
        path, start = rollout.path, rollout.start

        def decide(number: int, mean: Tensor, new: Tensor) -> None:
            old = path.log_probabilities[number]
            gain, share = clipped_gain(new, old, rollout.advantages, own.epsilon)
            moved = (mean - start.means[number]) / path.deviations[number]
            kl = moved.square().flatten(1).mean(dim=1) / 2
            accelerator.backward((own.beta * kl - gain).mean() / decisions)
            sums["kl"] += kl.mean().item() / parts
            sums["clipped"] += share / parts

        generator.run(*rollout.inputs, path.again(decide))

    for _ in range(own.num_iterations):
        for rollout in rollouts:
            learn(rollout)
        weights = [p for p in generator.policy.parameters() if p.grad is not None]
        for weight in weights:
            weight.grad = accelerator.reduce(weight.grad, "mean")
        sums["grad_norm"] += (
            float(nn.utils.clip_grad_norm_(weights, own.max_grad_norm)) / own.num_iterations
        )
        optimizer.step()
        optimizer.zero_grad()
    return sums


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


class ToyGenerator:
    """The flow over melodies, with LoRA on its convolutions. B = songs, T = samples."""

    sample_rate, alone = MelodyFlow.sample_rate, False

    def __init__(self, own: Settings) -> None:
        flow = MelodyFlow(own.sampler_steps, seed=own.seed, fit_steps=own.warm_steps)
        layers = ["input", *(f"hidden.{i}" for i in range(len(flow.hidden))), "output"]
        lora = LoraConfig(r=own.lora_r, lora_alpha=2 * own.lora_r, target_modules=layers)
        self.policy = get_peft_model(flow, lora).eval()
        self.save_pretrained, self.to = self.policy.save_pretrained, self.policy.to

    def __str__(self) -> str:
        return f"toy flow: songs of {SONG_SECONDS:g} s at {self.sample_rate} Hz"

    def run(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """The controls of B songs, each from the noise of its seed, along a path."""
        flow = self.policy.get_base_model()
        condition = flow.condition(texts)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = [torch.randn(CONTROLS, FRAMES, generator=one) for one in generators]
        x = torch.stack(noise).to(condition)
        for step in range(flow.steps):
            now, after = 1 - step / flow.steps, 1 - (step + 1) / flow.steps
            velocity = flow.velocity(x, torch.full_like(condition[:, 0], now), condition)
            x = euler_step(path, x, velocity, now, after)
        return x

    def songs(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """Songs (B, T)."""
        return synthesize(self.run(texts, seeds, path))


class Pipeline:
    """A pipeline of diffusers, whose scheduler steps along a path. B = songs, C = channels."""

    def __init__(self, own: Settings) -> None:
        self.audio = AudioPipeline(
            own.pipeline, own.audio_seconds, own.sampler_steps, own.lora_r,
            guidance=own.guidance_scale, policy_gradient=True,
        )  # fmt: skip
        self.alone, self.policy = self.audio.alone, self.audio.policy
        self.sample_rate = self.audio.sample_rate
        self.save_pretrained, self.to = self.audio.save_pretrained, self.audio.to

    def __str__(self) -> str:
        return str(self.audio)

    def run(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """The latents of B songs along a path."""
        with noisy_scheduler(self.audio.pipeline.scheduler, path):
            return self.audio.run(texts, seeds)

    def songs(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """Songs (B, C, T)."""
        with noisy_scheduler(self.audio.pipeline.scheduler, path):
            return self.audio.songs(texts, seeds)


if __name__ == "__main__":
    main()
