"""The toy codec and its language model."""

from __future__ import annotations

import random

import torch

from apex_reward.demo.note_model import note_model
from apex_reward.demo.notes import (
    SLOTS,
    NoteDecoder,
    note_names,
    note_prompts,
    note_tokenizer,
    random_notes,
    render_note,
)

SLOT = 6_000


def test_a_song_is_the_sum_of_its_notes() -> None:
    tokenizer = note_tokenizer()
    decode = NoteDecoder(tokenizer)
    ids = tokenizer("pluck3 rest organ5 <eos> fuzz1").input_ids
    (song,) = decode([ids])
    assert song is not None
    first, third = render_note("pluck3"), render_note("organ5")
    assert song.shape == (3 * SLOT,)
    torch.testing.assert_close(song[: 2 * SLOT], first)
    torch.testing.assert_close(song[2 * SLOT :], third[:SLOT])
    loud = [float(render_note(name).abs().max()) for name in note_names()]
    assert loud[0] == 0
    assert all(0.05 < peak <= 1.5 for peak in loud[1:])


def test_what_is_no_note_is_no_song() -> None:
    tokenizer = note_tokenizer()
    decode = NoteDecoder(tokenizer)
    words = ["<eos>", "organ1 calm", "organ1 <pad>", "organ1 <eos> calm"]
    songs = decode([[], *(tokenizer(text).input_ids for text in words)])
    assert [song is None for song in songs] == [True, True, True, True, False]


def test_random_songs_keep_to_their_prompt() -> None:
    rng = random.Random(0)
    names, prompts = set(note_names()), set(note_prompts())
    assert len(prompts) == 48
    rests = {"calm": 0, "lively": 0}
    for _ in range(200):
        words = random_notes(rng).removesuffix(" <eos>").split()
        assert " ".join(words[:3]) in prompts
        assert set(words[3:]) <= names
        assert len(words) - 3 <= SLOTS
        rests[words[1]] += words.count("rest")
        lowest = {"low": 0, "middle": 3, "high": 6}[words[0]]
        pitches = {
            int(word.lstrip("abcdefghijklmnopqrstuvwxyz")) for word in words[3:] if word != "rest"
        }
        assert pitches <= set(range(lowest, lowest + 6))
    assert rests["calm"] > 2 * rests["lively"] > 0


def test_the_model_learns_and_a_seed_gives_the_same_weights() -> None:
    tokenizer = note_tokenizer()
    before = torch.random.get_rng_state()
    first, second = (note_model(tokenizer, seed=3, steps=4) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    rng = random.Random(9)
    batch = tokenizer([random_notes(rng) for _ in range(16)], return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    losses = [
        float(model(**{"input_ids": batch.input_ids}, labels=labels).loss)
        for model in (note_model(tokenizer, 3, 0), note_model(tokenizer, 3, 25))
    ]
    assert losses[1] < losses[0] - 1.0
