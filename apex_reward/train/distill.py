"""Distillation: a student learns from a teacher's scores of clips.

The teacher runs once, over clips of the songs: random crops, with gain, mixed with another song,
damaged like by a codec. `shards/` keep each clip's log-mel, scores and embedding. The student then
trains on the shards alone, and stops by the rank correlation on held-out songs.

Shape key: K = clips, T = samples, M = members, H = heads, W = width of an embedding.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from apex_reward.errors import DataError, UsageError
from apex_reward.files.atomic import writing
from apex_reward.files.stamps import Stamp, text_hash
from apex_reward.files.tables import json_ready, read_table, write_json, write_table
from apex_reward.metrics import bootstrap_interval, pearson, spearman
from apex_reward.model.apex import ApexReward
from apex_reward.model.card import write_card
from apex_reward.model.config import STUDENT, ApexConfig
from apex_reward.model.encoders.student import StudentConfig
from apex_reward.report.markdown import markdown_table
from apex_reward.rewards.protocol import RewardModel
from apex_reward.rewards.reward import Reward
from apex_reward.scores.mix import RewardMix
from apex_reward.scores.scores import Scores
from apex_reward.train.clips import (
    KINDS,
    RATE,
    SHARD_SONGS,
    Clips,
    made_shard,
    plan_shards,
    segment_of,
    shard_stamp,
)
from apex_reward.train.loop import HistoryRow, Training, epoch_batches, seeded, stream
from apex_reward.train.report import SPEARMAN_VARIANCE, correlation_interval
from apex_reward.train.settings import DistillSettings, Schedule
from apex_reward.train.trainer import followed, run_history

SIZES = {"tiny": (64, 2, 64), "small": (128, 3, 128), "base": (192, 4, 256)}
"""Width and depth of the conformer, width of the heads' hidden layer."""
BATCH, LR, WARM_UP, PATIENCE, EMBEDDING_WEIGHT = 16, 2e-3, 0.05, 15, 0.5
DECILES, LEAST_GAP, RANK_VARIANCE = np.linspace(0, 1, 11), 0.02, 1 / 12
"""Of the labels: shares, least distance of two in standard deviations; variance of a share."""
BEST_OF, DRAWS = (4, 16, 64), 2000
LEFT = ("config.json", "model.safetensors", "README.md", "state.pt", "failed.jsonl")
"""What an earlier run may have left, beside what `followed` removes."""


