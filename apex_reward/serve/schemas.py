"""The wire: what requests look like. The routes of `serve.app` say what they answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SongIn(BaseModel):
    """One song of a JSON request: base64 of an audio file, or a path below the audio root.

    `prompt` is a text or chat messages; `lyrics` is a text.
    """

    model_config = ConfigDict(extra="forbid")
    audio: str | None = None
    path: str | None = None
    prompt: Any = None
    lyrics: Any = None


class ScoreRequest(BaseModel):
    """`POST /score` as JSON."""

    model_config = ConfigDict(extra="forbid")
    songs: list[SongIn] = Field(min_length=1)


class OpenRLHFRequest(BaseModel):
    """`POST /openrlhf`: queries are paths below the audio root, or data URIs of audio files."""

    query: list[str] = Field(min_length=1)
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


class WaveformRequest(BaseModel):
    """verl-omni's HTTP protocol 1."""

    protocol_version: str
    waveform_f32_base64: str
    num_samples: int = Field(ge=1)
    sample_rate: int = Field(ge=1, le=768_000)
    prompt: Any = None
    metadata: dict[str, Any] | None = None
