"""Packing songs into encoder batches: numbers as one song at a time, order, blocks, memory."""

from __future__ import annotations

import pytest
import torch

from apex_reward.audio import load_audio
from apex_reward.audio.decoding import decode_songs
from apex_reward.errors import UsageError
from apex_reward.model import ApexReward
from apex_reward.rewards.engine import EngineSettings, SongResult
from apex_reward.rewards.engine import run_songs as run
from apex_reward.rewards.panel import members_of
from tests.support import NOT_AUDIO, tiny_model


def run_songs(model, songs, batch_segments=None, workers=0, block=16):
    """Songs of files through one model, their pieces kept."""
    settings = EngineSettings(batch_segments=batch_segments, block=block)
    decoded = decode_songs(songs, members_of(model).decode_settings, workers)
    return run(members_of(model), decoded, settings)


BAD = 2  # the position of the file that is no song


def song_layers(result: SongResult) -> torch.Tensor:
    """Weighted mean over segments, the plain way."""
    assert result.pieces is not None
    total = torch.zeros(result.pieces.shape[1:])
    for part, weight in zip(result.pieces, result.weights, strict=True):
        total += part * weight
    return total


@pytest.mark.parametrize(
    ("tail", "runs"),
    [
        ("pad", [(1, 0, 16), (3, 2, 3), (100, 0, 5)]),
        ("mask", [(3, 0, 5)]),
        ("drop", [(3, 0, 5)]),
    ],
)
def test_each_song_as_the_model_gives_it_alone(
    songs: list[str], tail: str, runs: list[tuple[int, int, int]]
) -> None:
    model = tiny_model(segment_tail=tail, segment_seconds=0.25)
    good = [load_audio(path) for n, path in enumerate(songs) if n != BAD]
    with torch.no_grad():
        expected = [
            model.embed_layers(torch.from_numpy(song.samples)[None], song.sample_rate)[0]
            for song in good
        ]
    for size, workers, block in runs:
        results = list(run_songs(model, songs, batch_segments=size, workers=workers, block=block))
        assert [result.path for result in results] == songs
        assert [result.index for result in results] == list(range(8))
        results.pop(BAD)
        for result, song, layers in zip(results, good, expected, strict=True):
            assert torch.allclose(song_layers(result), layers, atol=1e-5)
            with torch.no_grad():
                alone = model(torch.from_numpy(song.samples)[None], song.sample_rate).stack()
            assert result.scores is not None
            assert torch.allclose(result.scores.stack(), alone, atol=1e-4)
            assert result.duration == song.samples.shape[1] / song.sample_rate
            assert result.sample_rate == song.sample_rate
            assert sum(result.weights) == pytest.approx(1)


def test_segment_lengths_are_those_of_the_audio(model: ApexReward, songs: list[str]) -> None:
    (result,) = run_songs(model, [songs[3]])  # 0.425 s at 48 kHz
    assert result.seconds == pytest.approx([0.25, 0.175], abs=1e-4)


def test_a_failed_song_has_nothing_but_its_reason(model: ApexReward, songs: list[str]) -> None:
    result = list(run_songs(model, songs))[BAD]
    assert result == SongResult(BAD, songs[BAD], error=NOT_AUDIO)


def test_same_bits_for_any_workers_and_from_any_block(model: ApexReward, songs: list[str]) -> None:
    whole = list(run_songs(model, songs, block=2))
    again = list(run_songs(model, songs, block=2, workers=3))
    rest = list(run_songs(model, songs[4:], block=2))
    for a, b in [*zip(whole, again, strict=True), *zip(whole[4:], rest, strict=True)]:
        if a.pieces is None or b.pieces is None:
            assert a.error == b.error is not None
        else:
            assert torch.equal(a.pieces, b.pieces)


def test_batches_are_full_but_never_reach_over_a_block(
    model: ApexReward, songs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = model.encoder.forward

    def encode_segments(segments: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(segments))
        return real(segments, *rest)

    monkeypatch.setattr(model.encoder, "forward", encode_segments)
    results = list(run_songs(model, songs, batch_segments=4, block=4))
    counts = [len(result.weights) for result in results]
    assert counts == [1, 1, 0, 2, 3, 4, 4, 5]
    # First block: 1 + 1 + 0 + 2 segments. Second: 3 + 4 + 4 + 5.
    assert sizes == [4, 4, 4, 4, 4]
    sizes.clear()
    list(run_songs(model, songs, batch_segments=3, block=4))
    assert sizes == [3, 1, 3, 3, 3, 3, 3, 1]


def test_results_come_as_soon_as_they_are_ready(model: ApexReward, songs: list[str]) -> None:
    results = run_songs(model, songs + ["never read"] * 10**6, batch_segments=1)
    assert next(results).path == songs[0]
    results.close()


def test_out_of_memory_in_the_encoder_halves_the_batch(
    songs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(segment_seconds=0.25)
    expected = list(run_songs(model, songs, batch_segments=8))
    real = model.encoder.forward

    def forward(segments: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(segments) > 3:
            raise torch.OutOfMemoryError
        return real(segments, *rest)

    monkeypatch.setattr(model.encoder, "forward", forward)
    for a, b in zip(expected, run_songs(model, songs, batch_segments=8), strict=True):
        assert a.error == b.error
        if a.error is None:
            assert torch.allclose(song_layers(a), song_layers(b), atol=1e-5)


def test_output_that_is_not_finite_is_an_error(
    model: ApexReward, songs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.encoder.forward

    def encode_segments(segments: torch.Tensor, *rest: object) -> torch.Tensor:
        layers = real(segments, *rest)
        layers[1] = float("nan")
        return layers

    monkeypatch.setattr(model.encoder, "forward", encode_segments)
    first, second = run_songs(model, songs[:2])
    assert first.error is None
    assert second.pieces is None
    assert "not finite" in str(second.error)


def test_half_precision_gives_float32_layers_close_by(model: ApexReward, songs: list[str]) -> None:
    exact = list(run_songs(model, songs[3:5]))
    rough = list(run_songs(tiny_model(segment_seconds=0.25).to(torch.bfloat16), songs[3:5]))
    for a, b in zip(exact, rough, strict=True):
        assert b.pieces is not None
        assert b.pieces.dtype == torch.float32
        assert torch.allclose(a.pieces, b.pieces, atol=0.1)


def test_no_songs_and_wrong_numbers(model: ApexReward) -> None:
    assert list(run_songs(model, [])) == []
    for wrong in ({"batch_segments": 0}, {"block": 0}):
        with pytest.raises(UsageError, match="expected at least 1"):
            list(run_songs(model, ["a.wav"], **wrong))
