"""Settings from the command line and YAML; the rewards they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig

from apex_reward import Reward
from apex_reward.audio import Waveform, save_wav
from apex_reward.errors import UsageError
from apex_reward.runs.settings import (
    RewardSettings,
    build_holdout,
    build_reward,
    output_field,
    parse_settings,
    plain,
    reference_embeddings,
)
from tests.support import golden_song, tiny_model


@dataclass
class Grpo(GRPOConfig):
    output_dir: str = output_field("runs/x")
    max_steps: int = 7
    bf16: bool | None = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(3).save_pretrained(folder)
    return folder


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.yaml").write_text("mix: popularity\nbeta: 0.5\nsave_steps: 3\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--output", "here", "--beta", "0.25"]
    reward, grpo = parse_settings(RewardSettings, Grpo, arguments=words)
    assert (reward.mix, grpo.beta, grpo.save_steps) == ("popularity", 0.25, 3)
    assert (grpo.output_dir, grpo.max_steps, grpo.seed) == ("here", 7, 42)
    assert reward.formats == ("png",)
    assert plain(reward, grpo)["save_steps"] == 3
    (tmp_path / "run.yaml").write_text("mixx: popularity\n")
    with pytest.raises(ValueError, match="mixx"):
        parse_settings(RewardSettings, Grpo, arguments=words)


def test_every_field_of_trls_configuration_is_an_option() -> None:
    words = ["--epsilon_high", "0.3", "--report-to", "none", "--num_iterations", "2"]
    _, grpo = parse_settings(RewardSettings, Grpo, arguments=words)
    assert (grpo.epsilon_high, grpo.num_iterations, grpo.report_to) == (0.3, 2, [])


def test_the_reward_that_settings_mean(folder: Path, tmp_path: Path) -> None:
    settings = RewardSettings(reward_model=str(folder), mix="popularity", penalty=0.2)
    reward = build_reward(settings, shortest=2.0, loudness=-20.0)
    by_name = {guard.name: guard for guard in reward.guards.guards}
    assert (by_name["duration"].low, by_name["noise"].penalty) == (2.0, 0.2)
    assert (reward.loudness, by_name["noise"].action) == (-20.0, "penalty")
    reward.save(tmp_path / "reward.yaml")
    loaded = build_reward(RewardSettings(reward=str(tmp_path / "reward.yaml")))
    songs = [torch.tensor(golden_song(1, 24_000, 1, 0.5)[0])]
    first, second = (one.judge(songs, sample_rate=24_000)[0]["reward"] for one in (reward, loaded))
    assert first == pytest.approx(second, abs=1e-6)
    with pytest.raises(UsageError, match="leave out --mix, --guards"):
        build_reward(RewardSettings(reward="reward.yaml", mix="popularity", guards="veto"))
    assert not build_reward(RewardSettings(reward_model=str(folder), guards="none")).guards.guards


def test_a_holdout_is_a_file_or_a_model(folder: Path, tmp_path: Path) -> None:
    assert build_holdout(RewardSettings(), 24_000) is None
    held = build_holdout(RewardSettings(holdout_reward=str(folder)), 24_000)
    assert held is not None
    assert (held.reward.loudness, held.reward.guards.guards) == (-18.0, ())
    Reward(str(folder), "popularity").save(tmp_path / "held.yaml")
    held = build_holdout(RewardSettings(holdout_reward=str(tmp_path / "held.yaml")), 24_000)
    assert held is not None
    assert held.reward.loudness is None


def test_reference_songs_of_a_folder_or_the_toys(folder: Path, tmp_path: Path) -> None:
    reward = Reward(str(folder))
    songs = [Waveform(golden_song(seed, 24_000, 1, 0.5), 24_000) for seed in range(3)]
    for number, song in enumerate(songs):
        save_wav(tmp_path / f"{number}.wav", song.samples, 24_000)
    toys = reference_embeddings(RewardSettings(), reward, lambda: songs)
    named = reference_embeddings(RewardSettings(reference_songs=str(tmp_path)), reward, lambda: [])
    assert toys.shape == (3, 32)
    torch.testing.assert_close(named, toys, atol=2e-3, rtol=2e-2)  # 16 bits in the files
    with pytest.raises(UsageError, match="1 reference songs"):
        reference_embeddings(RewardSettings(), reward, lambda: songs[:1])
