"""The recipes' small generators: codecs of notes, a language model, a flow."""

from __future__ import annotations

import random

import pytest
import torch

from apex_reward.errors import UsageError
from apex_reward.runs.policy import sample_tokens
from toys import chords
from toys.melodies import (
    CONTROLS,
    FRAMES,
    PITCHES,
    SAMPLE_RATE,
    MelodyFlow,
    melody_prompts,
    melody_references,
    synthesize,
)
from toys.notes import (
    SLOTS,
    NoteDecoder,
    note_model,
    note_names,
    note_policy,
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


def test_other_tokens_than_notes_do_not_decode() -> None:
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


def test_the_codec_adds_up_the_notes_of_its_codes() -> None:
    codec = chords.note_codec()
    codes = torch.randint(chords.CODES, (2, 4, 3), generator=torch.Generator().manual_seed(0))
    found = codec.decode(codes[None], [None]).audio_values[:, 0]
    expected = torch.zeros(2, 4 * chords.HOP)
    for song, book, frame in torch.cartesian_prod(*map(torch.arange, codes.shape)).tolist():
        note = render_note(chords.NAMES[int(codes[song, book, frame])]) / chords.CODEBOOKS
        expected[song, frame * chords.HOP : (frame + 2) * chords.HOP] += note
    torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-5, rtol=0)
    assert found.shape[1] == 3 * chords.HOP
    assert float(found.abs().max()) > 0.1


def test_codes_follow_their_style() -> None:
    rng = random.Random(0)
    songs = {style: torch.stack([chords.random_codes(style, rng) for _ in range(20)])
             for style in chords.STYLES}  # fmt: skip
    rests = {style: float((codes == 0).float().mean()) for style, codes in songs.items()}
    assert rests["low calm"] > rests["low lively"] + 0.2
    pitch = {style: float(((codes[codes > 0] - 1) % 5).float().mean())
             for style, codes in songs.items()}  # fmt: skip
    assert pitch["high calm"] == pytest.approx(pitch["low calm"] + 2, abs=0.2)
    with pytest.raises(UsageError, match="unknown style 'jazz'; expected one of low calm"):
        chords.random_codes("jazz", rng)


def test_a_pitch_that_is_on_sounds_at_its_frequency() -> None:
    controls = torch.full((1, CONTROLS, FRAMES), -3.0)
    controls[:, 12] = 3.0
    (song,) = synthesize(controls)
    assert song.shape == (4 * SAMPLE_RATE,)
    spectrum = torch.fft.rfft(song).abs()
    assert spectrum.argmax() / 4 == pytest.approx(440, abs=1)
    assert synthesize(torch.full((1, CONTROLS, FRAMES), -9.0)).abs().max() < 1e-3


def test_prompts_to_judge_by_are_not_trained_on() -> None:
    judged, trained = melody_prompts()
    assert (len(trained), len(judged)) == (8, 16)
    assert not set(trained) & set(judged)
    assert all(song.duration == 4.0 for song in melody_references(2))


def test_gradients_flow_through_the_last_steps_alone() -> None:
    flow = MelodyFlow(sampler_steps=3, last=1, fit_steps=2)
    songs = flow(["0 0", "3 2"], torch.Generator().manual_seed(1))
    again = MelodyFlow(sampler_steps=3, last=3, fit_steps=2)(
        ["0 0", "3 2"], torch.Generator().manual_seed(1)
    )
    assert torch.equal(songs, again)  # whatever the graph
    loss, full = songs.square().mean(), again.square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
    assert full.requires_grad
    assert PITCHES < CONTROLS


def test_sampling_depends_on_its_seed_alone() -> None:
    policy = note_policy(seed=0, steps=3)
    prompts = ["low calm sea", "high lively city"]
    policy.model.train()
    state = torch.random.get_rng_state()
    first = sample_tokens(policy, prompts, 3, seed=1, max_new_tokens=SLOTS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert policy.model.training
    assert first == sample_tokens(policy, prompts, 3, seed=1, max_new_tokens=SLOTS)
    assert first != sample_tokens(policy, prompts, 3, seed=2, max_new_tokens=SLOTS)
    assert len(first) == 6
    end = policy.tokenizer.eos_token_id
    assert all(len(ids) <= 16 and end not in ids for ids in first)
    assert len(sample_tokens(policy, prompts[:1], seed=1, max_new_tokens=5)[0]) <= 5
