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

from apex_reward.audio import Waveform, load_audio
from apex_reward.errors import AudioError, UsageError

Layout = Literal["flat", "delay"]


class CodecDecoder:
    """Token ids of a codec language model to waveforms, through EnCodec or DAC of transformers.

    Ids become codes as the language model wrote them: `offset` is the id of code 0 of the first
    codebook, after the text and special tokens; with `stacked`, each codebook has its own ids
    (code c of codebook k is offset + k * codebook_size + c), else all share them.

    A completion does not decode, and gives None, where an id before `end_token` is no code of its
    codebook, or where less than one whole frame is there. An incomplete last frame is dropped.

    Args:
        codec: an `EncodecModel` without chunks (24 and 32 kHz) or a `DacModel`, on any device.
        codebooks: K, how many the tokens use; the first ones of the codec.
        layout: `flat`: frame after frame, its K codes in turn. `delay` (MusicGen, arXiv
            2306.05284): the same, but codebook k lags by k frames; ids in the triangles at both
            ends, where there is no code, are ignored.
        offset: id of the first code.
        stacked: whether each codebook has its own ids.
        end_token: ids from the first one of these on are ignored; None: there is none.

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
    ) -> None:
        if layout not in get_args(Layout):
            raise UsageError(f"layout is {layout!r}; expected {', '.join(get_args(Layout))}")
        if isinstance(codec, EncodecModel):
            available = len(codec.quantizer.layers)
            if codec.config.chunk_length is not None:
                raise UsageError(
                    "this EnCodec codes songs in scaled chunks, which token streams do not carry; "
                    "use the 24 kHz or 32 kHz one"
                )
        else:
            available = codec.config.n_codebooks
        if not 1 <= codebooks <= available:
            raise UsageError(f"codebooks is {codebooks}; this codec has 1 to {available}")
        self.codec = codec
        self.codebooks = codebooks
        self.layout = layout
        self.offset = offset
        self.stacked = stacked
        self.end_token = end_token
        self.sample_rate: int = codec.config.sampling_rate

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """Decode B completions; those of one length together.

        Returns:
            B waveforms (C, T) at `sample_rate`, or None.
        """
        songs: list[Tensor | None] = [None] * len(completion_ids)
        by_length: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for i, ids in enumerate(completion_ids):
            codes = self.codes(ids)
            if codes is not None:
                by_length[codes.shape[1]].append((i, codes))
        for members in by_length.values():
            waveforms = self._decode(torch.stack([codes for _, codes in members]))
            for (i, _), waveform in zip(members, waveforms, strict=True):
                songs[i] = waveform
        return songs

    def codes(self, ids: Sequence[int]) -> Tensor | None:
        """Codes (K, F) of one completion, or None where it does not decode."""
        kept = list(ids)
        if self.end_token in kept:
            kept = kept[: kept.index(self.end_token)]
        steps = len(kept) // self.codebooks
        grid = torch.tensor(kept[: steps * self.codebooks], dtype=torch.long)
        grid = grid.reshape(steps, self.codebooks).T - self.offset  # (K, steps)
        lag = self.codebooks - 1 if self.layout == "delay" else 0
        frames = steps - lag
        if frames < 1:
            return None
        if lag:
            grid = torch.stack([grid[k, k : k + frames] for k in range(self.codebooks)])
        size = self.codec.config.codebook_size
        if self.stacked:
            grid = grid - size * torch.arange(self.codebooks)[:, None]
        return grid if bool(((grid >= 0) & (grid < size)).all()) else None

    @torch.no_grad()
    def _decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F) to waveforms (B, C, T)."""
        codes = codes.to(self.codec.device)
        decode: Callable[..., Any] = self.codec.decode
        if isinstance(self.codec, EncodecModel):
            waveforms: Tensor = decode(codes[None], [None]).audio_values
        else:
            waveforms = decode(audio_codes=codes).audio_values
        # DAC has one channel and leaves the dimension out.
        return waveforms.reshape(len(codes), -1, waveforms.shape[-1])


def audio_files(column: str = "audio") -> Callable[..., list[Waveform | None]]:
    """A decode hook for songs that lie in files: paths in a column of the dataset.

    For completions that something else has rendered (a rollout function that writes files and
    returns their paths as an extra field, or a dataset of finished songs).

    Args:
        column: the dataset's column of paths, one per completion.

    Returns:
        The hook; a file that cannot be read gives None.
    """

    def decode(**columns: Any) -> list[Waveform | None]:
        if column not in columns:
            raise UsageError(
                f"the dataset has no column {column!r}; it has {', '.join(sorted(columns))}"
            )
        return [_read(path) for path in columns[column]]

    return decode


def _read(path: str) -> Waveform | None:
    try:
        return load_audio(path)
    except AudioError:
        return None
