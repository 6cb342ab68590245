"""Extraction: rows, failures, any number of workers, kills, Ray, and from there to a scorer."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.data.extract import (
    ExtractSettings,
    ManifestSong,
    extract,
    plan,
    read_manifest,
)
from apex_reward.data.teacher import load_teacher, read_teacher
from apex_reward.errors import DataError, UsageError
from apex_reward.files.tables import read_jsonl, write_table
from apex_reward.model import ApexReward
from apex_reward.rewards.foreign.songeval import SongEval
from apex_reward.rewards.reward import Reward
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.scoring import Engine
from tests.muq_support import TINY
from tests.support import tiny_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model whose segments last one second."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encoder")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ManifestSong]]:
    """A folder of audio and its manifest; two of the files cannot be read."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    manifest = []
    for i in range(150):
        rate = (24_000, 16_000)[i % 2]
        seconds = rng.uniform(0.1, 2.2)
        samples = 0.1 * rng.standard_normal((1 + i % 2, int(rate * seconds)))
        save_wav(folder / f"{i}.wav", samples.astype(np.float32), rate)
        split = ("val", "test")[i % 2] if i < 20 else "train"
        labels = {"platform": "suno", "score_streams": i / 2, "score_likes": 50.0 - i / 4}
        manifest.append(ManifestSong(f"a{i}", f"{i}.wav", split, labels))
    (folder / "7.wav").write_text("no audio")
    manifest.append(ManifestSong("gone", "gone.wav", "train", {}))
    return folder, manifest


