"""Settings of a run: dataclasses that TRL's parser reads from the command line and from YAML.

One vocabulary: where TRL or transformers have a name for a thing (`max_steps`, `learning_rate`,
`per_device_train_batch_size`, `save_steps`, `report_to`), that name is used everywhere.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from trl.scripts.utils import TrlParser

from apex_reward.audio.load import Waveform, load_audio
from apex_reward.errors import UsageError
from apex_reward.report.figures import parse_formats
from apex_reward.rewards.distance import song_embeddings
from apex_reward.rewards.guards import Action, Guards
from apex_reward.rewards.judge import Judge, Undecodable
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward
from apex_reward.scoring import find_audio

GUARDS = ("none", *get_args(Action))
DEFAULT_MODEL, DEFAULT_MIX = "apex-tiny", "aesthetics"


def option(default: Any, text: str, *aliases: str, **more: Any) -> Any:
    """A dataclass field with its help, other names of its option, and settings of argparse."""
    return field(default=default, metadata={"help": text, "aliases": list(aliases), **more})


def output_field(default: str) -> Any:
    """The field `output_dir`, which is also the option `--output`."""
    return option(default, "folder of the run's files", "--output")


@dataclass
class RewardSettings:
    """The reward, the held-out reward, the reference songs and the pictures of a run."""

    reward: str | None = option(None, "reward file (YAML): models, mix, loudness, guards, caution")
    reward_model: str | None = option(None, "hub id, folder or name of a model (apex-tiny)")
    mix: str | None = option(None, "mix of the reward model's heads (aesthetics)")
    loudness: float | None = option(None, "loudness of the songs before they are scored, in LUFS")
    guards: str | None = option(None, "action where a guard trips", choices=GUARDS)
    penalty: float | None = option(None, "penalty of a guard that trips, in units of the reward")
    caution: float | None = option(None, "spreads of the ensemble that its mean is reduced by")
    reference_songs: str | None = option(None, "folder of reference songs, for a distance")
    holdout_reward: str | None = option(
        None, "reward file or model that scores songs of held-out prompts and is not trained on"
    )
    holdout_steps: int = option(5, "steps between two judgements of held-out prompts")
    holdout_stop: bool = option(False, "end the run where the held-out reward turns")
    figures: str = option("png", "formats of the pictures: png,svg,pdf")

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the pictures; PNG is always among them."""
        return parse_formats(self.figures)


@dataclass
class QuietDefaults:
    """Defaults over a TRL configuration: `class Settings(QuietDefaults, GRPOConfig)`."""

    save_strategy: str = "no"
    report_to: str = "none"
    gradient_checkpointing: bool = False
    seed: int = 0
    use_cpu: bool = not torch.cuda.is_available()
    bf16: bool | None = torch.cuda.is_available()
    disable_tqdm: bool | None = not sys.stderr.isatty()


