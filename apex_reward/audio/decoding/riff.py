"""WAV whose writer never came back to fill in the length: data to the end of the file."""

from __future__ import annotations

from apex_reward.audio.decoding.pieces import Piece, Plan, Window

_TO_THE_END = b"\xff\xff\xff\xff"


def plan(window: Window) -> Plan:
    """One piece with an open length where the data chunk claims 0 bytes and there are more."""
    position = 12
    while position + 8 <= window.size:
        name, size = _chunk(window, position)
        if name == b"data":
            start = position + 8
            if size or start == window.size or _chunks_to_the_end(window, start):
                return Plan()
            return Plan([Piece(start, window.size, window.at(0, start - 4) + _TO_THE_END)])
        position += 8 + size + size % 2
    return Plan()


def _chunk(window: Window, position: int) -> tuple[bytes, int]:
    head = window.at(position, 8)
    return head[:4], int.from_bytes(head[4:], "little")


def _chunks_to_the_end(window: Window, position: int) -> bool:
    """Whether what follows are other chunks, so that the empty data chunk is really empty."""
    while position + 8 <= window.size:
        name, size = _chunk(window, position)
        if not all(32 <= byte < 127 for byte in name):
            return False
        position += 8 + size + size % 2
    return position in (window.size, window.size + 1)
