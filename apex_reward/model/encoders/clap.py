"""CLAP: transformers' ClapModel behind a log-mel spectrogram that gradients flow through.

The mel is that of `ClapFeatureExtractor` without fusion (Slaney scale and norm, in decibels), the
embeddings are those of `ClapModel` (Wu et al. 2023, arXiv 2211.06687). A song is cut into windows
of 10 s without overlap, which weigh by their real audio; a shorter window is repeated as often as
it fits and then zero-padded, as the feature extractor's `repeatpad` does.

Shape key: B = songs, T = samples, N = windows, n = samples in a window (480,000 published),
M = mel bands (64), F = frames (1001), D = embedding width (512).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from apex_reward.errors import CheckpointError
from apex_reward.files.atomic import atomic
from apex_reward.model.encode import Pieces, weights_hash
from apex_reward.model.encoders.muq import mel_decibels
from apex_reward.model.files import (
    check_unused,
    encoder_path,
    load_checked,
    read_config,
    read_weights,
    weight_file,
)
from apex_reward.model.precision import FrozenModule

PUBLISHED_CLAP = "laion/larger_clap_music"
# Index tables that follow from the configuration; files of some versions hold them.
DERIVED = ("position_ids", "token_type_ids", "relative_position_index")
# Prompts whose embeddings are kept; a prompt of 512 numbers takes 2 kB.
CACHED_PROMPTS = 4096
TEXTS_PER_BATCH = 32
MEL_SETTINGS = ("feature_size", "fft_window_size", "hop_length", "frequency_min", "frequency_max")


class ClapEncoder(FrozenModule, Pieces):
    """Both towers of a CLAP, frozen and in eval mode; the audio tower is a `SongEncoder`.

    Song features are means over windows of unit vectors (B, D), weighted by the windows' real
    audio: their dot product with a text's unit vector is the weighted mean of the windows' cosines.
    Computed in float32 (or float64), also inside autocast: half precision has no room for decibels
    of -100 to 50.

    Args:
        model: both towers with their projections.
        tokenizer: the text tower's, as `transformers.AutoTokenizer` gives it.
        extractor: gives the mel's settings; its `truncation` and `padding` are not used.

    Raises:
        CheckpointError: a CLAP with fusion, which takes four mels of a song at once.
    """

    name = "clap"
    batch_segments = 4
    tail: str = "mask"

    def __init__(self, model: ClapModel, tokenizer: Any, extractor: ClapFeatureExtractor) -> None:
        super().__init__()
        config: Any = model.config
        if config.audio_config.enable_fusion:
            raise CheckpointError(
                "this CLAP was trained with fusion (enable_fusion), which is not supported; take "
                "one without it, such as laion/larger_clap_music"
            )
        self.model, self.tokenizer, self.extractor = model, tokenizer, extractor
        self.sample_rate = int(extractor.sampling_rate)
        self.window = int(extractor.nb_max_samples)
        self._texts: dict[str, Tensor] = {}
        self.requires_grad_(False)
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast or move all tensors; cached text embeddings are dropped."""
        self._texts = {}
        return super()._apply(fn, recurse)

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.model.config.projection_dim)

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Unit vectors (N, D) of windows (N, n), of which (N,) samples are real (None: all)."""
        dtype = self.model.audio_projection.linear1.weight.dtype
        with torch.autocast(samples.device.type, enabled=False):
            if real is not None:
                samples = repeat_to_window(samples, real)
            mel = self.log_mel(samples).to(dtype)
            found = self.model.get_audio_features(input_features=mel[:, None])
        return found.pooler_output

    def log_mel(self, samples: Tensor) -> Tensor:
        """Windows (N, n) to decibels (N, F, M), as the feature extractor gives them.

        In float64 where the device has it: in float32 the rounding noise of a loud tone stands
        above the floor of the quiet bands.
        """
        exact = torch.float32 if samples.device.type == "mps" else torch.float64
        settings = self.extractor
        bands = mel_decibels(
            samples.to(exact),
            settings.fft_window_size,
            settings.hop_length,
            settings.mel_filters_slaney,
        )
        # torch's batch norm has a wrong gradient on a CPU for a mel that is transposed in memory.
        return bands.transpose(1, 2).contiguous()

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts, each computed once while it stays among the latest 4096.

        A prompt longer than the text tower's positions is cut at its end. No gradient.
        """
        place = self.model.text_projection.linear1.weight
        if not prompts:
            return place.new_empty(0, self.width)
        # Each step is safe between threads; at worst two of them compute a text.
        cache = self._texts
        known = {t: found for t in prompts if (found := cache.pop(t, None)) is not None}
        missing = [text for text in dict.fromkeys(prompts) if text not in known]
        for start in range(0, len(missing), TEXTS_PER_BATCH):
            batch = missing[start : start + TEXTS_PER_BATCH]
            known.update(zip(batch, self._encode_text(batch), strict=True))
        cache.update(known)
        for text in list(cache)[:-CACHED_PROMPTS]:
            cache.pop(text, None)
        return torch.stack([known[text] for text in prompts]).to(place)

    def fingerprint(self) -> Hashable:
        """A hash of the audio tower's weights and of the mel's settings."""
        config: Any = self.model.config
        mel = [getattr(self.extractor, name) for name in MEL_SETTINGS]
        settings = [self.sample_rate, self.window, config.audio_config.to_dict(), mel]
        text = json.dumps(settings, sort_keys=True, default=str)
        towers = (self.model.audio_model, self.model.audio_projection)
        return self.name, text, *map(weights_hash, towers)

    @torch.no_grad()
    def _encode_text(self, texts: list[str]) -> Tensor:
        place = self.model.text_projection.linear1.weight
        config: Any = self.model.config.text_config
        # Positions of RoBERTa start behind the padding token's number.
        positions = config.max_position_embeddings - (config.pad_token_id or 0) - 1
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=min(positions, self.tokenizer.model_max_length),
            return_tensors="pt",
        ).to(place.device)
        with torch.autocast(place.device.type, enabled=False):
            found = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        return found.pooler_output.cpu()


