"""The routes of the application, in this process: every form of a song, prompt and answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from apex_reward import Reward
from apex_reward.audio import load_audio
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores
from apex_reward.serve.app import make_app
from apex_reward.serve.settings import ServeSettings
from tests.support import tiny_model, write_wav


class Words:
    """A text-reading model: counts of words, and an exception where a prompt asks for it."""

    name = "words"
    heads = (Head("prompt", 0, 100), Head("lyrics", 0, 100))
    sample_rate = 8_000
    differentiable = False
    reads_text = True

    def __call__(
        self, waveforms: torch.Tensor, sample_rate: int, lengths: Any = None, prompts: Any = None
    ) -> Scores:
        if any("raise" in prompt for prompt in prompts):
            raise ValueError("this prompt is not for me")
        words = [(p.split(), (p.lyrics or "").split()) for p in prompts]
        counts = torch.tensor([[float(len(part)) for part in pair] for pair in words])
        return Scores.from_stack(counts, self.heads)


def client_of(reward: Reward, folder: Path) -> TestClient:
    settings = ServeSettings(max_wait=0.3, audio_root=str(folder))
    return TestClient(make_app(reward, settings))


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("songs") / "a.wav", 0.5, 8_000)


@pytest.fixture(scope="module")
def reward() -> Reward:
    return Reward(tiny_model(), "aesthetics", guards="penalty")


@pytest.fixture(scope="module")
def server(reward: Reward, song: Path) -> Iterator[TestClient]:
    with client_of(reward, song.parent) as client:
        yield client


@pytest.fixture(scope="module")
def words(song: Path) -> Iterator[TestClient]:
    with client_of(Reward(Words(), "prompt=1"), song.parent) as client:
        yield client


def test_base64_in_every_form_is_read_and_anything_else_fails_alone(
    server: TestClient, song: Path
) -> None:
    content = song.read_bytes()
    plain = base64.b64encode(content).decode()
    forms = [
        plain,
        base64.encodebytes(content).decode(),
        base64.encodebytes(content).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(content).decode(),
        plain.rstrip("="),
        f"data:audio/wav;base64,{plain}",
        f"{plain[:-8]}%%%%{plain[-4:]}",
        plain[:1],
    ]
    answer = server.post("/score", json={"songs": [{"audio": form} for form in forms]})
    rows = answer.json()["rows"]
    assert [row["error"] is None for row in rows] == [True] * 6 + [False] * 2
    assert "holds no base64 under 'audio'" in rows[6]["error"]
    assert len({row["reward"] for row in rows[:6]}) == 1


def test_prompts_and_lyrics_in_every_form(words: TestClient, song: Path) -> None:
    given = {"path": "a.wav"}
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "a slow song"}]
    songs = [
        {**given, "prompt": "slow blues", "lyrics": "woke up this morning"},
        {**given, "prompt": chat},
        {**given, "lyrics": "la la"},
        {**given, "prompt": "half \ud83d"},
    ]
    rows = words.post("/score", content=json.dumps({"songs": songs})).json()["rows"]
    assert [row["error"] for row in rows] == [None] * 4
    assert [(row["prompt"], row["lyrics"]) for row in rows] == [(2, 4), (3, 0), (0, 2), (2, 0)]
    files = [("audio", ("a.wav", song.read_bytes())), ("audio", ("b.wav", song.read_bytes()))]
    data = {"prompts": ["one two", "one"], "lyrics": ["la la la", ""]}
    rows = words.post("/score", files=files, data=data).json()["rows"]
    assert [(row["path"], row["prompt"], row["lyrics"]) for row in rows] == [
        ("a.wav", 2, 3), ("b.wav", 1, 0),
    ]  # fmt: skip
    refused = words.post("/score", files=files, data={"lyrics": ["la"]})
    assert (refused.status_code, refused.json()["error"]) == (422, "1 lyrics for 2 files")
    nothing = words.post("/score", json={"songs": [given]})
    assert "give one per song" in nothing.json()["error"]


def test_a_song_that_the_model_refuses_costs_the_others_nothing(words: TestClient) -> None:
    texts = ["one", "raise it", "one two", ""]
    songs = [{"path": "a.wav", "prompt": text} for text in texts]
    rows = words.post("/score", json={"songs": songs}).json()["rows"]
    assert [row["prompt"] for row in rows] == [1, None, 2, 0]
    assert "this prompt is not for me" in rows[1]["error"]


def test_a_song_that_cannot_be_judged_earns_the_floor_on_every_route(
    server: TestClient, reward: Reward, song: Path
) -> None:
    floor = reward.floor
    assert floor < 0
    data = base64.b64encode(song.read_bytes()).decode()
    (expected,) = reward.judge([str(song)])
    queries = [f"data:audio/wav;base64,{data}", "<s>no song</s>", "../up.wav", "data:,%", "a\0b"]
    body = {"query": queries, "prompts": ["a"] * 5, "labels": [None] * 5}
    answer = server.post("/openrlhf", json=body).json()
    assert answer["rewards"] == [pytest.approx(expected["reward"], abs=1e-5), *[floor] * 4]
    assert answer["scores"] == answer["rewards"]
    assert answer["extra_logs"]["failed"] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert answer["extra_logs"]["clarity"][1:] == [0.0] * 4
    only = server.post("/openrlhf", json={"query": ["no song"], "prompts": ["a"]}).json()
    assert only["rewards"] == [floor]
    wave = load_audio(song).mono.astype("<f4")
    for samples, score in ((wave, expected["reward"]), (np.full(8, np.nan, "<f4"), floor)):
        encoded = base64.b64encode(samples.tobytes()).decode()
        body = {"protocol_version": "1", "waveform_f32_base64": encoded,
                "num_samples": len(samples), "sample_rate": 8_000, "prompt": "a",
                "metadata": {}}  # fmt: skip
        answer = server.post("/verl-omni", json=body).json()
        assert answer["score"] == pytest.approx(score, abs=1e-5)
        assert "error" not in answer
        assert not any(isinstance(value, (list, dict)) for value in answer.values())
    wrong = server.post("/verl-omni", json={**body, "num_samples": 3})
    assert (wrong.status_code, "samples" in wrong.json()["error"]) == (422, True)


def test_while_offloaded_songs_are_refused_and_no_weight_is_on_the_device(
    song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = Reward(tiny_model(), "aesthetics")
    with client_of(reward, song.parent) as client:
        songs = {"songs": [{"path": "a.wav"}]}
        before = client.post("/score", json=songs).json()
        reward.model.to("meta")  # stands for a device that is not the CPU
        moved: list[str] = []
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(str(device)))
        assert client.post("/offload").json() == {"status": "offloaded"}
        assert client.post("/offload").status_code == 200
        assert moved == ["cpu"]
        refused = client.post("/score", json=songs)
        assert refused.status_code == 503
        assert "POST /onload" in refused.json()["error"]
        assert client.get("/health").status_code == 200
        assert client.post("/onload").json() == {"status": "ok"}
        assert client.post("/onload").status_code == 200
        assert moved == ["cpu", "meta"]
    monkeypatch.undo()
    again = Reward(tiny_model(), "aesthetics")
    with client_of(again, song.parent) as client:
        for route in ("/offload", "/onload"):
            client.post(route)
            assert {t.device.type for t in again.model.state_dict().values()} == {"cpu"}
        assert client.post("/score", json=songs).json() == before


def test_info_describes_the_server(server: TestClient, reward: Reward) -> None:
    info = server.get("/info").json()
    assert [head["name"] for head in info["heads"]] == [head.name for head in reward.heads]
    assert info["mix"] == reward.mix.to_dict()
    assert info["loudness"] == reward.loudness
    assert info["limits"]["songs"] == 64
    assert {"part", "licence", "commercial", "source"} == set(info["licences"][0])
    assert list(info["models"]) == ["apex"]
    assert "apex_reward_songs_total" in server.get("/metrics").text
