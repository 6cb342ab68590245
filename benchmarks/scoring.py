"""How fast songs are scored, against the published way written plainly.

    python benchmarks/scoring.py --quick
    python benchmarks/scoring.py --songs 4 --seconds 60 --output scoring.md
    python benchmarks/scoring.py --device cuda --songs 64 --seconds 180 --batches 4,16,32

Both ways score the same MP3 files with the same made-up weights of the published size in the same
process. The published way: no workers, one segment at a time, every hidden state of the encoder
kept and brought to NumPy on the CPU. `ratio` is in wall time. `CPU s` is the processor time of
this process and its workers per song, which other programs on the machine disturb less. `share`
is the encoder's arithmetic per second, all else of the run counted as waiting, over what a large
matrix product of that number type reaches here.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from floor import matmul_rate, segment_work
from result_file import write_result
from transformers import HubertModel

from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.model import ApexConfig, ApexReward
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.load import default_workers
from apex_reward.rewards.reward import Reward
from apex_reward.scoring import score_songs

COLUMNS = (
    *("way", "dtype", "compiled", "batch", "workers"),
    *("songs/s", "x real time", "CPU s", "ratio", "share"),
)
QUICK_ENCODER = {"conv_dim": [64] * 7, "num_hidden_layers": 12, "hidden_size": 192}
QUICK_ENCODER |= {"intermediate_size": 768}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """One row of the table: our way with these settings."""

    dtype: str
    compiled: bool
    batch: int


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    config = ApexConfig(encoder=QUICK_ENCODER if options.quick else {})
    model = ApexReward(config).to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        songs = write_songs(Path(folder), options.songs, options.seconds, options.seed)
        rows = measure(model, songs, options)
    text = f"{options.songs} songs of {options.seconds:g} s.\n\n{markdown_table(COLUMNS, rows)}"
    write_result("Scoring", text, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small encoder and two short songs")
    parser.add_argument("--songs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a song")
    parser.add_argument("--batches", default="1,4", help="segments per encoder batch")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.songs, options.seconds = 2, 30.0
    return options


def measure(
    model: ApexReward, songs: Sequence[str], options: argparse.Namespace
) -> list[tuple[object, ...]]:
    """The baseline's row, then one per setting."""
    work = segment_work(model.config, options.device) * sum(
        -(-options.seconds // 30) for _ in songs
    )
    audio = options.seconds * len(songs)

    size = 8192 if options.device.startswith("cuda") else 1536
    ceilings = {
        name: matmul_rate(size, DTYPES[name], options.device) for name in options.dtypes.split(",")
    }

    def row(
        way: str, setting: Setting, workers: int, seconds: float, cpu: float, base: float
    ) -> tuple[object, ...]:
        share = work / seconds / ceilings[setting.dtype]
        return (
            *(way, setting.dtype, "yes" if setting.compiled else "no", setting.batch, workers),
            *(f"{len(songs) / seconds:.3f}", f"{audio / seconds:.1f}", f"{cpu / len(songs):.1f}"),
            *(f"{base / seconds:.2f}", f"{100 * share:.0f}%"),
        )

    reference = HubertModel(model.config.encoder_config()).eval().to(options.device)
    reference.load_state_dict(model.encoder.state_dict())
    published = partial(published_scores, model, reference, songs)
    base, cpu, expected = best(published, options.repeats)
    rows = [row("published", Setting("float32", False, 1), 0, base, cpu, base)]
    for setting in settings(options):
        own = with_setting(model, setting)
        score = partial(own_scores, own, songs, setting.batch, options.workers)
        seconds, cpu, scores = best(score, options.repeats)
        worst = np.abs(scores - expected).max()
        if setting.dtype == "float32" and worst > 1e-3:
            raise SystemExit(f"{setting} differs from the published way by {worst:.2g}")
        rows.append(row("this package", setting, options.workers, seconds, cpu, base))
    return rows


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every dtype and batch size, and the last of each compiled."""
    batches = [int(text) for text in options.batches.split(",")]
    found = []
    for dtype in options.dtypes.split(","):
        found += [Setting(dtype, False, batch) for batch in batches]
        if options.compile:
            found.append(Setting(dtype, True, batches[-1]))
    return found


def published_scores(model: ApexReward, encoder: HubertModel, songs: Sequence[str]) -> np.ndarray:
    """The published inference, step by step: (songs, heads)."""
    device = model.device
    scores = []
    for path in songs:
        song = load_audio(path)
        mono = torch.from_numpy(song.samples).mean(dim=0)
        samples = resample(mono, song.sample_rate, model.config.sample_rate).numpy()
        embeddings = []
        for start in range(0, len(samples), model.config.segment_samples):
            part = samples[start : start + model.config.segment_samples]
            part = np.pad(part, (0, model.config.segment_samples - len(part)))
            with torch.no_grad():
                output = encoder(torch.from_numpy(part)[None].to(device), output_hidden_states=True)
                hidden = np.stack([state.cpu().numpy() for state in output.hidden_states])
                layers = hidden[model.config.layers].mean(axis=2)[:, 0]
                pooled = model.pooling(torch.from_numpy(layers)[None].to(device))
            embeddings.append(pooled[0].cpu().numpy())
        mean = torch.from_numpy(np.mean(embeddings, axis=0))[None].to(device)
        with torch.no_grad():
            scores.append(model.predictor(mean)[0].cpu().numpy())
    return np.stack(scores)


def own_scores(model: ApexReward, songs: Sequence[str], batch: int, workers: int) -> np.ndarray:
    """The same through this package: (songs, heads)."""
    rows = list(score_songs(Reward(model, batch_segments=batch), songs, workers=workers))
    errors = [row["error"] for row in rows if row["error"]]
    if errors:
        raise SystemExit(f"a made-up song could not be scored: {errors[0]}")
    return np.array([[row[head] for head in model.config.head_names] for row in rows])


def with_setting(model: ApexReward, setting: Setting) -> ApexReward:
    """A copy of the model in a number type, its encoder compiled or not."""
    own = ApexReward(model.config).to(model.device)
    own.load_state_dict(model.state_dict())
    own.encoder.to(DTYPES[setting.dtype])
    if setting.compiled:
        own.encoder.compile()
    return own


def write_songs(folder: Path, songs: int, seconds: float, seed: int) -> list[str]:
    """Stereo MP3 files at 44.1 kHz, chords with noise."""
    random = np.random.RandomState(seed)
    t = np.arange(round(44_100 * seconds)) / 44_100
    paths = []
    for n in range(songs):
        notes = 110 * 2 ** (random.randint(0, 36, size=(2, 6)) / 12)
        samples = np.stack([sum(np.sin(2 * np.pi * f * t) for f in row) for row in notes], axis=1)
        samples = 0.08 * samples + 0.02 * random.standard_normal(samples.shape)
        paths.append(str(folder / f"{n}.mp3"))
        soundfile.write(paths[-1], samples, 44_100)
    return paths


def best(function: Callable[[], np.ndarray], repeats: int) -> tuple[float, float, np.ndarray]:
    """Least wall and CPU seconds and the result, after a run that warms up and compiles."""
    result = function()
    times = [timed(function) for _ in range(repeats)]
    return min(wall for wall, _ in times), min(cpu for _, cpu in times), result


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds; what runs on a GPU is waited for, ended workers are counted."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


if __name__ == "__main__":
    main()
