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
from apex_reward.listen import app
from apex_reward.listen.app import make_app, try_app
from apex_reward.listen.look import BINS, gradient_strength, look, segment_curves
from apex_reward.listen.session import Session
from apex_reward.listen.sources import Comparison, read_comparisons
from apex_reward.rewards.gradient import reward_and_gradient
from apex_reward.scores.mix import RewardMix
from tests.listen.test_listen import songs, voted
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
    assert seen.columns == ["head", "score", "range", "weight"]
    heads = {name: (score, span, weight) for name, score, span, weight in seen.heads}
    assert heads["musicality"] == (row["musicality"], "1 to 5", 1.0)
    assert heads["score_likes"] == (row["score_likes"], "0 to 100", None)
    assert [(row["start"], row["end"]) for row in seen.segments] == [
        (0, 1), (1, 2), (2, 3), (3, pytest.approx(3.4))
    ]  # fmt: skip
    samples = load_audio(song).mono
    assert seen.wave.shape == (BINS, 2)
    first = samples[: -(-len(samples) // BINS)]
    assert seen.wave[0].tolist() == [first.min(), first.max()]
    guards = {name: (value, allowed, trips) for name, value, trips, allowed in seen.guards}
    assert guards["duration"] == (pytest.approx(3.4), "5 to 600 (s)", True)
    assert guards["dc"][1:] == ("at most 0.05 (full scale)", False)
    assert guards["band"][1] == "at least 3500 (Hz)"
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
    assert "mix musicality=1" in shown.text
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


def test_a_song_that_is_too_large_is_refused(reward, song, monkeypatch):
    page = local(make_app(reward=reward))
    size = song.stat().st_size
    monkeypatch.setattr(app, "MOST_BYTES", size)
    assert page.post("/try", **sent(song)).status_code == 200
    monkeypatch.setattr(app, "MOST_BYTES", size - 1)
    assert page.post("/try", **sent(song)).status_code == 413


def test_a_reward_that_needs_other_songs_is_refused():
    grouped = Reward(tiny_model(), mix=RewardMix({"musicality": 1.0}, "group"))
    for make in (try_app, lambda reward: make_app(reward=reward)):
        with pytest.raises(UsageError, match="group"):
            make(grouped)


def test_compare_plays_both_at_one_loudness_and_scores_them(reward, tmp_path):
    folder = songs(tmp_path / "songs", 1)
    soft, loud = (folder / name / "tune0.wav" for name in ("secretone", "secrettwo"))
    page = local(make_app(reward=reward))
    assert page.get("/").url.path == "/try"
    files = {"first": ("soft.wav", soft.read_bytes()), "second": ("loud.wav", loud.read_bytes())}
    answer = page.post("/compare", files=files).text
    assert "1. <bdi>soft.wav" in answer
    one, other = (row["reward"] for row in reward.judge([soft, loud]))
    assert f"{one - other:.3f}" in answer
    for address in re.findall(r"/audio/\w+/\d", answer):
        part = page.get(address, headers={"Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, b"RIFF")
        samples, rate = soundfile.read(io.BytesIO(page.get(address).content), dtype="float32")
        heard = float(integrated_loudness(torch.from_numpy(samples)[None], rate))
        assert heard == pytest.approx(-18, abs=0.05)
    assert page.get("/audio/gone/0").status_code == 404
    files["second"] = ("x.wav", b"no audio")
    assert page.post("/compare", files=files).status_code == 422


def test_pairs_are_closed_on_compare_until_a_voter_is_through(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 2))
    session = Session(pairs, tmp_path / "votes.jsonl", min_seconds=0)
    page = local(make_app(session))
    voted(session, "ann", 1)
    for path in ("/compare/pairs", "/compare/pairs/0"):
        for voter in ("", "ann", "bob"):
            closed = page.get(path, params={"voter": voter})
            assert closed.status_code == 403
            assert "secret" not in closed.text
    assert "secret" not in page.get("/compare").text
    voted(session, "ann", 1)
    assert page.get("/compare/pairs", params={"voter": "ann"}).json() == [
        f"secretone: tune{n}.wav / secrettwo: tune{n}.wav" for n in range(2)
    ]
    assert page.get("/compare/pairs/1", params={"voter": "bob"}).status_code == 403
    assert page.get("/compare/pairs/2", params={"voter": "ann"}).status_code == 404
    assert page.get("/try").status_code == 404


def test_pairs_without_votes_show_the_scores_of_their_table(tmp_path):
    names = tmp_path / "a.wav", tmp_path / "b.wav"
    for number, path in enumerate(names):
        save_wav(path, np.full(8000, 0.1 + 0.1 * number, np.float32), 8000)
    item = Comparison("a prompt", names, ("", ""), {"fame": (2.0, 0.5)})
    page = local(make_app(comparisons=[item]))
    assert page.get("/").url.path == "/compare"
    assert page.get("/compare/pairs").json() == ["a prompt: a.wav / b.wav"]
    shown = page.get("/compare/pairs/0").text
    assert "a prompt" in shown
    assert [float(n) for n in re.findall(r'<td class="number"[^>]*><bdi>(-?[\d.]+)<', shown)] == [
        2.0,
        0.5,
        1.5,
    ]
