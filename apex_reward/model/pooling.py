"""Layer pooling: the 1x1 convolution over the four layer embeddings.

Shape key: N = segments or songs, W = embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The published pooling was never trained: it is torch.manual_seed(42)'s Conv1d(4, 1, 1), built
# anew at extraction and at inference, and in no checkpoint.
PUBLISHED_WEIGHT = (
    0.3822692632675171,
    0.4150039553642273,
    -0.11713624000549316,
    0.45930564403533936,
)
PUBLISHED_BIAS = -0.10955178737640381


class LayerPooling(nn.Conv1d):
    """Weighted sum of four layers plus a bias: (N, 4, W) -> (N, W).

    Starts at the published constants; `weight` is (1, 4, 1), `bias` (1,). Trainable.
    """

    def __init__(self, layers: int = len(PUBLISHED_WEIGHT)) -> None:
        super().__init__(layers, 1, kernel_size=1)

    def reset_parameters(self) -> None:
        """Set the published constants (an equal mean where there are not four layers)."""
        with torch.no_grad():
            if self.in_channels == len(PUBLISHED_WEIGHT):
                self.weight.copy_(torch.tensor(PUBLISHED_WEIGHT).view_as(self.weight))
                self.bias.fill_(PUBLISHED_BIAS)  # type: ignore[union-attr]
            else:
                self.weight.fill_(1 / self.in_channels)
                self.bias.zero_()  # type: ignore[union-attr]

    def forward(self, layers: Tensor) -> Tensor:
        """(N, 4, W) -> (N, W)."""
        return super().forward(layers).squeeze(1)
