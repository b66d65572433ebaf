"""Compare every shortcut of face detection with MTCNN at its defaults on every frame.

On generated videos, coded as H.264, in which a face moves slowly or fast, is covered, leaves, is cut away from, or has
another beside it. Every way of looking works on the same frames; its time is the CPU time of looking alone, without
decoding and cropping. The exit status is 1 if the default misses its targets.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from filming import FPS, render
from machine import describe_machine, positive

import avfuse  # noqa: F401  sets what must be set before torch is imported
from avfuse.detection import Face, FaceDetector, Image, overlap
from avfuse.faces import FaceTrack
from avfuse.schema import ReportTable
from avfuse.terminal import print_table

SIZES_PX = {"360p": (360, 640), "720p": (720, 1280)}
MIN_FACE_PX, EVERY = 40, 4  # the defaults of `avfuse extract`
LEAST_MEDIAN, LEAST_1_PERCENT = 0.95, 0.8
LEAST_FRAMES = 24
DEFAULT = "adaptive, the default"
Frames = list[npt.NDArray[np.uint8]]
Boxes = list[Face | None]


class Reference:
    """MTCNN of facenet-pytorch, one picture at a time, as a detector."""

    def __init__(self, min_face_px: int = 20) -> None:
        self.device = torch.device("cpu")
        self._mtcnn = MTCNN(min_face_size=min_face_px, keep_all=True, device=self.device)

    def detect(self, images: Sequence[Image]) -> list[list[Face]]:
        """Return the faces in each picture."""
        return [self._detect(np.asarray(image)) for image in images]

    def _detect(self, image: npt.NDArray[np.uint8]) -> list[Face]:
        boxes, probabilities, landmarks = (item[0] for item in self._mtcnn.detect(image[None], landmarks=True))
        if boxes is None:
            return []
        return [
            Face(np.float64(box), np.float64(points), float(probability))
            for box, points, probability in zip(boxes, landmarks, probabilities, strict=True)
        ]


@dataclass
class Track(FaceTrack):
    """A track that keeps its faces, and makes no crops."""

    faces: dict[int, Face] = field(default_factory=dict)

    def _crop(self, waiting: dict[int, torch.Tensor], detected_F: npt.NDArray[np.bool_]) -> Iterator[Any]:
        self.faces.update(self._find(waiting, detected_F))
        return iter(())


def follow(detector: Any, frames: Frames, side: str | None, detection: str, every: int) -> Boxes:
    """Return the face of every frame on a track."""
    track = Track(detector, len(frames), every, side, detection)
    for _ in track.crops(enumerate(frames)):
        pass
    return [track.faces.get(i) for i in range(len(frames))]


def look_near(detector: FaceDetector, frames: Frames, reference: Boxes) -> Boxes:
    """Return the face that is found near where the reference saw it one look before; only where it saw it then."""
    found: Boxes = [None] * len(frames)
    for i in range(EVERY, len(frames), EVERY):
        before, now = reference[i - EVERY], reference[i]
        if before is not None and now is not None and overlap(before.box_px, now.box_px) > 0:
            near = detector.detect_near(frames[i], [before])
            found[i] = max(near, key=lambda face: overlap(face.box_px, before.box_px), default=None)
    return found


def film_scenes(height_px: int, width_px: int, num_frames: int, seed: int) -> Iterator[tuple[str, Frames, str | None]]:
    """Yield scenes, one held at a time: their names, frames, and which of two people is meant."""

    def shoot(speed: float, take: int, width_px: int = width_px) -> Frames:
        return list(islice(render(height_px, width_px, num_frames, seed + take, speed), num_frames))

    yield "slow", coded(shoot(0.5, 0)), None
    yield "fast", coded(shoot(3.0, 1)), None
    shots, length = (shoot(1.0, 2), shoot(1.0, 3)), max(1, num_frames // 4)
    yield "cut", coded([shots[i // length % 2][i] for i in range(num_frames)]), None
    sides = zip(shoot(1.0, 4, width_px // 2), shoot(1.0, 5, width_px // 2), strict=True)
    yield "two people", coded([np.concatenate(pair, axis=1) for pair in sides]), "left"


def coded(frames: Frames) -> Frames:
    """Return frames as they come out of a video file."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    content.seek(0)
    with av.open(content) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def timed(look: Callable[..., Boxes], *arguments: Any) -> tuple[Boxes, float]:
    """Return the faces and the milliseconds of CPU time."""
    started_s = time.process_time()
    faces = look(*arguments)
    return faces, 1000 * (time.process_time() - started_s)


