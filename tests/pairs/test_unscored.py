"""Candidates without scores: which columns are wanted, and what is filled in."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from apex_reward import Head, Reward, Scores
from apex_reward.audio import save_wav
from apex_reward.errors import UsageError
from apex_reward.pairs.unscored import score_unscored, wanted_columns
from tests.support import tiny_model

RATE = 8_000


class Peak:
    """Peaks, and how many letters the prompt has."""

    name = "peak"
    heads = (Head("peak", 0, 1), Head("letters", 0, 10))
    sample_rate = RATE
    differentiable = True

    def __init__(self, reads_text: bool = False) -> None:
        self.reads_text = reads_text

    def __call__(self, waveforms, sample_rate, lengths=None, prompts=None) -> Scores:
        letters = [len(text) for text in prompts or [""] * len(waveforms)]
        return Scores(
            {"peak": waveforms.abs().amax(dim=-1), "letters": torch.tensor(letters).float()},
            self.heads,
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Songs of half a second whose peaks are 0.25 and 0.5, and a file that is none."""
    for name, peak in (("quiet", 0.25), ("loud", 0.5)):
        wave = peak * torch.sin(torch.arange(RATE // 2) * torch.pi / 2)
        save_wav(tmp_path / f"{name}.wav", wave[None].numpy(), RATE)
    (tmp_path / "bad.wav").write_text("no audio")
    return tmp_path


def table(**columns: list[object]) -> pa.Table:
    return pa.table(columns)


def test_gaps_are_filled_and_what_is_given_stays(folder: Path) -> None:
    given = table(
        audio=["loud.wav", "quiet.wav", "bad.wav", "loud.wav", None],
        peak=[None, 0.875, None, None, None],
        duration=[7.0, None, None, None, None],
        flags=["mine", None, None, None, None],
        note=["a", "b", "c", "d", "e"],
    )
    told: list[tuple[int, int]] = []
    found = score_unscored(
        given, ["peak"], Reward(Peak(), "peak=1"), folder, workers=0,
        on_row=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)], "each song once, none that has its score"
    assert found["note"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert found["peak"].to_pylist()[:2] == [pytest.approx(0.5, abs=1e-3), 0.875]
    assert found["peak"].to_pylist()[3] == found["peak"].to_pylist()[0]
    seconds = found["duration"].to_pylist()
    assert (seconds[0], seconds[3]) == (7.0, pytest.approx(0.5))
    errors = found["error"].to_pylist()
    assert "is not audio" in errors[2]
    assert [errors[i] for i in (0, 1, 3, 4)] == [None] * 4
    first, untouched, *_ = found["flags"].to_pylist()
    assert (first[0], untouched) == ("mine", [])
    assert "letters" not in found.column_names


@pytest.mark.parametrize("resume", [False, True])
def test_songs_are_judged_by_their_prompts_and_kept(folder: Path, resume: bool) -> None:
    given = table(audio=["loud.wav", "loud.wav"], prompt=["la", "lalala"])
    reward = Reward(Peak(reads_text=True), "letters=1")
    for axes, values in ((["letters"], [2.0, 6.0]), (["reward"], [0.2, 0.6])):
        found = score_unscored(
            given, axes, reward, folder, workers=0, kept=folder / f"{axes[0]}.jsonl", resume=resume
        )
        assert found[axes[0]].to_pylist() == pytest.approx(values)


def test_the_columns_that_are_wanted() -> None:
    given, reward = table(audio=["a"], own=[1.0]), Reward(Peak(), "peak=1")
    assert wanted_columns(given, ["letters", "own"], reward) == ["letters"]
    assert wanted_columns(given, ["reward", "peak"], reward) == ["peak", "reward"]
    assert wanted_columns(given, ["letters=1,own=2,peak=1"], reward) == ["peak", "letters"]
    for axes, message in (
        (["own"], "scores peak, letters, reward_raw, reward, but the axes read none of them"),
        (["peak=1,clarity=2"], "but the axis peak=1,clarity=2 reads clarity"),
    ):
        with pytest.raises(UsageError, match=message):
            wanted_columns(given, axes, reward)
    with pytest.raises(UsageError, match="--min-agreement needs an ensemble"):
        wanted_columns(given, ["peak"], reward, agreement=True)


def test_agreement_reads_the_members_of_the_first_axis() -> None:
    reward = Reward(tiny_model(members=2), "clarity=1")
    wanted = wanted_columns(table(audio=["a"]), ["musicality", "clarity"], reward, agreement=True)
    assert wanted == ["musicality", "clarity", "musicality_member0", "musicality_member1"]