def distill(
    teacher: Reward,
    songs: Sequence[str],
    settings: DistillSettings,
    output: Path,
    *,
    accelerator: Accelerator,
    resume: bool = False,
    on_song: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[HistoryRow], None] = lambda row: None,
) -> dict[str, Any]:
    """Train a student; `output` becomes a model that every command loads.

    It leaves the model, its card, `metrics.json`, `history.jsonl`, `failed.jsonl`, `shards/` and
    `state.pt`. After a kill `resume` ends with the same bytes.

    Args:
        teacher: whose heads, at its loudness, the student imitates. Its mix becomes the student's.
        songs: audio files.
        accelerator: device and processes.
        on_song: called with the number of songs that the teacher has scored, and of all.

    Returns:
        The content of `metrics.json`: `heads.NAME.{spearman, ci95, by_kind}` on held-out songs,
        `gradient_cosine` (None where the teacher has no gradient), `best_of.N.{gain, lost}`,
        `correlation`, `teacher`, `n_songs`, `n_clips`, `failed`.

    Raises:
        UsageError: a teacher that reads text or whose mix is normalised by `group`; a folder of
            another teacher, other songs or other settings to resume.
        DataError: too few songs.
    """
    if teacher.model.reads_text:
        raise UsageError(
            f"{teacher.model.name} reads prompts, which a student does not; distill a teacher "
            "without text"
        )
    teacher.check_single()
    main, shards = accelerator.is_main_process, output / "shards"
    with writing(output / "distill") if main else nullcontext():
        stamp = shard_stamp(teacher, songs, settings)
        if main:
            _begin(output, stamp, resume)
        accelerator.wait_for_everyone()
        plan = plan_shards(songs, settings.seed)
        mine = plan[accelerator.process_index :: accelerator.num_processes]
        for done, (name, paths) in enumerate(mine, start=1):
            if not (shards / name).exists():
                write_table(shards / name, made_shard(teacher, paths, settings.seed, name))
            on_song(min(len(songs), done * SHARD_SONGS), len(songs))
        accelerator.wait_for_everyone()
        rows = [row for name, _ in plan for row in read_table(shards / name).to_pylist()]
        failed = [row for row in rows if row["kind"] == "failed"]
        held_out = {path for name, paths in plan if name.startswith("held") for path in paths}
        good = [row for row in rows if row["kind"] != "failed"]
        if len({row["song"] in held_out for row in good}) < 2:
            text = f"{len(failed)} of {len(songs)} songs failed"
            raise DataError(f"{text}; none is left to learn from, or to measure on")
        held = Clips([row for row in good if row["song"] in held_out], len(teacher.heads))
        train = Clips([row for row in good if row["song"] not in held_out], len(teacher.heads))
        config = _config(teacher, settings, train)
        with seeded(stream(settings.seed)):
            model = ApexReward(config)
        heads: Any = model.predictor
        heads.fit(train.labels.flatten(0, 1))
        torch.nn.Module.to(model, accelerator.device)
        loop = StudentLoop(model, settings, train, held, accelerator)
        run = Stamp({**asdict(settings), "shards": text_hash([stamp.values])})
        with run_history([loop], output) as history:
            for _ in followed([loop], history, run, resume, on_epoch):
                pass
            loop.network.load_state_dict(loop.best)
            model.encoder.requires_grad_(False)
            report = _measured(teacher, loop, held)
            distilled: Any = config.distilled
            report |= {"n_songs": len(songs), "n_clips": len(good), "failed": len(failed)}
            report["teacher"] = distilled["teacher"]
            if main:
                distilled["correlation"] = json_ready(report["correlation"])
                torch.nn.Module.to(model, "cpu").save_pretrained(output)
                write_card(output, _card(report))
                write_json(output / "metrics.json", json_ready(report))
                reasons = [{"path": row["song"], "error": row["error"]} for row in failed]
                write_table(output / "failed.jsonl", reasons)
                history.finish()
        accelerator.wait_for_everyone()
    return report


def _begin(output: Path, stamp: Stamp, resume: bool) -> None:
    """Check the shards of an earlier run, or remove what it left."""
    shards = output / "shards"
    if resume and (shards / "stamp.json").exists():
        stamp.check(shards / "stamp.json", shards)
        return
    shutil.rmtree(shards, ignore_errors=True)
    for name in LEFT:
        (output / name).unlink(missing_ok=True)
    shards.mkdir(parents=True)
    stamp.write(shards / "stamp.json")


def teacher_reward(model: RewardModel) -> Reward:
    """A model with its default mix; without ranges for that, the plain mean of its heads."""
    try:
        return Reward(model)
    except UsageError:
        names = [head.name for head in model.heads]
        return Reward(model, RewardMix(dict.fromkeys(names, 1 / len(names)), "none"))


