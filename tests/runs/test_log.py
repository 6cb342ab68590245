"""What a run leaves while it goes, when it ends, and when it goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apex_reward.audio import Waveform, load_audio
from apex_reward.files.tables import read_jsonl
from apex_reward.runs.interrupt import Interrupt, InterruptCallback, how_to_go_on
from apex_reward.runs.log import RunLog
from tests.recipes.support import recipe_module

PANELS = {"reward": ["reward"]}


def test_rows_are_there_before_the_end_and_none_is_left_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path, PANELS, formats=("png", "svg"))
    log.append({"step": 1, "reward": 0.5, "held_out": None})
    assert read_jsonl(tmp_path / "history.jsonl.partial") == [{"step": 1, "reward": 0.5}]
    summary = log.finish({"reward_after": float("nan"), "settings": {"seed": 1}})
    assert summary["reward_after"] is None
    assert summary["seconds"] >= 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert read_jsonl(tmp_path / "history.jsonl") == [{"step": 1, "reward": 0.5}]
    assert not (tmp_path / "history.jsonl.partial").exists()
    assert {path.name for path in tmp_path.glob("curves.*")} == {"curves.png", "curves.svg"}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_goes_on_writes_the_later_rows_again(tmp_path: Path, finished: bool) -> None:
    log = RunLog(tmp_path, PANELS)
    for step in (1, 2, 3):
        log.append({"step": step, "reward": step / 10})
    if finished:
        log.finish({})
    again = RunLog(tmp_path, PANELS, resume=True)
    callback = recipe_module("grpo_codec_lm").HistoryCallback(again)
    state = SimpleNamespace(global_step=2)
    callback.on_train_begin(None, state, None)
    assert [row["step"] for row in again.rows] == [1, 2]
    state.global_step = 3
    callback.on_log(None, state, None, logs={"reward": 0.9, "kl": 0.1})
    callback.on_log(None, state, None, logs={"train_runtime": 1.0})
    assert again.rows[-1] == {"step": 3, "reward": 0.9, "kl": 0.1}
    assert read_jsonl(tmp_path / "history.jsonl.partial") == again.rows
    assert RunLog(tmp_path, PANELS).rows == []


def test_songs_are_heard_as_they_were(tmp_path: Path) -> None:
    log = RunLog(tmp_path, PANELS)
    wave = 0.5 * torch.sin(torch.arange(800) / 9)
    log.song("a", wave, 8_000)
    log.song("b", Waveform(wave.numpy()[None], 16_000), 8_000)
    log.song("none", None, 8_000)
    songs = {path.stem: load_audio(path) for path in (tmp_path / "audio").iterdir()}
    assert {name: song.sample_rate for name, song in songs.items()} == {"a": 8_000, "b": 16_000}
    assert np.abs(songs["a"].samples[0] - wave.numpy()).max() < 1e-3


def test_a_process_that_does_not_write_leaves_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "none", PANELS, writes=False)
    log.append({"step": 1, "reward": 1.0})
    log.song("a", torch.zeros(8), 8_000)
    log.finish({})
    assert not (tmp_path / "none").exists()


def test_the_first_ctrl_c_asks_and_the_second_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        callback = InterruptCallback(interrupt)
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_step_end(None, None, control)
        assert not control.should_save
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked()
        callback.on_step_end(None, None, control)
        assert callback.stopped
        assert control.should_save
        assert control.should_training_stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert "ending after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_how_to_go_on_names_the_last_checkpoint(tmp_path: Path) -> None:
    assert "without a checkpoint" in how_to_go_on(str(tmp_path))
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert how_to_go_on(str(tmp_path)).endswith(
        f"--resume_from_checkpoint {tmp_path}/checkpoint-10"
    )
