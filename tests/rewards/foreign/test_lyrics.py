"""Word errors against the lyrics, with a made-up transcriber and a real pipeline."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from apex_reward import Prompt, Reward
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.rewards.foreign.lyrics import Lyrics, PipelineTranscriber
from apex_reward.scores.head import Head

SONGS = torch.rand(2, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5


class Fixed:
    """Hears the same words in every song, and remembers what it was given."""

    def __init__(self, text: object) -> None:
        self.text, self.calls = text, []

    def __call__(self, samples, sample_rate):
        self.calls.append((samples.shape, samples.dtype, sample_rate))
        return self.text


def sung(*lyrics: str) -> list[Prompt]:
    return [Prompt("", lyrics=words) for words in lyrics]


def score(heard: object, *lyrics: str, unit: str = "word") -> list[float]:
    model = Lyrics(Fixed(heard), unit)
    waveforms = SONGS[:1].expand(len(lyrics), -1)
    return model(waveforms, 16_000, prompts=sung(*lyrics))["lyric_match"].tolist()


@pytest.mark.parametrize(
    ("heard", "lyrics", "value"),
    [
        ("We are the night", "[verse]\nWe are, the night!", 1.0),
        ("we are the light", "we are the night", 0.75),  # one substitution in four
        ("we are night", "we are the night", 0.75),  # one deletion
        ("oh we are the night", "we are the night", 0.75),  # one insertion
        ("", "we are the night", 0.0),
        ("a b c d e f g h i", "x", 0.0),  # nine errors for one word are cut at one
        ("", "[instrumental]", 1.0),
        ("la", "[instrumental]", 0.0),
        ("wait wait", "wait...wait", 1.0),
        ("love hate", "love\u2014hate", 1.0),
        ("ooh la la", "ooh-la-la", 1.0),
        ("caf\u00e9 noir", "cafe\u0301 noir", 1.0),  # one letter and its combining form
        ("<oh> yes", "oh yes", 1.0),  # angle brackets hold sung words
        ("I don't know", "i don\u2019t know", 1.0),
        ("dont", "don't", 1.0),
        ("we\n\n are  we", "we are we", 1.0),
        ("STRASSE", "stra\u00dfe", 1.0),
    ],
)
def test_word_errors_by_hand(heard, lyrics, value):
    assert score(heard, lyrics) == [pytest.approx(value, abs=1e-6)]


def test_character_errors_by_hand():
    assert score("abcx", "abcd", unit="character") == [pytest.approx(0.75)]
    assert score("abcx", "abcd") == [0.0]
    # No white space at all: a line break and a space are no errors.
    assert score("ab cd", "a b\n\nc d", unit="character") == [1.0]
    assert score("\u4f60\u597d", "\u4f60, \u597d\u3002", unit="character") == [1.0]


def test_lyrics_come_beside_the_prompt():
    model = Lyrics(Fixed("one two"))
    prompts = [Prompt("calm", lyrics="one two"), {"prompt": "calm", "lyrics": "one three"}]
    assert model(SONGS, 16_000, prompts=prompts)["lyric_match"].tolist() == [1.0, 0.5]
    with pytest.raises(UsageError, match="empty for songs 0 of the batch"):
        model(SONGS[:1], 16_000, prompts=["one two"])  # a prompt is not graded as the lyrics
    panel = Reward({"sung": Lyrics(Fixed("one two"))}, "sung.lyric_match=1")
    rows = panel.judge(list(SONGS), ["one two", Prompt("x", "one two")], sample_rate=16_000)
    assert [row["sung.lyric_match"] for row in rows] == [None, 1.0]
    assert "needs the lyrics" in rows[0]["error"]


def test_what_it_says_of_itself_and_what_it_hears():
    transcriber = Fixed("la")
    model = Lyrics(transcriber)
    assert model.heads == (Head("lyric_match", 0.0, 1.0),)
    assert (model.name, model.differentiable) == ("lyrics", False)
    assert model.reads_text
    stereo = SONGS[:, None].repeat(1, 2, 1)
    model(stereo, 32_000, lengths=[32_000, 20_000], prompts=sung("la", "la"))
    float32 = np.dtype("float32")
    assert transcriber.calls == [((16_000,), float32, 16_000), ((10_000,), float32, 16_000)]
    copied = pickle.loads(pickle.dumps(model))
    assert copied(SONGS, 16_000, prompts=sung("la", "so"))["lyric_match"].tolist() == [1.0, 0.0]


def test_what_it_refuses(monkeypatch):
    model = Lyrics(Fixed("la"))
    with pytest.raises(UsageError, match="lyrics is not differentiable"):
        model(SONGS.clone().requires_grad_(), 16_000, prompts=sung("la", "la"))
    with pytest.raises(UsageError, match="judges songs by their prompts and none were given"):
        model(SONGS, 16_000)
    with pytest.raises(UsageError, match="empty for songs 1 of the batch"):
        model(SONGS, 16_000, prompts=[*sung("la"), "calm"])
    with pytest.raises(UsageError, match="1 prompts for 2 songs"):
        model(SONGS, 16_000, prompts=sung("la"))
    with pytest.raises(UsageError, match="returned NoneType; expected a text"):
        score(None, "la")
    with pytest.raises(UsageError, match="unit is 'phoneme'"):
        Lyrics(Fixed("la"), "phoneme")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UsageError, match=r"pip install 'apex-reward\[lyrics\]'"):
        Lyrics(Fixed("la"))


def test_a_recogniser_of_transformers(tmp_path):
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    recogniser = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        recogniser.lm_head.bias[letters.index("c")] = 100.0
    recogniser.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = Lyrics.from_pretrained(str(tmp_path), local_files_only=True)
    scores = model(SONGS, 24_000, prompts=sung("C!", "c d"))
    assert scores["lyric_match"].tolist() == [1.0, 0.5]
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        PipelineTranscriber(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded for speech recognition"):
        PipelineTranscriber(str(tmp_path))
