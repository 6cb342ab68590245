"""Audio language models as a judge: probabilities, orders, batches, windows and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)
from transformers.processing_utils import ProcessorMixin

from apex_reward import Prompt, Reward, load_reward_model
from apex_reward.errors import CheckpointError, UsageError
from apex_reward.rewards.foreign.judge import RUBRICS, AudioJudge, answer_ids

RATE = 16_000
WORDS = (
    "<pad> <unk> <|AUDIO|> <|audio_bos|> <|audio_eos|> <sound> <|im_start|> <|im_end|> "
    "yes no Yes No Answer with one word: or is it slow? calm: song sad loud user assistant"
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}<sound> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}assistant"
)
TWO = {"calm": ["is it calm: {prompt}", "is it slow?"], "loud": ["is it loud"]}


def tokenizer() -> PreTrainedTokenizerFast:
    """A word per token."""
    words = {word: i for i, word in enumerate(WORDS.split())}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [word for word in words if word.startswith("<")]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    fast.add_special_tokens({"additional_special_tokens": special[2:]})
    return fast


class OmniProcessor(Qwen2_5OmniProcessor):
    """transformers' processor without its parts for pictures, which need torchvision."""

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        template = TEMPLATE.replace("<sound>", "<|AUDIO|>")
        ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=template)
        tokens = {"audio": "<|AUDIO|>", "image": "<|im_start|>", "video": "<|im_end|>"}
        for name, token in tokens.items():
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))


def parts(kind: str) -> tuple[Any, Any]:
    """A small random model and its processor, which reads 1 s (or 2 s) at once."""
    torch.manual_seed(0)
    words = tokenizer()
    mel = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    text = {
        "model_type": "qwen2", "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2,
        "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
        "initializer_range": 0.5,
    }  # fmt: skip
    if kind == "qwen2_audio":
        audio = {
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 8, "encoder_layers": 1,
            "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16,
            "max_source_positions": 50,
        }  # fmt: skip
        config: Any = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=2)
        return Qwen2AudioForConditionalGeneration(config), Qwen2AudioProcessor(mel, words)
    if kind == "qwen2_5_omni":
        audio = {
            "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16, "d_model": 16, "max_source_positions": 50, "n_window": 50,
            "output_dim": 16,
        }  # fmt: skip
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
        del text["model_type"]
        config = Qwen2_5OmniThinkerConfig(
            audio_config=audio, text_config={**text, "rope_parameters": rope},
            vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16},
            audio_token_id=2, image_token_id=6, video_token_id=7, audio_start_token_id=3,
            audio_end_token_id=4, vision_start_token_id=3, vision_end_token_id=4,
        )  # fmt: skip
        return Qwen2_5OmniThinkerForConditionalGeneration(config), OmniProcessor(mel, words)
    audio = {
        "model_type": "audioflamingo3_encoder", "num_mel_bins": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16,
        "max_source_positions": 50,
    }  # fmt: skip
    config = AudioFlamingo3Config(audio_config=audio, text_config=text, audio_token_id=5)
    processor = AudioFlamingo3Processor(mel, words, chat_template=TEMPLATE, max_audio_len=2)
    return AudioFlamingo3ForConditionalGeneration(config), processor


def judge(kind: str = "qwen2_audio", **options: Any) -> AudioJudge:
    return AudioJudge(*parts(kind), **{"rubrics": TWO, **options})


def songs(seconds: float = 0.8, count: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(count, int(seconds * RATE), generator=torch.Generator().manual_seed(1))


def reference(model: AudioJudge, song: torch.Tensor, line: str) -> float:
    """p(yes) by the processor and the model's own logits, a question at a time."""
    values = []
    for order in ("yes or no", "no or yes"):
        text = f"{line}\nAnswer with one word: {order}."
        content = [{"type": "audio", "audio": song.numpy()}, {"type": "text", "text": text}]
        inputs = model.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        chances = model.model(**inputs).logits[0, -1].softmax(dim=0)
        ids = model.processor.tokenizer.convert_tokens_to_ids
        yes, no = (chances[[ids(word), ids(word.title())]].sum() for word in ("yes", "no"))
        values.append(float(yes / (yes + no)))
    assert abs(values[0] - values[1]) > 1e-4
    return sum(values) / 2


@pytest.mark.parametrize("kind", ["qwen2_audio", "audioflamingo3", "qwen2_5_omni"])
def test_the_mean_over_lines_and_orders(kind: str) -> None:
    model, batch = judge(kind), songs()
    scores = model(batch, RATE, prompts=["sad", Prompt("loud")])
    with torch.no_grad():
        for i, text in enumerate(("sad", "loud")):
            lines = [f"is it calm: {text}", "is it slow?"]
            expected = sum(reference(model, batch[i], line) for line in lines) / 2
            assert float(scores["calm"][i]) == pytest.approx(expected, abs=1e-5)
            expected = reference(model, batch[i], "is it loud")
            assert float(scores["loud"][i]) == pytest.approx(expected, abs=1e-5)
    assert float(scores["calm"][0]) != float(scores["calm"][1])
    assert (model.name, model.differentiable, model.reads_text) == ("judge", False, True)


def test_batches_and_neighbours_change_nothing() -> None:
    batch, prompts = songs(), ["sad", "loud song"]
    whole = judge(batch_questions=100)(batch, RATE, prompts=prompts).stack()
    single = judge(batch_questions=1)(batch, RATE, prompts=prompts).stack()
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)
    longer = torch.nn.functional.pad(batch[:1], (0, RATE))
    alone = judge()(longer, RATE, lengths=[batch.shape[1]], prompts=prompts[:1]).stack()
    torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=0)


