"""The toy generator that gradients flow through."""

from __future__ import annotations

import pytest
import torch

from apex_reward.demo.melodies import (
    CONTROLS,
    FRAMES,
    PITCHES,
    SAMPLE_RATE,
    MelodyFlow,
    melody_prompts,
    melody_references,
    synthesize,
)


def test_a_pitch_that_is_on_sounds_at_its_frequency() -> None:
    controls = torch.full((1, CONTROLS, FRAMES), -3.0)
    controls[:, 12] = 3.0
    (song,) = synthesize(controls)
    assert song.shape == (4 * SAMPLE_RATE,)
    spectrum = torch.fft.rfft(song).abs()
    assert spectrum.argmax() / 4 == pytest.approx(440, abs=1)
    assert synthesize(torch.full((1, CONTROLS, FRAMES), -9.0)).abs().max() < 1e-3


def test_prompts_to_judge_by_are_not_trained_on() -> None:
    trained, judged = melody_prompts()
    assert (len(trained), len(judged)) == (8, 16)
    assert not set(trained) & set(judged)
    assert all(song.duration == 4.0 for song in melody_references(2))


def test_gradients_flow_through_the_last_steps_alone() -> None:
    flow = MelodyFlow(sampler_steps=3, last=1, fit_steps=2)
    songs = flow(["0 0", "3 2"], torch.Generator().manual_seed(1))
    again = MelodyFlow(sampler_steps=3, last=3, fit_steps=2)(
        ["0 0", "3 2"], torch.Generator().manual_seed(1)
    )
    assert torch.equal(songs, again)  # a seed says all, whatever the graph
    loss, full = songs.square().mean(), again.square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
    assert full.requires_grad
    assert PITCHES < CONTROLS
