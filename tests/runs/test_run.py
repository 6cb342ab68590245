"""What a run leaves behind."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from apex_reward.files.tables import read_jsonl
from apex_reward.runs.log import RunLog, before_and_after


def test_before_and_after_by_hand() -> None:
    steps: list[list[float | None]] = [[0.0, 1.0, None], [1.0, 4.0], *[[9.0]] * 16, [5.0], [7.0]]
    result = before_and_after(steps)  # tenths of 20 steps are two steps
    assert result["reward_before"] == 1.5
    assert result["reward_std_before"] == pytest.approx(1.5)
    assert result["reward_after"] == 6.0
    assert before_and_after([[1.0], [2.0]])["reward_after"] == 2.0
    for unscored in ([[None], [1.0]], []):
        with pytest.raises(statistics.StatisticsError):
            before_and_after(unscored)


@pytest.mark.parametrize("demonstration", [True, False])
def test_a_run_is_written(tmp_path: Path, demonstration: bool) -> None:
    history = [{"step": i, "reward": i / 10, "rare": 1.0 if i == 3 else None} for i in range(5)]
    log = RunLog(tmp_path / "run", {"reward": ["reward", "rare"], "nothing": ["absent"]})
    for row in history:
        log.append(row)
    log.finish({"seed": 1, "demonstration": demonstration, "seconds": 2.5})
    assert read_jsonl(tmp_path / "run" / "history.jsonl") == history
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == {"seed": 1, "demonstration": demonstration, "seconds": 2.5}
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
