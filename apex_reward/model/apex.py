"""`ApexReward`: songs in, scores out, differentiable. The whole flow is `embed_layers`.

Shape key: B = songs, C = channels, T = samples, N = segments, n = samples in a segment,
L = kept layers (4), W = embedding width, H = heads (2 or 7).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apex_reward.files.atomic import atomic
from apex_reward.files.tables import write_text
from apex_reward.model.card import FILE as CARD_FILE
from apex_reward.model.card import model_card
from apex_reward.model.checkpoint import load_model
from apex_reward.model.config import ApexConfig
from apex_reward.model.encode import (
    EncodedModel,
    Lengths,
    Prompts,
    encode_pieces,
    song_features,
)
from apex_reward.model.encoders.mert import MertEncoder, MertSegments
from apex_reward.model.encoders.student import StudentConfig, StudentEncoder
from apex_reward.model.inputs import at_loudness
from apex_reward.model.licences import Licence, apex_licences
from apex_reward.model.precision import FrozenModel, in_full_precision
from apex_reward.model.predictor import Familiarity, LayerPooling
from apex_reward.model.source import Source, with_source
from apex_reward.scores.apex import APEX_MIXES
from apex_reward.scores.head import Head
from apex_reward.scores.resolve import Mix, mix_scores, resolve_mix
from apex_reward.scores.scores import Scores

EMPTY_CARD = "This model card has been automatically generated"


class ApexReward(FrozenModel, PreTrainedModel, EncodedModel):
    """Differentiable, batched reward model for songs.

    The model stays in eval mode, also inside a policy's `train()`. Encoder weights are frozen
    (`model.encoder.requires_grad_(True)` asks for them); gradients always reach the waveform.

    >>> import torch
    >>> model = ApexReward.from_pretrained("apex-tiny")
    >>> scores = model(torch.randn(2, 24_000) * 0.1, sample_rate=24_000)
    >>> scores.stack().shape
    torch.Size([2, 7])
    """

    config: ApexConfig
    config_class = ApexConfig
    base_model_prefix = "apex"
    main_input_name = "waveforms"
    # A bf16 sigmoid times 100 moves in steps of half a point.
    _keep_in_fp32_modules_strict = ["pooling", "predictor", "familiar"]  # noqa: RUF012
    _no_split_modules = ["HubertEncoderLayer", "WeightNormConv1d"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: ApexConfig) -> None:
        super().__init__(config)
        self.encoder: MertEncoder | StudentEncoder
        if config.student:
            self.encoder = StudentEncoder(StudentConfig.of(config.encoder))
        else:
            self.encoder = MertEncoder(config.encoder_config(), config.layers)
        self.pooling = LayerPooling(len(config.layers))
        self.predictor = config.predictor()
        self.familiar = Familiarity(config.width) if config.familiar else None
        self.encoder.requires_grad_(False)
        self.post_init()
        self.eval()

    @property
    def name(self) -> str:  # type: ignore[override]
        """`apex`; `student` where the model imitates another one."""
        return "student" if self.config.student else "apex"

    @property
    def heads(self) -> tuple[Head, ...]:  # type: ignore[override]
        """The heads of the task with their ranges, in order."""
        return self.config.heads

    @property
    def members(self) -> int:
        """Predictors of the ensemble; 1 where there is none."""
        return self.config.members

    @property
    def encoders(self) -> tuple[MertSegments, ...]:
        """The encoder over 30-second segments; its song feature is the (B, L, W) embedding."""
        return (MertSegments(self.encoder, self.config),)

    @property
    def licences(self) -> list[Licence]:
        """The licences of code, predictor and encoder, as far as they are known.

        A student has those of its teacher.
        """
        if self.config.distilled:
            return list(self.config.distilled["licences"])
        return apex_licences(str(self.config.name_or_path), str(self.config.encoder_name))

    @property
    def mixes(self) -> dict[str, dict[str, float]]:
        """Weights of the named mixes that this task's heads allow."""
        names = set(self.config.head_names)
        return {name: mix for name, mix in APEX_MIXES.items() if names.issuperset(mix)}

    @property
    def default_mix(self) -> str:
        """The mix of a call that names none, for a model that saved none."""
        named = ("aesthetics", "popularity")
        return next((name for name in named if name in self.mixes), "overall")

    @property
    def saved_mix(self) -> Mapping[str, Any] | None:
        """The mix saved with the model."""
        return self.config.mix

    @property
    def preference(self) -> Mapping[str, Any] | None:
        """The calibrated preference head saved with the model."""
        return self.config.preference

    def forward(
        self,
        waveforms: Tensor,
        sample_rate: int,
        lengths: Lengths = None,
        prompts: Prompts = None,
        batch_segments: int | None = None,
    ) -> Scores:
        """Scores of a batch of songs; a song scores the same alone or in any batch.

        Args:
            waveforms: float tensor (B, T) or (B, C, T) in [-1, 1], zero-padded on the right.
            sample_rate: of the waveforms, Hz.
            lengths: (B,) real samples of each song, 1 to T; None where no song is padded.
            prompts: not read; every reward model takes them.
            batch_segments: segments per encoder batch; None takes the configuration's.

        Returns:
            `Scores` of (B,) tensors on the autograd graph.

        Raises:
            UsageError: a wrong shape, dtype, rate or length.
            AudioError: samples that are NaN, infinite or plainly not in [-1, 1].
        """
        return self.score_embeddings(self.embed(waveforms, sample_rate, lengths, batch_segments))

    def reward(
        self,
        waveforms: Tensor,
        sample_rate: int,
        lengths: Lengths = None,
        mix: Mix | None = None,
        groups: Tensor | None = None,
        loudness: float | None = None,
        batch_segments: int | None = None,
    ) -> Tensor:
        """One scalar per song, (B,), on the autograd graph; higher is better.

        The short form of `Reward` for one model.

        Args:
            mix: a `RewardMix`, its text form, a named mix, or `preference` where the model holds a
                calibrated head. None takes the mix saved with the model, else `aesthetics`.
            groups: (B,) prompt of each song, for a mix normalised within groups.
            loudness: LUFS that the mono mix of every song is brought to first; the reward is then
                blind to gain. None scores the songs as they are.

        The other arguments and errors are those of `forward`.
        """
        if loudness is not None:
            waveforms = at_loudness(waveforms, sample_rate, loudness, lengths)
        embeddings = self.embed(waveforms, sample_rate, lengths, batch_segments)
        scores = self.score_embeddings(embeddings)
        return mix_scores(resolve_mix(mix, self), scores, embeddings, groups)

    def embed(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None,
        batch_segments: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Song embeddings (B, W); arguments and errors as in `forward`."""
        return self.pool(self.embed_layers(waveforms, sample_rate, lengths, batch_segments))

    def embed_layers(
        self, waveforms: Tensor, sample_rate: int, lengths: Lengths = None,
        batch_segments: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Layer embeddings of whole songs (B, L, W); arguments and errors as in `forward`."""
        (layers,) = song_features(self.encoders, waveforms, sample_rate, lengths, batch_segments)
        return layers

    def encode_segments(
        self,
        segments: Tensor,
        real: Tensor | None = None,
        batch_segments: int | None = None,
    ) -> Tensor:
        """Layer embeddings (N, L, W) of segments (N, n) at the encoder's rate.

        Args:
            real: (N,) real samples of each, used by the `mask` convention only; None: all.
            batch_segments: segments per encoder batch; halved where GPU memory runs out.
        """
        real = torch.full(segments.shape[:1], segments.shape[1]) if real is None else real
        return encode_pieces(self.encoders[0], segments, real, batch_segments)

    def score_features(self, features: Sequence[Tensor], prompts: Prompts = None) -> Scores:
        """Scores of song features, one (B, L, W) tensor of layer embeddings."""
        return self.score_embeddings(self.embeddings_of(features))

    def embeddings_of(self, features: Sequence[Tensor]) -> Tensor:
        """Song embeddings (B, W) of song features."""
        return self.pool(features[0])

    def pool(self, layers: Tensor) -> Tensor:
        """Layer pooling in full precision: (N, L, W) -> (N, W)."""
        return in_full_precision(self.pooling, layers)

    def score_embeddings(self, embeddings: Tensor) -> Scores:
        """Scores of song embeddings (B, W), in full precision whatever the encoder's dtype.

        An ensemble's scores are the means over its members; `members` and `std` hold each member's
        and their spread.
        """
        heads, several = self.config.heads, self.config.members > 1
        values = in_full_precision(self.predictor, embeddings)
        return Scores.from_members(values, heads) if several else Scores.from_stack(values, heads)

    def unfamiliarity(self, embeddings: Tensor) -> Tensor | None:
        """How far song embeddings (B, W) lie from the songs that the predictor was trained on.

        Returns:
            (B,) Mahalanobis distances over the distance that 1% of held-out training songs exceed:
            above 1 is unfamiliar. None where the checkpoint holds no statistics (the published one
            and those with a tuned encoder).
        """
        return None if self.familiar is None else in_full_precision(self.familiar, embeddings)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; every file appears whole, `config.json` last.

        A card (`README.md`) is written where the folder has none.
        """
        if kwargs.get("push_to_hub"):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        with atomic(save_directory, last="config.json") as temporary:
            super().save_pretrained(temporary, *args, **kwargs)
            if not (Path(save_directory) / CARD_FILE).exists():
                write_text(temporary / CARD_FILE, model_card(self.config))

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """A repository's first card is this model's, not the empty one that transformers makes."""
        file = Path(working_dir) / CARD_FILE
        if file.is_file() and EMPTY_CARD in file.read_text(encoding="utf-8"):
            write_text(file, model_card(self.config))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, *, encoder: str | Path | None = None, **kwargs: Any
    ) -> ApexReward:
        """Load from a hub id, a local folder or the embedded `apex-tiny`.

        Reads folders that `save_pretrained` or `apex-reward train` left and the published
        `amaai-lab/apex` repository; what holds no encoder is composed with the one its
        configuration names.

        Args:
            encoder: hub id or folder of the encoder, in place of the one named.
            kwargs: as in transformers: `dtype`, `device_map`, `revision`, `cache_dir`, `token`,
                and any `ApexConfig` field (`segment_tail="mask"`).

        Raises:
            CheckpointError: nothing there, not such a checkpoint, or any missing, extra or
                misshapen tensor, named with its file.
        """
        return with_source(load_model(cls, name, encoder, **kwargs), _source(name, encoder, kwargs))

    @classmethod
    def from_published(
        cls, predictor: str | Path, encoder: str | Path, **kwargs: Any
    ) -> ApexReward:
        """Compose the published files: a predictor and a MERT encoder.

        Args:
            predictor: `best_model.pt`, a folder or a hub id that holds the predictor.
            encoder: folder or hub id in MERT's layout.
            kwargs: as in `from_pretrained`.

        Raises:
            CheckpointError: as in `from_pretrained`.
        """
        return cls.from_pretrained(predictor, encoder=encoder, **kwargs)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: constructors initialise, and loading is strict about every tensor."""


def _source(name: str | Path, encoder: str | Path | None, options: Mapping[str, Any]) -> Source:
    """What loads the model again; settings that only code can change are listed in it."""
    fields = inspect.signature(ApexConfig.__init__).parameters
    tail, revision = options.get("segment_tail"), options.get("revision")
    changed = sorted(key for key in options if key in fields and key != "segment_tail")
    return Source(
        str(name), None if encoder is None else str(encoder), tail, revision, tuple(changed)
    )
