"""Each guard has songs that trip it and songs, real ones among them, that do not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from apex_reward.audio import load_audio
from apex_reward.audio.decoding import DecodeSettings, decode_song
from apex_reward.audio.resample import resample
from apex_reward.demo.songs import make_song
from apex_reward.errors import UsageError
from apex_reward.rewards.guards import (
    DEFAULT_GUARDS,
    Guard,
    Guards,
    as_guards,
    band_limit,
    clipped_share,
    dc_offset,
    inaudible_share,
    loop_correlation,
    mono_loss,
    near_silence,
    noise_floor,
    silent_share,
)
from apex_reward.rewards.guards.songs import autocorrelation
from apex_reward.rewards.reward import Reward
from tests.support import guards_of

RATE = 24_000


def sine(hertz: float, seconds: float = 8.0, level: float = 0.3) -> Tensor:
    # In float32 the phase itself is noise at -80 dB.
    time = torch.arange(round(RATE * seconds), dtype=torch.float64) / RATE
    return (level * torch.sin(2 * math.pi * hertz * time)).float()


def noise(seconds: float = 8.0, level: float = 0.1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(RATE * seconds), generator=generator)


def song(seed: int = 1, seconds: float = 8.0) -> Tensor:
    return torch.tensor(make_song(seed, seconds=seconds, sample_rate=RATE))


def with_silence(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, len(x)))


def low_passed(x: Tensor, hertz: float) -> Tensor:
    spectrum = torch.fft.rfft(x)
    spectrum[int(hertz * len(x) / RATE) :] = 0
    return torch.fft.irfft(spectrum, len(x))


def at_full_scale(x: Tensor) -> Tensor:
    """The peak at -1 dBFS, as AceStepPipeline scales what it makes."""
    return x * (10 ** (-1 / 20) / x.abs().max())


def with_click(x: Tensor, samples: int) -> Tensor:
    """A song of -70 dBFS with one sound of a few samples in it."""
    start = len(x) // 2
    ring = torch.sin(0.3 * torch.arange(1, samples + 1)) * torch.linspace(1, 0, samples + 1)[:-1]
    return torch.cat([x[:start], x[start : start + samples] + 0.3 * ring, x[start + samples :]])


ROOM = 10 ** (-70 / 20)
GAMED = {
    "silence": [torch.zeros(RATE * 8), with_silence(song()), noise(level=1e-4)],
    "clipping": [(song() * 30).clamp(-1, 1), (20 * sine(220)).clamp(-1, 1), 4 * sine(220)],
    "band": [sine(220) + sine(3_000), low_passed(song(), 3_000)],
    "dc": [song() + 0.1, torch.full((RATE * 8,), 0.5)],
    "inaudible": [song() + sine(8, level=0.4), sine(3)],
    "loudness": [song() * 1e-3, (song() * 50).clamp(-1, 1), torch.zeros(RATE * 8)],
    "duration": [song()[:RATE], song()[:1]],
    "looping": [song()[: 2 * RATE].repeat(4), song()[:20_001].repeat(10), sine(220)],
    "noise": [noise(), song() + 2 * song().std() * noise(level=1.0)],
    "mono-trap": [
        torch.stack([song(), -song()]),
        song(seconds=12.0)
        * torch.tensor([[1.0], [1.0]]).where(
            torch.arange(12 * RATE) < 6 * RATE, torch.tensor([[1.0], [-0.7]])
        ),
    ],
    "near-silence": [
        at_full_scale(with_click(noise(level=ROOM), 1)),
        at_full_scale(with_click(noise(level=ROOM), 500)),
        at_full_scale(with_click(song() * (ROOM / song().std()), 200)),
        with_click(torch.zeros(RATE * 8), 1),
    ],
}


@pytest.mark.parametrize("name", list(DEFAULT_GUARDS))
def test_gamed_songs_trip_their_guard(name: str) -> None:
    for gamed in GAMED[name]:
        assert name in Guards().flags(Guards().measure(gamed, RATE))


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 6])  # the brushes of song 4 never stop
def test_synthetic_songs_trip_none(seed: int) -> None:
    measured = Guards().measure(song(seed, 12.0), RATE)
    assert Guards().flags(measured) == [], measured


def test_a_real_song_trips_none(shared_folder: Path) -> None:
    played = load_audio(shared_folder / "audio" / "songeval_example.mp3")
    assert Guards().flags(Guards().measure(torch.tensor(played.samples), played.sample_rate)) == []
    channels = resample(torch.tensor(played.samples), played.sample_rate, RATE)
    for start in range(0, channels.shape[1] - 8 * RATE, 20 * RATE):
        measured = Guards().measure(channels[:, start : start + 8 * RATE], RATE)
        assert Guards().flags(measured) == [], (start / RATE, measured)


@pytest.mark.parametrize("name", ["music_arena_debug_a.mp3", "music_arena_debug_b.mp3"])
def test_the_debug_system_of_an_arena_is_heard_as_noise_only(
    name: str, shared_folder: Path
) -> None:
    # These two files are white noise at -40 LUFS: the placeholder of a system without a model.
    played = load_audio(shared_folder / "audio" / name)
    measured = Guards().measure(torch.tensor(played.samples), played.sample_rate)
    assert Guards().flags(measured) == ["loudness", "noise"]


def test_a_mono_mix_loses_nothing_of_equal_channels_and_3_db_of_unlike_ones() -> None:
    one, other = noise(12.0), noise(12.0, seed=1)
    assert mono_loss(torch.stack([one, one]), RATE) == mono_loss(one, RATE) == 0.0
    assert mono_loss(torch.stack([one, other]), RATE) == pytest.approx(3.01, abs=0.1)
    assert mono_loss(torch.stack([one, 0 * one]), RATE) == pytest.approx(3.01, abs=0.01)
    trapped = torch.cat([one[: 6 * RATE], -one[6 * RATE :]])
    assert mono_loss(torch.stack([one, trapped]), RATE) == 100.0
    # Mid 1 and side 2: the mix keeps a fifth of the power.
    assert mono_loss(torch.stack([3 * one, -one]), RATE) == pytest.approx(6.99, abs=0.01)
    assert mono_loss(torch.stack([1e-4 * one, -1e-4 * one]), RATE) == 0.0  # silence


def test_files_and_tensors_lose_the_same_in_the_mono_mix(tmp_path: Path) -> None:
    wide = torch.stack([noise(7.3), torch.cat([noise(3.0), -noise(7.3)[3 * RATE :]])])
    soundfile.write(tmp_path / "wide.wav", wide.T.numpy(), RATE, "FLOAT")
    guards = guards_of(["mono-trap"], "penalty")
    song = decode_song(str(tmp_path / "wide.wav"), DecodeSettings(30.0, RATE))
    loss = guards.measure(wide, RATE)["mono-trap"]
    assert song.facts.mono_loss == pytest.approx(loss, abs=1e-4)
    rows = Reward("apex-tiny", mix="aesthetics", guards=guards).judge(
        [tmp_path / "wide.wav", (wide, RATE), (wide[:1], RATE)]
    )
    assert [row["reward_raw"] - row["reward"] for row in rows] == pytest.approx([0.5, 0.5, 0])


@pytest.mark.parametrize("gain", [1e-2, 1.0, 10.0])
def test_near_silence_is_heard_at_any_gain(gain: float) -> None:
    clicked = with_click(noise(level=ROOM), 100)
    level = 20 * math.log10(float(clicked.abs().max()) / ROOM)
    assert near_silence(gain * clicked, RATE) == pytest.approx(level, abs=0.5)
    assert near_silence(gain * noise(), RATE) == pytest.approx(13, abs=2)
    assert near_silence(torch.zeros(RATE), RATE) == 0.0


def test_hiss_that_was_scaled_up_is_noise() -> None:
    hiss = at_full_scale(noise(level=ROOM))
    flags = Guards().flags(Guards().measure(hiss, RATE))
    assert flags == ["noise"]
    raised = at_full_scale(with_click(noise(level=ROOM), 100))
    assert "loudness" not in Guards().flags(Guards().measure(10 * raised, RATE))
    assert "near-silence" in Guards().flags(Guards().measure(10 * raised, RATE))


def test_silent_share_counts_frames() -> None:
    quarter = torch.cat([sine(440, 1.0), torch.zeros(3 * RATE)])
    assert silent_share(quarter, RATE) == pytest.approx(0.75)
    assert silent_share(sine(440, level=0.9e-3 * math.sqrt(2)), RATE) == 1.0
    assert silent_share(sine(440, level=1.1e-3 * math.sqrt(2)), RATE) == 0.0


def test_clipped_share_counts_flat_tops_of_three() -> None:
    wave = torch.zeros(100)
    wave[[3, 4]] = 1.0  # two samples touch full scale: no flat top
    wave[10:14] = 1.0
    wave[20:23] = -1.2
    wave[[30, 31, 32]] = torch.tensor([1.0, -1.0, 1.0])
    assert clipped_share(wave, RATE) == pytest.approx(0.07)
    assert clipped_share(torch.ones(2), RATE) == 0.0


def test_an_offset_stands_on_nine_seconds_of_ten() -> None:
    assert dc_offset(torch.tensor([0.5, 0.1]), RATE) == pytest.approx(0.3)
    means = torch.tensor([0.9, -0.3, *[0.2 + 0.01 * i for i in range(18)]])  # one at each tenth
    wave = means.repeat_interleave(100)
    # 20 frames: the second lowest and the second highest, 1 + 19 // 10.
    assert dc_offset(wave, 100) == pytest.approx(0.2)
    assert dc_offset(-wave, 100) == pytest.approx(0.2)
    # Nine tenths on one side or none: a slow swing has a mean, and no offset.
    swing = torch.cat([torch.full((400,), 0.5), torch.full((300,), -0.1)])
    assert float(swing.mean()) == pytest.approx(0.243, abs=1e-3)
    assert dc_offset(swing, 100) == 0.0
    assert dc_offset(torch.full((1_050,), -0.25), 100) == pytest.approx(0.25)


def test_bands_in_their_units() -> None:
    mixed = sine(440, level=0.3) + sine(10, level=0.3) + 0.5
    assert inaudible_share(mixed, RATE) == pytest.approx(0.5, abs=2e-3)
    # Drift below 2 Hz counts neither as heard nor as hidden.
    drifting = sine(440, level=0.3) + sine(10, level=0.3) + sine(0.5, level=0.6)
    assert inaudible_share(drifting, RATE) == pytest.approx(0.5, abs=0.02)
    high = torch.sin(2 * math.pi * 18_000 * torch.arange(48_000) / 48_000)
    assert inaudible_share(high, 48_000) == pytest.approx(1.0, abs=1e-3)
    assert inaudible_share(torch.zeros(100), RATE) == 0.0
    assert inaudible_share(torch.full((RATE,), 0.3), RATE) == 0.0


def test_the_band_ends_where_80_decibels_are_lost() -> None:
    wave = sine(440) + 2e-4 * sine(6_000) + 0.5e-4 * sine(9_000)  # -74 and -86 dB
    bin_width = RATE / 1024
    assert band_limit(wave, RATE) == pytest.approx(6_000, abs=2 * bin_width)
    assert band_limit(noise(), RATE) == pytest.approx(12_000)
    assert band_limit(torch.zeros(RATE), RATE) == math.inf
    assert band_limit(noise(0.02), RATE) == math.inf  # below a frame


def test_loop_correlation_against_a_loop_over_lags() -> None:
    rate = 8_000  # where nothing is resampled
    generator = torch.Generator().manual_seed(2)
    wave = torch.randn(9_000, generator=generator, dtype=torch.float64)
    wave[4_000:] += 0.8 * wave[:5_000]
    centred = wave - wave.mean()
    half = 200  # the moving average over 50 ms, 401 samples, that takes rumble away
    around = torch.nn.functional.pad(centred, (half, half))
    heard = centred - around.unfold(0, 2 * half + 1, 1).mean(dim=1)
    expected = max(
        float(
            (heard[lag:] * heard[:-lag]).sum()
            / (heard[lag:].square().sum() * heard[:-lag].square().sum()).sqrt()
        )
        for lag in range(3_200, 4_501)
    )
    assert expected > 0.5
    assert loop_correlation(wave, rate) == pytest.approx(expected, abs=1e-5)
    assert loop_correlation(torch.zeros(10_000), rate) == 0.0
    assert loop_correlation(torch.ones(10), rate) == 0.0


@pytest.mark.parametrize(("samples", "lags"), [(1, 1), (2, 1), (7, 3), (1_000, 500), (70_001, 40)])
def test_autocorrelation_is_the_sum_of_products(samples: int, lags: int) -> None:
    values = torch.randn(3, samples, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(3, lags - 1, dtype=torch.float64)
    padded = torch.cat([values, zeros], dim=1)
    expected = (padded.unfold(1, samples, 1) * values[:, None]).sum(dim=2)
    found = autocorrelation(values, lags)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(sums.square().sum(), values)[0] for sums in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_a_loop_between_two_samples_is_heard() -> None:
    # 2.00006 s at 44.1 kHz is 16,000.5 of the 8,000 samples of a second that are compared.
    seconds, lag = 6.0, 2 + 0.5 / 8_820
    time = torch.arange(round(44_100 * seconds), dtype=torch.float64) / 44_100
    generator = torch.Generator().manual_seed(5)
    phases = 6.28 * torch.rand(400, generator=generator, dtype=torch.float64)
    harmonics = torch.randperm(4_000, generator=generator)[:400] + 100  # 50 to 2,050 Hz
    wave = sum(
        torch.sin(2 * math.pi * float(n) / lag * time + float(phase))
        for n, phase in zip(harmonics, phases, strict=True)
    )
    assert loop_correlation(0.01 * wave, 44_100) > 0.99


def test_noise_floor_reads_the_level_of_added_noise() -> None:
    assert noise_floor(noise(), RATE) == pytest.approx(0.0, abs=0.3)
    assert noise_floor(noise(level=1e-3), RATE) == pytest.approx(0.0, abs=0.3)
    assert noise_floor(sine(440), RATE) < -40
    # A gated tone with noise 20 dB below it in total power.
    tone = sine(440) * (torch.arange(RATE * 8) // 6_000 % 2)
    mixed = tone + noise(level=float(tone.std()) / 10)
    assert noise_floor(mixed, RATE) == pytest.approx(-20, abs=1.5)
    assert noise_floor(noise(1_000.0), RATE) == pytest.approx(0.0, abs=0.3)  # 17 minutes
    assert noise_floor(torch.zeros(RATE * 8), RATE) == -math.inf
    assert noise_floor(noise(0.01), RATE) == -math.inf


def test_actions() -> None:
    flag, penalty, veto = (
        Guard(action, dc_offset, "full scale", high=0.1, action=action, penalty=0.25)
        for action in ("flag", "penalty", "veto")
    )
    guards = Guards((flag, penalty))
    assert guards.adjust(0.9, [], floor=-1.0) == 0.9
    assert guards.adjust(0.9, ["flag"], floor=-1.0) == 0.9
    assert guards.adjust(0.9, ["flag", "penalty"], floor=-1.0) == pytest.approx(0.65)
    guards = Guards((penalty, veto))
    assert guards.adjust(0.9, ["veto", "penalty"], floor=-1.0) == -1.0


def test_penalties_of_several_guards_add_up() -> None:
    guards = guards_of(["silence", "loudness"], action="penalty", penalty=0.2)
    flags = guards.flags(guards.measure(torch.zeros(RATE), RATE))
    assert flags == ["silence", "loudness"]
    assert guards.adjust(1.0, flags, floor=0.0) == pytest.approx(0.6)


def test_choosing_guards() -> None:
    assert as_guards(None).guards == ()
    assert {guard.action for guard in as_guards("veto").guards} == {"veto"}
    assert as_guards([DEFAULT_GUARDS["dc"]]).names == ("dc",)
    limited = Guards().limit("duration", low=1.0)
    assert limited.flags(limited.measure(song()[: 2 * RATE], RATE)) == []
    assert limited.guards[5] == Guard(**{**vars(DEFAULT_GUARDS["duration"]), "low": 1.0})


def test_stereo_is_averaged_and_the_song_is_left_alone() -> None:
    stereo = torch.stack([song(), -song() + 0.5])
    before = stereo.clone()
    measured = Guards().measure(stereo.requires_grad_(), RATE)
    assert measured["dc"] == pytest.approx(0.25, abs=1e-3)
    torch.testing.assert_close(stereo.detach(), before)
    assert stereo.grad is None


def test_wrong_uses_are_named() -> None:
    with pytest.raises(UsageError, match="guard to limit is 'dc'; expected one of silence"):
        guards_of(["silence"]).limit("dc", high=1.0)
    with pytest.raises(UsageError, match="have a name twice"):
        Guards((DEFAULT_GUARDS["dc"], DEFAULT_GUARDS["dc"]))
    with pytest.raises(UsageError, match="action of guard x is 'mute'"):
        Guard("x", dc_offset, "full scale", action="mute")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="limits 2 to 1"):
        Guard("x", dc_offset, "full scale", low=2, high=1)
    with pytest.raises(UsageError, match=r"shape \(0,\)"):
        Guards().measure(torch.zeros(0), RATE)
