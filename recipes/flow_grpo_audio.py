"""GRPO on a flow-matching audio model (Flow-GRPO, arXiv 2505.05470), or a diffusers pipeline.

    python recipes/flow_grpo_audio.py --output runs/flow
    python recipes/flow_grpo_audio.py --output runs/flow --reward recipes/panel.yaml
    accelerate launch recipes/flow_grpo_audio.py --output runs/flow --prompts FILE.txt \
        --pipeline ACE-Step/Ace-Step1.5 --reward-model amaai-lab/apex --sampler_steps 16 \
        --guidance_scale 1 --per_device_train_batch_size 1 --gradient_accumulation_steps 8 \
        --learning_rate 1e-4

The sampler draws at every step, so that each step has a probability; the path that it took is gone
again for the log-probabilities of the policy and of the start (LoRA switched off), one step's graph
at a time. A group of songs for every prompt gives the advantages.

With no other argument: a small flow over the notes of a song, trained here in seconds, and
apex-tiny as the reward; minutes on two CPU cores. Pipelines of diffusers with a flow-matching
scheduler (ACE-Step) or one of EDM's form (Stable Audio, which needs torchsde) train LoRA on their
transformer. ACE-Step's own guidance remembers earlier steps, whose graphs are gone: leave it at 1.

Leaves history.jsonl, summary.json, curves.png, audio/ before and after, and adapter/, which
`PeftModel.from_pretrained(pipeline.transformer, folder)` puts back. Ctrl-C ends after the step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from apex_reward.demo.flow import toy_flow
from apex_reward.demo.musicgen import CODES, FRAMES, SAMPLE_RATE, SECONDS, STYLES
from apex_reward.runs.advantages import clipped_gain
from apex_reward.runs.loop import LoopSettings, PolicyRun
from apex_reward.runs.samplers import NoisyPath, euler_step, noisy_scheduler
from apex_reward.runs.settings import RewardSettings, output_field, parse_settings, said


@dataclass
class Settings(LoopSettings):
    """The loop, with this recipe's defaults."""

    output_dir: str = output_field("runs/flow_grpo_audio")
    max_steps: int = said(16, "of sampling, each with its updates")
    learning_rate: float = said(6e-3, "of AdamW")
    epsilon: float = said(1e-2, "how far the ratio may go from 1 before it stops to count")
    beta: float = said(0.01, "weight of the KL to the start")
    warm_steps: int = said(300, "of the toy's first training")
    sampler_steps: int = said(6, "of a song")
    noise: float = said(0.8, "share of chance in a step")
    pipeline: str | None = said(None, "hub id or folder of a diffusers audio pipeline")
    guidance_scale: float | None = said(None, "classifier-free; none: the pipeline's own")


def main(arguments: Sequence[str] | None = None) -> None:
    settings, own = parse_settings(RewardSettings, Settings, arguments=arguments)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(own.seed)
    toy = own.pipeline is None
    generator: Any = (ToyGenerator if toy else PipelineGenerator)(own, accelerator.device)
    run = PolicyRun(
        own, settings, accelerator, generator.prompts, generator.sample_rate,
        SECONDS if toy else None,
    )  # fmt: skip
    parameters = [p for p in generator.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=own.learning_rate, weight_decay=0.0)
    for _ in run.steps():
        texts = run.draw()
        seeds = torch.randint(2**31, (len(texts),), generator=run.random).tolist()
        path = NoisyPath(own.noise, run.random)
        advantages = run.advantages(texts, generator.songs(texts, seeds, path))
        taken = texts, seeds, path, advantages
        run.log_step(update(own, accelerator, generator, optimizer, taken))
    run.finish(generator.policy)


