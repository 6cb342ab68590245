"""MuQ natively: log-mel, convolutional subsampling, conformer layers up to the one that is used.

Built of torch and of transformers' conformer layers, differentiable from the waveform on. Nothing
is computed that the wanted hidden state does not need: no quantiser, no positional convolution
(MuQ's positions are rotary), no layer above. `MuqSongs` encodes whole songs.
Source of the facts: the MuQ paper (arXiv 2501.01108) and its published files.

Memory. Attention runs through scaled-dot-product kernels that never hold the (F, F) matrix, and
where gradients are asked for a song longer than `RECOMPUTE_FRAMES`, the log-mel, pieces of
`PIECE_FRAMES` of the subsampling and each conformer layer are recomputed: what grows with the song
is one (F, W) tensor per layer and one layer's inner tensors.

Shape key: N = songs or windows, n = samples, M = mel frames (100 a second), F = frames (25 a
second), W = width (1024 published).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Wav2Vec2ConformerConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoderLayer,
)

from apex_reward.errors import UsageError
from apex_reward.model.encode import ModuleEncoder
from apex_reward.model.encoders.products import (
    FastProducts,
    conv3x3,
    linear,
    transformed,
    winograd_wins,
)
from apex_reward.model.precision import REDUCED, CheckedEncoder, FrozenModule, weights_dtype

SAMPLE_RATE = 24_000


class Mel(NamedTuple):
    """A log-mel's window and hop in samples at 24 kHz, and its number of bands."""

    n_fft: int
    hop: int
    bands: int


N_FFT, HOP, MELS = MUQ_MEL = Mel(2048, 240, 128)
# The spectrogram mirrors n_fft / 2 samples at both ends, so a song needs more than that.
MIN_SAMPLES = 1200
MEL_PER_FRAME = 4
# Four 3x3 convolutions, two of them with stride 2, reach 9 mel frames to either side.
HALO_FRAMES = 3
PIECE_FRAMES = 250
RECOMPUTE_FRAMES = 750


@dataclass(frozen=True)
class MuqConfig:
    """Sizes and constants of a MuQ; the defaults are those of MuQ-large-msd-iter.

    Args:
        width: W. depth: conformer layers of the whole model. heads: of its attention.
        feed_forward: inner width of the feed-forward blocks. activation: theirs and the
            convolution block's. kernel: of the depthwise convolution, odd.
        channels: of the subsampling convolutions. rotary_base: of the rotary positions.
        norm_eps: of the layer norm behind the last layer.
        mean, std: of the log-mel in dB, which is brought to 0 and 1 with them.
    """

    width: int = 1024
    depth: int = 12
    heads: int = 16
    feed_forward: int = 4096
    activation: str = "swish"
    kernel: int = 31
    channels: int = 512
    rotary_base: float = 10_000
    norm_eps: float = 1e-5
    mean: float = 6.768444971712967
    std: float = 18.417922652295623

    def conformer(self) -> Wav2Vec2ConformerConfig:
        """The configuration of transformers' conformer layers."""
        kind: Any = Wav2Vec2ConformerConfig
        return kind(
            hidden_size=self.width,
            num_attention_heads=self.heads,
            intermediate_size=self.feed_forward,
            hidden_act=self.activation,
            conv_depthwise_kernel_size=self.kernel,
            position_embeddings_type="rotary",
            attn_implementation="sdpa",
        )


