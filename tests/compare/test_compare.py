"""Songs before and after a fine-tune: what changed, and how often nothing is called a change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apex_reward.audio import save_wav
from apex_reward.cli import app
from apex_reward.compare.figures import compare_songs, paired_p_value
from apex_reward.compare.songs import Song, judges, measure_songs, prompt_name
from apex_reward.demo.songs import make_song
from apex_reward.errors import DataError
from apex_reward.rewards.distance import frechet_distance, kernel_distance
from apex_reward.rewards.reward import Reward
from apex_reward.scoring.inputs import Input
from tests.support import tiny_model

RATE, SECONDS, PROMPTS = 24_000, 3.0, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs of each prompt by one generator."""
    made = tmp_path_factory.mktemp("songs")
    for number in range(2 * PROMPTS):
        song = make_song(number, SECONDS, RATE)
        (made / "base" / "deep").mkdir(parents=True, exist_ok=True)
        save_wav(made / "base" / "deep" / f"tune {number // 2:02d}_{number % 2}.wav", song, RATE)
    return made


@pytest.fixture(scope="module")
def songs(folder: Path) -> list[Song]:
    kinds = judges(Reward(tiny_model(0), mix="musicality=1"))
    found, failed = measure_songs(str(folder / "base"), kinds, rewarded=True)
    assert failed == []
    return found


def claims(metrics: dict[str, Any]) -> dict[str, str]:
    entries = {"reward": metrics["reward"]} if metrics["reward"] else {}
    for kind in ("heads", "holdout", "rulers", "guards"):
        entries |= {f"{kind}.{name}": entry for name, entry in metrics[kind].items()}
    return {n: e["claim"] for n, e in entries.items() if e["claim"] != "undetermined"}


def halves(songs: list[Song], draws: int) -> Iterator[tuple[list[Song], list[Song]]]:
    """The two songs of each prompt, dealt to two sides at random."""
    prompts = [songs[i : i + 2] for i in range(0, len(songs), 2)]
    for seed in range(draws):
        coins = np.random.default_rng(seed).integers(0, 2, len(prompts))
        yield tuple(
            [pair[(coin + side) % 2] for pair, coin in zip(prompts, coins, strict=True)]
            for side in (0, 1)
        )


def test_songs_have_all_figures_and_their_prompts(songs: list[Song]) -> None:
    assert [song.prompt for song in songs[:3]] == ["deep/tune 00", "deep/tune 00", "deep/tune 01"]
    kinds = {kind for kind, _ in songs[0].values}
    assert kinds == {"reward", "heads", "rulers", "guards"}
    assert songs[0].values["rulers", "length"] == SECONDS
    assert songs[0].values["guards", "duration"] == 1.0  # 3 s is too short
    assert songs[0].values["guards", "clipping"] == 0.0


def test_random_halves_of_one_generator_rarely_claim_a_change(songs: list[Song]) -> None:
    claimed = [claims(compare_songs(*two, rounds=200)) for two in halves(songs, 100)]
    assert sum(map(bool, claimed)) <= 10, claimed
    words = [compare_songs(*two, rounds=200)["verdict"] for two in halves(songs, 3)]
    assert all("no change of the reward is certain" in text for text in words)


def shifted(songs: list[Song], changes: dict[tuple[str, str], float]) -> list[Song]:
    return [
        Song(s.path, s.prompt, {n: v + changes.get(n, 0.0) for n, v in s.values.items()}, s.vector)
        for s in songs
    ]


def test_a_shift_is_found_and_said(songs: list[Song]) -> None:
    before, after = next(halves(songs, 1))
    names = ("reward", ""), ("rulers", "loudness")
    spread = {name: float(np.std([song.values[name] for song in before])) for name in names}
    moved = shifted(after, {n: 3 * s for n, s in spread.items()} | {("guards", "dc"): 1.0})
    metrics = compare_songs(before, moved)
    found = claims(metrics)
    assert found["reward"] == found["rulers.loudness"] == found["guards.dc"] == "rose"
    low, high = metrics["reward"]["ci95"]
    assert 0 < low < metrics["reward"]["difference"] < high
    size = re.search(r"the reward rose by ([\d.]+) deviations", metrics["verdict"])
    assert size is not None
    assert float(size[1]) == pytest.approx(3, abs=1)
    assert "dB louder" in metrics["verdict"]
    assert "Guards that trip on more songs: dc." in metrics["verdict"]
    assert compare_songs(before[::-1], moved[::-1]) == metrics
    back = compare_songs(moved, before)
    assert back["reward"]["claim"] == "fell"
    assert back["reward"]["difference"] == pytest.approx(-metrics["reward"]["difference"])


