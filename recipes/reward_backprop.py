"""Back-propagate ApexReward into an audio generator: DRaFT on a flow, or on a diffusers pipeline.

    python recipes/reward_backprop.py --output runs/backprop

With no other argument: a small flow-matching generator is trained here on melodies with hiss and
distortion, then improved through the reward's gradient on some prompts and judged on others; a few
minutes on two CPU cores. For the real thing name a diffusers audio pipeline, which trains LoRA on
its transformer or U-Net:

    accelerate launch recipes/reward_backprop.py --output runs/backprop --prompts FILE.txt \
        --pipeline stabilityai/stable-audio-open-1.0 --reward-model amaai-lab/apex \
        --sampler-steps 50 --last 1 --batch 1 --learning-rate 1e-4

Leaves history.jsonl (`reward` of training prompts, `held_out`, `grad_norm`), summary.json,
curves.png, trained.safetensors and audio/ of held-out prompts before and after.
"""

from __future__ import annotations

import argparse
import inspect
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from apex_reward import ApexReward, Reward
from apex_reward.audio import save_wav
from apex_reward.report.run import write_run
from apex_reward.rewards import Guards
from apex_reward.rewards.gradient import LastSteps, run_sampler

# The toy's songs: 16 frames of a quarter second; in each the level of 24 pitches, and how
# much it hisses, distorts and sustains.
SAMPLE_RATE = 24_000
FRAMES, FRAME_SECONDS = 16, 0.25
PITCHES, REGISTERS, DENSITIES = 24, 4, 3
CONTROLS = PITCHES + 3


def main() -> None:
    args = parse_arguments()
    started = time.time()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), gradient_accumulation_steps=args.accumulate
    )
    set_seed(args.seed)
    toy = args.pipeline is None
    settings = {"segment_seconds": FRAMES * FRAME_SECONDS} if toy else {}
    model = ApexReward.from_pretrained(args.reward_model, **settings).to(accelerator.device)
    generator = FlowGenerator(args) if toy else PipelineGenerator(args)
    generator.to(accelerator.device)
    prompts, held_out = generator.prompts()
    reward = Reward(model, args.mix, loudness=args.loudness)
    judge = Judge(generator, reward, held_out, args)
    before = judge.songs()
    history = train(args, accelerator, generator, reward, prompts, judge)
    if accelerator.is_main_process:
        trained = {
            name: p.detach().cpu() for name, p in generator.named_parameters() if p.requires_grad
        }
        args.output.mkdir(parents=True, exist_ok=True)
        save_file(trained, args.output / "trained.safetensors")
        write_results(args, history, before, judge, started)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    generator: Any,
    reward: Reward,
    prompts: list[Any],
    judge: Judge,
) -> list[dict[str, Any]]:
    """Climb the reward; a row per step."""
    parameters = [p for p in generator.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    wrapped, optimizer = accelerator.prepare(
        generator, torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.0)
    )
    random = torch.Generator().manual_seed(args.seed + accelerator.process_index)
    history: list[dict[str, Any]] = []
    for step in range(1, args.steps + 1):
        for _ in range(args.accumulate):
            chosen = torch.randint(len(prompts), (args.batch,), generator=random).tolist()
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    waveforms = wrapped([prompts[i] for i in chosen], random)
                rewards = reward(waveforms, generator.sample_rate)
                # Staying near the start keeps the songs of the generator from becoming one.
                drift = sum((p - q).square().sum() for p, q in zip(parameters, start, strict=True))
                accelerator.backward(args.anchor * drift - rewards.mean())
                norm = accelerator.clip_grad_norm_(parameters, args.clip)
                optimizer.step()
                optimizer.zero_grad()
        mean = accelerator.gather(rewards.detach()).mean().item()
        history.append({"step": step, "reward": mean, "grad_norm": float(norm)})
        if step % args.judge_every == 0 or step == args.steps:
            history[-1]["held_out"] = statistics.fmean(judge.songs()["rewards"])
            accelerator.print({name: round(value, 4) for name, value in history[-1].items()})
    return history


class Judge:
    """Songs of the held-out prompts from noise that is always the same, scored as they are."""

    def __init__(
        self, generator: Any, reward: Reward, prompts: list[Any], args: argparse.Namespace
    ) -> None:
        self.generator, self.reward, self.prompts, self.args = generator, reward, prompts, args
        self.guards = Guards().limit("duration", low=FRAMES * FRAME_SECONDS / 2)

    @torch.no_grad()
    def songs(self) -> dict[str, Any]:
        """Waveforms (B, T), their rewards and the guards that they trip."""
        random = torch.Generator().manual_seed(12345)
        waveforms = self.generator(self.prompts, random)
        rate = self.generator.sample_rate
        rewards = self.reward(waveforms, rate)
        flags = [self.guards.flags(self.guards.measure(song, rate)) for song in waveforms]
        return {"waveforms": waveforms.cpu(), "rewards": rewards.tolist(), "flags": flags}


