"""`load_reward_model`: the one way in, for every command and for Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from apex_reward.errors import CheckpointError, UsageError, expect_one_of, named
from apex_reward.model.files import EMBEDDED, read_config
from apex_reward.model.source import Source, with_source
from apex_reward.rewards.protocol import RewardModel, check_model

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_DEFAULT_WORKERS = 8
# Names that stand for a class; `name:FOLDER` takes its weights from there.
FOREIGN = {
    "songeval": "apex_reward.rewards.foreign.songeval:SongEval",
    "clap": "apex_reward.rewards.foreign.clap:Clap",
    "tunejury": "apex_reward.rewards.foreign.tunejury:TuneJury",
    "audiobox": "apex_reward.rewards.foreign.audiobox:Audiobox",
    "muq-eval": "apex_reward.rewards.foreign.muq_eval:MuQEval",
    "lyrics": "apex_reward.rewards.foreign.lyrics:Lyrics",
    "rulers": "apex_reward.rewards.foreign.rulers:Rulers",
    "judge": "apex_reward.rewards.foreign.judge:AudioJudge",
}
KNOWN = (*EMBEDDED, *FOREIGN)
APEX, SERVER, CLASS = "apex", "a server", "a class"
CLASSES = {
    **FOREIGN,
    APEX: "apex_reward.model.apex:ApexReward",
    SERVER: "apex_reward.rewards.foreign.remote:RemoteReward",
}
# Options of the kinds that take any; the others read their weights from one place.
TAKES = {APEX: ("encoder", "segment_tail"), "muq-eval": ("encoder",)}
# What a saved folder's config.json says it is.
MODEL_TYPES = {
    **{f"apex_reward_{name.replace('-', '_')}": name for name in FOREIGN},
    "clap": "clap",  # a folder in transformers' own layout
}


def load_reward_model(
    name: str | Path | Source,
    *,
    encoder: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    segment_tail: str | None = None,
    **hub: Any,
) -> RewardModel:
    """A reward model ready to score on a device.

    Args:
        name: `apex-tiny` or `apex-tiny-fast` (embedded), a hub id or folder of an APEX model, a
            folder that `apex-reward import` wrote, `songeval`, `clap`, `tunejury`, `audiobox`,
            `muq-eval`, `lyrics`, `rulers` or `judge` (also `songeval:FOLDER`), the address of a
            server (`http://...`), or `package.module:Class`; or the `Source` of a model, whose
            fields are the defaults of the options here.
        encoder: hub id or folder of the encoder, in place of the one that the model names.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, ...; None takes a GPU where there is one.
        dtype: of the encoder: `float32`, `bfloat16`, `float16`, or `auto` (bfloat16 where hardware
            multiplies it faster than float32); heads keep float32, and a dtype that the device
            computes wrongly falls back to float32 with a warning.
        segment_tail: `pad`, `mask` or `drop`, for an APEX model; None takes the model's own.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`; they reach the encoder too. Of a
            server `token` is the bearer token.

    Raises:
        UsageError: no such model, device, dtype or segment tail; options that it does not take.
        CheckpointError: files that are missing, damaged or of another layout.
    """
    source = Source(str(name)) if isinstance(name, (str, Path)) else name
    text, place = source.name, usable_device(device)
    if source.revision is not None:
        hub.setdefault("revision", source.revision)
    expect_one_of("dtype", dtype, DTYPES)
    encoder, segment_tail = encoder or source.encoder, segment_tail or source.segment_tail
    given = {"encoder": encoder, "segment_tail": segment_tail}
    options = {key: value for key, value in given.items() if value}
    kind, folder = _kind_of(text)
    if wrong := [f"--{key.replace('_', '-')}" for key in options if key not in TAKES.get(kind, ())]:
        raise UsageError(f"{' and '.join(wrong)} is for APEX models; {text} takes none")
    model = _placed(_made(kind, folder, options, hub), place, dtype)
    return with_source(model, Source(text, encoder, segment_tail, hub.get("revision")))


def usable_device(device: str | None) -> torch.device:
    """The torch device of a name; None takes a GPU where there is one.

    Raises:
        UsageError: it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used here: {reason}") from error
    return place


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers' own: reading and writing weights takes a second."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def default_workers() -> int:
    """Decoding processes when the user names no number: a core is left to the encoder."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(MAX_DEFAULT_WORKERS, cores - 1))


def _kind_of(name: str) -> tuple[str, str]:
    """What a name stands for, and the place of its weights."""
    kind, _, folder = name.partition(":")
    if kind in FOREIGN:
        return kind, folder
    if name.startswith(("http://", "https://")):
        return SERVER, name
    if ":" in name and not Path(name).exists():
        return CLASS, name
    with suppress(CheckpointError):  # the reader of APEX models says what is wrong with it
        return MODEL_TYPES.get(str(read_config(Path(name)).get("model_type")), APEX), name
    return APEX, name


def _made(kind: str, folder: str, options: Mapping[str, Any], hub: Mapping[str, Any]) -> Any:
    made: Any = named(CLASSES.get(kind, folder), "Class")
    if kind == SERVER:
        return made(folder, token=hub.get("token"))
    if kind == CLASS:
        return check_model(made(), folder)
    with without_bars():
        if hasattr(made, "from_pretrained"):
            return made.from_pretrained(*filter(None, [folder]), **options, **hub)
        if folder:
            raise UsageError(f"{kind} takes no folder; name it alone")
        return made()


def _placed(model: Any, place: torch.device, dtype: str) -> RewardModel:
    """The model on its device, its encoder in a dtype that the device computes rightly."""
    here, set_dtype = isinstance(model, torch.nn.Module), getattr(model, "set_encoder_dtype", None)
    if here:
        torch.nn.Module.to(model, place)
    if dtype == "float32" or (dtype == "auto" and not (here and set_dtype)):
        return model
    if not (here and set_dtype):
        raise UsageError(f"{model.name} has no number type to choose; leave out --dtype {dtype}")
    set_dtype(dtype)
    return model
