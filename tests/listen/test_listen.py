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
from apex_reward.errors import DataError
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.listen.app import make_app
from apex_reward.listen.session import Question, Session
from apex_reward.listen.sources import read_comparisons

COLUMNS = ["battle_uuid", "prompt", "audio_a", "audio_b", "system_a", "system_b", "preference",
           "voter", "seconds_a", "seconds_b", "date", "comparison", "swapped",
           "repeat"]  # fmt: skip


def songs(folder: Path, number: int = 4) -> Path:
    for level, system in ((0.02, "secretone"), (0.4, "secrettwo")):
        (folder / system).mkdir(parents=True)
        for n in range(number):
            tone = level * np.sin(np.arange(8000) * (0.3 + 0.02 * n))
            save_wav(folder / system / f"tune{n}.wav", tone.astype(np.float32), 8000)
    return folder


def client(session: Session) -> TestClient:
    return TestClient(make_app(session), base_url="http://127.0.0.1")


def voted(session: Session, voter: str, number: int, preference: str = "A") -> list[Question]:
    """What a voter is asked, every question answered alike."""
    asked = []
    for _ in range(number):
        ticket, one, _ = session.ask(voter)
        session.cast(ticket, preference, one.seconds)
        asked.append(one.question)
    return asked


def test_sides_are_even_wherever_a_voter_stops(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 20))
    orders = []
    for voter, seed in (("ann", 0), ("ann", 0), ("bob", 0), ("ann", 1)):
        output = tmp_path / f"{len(orders)}.jsonl"
        asked = voted(Session(pairs, output, seed=seed, repeats=0), voter, 20)
        for stop in range(2, 21, 2):
            assert sum(question.swapped for question in asked[:stop]) == stop // 2
        orders.append([(q.comparison.songs[0].name, q.swapped) for q in asked])
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) == 3
    assert all(len({name for name, _ in order}) == 20 for order in orders)


def test_every_tenth_question_comes_again_with_its_sides_exchanged(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 20))
    session = Session(pairs, tmp_path / "votes.jsonl", min_seconds=0)
    assert session.ask("ann")[2] == 22
    asked = voted(session, "ann", 10)
    session = Session(pairs, tmp_path / "votes.jsonl", min_seconds=0)  # it goes on after a stop
    asked += voted(session, "ann", 12)
    assert session.ask("ann") is None
    assert [n for n, question in enumerate(asked) if question.repeat] == [10, 21]
    for number in (10, 21):
        again, (before,) = asked[number], [
            n for n, q in enumerate(asked[:number])
            if q.comparison == asked[number].comparison and not q.repeat
        ]  # fmt: skip
        assert number - before > 5
        assert asked[before].swapped != again.swapped
        assert asked[before].identity != again.identity
    rows = read_jsonl(tmp_path / "votes.jsonl")
    assert sum(row["repeat"] for row in rows) == 2
    assert len({row["comparison"] for row in rows}) == 20


def test_votes_know_the_battle_of_the_table_and_which_way_round_it_was(tmp_path):
    folder = songs(tmp_path / "songs", 6)
    rows = [
        {"battle_uuid": f"b{n}", "audio_a": f"secrettwo/tune{n}.wav", "system_a": "secrettwo",
         "audio_b": f"secretone/tune{n}.wav", "system_b": "secretone", "fame_a": 9, "fame_b": 1}
        for n in range(6)
    ]  # fmt: skip
    write_table(folder / "battles.csv", rows)
    pairs = read_comparisons(folder / "battles.csv")
    assert pairs[0].systems == ("secretone", "secrettwo")
    assert pairs[0].scores == {"fame": (1.0, 9.0)}
    voted(Session(pairs, tmp_path / "votes.jsonl", min_seconds=0), "ann", 6)
    votes = read_jsonl(tmp_path / "votes.jsonl")
    assert {row["comparison"] for row in votes} == {f"b{n}" for n in range(6)}
    assert all(row["swapped"] == (row["system_a"] == "secretone") for row in votes)
    assert {row["swapped"] for row in votes} == {True, False}


