"""Crops of faces: aligned to one template, many at a time; or read from aligned images that a corpus brings."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from avfuse.schema import RecordingError, row_tolerance

log = logging.getLogger(__name__)

CROP_PX = 112
MAX_CROP_BYTES = 64 * 2**20
# Where eyes, nose and mouth corners lie in an aligned crop: the five-point template of ArcFace (Deng et al., 2019).
TEMPLATE_PX = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
ALIGNED_PX = 2**22  # pixels, of pictures or of crops before they are averaged, that are sampled at a time
CROPPED: dict[str, Any] = {
    "detector": "cropped",
    "pillow": version("pillow"),
    "resampling": "bilinear",
    "crop_px": CROP_PX,
}
"""What stands in a fingerprint for the detector where faces come from aligned images."""

Pixels = npt.NDArray[np.uint8]


def similarity(from_px: npt.NDArray[np.float64], to_px: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the similarity transform (2, 3) that brings points (P, 2) nearest to others, in least squares.

    Turning, scaling and shifting, no mirroring (Umeyama 1991). In complex numbers it is ``to = a * from + b``.
    """
    source, goal = from_px[:, 0] + 1j * from_px[:, 1], to_px[:, 0] + 1j * to_px[:, 1]
    centred = source - source.mean()
    a = (centred.conj() @ (goal - goal.mean())) / max(float((centred.conj() @ centred).real), 1e-12)
    b = goal.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(images: Sequence[Tensor], landmarks_px: Sequence[npt.NDArray[np.float64] | None]) -> Tensor:
    """Return the crops (N, 112, 112, 3) of pictures (Y, X, 3), uint8, on the pictures' device.

    In a crop the five landmarks (5, 2) lie on the template; outside of the picture it is black, and so is the crop of a
    picture without landmarks. It is sampled bilinearly; a face larger than the crop is sampled that many times finer
    first and averaged, so that nothing aliases.
    """
    crop_NYXC = torch.zeros((len(images), CROP_PX, CROP_PX, 3), dtype=torch.uint8)
    if images:
        crop_NYXC = crop_NYXC.to(images[0].device)
    known = [(i, landmark_px) for i, landmark_px in enumerate(landmarks_px) if landmark_px is not None]
    places = [_Place.of(i, images[i].shape, landmark_px) for i, landmark_px in known]
    for group in _groups([place for place in places if place.is_inside]):
        index = torch.tensor([place.index for place in group]).to(crop_NYXC.device)
        crop_NYXC[index] = _sample([images[place.index] for place in group], group)
    return crop_NYXC


