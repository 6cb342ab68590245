"""Files that libsndfile does not write, made by FFmpeg through PyAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from tests.audio.long_files import encoded as by_libsndfile


@dataclass(frozen=True)
class Kind:
    """A container and a codec by FFmpeg's names, and options of the encoder."""

    container: str
    codec: str
    rate: int = 44_100
    options: dict[str, str] = field(default_factory=dict)


VBR = {"flags": "+qscale", "global_quality": "118"}
KINDS = {
    "adts.aac": Kind("adts", "aac", options=VBR),
    "a.m4a": Kind("ipod", "aac"),
    "alac.m4a": Kind("ipod", "alac"),
    "a.wma": Kind("asf", "wmav2", options={"b": "128k"}),
    "opus.caf": Kind("caf", "libopus", 48_000),
    "vorbis.mkv": Kind("matroska", "vorbis"),
    "opus.webm": Kind("webm", "libopus", 48_000),
    "opus.opus": Kind("ogg", "libopus", 48_000),
    "pcm.mka": Kind("matroska", "pcm_s16le"),
    "aac.mka": Kind("matroska", "aac"),
    "flac.mka": Kind("matroska", "flac"),
    "a.ts": Kind("mpegts", "aac"),
    "ac3.mka": Kind("matroska", "ac3"),
}


def encoded(samples: np.ndarray, kind: Kind, layout: str = "") -> bytes:
    """Samples (T, C) float32 as a file."""
    if kind.codec == "vorbis":  # libsndfile's packets: FFmpeg's own encoder is an experiment
        return _copied(by_libsndfile(samples, "OGG"), kind)
    if kind.container == "caf":  # FFmpeg no longer writes Opus there
        return _opus_in_caf(encoded(samples, KINDS["opus.opus"]), samples.shape[1])
    layout = layout or {1: "mono", 2: "stereo"}[samples.shape[1]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind.container) as container:
        track = container.add_stream(kind.codec, kind.rate, options=kind.options, layout=layout)
        source = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32).reshape(1, -1), format="flt", layout=layout
        )
        source.sample_rate, source.pts = kind.rate, 0
        track.codec_context.open()
        size = track.codec_context.frame_size or 1024
        converter = av.AudioResampler(track.format.name, layout, kind.rate, size)
        for frame in [*converter.resample(source), *converter.resample(None)]:
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return buffer.getvalue()


def _copied(data: bytes, kind: Kind) -> bytes:
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(buffer, "w", format=kind.container) as container,
    ):
        track = container.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = track
                container.mux(packet)
    return buffer.getvalue()


def _opus_in_caf(ogg: bytes, channels: int) -> bytes:
    """Chunks of Apple's Core Audio Format: description, packet table, data; 20 ms a packet."""
    with av.open(io.BytesIO(ogg)) as source:
        packets = [bytes(packet) for packet in source.demux(audio=0) if packet.size]
    sizes = b"".join(
        bytes([0x80 | len(p) >> 7, len(p) & 0x7F]) if len(p) > 127 else bytes([len(p)])
        for p in packets
    )
    description = struct.pack(">d4s5I", 48_000.0, b"opus", 0, 0, 960, channels, 0)
    table = struct.pack(">qqII", len(packets), 960 * len(packets), 0, 0) + sizes
    chunks = {b"desc": description, b"pakt": table, b"data": bytes(4) + b"".join(packets)}
    head = b"caff\0\1\0\0"
    return head + b"".join(k + struct.pack(">q", len(v)) + v for k, v in chunks.items())


def whole_decode(data: bytes) -> np.ndarray:
    """(C, T) float32: every frame of a fresh decoder, one behind the other."""
    with av.open(io.BytesIO(data)) as container:
        return np.concatenate(list(_floats(container.decode(audio=0))), axis=1)


def _floats(frames: Sequence[av.AudioFrame]) -> Iterator[np.ndarray]:
    for frame in frames:
        array = frame.to_ndarray()
        if not frame.format.is_planar:
            array = array.reshape(-1, len(frame.layout.channels)).T
        scale = 1 if array.dtype.kind == "f" else 2 ** (8 * array.dtype.itemsize - 1)
        yield array.astype(np.float32) / np.float32(scale)
