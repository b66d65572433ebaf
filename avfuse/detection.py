"""Faces in pictures: the cascade of MTCNN, over whole pictures in batches or near where faces were.

The networks and their weights are facenet-pytorch's. The first (P-Net) looks at squares of 12 pixels in a pyramid of
shrunken pictures; the second (R-Net) and the third (O-Net) refine what it finds (Zhang et al., 2016). The scales of the
pyramid are those of MTCNN's defaults, whose smallest face has 20 pixels, from the one on that keeps faces of the size
asked for, so that a face is seen as it is there, and the pyramid near a face is a part of the whole picture's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch import Tensor, nn
from torchvision.ops import batched_nms

from avfuse.areas import STRIDE, AreaSums
from avfuse.batching import is_out_of_memory

CELL_PX = 12  # the side of the square that P-Net sees in a shrunken picture
REFINED_PX = (24, 48)  # to which a candidate is resampled for R-Net and O-Net
DEFAULT_FACE_PX, FACTOR = 20, 0.709  # of MTCNN's pyramid: the smallest face, and how much smaller the next picture is
THRESHOLDS = (0.6, 0.7, 0.7)  # the least probability that each network lets through
LEVEL_OVERLAP, OVERLAP = 0.5, 0.7  # of two candidates that overlap more, the less probable goes
NEAR_SIDES = 2.0  # the side of the square that is searched near a face, in sides of its box
NEAR_SIZES = (0.4, 2.0)  # the sizes of P-Net's squares there; the smaller ones decide of two good boxes
CANDIDATES = 256  # that go through a network at a time
BATCH_PX = {"cpu": 2**21, "cuda": 2**25}  # pixels of all the pictures that are searched at a time

Image = npt.NDArray[np.uint8] | Tensor
"""A picture (Y, X, 3) of uint8, red, green, blue."""


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

    @property
    def area_px(self) -> float:
        """Square pixels of the box."""
        return float((self.box_px[2:] - self.box_px[:2]).prod())


def overlap(a_px: npt.NDArray[np.float64], b_px: npt.NDArray[np.float64]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    shared = np.clip(np.minimum(a_px[2:], b_px[2:]) - np.maximum(a_px[:2], b_px[:2]), 0, None).prod()
    areas = (a_px[2:] - a_px[:2]).prod() + (b_px[2:] - b_px[:2]).prod()
    return float(shared / (areas - shared)) if areas > shared else 0.0


def place(image: Image, device: torch.device) -> Tensor:
    """Return a picture (Y, X, 3) as a tensor on the device; from an array, by an asynchronous copy to a GPU."""
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, np.uint8, ["C", "W"]))
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class FaceDetector:
    """MTCNN on the networks of facenet-pytorch, whose weights ship with the package.

    Parameters
    ----------
    min_face_px : int
        Smallest face looked for, in pixels; some smaller ones are found, too, as the pyramid has steps.
    device : torch.device
    """

    def __init__(self, min_face_px: int, device: torch.device) -> None:
        self._pnet, *self._refining = (
            network().eval().to(device, memory_format=torch.channels_last) for network in (PNet, RNet, ONet)
        )
        self._first_scale = first_scale(min_face_px)
        self._batch_px = BATCH_PX.get(device.type, BATCH_PX["cpu"])
        self.device = device
        self.fingerprint: dict[str, Any] = {
            "detector": "mtcnn",
            "facenet_pytorch": version("facenet-pytorch"),
            "min_face_px": min_face_px,
            "pyramid": [self._first_scale, FACTOR],
            "thresholds": list(THRESHOLDS),
        }

    def detect(self, images: Sequence[Image]) -> list[list[Face]]:
        """Return the faces in each picture (Y, X, 3), RGB, largest first.

        Pictures of one size that follow each other are searched together. Where the memory of the device does not
        suffice, half as many are, from then on.
        """
        found: list[list[Face]] = []
        for (height_px, width_px, _), group in groupby(images, key=lambda image: image.shape):
            alike = list(group)
            while alike:
                num = max(1, self._batch_px // max(1, height_px * width_px))
                try:
                    found += self._search(alike[:num])
                except (MemoryError, RuntimeError) as error:
                    num = min(num, len(alike))
                    if num == 1 or not is_out_of_memory(error):
                        raise
                    self._batch_px = num // 2 * height_px * width_px
                else:
                    del alike[:num]
        return found

    def _search(self, images: list[Image]) -> list[list[Face]]:
        """Search whole pictures of one size at once."""
        height_px, width_px, _ = images[0].shape
        scales = pyramid(self._first_scale, min(height_px, width_px))
        if not scales:
            return [[] for _ in images]
        sums = AreaSums(torch.stack([place(image, self.device) for image in images]))
        rows = self._cascade(sums, scales)
        return [_faces(rows[rows[:, 0] == i]) for i in range(len(images))]

    def detect_near(self, image: Image, faces: Sequence[Face]) -> list[Face]:
        """Return the faces of a picture (Y, X, 3) that lie near the given ones and are about as large, largest first.

        Up to the rim of what is looked at, boxes are those that `detect` returns.
        """
        height_px, width_px, _ = image.shape
        all_scales = pyramid(self._first_scale, min(height_px, width_px))
        rows = []
        for face in faces:
            side_px = float((face.box_px[2:] - face.box_px[:2]).max())
            middle_px = (face.box_px[:2] + face.box_px[2:]) / 2
            corners_px = np.r_[middle_px - NEAR_SIDES / 2 * side_px, middle_px + NEAR_SIDES / 2 * side_px]
            left, top, right, bottom = corners_px.round().clip(0, [width_px, height_px] * 2).astype(int).tolist()
            scales = [s for s in all_scales if NEAR_SIZES[0] * side_px <= CELL_PX / s <= NEAR_SIZES[1] * side_px]
            if scales and min(right - left, bottom - top) >= CELL_PX:
                part_1YXC = place(image[top:bottom, left:right], self.device)[None]
                rows.append(self._cascade(AreaSums(part_1YXC, left, top, (height_px, width_px)), scales))
        return _faces(np.concatenate(rows)) if rows else []

    @torch.inference_mode()
    def _cascade(self, sums: AreaSums, scales: list[float]) -> npt.NDArray[np.float64]:
        """Return what the three networks find, (K, 16): picture, probability, box and landmarks of each."""
        image_K, box_K4 = _propose(self._pnet, sums, scales)
        landmark_KP2 = box_K4.new_zeros(len(box_K4), 5, 2)
        probability_K = box_K4.new_zeros(len(box_K4))
        for network, size_px, threshold in zip(self._refining, REFINED_PX, THRESHOLDS[1:], strict=True):
            is_inside_K = sums.holds(box_K4)
            image_K, box_K4 = image_K[is_inside_K], box_K4[is_inside_K]
            if len(box_K4) == 0:
                return np.zeros((0, 16))
            shift_K4, *landmarks, probability_K2 = _refine(network, sums, image_K, box_K4, size_px)
            passed_K = (probability_K2[:, 1] > threshold).nonzero()[:, 0]
            image_K, box_K4, shift_K4 = image_K[passed_K], box_K4[passed_K], shift_K4[passed_K]
            probability_K = probability_K2[passed_K, 1]
            side_K2 = box_K4[:, 2:] - box_K4[:, :2] + 1  # boxes include their last pixels, as in MTCNN's training
            if landmarks:
                share_K2P = landmarks[0][passed_K].reshape(-1, 2, 5)
                landmark_KP2 = share_K2P.mT * side_K2[:, None] + box_K4[:, None, :2] - 1
                box_K4 = box_K4 + shift_K4 * side_K2.repeat(1, 2)
            else:
                kept_K = batched_nms(box_K4, probability_K, image_K, OVERLAP)
                image_K = image_K[kept_K]
                box_K4 = _squared((box_K4 + shift_K4 * side_K2.repeat(1, 2))[kept_K])
        row_K16 = torch.cat([image_K[:, None], probability_K[:, None], box_K4, landmark_KP2.flatten(1)], dim=1)
        rows: npt.NDArray[np.float64] = row_K16.cpu().numpy().astype(np.float64)
        return rows


def first_scale(min_face_px: int) -> float:
    """Return the scale of MTCNN's default pyramid, carried on upwards, that is the coarsest to keep such faces."""
    scale = CELL_PX / DEFAULT_FACE_PX
    while CELL_PX / scale > min_face_px:
        scale /= FACTOR
    while CELL_PX / (scale * FACTOR) <= min_face_px:
        scale *= FACTOR
    return scale


