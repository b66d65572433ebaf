"""A recording becomes clips, whatever the size of the batches, and ratings of its frames."""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from avfuse import footage
from avfuse.crops import CROP_PX, CroppedFaces
from avfuse.faces import FaceTrack
from avfuse.media import NO_PICTURE, Frame, Losses
from avfuse.options import ExtractOptions
from avfuse.schema import Annotation, Recording, RecordingError, RowCount
from avfuse.sound import NO_MORE, Sound
from avfuse.timeline import SAMPLE_RATE_HZ as RATE_HZ
from avfuse.timeline import ClipGrid, Timeline

NUM_FRAMES = 61
TIMELINE = Timeline.from_pts(np.arange(NUM_FRAMES), 0.04)
RECORDING = Recording("a", Path("a.mp4"), "train", "someone")


class Shown:
    """Faces in all frames but some, seen by none of the detector's frames but the first; a crop shows its index."""

    device = torch.device("cpu")

    def __init__(self, lost: tuple[int, ...] = ()) -> None:
        self.found_F = np.ones(NUM_FRAMES, np.bool_)
        self.probability_F = np.ones(NUM_FRAMES, np.float32)
        self.lost = lost
        self.asked: list[int] = []

    def crops(self, frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, torch.Tensor]]:
        for index, _ in frames:
            self.asked.append(index)
            if index not in self.lost:
                yield index, torch.full((CROP_PX, CROP_PX, 3), index + 1, dtype=torch.uint8)


def pieces(lag_s: float = 0.0, end_s: float = NUM_FRAMES * 0.04) -> list[Frame | Sound]:
    """Return the frames of the clips, and a sound whose samples count up, `lag_s` behind them in the file."""
    items: list[tuple[float, Frame | Sound]] = []
    for index, time_s in enumerate(TIMELINE.frame_time_s.tolist()):
        items.append((time_s, Frame(index, np.zeros((1, 1, 3), np.uint8))))
    for start in range(0, round(end_s * RATE_HZ), 1000):
        samples_S = np.arange(start, min(start + 1000, round(end_s * RATE_HZ)), dtype=np.float32)
        items.append((start / RATE_HZ + lag_s, Sound(start, samples_S)))
    return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def batches(
    faces: Any, hop: int, size: int, reading: Iterable[Frame | Sound]
) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.float32]]]:
    return footage.clips(RECORDING, TIMELINE, ClipGrid.lay(TIMELINE, hop), faces, size, reading)


def under(grid: ClipGrid, end_s: float = NUM_FRAMES * 0.04) -> npt.NDArray[np.float32]:
    """Return the sound under each clip, (N, S), of `pieces`."""
    sample_NS = np.round(grid.end_time_s * RATE_HZ)[:, None] + np.arange(-grid.num_samples, 0)
    return np.where((sample_NS >= 0) & (sample_NS < round(end_s * RATE_HZ)), sample_NS, 0).astype(np.float32)


