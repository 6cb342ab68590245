"""How a server answers, in this process and as plain values for replicas elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apex_reward.errors import UsageError
from apex_reward.serve.batching import BatchLimits


@dataclass(frozen=True)
class ServeSettings:
    """How a server answers.

    Args:
        limits: of batches, queue and waiting.
        songs: songs of one request at most.
        body: bytes of a request at most; four times as many may arrive at once.
        body_seconds: that a request may take to arrive.
        token_file: file with the bearer token that requests must carry; None asks for none.
        audio_root: folder below which paths are read; None reads none.
    """

    limits: BatchLimits = BatchLimits()  # noqa: RUF009
    songs: int = 64
    body: int = 256 << 20
    body_seconds: float = 60.0
    token_file: str | None = None
    audio_root: str | None = None

    def token(self) -> str | None:
        """The bearer token.

        Raises:
            UsageError: the file cannot be read, or is empty.
        """
        if self.token_file is None:
            return None
        try:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UsageError(
                f"--token-file {self.token_file} cannot be read: {error.strerror}"
            ) from error
        if not token:
            raise UsageError(f"--token-file {self.token_file} is empty")
        return token

    def plain(self) -> dict[str, Any]:
        """JSON- and YAML-ready values; `of_plain` reads them."""
        return asdict(self)

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> ServeSettings:
        """The settings of `plain`."""
        return cls(**{**values, "limits": BatchLimits(**values["limits"])})
