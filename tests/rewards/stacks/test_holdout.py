"""The stop rule: by hand, on curves that are gamed by construction or not, and in GRPOTrainer."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from apex_reward.errors import UsageError
from apex_reward.files.tables import read_jsonl
from apex_reward.rewards.stacks import holdout
from apex_reward.rewards.stacks.holdout import HoldoutCallback, StopRule, falling_p
from tests.rewards.stacks.test_trainers import policy, tokenizer

SEEDS = 200
STEPS = np.arange(40)
RISE = 1 - np.exp(-STEPS / 10)


def turned(trained: np.ndarray, held: np.ndarray) -> int | None:
    """The judgement at which the rule fires."""
    rule = StopRule()
    for step, (training, held_out) in enumerate(zip(trained, held, strict=True)):
        turn = rule.add(step, float(training), float(held_out))
        if turn is not None:
            return turn.step
    return None


def test_p_is_that_of_all_orders() -> None:
    values = [3.0, 1.0, 2.0, 0.5, 0.7]

    def rises(order: tuple[float, ...]) -> int:
        return sum(b > a for i, a in enumerate(order) for b in order[i + 1 :])

    every = [rises(order) for order in permutations(values)]
    expected = sum(count <= rises(tuple(values)) for count in every) / len(every)
    assert falling_p([9.0, *values])[-2] == pytest.approx(expected)
    assert falling_p([5, 4, 3, 2, 1]) == pytest.approx([1, 1 / 2, 1 / 6, 1 / 24, 1 / 120])
    assert falling_p([1, 1, 1])[-1] == pytest.approx(
        5 / 6
    )  # three ties: one and a half rises, so two
    assert falling_p([1, 2, 3, 4]) == pytest.approx(1.0)


def test_a_distribution_is_extended_by_one_value_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 judgements need 59 convolutions; from nothing each time they would need 1,770."""
    convolved = []
    monkeypatch.setattr(holdout, "_SHARES", np.ones(1), raising=False)
    monkeypatch.setattr(holdout, "_DISTRIBUTIONS", [np.ones(1)], raising=False)
    once = np.convolve
    monkeypatch.setattr(
        holdout.np, "convolve", lambda a, b: (convolved.append(len(b)), once(a, b))[1]
    )
    rule = StopRule()
    for step in range(60):
        rule.add(step, float(step), float(step % 7))
    assert convolved == list(range(2, 61))


def test_it_fires_where_the_proxy_is_gamed() -> None:
    gold = np.where(STEPS < 10, STEPS / 10, 1 - (STEPS - 10) / 15)
    found = []
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(0, [[0.05], [0.2]], (2, 40))
        found.append(turned(RISE + noise[0], gold + noise[1]))
    assert all(step is not None and step > 12 for step in found)
    assert np.median([step for step in found if step is not None]) < 26


@pytest.mark.parametrize(
    ("kind", "most"), [("rises", 0.01), ("stays", 0.03), ("both fall", 0.0), ("one step", 0.03)]
)
def test_it_stays_quiet_where_nothing_is_gamed(kind: str, most: float) -> None:
    alarms = 0
    for seed in range(SEEDS):
        noise = np.random.default_rng(seed).normal(0, [[0.05], [0.3]], (2, 40))
        trained, held = RISE + noise[0], noise[1]
        if kind == "rises":
            held = held + RISE
        if kind == "both fall":
            trained, held = -RISE + noise[0], -RISE + noise[1]
        if kind == "one step":
            held[25] -= 5
        alarms += turned(trained, held) is not None
    assert alarms <= most * SEEDS


def test_the_turn_says_where_and_how_far() -> None:
    rule = StopRule(shortest=4, alpha=0.05)
    held = [0.5, 0.9, 0.8, 0.6, 0.4, 0.2]
    turns = [rule.add(10 * i, float(i), value) for i, value in enumerate(held)]
    assert turns[:4] == [None] * 4
    assert turns[4] is None or turns[4].since >= 10
    turn = rule.turn
    assert turn is not None
    assert turn.fell < -0.3
    assert "the reward is being gamed; take a checkpoint from about step 10" in str(turn)
    assert [row["p_value"] is None for row in rule.rows] == [True] * 3 + [False] * 3
    with pytest.raises(UsageError, match="shortest is 2; expected at least 4"):
        StopRule(shortest=2)
    with pytest.raises(UsageError, match="every is 0"):
        HoldoutCallback(lambda model: 0.0, every=0)


def trained(
    folder: Path, held_out: list[float], **options: Any
) -> tuple[GRPOTrainer, HoldoutCallback]:
    """GRPO for up to six steps; its reward rises by construction, the held-out one is given."""
    given = iter(held_out)

    def rises(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        return [trainer_state.global_step + 0.1 * i for i in range(len(completions))]

    callback = HoldoutCallback(
        lambda model: next(given), 1, rule=StopRule(0.1, 4), output=folder, **options
    )
    torch.manual_seed(0)
    trainer = GRPOTrainer(
        policy(),
        reward_funcs=rises,
        args=GRPOConfig(
            output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, num_generations=4,
            max_completion_length=4, logging_steps=1, save_strategy="no", report_to=[],
            use_cpu=True, bf16=False, disable_tqdm=True, beta=0.0,
        ),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "sing"}, {"prompt": "play"}]),
    )  # fmt: skip
    callback.first_of(trainer)
    trainer.train()
    return trainer, callback


def test_a_real_trainer_warns_stops_and_logs(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="step 4: the held-out reward has fallen since step 1"):
        trainer, _ = trained(tmp_path, [0.9, 0.7, 0.5, 0.3, 0.2, 0.1], stop=True)
    assert trainer.state.global_step == 4
    logged = [row["holdout/reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == [0.9, 0.7, 0.5, 0.3]
    rows = read_jsonl(tmp_path / "holdout.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["p_value"] == pytest.approx(1 / 24)
    assert (tmp_path / "holdout.png").stat().st_size > 5_000
    again = HoldoutCallback(lambda model: 0.0, rule=StopRule(0.1, 4))
    again.on_train_begin(None, trainer.state, SimpleNamespace())
    assert [row["holdout"] for row in again.rule.rows] == logged


def test_a_real_trainer_goes_on_where_both_rise(tmp_path: Path) -> None:
    trainer, callback = trained(tmp_path, [0.1, 0.2, 0.15, 0.4, 0.5, 0.6], stop=True)
    assert trainer.state.global_step == 6
    assert callback.rule.turn is None