class FlowGenerator(nn.Module):
    """A rectified flow (arXiv 2209.03003) over the controls of a differentiable synthesiser.

    A prompt is (register, density). B = songs, F = frames, K = controls, T = samples.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.steps, self.last = args.sampler_steps, args.last
        self.input = nn.Conv1d(CONTROLS + REGISTERS + DENSITIES + 1, 96, 3, padding=1)
        self.hidden = nn.ModuleList(nn.Conv1d(96, 96, 5, padding=2) for _ in range(3))
        self.output = nn.Conv1d(96, CONTROLS, 1)
        self.fit(args.seed)

    def prompts(self) -> tuple[list[Any], list[Any]]:
        """Two thirds of the combinations to train on, four songs each of the others to judge by."""
        every = [(r, d) for r in range(REGISTERS) for d in range(DENSITIES)]
        unseen = [(r, d) for r, d in every if (r + d) % 3 == 0]
        return [prompt for prompt in every if prompt not in unseen], unseen * 4

    def velocity(self, x: Tensor, time_: Tensor, condition: Tensor) -> Tensor:
        """(B, K, F) at times (B,) under conditions (B, REGISTERS + DENSITIES)."""
        known = torch.cat([condition, time_[:, None]], dim=1)[:, :, None].expand(-1, -1, FRAMES)
        h = self.input(torch.cat([x, known], dim=1))
        for layer in self.hidden:
            h = h + torch.nn.functional.silu(layer(h))
        return self.output(h)

    def forward(self, prompts: list[tuple[int, int]], random: torch.Generator) -> Tensor:
        """Songs (B, T), with gradients through the last steps of the sampler."""
        condition = one_hot(prompts).to(self.output.weight.device)
        noise = torch.randn(len(prompts), CONTROLS, FRAMES, generator=random).to(condition)

        def step(x: Tensor, index: int) -> Tensor:
            time_ = torch.full((len(x),), index / self.steps, device=x.device)
            return x + self.velocity(x, time_, condition) / self.steps

        return synthesize(run_sampler(step, noise, self.steps, self.last).float())

    def fit(self, seed: int, steps: int = 400) -> None:
        """Flow matching on random melodies, some seconds."""
        random = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        for _ in range(steps):
            data, condition = random_melodies(64, random)
            noise = torch.randn(data.shape, generator=random)
            time_ = torch.rand(len(data), generator=random)
            mixed = torch.lerp(noise, data, time_[:, None, None])
            error = self.velocity(mixed, time_, condition) - (data - noise)
            error.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def one_hot(prompts: list[tuple[int, int]]) -> Tensor:
    """Conditions (B, REGISTERS + DENSITIES) of (register, density) prompts."""
    registers, densities = torch.tensor(prompts).unbind(1)
    return torch.cat([torch.eye(REGISTERS)[registers], torch.eye(DENSITIES)[densities]], dim=1)


def random_melodies(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Controls (B, K, F) about -1 (off) and 1 (on), and their conditions; all distort."""
    prompts = [
        (int(torch.randint(REGISTERS, (1,), generator=random)),
         int(torch.randint(DENSITIES, (1,), generator=random)))
        for _ in range(count)
    ]  # fmt: skip
    registers, densities = torch.tensor(prompts).unbind(1)
    data = torch.full((count, CONTROLS, FRAMES), -1.0)
    for voice in range(1 + DENSITIES):
        pitch = registers[:, None] * 5 + torch.randint(9, (count, FRAMES), generator=random)
        on = torch.rand(count, FRAMES, generator=random) < 0.7
        on &= (voice <= densities)[:, None]
        data.scatter_(1, pitch[:, None], torch.where(on, 1.0, -1.0)[:, None])
    data[:, PITCHES:] = 0.6 + 0.2 * torch.randn(count, 3, 1, generator=random)
    data += 0.1 * torch.randn(data.shape, generator=random)
    return data, one_hot(prompts)


