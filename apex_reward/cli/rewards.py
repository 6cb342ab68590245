"""The options that say what is rewarded, the same for every command, and the `Reward` of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apex_reward.errors import UsageError

if TYPE_CHECKING:
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring.engines import Engine

DEFAULT_MODEL = "amaai-lab/apex"
DEMONSTRATION = (
    "note: these scores are from a demonstration model, not the published one; they show how the "
    "command works, not how good a song is"
)
WHAT, HOW = "What is rewarded", "How it runs"


class DType(StrEnum):
    """Number types of an encoder."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Tail(StrEnum):
    """How a song's last segment counts."""

    pad = "pad"
    mask = "mask"
    drop = "drop"


class GuardAction(StrEnum):
    """What happens where a guard trips."""

    flag = "flag"
    penalty = "penalty"
    veto = "veto"


class EngineName(StrEnum):
    """Who works; as `ENGINES` of apex_reward/scoring/engines.py."""

    local = "local"
    ray = "ray"


ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        help="apex-tiny, songeval, clap, tunejury, audiobox, a hub id, a folder, http://HOST:PORT "
        f"or package.module:Class; several make a panel. Default: {DEFAULT_MODEL}.",
        rich_help_panel=WHAT,
    ),
]
RewardOption = Annotated[
    Path | None,
    typer.Option("--reward", help="A reward file: models, mix, loudness, guards, caution.",
                 rich_help_panel=WHAT),
]  # fmt: skip
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Hub id or folder of the encoder, in place of the model's.",
                 rich_help_panel=WHAT),
]  # fmt: skip
MixOption = Annotated[
    str | None,
    typer.Option(
        help="How heads become the column 'reward': musicality=1,score_likes=0.3, or popularity, "
        "aesthetics, overall, or the model's calibrated 'preference'.",
        rich_help_panel=WHAT,
    ),
]
LoudnessOption = Annotated[
    float | None,
    typer.Option(help="Bring every song to so many LUFS first.", rich_help_panel=WHAT),
]
GuardsOption = Annotated[
    GuardAction | None,
    typer.Option(help="Measure the guards, and what to do where one trips.", rich_help_panel=WHAT),
]
CautionOption = Annotated[
    float | None,
    typer.Option(help="Mean minus so many spreads over an ensemble.", rich_help_panel=WHAT),
]
TailOption = Annotated[
    Tail | None,
    typer.Option("--segment-tail", help="How a song's last segment counts.", rich_help_panel=WHAT),
]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, help="Segments per encoder batch.", rich_help_panel=HOW),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Decoding processes; 0 decodes in this one. With the engine ray: actors.",
        rich_help_panel=HOW,
    ),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        help="local: this process, and those of torchrun or accelerate launch; or ray: actors on "
        "the cluster of RAY_ADDRESS, else on this machine.",
        rich_help_panel=HOW,
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", rich_help_panel=HOW)
]
DTypeOption = Annotated[DType, typer.Option(help="Of the encoder.", rich_help_panel=HOW)]


@dataclass(frozen=True)
class RewardOptions:
    """What a command was given of the options above."""

    model: list[str] | None = None
    reward: Path | None = None
    mix: str | None = None
    loudness: float | None = None
    guards: GuardAction | None = None
    caution: float | None = None
    encoder: str | None = None
    segment_tail: Tail | None = None
    batch_segments: int | None = None
    device: str | None = None
    dtype: DType = DType.float32

    @property
    def rewarded(self) -> bool:
        """Whether rows get a reward: a mix or a reward file says how."""
        return self.mix is not None or self.reward is not None

    @property
    def given(self) -> bool:
        """Whether any model or reward file was named."""
        return bool(self.model) or self.reward is not None


def build_reward(options: RewardOptions) -> Reward:
    """The `Reward` that the options mean.

    Raises:
        UsageError: a reward file together with options that it holds; as `Reward`.
    """
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.rewards.reward import Reward

    loading: dict[str, Any] = {
        "device": options.device,
        "dtype": options.dtype.value,
        "segment_tail": options.segment_tail.value if options.segment_tail else None,
    }
    if options.reward is not None:
        names = ("model", "mix", "loudness", "guards", "caution", "encoder")
        if twice := [name for name in names if getattr(options, name) not in (None, [])]:
            raise UsageError(
                f"--reward says itself what is rewarded; leave out --{', --'.join(twice)}, or "
                "write it into the file"
            )
        reward = Reward.load(options.reward, **loading)
        reward.batch_segments = options.batch_segments
        return warned(reward)
    named = options.model or [DEFAULT_MODEL]
    if options.mix:
        _check_text(options.mix)
    models = [load_reward_model(name, encoder=options.encoder, **loading) for name in named]
    reward = Reward(
        models[0] if len(models) == 1 else models,
        options.mix,
        loudness=options.loudness,
        guards=options.guards.value if options.guards else None,
        caution=options.caution or 0.0,
        batch_segments=options.batch_segments,
    )
    for model, name in zip(models, named, strict=True):
        reward.sources[model.name] = name
    return warned(reward)


def engine_of(name: EngineName, workers: int | None, device: str | None) -> tuple[Engine, int]:
    """The engine, and the decoding processes of each process that works.

    Call it before a model is loaded: every process of a launcher takes its own GPU.
    """
    from apex_reward.rewards.load import default_workers
    from apex_reward.scoring.engines import Engine, share_of_launch

    count = default_workers() if workers is None else workers
    if name is EngineName.ray:
        return Engine("ray", share_of_launch(device), max(1, count), device), 1
    return Engine(share=share_of_launch(device)), count


def warned(reward: Reward) -> Reward:
    """The reward, after saying of a demonstration model that it is one."""
    if reward.demonstration and os.environ.get("RANK", "0") == "0":
        typer.secho(DEMONSTRATION, err=True, fg="yellow")
    return reward


def _check_text(mix: str) -> None:
    """A mix with a mistake is refused before a model is loaded."""
    from apex_reward.scores.mix import RewardMix

    if "=" in mix:
        RewardMix.parse(mix)
