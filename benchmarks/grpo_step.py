"""What a reward and its student cost in a step of GRPO, beside drawing and the policy's update.

    python benchmarks/grpo_step.py [--steps 6] [--device cuda] [--output FILE.md]

TRL's GRPOTrainer on the toy of `recipes/grpo_codec_lm.py` at that recipe's sizes; medians over the
steps but the first. `judging` is everything between a decoded song and its reward. All models have
segments as long as a song. The weights of the published size and of its student are random.
Seconds are processor time on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from clock import work_clock
from datasets import Dataset
from result_file import write_result
from student import student
from transformers import PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from apex_reward import ApexConfig, ApexReward, ApexRewardFunction, Reward, load_reward_model
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.guards import Guards
from apex_reward.runs.policy import Policy, PolicySettings

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # for its small generators
from toys.notes import SLOTS, SONG_SECONDS, note_policy

SONGS, EACH, LOUDNESS = 32, 8, -16.0
COLUMNS = ("reward", "drawing songs, s", "decoding, s", "judging, s", "update, s", "whole step, s",
           "judging's share")  # fmt: skip
Seconds = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    policy = note_policy(seed=0, device=options.device)
    rows = []
    for name, reward in rewards(options.device).items():
        parts = {part: statistics.median(taken[1:]) for part, taken in
                 run(policy, reward, options.steps, options.device).items()}  # fmt: skip
        step, decoding, scoring = parts["step"], parts["decode"], parts["reward"]
        drawing, judging = parts["draw"], scoring - decoding
        update = step - drawing - scoring
        times = (drawing, decoding, judging, update, step)
        rows.append((name, *(f"{taken:.3f}" for taken in times), f"{judging / step:.0%}"))
        print(rows[-1], flush=True)
    what = "processor time" if options.device == "cpu" else "time"
    text = f"{SONGS} songs of {SONG_SECONDS:g} s a step, on {options.device}; seconds are {what}."
    write_result("A GRPO step", f"{text}\n\n{markdown_table(COLUMNS, rows)}", options.output)


def rewards(device: str) -> dict[str, Reward]:
    """From a small model alone to everything at once, a model of the published size, students."""
    tiny, fast = (
        load_reward_model(name, device=device, segment_seconds=SONG_SECONDS)
        for name in ("apex-tiny", "apex-tiny-fast")
    )
    torch.manual_seed(0)
    published = ApexReward(ApexConfig(segment_seconds=SONG_SECONDS)).to(device)
    half = copy.deepcopy(published).bfloat16()
    plain: dict[str, Any] = {"mix": "aesthetics", "guards": None}
    whole = {**plain, "loudness": LOUDNESS, "guards": Guards.default("penalty", 0.3)}
    return {
        "apex-tiny": Reward(tiny, **plain),
        "apex-tiny, loudness, guards": Reward(tiny, **whole),
        "apex-tiny-fast": Reward(fast, **plain),
        "published size": Reward(published, **plain),
        "published size, loudness, guards": Reward(published, **whole),
        "published size, bfloat16": Reward(half, **plain),
        "its student of the size base": Reward(student("base", SONG_SECONDS).to(device), **plain),
    }


def run(policy: Policy, reward: Reward, steps: int, device: str) -> Seconds:
    """Seconds of each part of every step."""
    set_seed(0)
    taken: Seconds = defaultdict(list)
    function = ApexRewardFunction(reward, decode=policy.decode)
    function.decode = timed(policy.decode, "decode", taken, device)
    with TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            copy.deepcopy(policy.model),
            reward_funcs=function,
            args=GRPOConfig(
                folder, max_steps=steps, per_device_train_batch_size=SONGS, num_generations=EACH,
                max_completion_length=SLOTS, learning_rate=3e-3, beta=0.02, save_strategy="no",
                report_to="none", gradient_checkpointing=False, use_cpu=device == "cpu",
                bf16=False, disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in policy.prompts]),
            processing_class=policy.tokenizer,
            peft_config=PolicySettings().lora(),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        for method, part in (
            ("_generate", "draw"), ("_calculate_rewards", "reward"), ("training_step", "step"),
        ):  # fmt: skip
            setattr(trainer, method, timed(getattr(trainer, method), part, taken, device))
        trainer.train()
    return taken


def timed(call: Callable[..., Any], part: str, taken: Seconds, device: str) -> Callable[..., Any]:
    """`call`, which leaves its seconds."""

    @functools.wraps(call)
    def measured(*arguments: Any, **options: Any) -> Any:
        started = work_clock(device)
        found = call(*arguments, **options)
        taken[part].append(work_clock(device) - started)
        return found

    return measured


if __name__ == "__main__":
    main()
