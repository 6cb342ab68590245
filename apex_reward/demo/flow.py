"""A small flow that generates songs of notes: what a flow-matching audio model is, in seconds.

Shape key: B = songs, N = notes, F = frames, T = samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apex_reward.demo.musicgen import CODES, FRAMES, STYLES, note_codec, random_codes

WIDTH = 96


class NoteFlow(nn.Module):
    """The velocity of a rectified flow (arXiv 2209.03003) over how loud each note is in a frame.

    At time t a sample is (1 - t) x + t n of levels x and normal noise n; the velocity is n - x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv1d(CODES + len(STYLES) + 1, WIDTH, 3, padding=1)
        self.hidden = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(3))
        self.last = nn.Conv1d(WIDTH, CODES, 1)

    def forward(self, x: Tensor, time: Tensor, styles: Tensor) -> Tensor:
        """Velocities (B, N, F).

        Args:
            x: (B, N, F).
            time: (B,) in [0, 1].
            styles: (B,) indices of STYLES.
        """
        style = nn.functional.one_hot(styles, len(STYLES)).to(x)
        known = torch.cat([style, time[:, None]], dim=1)[:, :, None].expand(-1, -1, x.shape[2])
        h: Tensor = self.entry(torch.cat([x, known], dim=1))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        velocity: Tensor = self.last(h)
        return velocity

    @torch.no_grad()
    def songs(self, levels: Tensor) -> Tensor:
        """Levels (B, N, F), -1 off and 1 on, to songs (B, T)."""
        codec: Any = note_codec()
        codec = codec.to(levels.device)
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            heard: Tensor = codec.decoder((levels.clamp(-1, 2) + 1) / 2)
        return heard[:, 0]


def toy_flow(seed: int, steps: int = 300) -> NoteFlow:
    """A flow trained for seconds on the random chords of `demo.musicgen`.

    Args:
        steps: of the training, 64 songs each.
    """
    torch.manual_seed(seed)
    rng, flow = random.Random(seed), NoteFlow()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=2e-3)
    for _ in range(steps):
        styles = torch.randint(len(STYLES), (64,))
        levels = note_levels([STYLES[style] for style in styles.tolist()], rng)
        noise, time = torch.randn_like(levels), torch.rand(len(levels))
        mixed = torch.lerp(levels, noise, time[:, None, None])
        (flow(mixed, time, styles) - (noise - levels)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return flow.eval()


def note_levels(styles: Sequence[str], rng: random.Random) -> Tensor:
    """Levels (B, N, F) of a random song of each style: 1 where a note sounds, -1 elsewhere."""
    levels = torch.full((len(styles), CODES, FRAMES), -1.0)
    for song, style in enumerate(styles):
        levels[song].scatter_(0, random_codes(style, rng), 1.0)
    return levels
