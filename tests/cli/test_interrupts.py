"""Ctrl-C at random moments of every long command: nothing wrong written, and how to go on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.files.tables import write_table
from tests.cli.forked import start, wait
from tests.support import tiny_model
from tests.train.shards_builder import write_shards

INTERRUPTS, ATTEMPTS = 4, 24
SONGS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs, and the tables of them that the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    names = [f"song{i:02d}.wav" for i in range(SONGS)]
    for i, name in enumerate(names):
        samples = np.clip((0.02 + 0.01 * i) * rng.standard_normal((1, 120_000)), -1, 1)
        save_wav(folder / name, samples.astype(np.float32), 24_000)
    songs = [{"id": name, "path": name, "plays": i + 1, "likes": i} for i, name in enumerate(names)]
    write_table(folder / "meta.csv", songs)
    manifest = [
        {"audio_id": s["id"], "path": s["path"], "platform": "suno", "score_streams": 3.0 * i,
         "score_likes": 90.0 - i, "split": "train"}
        for i, s in enumerate(songs)
    ]  # fmt: skip
    write_table(folder / "manifest.jsonl", manifest)
    pairs = [(names[i], names[i + 1]) for i in range(0, SONGS, 2)]
    battles = [{"preference": "A", "audio_a": a, "audio_b": b} for a, b in pairs]
    write_table(folder / "battles.jsonl", battles)
    candidates = [{"prompt_id": str(i // 4), "audio": name} for i, name in enumerate(names)]
    write_table(folder / "candidates.jsonl", candidates)
    tiny_model().save_pretrained(folder / "model")
    splits = [{**row, "split": ("train", "train", "val", "test")[i % 4]}
              for i, row in enumerate(manifest)]  # fmt: skip
    write_table(folder / "splits.jsonl", splits)
    heard = ["extract", folder / "splits.jsonl", "--audio-dir", folder, "--workers", 0,
             "--encoder", folder / "model", "--output", folder / "heard"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in heard])
    assert done.exit_code == 0, done.output
    write_shards(folder / "shards", {"train": 128, "val": 32, "test": 32})
    return folder


def arguments(command: str, inputs: Path, output: Path) -> list[str]:
    """The command line of one long command, without --resume."""
    model = ["--model", str(inputs / "model")]
    training = ["--data", str(inputs / "shards"), "--output", str(output), "--batch-size", "32"]
    return {
        "score": ["score", str(inputs), *model, "--workers", "0", "--output", f"{output}/f.csv"],
        "arena score": ["arena", "score", str(inputs / "battles.jsonl"), "--audio-dir", str(inputs),
                        *model, "--workers", "0", "--output", f"{output}/f.csv"],
        "pairs": ["pairs", str(inputs / "candidates.jsonl"), *model, "--strategy", "best-worst",
                  "--axis", "musicality", "--output", str(output)],
        "prepare": ["prepare", str(inputs / "meta.csv"), "--audio-dir", str(inputs),
                    "--output", str(output)],
        "extract": ["extract", str(inputs / "manifest.jsonl"), "--audio-dir", str(inputs),
                    "--encoder", str(inputs / "model"), "--workers", "0", "--output", str(output)],
        "train": ["train", *training, "--epochs", "40", "--loss", "standardized"],
        "train --members": ["train", *training, "--epochs", "20", "--members", "2"],
        "tune": ["train", "--data", str(inputs / "heard"), "--audio-dir", str(inputs),
                 "--tune-encoder", "lora", "--output", str(output), "--epochs", "3",
                 "--batch-size", "8", "--loss", "standardized", "--task", "popularity"],
        "grid": ["grid", *training, "--epochs", "2", "--losses", "standardized"],
    }[command]  # fmt: skip


def written(output: Path) -> dict[str, bytes]:
    """What a finished run leaves, without pictures and pages that hold a date or a time."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.suffix in {".csv", ".jsonl", ".parquet", ".safetensors", ".md"}
        and not any(part.startswith(".") for part in path.relative_to(output).parts)
    }


COMMANDS = (
    "score",
    "arena score",
    "pairs",
    "prepare",
    "extract",
    "train",
    "train --members",
    "tune",
    "grid",
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupts_lose_nothing_and_say_how_to_go_on(
    command: str, inputs: Path, tmp_path: Path, random_moment: Callable[[float], float]
) -> None:
    torch.set_num_threads(1)
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    began = time.perf_counter()
    assert wait(start(arguments(command, inputs, whole), log)) == 0, log.read_text()
    seconds = time.perf_counter() - began
    # prepare begins anew.
    words = [*arguments(command, inputs, broken), *["--resume"] * (command != "prepare")]
    stopped = 0
    for attempt in range(ATTEMPTS):
        if attempt >= INTERRUPTS and stopped:
            break
        child = start(words, log)
        time.sleep(random_moment(seconds))
        os.kill(child, signal.SIGINT)
        code, said = wait(child), log.read_text()
        assert code in (0, 130), (code, said)
        if said:  # nothing is said before the command has read its options
            stopped += code == 130
            assert code == 0 or "interrupted" in said, said
            assert "Traceback" not in said
        if said and list(broken.rglob("*.partial")):
            assert code == 0 or "--resume" in said or "nothing new" in said, said
    assert wait(start(words, log)) == 0, log.read_text()
    assert written(broken) == written(whole)
    assert stopped, "every run ended before the interrupt came; make it longer"


@pytest.fixture
def random_moment() -> Callable[[float], float]:
    """A moment in the first part of a run: what was kept makes the next one shorter."""
    chance = random.Random(0)
    return lambda seconds: chance.uniform(0.0, seconds / 2)
