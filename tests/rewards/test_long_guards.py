"""Guards of a long song in parts, and as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from apex_reward.errors import UsageError
from apex_reward.rewards.guards import DEFAULT_GUARDS, Guard, Guards, dc_offset, silent_share
from tests.support import guards_of

RATE = 8_000


def peak(waveform: Tensor, sample_rate: int) -> float:
    """A user's own measure."""
    return float(waveform.abs().max())


OWN = Guard("peak", peak, "full scale", high=0.9, action="penalty", penalty=0.25)


def wave(seconds: float, seed: int = 0, level: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(RATE * seconds)) / RATE
    tone = torch.sin(2 * math.pi * 300 * time) * (torch.sin(2 * math.pi * 0.7 * time) > 0)
    return level * (tone + 0.05 * torch.randn(len(time), generator=generator))


def parts(song: Tensor, size: int) -> Iterator[Tensor]:
    return (song[start : start + size] for start in range(0, len(song), size))


def test_one_block_gives_the_songs_own_values() -> None:
    song = wave(40.0)
    assert Guards().measure_blocks(parts(song, 7 * RATE), RATE) == Guards().measure(song, RATE)
    with pytest.raises(UsageError, match="a song of no samples"):
        Guards().measure_blocks([], RATE)


@pytest.mark.parametrize("size", [300 * 100, 17_000])
def test_blocks_of_a_long_song_are_combined(size: int) -> None:
    rate = 100
    guards = Guards(
        (
            Guard("silence", silent_share, "share", high=0.5),
            Guard("quiet", silent_share, "share", low=0.1),
            Guard("dc", dc_offset, "full scale"),
            DEFAULT_GUARDS["duration"],
        )
    )
    # 300 s without silence, 300 s with a quarter of it, and a rest of 320 s.
    song = torch.full((920 * rate,), 0.3)
    song[300 * rate : 375 * rate] = 0.0
    measured = guards.measure_blocks(parts(song, size), rate)
    assert measured["silence"] == pytest.approx(0.25)
    assert measured["quiet"] == 0.0
    assert measured["dc"] == pytest.approx(0.3)
    assert measured["duration"] == pytest.approx(920.0)
    assert guards.measure(song, rate) == measured


def test_a_short_rest_joins_the_block_before_it() -> None:
    rate = 100
    song = torch.cat([torch.full((300 * rate,), 0.3), torch.zeros(20 * rate)])
    guards = guards_of(["silence", "duration"])
    measured = guards.measure_blocks(parts(song, 5_000), rate)
    assert measured == pytest.approx({"silence": 20 / 320, "duration": 320.0})


def test_the_worst_value_is_the_farthest_outside() -> None:
    both = Guard("x", None, "units", low=1.0, high=3.0)
    assert both.combined([2.0, 3.5, 0.2]) == 0.2
    assert both.combined([2.0, 4.5, 0.2]) == 4.5
    assert both.combined([2.0, 2.9]) == 2.9
    assert both.combined([2.0, -math.inf]) == -math.inf
    assert math.isnan(both.combined([2.0, math.nan]))
    assert Guard("x", None, "dB", high=-3.0).combined([-math.inf, -9.0]) == -9.0


def test_a_value_from_the_model_is_put_among_the_measured() -> None:
    unfamiliar = Guard("unfamiliar", None, "thresholds", high=1.0, action="penalty", penalty=2.0)
    guards = Guards((DEFAULT_GUARDS["duration"], unfamiliar))
    measured = guards.measure(wave(6.0), RATE)
    assert list(measured) == ["duration"]
    assert guards.flags(measured) == []
    assert guards.flags({**measured, "unfamiliar": 1.01}) == ["unfamiliar"]
    assert guards.flags({**measured, "unfamiliar": 1.0}) == []
    assert guards.adjust(0.5, ["unfamiliar"], floor=-9.0) == -1.5


def test_guards_come_back_from_json() -> None:
    guards = Guards(
        (
            *Guards.default("veto").limit("duration", low=20.0).guards,
            OWN,
            Guard("unfamiliar", None, "thresholds", high=1.0),
        ),
        veto_reward=-2.0,
    )
    plain = json.loads(json.dumps(guards.to_dict(), allow_nan=False))
    assert Guards.from_dict(plain) == guards
    assert plain["veto_reward"] == -2.0
    assert plain["guards"][5] == {
        "name": "duration", "low": 20.0, "high": 600.0, "action": "veto", "penalty": 0.5,
    }  # fmt: skip
    assert plain["guards"][-2] == {
        "name": "peak", "measure": f"{__name__}:peak", "unit": "full scale", "low": None,
        "high": 0.9, "action": "penalty", "penalty": 0.25, "combine": "worst",
    }  # fmt: skip
    assert plain["guards"][-1]["measure"] is None


def test_a_file_by_hand_may_leave_out_what_is_default() -> None:
    by_hand = {"guards": [{"name": "dc", "action": "veto"}, {"name": "noise", "high": -9}]}
    first, second = Guards.from_dict(by_hand).guards
    assert (first.high, first.action, first.measure) == (0.05, "veto", dc_offset)
    assert second.high == -9


def test_what_cannot_be_saved_or_read_is_named() -> None:
    def local(waveform: Tensor, sample_rate: int) -> float:
        return 0.0

    with pytest.raises(UsageError, match="measure of guard mine is .*local.* cannot be imported"):
        Guards((Guard("mine", local, "units"),)).to_dict()
    with pytest.raises(UsageError, match="cannot be imported"):
        Guards((Guard("mine", lambda w, r: 0.0, "units"),)).to_dict()
    with pytest.raises(UsageError, match="cannot be read: .* 'measure' and 'unit'"):
        Guards.from_dict({"guards": [{"name": "hum"}]})
    with pytest.raises(UsageError, match="cannot be read: .* argument 'hihg'"):
        Guards.from_dict({"guards": [{"name": "dc", "hihg": 1}]})
    with pytest.raises(UsageError, match="nowhere:peak: .*expected package.module:function"):
        Guards.from_dict({"guards": [{"name": "mine", "measure": "nowhere:peak", "unit": "x"}]})
    for saved in ({"guard": []}, {"guards": ["dc"]}, {"guards": [], "veto": 1}):
        with pytest.raises(UsageError, match="cannot be read"):
            Guards.from_dict(saved)


@pytest.mark.parametrize(
    ("level", "rate", "seconds"), [(0.1, 48_000, 20), (0.9, 8_000, 3), (0.3, 48_000, 3)]
)
def test_a_constant_has_nothing_inaudible(level: float, rate: int, seconds: int) -> None:
    constant = torch.full((rate * seconds,), level)
    assert guards_of(["inaudible"]).measure(constant, rate) == {"inaudible": 0.0}
