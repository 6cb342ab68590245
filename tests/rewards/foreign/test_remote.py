"""A served reward as a reward model, asked of a server that answers what the test says."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import soundfile
import torch

from apex_reward.errors import AudioError, UsageError
from apex_reward.rewards.foreign import remote
from apex_reward.rewards.foreign.remote import RemoteReward, ServerError, encoded
from apex_reward.rewards.saved import model_hash
from apex_reward.scores.head import Head

INFO = {
    "heads": [{"name": "a", "low": 0, "high": 2}, {"name": "b", "low": None, "high": None}],
    "sample_rate": 16_000,
    "reads_text": False,
    "mix": "a=1",
}


class Server:
    """Answers `/info`, and `/score` with the number of samples as `a` and their peak as `b`."""

    def __init__(self) -> None:
        self.info: Any = INFO
        self.failing: list[int] = []
        self.seen: list[tuple[str, str | None, Any]] = []
        self.answer: Any = None
        self.cut = 0  # answers that end in the middle
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.reply(self, None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.reply(self, json.loads(self.rfile.read(length)))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def reply(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.seen.append((handler.path, handler.headers["Authorization"], body))
        if self.failing:
            handler.send_response(self.failing.pop(0))
            handler.end_headers()
            handler.wfile.write(json.dumps({"error": "not now"}).encode())
            return
        answer = self.info if body is None else self.answer or self.rows(body)
        content = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        whole = not self.cut
        self.cut = max(0, self.cut - 1)
        handler.wfile.write(content if whole else content[:-5])

    @staticmethod
    def rows(body: Any) -> dict[str, Any]:
        files = [io.BytesIO(base64.b64decode(song["audio"])) for song in body["songs"]]
        songs = [soundfile.read(file)[0] for file in files]
        return {"rows": [{"a": len(song), "b": float(song.max())} for song in songs]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_songs_travel_at_their_own_length(server: Server) -> None:
    server.info = {**server.info, "reads_text": True}
    model = RemoteReward(server.url + "/", token="key")
    assert model.heads == (Head("a", 0, 2), Head("b", -math.inf, math.inf))
    assert (model.sample_rate, model.reads_text, model.saved_mix) == (16_000, True, "a=1")
    songs = torch.zeros(2, 2, 300)
    songs[0, :, 10] = 0.5
    songs[1, 0, 20] = 1.0  # of one channel: 0.5 in the mean
    scores = model(songs, 16_000, lengths=[200, 300], prompts=["x", "y"])
    assert scores.a.tolist() == [200.0, 300.0]
    torch.testing.assert_close(scores.b, torch.tensor([0.5, 0.5]))
    (_, key, _), (path, again, body) = server.seen
    assert (path, key, again) == ("/score", "Bearer key", "Bearer key")
    assert [song["prompt"] for song in body["songs"]] == ["x", "y"]


def test_sixteen_songs_to_a_request(server: Server) -> None:
    model = RemoteReward(server.url)
    scores = model(torch.zeros(33, 300), 16_000, lengths=list(range(100, 133)))
    assert scores.a.tolist() == [float(n) for n in range(100, 133)]
    assert [len(body["songs"]) for _, _, body in server.seen[1:]] == [16, 16, 1]
    assert server.seen[1][1] is None
    assert "prompt" not in server.seen[1][2]["songs"][0]


def test_only_what_can_pass_is_asked_again(server: Server) -> None:
    server.failing = [503, 429, 500, 502]
    model = RemoteReward(server.url)
    assert len(server.seen) == 5
    server.failing = [503] * 5
    with pytest.raises(ServerError, match="gives no answer after 5 tries: 503 not now"):
        model(torch.zeros(1, 300), 16_000)
    server.failing = [403]
    with pytest.raises(UsageError, match="/score refused: 403 not now"):
        model(torch.zeros(1, 300), 16_000)
    assert len(server.seen) == 11


def test_an_answer_that_ends_in_the_middle_is_asked_for_again(server: Server) -> None:
    server.cut = 2
    model = RemoteReward(server.url)
    assert len(server.seen) == 3
    server.cut = 5
    with pytest.raises(ServerError, match=r"after 5 tries: the answer is not whole \(Incomplete"):
        model(torch.zeros(1, 300), 16_000)
    assert len(server.seen) == 8


def test_a_proxy_is_not_asked_for_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert RemoteReward(server.url).heads[0].name == "a"
    assert RemoteReward(server.url.replace("127.0.0.1", "localhost")).sample_rate == 16_000
    monkeypatch.setattr(remote, "TRIES", 1)
    with pytest.raises(ServerError, match="refused"):  # another host: by the proxy
        RemoteReward("http://reward.example:8765")


def test_several_servers_are_asked_in_turn(server: Server) -> None:
    model = RemoteReward([server.url, server.url + "/second", server.url + "/third/"])
    again = pickle.loads(pickle.dumps(model))
    for asked in (model, again):
        for _ in range(2):
            asked(torch.zeros(1, 300), 16_000)
    assert [path for path, _, _ in server.seen] == [
        "/info", "/second/score", "/third/score", "/score", "/second/score",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"rows": []}, ServerError, "answered no row for each of 2 songs"),
        ({"rows": {"a": 1, "b": 2}}, ServerError, "answered no row for each of 2 songs"),
        ({"else": 1}, ServerError, "answered no row for each of 2 songs"),
        ([1], ServerError, "answered no JSON: expected an object"),
        ({"rows": [{"a": 1, "b": 1}, {"a": 1}]}, ServerError, "scores that are not finite"),
        ({"rows": [{"a": 1, "b": 1}, {"a": 1, "b": math.inf}]}, ServerError, "not finite"),
        ({"rows": [{"a": 1, "b": 1}, {"a": 1, "b": math.nan}]}, ServerError, "not finite"),
        ({"rows": [{"a": 1, "b": 1}, {"a": True, "b": 1}]}, ServerError, "not finite"),
        ({"rows": [{"a": 1, "b": 1}, [1, 1]]}, ServerError, "answered no row for each"),
        ({"rows": [{"a": 1, "b": 1}, {"error": "is silent"}]}, AudioError, "^song 1 is silent$"),
    ],
)
def test_answers_that_are_none_raise(
    server: Server, answer: Any, error: type[Exception], message: str
) -> None:
    model = RemoteReward(server.url)
    server.answer = answer
    with pytest.raises(error, match=message):
        model(torch.zeros(2, 300), 16_000)


def test_another_kind_of_server_is_named(server: Server) -> None:
    server.info = {"heads": [{"name": "a"}]}
    with pytest.raises(ServerError, match="is no reward server: /info lacks 'low'"):
        RemoteReward(server.url)


def test_a_song_beyond_full_scale_travels_unclipped() -> None:
    for peak, form, error in ((0.999, "FLAC", 2**-23), (1.0, "WAV", 0.0), (1.5, "WAV", 0.0)):
        song = torch.tensor([0.0, peak, -peak])
        file = io.BytesIO(base64.b64decode(encoded(song, 8_000)))
        samples, rate = soundfile.read(file, dtype="float32")
        assert rate == 8_000
        assert samples.tolist() == pytest.approx(song.tolist(), abs=error)
        file.seek(0)
        assert soundfile.info(file).format == form


def test_another_model_behind_the_same_address_is_another_model(server: Server) -> None:
    """A resumed run must not mix the rows of two servers."""
    hashes = set()
    for made in ({}, {"models": {"apex": {"hash": "a"}}}, {"models": {"apex": {"hash": "b"}}},
                 {"models": {"apex": {"hash": "b"}}, "loudness": -18.0}):  # fmt: skip
        server.info = INFO | made
        hashes.add(model_hash(RemoteReward(server.url)))
        assert model_hash(RemoteReward(server.url)) in hashes
    assert len(hashes) == 4
