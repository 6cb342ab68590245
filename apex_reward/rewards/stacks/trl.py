"""`ApexRewardFunction`: songs as the reward of TRL's GRPOTrainer and RLOOTrainer (trl 1.16).

Shape key: B = completions of one call, b = those that decode, C = channels, T = samples,
W = embedding width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex_reward.audio import Waveform
from apex_reward.audio.loudness import normalize_loudness
from apex_reward.audio.resample import resample
from apex_reward.errors import UsageError
from apex_reward.model import ApexReward
from apex_reward.model.apex import DEFAULT_MIX
from apex_reward.model.inputs import INTEGER_LIKE_PEAK
from apex_reward.rewards.guards import Action, Guard, Guards, as_guards
from apex_reward.rewards.stacks.groups import (
    everywhere,
    group_numbers,
    prompt_keys,
    share_without_signal,
)
from apex_reward.scores.mix import RewardMix, as_mix
from apex_reward.scores.preference import PreferenceHead
from apex_reward.scores.scores import Scores

Decode = Callable[..., Iterable[Any]]
Mix = str | Mapping[str, Any] | RewardMix | PreferenceHead


@dataclass(frozen=True)
class _Song:
    waveform: Tensor  # (T,), mono
    sample_rate: int


class ApexRewardFunction:
    """A reward function for TRL: completions to songs, songs to rewards.

        trainer = GRPOTrainer(policy, reward_funcs=ApexRewardFunction(model, mix, decode=decode))

    All completions of a call are scored as one batch, on the reward model's device, without a
    graph. Under several processes each scores its own completions; what needs a whole prompt group
    (the `group` normalisation, the zero-variance share) is gathered from all, so that rewards do
    not depend on the number of processes.

    Logged through `log_metric`, under NAME/: the mean of each head, `reward_raw` (before guards),
    `guard_any` and `guard_<name>` (shares of the decoded songs), `undecodable` (share of the
    completions), `zero_variance_groups` (share of the prompt groups with fewer than two different
    rewards: they move no policy). Through `log_extra`, per completion: each head, `reward_raw`,
    `flags` (joined by `;`).

    Args:
        model: the reward model, on any device.
        mix: a `RewardMix`, its text form, a named mix, or `preference` where the model holds a
            calibrated head; None takes the mix saved with the model, else `aesthetics`.
        decode: turns completions into songs. It is called with those of the keyword arguments
            `prompts`, `completions`, `completion_ids` and the dataset's columns that its signature
            names (all, if it takes `**kwargs`), and returns one item per completion: a float
            waveform (T,) or (C, T) in [-1, 1], a `Waveform`, or None for what does not decode.
            `apex_reward.rewards.decoders` has hooks for codec tokens and audio files.
        guards: `Guards`, single ones, or an action for all default ones; None measures nothing.
        sample_rate: Hz, of decoded tensors; None takes `decode.sample_rate`, else the model's.
        loudness: LUFS that songs are brought to before they are scored; None leaves them. Guards
            measure what was decoded.
        batch_segments: segments per encoder batch; None takes the configuration's.
        undecodable: reward of a completion that gives no song. With None TRL leaves it out of the
            update, so nothing keeps a policy from drifting there: watch `undecodable`.
        name: under which TRL logs it.

    Raises:
        UsageError: an unknown mix, head or guard; `zscore` without a reference; `preference`
            without a calibrated head, or with a veto but no `veto_reward` (it has no lowest value).
    """

    def __init__(
        self,
        model: ApexReward,
        mix: Mix | None = None,
        *,
        decode: Decode,
        guards: Guards | Iterable[Guard] | Action | None = "flag",
        sample_rate: int | None = None,
        loudness: float | None = None,
        batch_segments: int | None = None,
        undecodable: float | None = None,
        name: str = "apex",
    ) -> None:
        self.model = model
        self.mix = _resolved(mix, model)
        self.decode = decode
        self.guards = as_guards(guards)
        decoded_rate: int | None = getattr(decode, "sample_rate", None)
        self.sample_rate = sample_rate or decoded_rate or model.config.sample_rate
        self.loudness = loudness
        self.batch_segments = batch_segments
        self.undecodable = undecodable
        self.__name__ = name
        self._lowest(songs=1)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of a batch of completions, as TRL calls it.

        Args:
            prompts, completions: B texts or message lists.
            completion_ids: B lists of token ids.
            log_metric, log_extra: TRL's loggers; None logs nothing.
            columns: the dataset's other columns, B values each, and TRL's own.

        Returns:
            B rewards; `undecodable` where a completion gives no song (nothing decoded, no samples,
            samples that are NaN, infinite or far outside [-1, 1]).
        """
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        keys = prompt_keys(prompts)
        with torch.no_grad():
            songs = self._decoded({**columns, **given}, len(completions))
            present = [i for i, song in enumerate(songs) if song is not None]
            kept = [song for song in songs if song is not None]
            scores, raw = self._scored(kept, [keys[i] for i in present])
            flags = [
                self.guards.flags(self.guards.measure(song.waveform, song.sample_rate))
                for song in kept
            ]
        lowest = self._lowest(len(everywhere(raw)[0]))
        rewards: list[float | None] = [self.undecodable] * len(songs)
        for i, reward, tripped in zip(present, raw, flags, strict=True):
            rewards[i] = self.guards.adjust(reward, tripped, lowest)
        rows = [
            {**row, "reward_raw": reward, "flags": tripped}
            for row, reward, tripped in zip(scores.rows(), raw, flags, strict=True)
        ]
        self._log_metrics(log_metric, rows, keys, rewards)
        self._log_columns(log_extra, rows, present, len(songs))
        return rewards

    def _decoded(self, arguments: dict[str, Any], count: int) -> list[_Song | None]:
        items = list(self.decode(**_wanted(self.decode, arguments)))
        if len(items) != count:
            raise UsageError(f"decode returned {len(items)} songs for {count} completions")
        return [self._song(item) for item in items]

    def _song(self, item: Any) -> _Song | None:
        if item is None:
            return None
        rate = self.sample_rate
        if isinstance(item, Waveform):
            item, rate = item.samples, item.sample_rate
        if not isinstance(item, Tensor):
            item = torch.as_tensor(np.asarray(item))
        if item.ndim not in (1, 2) or not item.is_floating_point():
            raise UsageError(
                f"decode returned {item.dtype} of shape {tuple(item.shape)} for a completion; "
                "expected a float waveform (T,) or (C, T) in [-1, 1], or None"
            )
        mono = (item if item.ndim == 1 else item.mean(dim=0)).detach().float()
        # The comparison is false for NaN too.
        usable = len(mono) > 0 and bool(mono.abs().max() <= INTEGER_LIKE_PEAK)
        return _Song(mono, rate) if usable else None

    def _scored(self, songs: list[_Song], keys: list[str]) -> tuple[Scores, list[float]]:
        """Scores (b,) and their mix, b floats, before guards."""
        with torch.autocast(self.model.device.type, enabled=False):
            embeddings = self._embeddings(songs)
            scores = self.model.score_embeddings(embeddings).apply(Tensor.cpu)
            if isinstance(self.mix, PreferenceHead):
                return scores, self.mix(scores, embeddings.cpu()).tolist()
        if self.mix.normalization != "group":
            return scores, self.mix(scores).tolist()
        entries = list(zip(keys, scores.stack().tolist(), strict=True))
        entries, mine = everywhere(entries)
        if not entries:
            return scores, []
        gathered = Scores.from_stack(torch.tensor([values for _, values in entries]), scores.heads)
        return scores, self.mix(gathered, group_numbers([key for key, _ in entries]))[mine].tolist()

    def _embeddings(self, songs: list[_Song]) -> Tensor:
        """(b, W) on the model's device."""
        if not songs:
            return torch.zeros(0, self.model.config.width, device=self.model.device)
        rate = songs[0].sample_rate
        if any(song.sample_rate != rate for song in songs):
            rate = self.model.config.sample_rate
        waveforms = [resample(song.waveform, song.sample_rate, rate) for song in songs]
        batch = torch.nn.utils.rnn.pad_sequence(
            [waveform.to(self.model.device) for waveform in waveforms], batch_first=True
        )
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        if self.loudness is not None:
            batch = normalize_loudness(batch, rate, self.loudness, lengths)
        return self.model.embed(batch, rate, lengths, self.batch_segments)

    def _lowest(self, songs: int) -> float:
        """The lowest reward among `songs` of a batch; 0 where no guard asks for it."""
        vetoes = any(guard.action == "veto" for guard in self.guards.guards)
        if not vetoes or self.guards.veto_reward is not None:
            return 0.0
        if isinstance(self.mix, PreferenceHead):
            raise UsageError(
                "rewards of a preference head have no lowest value; "
                "give the vetoing guards one: Guards(..., veto_reward=X)"
            )
        return self.mix.lowest(songs)

    def _log_metrics(
        self,
        log_metric: Callable[[str, float], None] | None,
        rows: list[dict[str, Any]],
        keys: list[str],
        rewards: list[float | None],
    ) -> None:
        entries, _ = everywhere(list(zip(keys, rewards, strict=True)))
        if log_metric is None:
            return
        metrics = {
            "zero_variance_groups": share_without_signal(*zip(*entries, strict=True))
            if entries
            else 0.0,
            "undecodable": 1 - len(rows) / max(1, len(rewards)),
        }
        if rows:
            for name in [name for name in rows[0] if name != "flags"]:
                metrics[name] = sum(row[name] for row in rows) / len(rows)
            metrics["guard_any"] = sum(bool(row["flags"]) for row in rows) / len(rows)
            for guard in self.guards.names:
                metrics[f"guard_{guard}"] = sum(guard in row["flags"] for row in rows) / len(rows)
        for name, value in metrics.items():
            log_metric(f"{self.__name__}/{name}", value)

    def _log_columns(
        self,
        log_extra: Callable[[str, list[Any]], None] | None,
        rows: list[dict[str, Any]],
        present: list[int],
        count: int,
    ) -> None:
        if log_extra is None:
            return
        for name in (*self.model.config.head_names, "reward_raw", "flags"):
            values: list[Any] = [None] * count
            for i, row in zip(present, rows, strict=True):
                values[i] = ";".join(row[name]) if name == "flags" else row[name]
            log_extra(f"{self.__name__}/{name}", values)


