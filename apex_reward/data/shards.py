"""Training shards: Parquet rows of segments, in the published layout and a superset of it.

| column | type |
|---|---|
| `audio_id`, `segment_id`, `platform` | text; `segment_id` is `<audio_id>_<1-based number>` |
| `path` | text, optional: the audio file, relative to the audio folder |
| `score_streams`, `score_likes` | float, [0, 100] |
| `segment_weight` | float32, optional: its share in the song's mean; absent: equal shares |
| `segment_embedding` | W float32: the layer embeddings pooled with the layer pooling named below |
| `layer_embeddings` | 4 x W float16, optional |
| `songeval_scores` | JSON text or struct with the five aesthetic heads in [1, 5], for task full |

The file's metadata holds, under `apex_reward`, the model configuration and the layer pooling that
made the embeddings; published shards lack it and stand for MERT-v1-95M with the published pooling.

Shape key: R = rows (segments), L = layers, W = embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from apex_reward.files.atomic import atomic
from apex_reward.model.apex import ApexReward
from apex_reward.model.checkpoint import load_mert, read_encoder_config
from apex_reward.model.config import ApexConfig
from apex_reward.model.files import local_path, read_config
from apex_reward.model.predictor import LayerPooling
from apex_reward.scores.apex import AESTHETIC_HEADS, POPULARITY_HEADS

SPLITS = ("train", "val", "test")
METADATA_KEY = b"apex_reward"
# What of a model configuration decides its embeddings; the rest is of the predictor behind them.
EMBEDDING_FIELDS = (
    "encoder", "layers", "sample_rate", "segment_seconds", "segment_tail",
)  # fmt: skip
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingSource:
    """What made the embeddings: the model configuration and the pooling, ready for JSON.

    Attributes:
        encoder_weights: hash of the encoder's weights; empty where it is not known.
    """

    config: Mapping[str, Any]
    pooling_weight: tuple[float, ...]
    pooling_bias: float
    encoder_weights: str = ""

    @classmethod
    def of_model(cls, model: ApexReward) -> EmbeddingSource:
        """The source that a model's embeddings have."""
        digest = hashlib.sha256()
        for name, value in sorted(model.encoder.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return cls.of(model.config, model.pooling, digest.hexdigest())

    @classmethod
    def of(cls, config: ApexConfig, pooling: LayerPooling, weights: str = "") -> EmbeddingSource:
        """The source with this configuration, layer pooling and hash of the encoder's weights."""
        assert pooling.bias is not None
        weight = tuple(pooling.weight.detach().flatten().tolist())
        return cls(config.to_dict(), weight, float(pooling.bias.detach()), weights)

    @classmethod
    def published(cls) -> EmbeddingSource:
        """MERT-v1-95M with the published layer pooling."""
        return cls.of(ApexConfig(), LayerPooling())

    def model_config(self) -> ApexConfig:
        """The configuration as an object."""
        return ApexConfig.from_dict(dict(self.config))

    def layer_pooling(self) -> LayerPooling:
        """The layer pooling as a module."""
        pooling = LayerPooling(len(self.pooling_weight))
        weight = torch.tensor(self.pooling_weight).view(1, -1, 1)
        pooling.load_state_dict({"weight": weight, "bias": torch.tensor([self.pooling_bias])})
        return pooling

    def same_embeddings(self, other: EmbeddingSource) -> bool:
        """Whether both give a song the same embedding, whatever predictor stands behind it."""
        return not self.encoder_differences(other) and self.same_pooling(other)

    def encoder_differences(self, other: EmbeddingSource) -> list[str]:
        """What differs between the encoders, a sentence each; empty for the same encoder.

        Where both hashes of the weights are known, the hashes decide and the names do not matter.
        """
        mine, others = self.model_config(), other.model_config()
        found = [
            f"{name} is {getattr(mine, name)}, of the other {getattr(others, name)}"
            for name in EMBEDDING_FIELDS
            if getattr(mine, name) != getattr(others, name)
        ]
        names = [mine.encoder_name, others.encoder_name]
        if self.encoder_weights and other.encoder_weights:
            if self.encoder_weights != other.encoder_weights:
                found.append(f"the encoders {names[0]} and {names[1]} differ")
        elif None not in names and names[0] != names[1]:
            found.append(f"the encoder is {names[0]}, of the other {names[1]}")
        return found

    def same_pooling(self, other: EmbeddingSource) -> bool:
        """Whether both pool layers alike, to float32 rounding."""
        mine = (*self.pooling_weight, self.pooling_bias)
        others = (*other.pooling_weight, other.pooling_bias)
        return len(mine) == len(others) and bool(np.allclose(mine, others, rtol=1e-6, atol=1e-7))

    def to_metadata(self) -> dict[bytes, bytes]:
        """As Parquet file metadata."""
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> EmbeddingSource | None:
        """From Parquet file metadata; None where it does not say."""
        if not metadata or METADATA_KEY not in metadata:
            return None
        value = json.loads(metadata[METADATA_KEY])
        return cls(**value | {"pooling_weight": tuple(value["pooling_weight"])})


def load_encoder(name: str | Path, device: str | torch.device = "cpu") -> ApexReward:
    """A model whose encoder and layer pooling are to be used; its predictor may be untrained.

    Args:
        name: folder or hub id in MERT's layout, a folder of a whole ApexReward, or `apex-tiny`.
        device: where it runs.

    Raises:
        CheckpointError: nothing there, or another kind of model.
    """
    folder = local_path(name)
    if read_config(folder).get("model_type") == ApexConfig.model_type:
        model = ApexReward.from_pretrained(folder)
    else:
        model = ApexReward(ApexConfig(encoder=read_encoder_config(folder)))
        load_mert(model.encoder, folder)
    # A folder's full path, so that it is found from any working folder; a hub id as it is.
    model.config.encoder_name = str(Path(name).resolve() if Path(name).exists() else name)
    torch.nn.Module.to(model, torch.device(device))
    return model


@dataclass
class SongRows:
    """One song's rows on the way into a shard.

    Attributes:
        labels: `platform`, the popularity heads and, where known, the aesthetic heads.
        layers: (S, L, W) float32 layer embeddings of its segments, in song order.
        pooled: (S, W) float32 segment embeddings.
        weights: (S,) shares of the segments in the song's mean, summing to 1.
    """

    audio_id: str
    labels: Mapping[str, Any]
    layers: FloatArray
    pooled: FloatArray
    weights: Sequence[float]


def write_shard(path: Path, songs: Sequence[SongRows], source: EmbeddingSource) -> None:
    """Write one shard whole. Songs keep their order, their segments too."""
    table = shard_table(songs).replace_schema_metadata(source.to_metadata())
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def shard_table(songs: Sequence[SongRows]) -> pa.Table:
    """The rows of songs, at least one, as an Arrow table in the shard layout."""
    owners = [song for song in songs for _ in range(len(song.pooled))]
    numbers = [n for song in songs for n in range(1, len(song.pooled) + 1)]
    names = [f"{song.audio_id}_{n}" for song, n in zip(owners, numbers, strict=True)]
    columns: dict[str, Any] = {
        "audio_id": pa.array([song.audio_id for song in owners], pa.string()),
        "segment_id": pa.array(names, pa.string()),
    }
    kinds = {"platform": pa.string(), "path": pa.string()}
    for name, kind in (kinds | dict.fromkeys(POPULARITY_HEADS, pa.float64())).items():
        if name != "path" or any(name in song.labels for song in songs):
            columns[name] = pa.array([song.labels.get(name) for song in owners], kind)
    weights = [weight for song in songs for weight in song.weights]
    columns["segment_weight"] = pa.array(weights, pa.float32())
    columns["segment_embedding"] = list_column(np.concatenate([song.pooled for song in songs]))
    layers = np.concatenate([song.layers for song in songs]).astype(np.float16)
    columns["layer_embeddings"] = list_column(layers)
    if any(head in song.labels for song in songs for head in AESTHETIC_HEADS):
        found = [{head: song.labels[head] for head in AESTHETIC_HEADS
                  if song.labels.get(head) is not None} for song in owners]  # fmt: skip
        texts = [json.dumps(scores) if scores else None for scores in found]
        columns["songeval_scores"] = pa.array(texts, pa.string())
    return pa.table(columns)


def list_column(values: npt.NDArray[Any]) -> pa.Array:
    """(R, ...) numbers as an Arrow column of (nested) lists of equal length."""
    column = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        rows = len(column) // size
        column = pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * size), column
        )
    return column


def list_values(column: pa.ChunkedArray, shape: tuple[int, ...]) -> tuple[FloatArray, list[str]]:
    """An Arrow column of (nested) lists as an (R, *shape) array, and what is wrong with it.

    Rows may be nested or flat lists. The array is empty where there is a problem.
    """
    values, expected, even = column.combine_chunks(), int(np.prod(shape)), True
    while isinstance(values.type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        even &= len(pc.unique(pc.list_value_length(values))) <= 1
        values = values.flatten()
    numbers = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    bad = len(values) != expected * len(column) or not even or not numbers or values.null_count
    array = np.empty((0, *shape), np.float32)
    if bad:
        found = f"{len(values)} values of {values.type} in {len(column)} rows"
        return array, [f"{found}; expected lists of {expected} numbers, none of them null"]
    array = values.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    broken = int((~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))).sum())
    if broken:
        return array[:0], [f"{broken} rows hold NaN or infinite values"]
    return array, []
