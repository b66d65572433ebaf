"""Encoders that tell what they were given, in place of networks: extraction is then fast and its features readable."""

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from avfuse import atomic, registry
from avfuse.encoders import Encoder
from avfuse.options import ExtractOptions

ENCODERS = {
    "tiny_video": "tiny:BrightnessEncoder",
    "tiny_quarters": "tiny:QuarterEncoder",
    "tiny_audio": "tiny:LoudnessEncoder",
}
KNOBS = {
    "corpus": "folder",
    "video_encoder": "tiny_video",
    "audio_encoder": "tiny_audio",
    "video_weights": "none",
    "audio_weights": "none",
    "device": "cpu",
    "precision": "fp32",
    "engine": "serial",
}


def options(root: Path, **changes: Any) -> ExtractOptions:
    """Return the options of an extraction with these encoders, into a cache beside the root."""
    return ExtractOptions(**{"root": root, "cache": root.parent / "cache", **KNOBS, **changes})


@pytest.fixture(autouse=True)
def tiny_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register them, in every page that takes this in."""
    for name, row in ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoders: None) -> Path:
    """Return the folder for temporary files, where nothing is flushed, which takes longest."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(atomic, "flush", lambda path: None)
    return folder


class BrightnessEncoder(Encoder):
    """Mean brightness of each of the eight frames, 0 to 1, as a map of eight channels on 2 x 2 cells."""

    modality: ClassVar[str] = "video"

    def __init__(self, weights: str, allow_download: bool = False, *, scale: float = 1.0) -> None:
        super().__init__()
        self.feature_shape: tuple[int, ...] = (8, 2, 2)
        self.fingerprint: dict[str, Any] = {"encoder": "brightness", "scale": scale}
        self.provenance: dict[str, Any] = {"weights": weights}
        self.scale = scale

    def place(self, device: torch.device, precision: str) -> None:
        """Nothing to move."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return (B, 8, 2, 2)."""
        assert clips.dtype == torch.uint8
        brightness_BK = clips.float().mean(dim=(2, 3, 4)) / 255 * self.scale
        return brightness_BK[:, :, None, None].expand(-1, -1, 2, 2)


class QuarterEncoder(BrightnessEncoder):
    """The same of each quarter of the frames, so that a map shows which way round they are."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return (B, 8, 2, 2)."""
        return adaptive_avg_pool2d(clips.float().mean(dim=-1), 2) / 255 * self.scale


class LoudnessEncoder(Encoder):
    """Loudness of the window in ten equal parts."""

    modality: ClassVar[str] = "audio"

    def __init__(self, weights: str, allow_download: bool = False) -> None:
        super().__init__()
        self.feature_shape: tuple[int, ...] = (10,)
        self.fingerprint: dict[str, Any] = {"encoder": "loudness"}
        self.provenance: dict[str, Any] = {"weights": weights}

    def place(self, device: torch.device, precision: str) -> None:
        """Nothing to move."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return (B, 10)."""
        return torch.stack([part.square().mean(dim=1).sqrt() for part in clips.tensor_split(10, dim=1)], dim=1)