def test_means_are_over_prompts_and_need_four_of_them() -> None:
    def song(prompt: str, value: float, *vector: float) -> Song:
        return Song(
            f"{prompt}{value}",
            prompt,
            {("heads", "x"): value},
            torch.tensor(vector, dtype=torch.float32),
        )

    before = [song("a", 1.0, 0, 0), song("a", 3.0, 0, 1), song("b", 10.0, 5, 0), song("c", 0, 9, 9)]
    after = [song("a", 4.0, 0, 0), song("a", 4.0, 0, 0), song("b", 12.0, 5, 0), song("d", 0, 1, 1)]
    metrics = compare_songs(before, after)
    assert (metrics["n_prompts"], metrics["n_songs"]) == (2, {"before": 3, "after": 3})
    assert metrics["reward"] is None
    assert metrics["heads"]["x"] == {
        "before": 6.0, "after": 8.0, "difference": 2.0, "ci95": [2.0, 2.0], "p_value": 0.5,
        "claim": "undetermined",
    }  # fmt: skip
    within = metrics["diversity"]["within"]
    assert within["before"] > within["after"] == pytest.approx(1.0)
    assert "distances" not in metrics
    with pytest.raises(DataError, match="prompts before: a, b, c; after: d"):
        compare_songs(before, after[3:])


def test_the_test_is_a_paired_t_test() -> None:
    # Mean 2, deviation 1, so t = 2 sqrt 3 with 2 degrees of freedom.
    t = 2 * 3**0.5
    expected = 1 - t / math.sqrt(t**2 + 2)
    assert paired_p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(expected)
    assert math.isnan(paired_p_value(np.array([1.0])))
    assert paired_p_value(np.ones(5)) == 2**-4  # all five signs alike, by either sign
    assert paired_p_value(np.zeros(5)) == 1.0


def test_a_list_has_its_prompts_in_a_column() -> None:
    assert prompt_name(Input("made/x_1.wav", {"prompt": " a song "}), "list.jsonl") == "a song"
    assert prompt_name(Input("made/x_12.wav", {"prompt": None}), "list.jsonl") == "x"


@pytest.mark.slow
def test_the_command_writes_figures_and_a_page(folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        song = make_song(number, SECONDS, RATE)
        for side, gain in (("before", 0.25), ("after", 1.0)):
            (tmp_path / side).mkdir(exist_ok=True)
            save_wav(tmp_path / side / f"{number}_0.wav", gain * song, RATE)
    (tmp_path / "after" / "4_0.wav").write_text("no audio")
    output = tmp_path / "out"
    given = ["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--model", "apex-tiny"]
    given += ["--mix", "aesthetics", "--holdout", "apex-tiny", "--workers", "0"]
    given += ["--reference", str(tmp_path / "before"), "--output", str(output)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1, result.output
    assert "4_0.wav: " in result.output
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["n_prompts"] == 4
    assert metrics["failed"] == 1
    assert metrics["rulers"]["loudness"]["claim"] == "rose"
    assert metrics["rulers"]["loudness"]["difference"] == pytest.approx(12.04, abs=0.01)
    assert "12 dB louder" in metrics["verdict"]
    assert metrics["holdout"]["apex.clarity"]["before"] == metrics["heads"]["clarity"]["before"]
    assert set(metrics["distances"]) == {"frechet", "kernel"}
    assert 0 < metrics["distances"]["frechet"]["before"] < 1  # four of the five reference songs
    page = (output / "report.html").read_text()
    assert page.count("<audio") == 8
    assert metrics["verdict"].split(".")[0] in page


def test_distances_are_those_of_the_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        [Song(f"{i}", f"{i}", {("heads", "x"): float(i)}, torch.randn(3, generator=generator))
         for i in range(6)]
        for _ in range(2)
    ]  # fmt: skip
    reference = torch.randn(8, 3, generator=generator)
    metrics = compare_songs(*sides, reference)
    for side, name in zip(sides, ("before", "after"), strict=True):
        vectors = torch.stack([song.vector for song in side if song.vector is not None])
        distances = metrics["distances"]
        assert distances["frechet"][name] == pytest.approx(frechet_distance(vectors, reference))
        assert distances["kernel"][name] == pytest.approx(kernel_distance(vectors, reference))


@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_the_interval_of_few_prompts_holds_the_truth(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    inside = 0
    for _ in range(200):
        sides = [
            [Song(f"{n}", f"{n}", {("heads", "x"): float(v)}) for n, v in enumerate(values)]
            for values in (np.zeros(prompts), rng.normal(1.0, 1.0, prompts))
        ]
        low, high = compare_songs(*sides, rounds=200)["heads"]["x"]["ci95"]
        inside += low <= 1.0 <= high
    assert inside >= 178  # 190 expected


def test_prompts_that_differ_in_case_and_spaces_are_one() -> None:
    before = [Song("a", "Calm  piano", {("heads", "x"): 1.0})]
    after = [
        Song("b", "calm piano ", {("heads", "x"): 2.0}),
        Song("c", "Calm piano", {("heads", "x"): 4.0}),
    ]
    metrics = compare_songs(before, after)
    assert metrics["n_prompts"] == 1
    assert metrics["heads"]["x"]["after"] == 3.0
