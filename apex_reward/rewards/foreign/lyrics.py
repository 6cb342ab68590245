"""How much of the lyrics a transcriber hears in a song: one minus the word error rate.

Shape key: B = songs, T = samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from apex_reward.errors import CheckpointError, UsageError
from apex_reward.model.encoded import Lengths, Prompts
from apex_reward.model.files import local_path
from apex_reward.model.inputs import prepare_waveforms
from apex_reward.rewards.foreign.texts import texts_of
from apex_reward.rewards.protocol import check_gradient
from apex_reward.scores.head import Head
from apex_reward.scores.scores import Scores

Transcriber = Callable[[npt.NDArray[np.float32], int], str]
Unit = Literal["word", "character"]

DEFAULT_TRANSCRIBER = "openai/whisper-small"
WINDOW_SECONDS = 30


class Lyrics:
    """Sung words against the lyrics (extra `lyrics`); not differentiable.

    The head `error` is 1 - min(error rate, 1), so that higher is better: 1 means every word is
    there, 0 that there are as many errors as words. Case, punctuation and tags such as `[chorus]`
    do not count. Lyrics without a word (`[instrumental]`) ask for silence: 1 where nothing is
    heard, else 0. A transcriber errs too, the more so over loud music: compare songs, do not read
    the value as the share of wrong words.

    Lyrics travel as prompts: a mapping `{"prompt": ..., "lyrics": ...}`, or the lyrics as a plain
    text.

    Args:
        transcriber: mono float32 samples (T,) in [-1, 1] and their rate in Hz to a text; also a
            table of known transcripts. `Lyrics.from_pretrained` makes one of a speech recogniser.
        unit: `word`, or `character` for scripts without spaces.

    Raises:
        UsageError: an unknown unit, or jiwer is not installed.
    """

    name = "lyrics"
    heads = (Head("error", 0.0, 1.0),)
    sample_rate = 16_000
    differentiable = False
    reads_text = True
    reads_lyrics = True

    def __init__(self, transcriber: Transcriber, unit: Unit = "word") -> None:
        if unit not in get_args(Unit):
            raise UsageError(f"unit is {unit!r}; expected 'word' or 'character'")
        _jiwer()
        self.transcriber, self.unit = transcriber, unit

    def __call__(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None, prompts: Prompts = None
    ) -> Scores:
        """Scores of songs (B, T) or (B, C, T), each heard mono at 16 kHz and its own length.

        Raises:
            UsageError: a gradient is asked for, or a song has no lyrics.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        check_gradient(self, waveforms)
        lyrics = texts_of(self.name, prompts, "lyrics")
        songs, ends = prepare_waveforms(waveforms, sample_rate, lengths, self.sample_rate)
        if len(lyrics) != len(songs):
            raise UsageError(f"{len(lyrics)} prompts for {len(songs)} songs; expected one per song")
        values = [
            1 - min(self.error_rate(words, self._heard(song, end)), 1.0)
            for words, song, end in zip(lyrics, songs, ends, strict=True)
        ]
        return Scores({"error": songs.new_tensor(values)}, self.heads)

    def error_rate(self, lyrics: str, heard: str) -> float:
        """Substitutions, deletions and insertions per word (or character) of the lyrics.

        Infinite where words were heard and the lyrics have none.
        """
        jiwer = _jiwer()
        plain = jiwer.Compose(
            [
                jiwer.RemoveKaldiNonWords(),  # [chorus], <laughs>
                jiwer.ToLowerCase(),
                jiwer.RemovePunctuation(),
                jiwer.RemoveMultipleSpaces(),
                jiwer.Strip(),
            ]
        )
        wanted, found = (" ".join(plain(text).split()) for text in (lyrics, heard))
        if not wanted:
            return float("inf") if found else 0.0
        rate = jiwer.wer if self.unit == "word" else jiwer.cer
        return float(rate(wanted, found))

    def _heard(self, song: Tensor, end: int) -> str:
        samples = song[:end].detach().cpu().numpy()
        text = self.transcriber(samples, self.sample_rate)
        if not isinstance(text, str):
            raise UsageError(f"the transcriber gave a {type(text).__name__}; expected a text")
        return text

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT_TRANSCRIBER, **hub: Any) -> Lyrics:
        """Word errors by a speech recogniser of transformers.

        Args:
            name: hub id or folder of a model for automatic speech recognition.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return cls(PipelineTranscriber(str(name), **hub))


class PipelineTranscriber:
    """transformers' automatic-speech-recognition pipeline as a transcriber of any length.

    Args:
        name, hub: as in `Lyrics.from_pretrained`.
    """

    def __init__(self, name: str, **hub: Any) -> None:
        from transformers import pipeline

        folder = str(local_path(name, **hub))
        try:
            self._pipeline = pipeline(
                "automatic-speech-recognition", model=folder, chunk_length_s=WINDOW_SECONDS
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{name} cannot be loaded for speech recognition: {str(error).splitlines()[0]}"
            ) from error

    def __call__(self, samples: npt.NDArray[np.float32], sample_rate: int) -> str:
        """The text of samples (T,)."""
        found: Any = self._pipeline({"raw": samples, "sampling_rate": sample_rate})
        return str(found["text"])


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise UsageError("the model lyrics needs `pip install 'apex-reward[lyrics]'`") from None
    return jiwer