def repeat_to_window(samples: Tensor, real: Tensor) -> Tensor:
    """Windows (N, n) whose first (N,) samples are repeated as often as they fit, then zeros.

    >>> repeat_to_window(torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))
    tensor([[1., 2., 1., 2., 0.]])
    """
    position = torch.arange(samples.shape[1], device=samples.device)
    length = real.to(samples.device)[:, None]
    repeats = position < samples.shape[1] // length * length
    return samples.gather(1, position % length).masked_fill(~repeats, 0.0)


def load_clap(name: str | Path = PUBLISHED_CLAP, **hub: Any) -> ClapEncoder:
    """Both towers, the tokenizer and the mel's settings from a folder or hub id.

    Args:
        name: transformers' layout: `config.json` of model_type clap, `preprocessor_config.json`,
            the tokenizer's files and the weights.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: nothing there, another kind of model, a CLAP with fusion, or any file or
            tensor that is missing, extra or misshapen.
    """
    folder = encoder_path(name, **hub)
    kind = read_config(folder).get("model_type") if folder.is_dir() else "file"
    if kind != "clap":
        raise CheckpointError(
            f"{folder} describes a {kind!r}; expected a folder of model_type 'clap' in "
            f"transformers' layout, such as {PUBLISHED_CLAP}"
        )
    tokenizer, extractor = _text_and_mel(folder)
    model = ClapModel(ClapConfig.from_pretrained(folder)).float()
    file = weight_file(folder)
    derived = {n: value for n, value in model.state_dict().items() if n.endswith(DERIVED)}
    stored = {n: value for n, value in read_weights(file).items() if not n.endswith(DERIVED)}
    load_checked(model, file, {**stored, **derived})
    return ClapEncoder(model, tokenizer, extractor)


def save_clap(encoder: ClapEncoder, folder: str | Path) -> None:
    """Write the same layout, whole or not at all."""
    with atomic(check_unused(folder)) as temporary:
        for part in (encoder.model, encoder.tokenizer, encoder.extractor):
            part.save_pretrained(temporary)


def _text_and_mel(folder: Path) -> tuple[Any, ClapFeatureExtractor]:
    try:
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer or mel settings that can be read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return tokenizer, extractor
