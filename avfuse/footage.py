"""What one recording gives to extraction: its clips in batches, the face in them, and the rating of each frame."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse import media
from avfuse.corpora import Corpus
from avfuse.faces import CROP_PX, CroppedFaces, FaceDetector, Faces, FaceTrack
from avfuse.schema import Recording, RowCount
from avfuse.spec import list_crops

log = logging.getLogger(__name__)


def open_faces(recording: Recording, num_frames: int, detector: FaceDetector | None, detect_every: int) -> Faces:
    """Return what yields the crops of a recording: the face in its video, or its aligned images without a detector.

    Raises
    ------
    RecordingError
        With reason ``missing_crops``, if aligned images are wanted and cannot be used.
    """
    if detector is None:
        return CroppedFaces(list_crops(recording), num_frames)
    return FaceTrack(detector, num_frames, detect_every, recording.face_side)


def clip_batches(
    recording: Recording, timeline: media.Timeline, grid: media.ClipGrid, faces: Faces, batch_size: int
) -> Iterator[Tensor]:
    """Yield the crops (B, K, 112, 112, 3), uint8, of up to so many clips at a time, on the device that found them.

    Only frames of clips to come are held.
    """
    wanted_F = faces.detected_F()
    wanted_F[grid.frame_NK] = True
    crops = faces.crops(media.read_frames(recording.path, timeline, wanted_F))
    held: dict[int, Tensor] = {}
    black = torch.zeros((CROP_PX, CROP_PX, 3), dtype=torch.uint8, device=faces.device)
    last_read, clips = -1, []
    for frame_K in grid.frame_NK:
        while last_read < frame_K[-1]:
            last_read, crop = next(crops, (timeline.num_frames, black))
            held[last_read] = crop
        lost = [frame for frame in frame_K.tolist() if frame not in held]
        faces.found_F[lost], faces.probability_F[lost] = False, 0.0  # it could not be decoded: nobody saw its face
        clips.append(torch.stack([held.get(frame, black) for frame in frame_K.tolist()]))
        # The next clip begins no earlier than this one; before the start several begin with the first frame.
        held = {frame: crop for frame, crop in held.items() if frame >= frame_K[0]}
        if len(clips) == batch_size:
            yield torch.stack(clips)
            clips = []
    for _ in crops:
        pass  # frames behind the last clip belong to no clip, but whether they show a face is recorded
    if clips:
        yield torch.stack(clips)


def frame_targets(
    recording: Recording, timeline: media.Timeline, corpus: Corpus
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
