"""What a set teaches beside its axis: shares of rulers, and the warnings of `pairs`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.files.tables import write_table
from apex_reward.pairs.build import build
from apex_reward.pairs.candidates import read_candidates
from apex_reward.pairs.options import PairOptions

RATE = 24_000


def result_of(rows: list[dict]):
    return build(read_candidates(rows), PairOptions())


def two_songs(prompts: int, **columns: tuple) -> list[dict]:
    """A rejected and a chosen song per prompt; a column has a value for each."""
    return [
        {"prompt_id": p, "audio": f"{p}/{s}.wav", "musicality": float(s)}
        | {name: values[s] for name, values in columns.items()}
        for p in range(prompts)
        for s in (0, 1)
    ]


def test_shares_of_rulers_with_intervals_the_most_one_sided_first():
    rows = two_songs(20, duration=(30.0, 40.0), **{"rulers.crest": (9.0, 9.0)})
    for row in rows[: 2 * 13]:
        row["rulers.width"] = row["musicality"]
    found = result_of(rows).rulers
    assert [(name, share, n) for name, share, _, _, n in found] == [
        ("length", 1.0, 20), ("width", 1.0, 13), ("crest", 0.5, 20),
    ]  # fmt: skip
    # Jeffreys: beta(20.5, 0.5) and beta(10.5, 10.5) at 0.025 and 0.975 (scipy).
    assert found[0][2:4] == pytest.approx((0.88336, 1.0), abs=1e-4)
    assert found[2][2:4] == pytest.approx((0.29338, 0.70662), abs=1e-4)
    (length, width, *rest) = result_of(rows).warnings
    assert length.startswith("the chosen song has more length in 100% of 20 pairs (95% interval")
    assert width.startswith("the chosen song has more width in 100% of 13 pairs")
    assert "--balance width makes the set neutral" in width
    assert rest == []


def test_a_ruler_at_the_limit_gives_no_warning():
    rows = two_songs(20, duration=(30.0, 40.0))
    for row in rows[: 2 * 7]:
        row["duration"] = 70.0 - row["duration"]
    result = result_of(rows)
    assert result.rulers[0][1] == 0.65
    assert result.warnings == []


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, None),
        ({"name": "wav.flac"}, "differ in container in 4 of 4 pairs, most often .flac over .wav"),
        ({"rate": 16_000}, "differ in sample rate in 4 of 4 pairs, most often 16000 Hz over 24000 "
                           "Hz"),
        ({"gain": 2.0}, "differ in level by more than 1 LU in 4 of 4 measured pairs: the chosen is "
                        "louder in 4 and quieter in 0"),
    ],
)  # fmt: skip
def test_songs_that_are_delivered_differently_are_named(change, warning, tmp_path):
    rows = []
    for prompt in range(4):
        for song in (0, 1):
            asked = change if song else {}
            rate = asked.get("rate", RATE)
            tone = np.sin(2 * np.pi * (400 + 40 * song + prompt) * np.arange(rate) / rate)
            path = tmp_path / f"{prompt}-{song}.{asked.get('name', 'wav')}"
            soundfile.write(path, 0.2 * asked.get("gain", 1.0) * tone, rate)
            row = {"prompt_id": prompt, "audio": path.name, "musicality": float(song)}
            rows.append(row)
    write_table(tmp_path / "c.jsonl", rows)
    out = tmp_path / "out"
    words = ["pairs", str(tmp_path / "c.jsonl"), "--test-share", "0", "--output", str(out)]
    done = CliRunner().invoke(app, [*words, "--format", "trl"])
    assert done.exit_code == 0, done.output
    told = json.loads((out / "summary.json").read_text())["warnings"]
    assert len(told) == (warning is not None)
    for text in told:
        assert warning in text
        assert f"warning: {text}" in done.output
        assert warning in (out / "report.html").read_text()
        assert warning in (out / "trl/README.md").read_text()


def test_rulers_are_measured_with_their_model(tmp_path: Path):
    """Two prompts: the chosen song is bright in one, dark in the other."""
    random = np.random.default_rng(0)
    rows = []
    for prompt in range(2):
        for song in (0, 1):
            noise = random.normal(0, 0.05, 2 * RATE)
            dark = np.convolve(noise, np.ones(16) / 8, mode="same")
            path = tmp_path / f"{prompt}-{song}.wav"
            soundfile.write(path, noise if (song + prompt) % 2 else dark, RATE)
            rows.append({"prompt_id": prompt, "audio": path.name, "musicality": song})
    write_table(tmp_path / "c.jsonl", rows)
    words = ["pairs", str(tmp_path / "c.jsonl"), "--balance", "centroid", "--model", "apex-tiny",
             "--model", "rulers", "--mix", "apex.musicality=1", "--test-share", "0",
             "--output", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rulers = json.loads((tmp_path / "out" / "summary.json").read_text())["rulers"]
    assert (rulers["centroid"]["share"], rulers["centroid"]["n"]) == (0.5, 2)
