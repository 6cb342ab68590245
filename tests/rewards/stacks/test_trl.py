"""The reward function called by hand: values, None, guards, groups, logging."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from trl.trainer.utils import print_prompt_completions_sample

from apex_reward import ApexReward, ApexRewardFunction, RewardMix
from apex_reward.audio import Waveform
from apex_reward.audio.resample import resample
from apex_reward.errors import UsageError
from apex_reward.rewards.groups import share_without_signal
from apex_reward.rewards.guards import DEFAULT_GUARDS, Guard, Guards, dc_offset
from tests.support import golden_song, tiny_model

MIX = "musicality=1,score_likes=-0.3"


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def song(seed: int, seconds: float = 1.0, rate: int = 24_000) -> Tensor:
    return torch.tensor(golden_song(seed, rate, 1, seconds)[0])


def by_first_id(completion_ids: list[list[int]]) -> list[Tensor | None]:
    """id n is song n; 99 and an empty completion do not decode."""
    return [song(ids[0], 0.5 + 0.3 * ids[0]) if ids and ids[0] != 99 else None
            for ids in completion_ids]  # fmt: skip


def call(function: ApexRewardFunction, ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    prompts = kwargs.pop("prompts", ["p"] * len(ids))
    return function(prompts=prompts, completions=["c"] * len(ids), completion_ids=ids, **kwargs)


by_first_id.sample_rate = 24_000  # type: ignore[attr-defined]
FLOOR = -0.3 - 0.01 * 1.3  # of MIX, whose values lie in [-0.3, 1]


class Log(dict[str, Any]):
    """Catches log_metric and log_extra."""

    def __call__(self, name: str, value: Any) -> None:
        self[name] = value


def test_rewards_are_those_of_the_songs_one_by_one(model: ApexReward) -> None:
    function = ApexRewardFunction(model, MIX, decode=by_first_id)
    rewards = call(function, [[3], [1], [2], [1]])
    expected = [
        model.reward(by_first_id([[i]])[0][None], 24_000, mix=MIX).item() for i in (3, 1, 2, 1)
    ]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert len({round(r, 4) for r in expected}) == 3
    assert all(type(reward) is float for reward in rewards)


def test_what_does_not_decode_earns_the_floor_and_leaves_the_others_alone(
    model: ApexReward,
) -> None:
    function = ApexRewardFunction(model, MIX, decode=by_first_id)
    alone = call(function, [[1], [2]])
    log = Log()
    with pytest.warns(UserWarning, match="no completion of this batch gave a song"):
        assert call(function, [[99], []]) == pytest.approx([FLOOR] * 2)
    mixed = call(function, [[99], [1], [], [2]], log_metric=log)
    assert mixed == pytest.approx([FLOOR, alone[0], FLOOR, alone[1]], abs=1e-5)
    assert log["apex/undecodable"] == 0.5
    assert call(function, []) == []
    for undecodable in (-2.0, None):
        priced = ApexRewardFunction(model, MIX, decode=by_first_id, undecodable=undecodable)
        assert call(priced, [[99], [1]])[0] == undecodable
    for wrong in ("lowest", math.inf):
        with pytest.raises(UsageError, match=f"undecodable is '?{wrong}"):
            ApexRewardFunction(model, MIX, decode=by_first_id, undecodable=wrong)


@pytest.mark.parametrize(
    "broken",
    [
        torch.zeros(0),
        torch.tensor([0.0, math.nan, 0.1]),
        torch.tensor([math.inf]),
        torch.full((100,), 3e4),
        "not/there.wav",
        b"no audio",
    ],
    ids=str,
)
def test_unusable_songs_earn_the_floor(model: ApexReward, broken: Any) -> None:
    function = ApexRewardFunction(
        model, MIX, decode=lambda completions: [broken, song(1)], sample_rate=24_000
    )
    rewards = call(function, [[0], [1]])
    assert rewards[0] == pytest.approx(FLOOR)
    assert rewards[1] > 0


@pytest.mark.parametrize("mix", ["musicality=1", "musicality=-1", "clarity=2,score_likes=-1"])
@pytest.mark.parametrize("action", ["flag", "penalty", "veto"])
def test_no_song_earns_less_than_what_is_no_song(model: ApexReward, mix: str, action: Any) -> None:
    """Whatever the sign of the mix, the guards and the size of the call."""
    function = ApexRewardFunction(model, mix, decode=by_first_id, guards=action)
    floor = function.judge.floor()
    (alone,) = call(function, [[99]])
    rewards = call(function, [[99], [1], [2], [0]])
    assert alone == rewards[0] == floor
    # Songs of a second trip `duration`: a veto is as bad, and nothing is worse.
    assert all(reward == floor if action == "veto" else reward > floor for reward in rewards[1:])
    assert all(math.isfinite(reward) for reward in rewards)


def test_no_rate_no_reward(model: ApexReward) -> None:
    """A song of 44.1 kHz scores as itself, whatever way its rate is stated; without one never."""
    wave = song(1, 1.0, 44_100)
    expected = model.reward(wave[None], 44_100, mix=MIX).item()

    def bare(completions: list[str]) -> list[Tensor]:
        return [wave]

    with pytest.raises(UsageError, match="samples without a rate; pass sample_rate="):
        call(ApexRewardFunction(model, MIX, decode=bare), [[0]])
    assert call(ApexRewardFunction(model, MIX, decode=bare, sample_rate=44_100), [[0]]) == (
        pytest.approx([expected], abs=1e-5)
    )
    for item in (
        (wave, 44_100), (wave.numpy(), np.int64(44_100)), Waveform(wave[None].numpy(), 44_100),
        {"array": wave.numpy(), "sampling_rate": 44_100},
    ):  # fmt: skip
        function = ApexRewardFunction(model, MIX, decode=lambda completions, item=item: [item])
        assert call(function, [[0]]) == pytest.approx([expected], abs=1e-5)


def test_a_batch_of_one_and_identical_completions(model: ApexReward) -> None:
    function = ApexRewardFunction(model, MIX, decode=by_first_id)
    log = Log()
    (lone,) = call(function, [[2]], log_metric=log)
    assert log["apex/zero_variance_groups"] == 1.0
    same = call(function, [[2], [2], [1], [2]], prompts=["a", "a", "b", "b"], log_metric=log)
    assert same[0] == same[1] == pytest.approx(lone, abs=1e-5)
    assert log["apex/zero_variance_groups"] == 0.5
    assert share_without_signal(["a", "a", "b"], [0.1, 0.2, None]) == 0.5
    assert share_without_signal([], []) == 0.0


def test_the_hook_gets_what_its_signature_names(model: ApexReward) -> None:
    seen: dict[str, Any] = {}

    def named(completions: list[str], seeds: list[int], unused: int = 7) -> list[Tensor]:
        seen.update(completions=completions, seeds=seeds, unused=unused)
        return [song(seed) for seed in seeds]

    def everything(**columns: Any) -> list[Tensor]:
        seen.update(columns)
        return [song(seed) for seed in columns["seeds"]]

    first = call(
        ApexRewardFunction(model, MIX, decode=named, sample_rate=24_000), [[0], [0]], seeds=[4, 5]
    )
    assert seen == {"completions": ["c", "c"], "seeds": [4, 5], "unused": 7}
    second = call(
        ApexRewardFunction(model, MIX, decode=everything, sample_rate=24_000),
        [[0], [0]],
        seeds=[4, 5],
    )
    assert seen["prompts"] == ["p", "p"]
    assert seen["completion_ids"] == [[0], [0]]
    assert first == second
    with pytest.raises(UsageError, match="decode asks for seeds; it can have completion_ids"):
        call(ApexRewardFunction(model, MIX, decode=named, sample_rate=24_000), [[0]])


def test_decoded_forms_and_rates(model: ApexReward) -> None:
    mono = song(1, 1.0, 48_000)
    stereo = torch.stack([mono, torch.zeros_like(mono)]) * 2
    ready = Waveform(resample(mono, 48_000, 24_000)[None].numpy(), 24_000)
    items = [mono, stereo, mono.numpy(), mono.double(), ready]
    function = ApexRewardFunction(model, MIX, decode=lambda completions: items, sample_rate=48_000)
    rewards = call(function, [[0]] * 5)
    assert rewards == pytest.approx([rewards[0]] * 5, abs=1e-4)
    at_24 = model.reward(torch.tensor(ready.samples), 24_000, mix=MIX).item()
    assert rewards[0] == pytest.approx(at_24, abs=1e-4)


def test_wrong_decodes_are_named(model: ApexReward) -> None:
    def function(item: Any) -> ApexRewardFunction:
        return ApexRewardFunction(model, MIX, decode=lambda completions: item, sample_rate=24_000)

    with pytest.raises(UsageError, match="returned 2 songs for 1 completions"):
        call(function([song(1), song(2)]), [[0]])
    with pytest.raises(UsageError, match=r"int16 of shape \(9,\)"):
        call(function([np.zeros(9, np.int16)]), [[0]])
    with pytest.raises(UsageError, match=r"shape \(1, 1, 9\)"):
        call(function([torch.zeros(1, 1, 9)]), [[0]])


def test_group_normalisation_goes_by_prompt(model: ApexReward) -> None:
    ids = [[1], [2], [3], [4], [1]]
    prompts = ["a", "b", "a", "b", "a"]
    log = Log()
    function = ApexRewardFunction(model, RewardMix.parse(MIX, "group"), decode=by_first_id)
    rewards = call(function, ids, prompts=prompts, log_extra=log)
    columns = {"musicality": 1.0, "score_likes": -0.3}
    for group in ([0, 2, 4], [1, 3]):
        expected = np.zeros(len(group))
        for head, weight in columns.items():
            values = np.array([log[f"apex/{head}"][i] for i in group])
            expected += weight * (values - values.mean()) / values.std()
        assert [rewards[i] for i in group] == pytest.approx(expected.tolist(), abs=1e-3)
    chats = [[{"role": "user", "content": p}] for p in prompts]
    assert call(function, ids, prompts=chats) == rewards


def test_guards_flag_penalise_and_veto(model: ApexReward) -> None:
    def decode(completions: list[str]) -> list[Tensor]:
        return [song(1), song(1) + 0.3]

    guard = DEFAULT_GUARDS["dc"]
    raw = call(
        ApexRewardFunction(model, MIX, decode=decode, guards=None, sample_rate=24_000), [[0], [0]]
    )
    outcomes = {}
    for action in ("flag", "penalty", "veto"):
        log = Log()
        guards = [Guard(**{**vars(guard), "action": action, "penalty": 0.4})]
        function = ApexRewardFunction(model, MIX, decode=decode, guards=guards, sample_rate=24_000)
        outcomes[action] = call(function, [[0], [0]], log_metric=log, log_extra=log)
        assert log["apex/guard_any"] == log["apex/guard_dc"] == 0.5
        assert log["apex/flags"] == ["", "dc"]
        assert [*log["apex/reward_raw"]] != []
    assert outcomes["flag"] == raw
    assert outcomes["penalty"] == pytest.approx([raw[0], raw[1] - 0.4])
    assert outcomes["veto"] == pytest.approx([raw[0], FLOOR])


def test_what_is_logged(
    model: ApexReward, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics, columns = Log(), Log()
    function = ApexRewardFunction(model, MIX, decode=by_first_id, guards=None, name="songs")
    assert function.__name__ == "songs"
    call(function, [[1], [99], [2]], log_metric=metrics, log_extra=columns)
    scores = [model(by_first_id([[i]])[0][None], 24_000).rows()[0] for i in (1, 2)]
    for head in model.config.head_names:
        values = [row[head] for row in scores]
        assert metrics[f"songs/{head}"] == pytest.approx(sum(values) / 2, abs=1e-4)
        assert columns[f"songs/{head}"] == [
            pytest.approx(values[0], abs=1e-4),
            None,
            pytest.approx(values[1], abs=1e-4),
        ]
    assert columns["songs/flags"] == ["", None, ""]
    assert metrics["songs/undecodable"] == pytest.approx(1 / 3)
    metrics, columns = Log(), Log()
    brief = ApexRewardFunction(model, MIX, decode=by_first_id, brief=True)
    call(brief, [[1], [99], [2]], log_metric=metrics, log_extra=columns)
    assert set(metrics) == {"apex/reward_raw", "apex/undecodable", "apex/guard_any"}
    assert columns["flags"][1] is None
    print_prompt_completions_sample(
        ["a slow blues"] * 3, ["t1 t2"] * 3, {"apex": [0.5] * 3}, [1.0] * 3, 7, extra=columns
    )
    head = capsys.readouterr().out.splitlines()[2]
    assert len(head) == 80
    assert all(name in head for name in ("Completion", "Advantage", "reward_raw", "flags"))


def test_no_graph_and_no_autocast(model: ApexReward) -> None:
    decoded = song(1).requires_grad_()
    function = ApexRewardFunction(
        model, MIX, decode=lambda completions: [decoded * 1.0], sample_rate=24_000
    )
    expected = call(function, [[0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert call(function, [[0]]) == expected
    with torch.inference_mode():
        assert call(function, [[0]]) == expected
    assert decoded.grad is None
    assert not any(p.grad is not None for p in model.parameters())


def test_loudness_makes_the_reward_blind_to_gain(model: ApexReward) -> None:
    songs = [song(1), song(1) * 0.1, song(1, 1.7) * 0.3]
    options = {"decode": lambda completions: songs, "sample_rate": 24_000}
    raw = call(ApexRewardFunction(model, MIX, **options), [[0]] * 3)
    even = call(ApexRewardFunction(model, MIX, loudness=-16, **options), [[0]] * 3)
    assert abs(raw[0] - raw[1]) > 1e-3
    assert even[0] == pytest.approx(even[1], abs=1e-5)
    assert even[0] != pytest.approx(even[2], abs=1e-5)


def test_the_mix_of_the_model_and_its_preference_head() -> None:
    model = tiny_model(3)
    default = call(ApexRewardFunction(model, decode=by_first_id), [[1]])
    assert default == call(ApexRewardFunction(model, "aesthetics", decode=by_first_id), [[1]])
    model.config.mix = RewardMix.parse("clarity=2").to_dict()
    assert call(ApexRewardFunction(model, decode=by_first_id), [[1]]) == pytest.approx(
        [model.reward(by_first_id([[1]])[0][None], 24_000).item()], abs=1e-5
    )
    with pytest.raises(UsageError, match="this model holds none"):
        ApexRewardFunction(model, "preference", decode=by_first_id)
    head = RewardMix({"clarity": 1.5}, "none", embedding_weights=(0.1,) * model.config.width)
    model.config.preference = head.to_dict()
    with pytest.raises(UsageError, match="this mix has no lowest value"):
        ApexRewardFunction(model, "preference", decode=by_first_id)
    function = ApexRewardFunction(model, "preference", decode=by_first_id, undecodable=None)
    expected = model.reward(by_first_id([[1]])[0][None], 24_000, mix="preference").item()
    assert call(function, [[1]]) == pytest.approx([expected], abs=1e-5)
    with pytest.raises(UsageError, match="no lowest value"):
        ApexRewardFunction(model, "preference", decode=by_first_id, guards="veto", undecodable=None)
    ApexRewardFunction(
        model, "preference", decode=by_first_id, undecodable=-9.0,
        guards=Guards((Guard("dc", dc_offset, "", high=1, action="veto"),), veto_reward=-9.0),
    )  # fmt: skip


def test_wrong_mixes_are_named() -> None:
    popularity = tiny_model(0, task="popularity")
    with pytest.raises(UsageError, match="unknown head clarity; this model has: "):
        ApexRewardFunction(popularity, "clarity=1", decode=by_first_id)
    with pytest.raises(UsageError, match="has no reference"):
        ApexRewardFunction(popularity, RewardMix.parse("popularity", "zscore"), decode=by_first_id)


IDS = [[1], [2], [99], [3], [4], [2]]
PROMPTS = ["a", "a", "a", "b", "b", "a"]


def _one_of_two(rank: int, file: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    log = Log()
    function = ApexRewardFunction(
        tiny_model(3), RewardMix.parse(MIX, "group"), decode=by_first_id, guards=None
    )
    part = slice(0, 2) if rank == 0 else slice(2, 6)
    rewards = call(function, IDS[part], prompts=PROMPTS[part], log_metric=log)
    results[rank] = (rewards, log["apex/zero_variance_groups"])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_rewards_of_one(model: ApexReward, tmp_path: Any) -> None:
    log = Log()
    function = ApexRewardFunction(
        model, RewardMix.parse(MIX, "group"), decode=by_first_id, guards=None
    )
    expected = call(function, IDS, prompts=PROMPTS, log_metric=log)
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_one_of_two, (str(tmp_path / "store"), results), nprocs=2)
        (first, share), (second, other_share) = results[0], results[1]
    assert [*first, *second] == [
        None if e is None else pytest.approx(e, abs=1e-4) for e in expected
    ]
    assert share == other_share == log["apex/zero_variance_groups"] == 0.0
