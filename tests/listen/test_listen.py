"""Blind votes: sides and order by numbers, what is sent, resume, voters, and arena reading them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient

from apex_reward.arena.battles import battles_of
from apex_reward.audio import save_wav
from apex_reward.audio.loudness import integrated_loudness
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.listen.app import make_app
from apex_reward.listen.session import Session, plan
from apex_reward.listen.sources import Comparison, read_comparisons

COLUMNS = ["battle_uuid", "prompt", "audio_a", "audio_b", "system_a", "system_b", "preference",
           "voter", "seconds_a", "seconds_b", "date"]  # fmt: skip


def songs(folder: Path, number: int = 4) -> Path:
    for level, system in ((0.02, "secretone"), (0.4, "secrettwo")):
        (folder / system).mkdir(parents=True)
        for n in range(number):
            tone = level * np.sin(np.arange(8000) * (0.3 + 0.02 * n))
            save_wav(folder / system / f"tune{n}.wav", tone.astype(np.float32), 8000)
    return folder


def client(session: Session) -> TestClient:
    return TestClient(make_app(session), base_url="http://127.0.0.1")


def test_sides_are_even_wherever_a_voter_stops():
    pairs = [Comparison(str(n), (Path(f"a{n}"), Path(f"b{n}")), ("x", "y")) for n in range(40)]
    asked = plan(pairs, "ann", 0)
    for stop in range(2, 41, 2):
        assert sum(question.swapped for question in asked[:stop]) == stop // 2
    assert asked == plan(pairs, "ann", 0)
    prompts = [[q.comparison.prompt for q in plan(pairs, v, s)] for v, s in
               (("ann", 0), ("bob", 0), ("ann", 1))]  # fmt: skip
    assert len({tuple(order) for order in prompts}) == 3
    assert all(sorted(order) == sorted(map(str, range(40))) for order in prompts)


def test_informative_asks_small_margins_first(tmp_path):
    rows = [{"prompt": "p", "chosen": f"c{n}", "rejected": f"r{n}", "margin": m}
            for n, m in enumerate((0.5, -0.1, 2.0))]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = plan(read_comparisons(tmp_path / "pairs.jsonl"), "ann", 0, "informative")
    assert [question.comparison.margin for question in asked] == [0.1, 0.5, 2.0]
    with pytest.raises(UsageError, match="margin"):
        plan([Comparison("", (Path("a"), Path("b")), ("x", "y"))], "ann", 0, "informative")


def test_bad_tables(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(DataError, match="chosen and rejected"):
        read_comparisons(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no two songs"):
        read_comparisons(tmp_path)


def test_votes_over_http_are_blind_equally_loud_and_resumed(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs"))
    output = tmp_path / "votes.jsonl"
    page = client(Session(pairs, output, min_seconds=0.5))
    sent = page.get("/").text
    for number in range(2):
        asked = page.post("/next", json={"voter": "ann"})
        sent += asked.text + str(asked.headers)
        got = asked.json()
        assert (got["left"], got["needed"]) == (4 - number, [0.5, 0.5])
        for side in (0, 1):
            sound = page.get(f"/audio/{got['ticket']}/{side}")
            sent += str(sound.url) + str(sound.headers) + sound.content.decode("latin-1")
            samples, rate = soundfile.read(io.BytesIO(sound.content), dtype="float32")
            heard = integrated_loudness(torch.from_numpy(samples)[None], rate)
            assert float(heard) == pytest.approx(-18, abs=0.05)
        vote = {"ticket": got["ticket"], "preference": "A", "seconds_a": 0.4, "seconds_b": 0.9}
        assert page.post("/vote", json=vote).status_code == 409
        assert page.post("/vote", json=vote | {"preference": "C"}).status_code == 422
        assert page.post("/vote", json=vote | {"seconds_a": 0.6}).status_code == 200
        assert page.post("/vote", json=vote | {"seconds_a": 0.6}).status_code == 404
        assert len(read_jsonl(output)) == number + 1
    assert not any(word in sent for word in ("secret", "tune", str(tmp_path)))
    with output.open("a") as file:
        file.write('{"battle_uuid": "tor')  # a killed run
    session = Session(pairs, output, min_seconds=0)
    for voter, number in (("ann", 2), ("bob", 4)):
        for preference in ("B", "TIE", "BOTH_BAD", "A")[:number]:
            ticket, _, _ = session.ask(voter)
            session.cast(ticket, preference, (1.0, 1.0))
        assert session.ask(voter) is None
    rows = read_jsonl(output)
    assert all(list(row) == COLUMNS for row in rows)
    assert Counter(row["voter"] for row in rows) == {"ann": 4, "bob": 4}
    assert Counter(row["system_a"] for row in rows) == {"secretone": 4, "secrettwo": 4}
    assert all(Path(row["audio_a"]).parent.name == row["system_a"] for row in rows)
    battles = battles_of(rows)
    assert (len(battles), int(battles.decided.sum())) == (8, 5)
    assert battles.audio[0].tolist() == [rows[0]["audio_a"], rows[0]["audio_b"]]


def test_a_broken_song_is_passed_over_and_other_hosts_are_refused(tmp_path):
    folder = songs(tmp_path / "songs", 2)
    (folder / "secretone" / "tune0.wav").write_text("no audio")
    session = Session(read_comparisons(folder), tmp_path / "votes.jsonl", min_seconds=0)
    ticket, one, _ = session.ask("ann")
    assert one.question.comparison.songs[0].name == "tune1.wav"
    session.cast(ticket, "A", (0, 0))
    assert session.ask("ann") is None
    assert ["tune0.wav" in reason for reason in session.unreadable.values()] == [True]
    outside = TestClient(make_app(session), base_url="http://example.org")
    assert outside.get("/").status_code == 400
