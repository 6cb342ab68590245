"""APEX, SongEval and CLAP as one panel: score, pairs, arena, GRPO, and back-propagation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from apex_reward import ApexRewardFunction, Reward, RewardMix
from apex_reward.cli import app
from apex_reward.files.tables import read_table, write_table
from tests.clap_support import write_tiny_clap
from tests.muq_support import tiny_songeval
from tests.rewards.stacks.test_trainers import play, train
from tests.support import golden_song, tiny_model, write_wav

MIX = {"apex.musicality": 1.0, "songeval.clarity": 0.5, "clap.adherence": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panel")
    tiny_model(3).save_pretrained(folder / "apex")
    tiny_songeval().save_pretrained(folder / "songeval")
    write_tiny_clap(folder / "clap")
    for n in range(3):
        write_wav(folder / "songs" / f"{n}.wav", 0.5 + 0.3 * n, 24_000, seed=n)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    sources = {name: str(folder / name) for name in ("apex", "songeval", "clap")}
    Reward(sources, RewardMix(MIX), loudness=-20.0, guards="flag").save(folder / "reward.yaml")
    return folder / "reward.yaml"


@pytest.fixture(scope="module")
def reward(file: Path) -> Reward:
    return Reward.load(file)


def run(*words: Any) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


def test_one_file_through_score_pairs_and_arena(folder: Path, file: Path, reward: Reward) -> None:
    songs = [str(folder / "songs" / f"{n}.wav") for n in range(3)]
    prompts = ["a calm song", "loud drums", "a calm song"]
    judged = reward.judge(songs, prompts)
    assert len(reward.parts.encoders) == 3
    listed = [{"audio": path, "prompt": text} for path, text in zip(songs, prompts, strict=True)]
    write_table(folder / "list.jsonl", listed)
    run("score", folder / "list.jsonl", "--reward", file, "--output", folder / "scores.jsonl")
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, judged, strict=True):
        assert row["prompt"]
        for name in (*MIX, "reward"):
            assert row[name] == pytest.approx(expected[name], abs=1e-5)
    plain = [{"audio": path, "prompt": "a calm song"} for path in songs]
    write_table(folder / "candidates.jsonl", plain)
    axes = ["--axis", "reward", "--protect", "clap.adherence=2", "--test-share", 0]
    run("pairs", folder / "candidates.jsonl", "--reward", file, *axes, "--output", folder / "pairs")
    (pair,) = read_table(folder / "pairs" / "pairs.jsonl").to_pylist()
    calm = [row["reward"] for row in reward.judge(songs, ["a calm song"] * 3)]
    assert pair["margin"] == pytest.approx(max(calm) - min(calm), abs=1e-5)
    battle = {"battle_uuid": "u", "preference": "A", "audio_a": songs[0], "audio_b": songs[1],
              "prompt": "loud drums"}  # fmt: skip
    write_table(folder / "battles.jsonl", [battle])
    run("arena", "score", folder / "battles.jsonl", "--reward", file, "--output",
        folder / "scored.jsonl")  # fmt: skip
    (scored,) = read_table(folder / "scored.jsonl").to_pylist()
    a, b = reward.judge(songs[:2], ["loud drums"] * 2)
    for name in ("reward", "songeval.clarity", "clap.adherence"):
        assert [scored[f"{name}_a"], scored[f"{name}_b"]] == pytest.approx([a[name], b[name]])


def test_a_step_of_grpo(reward: Reward, tmp_path: Path) -> None:
    function = ApexRewardFunction(
        reward,
        decode=lambda completion_ids: [play(ids) for ids in completion_ids],
        sample_rate=24_000,
        name="panel",
    )
    logged, _ = train(tmp_path, function)
    for head in MIX:
        assert any(name.endswith(f"panel/{head}") for name in logged), head


def test_a_step_of_back_propagation(reward: Reward) -> None:
    wave = torch.tensor(golden_song(1, 24_000, 1, 0.6)[0])[None].requires_grad_()
    optimizer = torch.optim.SGD([wave], lr=1e-3)
    before = reward(wave, 24_000, prompts=["a calm song"])
    (-before).sum().backward()
    parts = []
    for name, weight in MIX.items():
        fresh = wave.detach().clone().requires_grad_()
        part = Reward(reward.model, RewardMix({name: weight}), loudness=-20.0)
        part(fresh, 24_000, prompts=["a calm song"]).sum().backward()
        assert fresh.grad is not None
        assert fresh.grad.abs().sum() > 0
        parts.append(fresh.grad)
    assert wave.grad is not None
    torch.testing.assert_close(-wave.grad, sum(parts), rtol=1e-3, atol=1e-6)
    optimizer.step()
    assert torch.isfinite(reward(wave.detach(), 24_000, prompts=["a calm song"])).all()
