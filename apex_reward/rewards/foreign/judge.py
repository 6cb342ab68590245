"""An audio language model as a judge: the probability of "yes" for each line of a rubric.

Shape key: B = songs, T = samples, L = lines of a rubric, N = questions of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encode import Prompts
from apex_reward.model.files import local_path, read_config
from apex_reward.model.licences import CODE, HUB, UNKNOWN, Licence, licence
from apex_reward.model.precision import FrozenModule, usable_dtype
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.called import CalledModel, texts_of
from apex_reward.scores.head import Head

Rubrics = Mapping[str, Sequence[str]]

DEFAULT_JUDGE = "cucl2/AnyAudio-Judge-7B"
RUBRICS_FILE = "rubrics.json"
RUBRICS: Rubrics = {
    "adherence": (
        'Does the music as a whole fit this description: "{prompt}"?',
        'Do genre and mood of the music fit this description: "{prompt}"?',
        'Do instruments and voices of the music fit this description: "{prompt}"?',
        'Do tempo and energy of the music fit this description: "{prompt}"?',
        'Is the music free of what contradicts this description: "{prompt}"?',
    )
}
# Each model type's class that reads audio and gives text; an omni model's is its thinker.
CLASSES = {
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "musicflamingo": "MusicFlamingoForConditionalGeneration",
}
ORDERS = (("yes", "no"), ("no", "yes"))
MOST_CACHED = 10_000


class AudioJudge(CalledModel, FrozenModule):
    """p(yes) of every line of a rubric, averaged over its lines; not differentiable.

    For each line the model is asked a question that ends with "yes or no", and again with "no or
    yes". p(yes) = sum of the probabilities of the tokens for yes, over that of the tokens for yes
    and no; the mean of both orders counts. A song longer than the model reads at once is cut into
    windows of equal length, and the mean over them counts. Values are cached by song, prompt and
    rubric. AnyAudio-Judge (arXiv 2606.03116) is the published judge of this form.

    Args:
        model: an audio language model of transformers with `model` and `lm_head`.
        processor: of the model, with a chat template.
        rubrics: name of a head to its L lines; `{prompt}` in a line stands for the song's prompt.
        batch_questions: questions of one forward pass.

    Raises:
        UsageError: no rubric, or one without lines.
        CheckpointError: a tokenizer without single tokens for yes and no.
    """

    name = "judge"
    licences: ClassVar[list[Licence]] = [
        CODE,
        licence("AnyAudio-Judge weights", "Apache-2.0", True, HUB + DEFAULT_JUDGE),
    ]

    def __init__(
        self, model: Any, processor: Any, rubrics: Rubrics = RUBRICS, batch_questions: int = 8
    ) -> None:
        super().__init__()
        if not rubrics or not all(rubrics.values()):
            raise UsageError("a judge needs at least one rubric, and a rubric at least one line")
        self.model = model.eval().requires_grad_(False)
        self.processor, self.batch_questions = processor, batch_questions
        self.rubrics = {name: tuple(lines) for name, lines in rubrics.items()}
        self.heads = tuple(Head(name, 0.0, 1.0) for name in rubrics)
        self.reads_text = any("{prompt}" in line for lines in rubrics.values() for line in lines)
        self.sample_rate = int(processor.feature_extractor.sampling_rate)
        chunk = processor.feature_extractor.chunk_length
        self.window = int(getattr(processor, "max_audio_len", chunk)) * self.sample_rate
        self._answers = [answer_ids(processor.tokenizer, word) for word in ORDERS[0]]
        self._cache: dict[tuple[str, str, tuple[str, ...]], float] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def set_encoder_dtype(self, dtype: torch.dtype | str) -> None:
        """Cast the whole language model, as `usable_dtype` resolves the number type."""
        self.model.to(usable_dtype(dtype, self.device))
        self._cache.clear()

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """p(yes) of each rubric for each mono song (T,); raises UsageError without a prompt."""
        texts = texts_of(self.name, prompts, "prompt") or [""] * len(songs)
        return [
            [self._value(song, text, lines) for lines in self.rubrics.values()]
            for song, text in zip(songs, texts, strict=True)
        ]

    @torch.no_grad()
    def probabilities(self, song: Tensor, lines: Sequence[str]) -> Tensor:
        """p(yes) (L,) of lines without placeholders, for a mono song (T,) at `sample_rate`."""
        windows = song.tensor_split(-(-len(song) // self.window))
        questions = [
            (window, f"{line}\nAnswer with one word: {first} or {second}.")
            for window in windows
            for line in lines
            for first, second in ORDERS
        ]
        batches = [
            self._yes(questions[start : start + self.batch_questions])
            for start in range(0, len(questions), self.batch_questions)
        ]
        values = torch.cat(batches).view(len(windows), len(lines), len(ORDERS)).mean(dim=2)
        weights = values.new_tensor([len(window) / len(song) for window in windows])
        return weights @ values

    def _value(self, song: Tensor, text: str, lines: tuple[str, ...]) -> float:
        key = hashlib.sha256(song.numpy().tobytes()).hexdigest(), text, lines
        if key not in self._cache:
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()
            filled = [line.replace("{prompt}", text) for line in lines]
            self._cache[key] = float(self.probabilities(song, filled).mean())
        return self._cache[key]

    def _yes(self, questions: Sequence[tuple[Tensor, str]]) -> Tensor:
        """p(yes) (N,) of pairs of samples (T,), padded to 0.1 s, and a question, on the CPU."""
        chats, shortest = [], self.sample_rate // 10
        for samples, text in questions:
            padded = F.pad(samples, (0, max(0, shortest - len(samples)))).numpy()
            content = [{"type": "audio", "audio": padded}, {"type": "text", "text": text}]
            chats.append([{"role": "user", "content": content}])
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", processor_kwargs={"text_kwargs": {"padding": True}},
        ).to(self.device, next(self.model.parameters()).dtype)  # fmt: skip
        states = self.model.model(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].cumsum(dim=1).argmax(dim=1)  # the last token, not padding
        logits = self.model.lm_head(states[torch.arange(len(states)), last]).float().cpu()
        yes, no = (logits[:, ids].logsumexp(dim=1) for ids in self._answers)
        return torch.sigmoid(yes - no)

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT_JUDGE, **hub: Any) -> AudioJudge:
        """The judge of a folder or hub id, with the rubrics of its `rubrics.json`, else `RUBRICS`.

        Args:
            name: an audio language model in transformers' layout.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: a model of another type, or one that cannot be loaded.
        """
        folder = local_path(name, **hub)
        kind = str(read_config(folder).get("model_type")).removesuffix("_thinker")
        made = getattr(transformers, CLASSES.get(kind, ""), None)
        if made is None:
            raise CheckpointError(
                f"{name} has the model type {kind!r}, which is not among {', '.join(CLASSES)}, or "
                "which the installed transformers lacks"
            )
        file = folder / RUBRICS_FILE
        try:
            own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else RUBRICS
            model = made.from_pretrained(folder, dtype=torch.float32)
            processor = transformers.AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{name} cannot be loaded as a judge: {reason}") from error
        judge = cls(model, processor, own)
        if str(name) != DEFAULT_JUDGE:
            judge.licences = [CODE, licence("judge weights", UNKNOWN, None, str(name))]  # type: ignore[misc]
        return with_source(judge, Source.of_kind(cls.name, name, **hub))


def answer_ids(tokenizer: Any, word: str) -> list[int]:
    """The single tokens that write a word, with and without a capital and a space before it.

    Raises:
        CheckpointError: there is none.
    """
    forms = [space + form for form in (word, word.capitalize()) for space in ("", " ")]
    ids = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    found = {one[0] for one in ids if len(one) == 1} - {tokenizer.unk_token_id}
    if not found:
        raise CheckpointError(f"the tokenizer has no single token for {word!r}")
    return sorted(found)
