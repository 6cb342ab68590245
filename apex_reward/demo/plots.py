"""Pictures of the tour. Every picture names the model as a demonstration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apex_reward.demo.damage import DAMAGES, SEVERITIES
from apex_reward.demo.evaluate import DamageScores
from apex_reward.report.figures import BAD, BAR, SOFT, new_panels, save_figure

Wave = NDArray[np.float32]
SUFFIX = "apex-tiny, a demonstration model"


def plot_damage(path: Path, scores: DamageScores) -> None:
    """The mean aesthetic score against severity, a panel per damage, a line per song.

    Args:
        path: the file without its ending.
    """
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
    save_figure(figure, path)


def plot_climb(path: Path, start: Wave, climbed: Wave, rate: int) -> None:
    """The average spectra of a song and of the sound that gradient steps added to it."""
    figure, (axes,) = new_panels(1, 1, 7, 3.8)
    added = climbed - start
    for wave, colour, label in ((start, SOFT, "the song"), (added, BAD, "the sum of the steps")):
        axes.semilogx(*_spectrum(wave, rate), color=colour, label=label)
    axes.set(xlabel="frequency in Hz", ylabel="mean level in dB", xlim=(40, rate / 2))
    axes.legend(frameon=False)
    figure.suptitle(f"What the gradient steps add ({SUFFIX})")
    save_figure(figure, path)


def _spectrum(wave: Wave, rate: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Frequencies in Hz and mean level in dB, over windows of 2048 samples."""
    size = 2048
    frames = wave[: wave.size // size * size].reshape(-1, size) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)
    return np.fft.rfftfreq(size, 1 / rate)[1:], 10 * np.log10(power[1:] + 1e-12)
