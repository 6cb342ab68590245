"""Scoring into a file: the same bytes for any workers, after any kill, or a clear refusal."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.stamps import Stamp
from apex_reward.files.tables import read_table
from apex_reward.model import ApexReward
from apex_reward.rewards import reward as reward_module
from apex_reward.rewards.reward import Reward
from apex_reward.scores.apex import HEADS
from apex_reward.scoring import Input, ScoreSettings, find_songs, job, score_songs, score_to_file
from apex_reward.scoring.job import block_songs
from tests.support import SEGMENT, tiny_model, write_wav

SEGMENTS = ScoreSettings(rewarded=True, segments=True)


class KilledError(Exception):
    """Stands for SIGKILL between two rows."""


@pytest.fixture(autouse=True, scope="module")
def blocks_of_two() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "block_songs", lambda batch_segments: 2)
        yield


def run(
    model: ApexReward, songs: list[str], output: Path, kill_after: int | None = None, **options: Any
) -> list[bool]:
    """Score, or be killed after some new rows; whether each row was new."""
    fresh: list[bool] = []

    def on_row(row: dict[str, Any], new: bool) -> None:
        fresh.append(new)
        if sum(fresh) == kill_after:
            raise KilledError

    settings = options.pop("settings", SEGMENTS)
    reward = Reward(model, options.pop("mix", "overall"), **options.pop("reward", {}))
    score_to_file(reward, songs, output, settings, on_row=on_row, **options)
    return fresh


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(
    model: ApexReward, songs: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(model, songs, folder / "f.jsonl")
    return everything(folder)


def test_the_files_of_a_run(
    unbroken: dict[str, bytes], model: ApexReward, songs: list[str]
) -> None:
    assert set(unbroken) == {"f.jsonl", "f.jsonl.meta.json", "f.segments.jsonl"}
    rows = [json.loads(line) for line in unbroken["f.jsonl"].splitlines()]
    expected = list(score_songs(Reward(model, "overall"), songs, None, SEGMENTS, block=2))
    parts = [part for row in expected for part in row.pop("segment_rows")]
    assert rows == expected
    assert [json.loads(line) for line in unbroken["f.segments.jsonl"].splitlines()] == parts
    assert list(parts[0]) == ["path", "segment", "start", "end", *HEADS]


@pytest.mark.parametrize("workers", [1, 4])
def test_same_bytes_for_any_workers(
    unbroken: dict[str, bytes], model: ApexReward, songs: list[str], tmp_path: Path, workers: int
) -> None:
    run(model, songs, tmp_path / "again" / "f.jsonl", workers=workers)
    assert everything(tmp_path / "again") == unbroken


@pytest.mark.parametrize("kill_after", [1, 2, 3, 6, 7, 8])
def test_same_bytes_after_a_kill_and_only_whole_blocks_are_kept(
    unbroken: dict[str, bytes],
    model: ApexReward,
    songs: list[str],
    tmp_path: Path,
    kill_after: int,
) -> None:
    output = tmp_path / "killed" / "f.jsonl"
    with pytest.raises(KilledError):
        run(model, songs, output, kill_after=kill_after)
    assert {path.name for path in output.parent.iterdir()} == {
        "f.jsonl.partial",
        "f.jsonl.partial.json",
        "f.segments.jsonl.partial",
    }
    kept = kill_after // 2 * 2
    assert run(model, songs, output, resume=True) == [False] * kept + [True] * (8 - kept)
    assert everything(output.parent) == unbroken


@pytest.mark.parametrize("lost", ["f.jsonl.partial", "f.segments.jsonl.partial"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_same_bytes_when_the_end_of_either_file_was_lost(
    unbroken: dict[str, bytes],
    model: ApexReward,
    songs: list[str],
    tmp_path: Path,
    lost: str,
    share: float,
) -> None:
    output = tmp_path / "killed" / "f.jsonl"
    with pytest.raises(KilledError):
        run(model, songs, output, kill_after=7)
    file = output.parent / lost
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    run(model, songs, output, resume=True)
    assert everything(output.parent) == unbroken


def test_resume_with_nothing_there_is_a_plain_run(
    unbroken: dict[str, bytes], model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    assert run(model, songs, tmp_path / "new" / "f.jsonl", resume=True) == [True] * 8
    assert everything(tmp_path / "new") == unbroken


def test_resume_of_a_finished_run_does_nothing(
    unbroken: dict[str, bytes],
    songs: list[str],
    tmp_path: Path,
    model: ApexReward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reward_module, "decode_songs", lambda *_: pytest.fail("it decoded"))
    for name, content in unbroken.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f.jsonl.partial.json").touch()  # killed in the very last step
    assert run(model, songs, tmp_path / "f.jsonl", resume=True) == [False] * 8
    assert everything(tmp_path) == unbroken


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"songs": slice(0, 7)}, "inputs"),
        ({"seed": 1}, "models"),
        ({"layers": (0, 1, 2, 3)}, "models"),
        ({"mix": "aesthetics"}, "reward"),
        ({"settings": ScoreSettings(rewarded=True)}, "settings"),
        ({"reward": {"batch_segments": 2}}, "batch_segments"),
        ({"segment_tail": "mask"}, "models"),
    ],
)
def test_a_partial_file_of_another_run_is_refused_and_kept(
    model: ApexReward,
    songs: list[str],
    tmp_path: Path,
    changed: dict[str, Any],
    named: str,
) -> None:
    output = tmp_path / "f.jsonl"
    with pytest.raises(KilledError):
        run(model, songs, output, kill_after=2)
    before = everything(tmp_path)
    settings = changed.pop("settings", SEGMENTS)
    other = songs[changed.pop("songs", slice(None))]
    options = {name: changed.pop(name) for name in ("mix", "reward") if name in changed}
    second = tiny_model(segment_seconds=SEGMENT, **changed) if changed else model
    with pytest.raises(UsageError, match=rf"made with other {named}.* leave out --resume"):
        run(second, other, output, settings=settings, resume=True, **options)
    assert everything(tmp_path) == before
    (tmp_path / "f.jsonl.partial.json").unlink()
    with pytest.raises(UsageError, match="other version and models and .* and inputs and prompts"):
        run(model, songs, output, resume=True)


def test_without_resume_a_partial_file_is_started_anew(
    unbroken: dict[str, bytes], model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "again" / "f.jsonl"
    with pytest.raises(KilledError):
        run(tiny_model(seed=1, segment_seconds=SEGMENT), songs[1:], output, kill_after=3)
    assert run(model, songs, output) == [True] * 8
    assert everything(output.parent) == unbroken


def test_csv_and_parquet_equal_the_json_lines(
    unbroken: dict[str, bytes], model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in unbroken["f.jsonl"].splitlines()]
    for ending in ("parquet", "csv"):
        output = tmp_path / ending / f"f.{ending}"
        with pytest.raises(KilledError):
            run(model, songs, output, kill_after=5)
        run(model, songs, output, resume=True)
        assert {path.name for path in output.parent.iterdir()} == {
            f"f.{ending}",
            f"f.{ending}.meta.json",
            f"f.segments.{ending}",
        }
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "f.parquet")
    assert table.to_pylist() == rows
    assert table.schema.metadata[b"apex_reward.demonstration"] == b"false"
    parts = pyarrow.parquet.read_table(tmp_path / "parquet" / "f.segments.parquet").to_pylist()
    assert parts == [json.loads(line) for line in unbroken["f.segments.jsonl"].splitlines()]
    with open(tmp_path / "csv" / "f.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    for row, cell in zip(rows, cells, strict=True):
        assert list(row) == list(cell)
        for name, value in row.items():
            if name == "flags":
                assert cell[name] == ";".join(value)
            elif isinstance(value, (int, float)):
                assert float(cell[name]) == value
            else:
                assert cell[name] == (value or "")


def test_a_finished_file_of_other_inputs_is_refused_and_kept(
    model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    song = tmp_path / "songs" / "a.wav"
    write_wav(song, 0.4, seed=1)
    output = tmp_path / "out" / "f.jsonl"
    run(model, [str(song)], output)
    before = everything(output.parent)
    for other, named in (([str(song), songs[0]], "inputs and content"), ([songs[0]], "inputs")):
        with pytest.raises(UsageError, match=f"other {named}"):
            run(model, other, output, resume=True)
    content = song.read_bytes()
    song.write_bytes(content)  # another time of change, the same content
    os.utime(song, (1, 1))
    assert run(model, [str(song)], output, resume=True) == [False]
    write_wav(song, 0.4, seed=2)
    assert len(song.read_bytes()) == len(content)
    with pytest.raises(UsageError, match="other content of the inputs; resume"):
        run(model, [str(song)], output, resume=True)
    with pytest.raises(UsageError, match="other settings"):
        run(model, [str(song)], output, resume=True, settings=ScoreSettings())
    assert everything(output.parent) == before
    assert run(model, [str(song)], output) == [True]
    (output.parent / "f.jsonl.meta.json").unlink()
    with pytest.raises(UsageError, match="made with other version"):
        run(model, [str(song)], output, resume=True)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_kill_at_any_step_of_the_end_scores_nothing_again(
    model: ApexReward,
    songs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    step: int,
) -> None:
    """Renames and removals of the two files are the steps; the old result stands there too."""
    whole, output = tmp_path / "whole" / f"f.{ending}", tmp_path / "killed" / f"f.{ending}"
    run(model, songs[:3], whole)
    run(model, songs[3:4], output)
    steps = 0

    def die(*_: object) -> None:
        nonlocal steps
        if steps == step:
            raise KilledError
        steps += 1

    finish, write = GrowingTable.finish, Stamp.write

    def finish_or_die(self: GrowingTable) -> None:
        finish(self)
        die()

    def write_or_die(self: Stamp, path: Path) -> None:
        write(self, path)
        if path.name.endswith(".meta.json"):
            die()

    with monkeypatch.context() as patch:
        patch.setattr(GrowingTable, "finish", finish_or_die)
        patch.setattr(Stamp, "write", write_or_die)
        if step < 3:
            with pytest.raises(KilledError):
                run(model, songs[:3], output)
        else:
            run(model, songs[:3], output)
    monkeypatch.setattr(reward_module, "decode_songs", lambda *_: iter(()))
    assert run(model, songs[:3], output, resume=True) == [False] * 3
    assert everything(output.parent) == everything(whole.parent)


GIVEN = [
    {"take": 1, "level": 2, "of": {"album": "x"}, "free": True, "who": "007"},
    {"take": 2, "level": 0.5, "of": None, "free": "perhaps"},
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_columns_of_lists_keep_their_kind(
    model: ApexReward, songs: list[str], tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"f.{ending}"
    inputs = [Input(song, given) for song, given in zip(songs, GIVEN, strict=False)]
    score_to_file(Reward(model), inputs, output)
    rows = read_table(output, ["who"]).to_pylist()
    names = ("take", "level", "of", "free", "who")
    assert [rows[0][name] for name in names] == [1, 2.0, '{"album": "x"}', "true", "007"]
    assert [rows[1][name] for name in names] == [2, 0.5, None, "perhaps", None]


@pytest.mark.parametrize("first", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("second", ["jsonl", "csv", "parquet"])
def test_a_table_that_score_wrote_is_scored_again(
    model: ApexReward, songs: list[str], tmp_path: Path, first: str, second: str
) -> None:
    table = tmp_path / f"a.{first}"
    listed = [Input(song, {"path": "own", "input.error": "kept"}) for song in songs[:3]]
    reward, settings = Reward(model, "overall"), ScoreSettings(rewarded=True)
    score_to_file(reward, listed, table, settings)
    once = read_table(table).to_pylist()
    assert list(once[0])[:3] == ["input.path", "input.error", "path"]
    output = tmp_path / f"b.{second}"
    score_to_file(reward, find_songs([table]), output, settings)
    twice = read_table(output).to_pylist()
    assert [row["path"] for row in twice] == songs[:3]
    for before, after in zip(once, twice, strict=True):
        assert (after["input.path"], after["input.error"]) == ("own", "kept")
        assert after["input.reward"] == pytest.approx(before["reward"])
        assert after["reward"] == pytest.approx(before["reward"])
        assert after["input.clarity"] == after["clarity"]
        assert after["input.input.error"] == before["error"]
        names = [*before, "input.input.error"]
        assert {f"input.{name}" for name in before if not name.startswith(("input.", "path", "err"))
                } < set(after), names  # fmt: skip


def test_an_output_that_is_an_input_is_refused(
    model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    song = tmp_path / "song.csv"
    song.write_bytes(Path(songs[0]).read_bytes())
    with pytest.raises(UsageError, match=r"song\.csv is an input of this command"):
        run(model, [str(song)], song)
    assert list(tmp_path.iterdir()) == [song]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_text_that_is_not_utf8_costs_no_file(
    model: ApexReward, songs: list[str], tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"f.{ending}"
    score_to_file(Reward(model), [Input(songs[0], {"prompt": "half \ud83d"})], output)
    assert read_table(output)["prompt"].to_pylist() == ["half \\ud83d"]


def test_a_demonstration_model_says_so_in_the_file(songs: list[str], tmp_path: Path) -> None:
    model = tiny_model(demonstration=True, segment_seconds=SEGMENT)
    run(model, songs[:1], tmp_path / "f.parquet", settings=ScoreSettings())
    metadata = pyarrow.parquet.read_schema(tmp_path / "f.parquet").metadata
    assert metadata[b"apex_reward.demonstration"] == b"true"


def test_a_wrong_ending_is_refused_before_anything_is_written(
    model: ApexReward, songs: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"\.xlsx"):
        run(model, songs, tmp_path / "f.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_a_block_holds_four_batches_of_the_shortest_songs() -> None:
    assert [block_songs(size) for size in (1, 4, 5, 64)] == [16, 16, 20, 256]
