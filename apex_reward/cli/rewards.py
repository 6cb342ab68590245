"""The options that say what is rewarded, the same for every command, and the `Reward` of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
_what = partial(typer.Option, rich_help_panel="What is rewarded")
_how = partial(typer.Option, rich_help_panel="How it runs")

DType = Literal["auto", "float32", "bfloat16", "float16"]
Tail = Literal["pad", "mask", "drop"]
GuardAction = Literal["flag", "penalty", "veto"]
DeviceOption = Annotated[
    str | None,
    _how(metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="a GPU where there is one"),
]
WorkersOption = Annotated[
    int | None,
    _how(
        min=0,
        metavar="N",
        help="Decoding processes; 0 decodes in this one, which a file that crashes then ends.",
        show_default="by the cores",
    ),
]


@dataclass(frozen=True)
class RewardOptions:
    """What is rewarded, as a command was told; the default of each is not to say."""

    model: Annotated[
        list[str] | None,
        _what(
            metavar="MODEL",
            help="apex-tiny, songeval, clap, tunejury, audiobox, a hub id, a folder, "
            "http://HOST:PORT or package.module:Class. Repeat it for a panel.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None
    reward: Annotated[
        Path | None,
        _what(metavar="FILE", help="A reward file: models, mix, loudness, guards, caution."),
    ] = None
    mix: Annotated[
        str | None,
        _what(
            metavar="MIX",
            help="How heads become the column 'reward': musicality=1,score_likes=0.3, or "
            "popularity, aesthetics, overall, or the model's calibrated 'preference'.",
        ),
    ] = None
    loudness: Annotated[
        float | None,
        _what(metavar="LUFS", help="Bring every song to this loudness first."),
    ] = None
    guards: Annotated[
        GuardAction | None,
        _what(help="Measure the guards, and what to do where one trips."),
    ] = None
    caution: Annotated[
        float | None,
        _what(metavar="K", help="Mean minus K spreads over an ensemble."),
    ] = None
    encoder: Annotated[
        str | None,
        _what(
            metavar="FOLDER",
            help="Folder or hub id of the encoder.",
            show_default="the model's own",
        ),
    ] = None
    segment_tail: Annotated[
        Tail | None,
        _what(help="How a song's last segment counts.", show_default="the model's own"),
    ] = None
    dtype: Annotated[
        DType, _how(metavar="TYPE", help="Of the encoder: float32, bfloat16 or float16.")
    ] = "float32"

    @property
    def rewarded(self) -> bool:
        """Whether rows get a reward: a mix or a reward file says how."""
        return self.mix is not None or self.reward is not None

    @property
    def given(self) -> bool:
        """Whether any model or reward file was named."""
        return bool(self.model) or self.reward is not None


@dataclass(frozen=True)
class RunOptions:
    """How models run over many songs."""

    batch_segments: Annotated[
        int | None,
        _how(
            min=1,
            metavar="N",
            help="Segments per encoder batch.",
            show_default="what is fast there",
        ),
    ] = None
    workers: WorkersOption = None
    device: DeviceOption = None

    @property
    def processes(self) -> int:
        """How many processes decode."""
        return decoding_processes(self.workers)


@dataclass(frozen=True)
class EngineOptions(RunOptions):
    """How models run over many songs, in one process or in several."""

    engine: Annotated[
        Literal["local", "ray"],
        _how(
            help="local: this process, and those of torchrun or accelerate launch. ray: --workers "
            "actors on the cluster of RAY_ADDRESS, else on this machine."
        ),
    ] = "local"

    def engine_and_workers(self) -> tuple[Engine, int]:
        """The engine, and the decoding processes of each process that works.

        Call it before a model is loaded: every process of a launcher takes its own GPU.
        """
        from apex_reward.scoring.engines import Engine, share_of_launch

        share = share_of_launch(self.device)
        if self.engine == "ray":
            return Engine("ray", share, max(1, self.processes), self.device), 1
        return Engine(share=share), self.processes


def decoding_processes(workers: int | None) -> int:
    """What `--workers` means."""
    from apex_reward.rewards.load import default_workers

    return default_workers() if workers is None else workers


def build_reward(options: RewardOptions, running: RunOptions) -> Reward:
    """The `Reward` that the options mean.

    Raises:
        UsageError: a reward file together with options that it holds; as `Reward`.
    """
    from apex_reward.rewards.load import load_reward_model
    from apex_reward.rewards.reward import Reward

    loading: dict[str, Any] = {
        "device": running.device,
        "dtype": options.dtype,
        "segment_tail": options.segment_tail,
    }
    if options.reward is not None:
        names = ("model", "mix", "loudness", "guards", "caution", "encoder")
        if twice := [name for name in names if getattr(options, name) not in (None, [])]:
            raise UsageError(
                f"--reward says itself what is rewarded; leave out --{', --'.join(twice)}, or "
                "write it into the file"
            )
        reward = Reward.load(options.reward, **loading)
        reward.batch_segments = running.batch_segments
        return warned(reward)
    named = options.model or [DEFAULT_MODEL]
    if options.mix:
        _check_text(options.mix)
    models = [load_reward_model(name, encoder=options.encoder, **loading) for name in named]
    reward = Reward(
        models[0] if len(models) == 1 else models,
        options.mix,
        loudness=options.loudness,
        guards=options.guards,
        caution=options.caution or 0.0,
        batch_segments=running.batch_segments,
    )
    return warned(reward)


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
