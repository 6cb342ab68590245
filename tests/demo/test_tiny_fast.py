"""apex-tiny-fast, the embedded student of apex-tiny: small, close to it, used by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from apex_reward import ApexReward, ApexRewardFunction, Reward, load_reward_model
from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.demo import DAMAGES, damage, make_song
from apex_reward.metrics import spearman
from apex_reward.model.files import EMBEDDED
from apex_reward.serve.app import make_app
from apex_reward.serve.settings import ServeSettings

NAME, RATE = "apex-tiny-fast", 24_000
OPTIONS = ["--mix", "aesthetics", "--workers", "0"]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four songs of 2 s as files, and a damaged version of each."""
    folder, paths = tmp_path_factory.mktemp("songs"), []
    for number in range(4):
        song = make_song(2**44 + number, 2.0)
        for name, wave in (("clean", song), ("noise", damage(song, "noise", 3, number))):
            paths.append(str(folder / f"{number}-{name}.wav"))
            save_wav(Path(paths[-1]), wave, RATE)
    return paths


def run(*options: object) -> None:
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == 0, result.output


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_is_small_and_says_that_it_is_a_student() -> None:
    student = load_reward_model(NAME)
    assert isinstance(student, ApexReward)
    assert sum(file.stat().st_size for file in EMBEDDED[NAME].iterdir()) < 1_000_000
    assert student.config.student
    assert student.config.demonstration
    assert student.config.distilled["teacher"] == "apex-tiny"
    assert student.heads == load_reward_model("apex-tiny").heads
    card = (EMBEDDED[NAME] / "README.md").read_text(encoding="utf-8")
    assert "student of apex-tiny" in card
    assert all(one["commercial"] for one in Reward(NAME).licences())


def test_it_orders_unseen_songs_and_damage_as_its_teacher_does() -> None:
    songs = [make_song(2**45 + number, 4.0) for number in range(8)]
    songs += [
        damage(song, name, 1 + n % 3, n) for n, song in enumerate(songs) for name in DAMAGES[::3]
    ]
    waves = torch.from_numpy(np.stack(songs))
    with torch.no_grad():
        ours, theirs = (
            load_reward_model(name)(waves, RATE).stack() for name in (NAME, "apex-tiny")
        )
    ranks = [spearman(ours[:, head], theirs[:, head]) for head in range(7)]
    print("rank correlation per head:", ranks)
    assert np.mean(ranks) >= 0.75


def test_the_commands_and_a_reward_take_it(songs: list[str], tmp_path: Path) -> None:
    run("score", *songs, "--model", NAME, *OPTIONS, "--output", tmp_path / "scores.jsonl")
    reward = Reward(NAME, mix="aesthetics", loudness=-18.0, caution=0.5)
    plain = Reward(NAME, mix="aesthetics").judge(songs)
    scored = read(tmp_path / "scores.jsonl")
    assert [row["reward"] for row in scored] == pytest.approx([row["reward"] for row in plain])
    wave = torch.from_numpy(make_song(2**44, 2.0))[None].requires_grad_()
    value = reward(wave, sample_rate=RATE)
    value.sum().backward()
    assert wave.grad.abs().sum() > 0
    reward.save(tmp_path / "reward.yaml")
    again = Reward.load(tmp_path / "reward.yaml")(wave.detach(), sample_rate=RATE)
    torch.testing.assert_close(again, value.detach())
    function = ApexRewardFunction(reward, decode=lambda audio: audio, sample_rate=RATE)
    (earned,) = function(["a"], ["b"], audio=[wave[0].detach()])
    assert earned == pytest.approx(value.item(), abs=1e-5)


def test_it_is_the_student_of_a_cascade(songs: list[str], tmp_path: Path) -> None:
    fast = Reward.cascade(NAME, "apex-tiny", mix="aesthetics", keep=0.5)
    rows = fast.judge(songs, prompts=["a"] * 4 + ["b"] * 4)
    assert sorted(row["judged_by"] for row in rows) == ["student"] * 4 + ["teacher"] * 4
    assert 0 <= fast.lost_share(8) < 1
    candidates = tmp_path / "songs.jsonl"
    lines = [{"audio": path, "prompt": "ab"[n // 4]} for n, path in enumerate(songs)]
    candidates.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--model", "apex-tiny", "--cascade", NAME, "--keep", "0.5", *OPTIONS]
    run("pairs", candidates, "--axis", "reward", *options, "--output", tmp_path / "pairs")
    assert len(read(tmp_path / "pairs" / "pairs.jsonl")) == 2


def test_the_arena_and_the_server_take_it(songs: list[str], tmp_path: Path) -> None:
    battles = tmp_path / "battles.jsonl"
    battle = {"preference": "A", "audio_a": songs[0], "audio_b": songs[1]}
    battles.write_text(json.dumps(battle) + "\n")
    scored = tmp_path / "scored.jsonl"
    run("arena", "score", battles, "--model", NAME, "--workers", 0, "--output", scored)
    (row,) = read(scored)
    assert 1 <= row["musicality_a"] <= 5
    settings = ServeSettings(audio_root=str(Path(songs[0]).parent))
    with TestClient(make_app(Reward(NAME, mix="aesthetics"), settings)) as client:
        answer = client.post("/score", json={"songs": [{"path": Path(songs[0]).name}]}).json()
    assert answer["rows"][0]["musicality"] == pytest.approx(row["musicality_a"], abs=1e-4)
