"""A reward model, a guard and a pair strategy of a user's own, in every command and stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from apex_reward import ApexRewardFunction, Guard, Guards, Head, Reward, Scores, build_pairs
from apex_reward.cli import app
from apex_reward.errors import UsageError
from apex_reward.files.tables import read_table, write_table
from apex_reward.rewards.gradient import reward_and_gradient

HERE = "tests.rewards.test_own_vocabulary"
RATE = 16_000


class Pulse:
    """Two heads in plain torch: mean power in [0, 1] and zero crossings a second."""

    name = "pulse"
    heads = (Head("power", 0, 1), Head("crossings", 0, 8_000))
    sample_rate = RATE
    differentiable = True
    reads_text = False

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        ends = (
            [waveforms.shape[-1]] * len(waveforms) if lengths is None else [int(n) for n in lengths]
        )
        songs = [wave[..., :end] for wave, end in zip(waveforms, ends, strict=True)]
        power = torch.stack([song.square().mean() for song in songs])
        signs = [(song[..., 1:] * song[..., :-1] < 0).float().mean() for song in songs]
        return Scores({"power": power, "crossings": torch.stack(signs) * sample_rate})


def quietness(waveform: Tensor, sample_rate: int) -> float:
    """The peak of a song, full scale = 1."""
    return float(waveform.abs().max())


def first_wins(values: np.ndarray, settings: Any) -> np.ndarray:
    """The first candidate beats the second, whatever their values."""
    wins = np.zeros((*values.shape[:-2], values.shape[-1], values.shape[-1]), bool)
    wins[..., 0, 1] = True
    return wins


MIX = "power=4,crossings=-1"
GUARDS = Guards((Guard("faint", quietness, "full scale", low=0.2, action="penalty", penalty=3.0),))


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(Pulse(), MIX, guards=GUARDS)


@pytest.fixture
def songs(tmp_path: Path) -> list[str]:
    time = np.arange(RATE) / RATE
    paths = []
    for n, (frequency, gain) in enumerate([(100, 0.5), (400, 0.1), (900, 0.8)]):
        wave = (gain * np.sin(2 * np.pi * frequency * time + 0.1)).astype(np.float32)
        import soundfile

        paths.append(str(tmp_path / f"{n}.wav"))
        soundfile.write(paths[-1], wave, RATE, "FLOAT")
    return paths


def expected(gain: float, frequency: int) -> tuple[float, float]:
    """Power and crossings of a sine, worked by hand."""
    return gain**2 / 2, 2 * frequency


def test_judge_gives_the_values_worked_by_hand(reward: Reward, songs: list[str]) -> None:
    rows = reward.judge(songs)
    for row, (frequency, gain) in zip(rows, [(100, 0.5), (400, 0.1), (900, 0.8)], strict=True):
        power, crossings = expected(gain, frequency)
        assert row["power"] == pytest.approx(power, rel=1e-4)
        assert row["crossings"] == pytest.approx(crossings, abs=2)
        raw = 4 * power - crossings / 8_000
        assert row["reward_raw"] == pytest.approx(raw, abs=5e-4)
        assert row["reward"] == pytest.approx(raw - (3.0 if gain < 0.2 else 0.0), abs=5e-4)
        assert ("faint" in row["flags"]) == (gain < 0.2)


def test_one_reward_file_means_the_same_everywhere(
    reward: Reward, songs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reward.yaml"
    reward.save(file)
    assert f"{HERE}:Pulse" in file.read_text()
    judged = Reward.load(file).judge(songs)
    wanted = [row["reward"] for row in judged]
    assert wanted == [row["reward"] for row in reward.judge(songs)]

    run = CliRunner()
    done = run.invoke(app, ["score", *songs, "--reward", str(file), "--output",
                            str(tmp_path / "s.jsonl")])  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert rows == judged

    function = ApexRewardFunction(Reward.load(file), decode=lambda audio: audio, name="own")
    assert function(["p"] * 3, ["c"] * 3, audio=songs) == pytest.approx(wanted, abs=1e-5)

    candidates = [{"prompt_id": "p", "audio": path} for path in songs]
    write_table(tmp_path / "c.jsonl", candidates)
    words = f"pairs c.jsonl --reward {file} --axis reward --test-share 0 --output p".split()
    monkeypatch.chdir(tmp_path)
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    (pair,) = read_table(tmp_path / "p" / "pairs.jsonl").to_pylist()
    assert pair["chosen_reward"] == pytest.approx(max(wanted), abs=1e-5)
    assert pair["rejected_reward"] == pytest.approx(min(wanted), abs=1e-5)

    battle = {"battle_uuid": "u", "preference": "A", "audio_a": songs[0], "audio_b": songs[2]}
    write_table(tmp_path / "b.jsonl", [battle])
    done = run.invoke(app, ["arena", "score", str(tmp_path / "b.jsonl"), "--reward", str(file),
                            "--output", str(tmp_path / "scored.jsonl")])  # fmt: skip
    assert done.exit_code == 0, done.output
    (scored,) = read_table(tmp_path / "scored.jsonl").to_pylist()
    assert [scored["reward_a"], scored["reward_b"]] == pytest.approx([wanted[0], wanted[2]])
    assert scored["crossings_a"] == judged[0]["crossings"]


def test_the_gradient_is_that_of_the_mix(reward: Reward) -> None:
    wave = torch.rand(2, 50, dtype=torch.float64) - 0.5
    values, gradient = reward_and_gradient(reward, wave, RATE)
    assert gradient == pytest.approx((4 * 2 * wave / 50).numpy(), abs=1e-12)
    assert values.shape == (2,)


def test_a_strategy_of_ones_own(songs: list[str], tmp_path: Path) -> None:
    rows = [{"prompt_id": 1, "audio": f"{n}.wav", "power": n} for n in (1, 2, 3)]
    pairs, _ = build_pairs(rows, strategy=first_wins, axis="power", test_share=0)
    assert [(p["chosen"], p["rejected"], p["strategy"]) for p in pairs] == [
        ("1.wav", "2.wav", "first_wins")
    ]
    write_table(tmp_path / "c.jsonl", rows)
    done = CliRunner().invoke(
        app, ["pairs", str(tmp_path / "c.jsonl"), "--strategy", f"{HERE}:first_wins", "--axis",
              "power", "--output", str(tmp_path / "p")]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (pair,) = read_table(tmp_path / "p" / "pairs.jsonl").to_pylist()
    assert (pair["chosen"], pair["margin"]) == ("1.wav", -1.0)


def test_what_was_made_in_code_is_refused_by_save(tmp_path: Path) -> None:
    class Local(Pulse):
        pass

    with pytest.raises(UsageError, match="has no name to load it by"):
        Reward(Local(), "power=1").save(tmp_path / "r.yaml")


def test_scores_of_other_heads_are_refused() -> None:
    class Wrong(Pulse):
        heads = (Head("power", 0, 1), Head("tempo", 0, 1))

    reward = Reward(Wrong(), "power=1")
    with pytest.raises(UsageError, match="no head 'tempo'"):
        reward(torch.ones(1, 100), RATE)
    (row,) = reward.judge([torch.ones(100)], sample_rate=RATE)
    assert row["error"].startswith("no head 'tempo'")
