"""A data set of songs: scored, paired, written in the hub's layout, loaded, trained on."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from datasets import Audio, Dataset, load_dataset
from typer.testing import CliRunner

from apex_reward import Reward
from apex_reward.cli import app
from apex_reward.errors import DataError
from apex_reward.files.songs_inside import undecoded
from apex_reward.files.tables import read_jsonl
from apex_reward.pairs import build_pairs, export, to_kto, to_trl
from apex_reward.scoring import score_dataset
from tests.pairs.test_export import candidates, trained_step
from tests.support import tiny_model

RATE = 8_000
GUIDE = Path(__file__).parents[2] / "docs/guides/datasets.md"
GUIDE_LINES = [
    "from datasets import load_dataset",
    *re.findall(
        r'^pairs = load_dataset\("pairs.*', GUIDE.read_text(encoding="utf-8"), re.MULTILINE
    ),
]
assert len(GUIDE_LINES) == 2


def wav(seed: int) -> bytes:
    """A second of noise, a tone in it at a pitch of its own."""
    noise = np.random.default_rng(seed).standard_normal(RATE) * 0.05
    tone = 0.3 * np.sin(np.arange(RATE) * 2 * np.pi * 110 * (1 + seed) / RATE)
    file = io.BytesIO()
    soundfile.write(file, noise + tone, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def songs() -> Dataset:
    """Two prompts of three songs, as bytes in an Audio column."""
    cells = [{"bytes": wav(n), "path": f"take {n}.wav" if n % 2 else None} for n in range(6)]
    columns = {"audio": cells, "prompt": ["calm 1"] * 3 + ["fast 2"] * 3}
    return Dataset.from_dict(columns).cast_column("audio", Audio())


@pytest.fixture(scope="module")
def scored(songs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scored data set, saved."""
    folder = tmp_path_factory.mktemp("scored") / "songs"
    score_dataset(songs, Reward(tiny_model(), mix="aesthetics")).save_to_disk(str(folder))
    return folder


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def loudest_bins(samples: Any, rate: int) -> list[int]:
    """A codec's stand-in: a token a quarter of a second."""
    assert rate == RATE
    return [int(np.argmax(np.abs(np.fft.rfft(part)))) % 12 for part in np.split(samples.numpy(), 4)]


