"""Encoders: frozen networks that turn a clip into a feature.

Contract
--------
``Plug(weights, allow_download=False, **arguments)`` builds the network with its weights loaded (for how weights are
named see `avfuse.encoders._weights`) and raises `UsageError` when they cannot be had. ``modality`` is "video" or
"audio"; ``feature_shape`` the shape of one clip's feature. ``fingerprint`` holds what its output depends on, for the
cache's `CacheSpec`; ``provenance`` where the weights came from. An encoder takes clips as they come from the media and
does its own normalising; it returns float32 features:

=========  ==================================================  ==============
modality   input                                               output
=========  ==================================================  ==============
video      (B, K, Y, X, 3) uint8, aligned RGB crops            (B, C, H, W)
audio      (B, S) float32, mono at 44.1 kHz, within -1 to 1    (B, A)
=========  ==================================================  ==============
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A frozen network from one modality of a clip to its feature; see the module's contract."""

    modality: ClassVar[str]
    feature_shape: tuple[int, ...]
    fingerprint: dict[str, Any]
    provenance: dict[str, Any]

    @abstractmethod
    def place(self, device: torch.device, precision: str) -> None:
        """Freeze the network and move it to where it will run; `precision` is "fp32" or "bf16"."""

    @abstractmethod
    def forward(self, clips: Tensor) -> Tensor:
        """Encode a batch of clips."""
