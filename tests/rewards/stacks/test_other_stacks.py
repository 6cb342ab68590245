"""OpenRLHF, ms-swift, flow_grpo, Resonate, Flow-Factory: each by its own call."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.stacks import samples
from apex_reward.rewards.stacks.flow import flow_grpo_reward, resonate_reward
from apex_reward.rewards.stacks.flow_factory import ApexFlowReward
from apex_reward.rewards.stacks.openrlhf import SCALE_VARIABLE, VARIABLE, reward_func
from apex_reward.rewards.stacks.swift import ApexORM, AsyncApexORM
from tests.support import guards_of, tiny_model, write_wav

RATE = 24_000
MIX = "musicality=1,clarity=0.5"


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(3), MIX, guards=guards_of(["clipping"], "penalty"))


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


def test_the_song_of_a_sample_is_in_its_extra_information_or_its_text() -> None:
    wave = np.zeros(4, np.float32)
    assert samples.audio_of({"audio": wave, "audio_path": "a.wav"}, "b.wav") is wave
    assert samples.audio_of({"audio": wave, "audio_sample_rate": 8e3}, "") == (wave, 8000)
    assert samples.audio_of({"audio": None, "audio_path": "a.wav"}, "b.wav") == "a.wav"
    assert samples.audio_of({"audio_path": ""}, " b.wav</s>") == "b.wav"
    assert samples.audio_of(None, " ") is None


def test_openrlhf_gets_tensors(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder / "reward.yaml"))
    queries = [f"a song: {path}" for path in paths] + ["a song: "]
    answer = reward_func(queries, ["a song:"] * 4, [""] * 4)
    # the floor: 0, less the penalty 0.5, less 1% of the range 1.5
    assert answer["rewards"].tolist() == pytest.approx([*expected, -0.515], abs=1e-5)
    assert torch.equal(answer["scores"], answer["rewards"])
    assert answer["extra_logs"]["decoded"].tolist() == [1, 1, 1, 0]


def test_openrlhf_on_the_scale_of_the_range(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mix lies in [0, 1.5]; guards take their penalty after it is mapped to [0, 1]."""
    monkeypatch.setenv(VARIABLE, str(folder / "reward.yaml"))
    queries, prompts = [*paths, "p"], ["", "", "", "p"]
    wanted = [*(reward / 1.5 for reward in expected), -0.51]
    answer = reward_func(queries, prompts, [""] * 4, scale="range")
    assert answer["rewards"].tolist() == pytest.approx(wanted, abs=1e-5)
    monkeypatch.setenv(SCALE_VARIABLE, "range")
    assert reward_func(queries, prompts)["rewards"].tolist() == pytest.approx(wanted, abs=1e-5)


def test_openrlhf_keeps_special_tokens_in_its_queries(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder / "reward.yaml"))
    queries = [f"<s> a song: {paths[0]}</s>", f"a song: {paths[1]} <|im_end|> <eos>"]
    answer = reward_func(queries, ["a song:"] * 2, [""] * 2)
    assert answer["rewards"].tolist() == pytest.approx(expected[:2], abs=1e-5)


@pytest.mark.parametrize(
    ("query", "prompt", "path"),
    [
        ("songs/a.wav", "", "songs/a.wav"),
        (
            "<s>[INST] loud <b> [/INST] x/a <b> c.wav</s>",
            "<s>[INST] loud <b> [/INST]",
            "x/a <b> c.wav",
        ),
        ("a.wav[EOS][PAD]", "loud", "a.wav"),
        ("data:audio/wav;base64,aaaa", "a", "data:audio/wav;base64,aaaa"),
        ("loud</s>", "loud", None),
        (" ", "", None),
    ],
)
def test_paths_are_found_between_prompt_and_special_tokens(
    query: str, prompt: str, path: str | None
) -> None:
    assert samples.path_in(query, prompt) == path


class Decoder:
    """A decode hook with or without a rate."""

    def __init__(self, decode: Any) -> None:
        self.decode = decode

    def __call__(self, ids: Any) -> list[Any]:
        return self.decode(ids)


