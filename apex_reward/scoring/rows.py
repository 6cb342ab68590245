"""Result rows: a SongResult through pooling, predictor and mix, as plain JSON-ready values.

Shape key: S = segments of a song, L = kept layers (4), W = embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.rewards.engine import BLOCK_SONGS, SongResult, run_songs
from apex_reward.scores.mix import RewardMix, as_mix

if TYPE_CHECKING:
    from torch import Tensor

    from apex_reward.model import ApexReward

PREFERENCE = "preference"
Row = dict[str, Any]


def score_songs(
    model: ApexReward,
    sources: Sequence[str],
    *,
    mix: str | RewardMix | None = None,
    segments: bool = False,
    batch_segments: int | None = None,
    workers: int = 0,
    block: int = BLOCK_SONGS,
) -> Iterator[Row]:
    """Score files: one row per source, in their order, each as soon as it is ready.

    Args:
        model, sources, batch_segments, workers, block: as in `run_songs`.
        mix: adds the column `reward`: a mix as in `model.reward`.
        segments: adds the key `segment_rows`: a list of rows `path`, `segment` (from 1), `start`
            and `end` in seconds of real audio, and the heads of that segment alone.

    Yields:
        `path`, `duration` (seconds), `sample_rate` (Hz), `segments` (their number), a column per
        head, `reward` with a mix, `flags` (list of text), `error` (None or text). In a row with an
        error, `segments` is 0 and the other numbers are None.

    Raises:
        UsageError: a mix that needs groups, or heads that the model lacks.
    """
    mixer = check_mix(model, mix)
    results = run_songs(model, sources, batch_segments=batch_segments, workers=workers, block=block)
    for result in results:
        row = song_row(model, result, mixer)
        yield {**row, "segment_rows": segment_rows(model, result)} if segments else row


def check_mix(model: ApexReward, mix: str | RewardMix | None) -> str | RewardMix | None:
    """The mix as `song_row` takes it, after checking that it makes sense song by song.

    Raises:
        UsageError: normalised within groups, over heads that the model lacks, or `preference`
            where it has none.
    """
    if mix is None:
        return None
    mixer = mix if mix == PREFERENCE else as_mix(mix)
    if isinstance(mixer, RewardMix) and mixer.normalization == "group":
        raise UsageError(
            "a mix normalised by group compares songs of one prompt, which a row per song does "
            "not know; use range, zscore or none here"
        )
    import torch

    # One made-up song shows now what would otherwise fail at the first real one.
    embedding = torch.zeros(1, model.config.width, device=model.device)
    with torch.no_grad():
        model.mix_scores(model.score_embeddings(embedding), embedding, mixer)
    return mixer


def song_row(model: ApexReward, result: SongResult, mix: str | RewardMix | None = None) -> Row:
    """The row of one song, as in `score_songs`."""
    values: Row = dict.fromkeys(model.config.head_names)
    if mix is not None:
        values["reward"] = None
    if result.layers is not None:
        values.update(_song_values(model, result, mix))
    return {
        "path": printable(result.path),
        "duration": result.duration,
        "sample_rate": result.sample_rate,
        "segments": len(result.weights),
        **values,
        "flags": list(result.flags),
        "error": None if result.error is None else printable(result.error),
    }


def segment_rows(model: ApexReward, result: SongResult) -> list[Row]:
    """One row per segment of a song, as in `score_songs`; none for a song with an error."""
    import torch

    if result.layers is None:
        return []
    with torch.inference_mode():
        embeddings = model.pool(result.layers.to(model.device))
        scores = model.score_embeddings(embeddings).rows()
    ends = list(accumulate(result.segment_seconds))
    path = printable(result.path)
    return [
        {"path": path, "segment": n, "start": start, "end": end, **heads}
        for n, (start, end, heads) in enumerate(zip([0.0, *ends], ends, scores, strict=False), 1)
    ]


def printable(path: str) -> str:
    """Text that any file can hold: bytes of a name that are not UTF-8 become `\\udcNN`."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _song_values(
    model: ApexReward, result: SongResult, mix: str | RewardMix | None
) -> Mapping[str, float]:
    import torch

    with torch.inference_mode():
        embedding = model.pool(_song_mean(result).to(model.device))
        scores = model.score_embeddings(embedding)
        (values,) = scores.rows()
        if mix is not None:
            values["reward"] = model.mix_scores(scores, embedding, mix).item()
    return values


def _song_mean(result: SongResult) -> Tensor:
    """Layer embeddings of the whole song, (1, L, W)."""
    import torch

    if result.layers is None:
        raise ValueError("a song with an error has no layer embeddings")
    weights = torch.tensor(result.weights, dtype=result.layers.dtype)
    return torch.einsum("slw,s->lw", result.layers, weights)[None]