def test_what_is_read_is_what_clips_and_detector_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 61 frames, every 20th is looked at, and the two clips have eight each."""
    made: list[tuple[str, list[int], dict[str, Any]]] = []

    def reading(name: str) -> Any:
        return lambda path, timeline, wanted_F, *rest, **parts: made.append(
            (name, np.flatnonzero(wanted_F).tolist(), {"device": rest, **parts})
        )

    for name in ("Reading", "GpuReading"):
        monkeypatch.setattr(footage, name, reading(name))
    grid = ClipGrid.lay(TIMELINE, 30)
    track = FaceTrack(SimpleNamespace(device=torch.device("cpu")), NUM_FRAMES, 20)  # type: ignore[arg-type]
    needed = sorted({0, 19, 39, 59, 60, *grid.frame_NK.ravel().tolist()})
    for lacking in ("", "audio", "video"):
        footage.open_reading(RECORDING, TIMELINE, grid, track, ExtractOptions(Path("root")), lacking)
        footage.open_reading(RECORDING, TIMELINE, grid, track, ExtractOptions(Path("root"), decode="gpu"), lacking)
    footage.open_reading(RECORDING, TIMELINE, grid, CroppedFaces({}, NUM_FRAMES), ExtractOptions(Path("root")))
    plain, on_gpu, cpu = "Reading", "GpuReading", (torch.device("cpu"),)
    assert [wanted for _, wanted, _ in made] == [needed] * 6 + [list(range(NUM_FRAMES))]
    assert [(name, parts) for name, _, parts in made] == [
        (plain, {"device": (), "sound": True, "picture": True}),
        (on_gpu, {"device": cpu, "sound": True}),
        (plain, {"device": (), "sound": False, "picture": True}),
        (on_gpu, {"device": cpu, "sound": False}),
        (plain, {"device": (), "sound": True, "picture": False}),
        (plain, {"device": (), "sound": True, "picture": False}),
        (plain, {"device": (), "sound": True, "picture": False}),
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("hop", [1, 8, 100])
def test_clips_hold_their_frames_and_their_sound_whatever_the_size_of_a_batch(hop: int, size: int) -> None:
    faces, grid = Shown(), ClipGrid.lay(TIMELINE, hop)
    made = list(batches(faces, hop, size, pieces()))
    assert [len(clips) for clips, _ in made[:-1]] == [size] * (len(made) - 1)
    assert 1 <= len(made[-1][0]) <= size
    clips_NKYXC = np.concatenate([clips.numpy() for clips, _ in made])
    assert clips_NKYXC.shape == (grid.num_clips, 8, CROP_PX, CROP_PX, 3)
    np.testing.assert_array_equal(clips_NKYXC[..., 5, 7, 1], grid.frame_NK + 1)
    assert (clips_NKYXC == clips_NKYXC[:, :, :1, :1, :1]).all()
    np.testing.assert_array_equal(np.concatenate([sound_BS for _, sound_BS in made]), under(grid))
    assert faces.found_F.all()


@pytest.mark.parametrize("lag_s", [-1.0, 0.5, 1.5, 9.0])
@pytest.mark.parametrize("end_s", [0.7, NUM_FRAMES * 0.04])
def test_a_clip_waits_for_its_sound(lag_s: float, end_s: float) -> None:
    """The sound may come before or behind the picture, and end early."""
    grid = ClipGrid.lay(TIMELINE, 8)
    made = list(batches(Shown(), 8, 2, pieces(lag_s, end_s)))
    np.testing.assert_array_equal(torch.cat([clips for clips, _ in made])[..., 5, 7, 1], grid.frame_NK + 1)
    np.testing.assert_array_equal(np.concatenate([sound_BS for _, sound_BS in made]), under(grid, end_s))


@pytest.mark.parametrize("lag_s", [0.0, 9.0])
def test_clips_without_sound_are_silent(lag_s: float) -> None:
    frames = [item for item in pieces(lag_s) if isinstance(item, Frame)]
    sounds = [sound_BS for _, sound_BS in batches(Shown(), 8, 2, [NO_MORE, *frames])]
    assert sum(map(len, sounds)) == ClipGrid.lay(TIMELINE, 8).num_clips
    assert not np.concatenate(sounds).any()


def test_frames_are_read_when_they_are_needed() -> None:
    faces = Shown()
    lazy = batches(faces, 8, 2, pieces(-0.1))
    assert faces.asked == []
    next(lazy)
    assert faces.asked[-1] == 15  # where the second clip ends
    next(lazy)
    assert faces.asked[-1] == 31


def test_a_frame_that_cannot_be_decoded_is_black_and_without_face(caplog: pytest.LogCaptureFixture) -> None:
    faces = Shown(lost=(11, 55))
    with caplog.at_level(logging.WARNING):
        clips_NKYXC = torch.cat([clips for clips, _ in batches(faces, 8, 4, pieces())]).numpy()
    frame_NK = ClipGrid.lay(TIMELINE, 8).frame_NK
    expected_NK = np.where(np.isin(frame_NK, (11, 55)), 0, frame_NK + 1)
    np.testing.assert_array_equal(clips_NKYXC.max(axis=(2, 3, 4)), expected_NK)
    assert np.flatnonzero(~faces.found_F).tolist() == np.flatnonzero(faces.probability_F == 0).tolist() == [11, 55]
    assert caplog.messages == ["a: 2 frames of clips could not be decoded, and are black"]


def test_aligned_images_need_no_picture(tmp_path: Path) -> None:
    for index in range(NUM_FRAMES):
        Image.new("RGB", (CROP_PX, CROP_PX), (index + 1,) * 3).save(tmp_path / f"{index + 1:05}.png")
    faces = CroppedFaces({index: tmp_path / f"{index + 1:05}.png" for index in range(NUM_FRAMES)}, NUM_FRAMES)
    taken: list[Any] = []
    sounds = (taken.append(item) or item for item in pieces() if isinstance(item, Sound))
    lazy = batches(faces, 8, 2, chain([NO_PICTURE], sounds))
    first_clips, first_S = next(lazy)
    assert len(taken) <= 0.6 * RATE_HZ / 1000 + 2  # the sound is read when it is needed
    rest = list(lazy)
    grid = ClipGrid.lay(TIMELINE, 8)
    clips_NKYXC = torch.cat([first_clips, *(clips for clips, _ in rest)])
    np.testing.assert_array_equal(clips_NKYXC[..., 5, 7, 1], grid.frame_NK + 1)
    np.testing.assert_array_equal(np.concatenate([first_S, *(sound_BS for _, sound_BS in rest)]), under(grid))
    assert len(taken) == len([item for item in pieces() if isinstance(item, Sound)])  # to its end, to count losses


def test_a_recording_without_picture_is_black_and_its_sound_is_not_held() -> None:
    faces, taken = Shown(), []
    sounds = (taken.append(item) or item for item in pieces() if isinstance(item, Sound))
    lazy = batches(faces, 8, 2, chain([NO_PICTURE], sounds))
    clips, sound_BS = next(lazy)
    assert len(taken) <= 0.6 * RATE_HZ / 1000 + 2
    assert not clips.any()
    np.testing.assert_array_equal(sound_BS, under(ClipGrid.lay(TIMELINE, 8))[:2])
    assert not any(clips.any() for clips, _ in lazy)
    assert faces.asked == []


@pytest.mark.parametrize(
    ("losses", "message", "share"),
    [
        (Losses(100, 5, 200, 10), None, None),
        (
            Losses(100, 6, 200, 0),
            r"6 of 100 video packets cannot be decoded, or not in their place: 6\.0%, 5\.0% are allowed",
            0.06,
        ),
        (
            Losses(100, 0, 200, 11),
            r"11 of 200 audio packets cannot be decoded, or not in their place: 5\.5%, 5\.0% are allowed",
            0.055,
        ),
        (Losses(0, 0, 0, 0), None, None),
    ],
)
def test_too_many_lost_packets_set_a_recording_aside(losses: Losses, message: str | None, share: float | None) -> None:
    if message is None:
        footage.check_losses(losses, 0.05)
        return
    with pytest.raises(RecordingError, match=message) as caught:
        footage.check_losses(losses, 0.05)
    assert (caught.value.reason, caught.value.share) == ("corrupt_packets", share)


def test_a_file_that_broke_off_while_it_was_read_is_set_aside() -> None:
    with pytest.raises(RecordingError, match="breaks off") as caught:
        footage.check_losses(Losses(100, 0, 200, 0, breaks_off=True), 1.0)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(("num_found", "min_share", "is_refused"), [(6, 0.1, True), (7, 0.1, False), (0, 0.0, False)])
def test_a_recording_must_show_a_face(num_found: int, min_share: float, is_refused: bool) -> None:
    faces: Any = Shown()
    faces.found_F[num_found:] = False
    if not is_refused:
        footage.check_faces(faces, min_share)
        return
    with pytest.raises(RecordingError, match=r"6 of 61 frames show a face: 9\.8%, 10\.0% are wanted") as caught:
        footage.check_faces(faces, min_share)
    assert (caught.value.reason, caught.value.share) == ("no_face", 6 / 61)


def test_faces_come_from_the_video_or_from_aligned_images(tmp_path: Path) -> None:
    detector: Any = object()
    sided = Recording("a", Path("a.mp4"), "train", "someone", face_side="left", crops=tmp_path)
    options = ExtractOptions(root=tmp_path, detect_every=4, detection="every")
    track = footage.open_faces(sided, NUM_FRAMES, detector, options)
    assert isinstance(track, FaceTrack)
    assert (track.detector, track.num_frames, track.detect_every, track.side) == (detector, NUM_FRAMES, 4, "left")
    assert track.detection == "every"
    with pytest.raises(RecordingError, match="holds no image"):
        footage.open_faces(sided, NUM_FRAMES, None, options)
    Image.new("RGB", (CROP_PX, CROP_PX), (9, 9, 9)).save(tmp_path / "00003.png")
    cropped = footage.open_faces(sided, NUM_FRAMES, None, options)
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


def test_aligned_images_are_read_no_further_than_the_clips_that_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("avfuse.crops._read_crop", lambda path: read.append(path) or np.zeros((112, 112, 3), np.uint8))
    faces = CroppedFaces({index: tmp_path / f"{index}.png" for index in range(NUM_FRAMES)}, NUM_FRAMES)
    reading = [NO_PICTURE, *(item for item in pieces() if isinstance(item, Sound)), NO_MORE]
    made = batches(faces, 4, 1, reading)
    for count in range(1, 5):
        next(made)
        assert len(read) == 4 * count
