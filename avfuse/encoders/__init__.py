"""Encoders: frozen networks that turn a clip into a feature.

Contract
--------
``Plug(weights: str, allow_download: bool = False, **arguments)`` builds the network in evaluation mode with its
weights loaded (see `avfuse.encoders._weights` for how weights are named); it raises `UsageError` when they cannot be
had. ``modality`` is "video" or "audio"; ``feature_shape`` the shape of one clip's feature without the batch axis;
``description`` holds what belongs to the cache's fingerprint. Calling the encoder on a batch returns float32 features:

=========  =======================================  ==========================
modality   input                                    output
=========  =======================================  ==========================
video      (B, 3, K, Y, X) normalised frames        (B, C, H, W)
audio      (B, 1, M, frames) normalised log-mel     (B, A)
=========  =======================================  ==========================
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A frozen network from one modality of a clip to its feature; see the module's contract."""

    modality: ClassVar[str]
    feature_shape: tuple[int, ...]
    description: dict[str, Any]

    @abstractmethod
    def forward(self, clips: Tensor) -> Tensor:
        """Encode a batch of clips."""

    def prepare(self, device: torch.device, precision: str) -> None:
        """Freeze the network and move it to where it will run; `precision` is "fp32" or "bf16"."""
        self.eval().requires_grad_(False).to(device)
