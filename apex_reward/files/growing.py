"""Result files that grow in `F.partial` and become `F` at the end.

While it grows a result is JSON lines, whatever `F` ends in: a line is whole or missing, so a
killed run loses its last line at most. A `.csv` or `.parquet` is converted when all rows are there.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from apex_reward.errors import ApexError, UsageError
from apex_reward.files.atomic import writing
from apex_reward.files.tables import check_format, json_line, write_table


class GrowingTable:
    """A table that is written row by row and can be taken up again.

    Args:
        path: F, ending in `.jsonl`, `.csv` or `.parquet`.
        schema: columns and types of F; its metadata goes into a Parquet file. None: those of its
            rows.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._ending = check_format(path)
        self._schema = schema
        self._ends = [0]  # bytes behind the rows that were read last

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file against a second run; a full disk ends the block with one clear line.

        Raises:
            UsageError: another run is writing it.
            ApexError: the disk is full; what was written is kept.
        """
        with writing(self.path):
            try:
                yield
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ApexError(
                    f"the disk is full; the rows so far are kept in {self.partial}. Make room and "
                    "go on with --resume"
                ) from error

    def written(self) -> list[dict[str, Any]]:
        """The whole rows that a former run left, up to the first line that is not one."""
        rows: list[dict[str, Any]] = []
        self._ends = [0]
        with suppress(FileNotFoundError, ValueError), open(self.partial, "rb") as file:
            for line in file:
                row = json.loads(line.decode())
                if not line.endswith(b"\n") or not isinstance(row, dict):
                    break
                rows.append(row)
                self._ends.append(self._ends[-1] + len(line))
        return rows

    def start(self, keep: int = 0) -> None:
        """Begin behind the first `keep` rows of a former run.

        Raises UsageError where the file cannot be written.
        """
        if keep >= len(self._ends):
            self.written()
        try:
            if self.path.is_dir():
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.touch()
            os.truncate(self.partial, self._ends[keep])
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows and hand them to the operating system, where a kill cannot reach them."""
        with open(self.partial, "ab") as file:
            file.write(b"".join(json_line(row).encode() for row in rows))

    def finish(self) -> None:
        """Make F of the partial file; nothing where a former call did."""
        if not self.partial.exists():
            return
        if self._ending == ".jsonl":
            self.partial.replace(self.path)
            return
        write_table(self.path, pa.Table.from_pylist(self.written(), schema=self._schema))
        self.partial.unlink()
