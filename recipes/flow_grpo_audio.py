"""GRPO on a flow-matching audio model (Flow-GRPO, arXiv 2505.05470), or a diffusers pipeline.

    python recipes/flow_grpo_audio.py --output runs/flow
    accelerate launch recipes/flow_grpo_audio.py --output runs/flow --prompts FILE.txt \
        --pipeline ACE-Step/Ace-Step1.5 --reward amaai-lab/apex --seconds 30 --sampler-steps 16 \
        --guidance 1 --group 8 --prompts-per-step 1 --micro-batches 8 --learning-rate 1e-4

The sampler draws at every step, so that each step has a probability; the path that it took is gone
again for the log-probabilities of the policy and of the start (LoRA switched off), one step's graph
at a time. A group of songs for every prompt gives the advantages.

With no other argument: a small flow over the notes of a song, trained here in seconds, and
apex-tiny as the reward; minutes on two CPU cores. Pipelines of diffusers with a flow-matching
scheduler (ACE-Step) or one of EDM's form (Stable Audio, which needs torchsde) train LoRA on their
transformer. ACE-Step's own guidance remembers earlier steps, whose graphs are gone: leave it at 1.

Leaves history.jsonl, summary.json, curves.png, audio/ before and after, and adapter/, which
`PeftModel.from_pretrained(pipeline.transformer, folder)` puts back.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from apex_reward import ApexReward, Guards, Reward
from apex_reward.demo.flow import toy_flow
from apex_reward.demo.musicgen import CODES, FRAMES, SAMPLE_RATE, SECONDS, STYLES
from apex_reward.rewards.noisy import NoisyPath, euler_step, noisy_scheduler
from apex_reward.rewards.policy import (
    PolicyRun,
    clipped_gain,
    group_advantages,
    policy_options,
)


def main() -> None:
    args = parse_arguments()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(args.seed)
    generator = (PipelineGenerator if args.pipeline else ToyGenerator)(args, accelerator.device)
    reward = make_reward(args, accelerator.device)
    run = PolicyRun(args.output, generator.sample_rate)
    train(args, accelerator, generator, reward, run)
    if accelerator.is_main_process:
        generator.policy.save_pretrained(str(args.output / "adapter"))
        run.finish(vars(args), reward.demonstration)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    generator: Any,
    reward: Reward,
    run: PolicyRun,
) -> None:
    """Sample, judge, update, a step after the other."""
    parameters = [p for p in generator.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.0)
    random = torch.Generator().manual_seed(args.seed + 1000 * accelerator.process_index)
    for _ in range(args.steps):
        order = torch.randperm(len(generator.prompts), generator=random)
        texts = [generator.prompts[i] for i in order[: args.prompts_per_step].tolist()]
        texts = [text for text in texts for _ in range(args.group)]
        seeds = torch.randint(2**31, (len(texts),), generator=random).tolist()
        path = NoisyPath(args.noise, random)
        songs = generator.songs(texts, seeds, path)
        rows = reward.judge(list(songs), texts, sample_rate=generator.sample_rate)
        values = torch.tensor([row["reward"] for row in rows], device=accelerator.device)
        everyone = accelerator.gather(values)
        advantages = group_advantages(values, texts) / (everyone.std() + 1e-6)
        measured = update(args, accelerator, generator, optimizer, (texts, seeds, path, advantages))
        run.step(accelerator, measured, songs, everyone, rows)


def update(
    args: argparse.Namespace,
    accelerator: Accelerator,
    generator: Any,
    optimizer: Any,
    taken: tuple[list[str], list[int], NoisyPath, Tensor],
) -> dict[str, float]:
    """A few passes over the paths of a step; means of what was measured."""
    texts, seeds, path, advantages = taken
    sums = {"kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
    chunks = torch.arange(len(texts)).chunk(args.micro_batches)
    start = path.again()
    with torch.no_grad(), generator.policy.disable_adapter():
        generator.run(texts, seeds, start)
    parts = args.passes * len(chunks) * len(path.means)

    def learn(rows: Tensor) -> None:
        """Go the paths of some songs again; each decision adds to the gradient."""

        def decide(number: int, mean: Tensor, new: Tensor) -> None:
            old, gain_of = path.log_probabilities[number][rows], advantages[rows]
            gain, share = clipped_gain(new, old, gain_of, args.clip)
            moved = (mean - start.means[number][rows]) / path.deviations[number]
            kl = moved.square().flatten(1).mean(dim=1) / 2
            loss = (args.kl * kl - gain).mean() / (len(chunks) * len(path.means))
            accelerator.backward(loss)
            sums["kl"] += kl.mean().item() / parts
            sums["clipped"] += share / parts

        some = [texts[i] for i in rows.tolist()], [seeds[i] for i in rows.tolist()]
        generator.run(*some, path.again(decide, rows))

    for _ in range(args.passes):
        for rows in chunks:
            learn(rows)
        weights = [p for p in generator.policy.parameters() if p.grad is not None]
        for weight in weights:
            weight.grad = accelerator.reduce(weight.grad, "mean")
        sums["grad_norm"] += float(nn.utils.clip_grad_norm_(weights, args.max_norm)) / args.passes
        optimizer.step()
        optimizer.zero_grad()
    return sums


class ToyGenerator:
    """The flow over notes, with LoRA on its convolutions. B = songs, T = samples."""

    sample_rate, prompts = SAMPLE_RATE, list(STYLES)

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.steps = args.sampler_steps
        flow = toy_flow(args.seed, args.warm_steps)
        layers = [f"hidden.{i}" for i in range(len(flow.hidden))] + ["entry", "last"]
        self.policy = get_peft_model(flow, lora(args, layers)).to(device).eval()
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

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        from diffusers import DiffusionPipeline

        self.pipeline = DiffusionPipeline.from_pretrained(args.pipeline).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        self.policy = get_peft_model(
            self.pipeline.transformer, lora(args, ["to_q", "to_k", "to_v", "to_out.0"])
        ).eval()
        self.pipeline.transformer = self.policy
        self.prompts = args.prompts.read_text(encoding="utf-8").splitlines()
        self.sample_rate = int(self.pipeline.vae.config.sampling_rate)
        # A pipeline's call shuts gradients off; what is inside is run instead.
        self.call = inspect.unwrap(type(self.pipeline).__call__)
        accepted = inspect.signature(self.call).parameters
        lengths = ("audio_duration", "audio_end_in_s", "audio_length_in_s")
        self.options: dict[str, Any] = {name: args.seconds for name in lengths if name in accepted}
        self.options["num_inference_steps"] = args.sampler_steps
        if args.guidance is not None:
            self.options["guidance_scale"] = args.guidance

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


def lora(args: argparse.Namespace, layers: list[str]) -> LoraConfig:
    """Adapters on these layers."""
    return LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=layers)


def make_reward(args: argparse.Namespace, device: torch.device) -> Reward:
    """The reward model with its mix, loudness and guards."""
    # The toy's songs fill one short segment; the published model hears 30 s at a time.
    settings = {} if args.pipeline else {"segment_seconds": SECONDS}
    model = ApexReward.from_pretrained(args.reward, **settings).to(device)
    guards = Guards.default("penalty", args.penalty)
    shortest = SECONDS if args.pipeline is None else args.seconds
    guards = guards.limit("duration", low=shortest / 2)
    return Reward(model, args.mix, loudness=args.loudness, guards=guards)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/flow_grpo_audio"))
    policy_options(parser, steps=16, learning_rate=6e-3, clip=1e-2, kl=0.01)
    parser.add_argument("--sampler-steps", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.8, help="share of chance in a step")
    parser.add_argument("--warm-steps", type=int, default=300, help="of the toy's first training")
    real = parser.add_argument_group("a real pipeline")
    real.add_argument("--pipeline", help="hub id or folder of a diffusers audio pipeline")
    real.add_argument("--prompts", type=Path, help="a text file, a prompt a line")
    real.add_argument("--seconds", type=float, default=30.0, help="of a song")
    real.add_argument("--guidance", type=float, help="classifier-free; none: the pipeline's own")
    args = parser.parse_args()
    if args.pipeline and not args.prompts:
        parser.error("--pipeline needs --prompts")
    return args


if __name__ == "__main__":
    main()
