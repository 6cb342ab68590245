"""A tiny model and songs of many lengths, rates and channel counts for the scoring tests."""

from __future__ import annotations

import pytest

from apex_reward.model import ApexReward
from tests.support import SEGMENT, tiny_model, write_wav


@pytest.fixture(scope="session")
def model() -> ApexReward:
    """Segments of a quarter of a second, four to a batch."""
    return tiny_model(segment_seconds=SEGMENT)


@pytest.fixture(scope="session")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Seven songs of 0.3 to 4.5 segments with a file that is none among them."""
    folder = tmp_path_factory.mktemp("songs")
    rates = (24_000, 44_100, 48_000, 16_000)
    paths = [
        write_wav(
            folder / f"{n}.wav", SEGMENT * (0.3 + 0.7 * n), rates[n % 4], seed=n, channels=1 + n % 3
        )
        for n in range(7)
    ]
    texts = [str(path) for path in paths]
    (folder / "bad.wav").write_text("not audio")
    return [*texts[:2], str(folder / "bad.wav"), *texts[2:]]