def parse_settings(*kinds: type, arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One filled dataclass per kind, from the command line and `--config FILE.yaml`.

    The command line overrides the file, and the file overrides the defaults.

    Raises:
        ValueError: the file has a key that is a field of no kind.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return TrlParser(cast(Any, kinds)).parse_args_and_config(words)


def build_reward(
    settings: RewardSettings,
    *,
    guards: str = "penalty",
    penalty: float = 0.3,
    loudness: float | None = None,
    shortest: float | None = None,
    device: str | None = None,
    **loading: Any,
) -> Reward:
    """The `Reward` of the settings.

    Args:
        guards, penalty, loudness: used where the settings have none.
        shortest: seconds of a song below which the guard `duration` trips; None: its default.
        loading: options of `load_reward_model` for the embedded model.

    Raises:
        UsageError: a reward file together with settings that it holds; as `Reward`.
    """
    if settings.reward is not None:
        names = ("reward_model", "mix", "loudness", "guards", "penalty", "caution")
        if twice := [name for name in names if getattr(settings, name) is not None]:
            raise UsageError(
                f"the file of --reward holds these settings itself: leave out "
                f"--{', --'.join(twice)}, or write them into the file"
            )
        return Reward.load(settings.reward, device=device)
    model = _model(settings.reward_model or DEFAULT_MODEL, device, loading)
    chosen: Any = settings.guards or guards
    made = Guards(())
    if chosen != "none":
        made = Guards.default(chosen, penalty if settings.penalty is None else settings.penalty)
        made = made if shortest is None else made.limit("duration", low=shortest)
    caution = settings.caution or 0.0
    loudness = loudness if settings.loudness is None else settings.loudness
    return Reward(
        model, settings.mix or DEFAULT_MIX, loudness=loudness, guards=made, caution=caution
    )


def read_prompts(path: str | None) -> list[str]:
    """The lines of the file of `--prompts`; raises UsageError where none is named."""
    if path is None:
        raise UsageError("a model of your own needs --prompts, a text file with a prompt a line")
    return Path(path).read_text(encoding="utf-8").splitlines()


def _model(name: str, device: str | None, loading: dict[str, Any]) -> RewardModel:
    """A model by name; `loading` is for the embedded one."""
    return load_reward_model(name, device=device, **(loading if name == DEFAULT_MODEL else {}))


def build_judge(
    settings: RewardSettings,
    sample_rate: int,
    references: Callable[[], Iterable[Waveform]] | None = None,
    seconds: float | None = None,
    undecodable: Undecodable = "floor",
    **defaults: Any,
) -> Judge:
    """The reward of the settings, with embeddings of reference songs.

    Args:
        sample_rate: of the run's songs, Hz.
        references: makes reference songs where the settings name no folder.
        seconds: length of the run's songs where all have the same. It becomes the segment of the
            embedded model, and half of it the limit of the guard `duration`.
        undecodable: as in `Judge`.
        defaults: as `build_reward` takes them.
    """
    if seconds is not None:
        defaults = {"shortest": seconds / 2, "segment_seconds": seconds, **defaults}
    reward = build_reward(settings, **defaults)
    reference = None
    made = references is not None and reward.parts.encoders  # a remote model has no embeddings
    if made or settings.reference_songs is not None:
        reference = reference_embeddings(settings, reward, references)
    return Judge(reward, sample_rate=sample_rate, undecodable=undecodable, reference=reference)


def build_holdout(
    settings: RewardSettings,
    sample_rate: int,
    seconds: float | None = None,
    undecodable: Undecodable = "floor",
    device: str | None = None,
) -> Judge | None:
    """The reward that scores held-out prompts and is not trained on; None where none is named.

    A file ending in `.yaml` or `.yml` is a saved reward; anything else a model, with its default
    mix, at -18 LUFS and without guards.

    Args:
        sample_rate, seconds, undecodable: as in `build_judge`.
    """
    name = settings.holdout_reward
    if name is None:
        return None
    if Path(name).suffix in (".yaml", ".yml"):
        reward = Reward.load(name, device=device)
    else:
        loading = {} if seconds is None else {"segment_seconds": seconds}
        reward = Reward(_model(name, device, loading), loudness=-18.0)
    return Judge(reward, sample_rate=sample_rate, undecodable=undecodable)


def reference_embeddings(
    settings: RewardSettings,
    reward: Reward,
    references: Callable[[], Iterable[Waveform]] | None = None,
) -> torch.Tensor:
    """Embeddings (M, W) of the reference songs.

    Args:
        references: makes the songs where the settings name no folder.

    Raises:
        UsageError: fewer than two songs.
    """
    songs = list(references() if references and settings.reference_songs is None else ())
    if settings.reference_songs is not None:
        songs = [load_audio(path) for path in find_audio([settings.reference_songs])]
    if len(songs) < 2:
        raise UsageError(f"{len(songs)} reference songs; a distance needs at least 2")
    return song_embeddings(reward, songs)


def plain(*settings: Any) -> dict[str, Any]:
    """Settings as JSON-ready values, later ones over earlier ones; objects as their text."""
    values: dict[str, Any] = {}
    for one in settings:
        values |= one.to_dict() if hasattr(one, "to_dict") else dataclasses.asdict(one)
    return dict(json.loads(json.dumps(values, default=str)))
