"""verl and verl-omni, by the calls that their own managers make.

Recorded from the packages: verl 0.9.1 (`NaiveRewardManager.run_single`, with and without a reward
router) and verl-omni of September 2026 (`AudioRewardManager`, `VisualRewardManager`,
`MultiRewardManager`). Every manager calls by keyword; verl-omni's filter the keywords by the
function's signature first.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.stacks.samples import judge_of
from apex_reward.rewards.stacks.verl import ApexNativeReward, compute_audio_score, compute_score
from apex_reward.rewards.stacks.verl_manager import ApexRewardManager
from tests.support import guards_of, tiny_model, write_wav

RATE = 24_000
MIX = "musicality=1,clarity=0.5"
FLOOR = 0 - 0.5 - 0.01 * 1.5  # lowest of the mix, penalty, 1% of its range
ROUTER = {"reward_router_address": "127.0.0.1:1", "reward_model_tokenizer": None}
VERL = {"data_source": "songs", "ground_truth": "a prompt"}
OMNI_ROUTER = {**ROUTER, "model_name": "judge", "sampling_params": {"temperature": 0.0}}


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(3), MIX, guards=guards_of(["clipping"], "penalty"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, reward: Reward) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    for n in range(3):
        write_wav(folder / f"{n}.wav", 0.4 + 0.2 * n, RATE, seed=n)
    (folder / "text.wav").write_text("no audio")
    reward.model.save_pretrained(folder / "model")
    Reward(str(folder / "model"), MIX, guards=reward.guards).save(folder / "reward.yaml")
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> str:
    return str(folder / "reward.yaml")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return [str(folder / f"{n}.wav") for n in range(3)]


@pytest.fixture(scope="module")
def expected(reward: Reward, paths: list[str]) -> list[float]:
    return [row["reward"] for row in reward.judge(paths)]


def filtered(function: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    """As verl-omni calls: only the keywords that the signature takes."""
    parameters = inspect.signature(function).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        keywords = {name: value for name, value in keywords.items() if name in parameters}
    return function(**keywords)


def test_recorded_calls(file: str, paths: list[str], expected: list[float]) -> None:
    """Each call by keyword, as its package makes it; all judged together."""
    wave = load_audio(paths[2]).mono
    extra = {"audio": wave, "audio_sample_rate": RATE}
    frames = np.zeros((2, 3, 8, 8), np.uint8)
    own = {"reward": file}

    async def ask() -> list[dict[str, Any]]:
        calls = [
            # verl 0.9.1: NaiveRewardManager, then the same with a reward router
            compute_score(**VERL, solution_str=paths[0], extra_info={}, **own),
            compute_score(**VERL, solution_str=paths[0], extra_info={}, **ROUTER, **own),
            compute_score(**VERL, solution_str="", extra_info={"audio_path": paths[1]}, **own),
            # verl-omni: AudioRewardManager
            filtered(compute_audio_score, {**VERL, "solution_audio": (wave, RATE),
                                           "extra_info": {}, **own}),
            # verl-omni: VisualRewardManager and MultiRewardManager, with and without a router
            filtered(compute_audio_score, {**VERL, "solution_image": frames, "extra_info": extra,
                                           **own}),
            filtered(compute_score, {**VERL, "solution_image": frames, "extra_info": extra, **own}),
            filtered(compute_score, {**VERL, "solution_image": frames, "extra_info": extra,
                                     **OMNI_ROUTER, **own}),
            filtered(compute_score, {**VERL, "solution_audio": (wave, RATE), "extra_info": extra,
                                     **OMNI_ROUTER, **own}),
            # older reward files of verl-omni: the image in the place of the song
            compute_audio_score("songs", frames, "a prompt", extra, **own),
        ]  # fmt: skip
        return await asyncio.gather(*calls)

    assert inspect.iscoroutinefunction(compute_score)
    assert inspect.iscoroutinefunction(compute_audio_score)
    found = asyncio.run(ask())
    wanted = [expected[0], expected[0], expected[1], *[expected[2]] * 6]
    assert [one["score"] for one in found] == pytest.approx(wanted, abs=1e-5)
    assert all(type(v) in (int, float) and np.isfinite(v) for one in found for v in one.values())
    assert all(one["decoded"] == 1.0 for one in found)


def test_a_sample_without_a_song_earns_the_floor(folder: Path, file: str) -> None:
    async def ask(**options: Any) -> list[float]:
        broken = np.full(9, np.nan, np.float32)
        extras = [
            {"audio_path": str(folder / "text.wav")},
            {"audio_path": "not/there.wav"},
            {"audio": broken, "audio_sample_rate": RATE},
            None,
        ]
        calls = [compute_score(**VERL, extra_info=e, reward=file, **options) for e in extras]
        return [one["score"] for one in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == pytest.approx([FLOOR] * 4)
    assert asyncio.run(ask(undecodable=-9)) == [-9.0] * 4
    assert asyncio.run(ask(scale="range")) == pytest.approx([-0.51] * 4)
    with pytest.raises(UsageError, match="this stack needs a finite number"):
        asyncio.run(ask(undecodable=None))


def test_no_rate_no_reward(file: str, paths: list[str], expected: list[float]) -> None:
    """One client's waveform without a rate is its own error; others are judged."""
    wave = load_audio(paths[0]).mono

    async def ask() -> list[Any]:
        calls = [
            compute_score(**VERL, extra_info={"audio": wave}, reward=file),
            compute_score(**VERL, extra_info={"audio": wave}, reward=file, sample_rate=RATE),
            compute_score(**VERL, solution_str=paths[1], reward=file),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(ask())
    assert isinstance(first, UsageError)
    assert "samples without a rate" in str(first)
    assert [one["score"] for one in others] == pytest.approx(expected[:2], abs=1e-5)


def test_the_scale_of_the_range(file: str, paths: list[str], expected: list[float]) -> None:
    score = asyncio.run(compute_score(**VERL, solution_str=paths[0], reward=file, scale="range"))
    assert score["score"] == pytest.approx(expected[0] / 1.5, abs=1e-5)
    assert score["reward_raw"] == pytest.approx(expected[0], abs=1e-5)
    assert judge_of(file, scale="range") is judge_of(file, scale="range")


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
    assert scores == pytest.approx([expected[2], expected[0], FLOOR], abs=1e-5)
    assert sorted(notes.seen) == [[0, 7, 7], [2, 7], [9]]
    assert found[2]["reward_extra_info"]["decoded"] == 0.0
    assembled = ApexRewardManager.assemble_rm_scores(Proto(batch, rows), scores)
    assert assembled.tolist() == [
        [0.0, pytest.approx(scores[0]), 0.0],
        [0.0, 0.0, pytest.approx(scores[1])],
        [pytest.approx(FLOOR), 0.0, 0.0],
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "has no decode"),
        ({"decode": "no.such:thing"}, "no.such:thing: .* package.module:callable for decode"),
    ],
)
def test_a_manager_without_a_decoder_says_so(kwargs: dict[str, str], message: str) -> None:
    config = {"reward": {"custom_reward_function": {"reward_kwargs": kwargs}}}
    with pytest.raises(UsageError, match=message):
        ApexRewardManager(config)


