"""Pictures of the tour. Every picture names the model as a demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apex_reward.demo.damage import DAMAGES, SEVERITIES
from apex_reward.demo.evaluate import DamageScores
from apex_reward.report.figures import BAD, BAR, SOFT, new_panels, save_figure

Wave = NDArray[np.float32]
SUFFIX = "apex-tiny, a demonstration model"


def plot_damage(path: Path, scores: DamageScores) -> None:
    """The mean aesthetic score against severity, a panel per damage, a line per song."""
    figure, panels = new_panels(2, 4, 11, 5.4, sharex=True, sharey=True)
    for number, (axes, name) in enumerate(zip(panels, DAMAGES, strict=True)):
        axes.plot(scores.values[:, number].T, color=SOFT, linewidth=1)
        axes.plot(scores.values[:, number].mean(axis=0), color=BAR, linewidth=2.2, marker="o")
        axes.set_title(name, fontsize=11)
        axes.set_xticks([0, *SEVERITIES], ["clean", *map(str, SEVERITIES)])
        axes.grid(visible=False, axis="x")
    figure.supxlabel("severity of the damage", fontsize=10)
    figure.supylabel("mean of the aesthetic heads (1 to 5)", fontsize=10)
    figure.suptitle(f"Damage lowers the score: each song grey, their mean blue ({SUFFIX})")
    save_figure(figure, path.with_suffix(""))


def plot_climb(path: Path, start: Wave, climbed: Wave, rate: int) -> None:
    """The average spectra of a song and of the sound that gradient steps added to it."""
    figure, (axes,) = new_panels(1, 1, 7, 3.8)
    for wave, colour, label in (
        (start, SOFT, "the song"),
        (climbed - start, BAD, "the sum of the steps"),
    ):
        frequency, level = _spectrum(wave, rate)
        axes.semilogx(frequency, level, color=colour, label=label)
    axes.set(xlabel="frequency in Hz", ylabel="mean level in dB", xlim=(40, rate / 2))
    axes.legend(frameon=False)
    figure.suptitle(f"What the gradient steps add ({SUFFIX})")
    save_figure(figure, path.with_suffix(""))


def plot_gold(path: Path, proxy: Sequence[float], gold: Sequence[float], clean: float) -> None:
    """Proxy (the reward) and gold (the clean song's share) by gradient step, both in [0, 1].

    Args:
        clean: the reward of the clean song.
    """
    figure, (axes,) = new_panels(1, 1, 7, 3.8)
    axes.axhline(clean, color=SOFT, linestyle="--", linewidth=1, label="reward of the clean song")
    axes.plot(proxy, color=BAR, linewidth=2.2, marker="o", label="proxy: the reward")
    axes.plot(
        gold,
        color=BAD,
        linewidth=2.2,
        marker="o",
        label="gold: the clean song's share of the sound",
    )
    axes.set(xlabel="gradient step", ylim=(0, 1.03))
    axes.set_xticks(range(0, len(proxy), 2))
    axes.legend(loc="lower left")
    figure.suptitle(f"The reward rises while the clean song's share falls ({SUFFIX})")
    save_figure(figure, path.with_suffix(""))


def _spectrum(wave: Wave, rate: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Frequencies in Hz and mean level in dB, over windows of 2048 samples."""
    size = 2048
    frames = wave[: wave.size // size * size].reshape(-1, size) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)
    return np.fft.rfftfreq(size, 1 / rate)[1:], 10 * np.log10(power[1:] + 1e-12)
