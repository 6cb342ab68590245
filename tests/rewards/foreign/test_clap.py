"""CLAP as a reward model."""

from __future__ import annotations

import copy

import pytest
import torch

from apex_reward import Reward
from apex_reward.errors import UsageError
from apex_reward.rewards.foreign.clap import Clap
from apex_reward.scores.head import Head
from tests.clap_support import PROMPTS, write_tiny_clap
from tests.support import golden_song


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Clap:
    return Clap.from_pretrained(write_tiny_clap(tmp_path_factory.mktemp("clap") / "model"))


def songs(seconds: float, rate: int = 48_000) -> torch.Tensor:
    return torch.cat([torch.from_numpy(golden_song(seed, rate, 1, seconds)) for seed in (0, 1)])


def test_what_it_says_of_itself(model):
    assert (model.name, model.sample_rate) == ("clap", 48_000)
    assert (model.differentiable, model.reads_text) == (True, True)
    assert model.heads == (Head("adherence", -1.0, 1.0),)


def test_adherence_is_the_mean_cosine_of_the_windows(model):
    waveforms = songs(13.0)
    scores = model(waveforms, 48_000, prompts=PROMPTS)
    clap = model.encoder
    tokens = clap.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = clap.model.get_text_features(**tokens_of(tokens)).pooler_output
        for song, text, found in zip(waveforms, texts, scores.adherence, strict=True):
            cosines = []
            for window in (song[:480_000], song[480_000:]):
                inputs = clap.extractor(window.numpy(), sampling_rate=48_000, return_tensors="pt")
                audio = clap.model.get_audio_features(**inputs).pooler_output[0]
                cosines.append(torch.cosine_similarity(audio, text, dim=0))
            # 10 s and 3 s of real audio
            mean = (10 * float(cosines[0]) + 3 * float(cosines[1])) / 13
            assert found == pytest.approx(mean, abs=1e-4)
    assert scores.adherence.abs().max() <= 1
    assert scores.adherence[0] != pytest.approx(float(scores.adherence[1]), abs=1e-3)


def test_a_tail_of_a_millisecond_weighs_a_millisecond(model):
    waveforms = songs(10.001)
    whole = Reward(model, mix="adherence=1").judge(
        [*waveforms, *waveforms[:, :480_000]], PROMPTS * 2, sample_rate=48_000
    )
    with_tail, without = [row["adherence"] for row in whole[:2]], whole[2:]
    assert with_tail == pytest.approx([row["adherence"] for row in without], abs=2e-4)
    found = model(waveforms, 48_000, prompts=PROMPTS).adherence
    assert with_tail == pytest.approx(found.tolist(), abs=1e-5)


def tokens_of(tokens):
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def test_the_gradient_reaches_stereo_at_another_rate(model):
    waveforms = songs(0.5, 44_100)[:, None].repeat(1, 2, 1).requires_grad_()
    scores = model(waveforms, 44_100, lengths=[22_050, 10_000], prompts=PROMPTS)
    scores.adherence.sum().backward()
    assert (waveforms.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert waveforms.grad[1, :, 10_000:].abs().sum() == 0


def test_the_prompt_of_a_mapping_is_the_prompt(model):
    waveforms = songs(0.5)
    mappings = [{"prompt": prompt, "lyrics": "la la"} for prompt in PROMPTS]
    given, plain = (model(waveforms, 48_000, prompts=p).adherence for p in (mappings, PROMPTS))
    assert torch.equal(given, plain)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "none were given"),
        (PROMPTS[:1], "1 prompts for 2 songs"),
        ("one text", "one text for 2 songs"),
        ([PROMPTS[0], " "], "empty for songs 1 of the batch"),
        ([PROMPTS[0], {"lyrics": "la"}], "empty for songs 1 of the batch"),
    ],
)
def test_songs_without_a_prompt_are_refused(model, prompts, message):
    with pytest.raises(UsageError, match=message):
        model(songs(0.1), 48_000, prompts=prompts)


def test_saved_and_copied_models_score_the_same(model, tmp_path):
    expected = model(songs(0.5), 48_000, prompts=PROMPTS).adherence
    model.save_pretrained(tmp_path / "saved")
    for other in (Clap.from_pretrained(tmp_path / "saved"), copy.deepcopy(model)):
        assert torch.equal(other(songs(0.5), 48_000, prompts=PROMPTS).adherence, expected)
    assert not model.train().training