def update(
    own: Settings,
    accelerator: Accelerator,
    generator: Any,
    optimizer: Any,
    taken: tuple[list[str], list[int], NoisyPath, Tensor],
) -> dict[str, float]:
    """A few passes over the paths of a step; means of what was measured."""
    texts, seeds, path, advantages = taken
    sums = {"kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
    chunks = torch.arange(len(texts)).chunk(own.gradient_accumulation_steps)
    start = path.again()
    with torch.no_grad(), generator.policy.disable_adapter():
        generator.run(texts, seeds, start)
    parts = own.num_iterations * len(chunks) * len(path.means)

    def learn(rows: Tensor) -> None:
        """Go the paths of some songs again; each decision adds to the gradient."""

        def decide(number: int, mean: Tensor, new: Tensor) -> None:
            old, gain_of = path.log_probabilities[number][rows], advantages[rows]
            gain, share = clipped_gain(new, old, gain_of, own.epsilon)
            moved = (mean - start.means[number][rows]) / path.deviations[number]
            kl = moved.square().flatten(1).mean(dim=1) / 2
            loss = (own.beta * kl - gain).mean() / (len(chunks) * len(path.means))
            accelerator.backward(loss)
            sums["kl"] += kl.mean().item() / parts
            sums["clipped"] += share / parts

        some = [texts[i] for i in rows.tolist()], [seeds[i] for i in rows.tolist()]
        generator.run(*some, path.again(decide, rows))

    for _ in range(own.num_iterations):
        for rows in chunks:
            learn(rows)
        weights = [p for p in generator.policy.parameters() if p.grad is not None]
        for weight in weights:
            weight.grad = accelerator.reduce(weight.grad, "mean")
        sums["grad_norm"] += (
            float(nn.utils.clip_grad_norm_(weights, own.max_grad_norm)) / own.num_iterations
        )
        optimizer.step()
        optimizer.zero_grad()
    return sums


class ToyGenerator:
    """The flow over notes, with LoRA on its convolutions. B = songs, T = samples."""

    sample_rate, prompts = SAMPLE_RATE, list(STYLES)

    def __init__(self, own: Settings, device: torch.device) -> None:
        self.steps = own.sampler_steps
        flow = toy_flow(own.seed, own.warm_steps)
        layers = [f"hidden.{i}" for i in range(len(flow.hidden))] + ["entry", "last"]
        self.policy = get_peft_model(flow, lora(own, layers)).to(device).eval()
        self.device = device

    def run(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """The levels of B songs, each from the noise of its seed, along a path."""
        x = torch.stack([torch.randn(CODES, FRAMES, generator=seeded(seed)) for seed in seeds])
        x = x.to(self.device)
        styles = torch.tensor([STYLES.index(text) for text in texts], device=self.device)
        for step in range(self.steps):
            now, after = 1 - step / self.steps, 1 - (step + 1) / self.steps
            velocity = self.policy(x, torch.full((len(x),), now, device=self.device), styles)
            x = euler_step(path, x, velocity, now, after)
        return x

    @torch.no_grad()
    def songs(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """Songs (B, T)."""
        return self.policy.get_base_model().songs(self.run(texts, seeds, path))


class PipelineGenerator:
    """A diffusers audio pipeline, with LoRA on its transformer. B = songs, C = channels."""

    def __init__(self, own: Settings, device: torch.device) -> None:
        from diffusers import DiffusionPipeline

        self.pipeline = DiffusionPipeline.from_pretrained(own.pipeline).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        self.policy = get_peft_model(
            self.pipeline.transformer, lora(own, ["to_q", "to_k", "to_v", "to_out.0"])
        ).eval()
        self.pipeline.transformer = self.policy
        self.prompts = own.read_prompts()
        self.sample_rate = int(self.pipeline.vae.config.sampling_rate)
        # A pipeline's call shuts gradients off; what is inside is run instead.
        self.call = inspect.unwrap(type(self.pipeline).__call__)
        accepted = inspect.signature(self.call).parameters
        lengths = ("audio_duration", "audio_end_in_s", "audio_length_in_s")
        self.options: dict[str, Any] = {
            name: own.audio_seconds for name in lengths if name in accepted
        }
        self.options["num_inference_steps"] = own.sampler_steps
        if own.guidance_scale is not None:
            self.options["guidance_scale"] = own.guidance_scale

    def run(
        self, texts: list[str], seeds: list[int], path: NoisyPath, output_type: str = "latent"
    ) -> Tensor:
        """What B songs come to, each from the noise of its seed, along a path."""
        generators = [seeded(seed) for seed in seeds]
        with noisy_scheduler(self.pipeline.scheduler, path):
            return self.call(
                self.pipeline, texts, generator=generators, output_type=output_type, **self.options
            ).audios

    @torch.no_grad()
    def songs(self, texts: list[str], seeds: list[int], path: NoisyPath) -> Tensor:
        """Songs (B, C, T)."""
        return self.run(texts, seeds, path, "pt").float()


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for a song: whatever is beside it, its noise is the same."""
    return torch.Generator().manual_seed(seed)


def lora(own: Settings, layers: list[str]) -> LoraConfig:
    """Adapters on these layers."""
    return LoraConfig(r=own.lora_r, lora_alpha=2 * own.lora_r, target_modules=layers)


if __name__ == "__main__":
    main()
