"""GRPO on the toy language model of notes of `recipes/grpo_codec_lm.py`, watched by a gold reward.

Used by `overoptimisation.py`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from apex_reward import ApexReward
from apex_reward.runs.policy import Policy, PolicySettings

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # for its small generators
from toys.notes import SAMPLE_RATE

SONGS, EACH, SLOTS = 16, 8, 8  # songs a step, and of a prompt; notes of a song, 2 s
BLOCK = 4  # steps that a point is the mean of
# Songs (B, T), their lengths and embeddings (B, W) to gold, proxy and what is asked for, (3, B).
Judge = Callable[[Tensor, Tensor, Tensor], NDArray[np.float64]]


def grpo(
    model: ApexReward, policy: Policy, judge: Judge, steps: int, seed: int
) -> NDArray[np.float64]:
    """(gold, proxy and KL in nats a song; steps / BLOCK) means, as the recipe trains.

    Args:
        policy: where it starts from; it is left as it is.
    """
    set_seed(seed)
    values: list[NDArray[np.float64]] = []

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        heard = hear_songs(model, policy, completion_ids, judge)
        values.append(np.nanmean(heard[:2], axis=1))
        # A completion that is no song is as bad as the batch's worst, and in no mean.
        asked: list[float] = np.nan_to_num(heard[2], nan=np.nanmin(heard[2])).tolist()
        return asked

    with TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            copy.deepcopy(policy.model),
            reward_funcs=reward,
            args=GRPOConfig(
                folder, max_steps=steps, per_device_train_batch_size=SONGS, num_generations=EACH,
                max_completion_length=SLOTS, learning_rate=3e-3, warmup_steps=5, beta=0.02,
                lr_scheduler_type="constant_with_warmup", scale_rewards="batch", logging_steps=1,
                save_strategy="no", report_to="none", gradient_checkpointing=False, seed=seed,
                use_cpu=True, bf16=False, disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in policy.prompts]),
            processing_class=policy.tokenizer,
            peft_config=PolicySettings().lora(),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "kl" in row]
    kl = [row["kl"] * row["completions/mean_length"] for row in logged]
    columns = np.column_stack([np.array(values)[:steps], kl[:steps]])
    return columns.reshape(-1, BLOCK, 3).mean(axis=1).T


@torch.no_grad()
def hear_songs(
    model: ApexReward, policy: Policy, completion_ids: Sequence[Sequence[int]], judge: Judge
) -> NDArray[np.float64]:
    """(3, B) gold, proxy and what is asked for, of completions; NaN where there is no song."""
    songs = policy.decode(completion_ids)
    found = [i for i, song in enumerate(songs) if song is not None]
    waves = torch.nn.utils.rnn.pad_sequence([songs[i] for i in found], batch_first=True)
    lengths = torch.tensor([len(songs[i]) for i in found])
    values = np.full((3, len(songs)), np.nan)
    values[:, found] = judge(waves, lengths, model.embed(waves, SAMPLE_RATE, lengths))
    return values
