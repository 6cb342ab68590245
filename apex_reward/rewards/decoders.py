"""Ready `decode` hooks for `ApexRewardFunction`: codec tokens and audio files.

Shape key: B = completions, K = codebooks, F = codec frames, C = channels, T = samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DacModel, EncodecModel

from apex_reward.errors import UsageError, expect, expect_one_of

Layout = Literal["flat", "delay"]


class CodecDecoder:
    """Token ids of a codec language model to waveforms, through EnCodec or DAC of transformers.

    Ids become codes as the language model wrote them: `offset` is the id of code 0 of the first
    codebook, after the text and special tokens; with `stacked`, each codebook has its own ids
    (code c of codebook k is offset + k * codebook_size + c), else all share them.

    An id before `end_token` that is outside its codebook is a stray: its frame is dropped, and
    `strays` counts it. A completion does not decode, and gives None, where strays are more than
    `max_stray` of its ids, or where it has less than one whole frame. An incomplete last frame is
    dropped.

    Args:
        codec: an `EncodecModel` without chunks (24 and 32 kHz) or a `DacModel`, on any device.
        codebooks: K, how many the tokens use; the first ones of the codec.
        layout: `flat`: frame after frame, its K codes in turn. `delay` (MusicGen, arXiv
            2306.05284): the same, but codebook k lags by k frames; ids in the triangles at both
            ends, where there is no code, are ignored.
        offset: id of the first code.
        stacked: whether each codebook has its own ids.
        end_token: ids from its first place on are ignored; None where the tokens have none.
        max_stray: largest share of strays among a completion's ids, in [0, 1).

    Attributes:
        strays: how many strays each completion of the last call had.

    Raises:
        UsageError: K above the codec's codebooks, an EnCodec with chunks, an unknown layout.
    """

    def __init__(
        self,
        codec: EncodecModel | DacModel,
        codebooks: int,
        layout: Layout = "flat",
        *,
        offset: int = 0,
        stacked: bool = True,
        end_token: int | None = None,
        max_stray: float = 0.01,
    ) -> None:
        expect(0 <= max_stray < 1, "max_stray", max_stray, "a share in [0, 1)")
        expect_one_of("layout", layout, get_args(Layout))
        if isinstance(codec, EncodecModel):
            available = len(codec.quantizer.layers)
            if codec.config.chunk_length is not None:
                raise UsageError(
                    "this EnCodec codes songs in scaled chunks, which token streams do not carry; "
                    "use the 24 kHz or 32 kHz one"
                )
        else:
            available = codec.config.n_codebooks
        expect(1 <= codebooks <= available, "codebooks", codebooks, f"1 to {available}")
        self.codec, self.codebooks, self.layout = codec, codebooks, layout
        self.offset, self.stacked = offset, stacked
        self.end_token, self.max_stray = end_token, max_stray
        self.strays: list[int] = []
        self.sample_rate: int = codec.config.sampling_rate

    @property
    def lag(self) -> int:
        """Steps by which the last codebook lags behind the first."""
        return self.codebooks - 1 if self.layout == "delay" else 0

    @property
    def expected(self) -> str:
        """The ids that decode, in words, for messages."""
        ranges = [self.codes_of(k) for k in range(self.codebooks)]
        shown = ", ".join(f"{ids[0]} to {ids[-1]}" for ids in ranges)
        if not self.stacked:
            shown = f"{ranges[0][0]} to {ranges[0][-1]} for each"
        end = "" if self.end_token is None else f", ended by {self.end_token}"
        return (
            f"ids of {self.codebooks} codebooks in turn ({self.layout} layout): {shown}{end}; at "
            f"least {self.codebooks * (1 + self.lag)} of them"
        )

    def codes_of(self, codebook: int) -> range:
        """The ids of one codebook's codes."""
        size: int = self.codec.config.codebook_size
        first = self.offset + (codebook * size if self.stacked else 0)
        return range(first, first + size)

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """Decode B completions; those of one length together.

        Returns:
            B waveforms (C, T) at `sample_rate`, or None.

        Raises:
            UsageError: a completion that is no row of whole numbers, such as audio.
        """
        songs: list[Tensor | None] = [None] * len(completion_ids)
        self.strays = []
        by_length: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for i, ids in enumerate(completion_ids):
            codes, strays = self._read(ids)
            self.strays.append(strays)
            if codes is not None:
                by_length[codes.shape[1]].append((i, codes))
        for members in by_length.values():
            waveforms = self._decode(torch.stack([codes for _, codes in members]))
            for (i, _), waveform in zip(members, waveforms, strict=True):
                songs[i] = waveform
        return songs

    def _read(self, ids: Sequence[int]) -> tuple[Tensor | None, int]:
        """Codes (K, F) of one completion (or None), and how many of its ids are strays."""
        given = torch.as_tensor(ids)
        if given.numel() and (given.is_floating_point() or given.dim() != 1):
            raise UsageError(
                f"a completion has shape {tuple(given.shape)} and type {given.dtype}; expected a "
                "row of token ids. MusicGen's `generate` returns audio, also as `sequences`: pass "
                "it on as (samples, sample rate)"
            )
        kept = given.tolist()
        if self.end_token in kept:
            kept = kept[: kept.index(self.end_token)]
        steps = len(kept) // self.codebooks
        frames = steps - self.lag
        if frames < 1:
            return None, 0
        whole_steps = torch.tensor(kept[: steps * self.codebooks]).view(steps, self.codebooks)
        behind = [k if self.lag else 0 for k in range(self.codebooks)]
        grid = torch.stack([  # (K, F), codes from 0
            whole_steps[lag : lag + frames, k] - self.codes_of(k)[0] for k, lag in enumerate(behind)
        ])  # fmt: skip
        stray = (grid < 0) | (grid >= self.codec.config.codebook_size)
        strays = int(stray.sum())
        whole = ~stray.any(dim=0)
        if strays > self.max_stray * grid.numel() or not bool(whole.any()):
            return None, strays
        return grid[:, whole], strays

    @torch.no_grad()
    def _decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F) to waveforms (B, C, T)."""
        codes = codes.to(self.codec.device)
        decode: Callable[..., Any] = self.codec.decode
        encodec = isinstance(self.codec, EncodecModel)
        decoded = decode(codes[None], [None]) if encodec else decode(audio_codes=codes)
        waveforms: Tensor = decoded.audio_values
        # DAC has one channel and leaves the dimension out.
        return waveforms.reshape(len(codes), -1, waveforms.shape[-1])


def audio_files(column: str = "audio") -> Callable[..., list[Any]]:
    """A decode hook for songs that lie in files, or in a column of the dataset.

    For completions that something else has rendered (a rollout function that writes files and
    returns their paths as an extra field, or a dataset of finished songs).

    Args:
        column: the dataset's column, one cell per completion: a path, an Audio column's value, or
            any other form that `apex_reward.rewards.songs.song_of` reads; None for a song that
            failed.

    Returns:
        The hook. A completion whose cell cannot be read has no score.
    """

    def decode(**columns: Any) -> list[Any]:
        if column not in columns:
            raise UsageError(
                f"the dataset has no column {column!r}; it has {', '.join(sorted(columns))}"
            )
        return list(columns[column])

    return decode
