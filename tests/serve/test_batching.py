"""The batches of the server, without the server."""

from __future__ import annotations

from pathlib import Path

from apex_reward import Reward
from apex_reward.serve.batching import Batcher
from apex_reward.serve.settings import ServeSettings
from tests.support import tiny_model, write_wav


def test_a_song_that_nobody_waits_for_any_more_costs_the_others_nothing(tmp_path: Path) -> None:
    songs = [(str(write_wav(tmp_path / f"{n}.wav", 0.5)), f"{n}.wav") for n in range(3)]
    batcher = Batcher(Reward(tiny_model(), "aesthetics"), ServeSettings(max_wait=1.0))
    gone, kept = batcher.submit(songs[:2], [None, None])
    assert gone.cancel()
    assert kept.result(timeout=60)["error"] is None
    (later,) = batcher.submit(songs[2:], [None])
    assert later.result(timeout=60)["path"] == "2.wav"
    batcher.close()
    assert batcher.figures.songs == 2
    assert batcher.figures.dropped == 1
    assert batcher.waiting == 0


def test_a_song_waits_for_those_on_their_way_and_for_nobody_else(tmp_path: Path) -> None:
    paths = [str(write_wav(tmp_path / f"{n}.wav", 0.5)) for n in range(3)]
    batcher = Batcher(Reward(tiny_model(), "aesthetics"), ServeSettings(max_wait=600.0))
    try:
        (alone,) = batcher.submit([(paths[0], "alone")], [None])
        assert alone.result(timeout=60)["error"] is None
        both = batcher.submit([(path, path) for path in paths[1:]], [None, None])
        assert [answer.result(timeout=60)["error"] for answer in both] == [None, None]
    finally:
        batcher.close()
    assert (batcher.figures.batches, batcher.figures.largest) == (2, 2)
