"""`Reward`: what is rewarded, as one object and one file.

Models, mix, loudness, guards and caution; training, pairs, arena, server and people share it.

Shape key: B = songs, C = channels, T = samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex_reward.audio.decoding import decode_songs
from apex_reward.errors import UsageError, expect
from apex_reward.model.encode import Lengths, Prompts
from apex_reward.model.licences import Licence, licences_of
from apex_reward.model.source import Source
from apex_reward.prompt import prompts_of
from apex_reward.report.songs import Rows, with_bar
from apex_reward.rewards.cascade import cascade_rows, lost_share
from apex_reward.rewards.engine import BLOCK_SONGS, EngineSettings, SongResult, run_songs
from apex_reward.rewards.groups import prompt_keys
from apex_reward.rewards.guards import Action, Guard, Guards, as_guards
from apex_reward.rewards.load import load_reward_model
from apex_reward.rewards.panel import Panel, members_of
from apex_reward.rewards.protocol import RewardModel, check_model
from apex_reward.rewards.rows import Row, song_row
from apex_reward.rewards.saved import read_values, reward_of_values, reward_values, save_values
from apex_reward.rewards.songs import cells_of, is_path, song_of
from apex_reward.scores.head import Head
from apex_reward.scores.resolve import Mix, mix_scores, resolve_mix
from apex_reward.scores.scores import Scores

Model = RewardModel | str | Path | Source
Models = Model | Sequence[Model] | Mapping[str, Model]


class Reward:
    """Reward models, a mix of their heads, and what keeps a policy honest.

        reward = Reward("apex-tiny", mix="aesthetics", loudness=-18.0, guards="penalty")
        values = reward(waveforms, sample_rate=44_100)      # (B,) on the autograd graph
        rows = reward.judge(["song.mp3"])                   # a row per song, after guards

    Args:
        model: a reward model or what `load_reward_model` takes; several make a `Panel`, in a
            mapping under names of your own.
        mix: a `RewardMix`, its text form, a named mix, or `preference`. None takes the mix saved
            with the model, else its default.
        loudness: LUFS that every song's mono mix is brought to first; None scores songs as they
            are, and gain moves the reward.
        guards: `Guards`, single ones, an action for all default ones (`flag`, `penalty`, `veto`),
            or None.
        caution: k of mean - k * spread over the members of an ensemble, in units of the reward;
            0 or more. Without an ensemble there is no spread, and any k gives the same.
        batch_segments: pieces per encoder batch; None takes what is fast where
            it runs.

    Raises:
        UsageError: no such model, two of one name, a head that no model has, a mix that lacks its
            reference, a veto without a lowest reward, a negative caution.
    """

    def __init__(
        self,
        model: Models,
        mix: Mix | None = None,
        *,
        loudness: float | None = None,
        guards: Guards | Iterable[Guard] | Action | None = None,
        caution: float = 0.0,
        batch_segments: int | None = None,
    ) -> None:
        self.model = _model(model)
        self.parts = members_of(self.model)
        self.mix = resolve_mix(mix, self.model)
        self.loudness = loudness
        self.guards = as_guards(guards)
        expect(0 <= caution < math.inf, "caution", caution, "a finite number of at least 0")
        self.caution = caution
        self.batch_segments = batch_segments
        self.home: str | None = None  # the device, while the models are offloaded
        self.student: Reward | None = None  # of a cascade
        self.keep = 1.0
        if self.guards.vetoes:
            self.floor_of(1)

    @classmethod
    def cascade(
        cls, student: Models, teacher: Models | Reward, mix: Mix | None = None, *,
        keep: float = 0.125, **options: Any,
    ) -> Reward:  # fmt: skip
        """A reward whose `judge` asks a student first, and the teacher about the best songs.

        A call (on the graph) and every training stack use the teacher for all songs.

        Args:
            student: a fast model with the heads of the mix.
            teacher: models, or a `Reward`.
            mix: as in `Reward`, for both.
            keep: share of the songs of each prompt that the teacher scores, rounded up.
            options: of `Reward`, for both.

        Raises:
            UsageError: a share that is not in (0, 1], a student that lacks a head of the mix, or a
                mix that is normalised by `group`.
        """
        expect(0 < keep <= 1, "keep", keep, "a share above 0, at most 1")
        made = copy.copy(as_reward(teacher, mix, **options))
        made.check_single()
        made.student, made.keep = cls(
            student, made.mix, loudness=made.loudness, guards=made.guards, caution=made.caution,
            batch_segments=made.batch_segments,
        ), keep  # fmt: skip
        return made

    @property
    def teacher(self) -> Reward:
        """The same reward without the student of a cascade."""
        made = copy.copy(self)
        made.student, made.keep = None, 1.0
        return made

    def lost_share(self, songs: int) -> float | None:
        """Estimated share of prompts whose best song the student of the cascade does not keep.

        It follows from the correlation that `distill` measured on held-out songs.

        Args:
            songs: candidates of each prompt.

        Returns:
            None without a student, or where its correlation with a teacher is not known.
        """
        config = getattr(getattr(self.student, "model", None), "config", None)
        correlation = (getattr(config, "distilled", None) or {}).get("correlation")
        return None if correlation is None else lost_share(correlation, songs, self.keep)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that rows have a column for, in order."""
        return tuple(self.model.heads)

    @property
    def sources(self) -> dict[str, str]:
        """What each model was loaded from, by its name; its class where it was made in code."""
        return {
            part.name or part.model.name: str(
                getattr(part.model, "source", None) or type(part.model).__qualname__
            )
            for part in self.parts.members
        }

    @property
    def sample_rate(self) -> int:
        """Hz that songs are best given at."""
        return self.model.sample_rate

    @property
    def members(self) -> int:
        """Members of the largest ensemble among the models; 1 where there is none."""
        return max(int(getattr(part.model, "members", 1)) for part in self.parts.members)

    @property
    def demonstration(self) -> bool:
        """Whether a model only demonstrates; outputs say so."""
        configs = [getattr(part.model, "config", None) for part in self.parts.members]
        return any(getattr(config, "demonstration", False) for config in configs)

    def __call__(
        self,
        waveforms: Tensor,
        sample_rate: int,
        lengths: Lengths = None,
        prompts: Prompts = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Rewards (B,) on the autograd graph: the mix at the set loudness, less caution; no guards.

        Args:
            waveforms: float tensor (B, T) or (B, C, T) in [-1, 1], zero-padded on the right.
            sample_rate: Hz.
            lengths: (B,) real samples of each song; None where no song is padded.
            prompts: B texts (or `{"prompt": ..., "lyrics": ...}`), for models that read them.
            groups: (B,) integers, equal for songs of one prompt, for a mix normalised by `group`.

        Raises:
            UsageError: wrong shapes, missing prompts, or a gradient asked of a model that has none.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        scores, features = self.parts.forward(
            waveforms, sample_rate, lengths, prompts, self.loudness, self.batch_segments
        )
        return self.mix_scores(scores, self.parts.vectors(features), groups)

    def mix_scores(
        self, scores: Scores, embeddings: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        """Rewards (B,) of scores that are there already, before guards."""
        return mix_scores(self.mix, scores, embeddings, groups, self.caution)

    def guarded(self, raw: float, flags: Sequence[str]) -> float:
        """A song's reward after the penalties and vetoes of the guards that tripped.

        Args:
            raw: before guards.
            flags: names of the guards that tripped.
        """
        return self.guards.adjust(raw, flags, self.floor_of(1) if self.guards.vetoes else 0.0)

    @property
    def floor(self) -> float:
        """Reward of a vetoed song and of a song that cannot be judged: below that of any song.

        The lowest value of the mix, less the largest caution, less the sum of all penalties, less
        1% of the mix's range. (The largest spread of values in a range is half of the range.) A
        lower `veto_reward` of the guards replaces it.

        Raises:
            UsageError: the mix has no lowest value.
        """
        return self.floor_of(None)

    def floor_of(self, songs: int | None) -> float:
        """`floor` among so many songs: a mix normalised by `group` has one for each number."""
        veto = self.guards.veto_reward
        low, high = self.mix.bounds(self.heads, songs)
        if low == -math.inf or math.isnan(low):
            if veto is not None:
                return veto
            raise UsageError(
                "this mix has no lowest value, so no reward lies below that of every song; give "
                "undecodable= to the reward function, and guards that veto a "
                "Guards(..., veto_reward=X)"
            )
        spread = 0.0
        if self.caution and self.members > 1:
            spread = self.caution * (high - low) / 2
        lowest = low - spread - self.guards.penalties - 0.01 * (high - low)
        return lowest if veto is None else min(lowest, veto)

    def judge(
        self,
        songs: Any,
        prompts: Prompts = None,
        *,
        sample_rate: int | None = None,
        workers: int = 0,
    ) -> Rows:
        """A row per song as `score --reward` writes it, without a graph.

        Args:
            songs: one song or several, each as `song_of` takes it: paths, `Waveform`s, pairs
                (samples, rate), Audio cells, or float tensors and arrays (T,) or (C, T) in [-1, 1].
            prompts: one per song, for models that read them.
            sample_rate: Hz of the tensors and arrays.
            workers: processes that decode files; 0 decodes in this one.

        Returns:
            Rows in the order of the songs, in a notebook a table with players. A song that cannot
            be judged has its reason as `error`. `to_pandas()` gives a table.

        Raises:
            UsageError: missing prompts, samples without a rate, or a mix normalised by `group`.
        """
        self.check_single()
        cells = cells_of(songs)
        texts = [prompts] if isinstance(prompts, str) else prompts
        self.parts.check_prompts(texts, len(cells))
        if texts is not None and len(texts) != len(cells):
            raise UsageError(f"{len(texts)} prompts for {len(cells)} songs; expected one per song")

        def score(reward: Reward, numbers: Sequence[int]) -> list[Row]:
            chosen = [cells[number] for number in numbers]
            own = None if texts is None else [texts[number] for number in numbers]
            results = reward.results(chosen, own, sample_rate, workers=workers)
            rows = (song_row(reward, result, rewarded=True) for result in results)
            return list(with_bar(rows, len(chosen), "songs"))

        if self.student is None:
            return Rows(score(self, range(len(cells))))
        groups = None if texts is None else prompt_keys(prompts_of(texts))
        return Rows(cascade_rows(self, len(cells), score, groups))

    def engine_settings(self, block: int = BLOCK_SONGS) -> EngineSettings:
        """How the engine hears songs for this reward."""
        return EngineSettings(self.loudness, self.guards, self.batch_segments, block)

    def results(
        self,
        songs: Sequence[Any],
        prompts: Prompts = None,
        sample_rate: int | None = None,
        *,
        workers: int = 0,
        settings: EngineSettings | None = None,
    ) -> Iterator[SongResult]:
        """Features and scores of each song, in order; `song_of` reads the cells.

        Paths are decoded ahead, in other processes where there are workers.
        """
        self.parts.check_prompts(prompts, len(songs))
        texts = None if prompts is None else prompts_of(prompts)
        thresholds = self.parts.decode_settings
        decoded = decode_songs([fspath(c) for c in songs if is_path(c)], thresholds, workers)
        stream = (
            next(decoded)
            if is_path(cell)
            else song_of(cell, sample_rate, f"song {number}", thresholds)
            for number, cell in enumerate(songs)
        )
        return run_songs(self.parts, stream, settings or self.engine_settings(), texts)

    @property
    def grouped(self) -> bool:
        """Whether a song's reward depends on the other songs of its prompt."""
        return self.mix.normalization == "group"

    def check_single(self) -> None:
        """Raises UsageError where a song's reward depends on the other songs of its prompt."""
        if self.grouped:
            raise UsageError(
                "a mix normalised by group compares songs of one prompt, which a row per song does "
                "not know; use range, zscore or none here"
            )

    def to(self, device: str | torch.device) -> Reward:
        """Move all weights and buffers, and give the memory that they leave back to the device."""
        self.parts.to(str(device))
        self.home = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self

    def offload(self) -> None:
        """Move all weights and buffers to the CPU; `onload` moves them back.

        For a device that a policy needs between scoring steps: nothing of the models stays there.
        """
        if self.home is None:
            home = str(self.parts.device)
            self.to("cpu")
            self.home = home

    def onload(self) -> None:
        """Move the models back to where `offload` found them."""
        if self.home is not None:
            self.to(self.home)

    def save(self, path: str | Path) -> None:
        """Write the reward as YAML; models stand there by name, those beside it relative to it.

        Raises:
            UsageError: a model or a guard that was made in code and has no name to load it by.
        """
        save_values(reward_values(self, Path(path).resolve().parent), path)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Reward:
        """Read what `save` wrote.

        Args:
            options: of `load_reward_model`: `device`, `dtype`, ...

        Raises:
            DataError: no such file, or not a saved reward; all problems are listed together.
        """
        return reward_of_values(cls, read_values(path), path, **options)

    def licences(self) -> list[Licence]:
        """The licences of the models' code and weights, each part once.

        Each is a mapping of `part`, `licence`, `commercial` (whether it allows commercial use; None
        where that is not clear) and `source` (where it is stated).
        """
        parts = [*self.parts.members, *(self.student.parts.members if self.student else [])]
        return licences_of(part.model for part in parts)

    def __repr__(self) -> str:
        models = ", ".join(f"{name}: {source}" for name, source in self.sources.items())
        return (
            f"Reward({models}; mix {self.mix}; loudness {self.loudness}; "
            f"guards {', '.join(self.guards.names) or None}; caution {self.caution:g})"
        )


def as_reward(model: Models | Reward, mix: Mix | None = None, **options: Any) -> Reward:
    """A reward from itself, or from models and the options of `Reward`.

    Raises:
        UsageError: a reward together with options that it already holds.
    """
    if not isinstance(model, Reward):
        return Reward(model, mix, **options)
    given = [name for name, value in {"mix": mix, **options}.items() if value is not None]
    if given:
        raise UsageError(
            f"a Reward says itself what is rewarded; leave out {', '.join(given)}, or make "
            "another Reward"
        )
    return model


def _model(model: Models) -> RewardModel:
    """The model, or the panel of several."""
    if isinstance(model, Mapping):
        return Panel({str(name): _loaded(one) for name, one in model.items()})
    if isinstance(model, Sequence) and not isinstance(model, str):
        return Panel([_loaded(one) for one in model])
    return _loaded(model)


def _loaded(model: Model) -> RewardModel:
    if isinstance(model, (str, Path, Source)):
        return load_reward_model(model)
    return check_model(model)


__all__ = ["Models", "Reward", "as_reward"]
