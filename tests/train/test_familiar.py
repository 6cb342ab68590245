"""Familiar songs and others: worked distances, the share of held-out songs, what stands out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_reward.model.predictor import Familiarity
from apex_reward.train.report import fit_familiarity
from tests.support import tiny_model


def test_distance_by_hand() -> None:
    """Standard deviations 2 and 1, threshold 2: (4, 0) is 2 away, (3, 4) the root of 18.25."""
    familiar = Familiarity(2)
    familiar.whitening.copy_(torch.diag(torch.tensor([0.5, 1.0])))
    familiar.threshold.fill_(2.0)
    found = familiar(torch.tensor([[4.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([1.0, 18.25**0.5 / 2, 0.0]))


def test_one_in_a_hundred_held_out_songs_is_unfamiliar() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 24))
    songs = rng.standard_normal((6000, 24)) @ mixing
    familiar = fit_familiarity(songs[:1000].astype(np.float32))
    assert familiar is not None
    distances = familiar(torch.from_numpy(songs[1000:]).float())
    share = (distances > 1).float().mean().item()
    assert 0.004 < share < 0.02
    # The same lengths in other directions: far where training songs hardly vary.
    others = songs[1000:] @ np.linalg.inv(mixing) @ rng.standard_normal((24, 24))
    assert (familiar(torch.from_numpy(others).float()) > 1).float().mean() > 0.9


def test_of_few_songs_the_second_furthest_counts() -> None:
    """Of 100 songs two in 101 are expected beyond it, whatever one odd song among them is like."""
    shares = []
    for seed in range(20):
        songs = np.random.default_rng(seed).standard_normal((1100, 8)).astype(np.float32)
        familiar = fit_familiarity(songs[:100])
        assert familiar is not None
        shares.append((familiar(torch.from_numpy(songs[100:])) > 1).float().mean().item())
    assert 0.012 < np.mean(shares) < 0.028
    songs[7] *= 10  # one odd song: others as far away are unfamiliar still
    odd = fit_familiarity(songs[:100])
    assert odd is not None
    assert odd(torch.from_numpy(songs[7:8])).item() > 1.5


def test_whitening_inverts_the_covariance() -> None:
    """Up to the shrinkage, which draws the smallest variance up by a twentieth."""
    rng = np.random.default_rng(1)
    songs = (rng.standard_normal((20_000, 3)) * [1.0, 3.0, 0.1]).astype(np.float32)
    familiar = fit_familiarity(songs)
    assert familiar is not None
    inverse = familiar.whitening @ familiar.whitening.T
    expected = torch.tensor([1.0, 1 / 9, 100.0])
    torch.testing.assert_close(inverse.diagonal(), expected, rtol=0.08, atol=0)


def test_too_few_or_equal_songs_have_no_statistics() -> None:
    assert fit_familiarity(np.random.default_rng(0).standard_normal((99, 4))) is None
    assert fit_familiarity(np.ones((200, 4))) is None


def test_a_model_says_how_far_and_keeps_float32(tmp_path) -> None:
    model = tiny_model(familiar=True, members=2)
    model.familiar.threshold.fill_(4.0)
    embeddings = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = embeddings.norm(dim=1) / 4
    torch.testing.assert_close(model.unfamiliarity(embeddings), expected)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert half.familiar.whitening.dtype == torch.float32
    torch.testing.assert_close(half.unfamiliarity(embeddings), expected)
    scores, again = (m.score_embeddings(embeddings) for m in (model, half))
    assert again.members.shape == (2, 5, 7)
    assert torch.equal(again.members, scores.members)
    torch.testing.assert_close(again.std.clarity, again.members[:, :, 5].std(0, correction=0))
    assert tiny_model().unfamiliarity(embeddings) is None
    assert model.score_embeddings(embeddings[:0]).members.shape == (2, 0, 7)


@pytest.mark.parametrize("tail", ["pad", "mask", "drop"])
def test_training_hears_what_the_model_hears(tail: str, tmp_path) -> None:
    """Songs of 1.2, 2.9 and 7.1 segments: stored song means are the model's embeddings."""
    import pyarrow.parquet as pq

    from apex_reward.audio import load_audio
    from apex_reward.data.extract import ExtractSettings, ManifestSong, extract
    from apex_reward.train.shards import load_data
    from tests.support import write_wav

    model = tiny_model(segment_tail=tail)
    model.save_pretrained(tmp_path / "encoder")
    songs = []
    for i, seconds in enumerate((1.2, 2.9, 7.1)):
        write_wav(tmp_path / f"{i}.wav", seconds, seed=i)
        labels = {"score_streams": 10.0, "score_likes": 20.0}
        songs.append(ManifestSong(f"s{i}", f"{i}.wav", "test", labels))
    extract(songs, ExtractSettings(tmp_path, str(tmp_path / "encoder")), tmp_path / "data")
    weights = pq.read_table(tmp_path / "data" / "test")["segment_weight"].to_pylist()
    if tail == "mask":
        assert weights[:2] == pytest.approx([1 / 1.2, 0.2 / 1.2], rel=1e-6)
    split = load_data({"test": tmp_path / "data" / "test"}, "popularity")["test"]
    stored = torch.from_numpy(split.samples("song", "popularity").features)
    with torch.no_grad():
        for i in range(3):
            waveform = load_audio(tmp_path / f"{i}.wav")
            heard = model.embed(torch.from_numpy(waveform.samples)[None], waveform.sample_rate)
            torch.testing.assert_close(stored[i : i + 1], heard, rtol=0, atol=1e-5)
            ours, theirs = (model.score_embeddings(e).stack() for e in (stored[i : i + 1], heard))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
