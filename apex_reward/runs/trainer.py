"""What recipes over TRL's trainers share: quiet defaults, and a training that ends in time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PrinterCallback

from apex_reward.runs.interrupt import Interrupt, InterruptCallback, how_to_go_on


@dataclass
class QuietDefaults:
    """Defaults over a TRL configuration: `class Settings(QuietDefaults, GRPOConfig)`."""

    save_strategy: str = "no"
    report_to: str = "none"
    gradient_checkpointing: bool = False
    seed: int = 0
    use_cpu: bool = not torch.cuda.is_available()
    bf16: bool | None = torch.cuda.is_available()
    disable_tqdm: bool | None = not sys.stderr.isatty()


def train(trainer: Any) -> bool:
    """Train to the end, or to the step in which somebody asked for it; whether that was so.

    Goes on from `resume_from_checkpoint` of the trainer's arguments; its rows are not printed.
    """
    trainer.remove_callback(PrinterCallback)
    with Interrupt() as interrupt:
        stopping = InterruptCallback(interrupt)
        trainer.add_callback(stopping)
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if stopping.stopped and trainer.args.process_index == 0:
        print(how_to_go_on(trainer.args.output_dir))
    return stopping.stopped
