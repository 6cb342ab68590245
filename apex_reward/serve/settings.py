"""How a server answers, in this process and as plain values for replicas elsewhere.

The module is light: the command line reads its options from here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from apex_reward.errors import UsageError


@dataclass(frozen=True)
class ServeOptions:
    """Requests.

    Args:
        max_songs: songs of one request.
        max_seconds: length of a song.
        max_queue: songs that wait; further songs are refused.
        max_wait: longest time that a song waits for others to share its batch.
        token_file: file with the bearer token that requests must carry.
        audio_root: folder of the paths that requests may name.
    """

    max_songs: Annotated[int, (1, None)] = 64
    max_seconds: Annotated[float, "SECONDS", (1, None)] = 600.0
    max_queue: Annotated[int, (1, None)] = 256
    max_wait: Annotated[float, "SECONDS", (0, None)] = 0.02
    token_file: Annotated[str | None, "FILE"] = None
    audio_root: Annotated[str | None, "FOLDER"] = None


@dataclass(frozen=True)
class ServeSettings(ServeOptions):
    """How a server answers.

    Args:
        segments: segments at which a batch is closed.
        workers: decoding processes.
        body: bytes of a request at most; four times as many may arrive at once.
        body_seconds: that a request may take to arrive.
    """

    segments: int = 64
    workers: int = 1
    body: int = 256 << 20
    body_seconds: float = 60.0

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
        """JSON- and YAML-ready values for `ServeSettings(**values)`, with whole paths."""
        paths = {"token_file": self.token_file, "audio_root": self.audio_root}
        whole = {name: path and str(Path(path).resolve()) for name, path in paths.items()}
        return asdict(self) | whole
