"""The face in every frame: detected, followed, aligned and cropped; or read from aligned images that a corpus brings.

The detector (MTCNN) sees every k-th frame, in batches. One face is followed through the recording: the one whose box
overlaps the last box most, or the largest when none does; of two people the left or the right one, where a side is
given. Between two frames of the same track, box and landmarks are interpolated; where either end shows no face, the
frames between count as without one. A frame without a face is marked as such and its crop is black; the whole frame
never stands in for a face.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from torch import Tensor
from torch.nn import functional

from avfuse.schema import SIDES, RecordingError, row_tolerance

log = logging.getLogger(__name__)

CROP_PX = 112
# Where eyes, nose and mouth corners lie in an aligned crop: the five-point template of ArcFace (Deng et al., 2019).
TEMPLATE_PX = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
DETECT_BATCH = 8
MAX_WAITING = 32  # images held until the next detection, whatever the size of the batch
MIN_OVERLAP = 0.2  # intersection over union below which a box does not continue the track
CROPPED: dict[str, Any] = {
    "detector": "cropped",
    "pillow": version("pillow"),
    "resampling": "bilinear",
    "crop_px": CROP_PX,
}
"""What stands in a fingerprint for the detector where faces come from aligned images."""

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

    @property
    def centre_x_px(self) -> float:
        """Where the middle of the box lies, from the left edge of the picture."""
        return float(self.box_px[0] + self.box_px[2]) / 2


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
        self.device = device
        self.fingerprint: dict[str, Any] = {
            "detector": "mtcnn",
            "facenet_pytorch": version("facenet-pytorch"),
            "min_face_px": min_face_px,
            "crop_px": CROP_PX,
            "template_px": [list(point) for point in TEMPLATE_PX],
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

    With a `side`, the recording shows two people, of whom the one on that side is meant, as seen by the viewer. Of two
    faces, the two largest of more, it is always the one further to that side, whatever was followed before: so people
    are not taken for each other after a cut. One face alone belongs to the person whose last box it overlaps most, if
    it does by `MIN_OVERLAP`, or else to the one in whose half of the picture its centre lies; so it is never both's.

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
    side: str | None = None
    found_F: npt.NDArray[np.bool_] = field(init=False)
    probability_F: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.found_F = np.zeros(self.num_frames, np.bool_)
        self.probability_F = np.zeros(self.num_frames, np.float32)
        self._last: Face | None = None
        self._last_index = -1
        self._followed: Face | None = None  # the newest face of the track, kept through frames without one
        self._people: dict[str, Face] = {}  # where there are two, the newest face of each, by side

    def detected_F(self) -> npt.NDArray[np.bool_]:
        """Return which frames the detector sees: the first, the last, and the last of every `detect_every`."""
        index_F = np.arange(self.num_frames)
        at_ends = (index_F == 0) | (index_F == self.num_frames - 1)
        return np.asarray(at_ends | ((index_F + 1) % self.detect_every == 0))

    @property
    def device(self) -> torch.device:
        """Where crops are made."""
        return self.detector.device

    def crops(self, frames: Iterable[tuple[int, Pixels]]) -> Iterator[tuple[int, Tensor]]:
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
    ) -> Iterator[tuple[int, Tensor]]:
        looked_at = [(index, image) for index, image in waiting if detected_F[index]]
        faces: dict[int, Face | None] = {}
        found = self.detector.detect([image for _, image in looked_at]) if looked_at else []
        for (index, image), candidates in zip(looked_at, found, strict=True):
            face = self._follow(candidates) if self.side is None else self._take_side(candidates, image.shape[1])
            faces.update(self._between(index, face))
            self._last, self._last_index = face, index
        for index, image in waiting:
            face = faces.get(index)
            crop = np.zeros((CROP_PX, CROP_PX, 3), np.uint8) if face is None else align(image, face.landmark_px)
            yield index, torch.from_numpy(crop).to(self.device)

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

    def _take_side(self, candidates: list[Face], width_px: int) -> Face | None:
        """Return the candidate that shows the person on the track's side of the picture."""
        pair = sorted(candidates[:2], key=lambda face: face.centre_x_px)
        shown = {self._side_of(pair[0], width_px): pair[0]} if len(pair) == 1 else dict(zip(SIDES, pair, strict=False))
        self._people.update(shown)
        return shown.get(str(self.side))

    def _side_of(self, face: Face, width_px: int) -> str:
        """Return whose face it is that is seen alone."""
        overlaps = {side: overlap(face.box_px, person.box_px) for side, person in self._people.items()}
        nearest = max(overlaps, key=lambda side: overlaps[side], default="")
        if overlaps.get(nearest, 0.0) >= MIN_OVERLAP:
            return nearest
        return "left" if face.centre_x_px < width_px / 2 else "right"

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

    def crops(self, frames: Iterable[tuple[int, Pixels]] = ()) -> Iterator[tuple[int, Tensor]]:
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


Faces = FaceTrack | CroppedFaces


def _read_crop(path: Path) -> Pixels | None:
    """Return the pixels (112, 112, 3) of an aligned image, None if they cannot be decoded."""
    try:
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