@pytest.mark.parametrize("function", [compute_score, compute_audio_score])
def test_a_native_reward_model_of_verl_omni(function: Any, folder: Path, reward: Reward) -> None:
    song = 0.1 * np.random.RandomState(0).standard_normal(RATE).astype(np.float32)
    native = ApexNativeReward(str(folder / "reward.yaml"), "cpu")
    arguments = {**VERL, "solution_audio": (song, RATE), "reward": "missing.yaml"}
    answer = asyncio.run(function(**arguments, reward_model=native, **OMNI_ROUTER))
    (row,) = reward.judge([(song, RATE)], ["a prompt"])
    assert answer["score"] == pytest.approx(row["reward"], abs=1e-6)
    assert answer["clarity"] == pytest.approx(row["clarity"], abs=1e-6)
    single = native.infer((song, RATE), "a prompt")
    assert single == answer
    both = native.infer([(song, RATE), None], ["a prompt", "a prompt"])
    assert both[0]["score"] == pytest.approx(answer["score"], abs=1e-5)
    assert both[1]["score"] == pytest.approx(FLOOR)
    native.offload()
    native.onload()
    native.close()
    with pytest.raises(UsageError, match="closed"):
        native.infer(None)


def test_options_of_a_native_reward_model(folder: Path) -> None:
    with pytest.raises(UsageError, match="a reward file has its own mix"):
        ApexNativeReward(str(folder / "reward.yaml"), "cpu", mix="musicality")
    with pytest.raises(UsageError, match="undecodable is None"):
        ApexNativeReward("apex-tiny", undecodable=None)
    scaled = ApexNativeReward("apex-tiny", "cpu", mix="musicality=1", scale="range")
    assert 0 <= scaled.infer(0.1 * torch.ones(RATE), "a", RATE)["score"] <= 1