def pyramid(first: float, side_px: int) -> list[float]:
    """Return the scales from the first on, at which the shorter side of a picture has at least `CELL_PX` pixels."""
    scales = []
    while side_px * first >= CELL_PX:
        scales.append(first)
        first *= FACTOR
    return scales


def _propose(pnet: nn.Module, sums: AreaSums, scales: list[float]) -> tuple[Tensor, Tensor]:
    """Return the picture of each square that P-Net lets through, (K,), and the squares, (K, 4)."""
    levels = []
    for scale in scales:
        level_NCYX, left, top = sums.shrink(scale)
        if min(level_NCYX.shape[2:]) < CELL_PX:
            continue
        shift_N4YX, probability_N2YX = pnet(level_NCYX)
        probability_NYX = probability_N2YX[:, 1]
        image_K, y_K, x_K = (probability_NYX >= THRESHOLDS[0]).nonzero(as_tuple=True)
        probability_K, shift_K4 = probability_NYX[image_K, y_K, x_K], shift_N4YX[image_K, :, y_K, x_K]
        at_K2 = torch.stack([STRIDE * x_K + left, STRIDE * y_K + top], dim=1).to(probability_K)
        box_K4 = torch.cat([at_K2 + 1, at_K2 + CELL_PX], dim=1).div(scale).floor()
        kept_K = batched_nms(box_K4, probability_K, image_K, LEVEL_OVERLAP)
        levels.append([found[kept_K] for found in (image_K, probability_K, box_K4, shift_K4)])
    if not levels:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    image_K, probability_K, box_K4, shift_K4 = map(torch.cat, zip(*levels, strict=True))
    kept_K = batched_nms(box_K4, probability_K, image_K, OVERLAP)
    image_K, box_K4, shift_K4 = image_K[kept_K], box_K4[kept_K], shift_K4[kept_K]
    return image_K, _squared(box_K4 + shift_K4 * (box_K4[:, 2:] - box_K4[:, :2]).repeat(1, 2))


