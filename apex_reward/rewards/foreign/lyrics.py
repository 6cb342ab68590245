"""Sung words against the lyrics: one minus the error rate of a transcript.

Shape key: B = songs, T = samples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex_reward.errors import CheckpointError, UsageError, expect_one_of
from apex_reward.model.encode import Prompts
from apex_reward.model.files import local_path
from apex_reward.model.licences import CODE, HUB, Licence, licence
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.foreign.called import CalledModel, extra_module, texts_of
from apex_reward.scores.head import Head

Transcriber = Callable[[npt.NDArray[np.float32], int], str]
Unit = Literal["word", "character"]

DEFAULT_TRANSCRIBER = "openai/whisper-small"
WINDOW_SECONDS = 30
# Tags of a song's structure, such as [chorus].
TAGS = re.compile(r"\[[^\]]*\]")
APOSTROPHES = str.maketrans("", "", "'\u2018\u2019\u02bc\u2032`")


class Lyrics(CalledModel):
    """Sung words against the lyrics (extra `lyrics`); not differentiable.

    The head `lyric_match` is 1 - min(error rate, 1): 1 means that the transcript has every word, 0
    means at least as many errors as words. Case, punctuation, accents' encoding, white space and
    tags such as `[chorus]` do not count. Lyrics without a word (`[instrumental]`) ask for a song
    without words: 1 where the transcript is empty, else 0. A transcriber makes errors too, more of
    them on loud music: use the head to compare songs, not as the share of wrong words.

    It reads the lyrics of `Prompt`s.

    Args:
        transcriber: mono float32 samples (T,) in [-1, 1] and their rate in Hz to a text.
            `Lyrics.from_pretrained` makes one from a speech recogniser.
        unit: `word`, or `character` for scripts without spaces.

    Raises:
        UsageError: an unknown unit, or jiwer is not installed.
    """

    name = "lyrics"
    heads = (Head("lyric_match", 0.0, 1.0),)
    sample_rate = 16_000
    reads_text = True
    reads_lyrics = True
    licences: ClassVar[list[Licence]] = [
        CODE,
        licence("whisper-small weights", "Apache-2.0", True, HUB + DEFAULT_TRANSCRIBER),
    ]

    def __init__(self, transcriber: Transcriber, unit: Unit = "word") -> None:
        expect_one_of("unit", unit, get_args(Unit))
        extra_module("jiwer", self.name)
        self.transcriber, self.unit = transcriber, unit

    def score_songs(
        self, songs: Sequence[Tensor], sample_rate: int, prompts: Prompts
    ) -> list[list[float]]:
        """`lyric_match` of each mono song (T,).

        Args:
            songs, sample_rate: as `CalledModel` prepares them.
            prompts: one per song, with lyrics.

        Raises:
            UsageError: a song has no lyrics, or the transcriber returns no text.
        """
        lyrics = texts_of(self.name, prompts, "lyrics")
        rows = []
        for words, song in zip(lyrics, songs, strict=True):
            text = self.transcriber(song.numpy(), sample_rate)
            if not isinstance(text, str):
                raise UsageError(f"the transcriber returned {type(text).__name__}; expected a text")
            rows.append([1 - min(self.error_rate(words, text), 1.0)])
        return rows

    def error_rate(self, lyrics: str, transcript: str) -> float:
        """Substitutions, deletions and insertions per word (or character) of the lyrics.

        Both texts go through `normalized` first. Infinite where the lyrics have no word and the
        transcript has some.
        """
        wanted, found = (normalized(text, self.unit) for text in (lyrics, transcript))
        if not wanted:
            return float("inf") if found else 0.0
        jiwer = extra_module("jiwer", self.name)
        return float((jiwer.wer if self.unit == "word" else jiwer.cer)(wanted, found))

    def to(self, device: str) -> None:
        """Move the transcriber, where it has a method `to`."""
        if hasattr(self.transcriber, "to"):
            self.transcriber.to(device)

    @classmethod
    def from_pretrained(cls, name: str = DEFAULT_TRANSCRIBER, **hub: Any) -> Lyrics:
        """The model with a speech recogniser of transformers.

        Args:
            name: hub id or folder of a model for automatic speech recognition.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        model = cls(PipelineTranscriber(str(name), **hub))
        return with_source(model, Source.of_kind(cls.name, name, **hub))


def normalized(text: str, unit: Unit = "word") -> str:
    """A text as it is compared: NFKC, lower case, without tags, punctuation and symbols.

    An apostrophe joins its neighbours, other punctuation separates words. White space is folded to
    single spaces; for characters it is removed.

    >>> normalized("[verse] Wait\u2026wait, don\u2019t <stop>")
    'wait wait dont stop'
    >>> normalized("a b", "character")
    'ab'
    """
    plain = unicodedata.normalize("NFKC", TAGS.sub(" ", text)).casefold().translate(APOSTROPHES)
    words = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in plain).split()
    return (" " if unit == "word" else "").join(words)


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

    def to(self, device: str) -> None:
        """Move the speech recogniser."""
        model: Any = self._pipeline.model
        model.to(device)
        self._pipeline.device = torch.device(device)

    def __call__(self, samples: npt.NDArray[np.float32], sample_rate: int) -> str:
        """The text of samples (T,)."""
        result: Any = self._pipeline({"raw": samples, "sampling_rate": sample_rate})
        return str(result["text"])
