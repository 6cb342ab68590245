from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apex_reward.audio.segment import cut_segments, segment_lengths
from apex_reward.errors import UsageError


def test_hand_worked_cut():
    songs = torch.arange(1.0, 13.0).reshape(2, 6)
    songs[1, 3:] = 0
    cut = cut_segments(songs, [6, 3], segment_samples=4, sample_rate=1)
    assert cut.samples.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]
    assert cut.song.tolist() == [0, 0, 1]
    assert cut.real.tolist() == [4, 2, 3]
    assert cut.weight.tolist() == [1.0, 1.0, 1.0]
    means = cut.song_means(torch.tensor([[1.0], [3.0], [5.0]]), songs=2)
    assert means.tolist() == [[2.0], [5.0]]


def test_mask_weighs_by_real_length():
    cut = cut_segments(torch.ones(1, 6), [6], 4, 1, tail="mask")
    assert cut.weight.tolist() == [4.0, 2.0]
    assert cut.song_means(torch.tensor([1.0, 4.0]), songs=1).tolist() == [2.0]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(4, [4]), (24, [10, 10]), (25, [10, 10, 5]), (20, [10, 10]), (1, [1])],
)
def test_drop_leaves_out_tails_under_five_seconds_but_no_only_segment(length, expected):
    assert segment_lengths(length, segment_samples=10, sample_rate=1, tail="drop") == expected


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    n=st.integers(1, 25),
    tail=st.sampled_from(["pad", "mask", "drop"]),
)
def test_equals_a_loop_over_songs(lengths, n, tail):
    songs = torch.zeros(len(lengths), max(lengths))
    for i, length in enumerate(lengths):
        songs[i, :length] = torch.arange(1, length + 1)
    cut = cut_segments(songs, lengths, n, sample_rate=2, tail=tail)
    expected = []
    for i, length in enumerate(lengths):
        for start in range(0, length, n):
            real = min(n, length - start)
            if tail == "drop" and start > 0 and real < 10 and real < n:
                continue
            row = torch.zeros(n)
            row[:real] = songs[i, start : start + real]
            expected.append((row.tolist(), i, real))
    assert [(s.tolist(), int(i), int(r)) for s, i, r in zip(*_parts(cut), strict=True)] == expected
    ones = torch.ones(len(cut.song))
    assert cut.song_means(ones, len(lengths)).tolist() == pytest.approx([1.0] * len(lengths))


def test_unknown_tail_is_refused():
    with pytest.raises(UsageError, match="pad, mask, drop"):
        cut_segments(torch.ones(1, 6), [6], 4, 1, tail="cut")


def _parts(cut):
    return cut.samples, cut.song, cut.real
