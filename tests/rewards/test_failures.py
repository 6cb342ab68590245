"""One song that fails: its reason in its own row, and what it earns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apex_reward import ApexReward, Head, Prompt, Reward, RewardMix, Scores
from apex_reward.errors import UsageError
from apex_reward.rewards.guards import Guard, Guards, dc_offset
from tests.support import golden_song, guards_of, tiny_model, write_wav

RATE = 24_000


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def waves(*seconds: float) -> list[Tensor]:
    return [torch.tensor(golden_song(n, RATE, 1, s)[0]) for n, s in enumerate(seconds, 1)]


class Odd:
    """Takes waveforms and prompts; fails on some."""

    name, heads, sample_rate = "odd", (Head("x", 0, 10),), RATE
    differentiable, reads_text = True, True

    def __call__(self, waveforms: Tensor, sample_rate: int, lengths: Any = None,
                 prompts: Any = None) -> Scores:  # fmt: skip
        assert all(isinstance(prompt, Prompt) for prompt in prompts)
        if "raise" in prompts:
            raise KeyError("no such style")
        values = [torch.nan if p == "nan" else float(len(p)) for p in prompts]
        return Scores({"x": torch.tensor(values)}, self.heads)


def test_any_exception_of_a_model_is_the_row_of_its_song(model: ApexReward) -> None:
    reward = Reward([model, Odd()], "odd.x=1")
    rows = reward.judge(waves(0.3, 0.4, 0.5, 0.3), ["ok", "raise", "nan", ""], sample_rate=RATE)
    assert [row["odd.x"] for row in rows] == [2.0, None, None, 0.0]
    assert rows[1]["error"] == "the model failed with KeyError: 'no such style'"
    assert rows[2]["error"] == "the score is not finite: odd.x"


def test_a_batch_that_fails_is_encoded_again_song_by_song(
    model: ApexReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = waves(0.3, 0.4, 0.5)
    reward = Reward(model, "clarity=1")
    expected = [row["reward"] for row in reward.judge(songs, sample_rate=RATE)]
    real = model.encoder.forward

    def forward(segments: Tensor, *rest: Any) -> Tensor:
        if bool((segments[:, : len(songs[1])] == songs[1]).all(dim=1).any()):
            raise ValueError("odd segment")
        return real(segments, *rest)

    monkeypatch.setattr(model.encoder, "forward", forward)
    rows = reward.judge(songs, sample_rate=RATE)
    assert rows[1]["error"] == "the model failed with ValueError: odd segment"
    assert [rows[0]["reward"], rows[2]["reward"]] == pytest.approx(expected[::2], abs=1e-6)


def test_cells_of_every_kind_in_one_call(model: ApexReward, tmp_path: Path) -> None:
    file = write_wav(tmp_path / "a.wav", 0.5, RATE)
    reward = Reward(model, "clarity=1")
    (one,) = reward.judge(str(file))
    cells = [
        file,
        None,
        {"bytes": file.read_bytes(), "path": None},
        torch.zeros(9, dtype=torch.int),
    ]
    rows = reward.judge(cells, sample_rate=RATE)
    assert rows[0] == one
    assert rows[2]["clarity"] == one["clarity"]
    assert [row["error"] is None for row in rows] == [True, False, True, False]
    assert rows[1]["error"] == "is empty: no audio is given"
    assert list(rows.to_pandas()["clarity"][[0, 2]]) == [one["clarity"]] * 2


def test_flags_of_a_file_and_of_its_samples_are_the_same(model: ApexReward) -> None:
    quiet, tone = torch.zeros(2, RATE), torch.sin(torch.arange(RATE * 20) * 0.1)
    reward = Reward(model, "clarity=1")
    rows = reward.judge([(quiet, RATE), (torch.stack([tone, -tone]), 8_000), (tone[None], RATE)])
    assert rows[0]["flags"] == ["silent", "mono-duplicate"]
    assert {"silent", "phase-cancelled", "upsampled"} <= set(rows[1]["flags"])
    assert rows[2]["flags"] == []


CASES = [
    ({"clarity": 1.0}, {}, -0.01),
    ({"clarity": -2.0}, {}, -2.02),
    ({"clarity": 1.0, "score_likes": -1.0}, {}, -1.02),
    ({"clarity": 1.0}, {"guards": guards_of(["dc", "silence"], "penalty", 0.25)}, -0.51),
    ({"clarity": 1.0}, {"guards": guards_of(["dc", "silence"], "flag", 0.25)}, -0.01),
    ({"clarity": 1.0}, {"guards": guards_of(["dc"], "veto"), "caution": 2.0}, -0.01),
]


@pytest.mark.parametrize(("weights", "options", "floor"), CASES)
def test_the_floor_lies_below_every_song(
    model: ApexReward, weights: dict[str, float], options: Any, floor: float
) -> None:
    """Lowest value, less the largest caution, less all penalties, less 1% of the range."""
    assert Reward(model, RewardMix(weights), **options).floor == pytest.approx(floor)


def test_the_floor_of_an_ensemble_counts_the_largest_caution() -> None:
    reward = Reward(tiny_model(members=2), RewardMix({"clarity": 3.0}), caution=0.5)
    assert reward.floor == pytest.approx(0 - 0.5 * 1.5 - 0.03)


def test_a_veto_earns_the_floor_and_a_mix_without_one_says_so(model: ApexReward) -> None:
    guards = Guards((Guard("dc", dc_offset, "", high=-1.0, action="veto"),))
    reward = Reward(model, "clarity=1", guards=guards)
    (row,) = reward.judge(waves(0.3), sample_rate=RATE)
    assert row["reward"] == reward.floor == -0.01
    grouped = RewardMix({"clarity": 1.0}, "group")
    with pytest.raises(UsageError, match="this mix has no lowest value.*give undecodable="):
        _ = Reward(model, grouped).floor
    assert Reward(model, grouped).floor_of(5) == pytest.approx(-2 - 0.04)
    lower = Guards(guards.guards, veto_reward=-3.0)
    assert Reward(model, "clarity=1", guards=lower).floor == -3.0


def test_a_head_may_not_be_called_like_a_column() -> None:
    for name in ("path", "duration", "reward", "error", "flags"):
        with pytest.raises(UsageError, match=f"a head is called {name}, which is a column"):
            Head(name)
    assert Head("lyrics.error").name == "lyrics.error"


def test_a_guard_on_unfamiliar_holds_beside_a_second_model() -> None:
    far = Guard("unfamiliar", None, "thresholds", high=1.0, action="penalty", penalty=2.0)
    noise = torch.randn(1, RATE * 16, generator=torch.Generator().manual_seed(1)) * 0.3
    for models, mix in (("apex-tiny", "clarity=1"),
                        (["apex-tiny", tiny_model(3), Odd()][::2], "apex.clarity=1")):  # fmt: skip
        (row,) = Reward(models, mix, guards=[far]).judge([(noise, RATE)], ["a"])
        assert row["flags"] == ["unfamiliar"]
        assert row["reward"] == pytest.approx(row["reward_raw"] - 2.0)
        # A guard with a higher limit: neither its penalty nor a flag of its name.
        (row,) = Reward(models, mix, guards=[replace(far, high=1e9)]).judge([(noise, RATE)], ["a"])
        assert (row["flags"], row["reward"]) == ([], row["reward_raw"])


def test_a_reward_shows_its_parts(model: ApexReward) -> None:
    assert repr(Reward("apex-tiny", "clarity=1", loudness=-18.0, guards=[])) == (
        "Reward(apex: apex-tiny; mix clarity=1; loudness -18.0; guards None; caution 0)"
    )
