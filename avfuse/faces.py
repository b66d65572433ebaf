"""The face in every frame: detected, followed, aligned and cropped.

The detector (MTCNN) sees every k-th frame, in batches. One face is followed through the recording: the one whose box
overlaps the last box most, or the largest when none does. Between two frames of the same track, box and landmarks are
interpolated; where either end shows no face, the frames between count as without one. A frame without a face is marked
as such and its crop is black; the whole frame never stands in for a face.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from torch.nn import functional

log = logging.getLogger(__name__)

CROP_PX = 112
# Where eyes, nose and mouth corners lie in an aligned crop: the five-point template of ArcFace (Deng et al., 2019).
TEMPLATE_PX = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
DETECT_BATCH = 8
MAX_WAITING = 32  # images held until the next detection, whatever the size of the batch
MIN_OVERLAP = 0.2  # intersection over union below which a box does not continue the track

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Face:
    """One face in one frame: its box (left, top, right, bottom), landmarks (5, 2) in pixels, and probability."""

    box_px: npt.NDArray[np.float64]
    landmark_px: npt.NDArray[np.float64]
    probability: float

    def towards(self, other: Face, share: float) -> Face:
        """Return the face that lies `share` of the way to another of its track; it is as probable as the lesser."""
        return Face(
            self.box_px + share * (other.box_px - self.box_px),
            self.landmark_px + share * (other.landmark_px - self.landmark_px),
            min(self.probability, other.probability),
        )


class FaceDetector:
    """MTCNN of facenet-pytorch, whose weights ship with the package.

    Parameters
    ----------
    min_face_px : int
        Smallest face looked for, in pixels.
    device : torch.device
    """

    def __init__(self, min_face_px: int, device: torch.device) -> None:
        self._mtcnn = MTCNN(min_face_size=min_face_px, keep_all=True, device=device)
        self._min_face_px = min_face_px
        self.fingerprint: dict[str, Any] = {
            "detector": "mtcnn",
            "facenet_pytorch": version("facenet-pytorch"),
            "min_face_px": min_face_px,
        }

    def detect(self, images: list[Pixels]) -> list[list[Face]]:
        """Return the faces in each image (Y, X, 3), RGB, largest first."""
        if any(image.shape != images[0].shape for image in images):
            return [self.detect([image])[0] for image in images]
        if min(images[0].shape[:2]) < self._min_face_px:
            return [[] for _ in images]
        try:
            boxes, probabilities, landmarks = self._mtcnn.detect(np.stack(images), landmarks=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # MTCNN fails on a whole batch when one candidate box degenerates; the other images need not pay for it.
            if len(images) == 1:
                log.warning("the detector failed on one frame, which counts as without a face: %s", error)
                return [[] for _ in images]
            return [self.detect([image])[0] for image in images]
        return [
            [] if boxes[i] is None else list(map(_face, boxes[i], landmarks[i], probabilities[i]))
            for i in range(len(images))
        ]


def _face(box_px: Any, landmark_px: Any, probability: Any) -> Face:
    return Face(np.asarray(box_px, np.float64), np.asarray(landmark_px, np.float64), float(probability))


@dataclass
class FaceTrack:
    """Follow one face through a recording and crop it.

    Attributes
    ----------
    found_F : ndarray, (F,), bool
        Whether the face is known in each frame.
    probability_F : ndarray, (F,), float32
        The detector's probability; of an interpolated face the lesser of its two ends; 0 without a face.
    """

    detector: FaceDetector
    num_frames: int
    detect_every: int
    found_F: npt.NDArray[np.bool_] = field(init=False)
    probability_F: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.found_F = np.zeros(self.num_frames, np.bool_)
        self.probability_F = np.zeros(self.num_frames, np.float32)
        self._last: Face | None = None
        self._last_index = -1
        self._followed: Face | None = None  # the newest face of the track, kept through frames without one

    def detected_F(self) -> npt.NDArray[np.bool_]:
        """Return which frames the detector sees: the first, the last, and the last of every `detect_every`."""
        index_F = np.arange(self.num_frames)
        at_ends = (index_F == 0) | (index_F == self.num_frames - 1)
        return np.asarray(at_ends | ((index_F + 1) % self.detect_every == 0))

    def crops(self, frames: Iterable[tuple[int, Pixels]]) -> Iterator[tuple[int, Pixels]]:
        """Yield the aligned crop (112, 112, 3) of every frame that comes in, in order; black without a face."""
        detected_F = self.detected_F()
        waiting: list[tuple[int, Pixels]] = []
        for index, image in frames:
            waiting.append((index, image))
            num_detected = sum(detected_F[i] for i, _ in waiting)
            if num_detected == DETECT_BATCH or (len(waiting) >= MAX_WAITING and detected_F[index]):
                yield from self._crop(waiting, detected_F)
                waiting = []
        yield from self._crop(waiting, detected_F)

    def _crop(
        self, waiting: list[tuple[int, Pixels]], detected_F: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[int, Pixels]]:
        looked_at = [(index, image) for index, image in waiting if detected_F[index]]
        faces: dict[int, Face | None] = {}
        found = self.detector.detect([image for _, image in looked_at]) if looked_at else []
        for (index, _), candidates in zip(looked_at, found, strict=True):
            face = self._follow(candidates)
            faces.update(self._between(index, face))
            self._last, self._last_index = face, index
        for index, image in waiting:
            face = faces.get(index)
            yield index, np.zeros((CROP_PX, CROP_PX, 3), np.uint8) if face is None else align(image, face.landmark_px)

    def _follow(self, candidates: list[Face]) -> Face | None:
        """Return the candidate that continues the track, or the largest when the track has none to continue."""
        if not candidates:
            return None
        followed, chosen = self._followed, candidates[0]
        if followed is not None:
            nearest = max(candidates, key=lambda face: overlap(face.box_px, followed.box_px))
            if overlap(nearest.box_px, followed.box_px) >= MIN_OVERLAP:
                chosen = nearest
        self._followed = chosen
        return chosen

    def _between(self, index: int, face: Face | None) -> dict[int, Face | None]:
        """Return the faces of the frames after the last detected one, up to the one at `index`, and mark them."""
        if face is None:
            return {}
        faces = {index: face}
        last = self._last
        if last is not None and overlap(last.box_px, face.box_px) >= MIN_OVERLAP:
            span = index - self._last_index
            faces.update({self._last_index + i: last.towards(face, i / span) for i in range(1, span)})
        for i, known in faces.items():
            self.found_F[i], self.probability_F[i] = True, known.probability
        return dict(faces)


def overlap(a_px: npt.NDArray[np.float64], b_px: npt.NDArray[np.float64]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    shared = np.clip(np.minimum(a_px[2:], b_px[2:]) - np.maximum(a_px[:2], b_px[:2]), 0, None).prod()
    areas = (a_px[2:] - a_px[:2]).prod() + (b_px[2:] - b_px[:2]).prod()
    return float(shared / (areas - shared)) if areas > shared else 0.0


def similarity(from_px: npt.NDArray[np.float64], to_px: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the similarity transform (2, 3) that brings points (P, 2) nearest to others, in least squares.

    Turning, scaling and shifting, no mirroring (Umeyama 1991). In complex numbers it is ``to = a * from + b``.
    """
    source, goal = from_px[:, 0] + 1j * from_px[:, 1], to_px[:, 0] + 1j * to_px[:, 1]
    centred = source - source.mean()
    a = (centred.conj() @ (goal - goal.mean())) / max(float((centred.conj() @ centred).real), 1e-12)
    b = goal.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image_YXC: Pixels, landmark_px: npt.NDArray[np.float64]) -> Pixels:
    """Return the crop (112, 112, 3) in which the five landmarks (5, 2) lie on the template; black outside the image.

    The crop is sampled bilinearly; a face larger than the crop is sampled that many times finer first and averaged, so
    that nothing aliases.
    """
    crop_to_image = similarity(np.array(TEMPLATE_PX), np.asarray(landmark_px, np.float64))
    fineness = max(1, int(np.ceil(np.hypot(crop_to_image[0, 0], crop_to_image[1, 0]) - 0.25)))
    height_px, width_px = image_YXC.shape[:2]
    at_px = (torch.arange(CROP_PX * fineness, dtype=torch.float32) + 0.5) / fineness - 0.5
    y_px, x_px = torch.meshgrid(at_px, at_px, indexing="ij")
    (xx, xy, x0), (yx, yy, y0) = crop_to_image.tolist()
    image_x_px, image_y_px = xx * x_px + xy * y_px + x0, yx * x_px + yy * y_px + y0
    left, right = _span(image_x_px, width_px)
    top, bottom = _span(image_y_px, height_px)
    if right <= left or bottom <= top:
        return np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
    # Only the part of the image under the crop is turned into floats.
    part_1CYX = torch.from_numpy(image_YXC[top:bottom, left:right]).permute(2, 0, 1)[None].float()
    grid_1YX2 = torch.stack(
        [(image_x_px - left + 0.5) / (right - left) * 2 - 1, (image_y_px - top + 0.5) / (bottom - top) * 2 - 1], dim=-1
    )[None]
    crop_1CYX = functional.grid_sample(part_1CYX, grid_1YX2, mode="bilinear", padding_mode="zeros", align_corners=False)
    if fineness > 1:
        crop_1CYX = functional.avg_pool2d(crop_1CYX, fineness)
    crop: Pixels = crop_1CYX[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return crop


def _span(at_px: torch.Tensor, limit_px: int) -> tuple[int, int]:
    """Return the range of pixels that bilinear sampling at the given places touches, within the image."""
    return max(0, int(at_px.min().floor())), min(limit_px, int(at_px.max().ceil()) + 1)
