"""A recording becomes clips, whatever the size of the batches, and ratings of its frames."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from avfuse import footage
from avfuse.faces import CROP_PX, CroppedFaces, FaceTrack
from avfuse.media import ClipGrid, Timeline
from avfuse.schema import Annotation, Recording, RecordingError, RowCount

NUM_FRAMES = 61
TIMELINE = Timeline.from_pts(np.arange(NUM_FRAMES), 0.04)
RECORDING = Recording("a", Path("a.mp4"), "train", "someone")


class Shown:
    """Faces in all frames but some, seen by none of the detector's frames but the first; a crop shows its index."""

    def __init__(self, lost: tuple[int, ...] = ()) -> None:
        self.found_F = np.ones(NUM_FRAMES, np.bool_)
        self.probability_F = np.ones(NUM_FRAMES, np.float32)
        self.lost = lost
        self.asked: list[int] = []

    def detected_F(self) -> npt.NDArray[np.bool_]:
        return np.arange(NUM_FRAMES) == 0

    def crops(self, frames: Iterable[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for index in frames:
            self.asked.append(index)
            if index not in self.lost:
                yield index, np.full((CROP_PX, CROP_PX, 3), index + 1, np.uint8)


@pytest.fixture(autouse=True)
def decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let frames be read by their indices alone."""

    def read_frames(path: Path, timeline: Timeline, wanted_F: npt.NDArray[np.bool_]) -> Iterator[int]:
        return iter(np.flatnonzero(wanted_F).tolist())

    monkeypatch.setattr(footage.media, "read_frames", read_frames)


def batches(faces: Any, hop: int, size: int) -> Iterator[npt.NDArray[np.uint8]]:
    return footage.clip_batches(RECORDING, TIMELINE, ClipGrid.lay(TIMELINE, hop), faces, size)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("hop", [1, 8, 100])
def test_clips_hold_their_frames_whatever_the_size_of_a_batch(hop: int, size: int) -> None:
    faces, grid = Shown(), ClipGrid.lay(TIMELINE, hop)
    made = list(batches(faces, hop, size))
    assert [len(clips) for clips in made[:-1]] == [size] * (len(made) - 1)
    assert 1 <= len(made[-1]) <= size
    clips_NKYXC = np.concatenate(made)
    assert clips_NKYXC.shape == (grid.num_clips, 8, CROP_PX, CROP_PX, 3)
    np.testing.assert_array_equal(clips_NKYXC[..., 5, 7, 1], grid.frame_NK + 1)
    assert (clips_NKYXC == clips_NKYXC[:, :, :1, :1, :1]).all()
    assert faces.asked == sorted({0, *grid.frame_NK.ravel().tolist()})  # no frame is decoded that nobody looks at
    assert faces.found_F.all()


def test_frames_are_read_when_they_are_needed() -> None:
    faces = Shown()
    lazy = batches(faces, 8, 2)
    assert faces.asked == []
    next(lazy)
    assert faces.asked[-1] == 15  # where the second clip ends
    next(lazy)
    assert faces.asked[-1] == 31


def test_a_frame_that_cannot_be_decoded_is_black_and_without_face() -> None:
    faces = Shown(lost=(11, 55))
    clips_NKYXC = np.concatenate(list(batches(faces, 8, 4)))
    frame_NK = ClipGrid.lay(TIMELINE, 8).frame_NK
    expected_NK = np.where(np.isin(frame_NK, (11, 55)), 0, frame_NK + 1)
    np.testing.assert_array_equal(clips_NKYXC.max(axis=(2, 3, 4)), expected_NK)
    assert np.flatnonzero(~faces.found_F).tolist() == np.flatnonzero(faces.probability_F == 0).tolist() == [11, 55]


def test_faces_come_from_the_video_or_from_aligned_images(tmp_path: Path) -> None:
    detector: Any = object()
    sided = Recording("a", Path("a.mp4"), "train", "someone", face_side="left", crops=tmp_path)
    track = footage.open_faces(sided, NUM_FRAMES, detector, 4)
    assert isinstance(track, FaceTrack)
    assert (track.detector, track.num_frames, track.detect_every, track.side) == (detector, NUM_FRAMES, 4, "left")
    with pytest.raises(RecordingError, match="holds no image"):
        footage.open_faces(sided, NUM_FRAMES, None, 4)
    Image.new("RGB", (CROP_PX, CROP_PX), (9, 9, 9)).save(tmp_path / "00003.png")
    cropped = footage.open_faces(sided, NUM_FRAMES, None, 4)
    assert isinstance(cropped, CroppedFaces)
    assert [index for index, crop in cropped.crops() if crop.any()] == [2]


class Rated:
    """A corpus that has one annotation, or none."""

    targets = ("valence", "arousal")

    def __init__(self, annotation: Annotation | None) -> None:
        self._annotation = annotation

    def annotation(self, recording: Recording) -> Annotation | None:
        return self._annotation


def frame_targets(annotation: Annotation | None) -> tuple[npt.NDArray[np.float32], RowCount | None]:
    corpus: Any = Rated(annotation)
    return footage.frame_targets(RECORDING, TIMELINE, corpus)


def test_without_annotation_no_frame_is_rated() -> None:
    target_FE, rows = frame_targets(None)
    assert target_FE.shape == (NUM_FRAMES, 2)
    assert np.isnan(target_FE).all()
    assert rows is None


@pytest.mark.parametrize("num_rows", [NUM_FRAMES - 1, NUM_FRAMES, NUM_FRAMES + 2])
def test_rows_rate_frames_and_what_is_left_is_told(num_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    values_FE = np.random.default_rng(0).uniform(-1, 1, (num_rows, 2))
    with caplog.at_level(logging.WARNING):
        target_FE, rows = frame_targets(Annotation(("valence", "arousal"), values_FE))
    shared = min(num_rows, NUM_FRAMES)
    np.testing.assert_array_equal(target_FE[:shared], values_FE[:shared].astype(np.float32))
    assert np.isnan(target_FE[shared:]).all()
    assert rows is not None
    assert footage.is_uneven(rows) == (num_rows != NUM_FRAMES)
    assert len(caplog.messages) == int(num_rows != NUM_FRAMES)
    if caplog.messages:
        assert f"a: {num_rows} annotation rows for 61 frames" in caplog.text