@dataclass
class Agreement:
    """What one way of looking found, against the reference, over all scenes of one size."""

    overlaps: list[float] = field(default_factory=list)
    shifts: list[float] = field(default_factory=list)  # of landmarks, in widths of the reference's box
    num_missed: int = 0
    num_added: int = 0
    num_looks: int = 0
    cpu_ms: float = 0.0

    def add(self, found: Boxes, reference: Boxes, at: Sequence[int], cpu_ms: float) -> None:
        """Add the frames at the given indices of a scene."""
        for i in at:
            one, other = found[i], reference[i]
            if one is not None and other is not None:
                self.overlaps.append(overlap(one.box_px, other.box_px))
                shift_px = np.linalg.norm(one.landmark_px - other.landmark_px, axis=1).mean()
                self.shifts.append(float(shift_px / (other.box_px[2] - other.box_px[0])))
            self.num_missed += one is None and other is not None
            self.num_added += one is not None and other is None
        self.num_looks += len(at)
        self.cpu_ms += cpu_ms

    def record(self, reference_ms: float) -> dict[str, Any]:
        """Return the figures by name."""
        overlaps, shifts = np.array(self.overlaps), np.array(self.shifts)
        cpu_ms = self.cpu_ms / self.num_looks
        return {
            "frames": self.num_looks,
            "iou_median": float(np.median(overlaps)),
            "iou_5_percent": float(np.quantile(overlaps, 0.05)),
            "iou_1_percent": float(np.quantile(overlaps, 0.01)),
            "iou_least": float(overlaps.min()),
            "missed": self.num_missed,
            "added": self.num_added,
            "landmarks_median": float(np.median(shifts)),
            "landmarks_99_percent": float(np.quantile(shifts, 0.99)),
            "cpu_ms": cpu_ms or None,
            "ratio": reference_ms / cpu_ms if cpu_ms else None,
        }


def look_everywhere(
    name: str, frames: Frames, side: str | None
) -> tuple[Boxes, float, dict[str, tuple[Boxes, float, Sequence[int]]]]:
    """Return the reference of a scene and its time; faces, time and the frames that count of every other way."""
    detector, everywhere = FaceDetector(MIN_FACE_PX, torch.device("cpu")), range(len(frames))
    reference, reference_ms = timed(follow, Reference(), frames, side, "every", 1)
    near, near_ms = timed(look_near, detector, frames, reference)
    adaptive, adaptive_ms = timed(follow, detector, frames, side, "adaptive", EVERY)
    between = np.flatnonzero(~Track(detector, len(frames), EVERY).detected_F()).tolist()
    ways = {
        "MTCNN from 40 px": (*timed(follow, Reference(MIN_FACE_PX), frames, side, "every", 1), everywhere),
        "whole picture": (*timed(follow, detector, frames, side, "every", 1), everywhere),
        "near": (near, near_ms, [i for i in everywhere if near[i] is not None]),
        f"every {EVERY}th frame": (*timed(follow, detector, frames, side, "every", EVERY), everywhere),
        f"{DEFAULT}: {name}": (adaptive, adaptive_ms, everywhere),
        f"{DEFAULT}: between looks": (adaptive, 0.0, between),
        DEFAULT: (adaptive, adaptive_ms, everywhere),
    }
    return reference, reference_ms, ways


def measure(height_px: int, width_px: int, num_frames: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return the figures of every way of looking by name."""
    agreements: dict[str, Agreement] = {}
    total_ms, num_scenes = 0.0, 0
    for name, frames, side in film_scenes(height_px, width_px, num_frames, seed):
        reference, reference_ms, ways = look_everywhere(name, frames, side)
        total_ms, num_scenes = total_ms + reference_ms, num_scenes + 1
        for way, (found, found_ms, at) in ways.items():
            agreements.setdefault(way, Agreement()).add(found, reference, at, found_ms)
    cpu_ms = total_ms / (num_scenes * num_frames)
    ordered = sorted(agreements, key=lambda way: (way.startswith(DEFAULT), way == DEFAULT))
    return {"MTCNN, every frame": {"cpu_ms": cpu_ms}, **{way: agreements[way].record(cpu_ms) for way in ordered}}


def show(size: str, figures: dict[str, dict[str, Any]]) -> None:
    """Print the figures of one size as a table."""
    columns = ("looked", "IoU", "5 %", "1 %", "least", "missed", "added", "landmarks", "99 %", "CPU ms/frame", "ratio")
    keys = list(figures[DEFAULT])
    forms = dict.fromkeys(keys, "{:.3f}") | dict.fromkeys(("frames", "missed", "added"), "{}")
    forms |= {"landmarks_median": "{:.4f}", "landmarks_99_percent": "{:.4f}", "cpu_ms": "{:.1f}", "ratio": "{:.1f}"}
    rows = [
        (name, *("" if (value := row.get(key)) is None else forms[key].format(value) for key in keys))
        for name, row in figures.items()
    ]
    notes = ("Landmarks: their mean distance, in widths of the face.", describe_machine())
    records = tuple({"way": name, **row} for name, row in figures.items())
    print_table(ReportTable(f"Faces, {size}", ("way", *columns), tuple(rows), records, notes))


def main() -> int:
    """Print a table for each size, or one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive, default=200, help="of each of the four scenes (200)")
    parser.add_argument("--seed", type=int, default=100, help="of the scenes (100)")
    parser.add_argument("--size", choices=SIZES_PX, action="append", help="360p or 720p (both)")
    parser.add_argument("--json", action="store_true", help="print one object for other programs")
    arguments = parser.parse_args()
    if arguments.frames < LEAST_FRAMES:
        parser.error(f"--frames {arguments.frames} is given; at least {LEAST_FRAMES} show what a track does")
    torch.set_num_threads(1)
    found = {size: measure(*SIZES_PX[size], arguments.frames, arguments.seed) for size in arguments.size or SIZES_PX}
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "sizes": found}))
    else:
        for size, figures in found.items():
            show(size, figures)
    return int(any(is_short(figures[DEFAULT]) for figures in found.values()))


def is_short(figures: dict[str, Any]) -> bool:
    """Whether the boxes of the default agree less than is wanted."""
    return bool(figures["iou_median"] < LEAST_MEDIAN or figures["iou_1_percent"] < LEAST_1_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
