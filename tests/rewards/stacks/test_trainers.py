"""The reward function through real steps of TRL's GRPOTrainer and RLOOTrainer."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from apex_reward import ApexReward, ApexRewardFunction
from tests.support import golden_song, tiny_model

WORDS = ["<pad>", "<eos>", "sing", "play", *(f"t{i}" for i in range(8))]


def tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def policy() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


RATE = {"sample_rate": 24_000}


@pytest.fixture(scope="module")
def model() -> ApexReward:
    return tiny_model(3)


def play(ids: Sequence[int]) -> torch.Tensor | None:
    """A song by the first token; the two lowest ids are no sound."""
    return torch.tensor(golden_song(ids[0], 24_000, 1, 0.5)[0]) if ids and ids[0] > 1 else None


def train(
    folder: Path,
    reward: Callable[..., Any],
    trainer_class: Any = GRPOTrainer,
    config_class: Any = GRPOConfig,
    **settings: Any,
) -> tuple[dict[str, Any], torch.Tensor]:
    """One step; what was logged, and how far the policy moved."""
    config = config_class(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=4, learning_rate=1e-2, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, seed=0, beta=0.0,
        **settings,
    )  # fmt: skip
    start = policy()
    trainer = trainer_class(
        policy(), reward_funcs=reward, args=config, processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "sing"}, {"prompt": "play"}]),
    )  # fmt: skip
    trainer.train()
    moved = sum(
        (new.detach() - old.detach()).abs().sum()
        for new, old in zip(trainer.model.parameters(), start.parameters(), strict=True)
    )
    log = next(row for row in trainer.state.log_history if "reward" in row)
    return log, moved


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)]
)
def test_a_step_moves_the_policy_and_logs_heads_and_guards(
    model: ApexReward, tmp_path: Path, trainer_class: Any, config_class: Any
) -> None:
    function = ApexRewardFunction(
        model, decode=lambda completion_ids: map(play, completion_ids), **RATE
    )
    rewards: list[float | None] = []

    def kept(**kwargs: Any) -> list[float | None]:
        rewards.extend(function(**kwargs))
        return rewards

    kept.__name__ = function.__name__
    log, moved = train(tmp_path, kept, trainer_class, config_class)
    scored = [reward for reward in rewards if reward is not None]
    assert len(rewards) == 4
    assert log["reward"] == pytest.approx(sum(scored) / len(scored), abs=1e-5)
    assert log["rewards/apex/mean"] == pytest.approx(log["reward"])
    assert log["apex/undecodable"] == 1 - len(scored) / 4
    assert 1 <= log["apex/musicality"] <= 5
    assert log["apex/guard_duration"] == 1.0
    assert moved > 0


@pytest.mark.parametrize("undecodable", ["floor", None])
def test_a_batch_without_a_song_leaves_the_policy_alone(
    model: ApexReward, tmp_path: Path, undecodable: Any
) -> None:
    # Completions that end at once are one end token, which is no sound; nothing is scored.
    function = ApexRewardFunction(
        model, decode=lambda completion_ids: [None] * len(completion_ids), undecodable=undecodable
    )
    log, moved = train(tmp_path, function)
    floor = pytest.approx(function.judge.floor(), abs=1e-6) if undecodable else None
    assert log["reward"] == floor
    assert log["apex/undecodable"] == 1.0
    assert moved < 1e-3


def test_completions_that_end_at_once_are_no_songs(model: ApexReward, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def decode(completion_ids: list[list[int]]) -> list[torch.Tensor | None]:
        seen.extend(completion_ids)
        return [play(ids) for ids in completion_ids]

    only_the_end = {"suppress_tokens": [i for i, word in enumerate(WORDS) if word != "<eos>"]}
    log, moved = train(
        tmp_path, ApexRewardFunction(model, decode=decode, **RATE), generation_kwargs=only_the_end
    )
    assert len(seen) == 4
    assert all(ids in ([], [1]) for ids in seen)
    assert log["apex/undecodable"] == 1.0
    assert moved < 1e-3


def test_identical_completions_leave_the_policy_alone(model: ApexReward, tmp_path: Path) -> None:
    function = ApexRewardFunction(
        model, decode=lambda completion_ids: [play([5])] * len(completion_ids), **RATE
    )
    log, moved = train(tmp_path, function)
    assert log["reward_std"] == pytest.approx(0, abs=1e-6)
    assert log["apex/zero_variance_groups"] == 1.0
    assert moved < 1e-3


def test_one_scored_completion_among_undecodable_ones(model: ApexReward, tmp_path: Path) -> None:
    function = ApexRewardFunction(
        model,
        decode=lambda completion_ids: [play([5]), *[None] * (len(completion_ids) - 1)],
        undecodable=None,
        **RATE,
    )
    log, moved = train(tmp_path, function)
    expected = model.reward(play([5])[None], 24_000).item()
    assert log["reward"] == pytest.approx(expected, abs=1e-5)
    assert log["apex/undecodable"] == 0.75
    assert moved == 0


@pytest.mark.parametrize("beside", [False, True])
def test_the_asynchronous_form_gives_the_same_rewards(
    model: ApexReward, tmp_path: Path, beside: bool
) -> None:
    seen: list[tuple[list[str], list[str], list[list[int]]]] = []

    def decode(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]]
    ) -> list[torch.Tensor | None]:
        seen.append((prompts, completions, completion_ids))
        return [play(ids) if i else None for i, ids in enumerate(completion_ids)]

    async def nothing(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [0.0] * len(completions)

    function = ApexRewardFunction(model, "musicality=1,clarity=-1", decode=decode, **RATE)
    assert inspect.iscoroutinefunction(pickle.loads(pickle.dumps(function.asynchronous.__func__)))
    words = {"suppress_tokens": [0, 1, 2, 3]}
    functions = [function.asynchronous, nothing] if beside else function.asynchronous
    log, moved = train(tmp_path, functions, generation_kwargs=words)
    plain = function(*seen[0])
    assert plain[0] == pytest.approx(-1.02)  # -1, less 1% of the range 2
    assert log["rewards/asynchronous/mean"] == pytest.approx(sum(plain) / 4, abs=1e-5)
    assert log["apex/undecodable"] == 0.25
    assert moved > 0
