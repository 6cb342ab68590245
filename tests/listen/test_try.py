"""Try and Compare over HTTP: the numbers of `Reward`, what is closed, and what is refused."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient

from apex_reward import Guards, Reward
from apex_reward.audio import save_wav
from apex_reward.audio.load import load_audio
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.errors import UsageError
from apex_reward.listen.app import make_app, try_app
from apex_reward.listen.look import BINS, gradient_strength, look, segment_curves
from apex_reward.listen.session import Session
from apex_reward.listen.sources import Comparison, read_comparisons
from apex_reward.rewards.gradient import reward_and_gradient
from apex_reward.scores.mix import RewardMix
from tests.listen.test_listen import songs
from tests.support import tiny_model, write_wav


@pytest.fixture(scope="module")
def reward() -> Reward:
    """One-second segments, guards that only flag."""
    return Reward(tiny_model(), mix="musicality=1", guards="flag")


@pytest.fixture
def song(tmp_path):
    return write_wav(tmp_path / "a <b>song.wav", seconds=3.4)


def local(app) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1")


def sent(path, **more):
    return {"files": {"song": (path.name, path.read_bytes())}, **more}


def test_a_look_holds_the_row_the_segments_and_the_waveform(reward, song):
    seen = look(reward, song)
    (row,) = reward.judge([song])
    assert seen.row == row
    heads = {name: (score, weight) for name, score, weight in seen.heads}
    assert heads["musicality"] == (row["musicality"], 1.0)
    assert heads["score_likes"] == (row["score_likes"], None)
    assert [(row["start"], row["end"]) for row in seen.segments] == [
        (0, 1), (1, 2), (2, 3), (3, pytest.approx(3.4))
    ]  # fmt: skip
    samples = load_audio(song).mono
    assert seen.wave.shape == (BINS, 2)
    first = samples[: -(-len(samples) // BINS)]
    assert seen.wave[0].tolist() == [first.min(), first.max()]
    guards = {name: (value, trips) for name, value, trips in seen.guards}
    assert guards["duration"] == (pytest.approx(3.4), True)
    assert guards["dc"][1] is False
    captions = [caption for caption, _ in segment_curves(reward, seen.segments)]
    assert captions == [
        "score_streams, score_likes", "coherence, musicality, memorability, clarity, naturalness"
    ]  # fmt: skip
    assert segment_curves(reward, seen.segments[:1]) == []


def test_guards_are_shown_where_the_reward_has_none_and_change_nothing(song):
    bare = Reward(tiny_model(), mix="musicality=1")
    seen = look(bare, song)
    assert [row[0] for row in seen.guards] == list(Guards().names)
    assert seen.row == bare.judge([song])[0]


def test_the_strength_of_the_gradient_is_its_rms_in_each_bin(reward, song):
    wave = torch.from_numpy(load_audio(song).mono)[None]
    gradient = reward_and_gradient(reward, wave, 24_000)[1][0].numpy()
    by_hand = [np.sqrt((part**2).mean()) for part in np.array_split(gradient, BINS)]
    found = gradient_strength(reward, song)
    assert found == pytest.approx(np.array(by_hand) / max(by_hand), rel=1e-4)
    assert max(found) == 1


def test_the_try_page_alone(reward, song):
    page = TestClient(try_app(reward), base_url="http://some.where")
    shown = page.get("/")  # leads to /try
    assert shown.url.path == "/try"
    assert 'aria-label="Pages"' not in shown.text
    answer = page.post("/try", **sent(song))
    assert answer.status_code == 200
    assert "a &lt;b&gt;song.wav" in answer.text
    assert "<b>song" not in answer.text
    assert f"{reward.judge([song])[0]['reward']:.3f}" in answer.text
    assert answer.text.count("<svg") == 3  # the waveform and two curves
    strength = page.post("/try/gradient", **sent(song)).json()
    assert strength == pytest.approx(gradient_strength(reward, song))
    for path in ("/try", "/try/gradient"):
        refused = page.post(path, files={"song": ("x.wav", b"no audio")})
        assert refused.status_code == 422
        assert "audio" in refused.json()["detail"]
    assert page.get("/compare").status_code == 404


def test_a_reward_that_needs_other_songs_is_refused():
    grouped = Reward(tiny_model(), mix=RewardMix({"musicality": 1.0}, "group"))
    for make in (try_app, lambda reward: make_app(reward=reward)):
        with pytest.raises(UsageError, match="group"):
            make(grouped)


def test_compare_plays_both_at_one_loudness(reward, tmp_path):
    folder = songs(tmp_path / "songs", 1)
    soft, loud = (folder / name / "tune0.wav" for name in ("secretone", "secrettwo"))
    page = local(make_app(reward=reward))
    assert page.get("/").url.path == "/try"
    files = {"first": ("soft.wav", soft.read_bytes()), "second": ("loud.wav", loud.read_bytes())}
    answer = page.post("/compare", files=files).text
    assert "1. <bdi>soft.wav" in answer
    for address in re.findall(r"/audio/\w+/\d", answer):
        part = page.get(address, headers={"Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, b"RIFF")
        samples, rate = soundfile.read(io.BytesIO(page.get(address).content), dtype="float32")
        heard = float(integrated_loudness(torch.from_numpy(samples)[None], rate))
        assert heard == pytest.approx(-18, abs=0.05)
    assert page.get("/audio/gone/0").status_code == 404
    files["second"] = ("x.wav", b"no audio")
    assert page.post("/compare", files=files).status_code == 422


def test_compare_names_no_pair_of_a_vote(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 2))
    page = local(make_app(Session(pairs, tmp_path / "votes.jsonl", min_seconds=0)))
    assert "secret" not in page.get("/compare").text
    assert page.get("/try").status_code == 404


def test_pairs_without_votes_are_compared_by_name(tmp_path):
    names = tmp_path / "a.wav", tmp_path / "b.wav"
    for number, path in enumerate(names):
        save_wav(path, np.full(8000, 0.1 + 0.1 * number, np.float32), 8000)
    page = local(make_app(comparisons=[Comparison("a prompt", names, ("x", ""))]))
    shown = page.get("/")
    assert shown.url.path == "/compare"
    assert "1. a prompt: x: a.wav / b.wav</option>" in shown.text
    both = page.get("/compare/pairs/0").text
    assert "a prompt" in both
    assert re.findall(r"<bdi>(.*)</bdi>", both) == ["x: a.wav", "b.wav"]
