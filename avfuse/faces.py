"""The face of a recording in every frame: looked for, followed and cropped.

Every k-th frame is looked at. One face is followed through the recording: the one whose box overlaps the last box most,
or the largest when none does; of two people the left or the right one, where a side is given. Between two frames of the
same track, box and landmarks are interpolated. A frame without a face is marked as such and its crop is black; the
whole frame never stands in for a face.

How a frame is looked at is one of two ways. ``every`` searches the whole picture, and where either of two frames shows
no face, those between count as without one. ``adaptive`` looks near the last place of what it follows, and searches the
whole picture at the start, where the face is lost, jumps or becomes improbable, at cuts, and now and then: more rarely
the longer a search finds what was followed. Between two frames it looks near the face, too, where that moves, appears
or goes. On a GPU, where one batch of whole pictures costs less than a chain of small ones, every frame that is looked
at is searched whole either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse.crops import CROP_PX, TEMPLATE_PX, CroppedFaces, align
from avfuse.detection import NEAR_SIDES, NEAR_SIZES, Face, FaceDetector, Image, overlap, place
from avfuse.schema import SIDES

DETECT_BATCH = 8
MAX_WAITING = 32  # images held until the next look, whatever the size of the batch; frames between two looks at most
MAX_WAITING_PX = MAX_WAITING * 1920 * 1080  # of these images, of which there are fewer where they are larger
MIN_OVERLAP = 0.2  # intersection over union below which a box does not continue the track
# Of an adaptive detection:
STEADY = 0.7  # overlap of a face at two looks from which it is interpolated between them
CONTINUES = 0.5  # overlap with the last box below which a face has jumped
SURE = 0.95  # probability below which a face may be lost
AGREES = 0.9  # overlap with what is followed from which a search confirms it
SEARCH_FRAMES = (25, 100)  # frames from one search to the next at first, and at most: they double while all agrees
CUT_LEVELS = 30.0  # mean difference of two looks, in grey levels, from which there is a cut between them
GLANCE = 24  # rows and columns of pixels that are compared for it


def describe_faces(detector: FaceDetector, detection: str, detect_every: int) -> dict[str, Any]:
    """Return what stands in a fingerprint for the detector: everything that decides about boxes and crops."""
    description = {
        **detector.fingerprint,
        "crop_px": CROP_PX,
        "template_px": [list(point) for point in TEMPLATE_PX],
        "detect_every": detect_every,
        "detection": detection,
    }
    if detection == "adaptive":
        description["adaptive"] = {
            "looks": "whole" if detector.device.type == "cuda" else "near",
            "near": [NEAR_SIDES, *NEAR_SIZES],
            "steady": STEADY,
            "continues": CONTINUES,
            "sure": SURE,
            "agrees": AGREES,
            "search_frames": list(SEARCH_FRAMES),
            "cut": [CUT_LEVELS, GLANCE],
        }
    return description


@dataclass
class FaceTrack:
    """Follow one face through a recording and crop it.

    With a `side`, the recording shows two people, of whom the one on that side is meant, as seen by the viewer. Of two
    faces, the two largest of more, it is always the one further to that side, whatever was followed before: so people
    are not taken for each other after a cut. One face alone belongs to the person whose last box it overlaps most, if
    it does by `MIN_OVERLAP`, or else to the one in whose half of the picture its centre lies; so it is never both's.
    An adaptive detection looks near the two people while both are seen, and else searches the whole picture.

    Attributes
    ----------
    found_F : ndarray, (F,), bool
        Whether the face is known in each frame.
    probability_F : ndarray, (F,), float32
        The detector's probability; of an interpolated face the lesser of its two ends; 0 without a face.
    box_F4 : ndarray, (F, 4), float32
        Left, top, right and bottom of the face in pixels; NaN without a face.
    """

    detector: FaceDetector
    num_frames: int
    detect_every: int
    side: str | None = None
    detection: str = "adaptive"
    found_F: npt.NDArray[np.bool_] = field(init=False)
    probability_F: npt.NDArray[np.float32] = field(init=False)
    box_F4: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.found_F = np.zeros(self.num_frames, np.bool_)
        self.probability_F = np.zeros(self.num_frames, np.float32)
        self.box_F4 = np.full((self.num_frames, 4), np.nan, np.float32)
        self._last: Face | None = None
        self._last_index = -1
        self._followed: Face | None = None  # the newest face of the track, kept through frames without one
        self._people: dict[str, Face] = {}  # where there are two, the newest face of each, by side
        self._shown: list[Face] = []  # whom the last look showed of those that are followed, if it showed all
        self._search_frames, self._search_at = SEARCH_FRAMES[0], 0
        self._glance: Tensor | None = None

    def detected_F(self) -> npt.NDArray[np.bool_]:
        """Return which frames are looked at: the first, the last, and the last of every `detect_every`."""
        index_F = np.arange(self.num_frames)
        at_ends = (index_F == 0) | (index_F == self.num_frames - 1)
        return np.asarray(at_ends | ((index_F + 1) % min(self.detect_every, MAX_WAITING) == 0))

    @property
    def _looks_near(self) -> bool:
        return self.detection == "adaptive" and self.device.type != "cuda"

    @property
    def device(self) -> torch.device:
        """Where crops are made."""
        return self.detector.device

    def crops(self, frames: Iterable[tuple[int, Image]]) -> Iterator[tuple[int, Tensor]]:
        """Yield the aligned crop (112, 112, 3) of every frame that comes in, in order; black without a face."""
        detected_F = self.detected_F()
        waiting: dict[int, Tensor] = {}
        for index, image in frames:
            waiting[index] = place(image, self.device)
            num_detected = sum(detected_F[i] for i in waiting)
            is_enough = len(waiting) >= MAX_WAITING or len(waiting) * image.shape[0] * image.shape[1] > MAX_WAITING_PX
            if num_detected == DETECT_BATCH or (is_enough and detected_F[index]):
                yield from self._crop(waiting, detected_F)
                waiting = {}
        yield from self._crop(waiting, detected_F)

    def _crop(self, waiting: dict[int, Tensor], detected_F: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Tensor]]:
        faces = self._find(waiting, detected_F)
        for index, face in faces.items():
            self.found_F[index], self.probability_F[index] = True, face.probability
            self.box_F4[index] = face.box_px
        crops = align(list(waiting.values()), [faces[i].landmark_px if i in faces else None for i in waiting])
        yield from zip(waiting, crops, strict=True)

    def _find(self, waiting: dict[int, Tensor], detected_F: npt.NDArray[np.bool_]) -> dict[int, Face]:
        """Return the faces up to the last of the frames that is looked at, between those that came as well."""
        looked_at = [index for index in waiting if detected_F[index]]
        found = [] if self._looks_near else self.detector.detect([waiting[index] for index in looked_at])
        faces: dict[int, Face] = {}
        for i, index in enumerate(looked_at):
            candidates = self._look(index, waiting[index]) if self._looks_near else found[i]
            width_px = waiting[index].shape[1]
            face = self._follow(candidates) if self.side is None else self._take_side(candidates, width_px)
            gap = {between: image for between, image in waiting.items() if self._last_index < between < index}
            faces.update(self._between(gap, index, face))
            self._last, self._last_index = face, index
        return faces

    def _look(self, index: int, image: Tensor) -> list[Face]:
        """Return the faces in the frame at `index` near those that are followed, or all where they may be elsewhere."""
        is_cut = self._is_cut(image)
        near = self.detector.detect_near(image, self._shown) if self._shown and not is_cut else []
        followed = [_nearest(near, face, CONTINUES) for face in self._shown]
        sure = [face for face in followed if face is not None and face.probability >= SURE]
        is_safe = bool(sure) and len({id(face) for face in sure}) == len(followed)
        if is_safe and index < self._search_at:
            return near
        (found,) = self.detector.detect([image])
        is_confirmed = is_safe and all(_nearest(found, face, AGREES) for face in sure)
        self._search_frames = min(2 * self._search_frames, SEARCH_FRAMES[1]) if is_confirmed else SEARCH_FRAMES[0]
        self._search_at = index + self._search_frames
        return found

    def _is_cut(self, image: Tensor) -> bool:
        """Whether the picture differs from that of the last look as after a cut."""
        step_y, step_x = (max(1, size_px // GLANCE) for size_px in image.shape[:2])
        before, self._glance = self._glance, image[::step_y, ::step_x].float()
        if before is None or before.shape != self._glance.shape:
            return True
        return float((self._glance - before).abs().mean()) >= CUT_LEVELS

    def _follow(self, candidates: list[Face]) -> Face | None:
        """Return the candidate that continues the track, or the largest when the track has none to continue."""
        self._shown = []
        if not candidates:
            return None
        chosen = candidates[0]
        if self._followed is not None:
            chosen = _nearest(candidates, self._followed, MIN_OVERLAP) or chosen
        self._followed, self._shown = chosen, [chosen]
        return chosen

    def _take_side(self, candidates: list[Face], width_px: int) -> Face | None:
        """Return the candidate that shows the person on the track's side of the picture."""
        pair = sorted(candidates[:2], key=lambda face: face.centre_x_px)
        shown = {self._side_of(pair[0], width_px): pair[0]} if len(pair) == 1 else dict(zip(SIDES, pair, strict=False))
        self._people.update(shown)
        self._shown = pair if len(pair) == len(SIDES) else []
        return shown.get(str(self.side))

    def _side_of(self, face: Face, width_px: int) -> str:
        """Return whose face it is that is seen alone."""
        overlaps = {side: overlap(face.box_px, person.box_px) for side, person in self._people.items()}
        nearest = max(overlaps, key=lambda side: overlaps[side], default="")
        if overlaps.get(nearest, 0.0) >= MIN_OVERLAP:
            return nearest
        return "left" if face.centre_x_px < width_px / 2 else "right"

    def _between(self, gap: dict[int, Tensor], index: int, face: Face | None) -> dict[int, Face]:
        """Return the faces of the frames after the last look, up to the one at `index`; `gap` has those that came."""
        last = self._last
        faces = {} if face is None else {index: face}
        if last is not None and face is not None and overlap(last.box_px, face.box_px) >= MIN_OVERLAP:
            faces |= self._fill(gap, self._last_index, last, index, face)
        elif self.detection == "adaptive" and self.side is None:  # of two people, one may stand where the other stood
            onwards = self._walk(gap, last, sorted(gap))
            faces |= self._walk(gap, face, sorted(gap.keys() - onwards.keys(), reverse=True)) | onwards
        return faces

    def _fill(self, gap: dict[int, Tensor], start: int, first: Face, stop: int, last: Face) -> dict[int, Face]:
        """Return the faces of the frames between two of a track, which are interpolated where the face is steady.

        Where it moves, the middle one is looked for near its place between the two, and so on in both halves.
        """
        faces = {i: first.towards(last, (i - start) / (stop - start)) for i in range(start + 1, stop)}
        came = sorted(i for i in gap if start < i < stop)
        if self.detection == "every" or not came or overlap(first.box_px, last.box_px) >= STEADY:
            return faces
        middle = came[len(came) // 2]
        guess = faces[middle]
        face = _nearest(self.detector.detect_near(gap[middle], [guess]), guess, MIN_OVERLAP)
        if face is None:
            others = {i: image for i, image in gap.items() if i != middle}
            faces = self._fill(others, start, first, stop, last)
            del faces[middle]
            return faces
        halves = self._fill(gap, start, first, middle, face) | self._fill(gap, middle, face, stop, last)
        return {**halves, middle: face}

    def _walk(self, gap: dict[int, Tensor], face: Face | None, order: Sequence[int]) -> dict[int, Face]:
        """Return the faces that continue one through frames of a gap, as far as they do."""
        faces: dict[int, Face] = {}
        for index in order:
            if face is not None:
                face = _nearest(self.detector.detect_near(gap[index], [face]), face, MIN_OVERLAP)
            if face is None:
                break
            faces[index] = face
        return faces


def _nearest(candidates: Sequence[Face], face: Face, least: float) -> Face | None:
    """Return the candidate that overlaps a face most, if any does by so much."""
    nearest = max(candidates, key=lambda candidate: overlap(candidate.box_px, face.box_px), default=None)
    return nearest if nearest is not None and overlap(nearest.box_px, face.box_px) >= least else None


Faces = FaceTrack | CroppedFaces
