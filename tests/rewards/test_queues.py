"""Encoder queues: the size of a batch, and what is read while a GPU works."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from apex_reward.model.encode import Pieces
from apex_reward.rewards.engine import EncoderQueue, Stream
from apex_reward.rewards.songs import to_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Means(Pieces):
    """An encoder of two-sample pieces that gives their means."""

    name, sample_rate, batch_segments, window = "means", 8, 4, 2

    def encode(self, samples: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        return samples.mean(dim=1, keepdim=True)

    def fingerprint(self) -> str:
        return self.name


def missing_by_batch(device: torch.device) -> tuple[list[int], float]:
    """Pieces of a song that are without a feature after each batch of two, and its mean."""
    queue = EncoderQueue(Means(), device, 2)
    heard, counts = Stream(queue, 8), []
    for number in range(3):
        heard.cut(torch.arange(4.0) + 4 * number)
        queue.encode()
        counts.append(heard.missing)
    queue.encode(at_least=1)
    return [*counts, heard.missing], float(heard.mean)


def test_a_gpu_has_a_batch_in_work_while_the_one_before_is_read() -> None:
    assert missing_by_batch(CPU) == ([0, 0, 0, 0], 5.5)
    assert missing_by_batch(GPU) == ([2, 2, 2, 0], 5.5)


@pytest.mark.parametrize(
    ("gibibytes", "given", "expected"),
    [(79.1, None, 16), (141, None, 32), (15.7, None, 4), (79.1, 3, 3)],
)
def test_a_larger_gpu_takes_larger_batches_where_nobody_says(
    gibibytes: float, given: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=int(gibibytes * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert EncoderQueue(Means(), GPU, given).size == expected
    assert EncoderQueue(Means(), CPU, None).size == 4


@pytest.mark.parametrize(
    ("window", "given", "expected"),
    # At 8 Hz: 0.25 s, 10 s, 15 s, 30 s, 60 s; songs heard whole come alone, whatever is said.
    [(2, None, 4), (80, None, 3), (120, None, 2), (240, None, 1), (480, None, 1), (240, 3, 3),
     (None, None, 1), (None, 3, 1)],
)  # fmt: skip
def test_a_cpu_takes_half_a_minute_at_once_where_nobody_says(
    window: int | None, given: int | None, expected: int
) -> None:
    encoder = Means()
    encoder.window = window
    assert EncoderQueue(encoder, CPU, given).size == expected


def test_samples_reach_a_gpu_through_pinned_memory() -> None:
    samples = Mock(is_cuda=False)
    assert to_device(samples, GPU) is samples.pin_memory().to.return_value
    samples.pin_memory().to.assert_called_once_with(GPU, non_blocking=True)
    # What is there already, or stays on the CPU, is not pinned.
    there = Mock(is_cuda=True)
    assert to_device(there, GPU) is there.to.return_value
    there.pin_memory.assert_not_called()
    plain = torch.ones(3)
    assert to_device(plain, CPU) is plain
