"""Extraction: hours of audio per hour, by decoding workers, against one segment at a time.

    python benchmarks/extract.py --output extract.md [--encoder FOLDER]

The baseline decodes, resamples and encodes one song after the other, a segment per encoder call,
and keeps rows in memory. Ours decodes in workers, packs segments of many songs into encoder
batches, and writes shards. Every way hears the same FLAC files (44.1 kHz stereo).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from result_file import write_result

from apex_reward.audio import load_audio
from apex_reward.audio.resample import resample
from apex_reward.audio.segment import cut_segments
from apex_reward.data.extract import Extractor, ExtractSettings, ManifestSong, start
from apex_reward.data.shards import load_encoder
from apex_reward.model import ApexReward
from apex_reward.report.markdown import markdown_table

RATE = 44_100
COLUMNS = ("way", "workers", "seconds", "audio hours per hour", "times faster")


def write_songs(folder: Path, songs: int, seconds: float) -> list[ManifestSong]:
    """Noise with a slow envelope, as FLAC."""
    rng = np.random.default_rng(0)
    envelope = 0.2 * (1 + np.sin(np.arange(round(RATE * seconds)) / RATE))[:, None]
    manifest = []
    for number in range(songs):
        noise = rng.standard_normal((len(envelope), 2)) * envelope * 0.2
        soundfile.write(folder / f"{number}.flac", noise, RATE)
        manifest.append(ManifestSong(f"song{number}", f"{number}.flac", "train", {}))
    return manifest


def one_by_one(model: ApexReward, folder: Path, songs: list[ManifestSong]) -> None:
    """A plain loop."""
    config = model.config
    with torch.no_grad():
        for song in songs:
            waveform = load_audio(folder / song.path)
            mono = torch.from_numpy(np.ascontiguousarray(waveform.samples)).mean(0, keepdim=True)
            mono = resample(mono, waveform.sample_rate, config.sample_rate)
            length = [mono.shape[1]]
            segments = cut_segments(mono, length, config.segment_samples, config.sample_rate)
            for segment in segments.samples:
                model.pool(model.encode_segments(segment[None])).numpy()


def extract(
    model: ApexReward,
    folder: Path,
    encoder: str,
    songs: list[ManifestSong],
    workers: int,
    output: Path,
) -> None:
    """As `apex-reward extract`."""
    settings = ExtractSettings(folder, encoder, workers)
    shards = start(songs, settings, output, resume=False)
    list(Extractor(model, settings, output).run(shards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--quick", action="store_true", help="a small size, in seconds")
    parser.add_argument("--encoder", default="apex-tiny")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, seconds = (3, 35.0) if arguments.quick else (6, 90.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_encoder(arguments.encoder, device)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        songs = write_songs(folder, count, seconds)
        one_by_one(model, folder, songs[:1])  # warm up, both
        extract(model, folder, arguments.encoder, songs[:1], workers=0, output=folder / "first")
        started = time.perf_counter()
        one_by_one(model, folder, songs)
        baseline = time.perf_counter() - started
        rows.append(["one segment at a time", "-", baseline])
        for workers in (0, 1, 2):
            started = time.perf_counter()
            extract(model, folder, arguments.encoder, songs, workers, folder / f"out{workers}")
            rows.append(["apex-reward extract", str(workers), time.perf_counter() - started])
    body = [
        [way, workers, f"{spent:.1f}", f"{count * seconds / spent:.1f}", f"{baseline / spent:.2f}"]
        for way, workers, spent in rows
    ]
    text = f"Encoder {arguments.encoder}, {count} songs of {seconds:.0f} s."
    write_result("Extraction", f"{text}\n\n{markdown_table(COLUMNS, body)}", arguments.output)


if __name__ == "__main__":
    main()
