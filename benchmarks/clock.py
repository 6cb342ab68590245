"""Clocks of the benchmarks: a GPU has finished what it was given before they are read."""

from __future__ import annotations

import time

import torch


def clock(device: torch.device | str) -> float:
    """Seconds."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def work_clock(device: torch.device | str) -> float:
    """Processor seconds of this process, which other programs do not lengthen; GPU: seconds."""
    return clock(device) if torch.device(device).type == "cuda" else time.process_time()