def orm(reward: Path, decode: Any = None, kind: type[ApexORM] = ApexORM) -> type[ApexORM]:
    hook = None if decode is None else staticmethod(decode)
    return type("Own", (kind,), {"reward": str(reward), "decode": hook})


def test_swift_classes(folder: Path, paths: list[str], expected: list[float]) -> None:
    made = orm(folder / "reward.yaml", lambda ids: [paths[i[0]] for i in ids])
    assert made(None)(paths) == pytest.approx(expected, abs=1e-5)
    assert made()(["", ""], response_token_ids=[[2], [0]]) == pytest.approx(
        [expected[2], expected[0]], abs=1e-5
    )
    # Bare waveforms take the decoder's rate, and are refused without one.
    waves = [load_audio(path).mono for path in paths]
    bare = Decoder(lambda ids: [waves[i[0]] for i in ids])
    made_bare = orm(folder / "reward.yaml", bare)
    with pytest.raises(UsageError, match="samples without a rate"):
        made_bare()([""], response_token_ids=[[0]])
    bare.sample_rate = RATE
    assert made_bare()([""], response_token_ids=[[0]]) == pytest.approx(expected[:1], abs=1e-5)
    # A list of ids per turn, as swift 4.6 hands them over.
    assert made()([""], response_token_ids=[[[0], [2]]]) == pytest.approx(expected[2:], abs=1e-5)
    assert made()([""], audio=[{"path": paths[1]}]) == pytest.approx(expected[1:2], abs=1e-5)
    later = orm(folder / "reward.yaml", kind=AsyncApexORM)()
    assert inspect.iscoroutinefunction(type(later).__call__)
    assert asyncio.run(later(paths)) == pytest.approx(expected, abs=1e-5)
    assert made()(["", paths[0]]) == pytest.approx([-0.515, expected[0]], abs=1e-5)


def test_flow_functions(reward: Reward, paths: list[str], expected: list[float]) -> None:
    waves = [torch.from_numpy(load_audio(path).mono) for path in paths]
    scores, info = flow_grpo_reward(reward, RATE)(waves, ["p"] * 3, None)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert info == {}
    scores, _ = resonate_reward(reward)(waves, ["p"] * 3, RATE)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    broken = [torch.tensor([0.0, torch.nan]), torch.zeros(0)]
    for undecodable, value in (("floor", -0.515), (-3.0, -3.0)):
        scores, _ = flow_grpo_reward(reward, RATE, undecodable)(broken, ["p"] * 2, None)
        assert scores.tolist() == pytest.approx([value] * 2)


def test_flow_factory_hands_over_waveforms_with_their_rates(
    folder: Path, paths: list[str], expected: list[float]
) -> None:
    config = SimpleNamespace(extra_kwargs={"reward": str(folder / "reward.yaml")})
    model = ApexFlowReward(config, accelerator=None)
    assert set(model.required_fields) == {"audio", "prompt"}
    waves = [torch.from_numpy(load_audio(path).samples) for path in paths]
    output = model(prompt=["p"] * 3, audio=waves, audio_sample_rate=[RATE] * 3, metadata="{}")
    assert output.rewards.tolist() == pytest.approx(expected, abs=1e-5)
    assert output.extra_info["decoded"] == [1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="audio_sample_rate are needed"):
        model(prompt=["p"], audio=waves[:1])


def test_a_song_of_an_ensemble_and_none_have_the_same_figures(
    folder: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completion without a song ended OpenRLHF's whole batch; verl wants equal keys too."""
    tiny_model(3, members=2).save_pretrained(folder / "two")
    Reward(str(folder / "two"), "clarity=1").save(folder / "two.yaml")
    monkeypatch.setenv(VARIABLE, str(folder / "two.yaml"))
    answer = reward_func([paths[0], "p"], ["", "p"])
    assert answer["rewards"][1].item() == pytest.approx(-0.01)
    spread = answer["extra_logs"]["clarity_std"].tolist()
    assert (spread[0] > 0, spread[1]) == (True, 0.0)
    first, second = samples.judge_of(str(folder / "two.yaml")).answers(
        samples.judge_of(str(folder / "two.yaml"))([paths[0], None])
    )
    assert first.keys() == second.keys()
