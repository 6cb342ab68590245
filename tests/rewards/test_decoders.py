"""Codec tokens back to the codec's own decoding, layouts by hand, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from apex_reward import ApexRewardFunction
from apex_reward.audio import load_audio
from apex_reward.errors import UsageError
from apex_reward.rewards.decoders import CodecDecoder, audio_files
from tests.support import tiny_model, write_wav

SIZE = 16


def encodec(**changes: Any) -> EncodecModel:
    torch.manual_seed(0)
    settings = {
        "num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": SIZE,
        "upsampling_ratios": [4, 2], "num_lstm_layers": 1, "target_bandwidths": [48.0], **changes,
    }  # fmt: skip
    model = EncodecModel(EncodecConfig(**settings)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model


def dac() -> DacModel:
    torch.manual_seed(0)
    return DacModel(
        DacConfig(
            encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=16,
            n_codebooks=4, codebook_size=SIZE, codebook_dim=4, sampling_rate=16_000,
        )
    ).eval()  # fmt: skip


def codes(frames: int, codebooks: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZE, (codebooks, frames), generator=generator)


def flat_ids(grid: Tensor, offset: int, stacked: bool) -> list[int]:
    return [
        int(grid[k, f]) + offset + (k * SIZE if stacked else 0)
        for f in range(grid.shape[1])
        for k in range(grid.shape[0])
    ]


def delayed(grid: Tensor, filler: int) -> Tensor:
    """Codebook k moved right by k steps, `filler` where nothing is."""
    books, frames = grid.shape
    result = torch.full((books, frames + books - 1), filler)
    for k in range(books):
        result[k, k : k + frames] = grid[k]
    return result


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_layouts_return_the_codes(layout: str, stacked: bool) -> None:
    grid = codes(5)
    decoder = CodecDecoder(encodec(), 3, layout, offset=7, stacked=stacked, end_token=2)
    ids = flat_ids(grid if layout == "flat" else delayed(grid, -6), 7, stacked)
    assert torch.equal(decoder._read(ids)[0], grid)
    assert torch.equal(decoder._read([*ids, 2, 9999])[0], grid)  # what follows the end is ignored
    assert torch.equal(decoder._read([*ids, ids[0]])[0], grid)  # an incomplete frame is dropped


def test_delay_by_hand() -> None:
    decoder = CodecDecoder(encodec(), 2, "delay", stacked=False)
    # Steps (codebook 0, codebook 1): (1, -) (2, 5) (3, 6) (-, 7).
    assert decoder._read([1, 15, 2, 5, 3, 6, 0, 7])[0].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert decoder._read([1, 99])[0] is None
    assert decoder._read([1, 99, 99, 5])[0].tolist() == [[1], [5]]


@pytest.mark.parametrize("make", [encodec, dac])
def test_waveforms_are_the_codecs_own(make: Any) -> None:
    codec = make()
    decoder = CodecDecoder(codec, 3, offset=100)
    grids = [codes(40, seed=1), codes(25, seed=2), codes(40, seed=3)]
    waveforms = decoder([flat_ids(grid, 100, True) for grid in grids])
    for grid, waveform in zip(grids, waveforms, strict=True):
        with torch.no_grad():
            if make is encodec:
                expected = codec.decode(grid[None, None], [None]).audio_values[0]
            else:
                expected = codec.decode(audio_codes=grid[None]).audio_values
        assert waveform is not None
        assert waveform.shape == (1, grid.shape[1] * 8)
        torch.testing.assert_close(waveform, expected.reshape(waveform.shape), atol=1e-5, rtol=1e-4)
        assert waveform.abs().sum() > 0


def test_what_is_no_code_does_not_decode() -> None:
    decoder = CodecDecoder(encodec(), 3, offset=100, end_token=1)
    good = flat_ids(codes(4), 100, True)
    swapped = [good[1], good[0], *good[2:]]  # ids of the wrong codebook
    results = decoder([good, [], [1], good[:2], [5, *good[1:]], [*good[:-1], 148], swapped, good])
    assert [result is not None for result in results] == [True, *[False] * 6, True]


@pytest.mark.parametrize(
    "completion",
    [torch.zeros(1, 48), torch.zeros(48), [0.0] * 48, torch.zeros(4, 12, dtype=torch.long)],
    ids=["audio", "mono audio", "list of floats", "grid of codes"],
)
def test_audio_and_grids_are_refused(completion: Any) -> None:
    """Audio in [-1, 1] would become the ids 0 and decode to a song."""
    decoder = CodecDecoder(encodec(), 3)
    with pytest.raises(UsageError, match="expected a row of token ids"):
        decoder([completion])


def test_stereo_codecs_keep_their_channels() -> None:
    decoder = CodecDecoder(encodec(audio_channels=2), 2)
    (waveform,) = decoder([flat_ids(codes(10, 2), 0, True)])
    assert waveform is not None
    assert waveform.shape == (2, 80)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="codebooks is 5; expected 1 to 4"):
        CodecDecoder(dac(), 5)
    with pytest.raises(UsageError, match="layout is 'parallel'"):
        CodecDecoder(dac(), 2, "parallel")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="codes songs in scaled chunks"):
        CodecDecoder(encodec(chunk_length_s=1.0, overlap=0.01, normalize=True), 2)


def test_the_reward_function_takes_the_codecs_rate() -> None:
    model, decoder = tiny_model(1), CodecDecoder(dac(), 3)
    ids = [flat_ids(codes(1_000), 0, True), [99_999]]
    function = ApexRewardFunction(model, decode=decoder)
    first, second = function(["a", "a"], ["", ""], ids)
    waveform = decoder(ids)[0]
    assert waveform is not None
    assert second == function.judge.floor()
    assert first == pytest.approx(model.reward(waveform, 16_000).item(), abs=1e-5)
    assert abs(first - model.reward(waveform, 24_000).item()) > 1e-4


def test_audio_files(tmp_path: Path) -> None:
    model = tiny_model(1)
    path = str(write_wav(tmp_path / "song.wav", 0.5, 44_100, channels=2))
    (tmp_path / "text.mp3").write_text("no audio")
    songs = [path, str(tmp_path / "text.mp3"), str(tmp_path / "absent.wav")]
    function = ApexRewardFunction(model, decode=audio_files("song"))
    rewards = function(["p"] * 3, ["c"] * 3, None, song=songs)
    assert rewards[1:] == [function.judge.floor()] * 2
    expected = model.reward(torch.tensor(load_audio(path).samples)[None], 44_100)
    assert rewards[0] == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(UsageError, match="the dataset has no column 'song'; it has completion"):
        function(["p"], ["c"], None, sung=songs)


@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_a_stray_token_costs_its_frame_only(layout: str) -> None:
    grid = codes(134)
    decoder = CodecDecoder(encodec(), 3, layout, offset=100, end_token=1)
    lag = 0 if layout == "flat" else 2
    ids = flat_ids(grid if lag == 0 else delayed(grid, 0), 100, True)
    ids[3 * 50 + 1] = 7  # codebook 1 of step 50: a text token
    lost = 50 if lag == 0 else 49
    kept = torch.cat([grid[:, :lost], grid[:, lost + 1 :]], dim=1)
    assert torch.equal(decoder._read(ids)[0], kept)
    decoder([ids, [], flat_ids(codes(9), 100, True)])
    assert decoder.strays == [1, 0, 0]
    strict = CodecDecoder(encodec(), 3, layout, offset=100, max_stray=0.0)
    assert strict._read(ids)[0] is None
    for i in range(60, 64):
        ids[3 * i] = 7
    assert decoder._read(ids)[0] is None  # 5 of 402 are more than 1 %
    with pytest.raises(UsageError, match="max_stray is 1.5"):
        CodecDecoder(encodec(), 3, max_stray=1.5)


def test_what_is_expected_in_words() -> None:
    assert CodecDecoder(encodec(), 2, offset=10, end_token=3).expected == (
        "ids of 2 codebooks in turn (flat layout): 10 to 25, 26 to 41, ended by 3; at least 2 of "
        "them"
    )
    assert CodecDecoder(encodec(), 2, "delay", stacked=False).expected == (
        "ids of 2 codebooks in turn (delay layout): 0 to 15 for each; at least 4 of them"
    )


def test_audio_columns_and_failed_songs(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "song.wav", 0.5, 44_100)
    samples = load_audio(path).samples
    cells = [
        None,
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": path.read_bytes()},
        {"array": samples[0], "sampling_rate": 44_100},
        {"path": None, "bytes": None},
        {"path": None, "bytes": b"no audio"},
        {"array": [], "sampling_rate": 8_000},
        {"array": [float("nan")], "sampling_rate": 8_000},
    ]
    function = ApexRewardFunction(tiny_model(1), decode=audio_files(), undecodable=-7.0)
    rewards = function(["p"] * 8, ["c"] * 8, audio=cells)
    assert [reward == -7.0 for reward in rewards] == [True, *[False] * 3, *[True] * 4]
    assert rewards[1] == pytest.approx(rewards[2], abs=1e-5) == pytest.approx(rewards[3], abs=1e-5)
