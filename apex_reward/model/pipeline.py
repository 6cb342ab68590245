"""`pipeline("song-reward")` of transformers; importing this module registers the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.generic import ModelOutput

from apex_reward.audio.load import load_audio
from apex_reward.model.feature_extractor import ApexFeatureExtractor

TASK = "song-reward"


class SongRewardPipeline(Pipeline):
    """Songs to their scores, one song at a time, as `audio-classification` gives labels.

        judge = pipeline("song-reward", model=ApexReward.from_pretrained("amaai-lab/apex"))
        judge("song.mp3")       # [{"label": "score_streams", "score": 61.2}, ...]

    A song is the path of a file, or what `ApexFeatureExtractor` takes; `sampling_rate` is the Hz of
    arrays. Scores have the ranges of their heads, in head order. Many songs at once, and with
    guards: `Reward.judge`.
    """

    # transformers types these flags as None, its default.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extractor = ApexFeatureExtractor(self.model.config.sample_rate)

    def _sanitize_parameters(
        self, sampling_rate: int | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        return given, {}, {}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """A song as a batch of one."""
        sampling_rate = preprocess_parameters.get("sampling_rate")
        if isinstance(input_, (str, Path)):
            song = load_audio(input_)
            input_, sampling_rate = song.samples, song.sample_rate
        return dict(self.extractor(input_, sampling_rate))

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> ModelOutput:
        scores = self.model(**input_tensors, sample_rate=self.extractor.sampling_rate)
        return ModelOutput(dict(scores))

    def postprocess(
        self, model_outputs: ModelOutput, **postprocess_parameters: Any
    ) -> list[dict[str, Any]]:
        """A row per head."""
        return [{"label": name, "score": float(value[0])} for name, value in model_outputs.items()]


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=SongRewardPipeline, pt_model=AutoModel, type="audio"
)