def synthesize(controls: Tensor) -> Tensor:
    """Controls (B, K, F) to songs (B, T): decaying harmonic notes, hiss, soft distortion."""
    slot = round(FRAME_SECONDS * SAMPLE_RATE)
    time_ = torch.arange(FRAMES * slot, device=controls.device) / SAMPLE_RATE
    frequency = 110 * 2 ** (torch.arange(PITCHES, device=controls.device) / 6)
    wave = sum(
        torch.sin(2 * math.pi * n * frequency[:, None] * time_) / n**1.5 for n in range(1, 5)
    )
    level = torch.sigmoid(4 * controls).repeat_interleave(slot, dim=2)  # (B, K, T)
    hiss, drive, sustain = level[:, PITCHES:].unbind(1)
    since = time_ % FRAME_SECONDS
    envelope = (200 * since).clamp(max=1) * torch.exp(-8 * (1 - sustain) * since)
    notes = 0.15 * envelope * torch.einsum("bkt,kt->bt", level[:, :PITCHES], wave)
    random = torch.Generator().manual_seed(0)
    noise = 0.004 * torch.randn(len(time_), generator=random).to(time_)
    gain = 1 + 60 * drive
    return 0.5 * torch.tanh(gain * (notes + hiss * noise)) / gain**0.25


class PipelineGenerator(nn.Module):
    """A diffusers audio pipeline with LoRA on its denoiser; gradients through its last steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        from diffusers import DiffusionPipeline

        self.pipeline = DiffusionPipeline.from_pretrained(args.pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        denoiser = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        projections = ["to_q", "to_k", "to_v", "to_out.0"]
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=projections)
        inject_adapter_in_model(lora, denoiser)
        denoiser.enable_gradient_checkpointing()
        self.denoiser = denoiser
        self.steps, self.last, self.file = args.sampler_steps, args.last, args.prompts
        self.options = dict.fromkeys(("audio_end_in_s", "audio_length_in_s"), args.audio_seconds)
        vocoder = getattr(self.pipeline, "vocoder", None)
        holder = vocoder.config if vocoder is not None else self.pipeline.vae.config
        self.sample_rate = int(holder.sampling_rate)

    def to(self, *args: Any, **kwargs: Any) -> PipelineGenerator:
        self.pipeline.to(*args, **kwargs)
        return self

    def prompts(self) -> tuple[list[str], list[str]]:
        """The file's prompts: nine tenths to train on, every tenth line to judge by."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [p for i, p in enumerate(lines) if i % 10] or lines, lines[::10]

    def forward(self, prompts: list[str], random: torch.Generator) -> Tensor:
        """Songs (B, T)."""
        run = inspect.unwrap(type(self.pipeline).__call__)
        accepted = inspect.signature(run).parameters
        options = {name: value for name, value in self.options.items() if name in accepted}
        with LastSteps(self.steps, self.last) as callback:
            audio = run(
                self.pipeline,
                prompts,
                num_inference_steps=self.steps,
                generator=random,
                output_type="pt",
                callback=callback,
                callback_steps=1,
                **options,
            ).audios
        return audio.mean(dim=1) if audio.ndim == 3 else audio


def write_results(
    args: argparse.Namespace,
    history: list[dict[str, Any]],
    before: dict[str, Any],
    judge: Judge,
    started: float,
) -> None:
    """Figures of the held-out prompts, curves and songs."""
    after = judge.songs()
    summary = {
        "reward_before": statistics.fmean(before["rewards"]),
        "reward_after": statistics.fmean(after["rewards"]),
        "reward_std_before": statistics.pstdev(before["rewards"]),
        "guard_rate_before": statistics.fmean(map(bool, before["flags"])),
        "guard_rate_after": statistics.fmean(map(bool, after["flags"])),
        "seconds": time.time() - started,
        "demonstration": judge.reward.demonstration,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    panels = {"reward": ["reward", "held_out"], "gradient norm": ["grad_norm"]}
    write_run(args.output, history, summary, panels)
    folder = args.output / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    for name, songs in (("before", before), ("after", after)):
        for i, song in enumerate(songs["waveforms"][:4]):
            save_wav(folder / f"{name}_{i}.wav", song.numpy(), judge.generator.sample_rate)
    print({name: value for name, value in summary.items() if name != "settings"})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/reward_backprop"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="songs of a process in a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--sampler-steps", type=int, default=8)
    parser.add_argument("--last", type=int, default=2, help="sampler steps on the graph (DRaFT-K)")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--anchor", type=float, default=1e-3, help="weight of the squared drift")
    parser.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    parser.add_argument("--judge-every", type=int, default=5)
    parser.add_argument("--mix", default="aesthetics")
    parser.add_argument("--loudness", type=float, default=-18.0, help="LUFS before scoring")
    parser.add_argument("--reward-model", default="apex-tiny", help="hub id or folder")
    real = parser.add_argument_group("a real pipeline")
    real.add_argument("--pipeline", help="hub id or folder of a diffusers audio pipeline")
    real.add_argument("--prompts", type=Path, help="a text file, a prompt a line")
    real.add_argument("--audio-seconds", type=float, default=30.0)
    args = parser.parse_args()
    if args.pipeline and not args.prompts:
        parser.error("--pipeline needs --prompts")
    return args


if __name__ == "__main__":
    main()
