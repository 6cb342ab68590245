"""`apex-reward score` as a user meets it: files, rows, exit codes, messages, kills."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import Result
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.cli.rewards import DEMONSTRATION
from apex_reward.scores.apex import HEADS
from apex_reward.scores.mix import RewardMix
from tests.support import tiny_model, write_wav

COMMAND = (sys.executable, "-c", "from apex_reward.cli import main; main()")
COLUMNS = ["path", "duration", "sample_rate", "segments", *HEADS, "flags", "error"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(segment_seconds=0.25).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Three songs and a text."""
    for n in range(3):
        write_wav(tmp_path / "songs" / f"{n}.wav", 0.2 + 0.2 * n, 44_100, seed=n, channels=2)
    (tmp_path / "songs" / "text.mp3").write_text("lyrics")
    return tmp_path / "songs"


def score(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_in_three_formats(songs: Path, model: str, tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "parquet"):
        result = score(songs, "--model", model, "--output", tmp_path / f"f.{ending}")
        assert result.exit_code == 1  # one input failed
        assert f"{songs}/text.mp3: is not audio" in result.stderr
        assert "4 songs, 1 failed, 1.2 s of audio" in result.stdout
    rows = lines(tmp_path / "f.jsonl")
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert [row["path"] for row in rows] == [
        f"{songs}/{name}" for name in ("0.wav", "1.wav", "2.wav", "text.mp3")
    ]
    assert [row["segments"] for row in rows] == [1, 2, 3, 0]
    assert pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist() == rows
    with open(tmp_path / "f.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for head in HEADS:
        assert [cell[head] for cell in cells][3] == ""
        assert [float(cell[head]) for cell in cells[:3]] == [row[head] for row in rows[:3]]


def test_exit_code_0_when_all_went_well(songs: Path, model: str, tmp_path: Path) -> None:
    (songs / "text.mp3").unlink()
    result = score(songs, "--model", model, "--output", tmp_path / "f.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    # What is there already needs no work, with the same exit code.
    result = score(songs, "--model", model, "--output", tmp_path / "f.jsonl", "--resume")
    assert result.exit_code == 0
    assert "nothing to do" in result.stderr


def test_without_output_json_lines_into_a_pipe(songs: Path, model: str, tmp_path: Path) -> None:
    result = score(songs, "--model", model, "--workers", 0)
    score(songs, "--model", model, "--output", tmp_path / "f.jsonl")
    assert result.exit_code == 1
    assert result.stdout == (tmp_path / "f.jsonl").read_text()


def test_without_output_a_table_on_a_terminal(
    songs: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    with pytest.raises(SystemExit) as end:
        app(["score", str(songs), "--model", model, "--workers", "0"])
    assert end.value.code == 1
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == [
        *("song", "time", "streams", "likes", "coh.", "mus.", "mem.", "clar", "nat.", "flags")
    ]
    assert [row.split()[0] for row in table[3:7]] == ["0.wav", "1.wav", "2.wav", "text.mp3"]
    assert max(map(len, table)) <= 80
    assert table[6].split()[-1] == "failed"


def test_segments_mix_and_tail(songs: Path, model: str, tmp_path: Path) -> None:
    output = tmp_path / "f.csv"
    options = ("--segments", "--mix", "musicality=1,clarity=-1", "--segment-tail", "mask")
    assert score(songs, "--model", model, "--output", output, *options).exit_code == 1
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    expected = (float(first["musicality"]) - float(first["clarity"])) / 4
    assert float(first["reward"]) == pytest.approx(expected, abs=1e-6)
    with open(tmp_path / "f.segments.csv", newline="") as file:
        parts = list(csv.DictReader(file))
    assert [part["segment"] for part in parts] == ["1", "1", "2", "1", "2", "3"]
    assert list(parts[0]) == ["path", "segment", "start", "end", *HEADS]
    plain = tmp_path / "plain.jsonl"
    score(songs, "--model", model, "--output", plain)
    assert lines(plain)[0]["clarity"] != pytest.approx(float(first["clarity"]), abs=1e-3)


def test_the_calibrated_preference_as_a_mix(songs: Path, tmp_path: Path) -> None:
    head = RewardMix({"musicality": 2.0, "clarity": -1.0}, "none")
    tiny_model(segment_seconds=0.25, preference=head.to_dict()).save_pretrained(tmp_path / "model")
    result = score(songs / "1.wav", "--model", tmp_path / "model", "--mix", "preference")
    row = json.loads(result.stdout)
    assert row["reward"] == pytest.approx(2 * row["musicality"] - row["clarity"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{songs}/none"], None),
        (["{empty}"], "no audio found"),
        (["{songs}/*.ogg"], "no audio found"),
        (["{songs}", "--output", "f.xlsx"], "expected .jsonl, .csv, .parquet"),
        (["{songs}", "--resume"], "need --output"),
        (["{songs}", "--segments"], "need --output"),
        (["{songs}", "--mix", "loudness=1"], "unknown head loudness; this model has"),
        (["{songs}", "--mix", "preference"], "calibrated head"),
        (["{songs}", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["{songs}", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["{songs}", "--dtype", "int8"], "'int8' is not one of"),
        (["{songs}", "--segment-tail", "cut"], "'cut' is not one of"),
        (["{songs}", "--batch-segments", "0"], "batch-segments"),
        (["{songs}", "--workers", "-1"], "workers"),
        ([], "Missing argument"),
    ],
)
def test_wrong_usage(
    songs: Path, model: str, tmp_path: Path, arguments: list[str], message: str | None
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [text.format(songs=songs, empty=empty) for text in arguments]
    result = score(*given, "--model", model)
    # A file that is named and missing is an input that failed, not wrong usage.
    assert result.exit_code == (1 if message is None else 2)
    if message is not None:
        assert message in " ".join(result.stderr.split())


def test_a_missing_file_among_others_is_a_row(songs: Path, model: str, tmp_path: Path) -> None:
    output = tmp_path / "f.jsonl"
    given = (songs / "gone.wav", songs / "1.wav")
    assert score(*given, "--model", model, "--output", output).exit_code == 1
    gone, there = lines(output)
    assert (gone["error"], there["error"]) == ("does not exist", None)


def test_no_network_names_the_ways_out_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "attempts = []\n"
        "def refuse(*args, **kwargs):\n"
        "    attempts.append(args)\n"
        "    raise OSError('no network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from apex_reward.cli import app\n"
        "try: app(['score', 'x.flac'])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, len(attempts), 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**environment, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
    )  # fmt: skip
    assert answer.stdout.split() == ["1", "1", "False"]
    for part in ("amaai-lab/apex", "network", "--model apex-tiny", "apex-reward demo"):
        assert part in answer.stderr


def test_without_a_network_a_named_hub_model_is_refused_and_a_cached_one_is_not(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = score(songs, "--model", "someone/model")
    assert result.exit_code == 1
    assert "someone/model is a hub id, and the hub cannot be reached" in result.stderr
    (tmp_path / "models--someone--model" / "snapshots").mkdir(parents=True)
    assert "cannot be reached" not in score(songs, "--model", "someone/model").stderr


def test_an_output_that_is_an_input_is_wrong_usage(songs: Path, model: str, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"path,prompt\n{songs}/0.wav,x\n")
    before = table.read_bytes()
    for given in (
        (table, "--output", table),
        (songs / "0.wav", "--prompts", table, "--output", table),
        (table, "--segments", "--output", tmp_path / "a" / ".." / "list.csv"),
    ):
        (tmp_path / "a").mkdir(exist_ok=True)
        result = score(*given, "--model", model)
        assert result.exit_code == 2
        assert "list.csv is an input of this command; name another output" in result.stderr
        assert table.read_bytes() == before


def test_lists_with_bad_cells_and_lyrics(songs: Path, model: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    rows = [{"audio": str(songs / "0.wav"), "reward": "own", "prompt": "half \ud83d"},
            {"audio": None}, {"prompt": "x"}]  # fmt: skip
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "f.jsonl"
    result = score(listed, "--model", model, "--mix", "overall", "--output", output)
    assert result.exit_code == 1
    first, second, third = lines(output)
    assert (first["input.reward"], first["prompt"], first["error"]) == ("own", "half \\ud83d", None)
    assert (
        second["error"] == third["error"] == ("'audio' holds nothing; expected the path of a song")
    )
    assert (second["path"], third["prompt"]) == (f"{listed}: row 2", "x")
    piped = score(listed, "--model", model, "--mix", "overall", "--workers", 0)
    assert piped.stdout == output.read_text()


def test_a_demonstration_model_says_so(songs: Path, tmp_path: Path) -> None:
    tiny_model(segment_seconds=0.25, demonstration=True).save_pretrained(tmp_path / "model")
    result = score(songs / "0.wav", "--model", tmp_path / "model")
    assert result.exit_code == 0
    assert DEMONSTRATION in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom apex_reward.cli import app\n"
        "try: app(['score', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert answer.returncode == 0
    assert b"--batch-segments" in answer.stdout


@pytest.mark.slow
def test_a_run_killed_by_sigkill_and_resumed_ends_with_the_same_bytes(
    model: str, tmp_path: Path
) -> None:
    for n in range(40):
        write_wav(tmp_path / "songs" / f"{n:02}.wav", 0.4 + 0.01 * n, seed=n)
    (tmp_path / "songs" / "20.wav").write_text("lyrics")

    def command(output: Path, *more: str) -> list[str]:
        given = ["score", str(tmp_path / "songs"), "--model", model, "--output", str(output)]
        return [*COMMAND, *given, "--segments", "--workers", "2", *more]

    subprocess.run(command(tmp_path / "whole" / "f.jsonl"), check=False, capture_output=True)
    output = tmp_path / "killed" / "f.jsonl"
    partial = output.with_name("f.jsonl.partial")
    process = subprocess.Popen(command(output), start_new_session=True)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = partial.read_bytes().count(b"\n")
    assert 20 <= left < 40
    assert not output.exists()
    resumed = subprocess.run(command(output, "--resume"), check=False, capture_output=True)
    assert resumed.returncode == 1  # the text
    names = {"f.jsonl", "f.jsonl.meta.json", "f.segments.jsonl"}
    for folder in ("whole", "killed"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == names
    for name in names:
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == expected


def test_a_mix_replaces_the_one_of_a_reward_file_and_says_so(
    songs: Path, model: str, tmp_path: Path
) -> None:
    from apex_reward import Reward

    file = tmp_path / "reward.yaml"
    Reward(model, mix="clarity=1", loudness=-18.0).save(file)
    result = score(songs / "1.wav", "-r", file, "--mix", "musicality=2", "-o", tmp_path / "f.jsonl")
    assert result.exit_code == 0, result.output
    assert f"--mix musicality=2 replaces the mix of {file}: clarity=1" in result.stderr
    (row,) = lines(tmp_path / "f.jsonl")
    (expected,) = Reward(model, mix="musicality=2", loudness=-18.0).judge([songs / "1.wav"])
    assert row["reward"] == pytest.approx(expected["reward"])
    result = score(songs / "1.wav", "--reward", file, "--loudness", "-20")
    assert result.exit_code == 2
    assert "leave out --loudness" in result.stderr


def test_a_model_without_a_clear_licence_is_refused_for_commercial_use(
    songs: Path, model: str
) -> None:
    result = score(songs / "1.wav", "-m", model, "--commercial")
    assert result.exit_code == 2
    assert "not clearly free for commercial use" in result.stderr
    assert score(songs / "1.wav", "-m", "apex-tiny", "--commercial").exit_code == 0


def test_help_names_every_model_and_every_kind() -> None:
    from apex_reward.rewards.load import KNOWN

    output = CliRunner().invoke(app, ["score", "--help"], env={"COLUMNS": "200"}).output
    text = output.partition("--model")[2].partition("--reward")[0]
    assert [name for name in KNOWN if name not in text] == []
    output = CliRunner().invoke(app, ["import", "--help"], env={"COLUMNS": "200"}).output
    for kind in ("apex", "songeval", "tunejury"):
        assert kind in output


def test_one_song_is_one_song(songs: Path, model: str, tmp_path: Path) -> None:
    result = score(songs / "text.mp3", "--model", model, "--output", tmp_path / "f.jsonl")
    assert result.exit_code == 1
    assert "1 song, 1 failed" in result.stdout
