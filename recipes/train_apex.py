"""Train your own APEX: songs and play counts in, a model that scores songs out.

    python recipes/train_apex.py --output runs/train_apex

Without other arguments it makes synthetic songs with different amounts of noise, counts that follow
from the noise, and a tiny random encoder; this takes a minute or two on two CPU cores. With a table
of counts (`apex-reward prepare --help` lists its columns) and the audio:

    python recipes/train_apex.py --output runs/mine --metadata songs.csv --audio-dir songs/ \
        --encoder m-a-p/MERT-v1-95M --songeval scores.csv --epochs 50 --lr 1e-4 --batch-size 512

The four steps are those of the command line: prepare, extract, train, score. Writes history.jsonl
(a row per epoch; `reward` is the explained share of the validation labels' variance, averaged over
heads), summary.json (`reward_before` and `reward_after`: mean test Spearman of the untrained and of
the trained model), curves.png, model/ for `apex-reward score --model`, and audio/ of the songs that
it ranks lowest and highest.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from apex_reward import ApexConfig, ApexReward
from apex_reward.audio import save_wav
from apex_reward.data.extract import ExtractSettings, extract, read_manifest
from apex_reward.data.metadata import read_metadata
from apex_reward.data.prepare import prepare
from apex_reward.data.settings import PrepareSettings
from apex_reward.data.teacher import read_teacher
from apex_reward.demo import make_song
from apex_reward.files.tables import write_table
from apex_reward.runs.log import RunLog
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.scoring import score_songs
from apex_reward.train.evaluate import Checkpoint
from apex_reward.train.report import head_metrics
from apex_reward.train.settings import TrainSettings
from apex_reward.train.shards import Data, load_training_data
from apex_reward.train.trainer import make_accelerator, train

SAMPLE_RATE, TOY_SONGS, TOY_SECONDS = 24_000, 300, 2.0


def main() -> None:
    args = parse_arguments()
    panels = {"explained validation variance": ["reward"], "loss": ["train_loss", "val_loss"]}
    log = RunLog(args.output, panels)
    torch.set_num_threads(1)
    if args.metadata is None:
        make_toy_songs(args)
    model, report, data = run_steps(args, log)
    before = mean_spearman(untrained(model, args.seed), data)
    after = [measures["spearman"] for measures in report["metrics"].values()]
    ranked = rank_songs(args, data)
    for name, path in (("lowest", ranked[0]), ("highest", ranked[-1])):
        target = args.output / "audio" / f"{name}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    summary = {
        "reward_before": float(np.mean(before)),
        "reward_after": float(np.mean(after)),
        "reward_std_before": float(np.std(before)),
        "test_spearman": dict(zip(report["metrics"], after, strict=True)),
        "songs": {split: len(data[split].labels) for split in data.splits},
        "settings": {key: str(value) for key, value in vars(args).items()},
    }
    log.finish(summary)
    print(f"mean test Spearman: {summary['reward_before']:.2f} -> {summary['reward_after']:.2f}")


def run_steps(args: argparse.Namespace, log: RunLog) -> tuple[Checkpoint, dict, Data]:
    """prepare, extract, train: the trained checkpoint, its test report, the data."""
    folder = args.output / "data"
    songs = read_metadata(args.metadata)
    prepare(songs, PrepareSettings(args.audio_dir, seed=args.seed), folder)
    teacher = read_teacher(args.songeval) if args.songeval else None
    manifest = read_manifest(folder / "manifest.parquet", teacher)
    extract(manifest, ExtractSettings(args.audio_dir, str(args.encoder)), folder)
    task = "full" if teacher else "popularity"
    data = load_training_data(folder, task)
    variance = data["val"].labels.var(axis=0)

    def on_epoch(row: dict[str, float]) -> None:
        errors = [value for name, value in row.items() if name.startswith("val_mse_")]
        explained = np.mean(1 - np.array(errors) / variance[: len(errors)])
        log.append({"step": row["epoch"], "reward": float(explained), **row})

    report = train(
        data,
        TrainSettings(
            epochs=args.epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            loss=args.loss,
            task=task,
            seed=args.seed,
        ),
        args.output / "run",
        accelerator=make_accelerator(),
        on_epoch=on_epoch,
    )
    shutil.rmtree(args.output / "model", ignore_errors=True)
    shutil.copytree(args.output / "run" / "best", args.output / "model")
    return Checkpoint.load(args.output / "model"), report, data


def untrained(model: Checkpoint, seed: int) -> Checkpoint:
    """The same checkpoint before training."""
    torch.manual_seed(seed)
    return Checkpoint(model.config, [model.config.predictor()], model.pooling)


def mean_spearman(model: Checkpoint, data: Data) -> list[float]:
    """Test Spearman of every head."""
    pred = model.predict(data["test"]).mean(axis=1)
    measured = head_metrics(pred, data["test"].labels.astype(np.float64), model.config.head_names)
    return [measures["spearman"] for measures in measured.values()]


def rank_songs(args: argparse.Namespace, data: Data) -> list[Path]:
    """Test songs from the least to the most liked, by the whole model from audio."""
    manifest = read_manifest(args.output / "data" / "manifest.parquet")
    paths = [args.audio_dir / song.path for song in manifest if song.split == "test"]
    model = ApexReward.from_pretrained(args.output / "model")
    rows = [row for row in score_songs(model, [str(p) for p in paths]) if not row["error"]]
    return [Path(row["path"]) for row in sorted(rows, key=lambda row: row["score_likes"])]


def make_toy_songs(args: argparse.Namespace) -> None:
    """Songs in noise; the cleaner, the more played and the better rated."""
    rng = np.random.default_rng(args.seed)
    args.audio_dir, args.encoder = args.output / "songs", args.output / "encoder"
    args.metadata, args.songeval = args.output / "songs.csv", args.output / "songeval.csv"
    args.audio_dir.mkdir(parents=True, exist_ok=True)
    songs, ratings = [], []
    for number in range(TOY_SONGS):
        clean = rng.uniform()
        noise = rng.standard_normal(round(TOY_SECONDS * SAMPLE_RATE))
        song = make_song(1000 * args.seed + number, TOY_SECONDS, SAMPLE_RATE)
        mixed = clean * song + 0.2 * (1 - clean) * noise
        save_wav(args.audio_dir / f"{number}.wav", mixed.astype(np.float32), SAMPLE_RATE)
        plays = int(np.exp(3 + 5 * clean + 0.3 * rng.standard_normal()))
        likes = int(plays * rng.uniform(0.05, 0.1))
        songs.append(
            {"audio_id": f"song{number}", "path": f"{number}.wav", "streams": plays, "likes": likes}
        )
        rating = np.clip(1 + 4 * clean + 0.3 * rng.standard_normal(5), 1, 5)
        heads = dict(zip(AESTHETIC_HEADS, rating.tolist(), strict=True))
        ratings.append({"audio_id": f"song{number}", **heads})
    write_table(args.metadata, songs)
    write_table(args.songeval, ratings)
    torch.manual_seed(args.seed)
    encoder = {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 128, "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    config = ApexConfig(
        encoder=encoder, layers=(1, 2, 3, 4), segment_seconds=1.0, trunk_widths=(32, 16),
        head_widths=(16, 8), batch_segments=32,
    )  # fmt: skip
    ApexReward(config).save_pretrained(args.encoder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metadata", type=Path, help="table of counts; none: synthetic songs")
    parser.add_argument("--audio-dir", type=Path)
    parser.add_argument("--encoder", default="m-a-p/MERT-v1-95M")
    parser.add_argument("--songeval", type=Path, help="aesthetic scores; none: popularity only")
    parser.add_argument("--loss", default="standardized")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    if args.metadata is not None and args.audio_dir is None:
        parser.error("--metadata needs --audio-dir")
    return args


if __name__ == "__main__":
    main()