@dataclass(frozen=True)
class _Place:
    """Where a crop lies in its picture, how finely it is sampled, and the part of the picture under it."""

    index: int
    crop_to_image: npt.NDArray[np.float64]
    fineness: int
    part_px: tuple[int, int, int, int]  # left, top, right, bottom

    @classmethod
    def of(cls, index: int, shape: Sequence[int], landmark_px: npt.NDArray[np.float64]) -> _Place:
        """Return where the crop of a picture (Y, X, 3) lies that brings its landmarks onto the template."""
        crop_to_image = similarity(np.array(TEMPLATE_PX), np.asarray(landmark_px, np.float64))
        fineness = max(1, int(np.ceil(np.hypot(crop_to_image[0, 0], crop_to_image[1, 0]) - 0.25)))
        rim_px = 0.5 / fineness - 0.5, CROP_PX - 0.5 - 0.5 / fineness  # the first and the last sample
        corner_px = crop_to_image @ np.array([(x_px, y_px, 1.0) for x_px in rim_px for y_px in rim_px]).T
        # Bilinear sampling touches a pixel on either side.
        left, top = np.floor(corner_px.min(axis=1)).clip(0).astype(int).tolist()
        right, bottom = (np.ceil(corner_px.max(axis=1)) + 1).clip(max=[shape[1], shape[0]]).astype(int).tolist()
        return cls(index, crop_to_image, fineness, (left, top, right, bottom))

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the part, at least 0."""
        left, top, right, bottom = self.part_px
        return max(0, bottom - top), max(0, right - left)

    @property
    def is_inside(self) -> bool:
        """Whether the crop shows any of its picture."""
        return min(self.size_px) > 0


def _groups(places: list[_Place]) -> Iterator[list[_Place]]:
    """Yield places of one fineness that are sampled together."""
    for _, alike in groupby(sorted(places, key=lambda place: place.fineness), key=lambda place: place.fineness):
        group: list[_Place] = []
        height_px = width_px = 0
        for place in alike:
            height_px, width_px = max(height_px, place.size_px[0]), max(width_px, place.size_px[1])
            most_px = max(height_px * width_px, (CROP_PX * place.fineness) ** 2)
            if group and (len(group) + 1) * most_px > ALIGNED_PX:
                yield group
                group, (height_px, width_px) = [], place.size_px
            group.append(place)
        if group:
            yield group


def _sample(images: list[Tensor], places: list[_Place]) -> Tensor:
    """Return the crops (N, 112, 112, 3), uint8, of pictures at places of one fineness."""
    device, fineness = images[0].device, places[0].fineness
    height_px, width_px = (max(place.size_px[axis] for place in places) for axis in (0, 1))
    # Only what lies under the crops is turned into floats; behind a part it is black, as its picture ends there.
    part_NYXC = torch.zeros((len(images), height_px, width_px, 3), device=device)
    for part_YXC, image_YXC, place in zip(part_NYXC, images, places, strict=True):
        left, top, right, bottom = place.part_px
        part_YXC[: bottom - top, : right - left] = image_YXC[top:bottom, left:right]
    matrix_N23 = np.stack([place.crop_to_image for place in places])
    matrix_N23[:, :, 2] -= [place.part_px[:2] for place in places]
    matrix_N231 = torch.from_numpy(matrix_N23).float().to(device)[..., None]
    at_px = (torch.arange(CROP_PX * fineness, dtype=torch.float32, device=device) + 0.5) / fineness - 0.5
    x_px, y_px = at_px, at_px[:, None]
    grid_N2YX = matrix_N231[:, :, :1] * x_px + matrix_N231[:, :, 1:2] * y_px + matrix_N231[:, :, 2:]
    size_px = torch.tensor([width_px, height_px], device=device)
    grid_NYX2 = (grid_N2YX.permute(0, 2, 3, 1) + 0.5) / size_px * 2 - 1
    crop_NCYX = functional.grid_sample(
        part_NYXC.permute(0, 3, 1, 2), grid_NYX2, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    if fineness > 1:
        crop_NCYX = functional.avg_pool2d(crop_NCYX, fineness)
    return crop_NCYX.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)


class CroppedFaces:
    """The face from aligned images, one per frame, which a corpus brings; it stands in for a `FaceTrack`.

    An image of 112 x 112 pixels is taken as it is, another is resized to that, antialiased. A frame without an image,
    or whose image cannot be decoded, is without a face. One image is held at a time.

    Parameters
    ----------
    images : mapping of int to Path
        The image of each frame that has one, by the frame's index from 0.
    num_frames : int

    Raises
    ------
    RecordingError
        With reason ``missing_crops``, when more images are numbered beyond the frames than rows of an annotation may
        be left over: they are of another video.

    Attributes
    ----------
    found_F : ndarray, (F,), bool
        Whether the face is known in each frame that `crops` has yielded.
    probability_F : ndarray, (F,), float32
        1 where the face is known, else 0.
    """

    def __init__(self, images: Mapping[int, Path], num_frames: int) -> None:
        self._images = images
        self._surplus = [path for index, path in images.items() if index >= num_frames]
        if len(self._surplus) > row_tolerance(num_frames):
            found = f"{len(images)} images for {num_frames} frames: are they of this video?"
            raise RecordingError("missing_crops", f"{self._surplus[0].parent}: {found}")
        self.num_frames = num_frames
        self.found_F = np.zeros(num_frames, np.bool_)
        self.probability_F = np.zeros(num_frames, np.float32)

    def detected_F(self) -> npt.NDArray[np.bool_]:
        """Return which frames are looked at: all of them."""
        return np.ones(self.num_frames, np.bool_)

    device = torch.device("cpu")  # where crops are made

    def crops(self, frames: Iterable[object] = ()) -> Iterator[tuple[int, Tensor]]:
        """Yield the crop (112, 112, 3) of every frame, in order; black without a face.

        `frames` are never asked for, so that a video that would be decoded for them is not.

        Raises
        ------
        RecordingError
            With reason ``missing_crops``, when the file of an image cannot be read, or no image can be decoded.
        """
        unreadable = []
        for index in range(self.num_frames):
            crop = _read_crop(self._images[index]) if index in self._images else None
            if crop is None and index in self._images:
                unreadable.append(self._images[index])
            self.found_F[index] = crop is not None
            self.probability_F[index] = float(crop is not None)
            yield index, torch.from_numpy(np.zeros((CROP_PX, CROP_PX, 3), np.uint8) if crop is None else crop)
        if not self.found_F.any():
            such = f", such as {unreadable[0]}" if unreadable else ""
            raise RecordingError("missing_crops", f"none of {len(self._images)} aligned images shows a frame{such}")
        self._warn(unreadable)

    def _warn(self, unreadable: list[Path]) -> None:
        if unreadable:
            log.warning(
                "%d aligned images cannot be decoded, such as %s; their frames count as without a face",
                len(unreadable),
                unreadable[0],
            )
        if self._surplus:
            log.warning(
                "%d aligned images are numbered beyond the %d frames of the video, such as %s; they are ignored",
                len(self._surplus),
                self.num_frames,
                self._surplus[0],
            )


def _read_crop(path: Path) -> Pixels | None:
    """Return the pixels (112, 112, 3) of an aligned image, None if they cannot be decoded."""
    try:
        if path.stat().st_size > MAX_CROP_BYTES:
            return None
        content = path.read_bytes()
    except OSError as error:  # the disk's fault, not the image's: it would be the next images' too
        raise RecordingError("missing_crops", f"{path} cannot be read ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            crop = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow says of damaged images
        return None
    if crop.size != (CROP_PX, CROP_PX):
        crop = crop.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)  # Pillow's filters widen as they shrink
    return np.array(crop)
