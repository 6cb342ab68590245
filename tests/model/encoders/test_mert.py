"""MERT over whole songs against its last hidden state, one song at a time."""

from __future__ import annotations

import torch
from transformers import HubertConfig

from apex_reward.model.encoders.mert import MertSongs, whole_song_mert
from tests.support import TINY_ENCODER


def songs_encoder(seed: int, **changes: object) -> MertSongs:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MertSongs(whole_song_mert(HubertConfig(**{**TINY_ENCODER, **changes})).eval())


def test_a_song_is_one_piece_of_its_own_length() -> None:
    encoder = songs_encoder(0)
    assert (encoder.sample_rate, encoder.window) == (24_000, None)
    for length, size in ((1000, 1000), (400, 400), (399, 400), (1, 400)):
        song = torch.arange(1, 1001.0)[None, :length] / 1000
        pieces = encoder.cut(song, [length])
        assert pieces.samples.shape == (1, size)
        assert torch.equal(pieces.samples[:, :length], song)
        assert (pieces.samples[:, length:] == 0).all()


def test_features_are_the_means_of_the_last_layer() -> None:
    encoder = songs_encoder(0)
    assert encoder.encoder.kept_layers == (TINY_ENCODER["num_hidden_layers"],)
    samples = torch.sin(torch.arange(4000.0) / 7)[None]
    with torch.no_grad():
        found = encoder.encode(samples)
        expected = encoder.encoder(samples)[:, -1]
    assert found.shape == (1, TINY_ENCODER["hidden_size"])
    assert torch.equal(found, expected)


def test_equal_weights_and_settings_have_equal_fingerprints() -> None:
    first, same, other = songs_encoder(0), songs_encoder(0), songs_encoder(1)
    assert first.fingerprint() == same.fingerprint()
    assert len({first.fingerprint(), other.fingerprint()}) == 2
    same.encoder.load_state_dict(other.encoder.state_dict())
    assert same.fingerprint() == other.fingerprint()
    dropping = songs_encoder(0, layer_norm_eps=1e-3)
    assert dropping.fingerprint() != first.fingerprint()
    assert len(list(first.parameters())) == len(list(first.encoder.parameters()))
