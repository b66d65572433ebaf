"""Views of a clip: the clip as it is, and others with drawn brightness and contrast, mirrored if that is wanted.

A cache freezes what the encoders saw, and with it the colour jitter that the code published with arXiv 2304.07958
draws anew in every epoch. So several views of each clip can be stored. The jitter is the published one: brightness
times U(0.8, 1.2), then contrast times U(0.8, 1.2), the same for all frames of a clip. Each frame is treated as an
image of its own, in whole grey levels, as Pillow (and torchvision on its images) does: brightness blends it with
black, contrast with the mean of its grey version. Two things differ:

- What is drawn depends on the recording's name, the clip and the view alone, so a view is the same whenever it is made.
- The published code also passes each frame through hue, saturation and value, with factors that change nothing. Only
  their rounding remains, 0.6 grey levels in the mean on noise, the same in every epoch; it is left out.

It mirrors nothing either, so that mirroring is an option. Frames without a face are black, and stay so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

BRIGHTNESS, CONTRAST = 0.2, 0.2  # by how much a factor may lie below or above 1
_BYTES_PER_DRAW = 8

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Jitter:
    """What is done to every frame of a clip: factors of brightness and of contrast, then mirrored or not."""

    brightness: float
    contrast: float
    is_mirrored: bool

    @classmethod
    def draw(cls, recording: str, clip: int, view: int, flip: bool) -> Jitter:
        """Return what a clip, counted from 0, of a recording looks like in a view from 1 on.

        The draws are parts of a digest of the three. Views are mirrored with probability 1/2, and with `flip` alone.
        """
        digest = hashlib.sha256(f"{view}/{clip}/{recording}".encode()).digest()
        parts = [digest[start : start + _BYTES_PER_DRAW] for start in range(0, 3 * _BYTES_PER_DRAW, _BYTES_PER_DRAW)]
        brightness, contrast, mirror = (int.from_bytes(part, "big") / 2 ** (8 * _BYTES_PER_DRAW) for part in parts)
        return cls(1 + BRIGHTNESS * (2 * brightness - 1), 1 + CONTRAST * (2 * contrast - 1), flip and mirror < 0.5)

    def __call__(self, clip_KYXC: Pixels) -> Pixels:
        """Return the clip's frames, (K, Y, X, 3), RGB, as they look in this view."""
        jittered_KYXC = np.stack([self._enhance(frame_YXC) for frame_YXC in clip_KYXC])
        return jittered_KYXC[:, :, ::-1] if self.is_mirrored else jittered_KYXC

    def _enhance(self, frame_YXC: Pixels) -> Pixels:
        image = ImageEnhance.Brightness(Image.fromarray(frame_YXC)).enhance(self.brightness)
        return np.asarray(ImageEnhance.Contrast(image).enhance(self.contrast))


def show(clips_BKYXC: Pixels, recording: str, first_clip: int, view: int, flip: bool) -> Pixels:
    """Return consecutive clips, (B, K, Y, X, 3), of a recording in a view; view 0 shows them as they are."""
    if view == 0:
        return clips_BKYXC
    return np.stack(
        [Jitter.draw(recording, first_clip + i, view, flip)(clip_KYXC) for i, clip_KYXC in enumerate(clips_BKYXC)]
    )


def describe(count: int, flip: bool) -> dict[str, Any]:
    """Return what a `CacheSpec` says of its views: everything that a stored view depends on."""
    if count == 1:
        return {"count": 1}
    return {
        "count": count,
        "brightness": BRIGHTNESS,
        "contrast": CONTRAST,
        "flip": flip,
        "pillow": version("pillow"),
    }
