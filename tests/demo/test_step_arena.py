"""The tour's step: simulated votes whose answer is known."""

import json
import re

import numpy as np

from apex_reward.demo.step_arena import BATTLES, SLOPE, run, simulated_votes


def songs_and_scores(folder, count=10):
    values = np.random.default_rng(0).uniform(2, 4, count).tolist()
    songs = [folder / f"song{number}.wav" for number in range(count)]
    return songs, [{"musicality": value, "error": None} for value in values]


def test_the_known_answer_is_found_again(tmp_path):
    songs, scores = songs_and_scores(tmp_path)
    scores[3] = {"musicality": None, "error": "not audio"}
    text = run(tmp_path, songs, scores)
    metrics = json.loads((tmp_path / "arena" / "metrics.json").read_text())
    low, high = metrics["scores"]["musicality"]["overall"]["accuracy_ci95"]
    known = float(re.search(r"right on ([\d.]+)% of such votes", text)[1]) / 100
    assert low < known < high
    assert metrics["scores"]["musicality"]["overall"]["direction"] == "agrees"
    assert metrics["scores"]["coin"]["overall"]["direction"] == "undetermined"
    assert "musicality agrees with people" in text
    assert (tmp_path / "arena" / "report.html").exists()
    assert "song3.wav" not in (tmp_path / "arena" / "battles.csv").read_text()


def test_the_known_answer_is_the_mean_of_the_better_side_s_chance(tmp_path):
    songs, scores = songs_and_scores(tmp_path, count=2)
    rows, best = simulated_votes(songs, scores)
    assert len(rows) == BATTLES
    # two standardised values are 1 and -1: every battle has a difference of 2
    assert abs(best - 1 / (1 + np.exp(-2 * SLOPE))) < 1e-12