def shards_of(output: Path) -> dict[str, bytes]:
    files = sorted([*output.glob("*/*.parquet"), output / "failed.jsonl"])
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def extracted(
    encoder: Path,
    songs: tuple[Path, list[ManifestSong]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("extracted")
    extract(songs[1], ExtractSettings(songs[0], str(encoder)), output)
    return output


def test_rows_are_the_models_embeddings(
    extracted: Path, encoder: Path, songs: tuple[Path, list[ManifestSong]]
) -> None:
    from apex_reward.audio import load_audio

    model = ApexReward.from_pretrained(encoder)
    table = pq.read_table(extracted / "train" / "00000.parquet")
    rows = table.to_pylist()
    wanted = [s.audio_id for s in songs[1] if s.split == "train"][:64]
    assert list(dict.fromkeys(row["audio_id"] for row in rows)) == wanted
    assert {field.name for field in table.schema} == {
        "audio_id", "segment_id", "platform", "path", "score_streams", "score_likes",
        "segment_weight", "segment_embedding", "layer_embeddings",
    }  # fmt: skip
    waveform = load_audio(songs[0] / "20.wav")
    mine = [row for row in rows if row["audio_id"] == "a20"]
    assert [row["segment_id"] for row in mine] == [f"a20_{n + 1}" for n in range(len(mine))]
    with torch.no_grad():
        samples = torch.from_numpy(np.ascontiguousarray(waveform.samples))[None]
        layers = model.embed_layers(samples, waveform.sample_rate)[0]
        pooled = model.embed(samples, waveform.sample_rate)[0]
    stored = np.mean([row["segment_embedding"] for row in mine], axis=0)
    np.testing.assert_allclose(stored, pooled, rtol=1e-4, atol=1e-5)
    stored = np.mean([row["layer_embeddings"] for row in mine], axis=0)
    np.testing.assert_allclose(stored, layers, rtol=2e-3, atol=2e-3)
    assert mine[0]["score_streams"] == 10.0


def test_failures_have_reasons(extracted: Path) -> None:
    failed = read_jsonl(extracted / "failed.jsonl")
    assert [(row["audio_id"], row["split"]) for row in failed] == [
        ("a7", "test"),
        ("gone", "train"),
    ]
    assert "does not exist" in failed[1]["error"]
    rows = [r for f in extracted.glob("*/*.parquet") for r in pq.read_table(f).to_pylist()]
    assert len({row["segment_id"] for row in rows}) == len(rows)
    assert len({row["audio_id"] for row in rows}) == 149


def test_any_number_of_workers(
    extracted: Path, encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    extract(songs[1], ExtractSettings(songs[0], str(encoder), workers=2), tmp_path)
    assert shards_of(tmp_path) == shards_of(extracted)


@pytest.mark.slow
def test_killed_at_ten_random_moments(
    extracted: Path, encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    settings = ExtractSettings(songs[0], str(encoder))
    started = time.perf_counter()
    extract(songs[1], settings, tmp_path / "timed")
    seconds = time.perf_counter() - started
    moments, kills = random.Random(0), 0
    output = tmp_path / "killed"
    for _ in range(10):
        child = os.fork()
        if child == 0:
            extract(songs[1], settings, output, resume=True)
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 3))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills, "the run ended before any kill came"
    extract(songs[1], settings, output, resume=True)
    assert shards_of(output) == shards_of(extracted)
    assert not list(output.rglob("*.tmp"))


@pytest.mark.slow
def test_ray_writes_the_same(
    extracted: Path, encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    import ray

    settings = ExtractSettings(songs[0], str(encoder))
    try:
        failed = extract(songs[1], settings, tmp_path, engine=Engine("ray", actors=2))
    finally:
        ray.shutdown()
    assert [row["audio_id"] for row in failed] == ["a7", "gone"]
    assert shards_of(tmp_path) == shards_of(extracted)


def test_resume_with_another_manifest_is_refused(
    encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    settings = ExtractSettings(songs[0], str(encoder))
    extract(songs[1][:3], settings, tmp_path)
    with pytest.raises(UsageError, match="made with other manifest"):
        extract(songs[1][:4], settings, tmp_path, resume=True)


def test_plan_keeps_manifest_order() -> None:
    songs = [ManifestSong(str(i), "", ("train", "val")[i % 3 == 0], {}) for i in range(10)]
    shards = plan(songs, size=4)
    assert [shard.name for shard in shards] == [
        "val/00000.parquet", "train/00000.parquet", "train/00001.parquet",
    ]  # fmt: skip
    assert [song.audio_id for song in shards[1].songs] == ["1", "2", "4", "5"]


def test_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine is 'spark'; expected one of local, ray"):
        Engine("spark")


def teach_by_name(paths: Any) -> list[dict[str, Any]]:
    """A teacher that another process finds by its name; it cannot hear song 22."""
    return [
        {"error": "is too quiet"}
        if path.stem == "22"
        else dict.fromkeys(AESTHETIC_HEADS, 1.0 + int(path.stem) / 100)
        for path in paths
    ]


BY_NAME = "tests.data.test_extract:teach_by_name"


def test_a_named_teacher_labels_and_its_failures_are_rows(
    encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    chosen = [song for song in songs[1] if song.split == "train"][:5]
    given = ManifestSong("own", "30.wav", "train", dict.fromkeys(AESTHETIC_HEADS, 4.5))
    settings = ExtractSettings(songs[0], str(encoder), teacher=BY_NAME)
    failed = extract([*chosen, given], settings, tmp_path)
    assert [(row["audio_id"], row["error"]) for row in failed] == [("a22", "is too quiet")]
    rows = pq.read_table(tmp_path / "train" / "00000.parquet").to_pylist()
    labels = {row["audio_id"]: json.loads(row["songeval_scores"])["clarity"] for row in rows}
    assert labels == {"a20": 1.2, "a21": 1.21, "a23": 1.23, "a24": 1.24, "own": 4.5}
    with pytest.raises(UsageError, match="made with other teacher;"):
        extract([*chosen, given], ExtractSettings(songs[0], str(encoder)), tmp_path, resume=True)


def test_songeval_teaches_and_a_predictor_learns_from_it(
    encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    SongEval(TINY, 24).save_pretrained(tmp_path / "songeval")
    name = f"songeval:{tmp_path / 'songeval'}"
    chosen = [song for song in songs[1] if song.audio_id not in ("a7", "gone")][:34]
    output = tmp_path / "shards"
    assert extract(chosen, ExtractSettings(songs[0], str(encoder), teacher=name), output) == []
    judged = Reward(SongEval.from_pretrained(tmp_path / "songeval")).judge(
        [str(songs[0] / "0.wav")]
    )
    table = pq.read_table(output / "val" / "00000.parquet").to_pylist()
    first = json.loads(next(row for row in table if row["audio_id"] == "a0")["songeval_scores"])
    assert first == pytest.approx({head: judged[0][head] for head in AESTHETIC_HEADS}, abs=1e-5)
    done = CliRunner().invoke(
        app, ["train", "--data", str(output), "--output", str(tmp_path / "run"), "--epochs", "1"]
    )
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["task"] == "full"


def test_teachers_that_are_none_are_named(tmp_path: Path) -> None:
    tiny_model(task="popularity").save_pretrained(tmp_path / "two")
    with pytest.raises(UsageError, match="apex is no teacher: it has no head coherence"):
        load_teacher(str(tmp_path / "two"))
    with pytest.raises(UsageError, match="package.module:callable"):
        load_teacher("no.such:thing")


def test_killed_while_a_teacher_hears_and_resumed(
    encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    settings = ExtractSettings(songs[0], str(encoder), teacher=BY_NAME)
    extract(songs[1], settings, tmp_path / "whole")
    kills = 0
    for moment in (0.2, 0.5, 0.9):
        child = os.fork()
        if child == 0:
            extract(songs[1], settings, tmp_path / "killed", resume=True)
            os._exit(0)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills, "the run ended before any kill came"
    extract(songs[1], settings, tmp_path / "killed", resume=True)
    assert shards_of(tmp_path / "killed") == shards_of(tmp_path / "whole")


@pytest.mark.slow
def test_ray_actors_load_the_teacher_by_its_name(
    encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    import ray

    chosen = [song for song in songs[1] if song.split == "train"][:5]
    settings = ExtractSettings(songs[0], str(encoder), teacher=BY_NAME)
    extract(chosen, settings, tmp_path / "here")
    try:
        failed = extract(chosen, settings, tmp_path / "ray", engine=Engine("ray"))
    finally:
        ray.shutdown()
    assert [row["audio_id"] for row in failed] == ["a22"]
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "here")


TEACHER = {"1": {"clarity": 2.0}, "b": {"clarity": 4.0}}


def test_labels_of_the_manifest_and_of_the_teacher(tmp_path: Path) -> None:
    rows = [
        {"audio_id": "1", "path": "a.wav", "split": "val", "platform": "suno", "clarity": 5.0,
         "score_likes": 7.0, "note": "x"},
        {"audio_id": "b", "path": "b.wav", "split": None, "platform": None, "clarity": 1.0,
         "score_likes": None, "note": "y"},
    ]  # fmt: skip
    write_table(tmp_path / "m.jsonl", rows)
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert (first.audio_id, first.path, first.split) == ("1", "a.wav", "val")
    assert first.labels == {"platform": "suno", "clarity": 5.0, "score_likes": 7.0}
    assert (second.split, second.labels) == ("train", {"clarity": 1.0})
    taught = read_manifest(tmp_path / "m.jsonl", TEACHER)
    assert [song.labels["clarity"] for song in taught] == [2.0, 4.0]
    assert taught[0].labels["score_likes"] == 7.0


def test_songs_without_splits_are_trained_on(tmp_path: Path) -> None:
    write_table(tmp_path / "m.csv", [{"audio_id": 1, "path": "a.wav"}])
    (song,) = read_manifest(tmp_path / "m.csv", TEACHER)
    assert (song.audio_id, song.split, song.labels) == ("1", "train", {"clarity": 2.0})


def test_a_bad_row_is_a_failure_and_costs_no_other(encoder: Path, tmp_path: Path) -> None:
    """Unreadable labels, missing names, repeats, unknown splits, missing teacher scores."""
    save_wav(tmp_path / "a.wav", np.full((1, 24_000), 0.1, np.float32), 24_000)
    rows = [
        {"audio_id": name, "path": "a.wav", "score_likes": 5.0}
        for name in ("1", "1", "b", None, "c", "d", "e", "f")
    ]
    rows[2]["score_likes"] = "many"
    rows[4] |= {"score_likes": "4.2"}
    rows[5]["path"] = ""
    rows[6]["split"] = "dev"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = {"1": {"clarity": 2.0}, "b": {}, "c": {}, "e": {}, "f": {"error": "clarity is 9"}}
    songs = read_manifest(tmp_path / "m.jsonl", teacher)
    assert [song.error for song in songs] == [
        "",
        "an earlier row has the same audio_id",
        "unreadable: score_likes",
        "the row lacks audio_id or path",
        "",
        "the row lacks audio_id or path",
        "the split is dev; expected train, val, test",
        "no teacher scores: clarity is 9",
    ]
    assert songs[4].labels["score_likes"] == 4.2
    failed = extract(songs, ExtractSettings(tmp_path, str(encoder)), tmp_path / "out")
    assert [row["error"] for row in failed] == [song.error for song in songs if song.error]
    assert read_jsonl(tmp_path / "out" / "failed.jsonl") == failed
    table = pq.read_table(tmp_path / "out" / "train" / "00000.parquet")
    assert set(table["audio_id"].to_pylist()) == {"1", "c"}
    (tmp_path / "n.csv").write_text("audio_id,path\n")
    with pytest.raises(DataError, match="has no rows"):
        read_manifest(tmp_path / "n.csv")


def test_repeated_ids_take_linear_time(tmp_path: Path) -> None:
    """40,000 rows of 20,000 songs: a quadratic count takes minutes."""
    write_table(tmp_path / "m.csv", [{"audio_id": f"s{i % 20_000}", "path": "a.wav"}
                                     for i in range(40_000)])  # fmt: skip
    songs = read_manifest(tmp_path / "m.csv")
    assert sum(bool(song.error) for song in songs) == 20_000
    labels = [{"audio_id": f"s{i % 20_000}", **dict.fromkeys(AESTHETIC_HEADS, 3.0)}
              for i in range(40_000)]  # fmt: skip
    write_table(tmp_path / "t.csv", labels)
    assert read_teacher(tmp_path / "t.csv")["s7"] == {"error": "there twice"}


@pytest.mark.parametrize("change", ["labels", "path", "audio"])
def test_resume_refuses_another_manifest_or_audio(
    change: str, encoder: Path, songs: tuple[Path, list[ManifestSong]], tmp_path: Path
) -> None:
    """The same ids with other labels or paths, and audio that was replaced."""
    folder = tmp_path / "audio"
    folder.mkdir()
    chosen = [song for song in songs[1] if song.split == "train"][:3]
    for song in (*chosen, songs[1][0]):
        (folder / song.path).write_bytes((songs[0] / song.path).read_bytes())
    settings = ExtractSettings(folder, str(encoder))
    extract(chosen, settings, tmp_path / "out")
    assert extract(chosen, settings, tmp_path / "out", resume=True) == []
    if change == "labels":
        other = replace(chosen[0], labels={**chosen[0].labels, "score_likes": 51.0})
    elif change == "path":
        other = replace(chosen[0], path=songs[1][0].path)
    else:
        other = chosen[0]
        (folder / other.path).write_bytes((folder / songs[1][0].path).read_bytes())
    with pytest.raises(UsageError, match="was made with other (manifest|content of the inputs)"):
        extract([other, *chosen[1:]], settings, tmp_path / "out", resume=True)