def _refine(network: nn.Module, sums: AreaSums, image_K: Tensor, box_K4: Tensor, size_px: int) -> list[Tensor]:
    """Return what a network says of each square, a few hundred at a time."""
    starts = range(0, len(box_K4), CANDIDATES)
    outputs = [network(sums.read(image_K[i : i + CANDIDATES], box_K4[i : i + CANDIDATES], size_px)) for i in starts]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _squared(box_K4: Tensor) -> Tensor:
    """Return boxes widened to squares around their middles."""
    side_K2 = box_K4[:, 2:] - box_K4[:, :2]
    longest_K1 = side_K2.amax(dim=1, keepdim=True)
    corner_K2 = box_K4[:, :2] + side_K2 * 0.5 - longest_K1 * 0.5
    return torch.cat([corner_K2, corner_K2 + longest_K1], dim=1)


def _faces(rows: npt.NDArray[np.float64]) -> list[Face]:
    """Return the faces of one picture, largest first; of two of which one covers the other, the more probable one."""
    faces: list[Face] = []
    for row in rows[np.argsort(-rows[:, 1], kind="stable")]:
        box_px = row[2:6]
        shared = [
            np.clip(np.minimum(box_px[2:], f.box_px[2:]) - np.maximum(box_px[:2], f.box_px[:2]) + 1, 0, None).prod()
            / min((box_px[2:] - box_px[:2] + 1).prod(), (f.box_px[2:] - f.box_px[:2] + 1).prod())
            for f in faces
        ]
        if (box_px[2:] > box_px[:2]).all() and max(shared, default=0.0) <= OVERLAP:
            faces.append(Face(box_px, row[6:].reshape(5, 2), float(row[1])))
    return sorted(faces, key=lambda face: -face.area_px)
