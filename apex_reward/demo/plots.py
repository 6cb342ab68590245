"""Pictures of the tour. Every one says that the model is a demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apex_reward.demo.damage import DAMAGES, SEVERITIES
from apex_reward.report.figures import BAD, BAR, SOFT, new_panels, save_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apex_reward.demo.climb import Climb
    from apex_reward.demo.evaluate import DamageScores

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


def plot_climb(path: Path, start: NDArray[np.float32], result: Climb, rate: int) -> None:
    """The reward by gradient step, and the spectra of the song and of what was added to it."""
    figure, (left, right) = new_panels(1, 2, 11, 3.8)
    left.plot(result.rewards, color=BAR, linewidth=2.2, marker="o")
    left.set(title="reward after each gradient step", xlabel="step", ylabel="reward (aesthetics)")
    for wave, colour, label in (
        (start, SOFT, "the song"),
        (result.song - start, BAD, "what the steps added"),
    ):
        frequency, level = _spectrum(wave, rate)
        right.semilogx(frequency, level, color=colour, label=label)
    right.set(
        title="average spectrum",
        xlabel="frequency in Hz",
        ylabel="mean level in dB",
        xlim=(40, rate / 2),
    )
    right.legend(frameon=False)
    figure.suptitle(f"Following the waveform gradient ({SUFFIX})")
    save_figure(figure, path.with_suffix(""))


def plot_gold(
    path: Path, sizes: Sequence[int], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Gold (left) and proxy (right) of the best of N, a line per proxy."""
    figure, panels = new_panels(1, 2, 11, 3.8, sharey=True)
    titles = ("gold: the labels of its known damage", "proxy: what was optimised")
    for side, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for name, both in curves.items():
            axes.semilogx(sizes, both[side], label=name)
        axes.set(title=title, xlabel="candidates that the best was chosen from")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    panels[0].set_ylabel("reward (aesthetics, 0 to 1)")
    panels[0].legend()
    figure.suptitle(f"Choosing the best of N by a score, and the truth ({SUFFIX})")
    save_figure(figure, path.with_suffix(""))


def _spectrum(
    wave: NDArray[np.float32], rate: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Frequencies in Hz and mean level in dB, over windows of 2048 samples."""
    size = 2048
    frames = wave[: wave.size // size * size].reshape(-1, size) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)
    return np.fft.rfftfreq(size, 1 / rate)[1:], 10 * np.log10(power[1:] + 1e-12)
