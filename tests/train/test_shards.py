"""Reading shards: the published layout, order, means, and every problem at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apex_reward.data.shards import EmbeddingSource, list_column
from apex_reward.errors import DataError
from apex_reward.scores.apex import AESTHETIC_HEADS
from apex_reward.train.shards import Data, load_data, split_folders
from tests.train.shards_builder import small_source, write_shards

REST = (small_source(16), "full")


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(file)
    changed = change(table).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, file)


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_splits_are_read_in_song_order(shards: Path, data: Data) -> None:
    files = sorted((shards / "val").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    rows = table.to_pylist()
    split = data["val"]
    assert split.audio_ids == list(dict.fromkeys(row["audio_id"] for row in rows))
    np.testing.assert_array_equal(
        split.embeddings, np.array([row["segment_embedding"] for row in rows], np.float32)
    )
    last = rows[-1]
    assert split.labels[-1, 0] == np.float32(last["score_streams"])
    assert split.labels[-1, 2] == np.float32(json.loads(last["songeval_scores"])["coherence"])


def test_shuffled_rows_of_many_files_give_the_same(
    shards: Path, data: Data, tmp_path: Path
) -> None:
    """Segments of a song come together again, in the order of their numbers."""
    table = pa.concat_tables(
        [pq.read_table(file) for file in sorted((shards / "val").glob("*.parquet"))]
    )
    order = np.random.default_rng(0).permutation(len(table))
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
    half = len(table) // 2
    pq.write_table(table.take(order[:half]), tmp_path / "val" / "a.parquet")
    pq.write_table(table.take(order[half:]), tmp_path / "val" / "b.parquet")
    read = load_data({"val": tmp_path / "val"}, "full")["val"]
    assert sorted(read.audio_ids) == sorted(data["val"].audio_ids)
    for number, name in enumerate(read.audio_ids):
        expected = data["val"].song == data["val"].audio_ids.index(name)
        np.testing.assert_array_equal(
            read.embeddings[read.song == number], data["val"].embeddings[expected]
        )


def test_song_samples_are_means(data: Data) -> None:
    split = data["test"]
    samples = split.samples("song", "popularity")
    assert samples.labels.shape == (70, 2)
    for song in range(70):
        expected = split.embeddings[split.song == song].mean(axis=0)
        np.testing.assert_allclose(samples.features[song], expected, rtol=1e-5, atol=1e-6)
    segments = split.samples("segment", "full")
    np.testing.assert_array_equal(segments.labels, split.labels[split.song])


def test_layer_embeddings_pool_to_the_stored_ones(shards: Path, data: Data) -> None:
    layers = load_data(split_folders(shards), "full", layers=True)["test"].embeddings
    weight = np.array(data.source.pooling_weight)
    pooled = np.einsum("rlw,l->rw", layers.astype(np.float64), weight) + data.source.pooling_bias
    np.testing.assert_allclose(pooled, data["test"].embeddings, atol=5e-3)


def test_published_layout(tmp_path: Path) -> None:
    """No metadata, no platform, doubles in lists, SongEval scores as a struct with capitals."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        scores = {head.capitalize(): 3.0 for head in AESTHETIC_HEADS}
        table = pa.table(
            {
                "audio_id": [f"{split}0"] * 2,
                "segment_id": [f"{split}0_1", f"{split}0_2"],
                "score_streams": [10.0, 10.0],
                "score_likes": [20, 20],
                "segment_embedding": list_column(rng.standard_normal((2, 768))),
                "songeval_scores": pa.array([scores, scores]),
            }
        )
        pq.write_table(table, tmp_path / split / "0.parquet")
    read = load_data(split_folders(tmp_path), "full")
    assert read.source == EmbeddingSource.published()
    assert read["train"].embeddings.shape == (2, 768)
    assert read["train"].labels.tolist() == [[10.0, 20.0, 3.0, 3.0, 3.0, 3.0, 3.0]]


def test_teacher_scores_take_the_place_of_stored_ones(shards: Path, data: Data) -> None:
    names = [name for split in data.splits.values() for name in split.audio_ids]
    teacher = {name: dict.fromkeys(AESTHETIC_HEADS, 2.0) for name in names}
    read = load_data(split_folders(shards), "full", teacher=teacher)
    assert (read["test"].labels[:, 2:] == 2.0).all()
    del teacher[names[0]]
    with pytest.raises(DataError, match=f"train: no teacher scores for {names[0]}"):
        load_data(split_folders(shards), "full", teacher=teacher)


