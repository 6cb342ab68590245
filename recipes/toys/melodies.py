"""A toy audio generator through which gradients flow: a rectified flow over a synthesiser's knobs.

Its songs have 16 frames of a quarter second; in each the level of 24 pitches, and how much it
hisses, distorts and sustains.

Shape key: B = songs, F = frames, K = controls, T = samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apex_reward.audio import Waveform

SAMPLE_RATE = 24_000
FRAMES, FRAME_SECONDS = 16, 0.25
SONG_SECONDS = FRAMES * FRAME_SECONDS
PITCHES, REGISTERS, DENSITIES = 24, 4, 3
CONTROLS = PITCHES + 3


class MelodyFlow(nn.Module):
    """A rectified flow (arXiv 2209.03003) over controls, and the synthesiser behind it.

    At time t a sample is (1 - t) x + t n of controls x and normal noise n; the velocity is n - x. A
    prompt is a text `register density`, such as `2 0`.

    Args:
        sampler_steps: of a song.
        last: through how many of them gradients flow.
        seed: of weights and training.
        fit_steps: of the training, 64 melodies each; some seconds.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self, sampler_steps: int = 8, last: int = 2, seed: int = 0, fit_steps: int = 400
    ) -> None:
        super().__init__()
        self.steps, self.last = sampler_steps, last
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.input = nn.Conv1d(CONTROLS + REGISTERS + DENSITIES + 1, 96, 3, padding=1)
            self.hidden = nn.ModuleList(nn.Conv1d(96, 96, 5, padding=2) for _ in range(3))
            self.output = nn.Conv1d(96, CONTROLS, 1)
        self._fit(seed, fit_steps)

    def forward(self, prompts: Sequence[str], random: torch.Generator) -> Tensor:
        """Songs (B, T), with gradients through the last steps of the sampler."""
        condition = self.condition(prompts)
        x = torch.randn(len(prompts), CONTROLS, FRAMES, generator=random).to(condition)
        for index in range(self.steps):
            last = index >= self.steps - self.last and torch.is_grad_enabled()
            with torch.set_grad_enabled(last):
                time_ = torch.full((len(x),), 1 - index / self.steps, device=x.device)
                x = x - self.velocity(x, time_, condition) / self.steps
        return synthesize(x.float())

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Conditions (B, REGISTERS + DENSITIES) of prompts."""
        styles = torch.tensor([[int(number) for number in prompt.split()] for prompt in prompts])
        return _one_hot(*styles.unbind(1)).to(self.output.weight.device)

    def velocity(self, x: Tensor, time_: Tensor, condition: Tensor) -> Tensor:
        """Noise less controls (B, K, F), at times (B,) from 0 (controls) to 1 (noise)."""
        known = torch.cat([condition, time_[:, None]], dim=1)[:, :, None].expand(-1, -1, FRAMES)
        h: Tensor = self.input(torch.cat([x, known], dim=1))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        velocity: Tensor = self.output(h)
        return velocity

    def _fit(self, seed: int, steps: int) -> None:
        random = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        for _ in range(steps):
            data, condition = _random_melodies(64, random)
            noise = torch.randn(data.shape, generator=random)
            time_ = torch.rand(len(data), generator=random)
            mixed = torch.lerp(data, noise, time_[:, None, None])
            error = self.velocity(mixed, time_, condition) - (noise - data)
            error.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def melody_prompts() -> tuple[list[str], list[str]]:
    """Four of each combination to judge by, and the other two thirds of them to train on."""
    every = [(r, d) for r in range(REGISTERS) for d in range(DENSITIES)]
    unseen = [style for style in every if sum(style) % 3 == 0]
    rest = [style for style in every if style not in unseen]
    held_out, trained = ([f"{r} {d}" for r, d in styles] for styles in (unseen * 4, rest))
    return held_out, trained


def melody_references(count: int = 24) -> list[Waveform]:
    """Melodies without hiss and distortion, as the reference of a distance."""
    data, _ = _random_melodies(count, torch.Generator().manual_seed(1))
    data[:, PITCHES : PITCHES + 2] = -1.5
    return [Waveform(song[None].numpy(), SAMPLE_RATE) for song in synthesize(data)]


def synthesize(controls: Tensor) -> Tensor:
    """Controls (B, K, F) to songs (B, T): decaying harmonic notes, hiss, soft distortion."""
    slot = round(FRAME_SECONDS * SAMPLE_RATE)
    time_ = torch.arange(FRAMES * slot, device=controls.device) / SAMPLE_RATE
    frequency = 110 * 2 ** (torch.arange(PITCHES, device=controls.device) / 6)
    harmonics = [torch.sin(2 * math.pi * n * frequency[:, None] * time_) for n in range(1, 5)]
    wave = torch.stack([part / n**1.5 for n, part in enumerate(harmonics, 1)]).sum(0)
    level = torch.sigmoid(4 * controls).repeat_interleave(slot, dim=2)  # (B, K, T)
    hiss, drive, sustain = level[:, PITCHES:].unbind(1)
    since = time_ % FRAME_SECONDS
    envelope = (200 * since).clamp(max=1) * torch.exp(-8 * (1 - sustain) * since)
    notes = 0.15 * envelope * torch.einsum("bkt,kt->bt", level[:, :PITCHES], wave)
    random = torch.Generator().manual_seed(0)
    noise = 0.004 * torch.randn(len(time_), generator=random).to(time_)
    gain = 1 + 60 * drive
    return 0.5 * torch.tanh(gain * (notes + hiss * noise)) / gain**0.25


def _one_hot(registers: Tensor, densities: Tensor) -> Tensor:
    """Conditions (B, REGISTERS + DENSITIES)."""
    return torch.cat([torch.eye(REGISTERS)[registers], torch.eye(DENSITIES)[densities]], dim=1)


def _random_melodies(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Controls (B, K, F) about -1 (off) and 1 (on), and their conditions; most distort."""
    registers = torch.randint(REGISTERS, (count,), generator=random)
    densities = torch.randint(DENSITIES, (count,), generator=random)
    data = torch.full((count, CONTROLS, FRAMES), -1.0)
    for voice in range(1 + DENSITIES):
        pitch = registers[:, None] * 5 + torch.randint(9, (count, FRAMES), generator=random)
        on = torch.rand(count, FRAMES, generator=random) < 0.7
        on &= (voice <= densities)[:, None]
        data.scatter_(1, pitch[:, None], torch.where(on, 1.0, -1.0)[:, None])
    data[:, PITCHES:] = 0.4 + 0.6 * torch.randn(count, 3, 1, generator=random)
    data += 0.1 * torch.randn(data.shape, generator=random)
    return data, _one_hot(registers, densities)
