"""The options of every command that scores songs, and the `Reward` that they describe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from apex_reward.cli.common import quick_imports, show
from apex_reward.errors import ApexError, UsageError
from apex_reward.report.cells import counted

if TYPE_CHECKING:
    from apex_reward.rewards.reward import Reward
    from apex_reward.scoring.engines import Engine

DEFAULT_MODEL = "amaai-lab/apex"
DEMONSTRATION = (
    "note: these scores are from a demonstration model, not the published one; they show how the "
    "command works, not how good a song is"
)


@dataclass(frozen=True)
class RewardOptions:
    """What is rewarded.

    Args:
        model: apex-tiny, apex-tiny-fast, songeval, clap, tunejury, audiobox, muq-eval, lyrics,
            rulers, judge, a hub id, a folder, http://HOST:PORT or package.module:Class. Repeat it
            for a panel. None: amaai-lab/apex.
        reward: a reward file: models, mix, loudness, guards and caution.
        mix: weights of the heads in the column `reward`: musicality=1,score_likes=0.3, or
            popularity, aesthetics, overall, or the model's calibrated `preference`. It replaces the
            mix of a reward file.
        loudness: bring every song to this loudness first.
        guards: measure the guards, and the action where one trips.
        caution: subtract K spreads over the members of an ensemble from their mean.
        encoder: folder or hub id of the encoder. None: the model's own.
        segment_tail: weight of a song's last segment. None: the model's own.
        dtype: number type of the encoder. `auto` chooses by the device.
        commercial: refuse models whose licences do not clearly allow commercial use.
    """

    model: Annotated[list[str] | None, "MODEL", "-m"] = None
    reward: Annotated[Path | None, "FILE", "-r"] = None
    mix: Annotated[str | None, "MIX"] = None
    loudness: Annotated[float | None, "LUFS"] = None
    guards: Literal["flag", "penalty", "veto"] | None = None
    caution: Annotated[float | None, "K"] = None
    encoder: Annotated[str | None, "FOLDER"] = None
    segment_tail: Literal["pad", "mask", "drop"] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    commercial: bool = False

    @property
    def rewarded(self) -> bool:
        """Whether rows get a reward: the options include a mix or a reward file."""
        return self.mix is not None or self.reward is not None

    @property
    def given(self) -> bool:
        """Whether the options name a model or a reward file."""
        return bool(self.model) or self.reward is not None


@dataclass(frozen=True)
class CascadeOptions:
    """Cascade.

    Args:
        cascade: student that scores all songs first. The model of --model or --reward then scores
            the best songs of each prompt.
        keep: share of each prompt's songs that the model scores, rounded up.
    """

    cascade: Annotated[str | None, "STUDENT"] = None
    keep: float = 0.125


@dataclass(frozen=True)
class RunOptions:
    """How it runs.

    Args:
        batch_segments: segments per encoder batch. None: chosen for the device.
        workers: decoding processes. With 0, this process decodes, and a file that crashes the
            decoder ends it. None: chosen by the cores.
        device: cpu, cuda, cuda:1 or mps. None: a GPU if there is one.
    """

    batch_segments: Annotated[int | None, (1, None)] = None
    workers: Annotated[int | None, (0, None)] = None
    device: Annotated[str | None, "NAME"] = None

    @property
    def processes(self) -> int:
        """The number of decoding processes."""
        return decoding_processes(self.workers)


@dataclass(frozen=True)
class EngineOptions(RunOptions):
    """How it runs.

    Args:
        workers: decoding processes, or actors with `--engine ray`. With 0, this process decodes,
            and a file that crashes the decoder ends it. None: chosen by the cores.
        engine: `local` is this process, and those of torchrun or accelerate launch. `ray` uses
            actors on the cluster of RAY_ADDRESS, or on this machine.
    """

    engine: Literal["local", "ray"] = "local"

    def engine_and_workers(self) -> tuple[Engine, int]:
        """The engine, and the number of decoding processes of each of its processes.

        Use it before a model loads: each process of a launcher takes its own GPU.
        """
        from apex_reward.scoring.engines import Engine, share_of_launch

        share = share_of_launch(self.device)
        if self.engine == "ray":
            return Engine("ray", share, max(1, self.processes), self.device), 1
        return Engine(share=share), self.processes


def decoding_processes(workers: int | None) -> int:
    """The number of processes that `--workers` stands for."""
    from apex_reward.rewards.load import default_workers

    return default_workers() if workers is None else workers


def build_reward(
    options: RewardOptions, running: RunOptions, cascade: CascadeOptions | None = None
) -> Reward:
    """The `Reward` that the options describe.

    Raises:
        UsageError: a reward file together with options that it holds; `--commercial` with a model
            whose licence does not clearly allow it; as `Reward`.
    """
    with quick_imports():
        from apex_reward import Reward, RewardMix, load_reward_model
        from apex_reward.model.licences import check_commercial

    loading: dict[str, Any] = {
        "device": running.device, "dtype": options.dtype, "segment_tail": options.segment_tail,
    }  # fmt: skip
    if options.mix and "=" in options.mix:
        RewardMix.parse(options.mix)  # a mistake in a mix ends the command before models load
    names = ("loudness", "guards", "caution")
    own = {name: getattr(options, name) for name in names}
    if options.reward is not None:
        named = [n for n in ("model", *names, "encoder") if getattr(options, n) not in (None, [])]
        if named:
            raise UsageError(
                f"the reward file sets its own models, loudness, guards and caution; leave out "
                f"--{', --'.join(named)}, or write them into {options.reward}"
            )
        reward = Reward.load(options.reward, **loading)
        if options.mix is not None:
            show(f"note: --mix {options.mix} replaces the mix of {options.reward}: {reward.mix}")
            own, former = {name: getattr(reward, name) for name in names}, reward
            reward = Reward(former.model, options.mix, **own)
            if former.student is not None:
                reward = Reward.cascade(former.student.model, reward, keep=former.keep)
    else:
        models = [
            load_reward_model(name, encoder=options.encoder, **loading)
            for name in options.model or [DEFAULT_MODEL]
        ]
        own["caution"] = options.caution or 0.0
        reward = Reward(models[0] if len(models) == 1 else models, options.mix, **own)
    reward.batch_segments = running.batch_segments
    if cascade is not None and cascade.cascade is not None:
        loading["segment_tail"] = None  # the student keeps its own
        student = load_reward_model(cascade.cascade, **loading)
        reward = Reward.cascade(student, reward, keep=cascade.keep)
    if options.commercial:
        check_commercial(reward.licences())
    if reward.demonstration and os.environ.get("RANK", "0") == "0":
        show(DEMONSTRATION, "yellow")
    return reward


def show_lost(reward: Reward, groups: Sequence[str] | None, songs: int) -> None:
    """Print how often a cascade is expected to lose the model's best song of a prompt."""
    size = round(songs / len(set(groups))) if groups else songs
    lost = reward.lost_share(size)
    if lost is not None:
        show(
            f"note: with {counted(size, 'song')} per prompt the student is expected to lose the "
            f"model's best song in {100 * lost:.0f}% of the prompts"
        )


def check_reachable(options: RewardOptions) -> None:
    """Refuse a hub id that is neither in the cache nor reachable, before torch is loaded.

    Raises:
        ApexError: no network; the message names the ways out.
    """
    for name in [] if options.reward is not None else options.model or [DEFAULT_MODEL]:
        if name.count("/") != 1 or name[0] in "./~" or os.path.exists(name):
            continue
        from huggingface_hub.constants import HF_HUB_CACHE

        cached = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
        if not (cached.is_dir() or _hub_answers()):
            raise ApexError(
                f"{name} is a hub id, and the hub cannot be reached; check the network, or score "
                "with a model that needs none: --model apex-tiny, or --model FOLDER. "
                "`apex-reward demo` works offline too"
            )


def _hub_answers() -> bool:
    """Whether the hub answers anything at all; one attempt."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE
