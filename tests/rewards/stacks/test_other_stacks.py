"""verl, verl-omni, OpenRLHF, ms-swift, flow_grpo, Resonate, GDPO: each by its own call."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward import ApexRewardFunction, Guards, Reward
from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.stacks import single
from apex_reward.rewards.stacks.flow import flow_grpo_reward, resonate_reward
from apex_reward.rewards.stacks.flow_factory import ApexFlowReward
from apex_reward.rewards.stacks.objectives import functions
from apex_reward.rewards.stacks.openrlhf import VARIABLE, reward_func
from apex_reward.rewards.stacks.single import SingleJudge, StackJudge
from apex_reward.rewards.stacks.swift import ApexORM, AsyncApexORM
from apex_reward.rewards.stacks.verl import compute_audio_score, compute_score
from apex_reward.rewards.stacks.verl_manager import ApexRewardManager
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


def test_the_song_of_a_sample_is_in_its_extra_information_or_its_text() -> None:
    samples = np.zeros(4, np.float32)
    assert single.audio_of({"audio": samples, "audio_path": "a.wav"}, "b.wav") is samples
    assert single.audio_of({"audio": samples, "audio_sample_rate": 8e3}, "") == (samples, 8000)
    assert single.audio_of({"audio": None, "audio_path": "a.wav"}, "b.wav") == "a.wav"
    assert single.audio_of({"audio_path": ""}, " b.wav</s>") == "b.wav"
    assert single.audio_of(None, " ") is None


def test_openrlhf_gets_tensors(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(folder / "reward.yaml"))
    queries = [f"a song: {path}" for path in paths] + ["a song: "]
    answer = reward_func(queries, ["a song:"] * 4, [""] * 4)
    assert answer["rewards"].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    assert torch.equal(answer["scores"], answer["rewards"])
    assert answer["extra_logs"]["decoded"].tolist() == [1, 1, 1, 0]


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
    assert single.path_in(query, prompt) == path


def test_swift_classes(folder: Path, paths: list[str], expected: list[float]) -> None:
    made = ApexORM.of(str(folder / "reward.yaml"), decode=lambda ids: [paths[i[0]] for i in ids])
    assert made(None)(paths) == pytest.approx(expected, abs=1e-5)
    assert made()(["", ""], response_token_ids=[[2], [0]]) == pytest.approx(
        [expected[2], expected[0]], abs=1e-5
    )
    # A list of ids per turn, as swift 4.6 hands them over.
    assert made()([""], response_token_ids=[[[0], [2]]]) == pytest.approx(expected[2:], abs=1e-5)
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


class Notes:
    """A decode hook of token ids: the first says which of some songs it is."""

    sample_rate = RATE

    def __init__(self, paths: list[str]) -> None:
        self.paths, self.seen = paths, []

    def __call__(self, completion_ids: list[list[int]]) -> list[Any]:
        self.seen += completion_ids
        return [
            load_audio(self.paths[ids[0]]).mono if ids[0] < len(self.paths) else None
            for ids in completion_ids
        ]


class Proto:
    """What of verl's DataProto a manager reads."""

    def __init__(self, batch: dict[str, torch.Tensor], rows: list[dict[str, Any]]) -> None:
        self.batch, self.rows = batch, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> SimpleNamespace:
        tensors = {name: value[i] for name, value in self.batch.items()}
        return SimpleNamespace(batch=tensors, non_tensor_batch=self.rows[i])


def test_a_manager_of_verl_sees_token_ids(
    folder: Path, paths: list[str], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(paths)
    monkeypatch.setattr(f"{__name__}.notes", notes, raising=False)
    kwargs = {"reward": str(folder / "reward.yaml"), "decode": f"{__name__}:notes"}
    config = {"reward": {"custom_reward_function": {"path": None, "reward_kwargs": kwargs}}}
    manager = ApexRewardManager(config, tokenizer=None, compute_score=None)
    batch = {
        "prompts": torch.zeros(3, 2, dtype=torch.long),
        "responses": torch.tensor([[2, 7, 0], [0, 7, 7], [9, 0, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    rows = [
        {"extra_info": {"prompt": "p"}},
        {"raw_prompt": np.array([{"role": "user", "content": "p"}])},
        {"reward_model": {"ground_truth": "p"}},
    ]

    async def ask() -> list[dict[str, Any]]:
        ones = [
            Proto({k: v[i : i + 1] for k, v in batch.items()}, rows[i : i + 1]) for i in range(3)
        ]
        return await asyncio.gather(*[manager.run_single(one) for one in ones])

    found = asyncio.run(ask())
    scores = [answer["reward_score"] for answer in found]
    assert scores == pytest.approx([expected[2], expected[0], 0.0], abs=1e-5)
    assert sorted(notes.seen) == [[0, 7, 7], [2, 7], [9]]
    assert found[2]["reward_extra_info"]["decoded"] == 0.0
    assembled = ApexRewardManager.assemble_rm_scores(Proto(batch, rows), scores)
    assert assembled.tolist() == [
        [0.0, pytest.approx(scores[0]), 0.0],
        [0.0, 0.0, pytest.approx(scores[1])],
        [0.0, 0.0, 0.0],
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({}, "has no decode"), ({"decode": "no.such:thing"}, "'no.such:thing'; expected package")],
)
def test_a_manager_without_a_decoder_says_so(kwargs: dict[str, str], message: str) -> None:
    config = {"reward": {"custom_reward_function": {"reward_kwargs": kwargs}}}
    with pytest.raises(UsageError, match=message):
        ApexRewardManager(config)


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
