"""`apex-reward distance` on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.demo.damage import damage
from apex_reward.demo.songs import make_song

RATE = 24_000


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("clean", "noisy"):
        (folder / name).mkdir()
    for seed in range(3):
        song = make_song(seed, 2.0, RATE)
        save_wav(folder / "clean" / f"{seed}.wav", song, RATE)
        save_wav(folder / "noisy" / f"{seed}.wav", damage(song, "noise", 3, seed), RATE)
    return folder


def test_a_set_against_itself_and_against_noise(sets: Path, tmp_path: Path) -> None:
    figures = {}
    for name in ("clean", "noisy"):
        file = tmp_path / f"{name}.json"
        arguments = ["distance", str(sets / name), "--reference", str(sets / "clean")]
        result = CliRunner().invoke(app, [*arguments, "--output", str(file)])
        assert result.exit_code == 0, result.output
        figures[name] = json.loads(file.read_text())
    assert figures["clean"]["distance"] == pytest.approx(0.0, abs=1e-8)
    assert figures["noisy"]["distance"] > 1e-4
    assert figures["noisy"]["distance_unbiased"] is None
    assert (figures["clean"]["songs"], figures["clean"]["reference"]) == (3, 3)
    assert figures["clean"]["diversity"] == figures["clean"]["diversity_reference"]
    arguments = ["distance", str(sets / "noisy"), "--reference", str(sets / "clean")]
    assert (
        CliRunner().invoke(app, [*arguments, "--metric", "kernel", "-o", str(file)]).exit_code == 0
    )
    kernel = json.loads(file.read_text())
    assert kernel["metric"] == "kernel"
    assert kernel["distance"] > 0
    assert kernel["bandwidth"] > 0
    assert 1 < kernel["diversity"] < 3


def test_bad_files_are_listed(sets: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    given = ["distance", str(sets / "clean"), str(bad), "--reference", str(sets / "clean")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert "bad.wav: " in result.output
    result = CliRunner().invoke(app, ["distance", str(bad), "--reference", str(sets / "clean")])
    assert result.exit_code == 1
    assert "songs: 0 readable files" in result.output
