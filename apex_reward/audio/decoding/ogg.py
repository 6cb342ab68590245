"""Ogg by its pages (RFC 3533): where one stream of a chain ends and the next begins."""

from __future__ import annotations

from apex_reward.audio.decoding.pieces import Piece, Plan, Window

_HEAD = 27
_BEGINS = 0x02


def plan(window: Window) -> Plan:
    """The streams of a chain (songs behind each other in one file)."""
    starts: list[int] = []
    position, beginning, cut = 0, False, False
    while position + _HEAD <= window.size:
        head = window.at(position, _HEAD)
        if head[:4] != b"OggS":
            position = window.find(b"OggS", position + 1)
            continue
        begins = bool(head[5] & _BEGINS)
        # Streams side by side (sound and pictures) begin together: one link of the chain.
        if begins and not beginning:
            starts.append(position)
        beginning = begins
        position += _HEAD + head[26] + sum(window.at(position + _HEAD, head[26]))
        cut = position > window.size
    if len(starts) < 2:
        return Plan(cut=cut)
    ends = [*starts[1:], window.size]
    return Plan([Piece(a, b) for a, b in zip(starts, ends, strict=True)], cut=cut)
