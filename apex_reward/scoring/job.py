"""Score files into a result file: grows as results come, and goes on where it was killed."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex_reward.errors import UsageError
from apex_reward.files.growing import GrowingTable
from apex_reward.files.tables import check_format, read_table, write_json
from apex_reward.rewards.engine import BLOCK_SONGS
from apex_reward.scores.mix import RewardMix
from apex_reward.scoring.rows import Row, check_mix, score_songs

if TYPE_CHECKING:
    import pyarrow as pa

    from apex_reward.model import ApexReward

# Called with a row, and whether this run made it (or a former one left it).
OnRow = Callable[[Row, bool], None]


@dataclass(frozen=True)
class ScoreSettings:
    """What decides the rows of a run, beside the model and the inputs.

    Args:
        mix: adds `reward`, as in `score_songs`.
        segments: write the second file, a row per segment.
        batch_segments: segments per encoder batch; None takes the model's configuration.
    """

    mix: str | RewardMix | None = None
    segments: bool = False
    batch_segments: int | None = None


def score_to_file(
    model: ApexReward,
    sources: Sequence[str],
    output: str | Path,
    settings: ScoreSettings,
    *,
    workers: int = 0,
    resume: bool = False,
    on_row: OnRow = lambda row, fresh: None,
) -> None:
    """Score files into `output`, row by row; the same bytes for any workers and after any resume.

    Rows grow in `output.partial` (JSON lines), beside `output.partial.json`, which says what they
    were made with. A resumed run goes on at the last whole block of songs.

    Args:
        output: `.jsonl`, `.csv` or `.parquet`. With `settings.segments` a second file beside it
            has `.segments` before its ending.
        resume: go on where a killed run stopped; nothing is done where `output` exists.
        on_row: called with every row, and False for those that a former run left.

    Raises:
        UsageError: a wrong ending or mix, or a partial file of other inputs, model or settings.
    """
    check_format(output)
    target = Path(output)
    sidecar = target.with_name(target.name + ".partial.json")
    songs = GrowingTable(target, song_schema(model, settings.mix))
    parts = GrowingTable(segments_path(target), segment_schema(model))
    if resume and target.exists():
        for leftover in (songs.partial, sidecar):  # of a kill in the very last step
            leftover.unlink(missing_ok=True)
        for row in read_table(target).to_pylist():
            on_row(row, False)
        return
    stamp = _stamp(model, sources, settings)
    block = block_songs(settings.batch_segments or model.config.batch_segments)
    kept: list[Row] = []
    if resume and (rows := songs.written()):
        _check_stamp(sidecar, songs.partial, stamp)
        kept = _whole(rows, parts if settings.segments else None)
        if len(kept) < len(sources):
            kept = kept[: len(kept) // block * block]
    songs.start(keep=len(kept))
    if settings.segments:
        parts.start(keep=sum(row["segments"] for row in kept))
    # Only now: a stamp must never stand beside rows of another run.
    write_json(sidecar, stamp)
    for row in kept:
        on_row(row, False)
    for row in score_songs(
        model,
        sources[len(kept) :],
        mix=settings.mix,
        segments=settings.segments,
        batch_segments=settings.batch_segments,
        workers=workers,
        block=block,
    ):
        # Segments first: a song's row says that its segments are there.
        if settings.segments:
            parts.append(row.pop("segment_rows"))
        songs.append([row])
        on_row(row, True)
    if settings.segments:
        parts.finish()
    songs.finish()
    sidecar.unlink()


def segments_path(output: Path) -> Path:
    """The second file's path.

    >>> segments_path(Path("out/scores.csv")).name
    'scores.segments.csv'
    """
    return output.with_name(f"{output.stem}.segments{output.suffix}")


def block_songs(batch_segments: int) -> int:
    """Songs per block: a kill costs at most these; only a block's last batch is not full."""
    return max(BLOCK_SONGS, 4 * batch_segments)


def song_schema(model: ApexReward, mix: str | RewardMix | None) -> pa.Schema:
    """Columns and types of a result file; the metadata names the model."""
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("duration", pa.float64()),
            ("sample_rate", pa.int64()),
            ("segments", pa.int64()),
            *((head, pa.float64()) for head in model.config.head_names),
            *([("reward", pa.float64())] if mix is not None else []),
            ("flags", pa.list_(pa.string())),
            ("error", pa.string()),
        ],
        metadata=_metadata(model),
    )


def segment_schema(model: ApexReward) -> pa.Schema:
    """Columns and types of the file with a row per segment."""
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("segment", pa.int64()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            *((head, pa.float64()) for head in model.config.head_names),
        ],
        metadata=_metadata(model),
    )


def _metadata(model: ApexReward) -> dict[str, str]:
    return {
        "apex_reward.model": str(model.config.name_or_path),
        "apex_reward.demonstration": json.dumps(bool(model.config.demonstration)),
    }


def _whole(rows: list[Row], parts: GrowingTable | None) -> list[Row]:
    """The rows whose segments were written too."""
    if parts is None:
        return rows
    ends = list(accumulate(row["segments"] for row in rows))
    return rows[: bisect_right(ends, len(parts.written()))]


def _check_stamp(sidecar: Path, partial: Path, stamp: dict[str, Any]) -> None:
    try:
        former = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        former = {}
    other = [name for name, value in stamp.items() if former.get(name) != value]
    if other:
        raise UsageError(
            f"{partial} was made with other {' and '.join(other)}; resume with the same, or leave "
            "out --resume to start anew"
        )


def _stamp(model: ApexReward, sources: Sequence[str], settings: ScoreSettings) -> dict[str, Any]:
    """What a run's rows depend on, as hashes and plain values."""
    mixer = check_mix(model, settings.mix)
    inputs = hashlib.sha256()
    for source in sources:
        inputs.update(json.dumps(source).encode() + b"\n")
    return {
        "inputs": inputs.hexdigest(),
        "model": _model_hash(model),
        "settings": {
            "mix": mixer.to_dict() if isinstance(mixer, RewardMix) else mixer,
            "segments": settings.segments,
            "batch_segments": settings.batch_segments or model.config.batch_segments,
            "segment_tail": model.config.segment_tail,
            "dtype": str(model.dtype),
            "device": model.device.type,
        },
    }


def _model_hash(model: ApexReward) -> str:
    """A hash of weights and settings: the same name may hold another model tomorrow."""
    import torch

    config = model.config.to_dict()
    names = ("encoder", "layers", "task", "sample_rate", "segment_seconds", "preference")
    values = json.dumps({name: config[name] for name in names}, sort_keys=True)
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