def test_every_problem_is_listed_together(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": 12, "val": 8, "test": 8}, width=16)
    train = sorted((tmp_path / "train").glob("*.parquet"))
    val = sorted((tmp_path / "val").glob("*.parquet"))
    narrow = list_column(np.zeros((len(pq.read_table(train[0])), 15), np.float32))
    rewrite(train[0], lambda t: replaced(t, "segment_embedding", narrow))
    rewrite(train[1], lambda t: t.drop_columns(["songeval_scores"]))

    def spoil(table: pa.Table) -> pa.Table:
        streams = table["score_streams"].to_numpy().copy()
        streams[0] = np.nan
        likes = table["score_likes"].to_numpy().copy()
        likes[:] = 101.0
        embeddings = np.zeros((len(table), 16), np.float32)
        embeddings[0, 3] = np.inf
        table = replaced(table, "score_streams", pa.array(streams))
        table = replaced(table, "segment_embedding", list_column(embeddings))
        return replaced(table, "score_likes", pa.array(likes))

    rewrite(val[0], spoil)
    for file in (tmp_path / "test").glob("*.parquet"):
        file.unlink()
    with pytest.raises(DataError) as error:
        load_data(split_folders(tmp_path), "full")
    text = str(error.value)
    for part in (
        "test: no shards",
        "expected lists of 16 numbers",
        "train/00001.parquet: no column songeval_scores (task full needs it)",
        "val: score_streams is missing, NaN or infinite in 1 rows",
        "val: score_likes outside [0, 100]: 101",
        "val/00000.parquet: segment_embedding: 1 rows hold NaN or infinite values",
    ):
        assert part in text, text
    # The popularity task does not ask for what it does not need.
    with pytest.raises(DataError) as error:
        load_data(split_folders(tmp_path), "popularity")
    assert "songeval_scores" not in str(error.value)


def test_aesthetic_label_out_of_range(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": 6, "val": 6, "test": 6}, width=16)

    def change(table: pa.Table) -> pa.Table:
        scores = json.dumps(dict.fromkeys(AESTHETIC_HEADS, 5.25))
        return replaced(table, "songeval_scores", pa.array([scores] * len(table)))

    for file in (tmp_path / "val").glob("*.parquet"):
        rewrite(file, change)
    with pytest.raises(DataError, match=r"val: clarity outside \[1, 5\]: 5.25"):
        load_data(split_folders(tmp_path), "full")


def test_song_in_two_splits_and_repeated_segments(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": 6, "val": 6, "test": 6}, width=16, files=1)
    source = tmp_path / "val" / "00000.parquet"
    (tmp_path / "test" / "copy.parquet").write_bytes(source.read_bytes())
    (tmp_path / "train" / "twice.parquet").write_bytes(
        (tmp_path / "train" / "00000.parquet").read_bytes()
    )
    with pytest.raises(DataError) as error:
        load_data(split_folders(tmp_path), "full")
    assert "val and test share the songs val0, val1, val2, val3 and 2 more" in str(error.value)
    assert "rows repeat a segment_id" in str(error.value)


def test_shards_of_one_encoder_with_different_predictors_behind(tmp_path: Path) -> None:
    """A configuration of before a key was known, and one with another predictor."""
    config = dict(small_source(16).config)
    older = {name: value for name, value in config.items() if name not in ("members", "familiar")}
    other = {**config, "members": 8, "head_widths": [8, 4], "task": "popularity", "mix": None}
    same = small_source(16)
    for split, one in (("train", config), ("val", older), ("test", other)):
        source = EmbeddingSource(one, same.pooling_weight, same.pooling_bias)
        write_shards(tmp_path, {split: 4}, width=16, source=source)
    assert len(load_data(split_folders(tmp_path), "full")["test"].labels) == 4
    shorter = EmbeddingSource({**config, "segment_seconds": 10.0}, same.pooling_weight, 0.0)
    assert not same.same_embeddings(shorter)


def test_the_weights_tell_encoders_apart_where_they_are_known() -> None:
    """A folder that moved is the same encoder; other weights in the same folder are not."""
    plain = small_source(16)
    mine, moved, other, unknown = (
        EmbeddingSource(
            {**plain.config, "encoder_name": name}, plain.pooling_weight, plain.pooling_bias, hash_
        )
        for name, hash_ in (("/a", "1"), ("/b", "1"), ("/a", "2"), ("/b", ""))
    )
    assert mine.same_embeddings(moved)
    assert mine.encoder_differences(other) == ["the encoders /a and /a differ"]
    assert mine.encoder_differences(unknown) == ["the encoder is /a, of the other /b"]
    read = EmbeddingSource.from_metadata(mine.to_metadata())
    assert read is not None
    assert (read.encoder_weights, read.same_embeddings(moved)) == ("1", True)


def test_the_digest_holds_every_label_name_and_embedding(data: Data) -> None:
    for name in ("embeddings", "labels", "weight", "song"):
        values = getattr(data["val"], name).copy()
        values.flat[3] += 1
        changed = Data({**data.splits, "val": replace(data["val"], **{name: values})}, *REST)
        assert changed.digest != data.digest, name
    renamed = replace(data["test"], audio_ids=["x", *data["test"].audio_ids[1:]])
    assert Data({**data.splits, "test": renamed}, *REST).digest != data.digest
    assert Data(dict(data.splits), *REST).digest == data.digest


def test_shards_of_two_encoders(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": 4, "val": 4}, width=16)
    other = EmbeddingSource(small_source(16).config, (0.25, 0.25, 0.25, 0.25), 0.0)
    write_shards(tmp_path, {"test": 4}, width=16, source=other)
    with pytest.raises(DataError, match="different encoders or poolings"):
        load_data(split_folders(tmp_path), "full")


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train: no shards .*nothing/train/\*\.parquet"):
        load_data(split_folders(tmp_path / "nothing"), "full")


def write_songs(folder: Path, **columns: list[object]) -> Path:
    """Splits of one file each: `val` and `test` of a song, `train` with the given columns."""
    for split in ("train", "val", "test"):
        rows = {
            "audio_id": [split],
            "segment_id": [f"{split}_1"],
            "score_streams": [10.0],
            "score_likes": [20.0],
            "segment_embedding": [[0.0, 4.0]],
        }
        if split == "train":
            count = len(next(iter(columns.values())))
            rows = {name: values * count for name, values in rows.items()}
            rows["segment_id"] = [f"train_{n}" for n in range(count)]
            rows |= columns
        (folder / split).mkdir()
        table = pa.table(rows).replace_schema_metadata(small_source(2).to_metadata())
        pq.write_table(table, folder / split / "0.parquet")
    return folder


def test_segments_count_by_their_weights(tmp_path: Path) -> None:
    """Weights 3 and 1 of embeddings (0, 4) and (4, 0): (1, 3); the other song has one segment."""
    write_songs(
        tmp_path,
        audio_id=["a", "b", "a"],
        segment_id=["a_2", "b_1", "a_1"],
        segment_embedding=[[0.0, 4.0], [7.0, 7.0], [4.0, 0.0]],
        segment_weight=[0.75, 0.5, 0.25],
    )
    split = load_data(split_folders(tmp_path), "popularity")["train"]
    assert split.audio_ids == ["a", "b"]
    assert split.embeddings.tolist() == [[4.0, 0.0], [0.0, 4.0], [7.0, 7.0]]
    assert split.samples("song", "popularity").features.tolist() == [[1.0, 3.0], [7.0, 7.0]]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"segment_weight": [0.5, None]}, "segment_weight is missing or negative in a row, or 0"),
        ({"segment_weight": [-0.5, 1.5]}, "segment_weight is missing or negative in a row, or 0"),
        ({"segment_weight": [0.0, 0.0]}, "segment_weight is missing or negative in a row, or 0"),
        ({"score_likes": [1.0, 2.0]}, "train: score_likes differs between segments of a song in 1"),
        ({"score_likes": ["x", "y"]}, "train: score_likes is missing, NaN or infinite in 2 rows"),
        ({"audio_id": ["train", None]}, "train: 1 rows without audio_id"),
        ({"audio_id": ["val", "val"]}, "train and val share the songs val"),
    ],
)
def test_rows_that_do_not_belong_together(
    tmp_path: Path, columns: dict[str, list[object]], problem: str
) -> None:
    with pytest.raises(DataError) as error:
        load_data(split_folders(write_songs(tmp_path, **columns)), "popularity")
    problems = str(error.value).splitlines()[1:]
    assert len(problems) == 1
    assert problem in problems[0]


def test_files_that_hold_nothing_are_named(tmp_path: Path) -> None:
    write_songs(tmp_path, segment_weight=[1.0])
    (tmp_path / "val" / "0.parquet").write_bytes(b"PAR1")
    table = pq.read_table(tmp_path / "test" / "0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "test" / "0.parquet")
    with pytest.raises(DataError) as error:
        load_data(split_folders(tmp_path), "popularity")
    assert "val/0.parquet cannot be read" in str(error.value)
    assert "test: no rows" in str(error.value)
