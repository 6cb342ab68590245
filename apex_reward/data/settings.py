"""Options of `prepare`. The module is light: the command line reads its help from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ColumnOptions:
    """Names of the columns of a table of metadata.

    Args:
        preset: Set of column names; auto means the first set that fits.
        id_column: Column with the unique name of a song.
        path_column: Column with the audio file.
        platform_column: Column with the platform of a song.
        streams_column: Column with the number of plays.
        likes_column: Column with the number of likes.
        released_column: Column with the date of release.
    """

    preset: Literal["auto", "suno", "udio", "plain"] = "auto"
    id_column: str | None = None
    path_column: str | None = None
    platform_column: str | None = None
    streams_column: str | None = None
    likes_column: str | None = None
    released_column: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Field of a song to column, where one is named."""
        fields = {n.removesuffix("_column"): c for n, c in vars(self).items() if n != "preset"}
        fields["audio_id"] = fields.pop("id")
        return {field: column for field, column in fields.items() if column is not None}


@dataclass(frozen=True)
class PrepareSettings:
    """How metadata becomes a manifest.

    Args:
        audio_dir: Folder of the audio files, to drop unreadable files and duplicates.
        per_platform: Compute percentiles within each platform.
        seed: Random seed of the balance and the split.
    """

    audio_dir: Path | None = None
    per_platform: bool = False
    seed: int = 0
