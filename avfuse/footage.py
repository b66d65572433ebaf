"""What one recording gives to extraction: its clips in batches, the face in them, and the rating of each frame."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse.corpora import Corpus
from avfuse.crops import CROP_PX, CroppedFaces
from avfuse.detection import FaceDetector, Image
from avfuse.faces import Faces, FaceTrack
from avfuse.gpu_decoding import GpuReading
from avfuse.media import NO_PICTURE, Frame, Losses, Reading
from avfuse.options import ExtractOptions
from avfuse.schema import PassingError, Recording, RecordingError, RowCount
from avfuse.sound import Sound, SoundBuffer
from avfuse.spec import list_crops
from avfuse.timeline import SAMPLE_RATE_HZ, ClipGrid, Timeline

log = logging.getLogger(__name__)


def open_faces(recording: Recording, num_frames: int, detector: FaceDetector | None, options: ExtractOptions) -> Faces:
    """Return what yields the crops of a recording: the face in its video, or its aligned images without a detector.

    Raises
    ------
    RecordingError
        With reason ``missing_crops``, if aligned images are wanted and cannot be used.
    """
    if detector is None:
        return CroppedFaces(list_crops(recording, options.root), num_frames)
    return FaceTrack(detector, num_frames, options.detect_every, recording.face_side, options.detection)


def open_reading(
    recording: Recording, timeline: Timeline, grid: ClipGrid, faces: Faces, options: ExtractOptions, lacking: str = ""
) -> Reading | GpuReading:
    """Return the frames that clips and detector need and the sound, without the modality that is lacking.

    Raises
    ------
    RecordingError
        As `media.Reading`.
    """
    wanted_F = faces.detected_F()
    wanted_F[grid.frame_NK] = True
    sound, picture = lacking != "audio", lacking != "video" and isinstance(faces, FaceTrack)
    if picture and options.decode == "gpu":
        return GpuReading(recording.path, timeline, wanted_F, faces.device, sound=sound)
    return Reading(recording.path, timeline, wanted_F, sound=sound, picture=picture)


def clips(
    recording: Recording,
    timeline: Timeline,
    grid: ClipGrid,
    faces: Faces,
    batch_size: int,
    reading: Iterable[Frame | Sound],
) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
    """Yield up to so many clips at a time: their crops, on the device that found them, and the sound under them.

    Only crops and sound of clips to come are held; a clip waits for its sound.

    Parameters
    ----------
    recording : Recording
    timeline : Timeline
    grid : ClipGrid
    faces : Faces
    batch_size : int
    reading : iterable of Frame or Sound
        What `open_reading` returns, or what runs ahead of it.

    Yields
    ------
    tuple of Tensor, (B, K, 112, 112, 3), uint8, and ndarray, (B, S), float32
    """
    first_s = float(grid.end_time_s[0]) - grid.num_samples / SAMPLE_RATE_HZ
    supply = _Supply(reading, has_frames=not isinstance(faces, CroppedFaces), first_s=first_s)
    waiting = _Waiting(grid, faces, supply)
    made: list[tuple[Tensor, npt.NDArray[np.float32]]] = []
    for clip in _one_by_one(timeline, faces, supply, waiting):
        made.append(clip)
        if len(made) == batch_size:
            yield _batch(made)
            made = []
    if made:
        yield _batch(made)
    if waiting.num_lost and supply.has_frames:
        log.warning("%s: %d frames of clips could not be decoded, and are black", recording.name, waiting.num_lost)


def _one_by_one(
    timeline: Timeline, faces: Faces, supply: _Supply, waiting: _Waiting
) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
    for index, crop in faces.crops(supply.frames()):
        waiting.add(index, crop)
        yield from waiting.ready(index)
    for _ in supply.frames():  # whoever looks for faces takes them all, but for none
        pass
    yield from waiting.ready(timeline.num_frames)
    supply.drain()


def _batch(made: list[tuple[Tensor, npt.NDArray[np.float32]]]) -> tuple[Tensor, npt.NDArray[np.float32]]:
    crops, sounds = zip(*made, strict=True)
    return torch.stack(crops), np.stack(sounds)


class _Supply:
    """What a reading yields: the frames for who looks for faces, the sound into a buffer."""

    def __init__(self, reading: Iterable[Frame | Sound], *, has_frames: bool, first_s: float) -> None:
        self._items = iter(reading)
        self.has_frames = has_frames
        self.sound = SoundBuffer(first_s)

    def frames(self) -> Iterator[tuple[int, Image]]:
        """Yield the frames, until there is none; the sound between them is taken in."""
        while self.has_frames and (item := self._next()) is not None:
            if isinstance(item, Frame) and self.has_frames:
                yield item.index, item.pixels_YXC

    def hear(self, end_s: float) -> bool:
        """Tell whether the sound up to a time is there; without frames, take in what is missing."""
        while not self.sound.has(end_s):
            if self.has_frames:
                return False
            self._next()
        return True

    def drain(self) -> None:
        """Go through what is left, as what of it is lost is counted; it is behind the last clip."""
        for _ in self._items:
            pass

    def _next(self) -> Frame | Sound | None:
        item = next(self._items, None)
        if item is None:
            self.sound.end()
        elif isinstance(item, Sound):
            self.sound.add(*item)
        elif item.index == NO_PICTURE.index:
            self.has_frames = False
        return item


class _Waiting:
    """Crops of clips to come, and which clip is next."""

    def __init__(self, grid: ClipGrid, faces: Faces, supply: _Supply) -> None:
        self._grid = grid
        self._faces = faces
        self._supply = supply
        self._needed = set(np.unique(grid.frame_NK).tolist())
        self._held: dict[int, Tensor] = {}
        self._next = 0
        self._black = torch.zeros((CROP_PX, CROP_PX, 3), dtype=torch.uint8, device=faces.device)
        self.num_lost = 0

    def add(self, index: int, crop: Tensor) -> None:
        """Take in the crop of a frame."""
        if index in self._needed:
            self._held[index] = crop

    def ready(self, upto: int) -> Iterator[tuple[Tensor, npt.NDArray[np.float32]]]:
        """Yield the clips that end at frame `upto` or before, whose sound is there."""
        grid = self._grid
        while self._next < grid.num_clips and grid.frame_NK[self._next, -1] <= upto:
            end_s, frame_K = float(grid.end_time_s[self._next]), grid.frame_NK[self._next]
            if not self._supply.hear(end_s):
                return
            clip = torch.stack([self._crop(frame) for frame in frame_K.tolist()])
            # The next clip begins no earlier than this one; before the start several begin with the first frame.
            self._held = {frame: crop for frame, crop in self._held.items() if frame >= frame_K[0]}
            self._next += 1
            yield clip, self._supply.sound.read(end_s, grid.num_samples)

    def _crop(self, frame: int) -> Tensor:
        """Return the crop of a frame, black if it could not be decoded: nobody saw its face."""
        if frame in self._held:
            return self._held[frame]
        if frame in self._needed:
            self._needed.discard(frame)
            self.num_lost += 1
            self._faces.found_F[frame], self._faces.probability_F[frame] = False, 0.0
        return self._black


def frame_targets(
    recording: Recording, timeline: Timeline, corpus: Corpus
) -> tuple[npt.NDArray[np.float32], RowCount | None]:
    """Return the rating of each frame, (F, E), NaN where unrated, and how rows and frames met.

    Raises
    ------
    RecordingError
        If the annotation cannot be read, or is not of this video.
    """
    annotation = corpus.annotation(recording)
    if annotation is None:
        return np.full((timeline.num_frames, len(corpus.targets)), np.nan, np.float32), None
    if timeline.num_unplaced and annotation.time_s is None:
        left_out = "%s: %d frames have the time stamp of another, or none; rows by frame behind them rate other frames"
        log.warning(left_out, recording.name, timeline.num_unplaced)
    target_FE, rows = annotation.at(timeline.rated_time_s), annotation.count(timeline.rated_time_s)
    if is_uneven(rows):
        log.warning(
            "%s: %d annotation rows for %d frames: %d rows that rate no frame are dropped, %d frames without a row are "
            "unrated (%s)",
            recording.name,
            rows.num_rows,
            rows.num_frames,
            rows.num_dropped,
            rows.num_without,
            "row i rates frame i" if annotation.time_s is None else "rows rate frames by their times",
        )
    return target_FE, rows


def is_uneven(rows: RowCount) -> bool:
    """Whether some rows rate no frame, or some frames have no row."""
    return rows.num_dropped > 0 or rows.num_without > 0


def check_losses(losses: Losses, max_corrupt: float) -> None:
    """Refuse a recording of which too many packets are lost.

    Raises
    ------
    RecordingError
        With reason ``corrupt_packets`` and the share, when more of the picture's packets, or of the sound's, could not
        be decoded than `max_corrupt`, a share; with reason ``truncated``, when the file broke off.
    """
    if losses.breaks_off:  # which it did not when it was probed
        raise PassingError("truncated", "the file breaks off, or could not be read to its end")
    for kind, num_lost, num_packets in (
        ("video", losses.num_video_lost, losses.num_video_packets),
        ("audio", losses.num_audio_lost, losses.num_audio_packets),
    ):
        if num_lost > max_corrupt * num_packets:
            share = num_lost / num_packets
            found = f"{num_lost} of {num_packets} {kind} packets cannot be decoded, or not in their place: {share:.1%}"
            raise RecordingError("corrupt_packets", f"{found}, {max_corrupt:.1%} are allowed", share)


def check_faces(faces: Faces, min_share: float) -> None:
    """Refuse a recording of which too few frames show a face.

    Raises
    ------
    RecordingError
        With reason ``no_face`` and the share, when it is less than `min_share`.
    """
    share = float(faces.found_F.mean())
    if share < min_share:
        found = f"{int(faces.found_F.sum())} of {len(faces.found_F)} frames show a face: {share:.1%}"
        raise RecordingError("no_face", f"{found}, {min_share:.1%} are wanted", share)