class StudentLoop(Training):
    """A student in training on clips."""

    def __init__(
        self, model: ApexReward, settings: DistillSettings, train: Clips, held: Clips,
        accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.model, self.settings, self.train, self.held = model, settings, train, held
        model.encoder.requires_grad_(True)
        network = torch.nn.ModuleDict({"encoder": model.encoder, "heads": model.predictor})
        schedule = Schedule(epochs=settings.epochs, lr=LR, patience=PATIENCE)
        super().__init__(network, schedule, accelerator)
        values = train.labels.flatten(0, 1).double()
        spread = values.std(dim=0, correction=0)
        self.spread = torch.where(spread > 0, spread, 1.0).float().to(accelerator.device)
        self.centre = values.mean(dim=0).float().to(accelerator.device)
        deciles = np.quantile(self.standard(train.labels.flatten(0, 1)), DECILES, axis=0)
        deciles[1:] = deciles[0] + np.diff(deciles, axis=0).clip(LEAST_GAP).cumsum(axis=0)
        self.deciles = torch.tensor(deciles.T.copy(), dtype=torch.float32).to(accelerator.device)
        self.power = 1.0
        if train.embeddings is not None:
            self.power = float(train.embeddings.var(dim=0).mean().clamp_min(1e-12))

    def run_through(self) -> tuple[HistoryRow, float]:
        """Train for one epoch and measure the held-out clips."""
        total, seed = 0.0, self.settings.seed
        batches = epoch_batches(
            len(self.train.songs), seed, self.epoch, BATCH, self.rank, self.world
        )
        for number, batch in enumerate(batches):
            done = (self.epoch - 1 + number / len(batches)) / self.settings.epochs
            self.set_lr(LR * min(1.0, (done + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2)
            loss = self._loss(batch)
            self.descend(loss, len(batch))
            total += float(loss.detach())
        found, _ = self.predict(self.held)
        truth = self.held.labels.mean(dim=1)
        error = float((self.standard(found) - self.standard(truth)).square().mean())
        row: HistoryRow = {"train_loss": total / len(batches), "val_error": error}
        for number, head in enumerate(self.model.heads):
            row[f"spearman_{head.name}"] = spearman(found[:, number], truth[:, number])
        known = [v for name, v in row.items() if name[:9] == "spearman_" and not math.isnan(v)]
        row["val_spearman"] = sum(known) / len(known) if known else 0.0
        return row, -row["val_spearman"]

    def _loss(self, rows: Tensor) -> Tensor:
        device, clips = self.accelerator.device, self.train
        scores, embeddings = self._forward(clips, rows)
        labels = clips.labels[rows].to(device).transpose(0, 1)
        ours, theirs = self.standard(scores), self.standard(labels)
        rank_error = (self.ranks(ours) - self.ranks(theirs)).square().mean() / RANK_VARIANCE
        loss = ((ours - theirs).square().mean() + rank_error) / 2
        if clips.embeddings is not None:
            error = (embeddings - clips.embeddings[rows].to(device)).square().mean()
            loss = loss + EMBEDDING_WEIGHT * error / self.power
        return loss

    def standard(self, scores: Tensor) -> Tensor:
        """Scores (..., H) less the mean of the training labels, over their deviation."""
        device = scores.device
        return (scores - self.centre.to(device)) / self.spread.to(device)

    def ranks(self, values: Tensor) -> Tensor:
        """Standard scores (..., H) to (H, n): about the share of the training labels below each.

        It is linear between the labels' deciles and beyond them.
        """
        columns = values.movedim(-1, 0).flatten(1).contiguous()
        above = torch.searchsorted(self.deciles, columns.detach()).clamp(1, len(DECILES) - 1)
        low, high = (self.deciles.gather(1, place) for place in (above - 1, above))
        return (above - 1 + (columns - low) / (high - low)) / (len(DECILES) - 1)

    def _forward(self, clips: Clips, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (M, N, H) and embeddings (N, W) of some clips."""
        device, model = self.accelerator.device, self.model
        real = clips.real[rows].to(device) if model.config.segment_tail == "mask" else None
        encoder: Any = model.encoder
        embeddings = model.pool(encoder.of_mel(clips.mels[rows].float().to(device), real))
        scores = model.predictor(embeddings)
        return scores if scores.ndim == 3 else scores[None], embeddings

    def predict(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Scores (K, H), means over the members, and embeddings (K, W), on the CPU."""
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(clips.songs)).split(BATCH):
                scores, embeddings = self._forward(clips, rows)
                parts.append((scores.mean(dim=0).cpu(), embeddings.cpu()))
        scores, embeddings = map(torch.cat, zip(*parts, strict=True))
        return scores, embeddings


def _config(teacher: Reward, settings: DistillSettings, train: Clips) -> ApexConfig:
    inner, depth, hidden = SIZES[settings.size]
    width = inner if train.embeddings is None else train.embeddings.shape[1]
    sizes = StudentConfig(width, inner, depth, intermediate_size=2 * inner)
    own, (window, tail) = getattr(teacher.model, "config", None), segment_of(teacher)
    members = train.labels.shape[1]
    return ApexConfig(
        encoder={"kind": STUDENT, **asdict(sizes)},
        encoder_name=None,
        layers=[depth],
        head_widths=[hidden],
        members=members,
        spread_scale=getattr(own, "spread_scale", None) if members > 1 else None,
        segment_seconds=window / RATE,
        segment_tail=tail,
        mix=teacher.mix.to_dict(),
        preference=copy.deepcopy(getattr(teacher.model, "preference", None)),
        demonstration=teacher.demonstration,
        own_heads=[json_ready([h.name, h.low, h.high]) for h in teacher.heads],
        distilled={
            "teacher": ", ".join(teacher.sources.values()),
            "licences": teacher.licences(),
            "correlation": None,
        },
    )


def _measured(teacher: Reward, loop: StudentLoop, held: Clips) -> dict[str, Any]:
    """Figures on held-out songs."""
    found, embeddings = loop.predict(held)
    truth, songs, kinds = held.labels.mean(dim=1), np.array(held.songs), np.array(held.kinds)

    def figures(number: int, rows: Any) -> dict[str, Any]:
        pair = found[rows, number].numpy(), truth[rows, number].numpy()
        value, count = spearman(*pair), len(np.unique(songs[rows]))
        drawn = bootstrap_interval(spearman, *pair, rounds=500, clusters=songs[rows])
        around = correlation_interval(value, count, SPEARMAN_VARIANCE)
        if math.isnan(around[0]):  # fewer than four songs tell nothing of others
            around = -1.0, 1.0
        ends = float(np.fmin(drawn[0], around[0])), float(np.fmax(drawn[1], around[1]))
        return {"spearman": value, "ci95": list(ends)}

    heads: dict[str, Any] = {}
    for number, head in enumerate(loop.model.heads):
        by_kind = {kind: figures(number, kinds == kind) for kind in KINDS}
        heads[head.name] = {**figures(number, slice(None)), "by_kind": by_kind}
    ours, theirs = (
        teacher.mix_scores(Scores.from_stack(values, teacher.heads), vectors).numpy()
        for values, vectors in ((found, embeddings), (truth, held.embeddings))
    )
    return {
        "heads": heads,
        "gradient_cosine": _gradient_cosine(teacher, loop, held.samples),
        "correlation": pearson(ours, theirs),
        "best_of": {str(n): _best_of(ours, theirs, n) for n in BEST_OF},
    }


def _gradient_cosine(teacher: Reward, loop: StudentLoop, songs: Sequence[Tensor]) -> float | None:
    """Mean cosine of the two rewards' waveform gradients."""
    if not teacher.model.differentiable:
        return None
    student = Reward(loop.model, teacher.mix, loudness=teacher.loudness)
    cosines = []
    for song in songs:
        gradients = []
        for reward in (teacher, student):
            leaf = song[None].to(reward.parts.device).requires_grad_()
            gradients.append(torch.autograd.grad(reward(leaf, RATE).sum(), leaf)[0].flatten().cpu())
        cosines.append(float(F.cosine_similarity(gradients[0], gradients[1], dim=0)))
    return sum(cosines) / len(cosines) if cosines else None


def _best_of(student: Any, teacher: Any, n: int) -> dict[str, float]:
    """Of the best of N clips: the share of the teacher's gain, and of choices that differ."""
    drawn = np.random.default_rng(n).integers(0, len(teacher), (DRAWS, n))
    rows, values = np.arange(DRAWS), teacher[drawn]
    chosen = values[rows, student[drawn].argmax(axis=1)]
    gain = float((values.max(axis=1) - teacher.mean()).mean())
    return {
        "gain": float((chosen - teacher.mean()).mean()) / gain if gain else math.nan,
        "lost": float((chosen < values.max(axis=1)).mean()),
    }


def _card(report: dict[str, Any]) -> list[str]:
    """What was measured, for the model's card."""
    rows = []
    for name, row in report["heads"].items():
        low, high = row["ci95"]
        kinds = [f"{row['by_kind'][kind]['spearman']:.3f}" for kind in KINDS]
        rows.append((name, f"{row['spearman']:.3f} ({low:.3f} to {high:.3f})", *kinds))
    cosine = report["gradient_cosine"]
    best = [(n, f"{x['gain']:.3f}", f"{x['lost']:.3f}") for n, x in report["best_of"].items()]
    return [
        f"## Student\n\nThis model imitates {report['teacher']}. It learned from "
        f"{report['n_clips']} clips of {report['n_songs']} songs.\n\n"
        "Rank correlation with the teacher on held-out songs (95% interval), and by kind of clip. "
        "Mixed and damaged clips differ from the songs; other genres and generated songs were "
        f"measured only where they are among the songs.\n\n"
        f"{markdown_table(('head', 'all clips', *KINDS), rows)}\n\n"
        + (f"Cosine of the waveform gradients: {cosine:.3f}.\n\n" if cosine is not None else "")
        + "Best of N by the student: the share of the teacher's gain, and of choices that the "
        f"teacher would not make.\n\n{markdown_table(('N', 'gain', 'other choice'), best)}"
    ]