class MuqEncoder(CheckedEncoder, FrozenModule):
    """Songs (N, n) at 24 kHz to one hidden state (N, F, W). Always in eval mode.

    Tensor names are those of the published file without its prefix `model.`. The log-mel, the
    norms and the residual stream are float32 at least, also with half-precision weights.

    Args:
        config: sizes; None takes the published ones.
        layer: which hidden state, 0 (the conformer's input) to `depth` (its output behind the
            last layer norm); layers above are not built.
    """

    FULL = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)

    def __init__(self, config: MuqConfig | None = None, layer: int = 6) -> None:
        super().__init__()
        self.config = config or MuqConfig()
        self.layer = layer
        self.conv = Subsampling(self.config.channels, self.config.width)
        self.conformer = Conformer(self.config, layer)
        self.eval()

    def encode(self, samples: Tensor, real: Tensor | None = None) -> Tensor:
        """Hidden state `layer` (N, F, W), F = ceil(n // 240 / 4), of songs (N, n).

        Args:
            samples: mono at 24 kHz, at least `MIN_SAMPLES` of them; all real (padding changes the
                hidden states of the whole song).
            real: not used.

        Raises:
            UsageError: float16 weights that overflow on these songs.
        """
        weights = weights_dtype(self)
        wide = torch.promote_types(weights, torch.float32)
        frames = -(-(samples.shape[-1] // HOP) // MEL_PER_FRAME)
        mel = _run(log_mel, frames, samples.to(wide), self.config.mean, self.config.std)
        with computing_in(weights, samples.device.type), FastProducts():
            hidden = self.conformer(self.conv(mel).to(wide))
        if weights == torch.float16 and not bool(hidden.isfinite().all()):
            raise UsageError(
                "MuQ overflows in float16 on these songs; use bfloat16 or float32 (dtype=, or "
                "--dtype on the command line)"
            )
        return hidden


class Subsampling(nn.Module):
    """Log-mel (N, 128, M) to frames (N, ceil(M / 4), W): two residual blocks and a projection."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_ResidualBlock(1, channels), _ResidualBlock(channels, channels))
        self.linear = nn.Linear(channels * MELS // MEL_PER_FRAME, width)

    def forward(self, mel: Tensor) -> Tensor:
        """All frames, in pieces with enough of their neighbours to equal one pass."""
        frames = -(-mel.shape[-1] // MEL_PER_FRAME)
        # On the graph a copy of the weights would live until the backward pass.
        folded = None if torch.is_grad_enabled() else self._folded(mel)
        parts = [
            _run(self._piece, frames, mel, start, min(start + PIECE_FRAMES, frames), folded)
            for start in range(0, frames, PIECE_FRAMES)
        ]
        return torch.cat(parts, dim=1)

    def _folded(self, mel: Tensor) -> list[_Folded | None]:
        """Each block's weights, for many pieces; None where norms stay apart."""
        if torch.is_autocast_enabled(mel.device.type):
            return [None, None]
        return [cast(_ResidualBlock, block).folded() for block in self.conv]

    def _piece(self, mel: Tensor, start: int, stop: int, folded: Any) -> Tensor:
        first = max(0, start - HALO_FRAMES)
        seen = mel[:, None, :, MEL_PER_FRAME * first : MEL_PER_FRAME * (stop + HALO_FRAMES)]
        for block, weights in zip(self.conv, folded or self._folded(mel), strict=True):
            seen = block(seen, weights)
        grid = seen[..., start - first : stop - first]
        return self.linear(grid.flatten(1, 2).transpose(1, 2))


class Conformer(nn.Module):
    """The first layers of the conformer, and the norm behind them where they are all."""

    def __init__(self, config: MuqConfig, layers: int) -> None:
        super().__init__()
        self.head_size, self.base = config.width // config.heads, config.rotary_base
        inner = config.conformer()
        self.layers = nn.ModuleList(Wav2Vec2ConformerEncoderLayer(inner) for _ in range(layers))
        last = layers == config.depth
        self.layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if last else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Frames (N, F, W) to the hidden state behind the last layer here."""
        frames = hidden.shape[1]
        rotary = rotary_positions(frames, self.head_size, self.base, hidden)
        for layer in self.layers:
            hidden = _run(layer, frames, hidden, None, rotary)
        return hidden if self.layer_norm is None else self.layer_norm(hidden)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms beside a third, halving both directions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, folded: _Folded | None) -> Tensor:
        """Grids (N, I, H, W) to (N, O, H / 2, W / 2)."""
        if folded is None:
            inner = F.relu(self.bn1(self.conv1(x)))
            return F.relu(self.bn2(self.conv2(inner)) + self.bn3(self.conv3(x)))
        inner = _halved(x, *folded.first).relu_()
        y = conv3x3(inner, *folded.second, folded.products)
        del inner
        return _halved(x, *folded.third).add_(y).relu_()

    def folded(self) -> _Folded:
        """The weights with the norms in them."""
        second = _filter(self.conv2, self.bn2)
        products = transformed(second[0]) if winograd_wins(second[0]) else None
        return _Folded(
            _filter(self.conv1, self.bn1), second, products, _filter(self.conv3, self.bn3)
        )


class _Folded(NamedTuple):
    """A block's weights and biases in eval mode, and the transform of the second."""

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    products: Tensor | None
    third: tuple[Tensor, Tensor]


def _filter(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight * scale[:, None, None, None]
    return weight, (conv.bias - norm.running_mean) * scale + norm.bias


def _halved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 3x3 convolution with stride 2; of one channel on a CPU as a product, channels-last."""
    if x.device.type != "cpu" or x.shape[1] > 1:
        return F.conv2d(x, weight, bias, stride=2, padding=1)
    windows = F.pad(x[:, 0], (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2)
    return linear(windows.flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)


def log_mel(samples: Tensor, mean: float, std: float, mel: Mel = MUQ_MEL) -> Tensor:
    """Standardised log-mel (N, bands, n // hop) of songs (N, n) at 24 kHz, outside autocast.

    Hann window, power, HTK bands without normalisation over 0 to 12 kHz, in dB with a floor at
    1e-10; the last frame is left out, as MuQ publishes it.
    """
    with torch.autocast(samples.device.type, enabled=False):
        return (mel_decibels(samples, mel.n_fft, mel.hop, _filters(mel))[..., :-1] - mean) / std


def mel_decibels(samples: Tensor, n_fft: int, hop: int, filters: Any) -> Tensor:
    """Mel bands (N, bands, frames) in dB, at least -100, of songs (N, n), outside autocast.

    Args:
        samples: mirrored by n_fft / 2 at both ends.
        n_fft, hop: of the Hann window, in samples.
        filters: (n_fft / 2 + 1, bands) weights of the power spectrum, an array.
    """
    window = torch.hann_window(n_fft, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, n_fft, hop, window=window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    bands = torch.as_tensor(filters, dtype=samples.dtype, device=samples.device).T @ power
    return 10 * bands.clamp_min(1e-10).log10()


def rotary_positions(frames: int, size: int, base: float, like: Tensor) -> Tensor:
    """Cosines and sines (2, frames, 1, 1, size) of the rotary positions, in `like`'s dtype.

    Frequencies base^(-2i / size), repeated for both halves (arXiv 2104.09864). Computed per call:
    transformers' module keeps the last length, which two threads would overwrite for each other.
    """
    steps = torch.arange(0, size, 2, dtype=like.dtype, device=like.device) / size
    angles = torch.arange(frames, dtype=like.dtype, device=like.device)[:, None] / base**steps
    both = torch.cat([angles, angles], dim=-1)[:, None, None, :]
    return torch.stack([both.cos(), both.sin()])


@cache
def _filters(mel: Mel) -> Any:
    """(n_fft / 2 + 1, bands) weights of the mel bands, an array of float64."""
    return mel_filter_bank(
        num_frequency_bins=mel.n_fft // 2 + 1,
        num_mel_filters=mel.bands,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        mel_scale="htk",
    )


def _run(step: Callable[..., Tensor], frames: int, *args: Any) -> Tensor:
    """`step(*args)`; for a long song on the graph its inner tensors are recomputed in backward."""
    if torch.is_grad_enabled() and frames > RECOMPUTE_FRAMES:
        return checkpoint(step, *args, use_reentrant=False, preserve_rng_state=False)
    return step(*args)


def computing_in(dtype: torch.dtype, device_type: str) -> AbstractContextManager[Any]:
    """With half-precision weights: products in half, norms and sums in float32."""
    if dtype in REDUCED:
        return torch.autocast(device_type, dtype=dtype)
    return nullcontext()


class MuqSongs(ModuleEncoder):
    """A `SongEncoder` whose feature is the time-mean (1, W) of a MuQ's hidden state.

    A song is one piece of its own length, in a pass of its own, since attention spans it whole;
    one shorter than 50 ms is zero-padded to that.
    """

    name = "muq"
    sample_rate = SAMPLE_RATE
    shortest = MIN_SAMPLES

    def __init__(self, muq: MuqEncoder) -> None:
        self.muq = muq

    def encode(self, samples: Tensor, real: Tensor | None) -> Tensor:
        """The feature of one song (1, n)."""
        return self.muq(samples).mean(dim=1)

    def weights(self) -> Sequence[nn.Module]:
        """The modules that the feature depends on."""
        return (self.muq,)

    def settings(self) -> Hashable:
        """The layer and the sizes."""
        return self.muq.layer, self.muq.config
