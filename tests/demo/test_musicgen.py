"""The small MusicGen's codec adds up notes; its training songs say what their style says."""

from __future__ import annotations

import random

import pytest
import torch

from apex_reward.demo import musicgen
from apex_reward.errors import UsageError


def test_the_codec_adds_up_the_notes_of_its_codes() -> None:
    codec = musicgen.note_codec()
    codes = torch.randint(musicgen.CODES, (2, 4, 3), generator=torch.Generator().manual_seed(0))
    found = codec.decode(codes[None], [None]).audio_values[:, 0]
    expected = torch.zeros(2, 4 * musicgen.HOP)
    for song, book, frame in torch.cartesian_prod(*map(torch.arange, codes.shape)).tolist():
        note = musicgen._note(int(codes[song, book, frame]))
        expected[song, frame * musicgen.HOP : (frame + 2) * musicgen.HOP] += note
    torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-5, rtol=0)
    assert found.shape[1] == 3 * musicgen.HOP
    assert float(found.abs().max()) > 0.1


def test_styles_are_heard_in_the_codes() -> None:
    rng = random.Random(0)
    songs = {style: torch.stack([musicgen.random_codes(style, rng) for _ in range(20)])
             for style in musicgen.STYLES}  # fmt: skip
    rests = {style: float((codes == 0).float().mean()) for style, codes in songs.items()}
    assert rests["low calm"] > rests["low lively"] + 0.2
    pitch = {style: float(((codes[codes > 0] - 1) % 5).float().mean())
             for style, codes in songs.items()}  # fmt: skip
    assert pitch["high calm"] == pytest.approx(pitch["low calm"] + 2, abs=0.2)
    with pytest.raises(UsageError, match="'jazz' is no style; expected one of low calm"):
        musicgen.random_codes("jazz", rng)
