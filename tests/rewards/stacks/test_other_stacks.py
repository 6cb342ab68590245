"""verl, verl-omni, OpenRLHF, ms-swift, flow_grpo, Resonate, GDPO: each by its own call."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward import ApexRewardFunction, Guards, Reward
from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.stacks import single
from apex_reward.rewards.stacks.flow import flow_grpo_reward, resonate_reward
from apex_reward.rewards.stacks.objectives import functions
from apex_reward.rewards.stacks.openrlhf import VARIABLE, reward_func
from apex_reward.rewards.stacks.single import SingleJudge, StackJudge
from apex_reward.rewards.stacks.swift import ApexORM, AsyncApexORM
from apex_reward.rewards.stacks.verl import compute_audio_score, compute_score
from tests.support import tiny_model, write_wav

RATE = 24_000
MIX = "musicality=1,clarity=0.5"


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(3), MIX, guards=Guards.of(["clipping"], "penalty"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, reward: Reward) -> Path:
    folder = tmp_path_factory.mktemp("stacks")
    for n in range(3):
        write_wav(folder / f"{n}.wav", 0.4 + 0.2 * n, RATE, seed=n)
    (folder / "text.wav").write_text("no audio")
    reward.model.save_pretrained(folder / "model")
    Reward(str(folder / "model"), MIX, guards=reward.guards).save(folder / "reward.yaml")
    return folder


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return [str(folder / f"{n}.wav") for n in range(3)]


@pytest.fixture(scope="module")
def expected(reward: Reward, paths: list[str]) -> list[float]:
    return [row["reward"] for row in reward.judge(paths)]


def test_verl_awaits_one_sample_a_call_and_judges_them_together(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.iscoroutinefunction(compute_score)
    file = str(folder / "reward.yaml")
    judge = single.judge_of(file, None, None)
    sizes = []
    real = judge.judge.__call__
    monkeypatch.setattr(
        judge, "judge", lambda items, prompts: sizes.append(len(items)) or real(items, prompts)
    )
    wave = load_audio(paths[2])

    async def ask() -> list[dict[str, Any]]:
        calls = [
            compute_score("d", paths[0], "a prompt", reward=file),
            compute_score("d", "", None, {"audio_path": paths[1]}, reward=file),
            compute_score(
                "d", "", "p", {"audio": wave.mono, "audio_sample_rate": RATE}, reward=file
            ),
            compute_score("d", str(folder / "text.wav"), "p", reward=file),
            compute_audio_score("d", (wave.mono, RATE), "p", {}, reward=file),
        ]
        return await asyncio.gather(*calls)

    found = asyncio.run(ask())
    scores = [result["score"] for result in found]
    assert [*scores[:3], scores[4]] == pytest.approx([*expected, expected[2]], abs=1e-5)
    assert (scores[3], found[3]["decoded"]) == (0.0, 0.0)  # the lowest of the mix
    assert all(isinstance(v, (int, float)) and np.isfinite(v) for r in found for v in r.values())
    assert max(sizes) > 1


def test_openrlhf_gets_tensors(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder / "reward.yaml"))
    queries = [f"a song: {path}" for path in paths] + ["a song: "]
    answer = reward_func(queries, ["a song:"] * 4, [""] * 4)
    assert answer["rewards"].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    assert torch.equal(answer["scores"], answer["rewards"])
    assert answer["extra_logs"]["decoded"].tolist() == [1, 1, 1, 0]


def test_swift_classes(folder: Path, paths: list[str], expected: list[float]) -> None:
    made = ApexORM.of(str(folder / "reward.yaml"), decode=lambda ids: [paths[i[0]] for i in ids])
    assert made(None)(paths) == pytest.approx(expected, abs=1e-5)
    assert made()(["", ""], response_token_ids=[[2], [0]]) == pytest.approx(
        [expected[2], expected[0]], abs=1e-5
    )
    assert made()([""], audio=[{"path": paths[1]}]) == pytest.approx(expected[1:2], abs=1e-5)
    later = AsyncApexORM.of(str(folder / "reward.yaml"))()
    assert inspect.iscoroutinefunction(type(later).__call__)
    assert asyncio.run(later(paths)) == pytest.approx(expected, abs=1e-5)


def test_flow_functions(reward: Reward, paths: list[str], expected: list[float]) -> None:
    waves = [torch.from_numpy(load_audio(path).mono) for path in paths]
    scores, info = flow_grpo_reward(reward, RATE)(waves, ["p"] * 3, None)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert info == {}
    scores, _ = resonate_reward(reward)(waves, ["p"] * 3, RATE)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_threads_and_pickles(reward: Reward, paths: list[str], expected: list[float]) -> None:
    judge = pickle.loads(pickle.dumps(SingleJudge(StackJudge(reward))))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: judge.submit(paths[n % 3], "p").result(), range(12)))
    assert [a["score"] for a in answers] == pytest.approx(expected * 4, abs=1e-5)
    with pytest.raises(UsageError, match="float waveform"):
        judge.submit(np.zeros((2, 2, 2), np.float32), "p").result()
    assert judge.submit(paths[0], "p").result()["score"] == pytest.approx(expected[0], abs=1e-5)


def test_objectives_share_one_forward(reward: Reward, paths: list[str]) -> None:
    calls = []

    def decode(audio: list[Any]) -> list[Any]:
        calls.append(len(audio))
        return audio

    function = ApexRewardFunction(reward, decode=decode)
    loud = torch.ones(RATE) * torch.sign(torch.sin(torch.arange(RATE) / 50))
    audio = [paths[0], None, loud]
    music, clarity = functions(function)
    assert (music.__name__, clarity.__name__) == ("musicality", "clarity")
    rows = reward.judge([paths[0]])
    found = music(["p"] * 3, ["a", "b", "c"], audio=audio)
    assert found[0] == pytest.approx(rows[0]["musicality"], abs=1e-5)
    assert found[1] is None
    assert found[2] == 1.0  # the guard's penalty: the head's lowest
    assert clarity(["p"] * 3, ["a", "b", "c"], audio=audio)[0] == pytest.approx(
        rows[0]["clarity"], abs=1e-5
    )
    assert calls == [3]
    later = functions(function, asynchronous=True)[0]
    assert inspect.iscoroutinefunction(later)
    assert asyncio.run(later(["p"] * 3, ["a", "b", "d"], audio=audio))[0] == found[0]
    assert calls == [3, 3]


def test_a_second_reward_function_prices_what_is_no_song(reward: Reward) -> None:
    class Trainer:
        """As TRL's trainer: it holds the functions and calls them from a method."""

        def __init__(self, functions: list[Any]) -> None:
            self.reward_funcs = functions

        def step(self) -> list[Any]:
            return self.reward_funcs[0](["p"], ["c"], audio=[None])

    own = Reward(reward.model, "musicality=-1")
    function = ApexRewardFunction(own, decode=lambda audio: audio)
    with pytest.warns(UserWarning, match="no completion of this batch gave a song"):
        assert Trainer([function]).step() == [None]
    assert Trainer([function, len]).step() == [-1.0]
    with pytest.raises(UsageError, match="a Reward says itself"):
        ApexRewardFunction(own, "clarity=1", decode=lambda audio: audio)