def test_pairs_bring_the_scores_of_both_songs(tmp_path):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_fame": 3.0,
            "rejected_fame": 1.0, "chosen_tokens": [1], "rejected_tokens": [2]}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(pair) + "\n")
    (found,) = read_comparisons(tmp_path / "a.jsonl")
    assert found.scores == {"fame": (3.0, 1.0)}
    assert found.systems == ("chosen", "rejected")


@pytest.mark.parametrize("names", [("audio_a", "audio_b"), ("chosen", "rejected")])
def test_a_row_without_two_songs_costs_no_other(tmp_path, names):
    first, second = names
    rows = [{first: "a.wav", second: b} for b in ("b.wav", "", "c.wav")] + [{first: "d.wav"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"x.jsonl: 2 rows without two songs, left out"):
        found = read_comparisons(tmp_path / "x.jsonl")
    assert [item.songs[1].name for item in found] == ["b.wav", "c.wav"]


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
            part = page.get(str(sound.url), headers={"Range": "bytes=100-299"})  # a player seeks
            assert (part.status_code, part.content) == (206, sound.content[100:300])
            assert part.headers["content-range"] == f"bytes 100-299/{len(sound.content)}"
            sent += str(part.headers)
            samples, rate = soundfile.read(io.BytesIO(sound.content), dtype="float32")
            heard = integrated_loudness(torch.from_numpy(samples)[None], rate)
            assert float(heard) == pytest.approx(-18, abs=0.05)
        vote = {"ticket": got["ticket"], "preference": "A", "seconds_a": 0.4, "seconds_b": 0.9}
        assert page.post("/vote", json=vote).status_code == 422
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


def test_people_under_one_name_keep_their_questions_and_answer_each_once(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 10))
    output = tmp_path / "votes.jsonl"
    page = client(Session(pairs, output, min_seconds=0))
    open_, cast = {}, []

    def ask(tab: str) -> bool:
        got = page.post("/next", json={"voter": "team", "page": tab}).json()
        open_[tab] = got.get("ticket")
        return not got["done"]

    def vote(tab: str) -> int:
        answer = {"ticket": open_[tab], "preference": "A", "seconds_a": 9, "seconds_b": 9}
        cast.append(page.post("/vote", json=answer).status_code)
        return cast[-1]

    for _ in range(4):
        assert ask("first")
        assert ask("second")
        for tab in ("first", "second"):  # the other page's question is still open
            assert page.get(f"/audio/{open_[tab]}/0").status_code == 200
            assert vote(tab) == 200
    ask("first")
    ask("first")  # a page that is loaded again has one question
    while ask("second"):
        vote("second")
        if cast[-1] == 404:
            break
    vote("first")
    while ask("first"):
        vote("first")
    rows = read_jsonl(output)
    assert len(rows) == len({row["battle_uuid"] for row in rows}) == 10 + 1  # one is asked again
    assert sum(row["repeat"] for row in rows) == 1
    assert Counter(row["comparison"] for row in rows).most_common(2)[1][1] == 1
    first = [row for row in rows if not row["repeat"]]
    assert abs(sum(row["system_a"] == "secretone" for row in first) - 5) <= 1


def test_questions_of_a_page_that_was_left_are_asked_on_another(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 10))
    session = Session(pairs, tmp_path / "votes.jsonl", min_seconds=0)
    session.ask("ann", "left")
    for number in range(11):
        if number == 10:
            session.ask("ann", "left too")  # the repeat
        ticket, one, _ = session.ask("ann", "here")
        session.cast(ticket, "A", one.seconds)
    assert session.ask("ann", "here") is None


def test_the_first_page_names_the_task_the_number_of_pairs_and_the_keys(tmp_path):
    pairs = read_comparisons(songs(tmp_path / "songs", 20))
    shown = client(Session(pairs, tmp_path / "votes.jsonl", min_seconds=2.5)).get("/").text
    words = " ".join(shown.split())
    assert "two songs at a time and choose the better one" in words
    assert "There are 20 pairs; 2 of them are asked a second time." in words
    assert "at least 2.5 s" in words
    for key in ("space", "1", "2", "t", "b"):
        assert f"<kbd>{key}</kbd>" in words


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