def test_from_bytes_to_a_dpo_step(songs: Dataset, scored: Path, tmp_path: Path) -> None:
    done = run("pairs", scored, "--axis", "reward", "--test-share", 0, "--format", "trl",
               "--output", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    pairs = load_dataset(str(tmp_path / "out/trl"), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(pairs.features["chosen"], Audio)
    assert isinstance(pairs.features["rejected"], Audio)
    plain = undecoded(pairs, "chosen", "rejected")
    given = [cell["bytes"] for cell in undecoded(songs, "audio")["audio"]]
    rewards = Dataset.load_from_disk(str(scored))["reward"]
    for at, row in enumerate(plain):
        group = rewards[3 * at : 3 * at + 3]
        assert row["chosen"]["bytes"] == given[3 * at + int(np.argmax(group))]
        assert row["rejected"]["bytes"] == given[3 * at + int(np.argmin(group))]
        assert row["margin"] == pytest.approx(max(group) - min(group))
    texts = to_trl(pairs, encode=loudest_bins)
    assert texts["prompt"] == ["calm 1", "fast 2"]
    prepared, log, moved = trained_step("DPO", texts, tmp_path)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert moved > 1e-3
    assert len(prepared) == 2
    unpaired = to_kto(pairs, encode=loudest_bins)
    assert sorted(unpaired["completion"]) == sorted([*texts["chosen"], *texts["rejected"]])


def test_the_card_says_what_made_it(scored: Path, tmp_path: Path) -> None:
    done = run("pairs", scored, "--axis", "clarity", "--min-margin", 1e-6, "--model", "apex-tiny",
               "--format", "trl", "--output", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    text = (tmp_path / "trl/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    shards = [{"split": "train", "path": "data/train-*"}]
    (config,) = head["configs"]
    assert (config["config_name"], config["data_files"]) == ("default", shards)
    assert re.fullmatch("content [0-9a-f]{16}", config["description"])
    assert "**A demonstration.**" in text
    assert "| apex | apex-tiny |" in text
    assert "| min_margin | 1e-06 |" in text
    assert "from 6 candidates of 2 prompts" in text


def test_beside_tokens_the_songs_are_a_config_of_their_own(tmp_path: Path) -> None:
    rows = candidates("ids")
    for number, row in enumerate(rows):
        (tmp_path / row["audio"]).write_bytes(wav(number))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for form, column in (("trl", "chosen"), ("kto", "completion")):
        done = run("pairs", tmp_path / "rows.jsonl", "--test-share", 0.25, "--format", form,
                   "--output", tmp_path / "out")  # fmt: skip
        assert done.exit_code == 0, done.output
        folder, cache = str(tmp_path / "out" / form), str(tmp_path / "cache")
        texts = load_dataset(folder, cache_dir=cache)
        songs = load_dataset(folder, "audio", cache_dir=cache)
        assert {name: len(part) for name, part in songs.items()} == {
            name: len(part) for name, part in texts.items()
        }
        assert texts["train"].features[column].dtype == "string"
        names = [cell["path"] for cell in undecoded(songs["test"], column)[column]]
        pair = next(p for p in read_jsonl(tmp_path / "out/pairs.jsonl") if p["split"] == "test")
        assert names[0] == pair["chosen"]


@pytest.mark.parametrize("tokens", ["ids", "none"])
@pytest.mark.parametrize("form", ["trl", "kto"])
def test_a_line_loads_the_set_that_was_just_written(form, tokens, tmp_path, monkeypatch):
    """Twice under one name, with the default cache, without torchcodec."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.chdir(tmp_path)
    column = "chosen" if form == "trl" else "completion"
    for seed in (0, 1):
        rows = candidates(tokens)
        for number, row in enumerate(rows):
            if tokens == "ids":
                row["tokens"] = [row["tokens"][0], row["tokens"][1], seed]
            Path(row["audio"]).write_bytes(wav(number + 20 * seed))
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run("pairs", "rows.jsonl", "--format", form, "--test-share", 0, "--output",
                   "pairs").exit_code == 0  # fmt: skip
        names: dict[str, Any] = {}
        exec("\n".join(GUIDE_LINES).replace("pairs/trl", f"pairs/{form}"), names)
        loaded = names["pairs"]
        first = loaded[0][column]
        if tokens == "ids":
            assert first == f" 2 0 {seed}"
            songs = load_dataset(f"pairs/{form}", "audio", split="train")
            first = songs[0][column]
        assert first["bytes"] == wav(2 + 20 * seed)
        if tokens == "none" and form == "trl":
            assert to_trl(loaded)[0]["chosen"]["bytes"] == wav(2 + 20 * seed)
        shutil.rmtree("pairs")


def test_large_sets_are_several_shards_of_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = candidates("none")
    for number, row in enumerate(rows):
        row["audio"] = str(tmp_path / row["audio"])
        Path(row["audio"]).write_bytes(wav(number))
    pairs, _ = build_pairs(rows, test_share=0.0)
    monkeypatch.setattr(export, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(export, "SHARD_BYTES", 2 * 2 * len(wav(0)) + 1)
    from apex_reward.files.tables import table_of

    export.write_dataset(tmp_path / "set", table_of(pairs), pairs, "trl", Path, lambda configs: "")
    shards = sorted((tmp_path / "set/data").iterdir())
    names = [path.name for path in shards]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert sum(pq.ParquetFile(path).num_row_groups for path in shards) == len(pairs)
    files = {"train": [*map(str, shards)]}
    back = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert back["margin"] == [pair["margin"] for pair in pairs]


def test_push_uploads_the_folder_that_was_written(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    sent: dict[str, Any] = {}

    def create_repo(self: Any, repo: str, **options: Any) -> Any:
        sent["repo"] = repo
        return huggingface_hub.RepoUrl(f"https://huggingface.co/datasets/{repo}")

    def upload_folder(self: Any, *, folder_path: Path, **options: Any) -> None:
        sent["files"] = sorted(
            str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    words = ("pairs", scored, "--axis", "reward", "--output", tmp_path, "--push-to-hub", "ann/set")
    done = run(*words, "--format", "trl")
    assert done.exit_code == 0, done.output
    assert sent["repo"] == "ann/set"
    assert sent["files"] == ["README.md", "data/train-00000-of-00001.parquet"]
    assert "pushed to https://huggingface.co/datasets/ann/set" in done.output
    refused = run(*words)
    assert refused.exit_code == 2
    assert "--push-to-hub needs --format trl or kto" in refused.output
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", _no_network)
    offline = run(*words, "--format", "trl")
    assert offline.exit_code == 1
    assert "is written, but not pushed to ann/set: no route" in offline.output.replace("\n", " ")


def _no_network(*args: Any, **options: Any) -> None:
    raise OSError("no route")


def test_a_missing_song_is_named(tmp_path: Path) -> None:
    pair = {"prompt": "calm", "chosen": str(tmp_path / "none.wav"), "rejected": "x.wav"}
    with pytest.raises(DataError, match=r"none\.wav of a pair does not exist"):
        to_trl([pair], encode=loudest_bins)
