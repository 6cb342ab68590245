"""A thousand damaged files of fifteen formats: an answer for each, and no good one changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from apex_reward.audio.decoding import sound_facts
from tests.audio.odd_files import tone

COUNT = 1000
FORMATS = (
    *("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"),
    *("VOC", "IRCAM", "NIST", "PAF", "AVR"),
)


def damaged(data: bytes, rng: np.random.RandomState) -> bytes:
    """Cut, with bytes changed, with a hole, or with noise put in: one or two of these."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(max(1, len(changed)))
        kind = rng.randint(5)
        if kind == 0:
            del changed[at:]
        elif kind == 1:  # headers lie near the beginning
            head = rng.randint(0, 100)
            changed[head : head + 4] = rng.bytes(4)
        elif kind == 2:
            changed[at : at + 16] = rng.bytes(16)
        elif kind == 3:
            del changed[at : at + rng.randint(1, 500)]
        else:
            changed[at:at] = rng.bytes(rng.randint(1, 500))
    return bytes(changed)


def test_a_thousand_damaged_files_each_have_an_answer(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    good, bad = [], []
    for kind in FORMATS:
        path = tmp_path / f"good.{kind.lower()}"
        soundfile.write(path, tone(0.5), 24_000, format=kind)
        good.append(str(path))
    contents = [Path(path).read_bytes() for path in good]
    for number in range(COUNT):
        path = tmp_path / f"{number}.bad"
        path.write_bytes(damaged(contents[number % len(contents)], rng))
        bad.append(str(path))
    alone = [sound.facts for sound in sound_facts(good, 0)]
    assert all(facts is not None and facts.samples == 12_000 for facts in alone)
    step = COUNT // len(good)
    mixed = [
        path
        for n, one in enumerate(good)
        for path in (one, *bad[n * step : (n + 1) * step if n + 1 < len(good) else None])
    ]
    sounds = list(sound_facts(mixed, 2))
    assert [sound.path for sound in sounds] == mixed
    assert len(sounds) == COUNT + len(good)
    assert all((sound.facts is None) != (sound.error is None) for sound in sounds)
    assert [sound.facts for sound in sounds if sound.path in set(good)] == alone
    assert all(sound.facts.samples > 0 for sound in sounds if sound.facts)