def _resolved(mix: Mix | None, model: ApexReward) -> RewardMix | PreferenceHead:
    if mix == "preference":
        if not model.config.preference:
            raise UsageError(
                "mix 'preference' needs a calibrated head, and this model holds none; "
                "`apex-reward arena calibrate` makes one"
            )
        return PreferenceHead.from_dict(model.config.preference)
    if isinstance(mix, PreferenceHead):
        return mix
    resolved = as_mix(mix if mix is not None else model.config.mix or DEFAULT_MIX)
    absent = [head for head in resolved.weights if head not in model.config.head_names]
    if absent:
        raise UsageError(
            f"the mix weighs {', '.join(absent)}, which this model has not; "
            f"its heads are {', '.join(model.config.head_names)}"
        )
    if resolved.normalization == "zscore" and resolved.reference is None:
        raise UsageError("the mix normalises by zscore but has no reference; see with_reference")
    return resolved


def _wanted(hook: Decode, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the hook's signature names; all of them for `**kwargs`."""
    parameters = inspect.signature(hook).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name not in arguments
    ]
    if missing:
        raise UsageError(
            f"decode asks for {', '.join(missing)}; it can have {', '.join(sorted(arguments))}"
        )
    return {p.name: arguments[p.name] for p in parameters if p.name in arguments}