def test_a_long_song_is_the_mean_of_equal_windows() -> None:
    model, song = judge(), songs(2.4, 1)[0]
    found = model.probabilities(song, ["is it slow?"])
    windows = [float(model.probabilities(w, ["is it slow?"])) for w in song.tensor_split(3)]
    assert float(found) == pytest.approx(sum(windows) / 3, abs=1e-5)
    assert max(windows) - min(windows) > 1e-4
    assert 0 < float(model.probabilities(song[:1], ["is it slow?"])) < 1


def test_values_are_cached_by_song_prompt_and_rubric(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = judge(), songs()
    calls: list[int] = []
    asked = AudioJudge._yes
    monkeypatch.setattr(
        AudioJudge, "_yes", lambda self, rows: calls.append(len(rows)) or asked(self, rows)
    )
    first = model(batch, RATE, prompts=["sad", "loud"])
    assert sum(calls) == 2 * 3 * 2
    again = model(batch.flip(0), RATE, prompts=["loud", "sad"])
    assert sum(calls) == 12
    torch.testing.assert_close(again.stack(), first.stack().flip(0))
    model(batch[:1], RATE, prompts=["loud"])
    assert sum(calls) == 12 + 6
    model.set_encoder_dtype("float32")
    model(batch[:1], RATE, prompts=["loud"])
    assert sum(calls) == 12 + 12


def test_bfloat16_keeps_the_probabilities() -> None:
    full, half = judge(), judge()
    half.set_encoder_dtype("bfloat16")
    pair = [model(songs(), RATE, prompts=["sad", "loud"]).stack() for model in (full, half)]
    torch.testing.assert_close(pair[1], pair[0], atol=0.03, rtol=0)


def test_a_folder_loads_as_a_reward_with_its_rubrics(tmp_path: Path) -> None:
    made = judge()
    made.model.save_pretrained(tmp_path / "judge")
    made.processor.save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "rubrics.json").write_text(json.dumps(made.rubrics))
    loaded = load_reward_model(f"judge:{tmp_path / 'judge'}")
    batch, prompts = songs(), ["sad", "loud"]
    torch.testing.assert_close(
        loaded(batch, RATE, prompts=prompts).stack(), made(batch, RATE, prompts=prompts).stack()
    )
    assert loaded.licences[1]["commercial"] is None
    reward = Reward([loaded, "apex-tiny"], mix="judge.calm=1,judge.loud=-1")
    assert [head.name for head in reward.heads][:2] == ["judge.calm", "judge.loud"]
    reward.save(tmp_path / "reward.yaml")
    rows = Reward.load(tmp_path / "reward.yaml").judge(list(batch), prompts, sample_rate=RATE)
    scores = made(batch, RATE, prompts=prompts)
    for i, row in enumerate(rows):
        assert row["judge.calm"] == pytest.approx(float(scores["calm"][i]), abs=1e-5)
        assert row["reward_raw"] == pytest.approx(
            float(scores["calm"][i] - scores["loud"][i]), abs=1e-5
        )


def test_what_it_refuses(tmp_path: Path) -> None:
    model, batch = judge(), songs()
    with pytest.raises(UsageError, match="judge is not differentiable"):
        model(batch.requires_grad_(), RATE, prompts=["sad", "loud"])
    with pytest.raises(UsageError, match="judges songs by their prompts"):
        model(songs(), RATE)
    with pytest.raises(UsageError, match="at least one line"):
        judge(rubrics={"empty": []})
    with pytest.raises(CheckpointError, match="no single token for 'maybe'"):
        answer_ids(tokenizer(), "maybe")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model type 'bert', which is not among qwen2_audio"):
        load_reward_model(f"judge:{tmp_path}")
    assert all("{prompt}" in line for line in RUBRICS["adherence"])
    assert not judge(rubrics={"slow": ["is it slow?"]}).reads_text
