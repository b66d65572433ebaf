import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import tiny
from conftest import beep, remux, repeat_stamps, write_video
from PIL import Image
from tiny import options
from tiny import tiny_encoders as tiny_encoders  # a fixture
from torchvision.transforms import functional
from toy import left_aside

from avfuse import media, networks, views
from avfuse import spec as spec_module
from avfuse.cache import FeatureCache
from avfuse.corpora.folder import FolderCorpus
from avfuse.engines.serial import SerialEngine
from avfuse.extract import ExtractProgress, ExtractSummary, extract
from avfuse.faces import FaceDetector
from avfuse.options import ExtractOptions
from avfuse.schema import Failure, Receipt, UsageError
from avfuse.spec import CacheSpec, Source
from avfuse.views import Jitter

FPS = 25
FACE = np.ascontiguousarray(skimage.data.astronaut()[0:240, 100:340])


def face_video(
    path: Path,
    frame_time_s: npt.NDArray[np.float64],
    image: Callable[[int], npt.NDArray[np.uint8]] = lambda i: FACE,
    beep_at_s: float = 1.0,
    **arguments: Any,
) -> Path:
    """Write a recording of a face; `beep_at_s` is on the video's clock, wherever the sound stream starts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound_start_s = arguments.get("sound_start_s", 0.0)
    sound = beep(beep_at_s - sound_start_s, float(frame_time_s[-1]) + 0.2 - sound_start_s)
    return write_video(path, frame_time_s, image, sound, **arguments)


def write_trace(path: Path, num_rows: int) -> npt.NDArray[np.float64]:
    trace = np.round(np.sin(np.arange(num_rows)[:, None] / [7, 11]), 4)
    path.with_suffix(".csv").write_text("valence,arousal\n" + "".join(f"{v},{a}\n" for v, a in trace))
    return trace


def only_recording(summary: ExtractSummary) -> Any:
    assert summary.failures == ()
    (recording,) = FeatureCache.open(Path(summary.store)).recordings()
    return recording


def maps(recording: Any, view: int = 0) -> npt.NDArray[np.float32]:
    return np.concatenate(list(recording.view(view).chunks())).astype(np.float32)


def files_of(store: Path) -> dict[Path, bytes]:
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}


CONSTANT = np.arange(60) / FPS
VARIABLE = np.cumsum(np.random.default_rng(3).choice([0.02, 0.04, 0.08], 60))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("frame_time_s", "sound_start_s"), [(CONSTANT, 0.0), (CONSTANT, 1.0), (VARIABLE, 0.0), (VARIABLE, 1.0)]
)
def test_flash_and_beep_arrive_in_the_right_clips(
    tmp_path: Path, frame_time_s: npt.NDArray[np.float64], sound_start_s: float, suffix: str
) -> None:
    flash_frame = 40
    flash_s = float(frame_time_s[flash_frame])
    dim = (FACE * 0.7).astype(np.uint8)
    face_video(
        tmp_path / "root" / f"a{suffix}",
        frame_time_s,
        lambda i: FACE if flash_frame <= i < flash_frame + 5 else dim,  # longer than any slot
        flash_s,
        sound_start_s=sound_start_s,
    )
    recording = only_recording(extract(options(tmp_path / "root", hop=1, detect_every=1)))
    end_s, fps = recording.array("end_time_s"), recording.fps
    # The last frame of a clip is the one at its end: the first clip to end in the flash is the one to see it there.
    last_NHW = maps(recording)[:, -1, 0, 0]
    lit = end_s[last_NHW > (last_NHW.min() + last_NHW.max()) / 2]
    assert len(lit) >= 1
    assert abs(lit[0] - flash_s) <= 1 / fps
    np.testing.assert_allclose(recording.array("frame_time_s"), frame_time_s, atol=1e-3)
    # The beep starts with the flash: it is inside a clip's sound once the clip ends after it.
    loud = recording.array("audio")
    heard = end_s[loud.max(axis=1) > 0.01]
    assert abs(heard[0] - flash_s) <= 1 / fps + 0.010
    # Which tenth of the window holds it follows from the distance to the clip's end, within 10 ms.
    window_s = 31 / fps
    for n in np.flatnonzero((end_s > flash_s + 0.06) & (end_s < flash_s + window_s - 0.01)):
        tenth = np.argmax(loud[n])
        start_s, stop_s = (end_s[n] - window_s + (tenth + np.array([0, 1])) * window_s / 10).tolist()
        assert start_s - 0.050 - 0.010 <= flash_s <= stop_s + 0.010


def test_what_is_stored_of_a_recording(tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = face_video(root / "train" / "someone" / "a.mp4", CONSTANT)
    trace = write_trace(path, 60)
    summary = extract(options(root))
    recording = only_recording(summary)
    assert (recording.name, recording.source.partition, recording.source.subject) == (
        "train/someone/a",
        "train",
        "someone",
    )
    ends = recording.array("end_frame")
    np.testing.assert_array_equal(ends, [7, 15, 23, 31, 39, 47, 55])
    np.testing.assert_allclose(recording.array("end_time_s"), ends / FPS)
    np.testing.assert_allclose(recording.array("frame_target"), trace, atol=1e-6)
    np.testing.assert_array_equal(recording.array("target"), recording.array("frame_target")[ends])
    assert recording.array("frame_face").all()
    assert (recording.array("frame_face_probability") > 0.9).all()
    assert (recording.array("face_share") == 1).all()
    assert recording.video.shape == (7, 8, 2, 2)
    assert (summary.num_recordings, summary.num_extracted, summary.num_present, summary.num_clips) == (1, 1, 0, 7)
    assert summary.face_share == 1


def test_a_frame_without_a_face_is_marked_and_black(tmp_path: Path) -> None:
    gone = range(24, 40)
    wall = np.full_like(FACE, 180)
    face_video(tmp_path / "root" / "a.mp4", CONSTANT, lambda i: wall if i in gone else FACE)
    recording = only_recording(extract(options(tmp_path / "root", detect_every=1)))
    found = recording.array("frame_face")
    np.testing.assert_array_equal(np.flatnonzero(~found), list(gone))
    assert (recording.array("frame_face_probability")[~found] == 0).all()
    frame_NK = recording.array("end_frame")[:, None] - 4 * np.arange(7, -1, -1)
    shown_NK = found[np.maximum(frame_NK, 0)]
    np.testing.assert_allclose(recording.array("face_share"), shown_NK.mean(axis=1))
    brightness_NK = maps(recording)[:, :, 0, 0]
    assert (brightness_NK[~shown_NK] == 0).all()
    assert (brightness_NK[shown_NK] > 0.2).all()


def test_running_again_does_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for name in ("a", "b", "c"):
        write_trace(face_video(root / "train" / f"{name}.mp4", CONSTANT), 60)
    opened: list[str] = []
    probe = media.probe
    monkeypatch.setattr(media, "probe", lambda path, on_packet: (opened.append(path.stem), probe(path))[1])
    assert extract(options(root)).num_extracted == 3
    assert opened == ["a", "b", "c"]
    opened.clear()
    again = extract(options(root))
    assert (again.num_extracted, again.num_present, opened) == (0, 3, [])
    store = FeatureCache.open(Path(again.store))
    store.remove("train/a")
    write_trace(root / "train" / "b.mp4", 59)  # another annotation is another recording
    face_video(root / "train" / "c.mp4", np.arange(70) / FPS)
    extract(options(root))
    assert opened == ["a", "b", "c"]


def test_the_cache_does_not_depend_on_how_the_work_was_cut(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        face_video(root / f"{name}.mp4", CONSTANT)
    whole = Path(extract(options(root, cache=tmp_path / "whole")).store)

    class Stopped(BaseException):
        pass

    def stop(progress: ExtractProgress) -> None:
        if progress.num_done == 1 and progress.share_under_way > 0:
            raise Stopped

    with pytest.raises(Stopped):
        extract(options(root, cache=tmp_path / "cut"), stop)
    assert left_aside(tmp_path / "cut" / "features" / whole.name) == []
    cut = Path(extract(options(root, cache=tmp_path / "cut", batch_size=3)).store)
    assert files_of(whole) == files_of(cut)


def test_settings_have_stores_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", np.arange(16) / FPS)
    changes: list[dict[str, Any]] = [
        {},
        {"hop": 4},
        {"detect_every": 2},
        {"min_face_px": 50},
        {"precision": "bf16"},
        {"dataset": "other"},
        {"video_option": ("scale=0.5",)},
        {"views": 2},
        {"views": 2, "flip": True},
        {"dtype": "uint8"},
        {"maps": "pooled"},
    ]
    stores = {extract(options(root, **change)).store for change in changes}
    assert len(stores) == len(changes)
    same: list[dict[str, Any]] = [{"batch_size": 3}, {"video_weights": "elsewhere"}, {"compress": "zstd"}]
    assert {extract(options(root, **change)).store for change in same} <= stores


def test_failures_are_typed_kept_and_retried(tmp_path: Path) -> None:
    root = tmp_path / "root"
    here = root / "train"
    write_trace(face_video(here / "good.mp4", CONSTANT), 60)
    (here / "text.mp4").write_text("not a video")
    (here / "empty.mp4").touch()
    write_video(here / "silent.mp4", CONSTANT, lambda i: FACE)
    write_video(here / "blind.mp4", [], sound_CS=beep(0.1, 1.0))
    write_trace(face_video(here / "mismatch.mp4", CONSTANT), 90)
    face_video(here / "header.mp4", CONSTANT)
    (here / "header.csv").write_text("0.1,0.2\n0.1,0.2\n")
    summary = extract(options(root))
    assert {item.recording: item.reason for item in summary.failures} == {
        "train/blind": "no_video_stream",
        "train/empty": "unreadable",
        "train/header": "annotation_invalid",
        "train/mismatch": "annotation_mismatch",
        "train/silent": "no_audio_stream",
        "train/text": "unreadable",
    }
    store = FeatureCache.open(Path(summary.store))
    assert store.ledger.failures() == list(summary.failures)
    assert [item.name for item in store.recordings()] == ["train/good"]
    shutil.copy(here / "good.mp4", here / "text.mp4")
    again = extract(options(root))
    assert (again.num_extracted, again.num_present, len(again.failures)) == (1, 1, 5)
    assert "train/text" not in {item.recording for item in store.ledger.failures()}


def test_an_unknown_error_is_kept_with_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    face_video(tmp_path / "root" / "b.mp4", CONSTANT)
    detect = FaceDetector.detect
    calls = []

    def fail_once(detector: FaceDetector, images: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("by nought")
        return detect(detector, images)

    monkeypatch.setattr(FaceDetector, "detect", fail_once)
    summary = extract(options(tmp_path / "root"))
    (failure,) = summary.failures
    assert (failure.recording, failure.reason, failure.message) == ("a", "unexpected", "ZeroDivisionError: by nought")
    assert summary.num_extracted == 1


def test_a_cache_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avfuse.writer.RecordingWriter.commit", full)
    with pytest.raises(OSError, match="No space left"):
        extract(options(tmp_path / "root"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"video_weights": "R3D_18_Weights.KINETICS400_V1", "video_encoder": "r3d"},
            r"looked for .*r3d_18-b3b3357e\.pth",
        ),
        ({"video_weights": "nothing.pt", "video_encoder": "r3d"}, "no such file"),
        ({"video_encoder": "tiny_audio"}, "encoder 'tiny_audio' is for audio, not for video"),
        ({"video_option": ("depth=3",)}, r"encoder 'tiny_video' has no argument 'depth'; it takes: scale=1\.0"),
        ({"device": "tpu"}, "device 'tpu' is not here"),
        ({"corpus": "aff_wild2"}, "annotations"),
        ({"corpus_option": ("root=elsewhere",)}, "corpus 'folder' has no argument 'root'"),
        ({"corpus_option": ("highest",)}, "'highest' is not KEY=VALUE"),
        ({"faces": "guessed"}, "unknown faces 'guessed'; known: detect, cropped"),
        ({"faces": "cropped"}, "corpus 'folder' has no aligned images of any recording .* --faces detect"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_video_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    face_video(tmp_path / "root" / "a.mp4", np.arange(9) / FPS)
    monkeypatch.setattr(media, "probe", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises(UsageError, match=message):
        extract(options(tmp_path / "root", **changes))
    assert not (tmp_path / "cache").exists()


def test_a_store_with_recordings_of_another_corpus_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        face_video(root / f"{name}.mp4", np.arange(16) / FPS)
    extract(options(root))
    (root / "b.mp4").unlink()
    with pytest.raises(
        UsageError, match="holds 1 recordings that this corpus does not have, such as b; name the data set"
    ):
        extract(options(root))
    assert extract(options(root, dataset="smaller")).num_extracted == 1


def test_features_of_what_a_file_was_before_do_not_stay(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        face_video(root / f"{name}.mp4", CONSTANT)
    store = FeatureCache.open(extract(options(root)).store)
    content = bytearray((root / "a.mp4").read_bytes())
    content[len(content) // 2] ^= 1  # as long as before
    (root / "a.mp4").write_bytes(content)
    (root / "b.mp4").write_text("no video any more")
    again = extract(options(root))
    assert (again.num_present, [item.recording for item in again.failures]) == (0, ["b"])
    assert store.names() == ["a"]
    (root / "a.mp4").rename(tmp_path / "elsewhere.mp4")  # a drive that is not mounted takes no features along
    with pytest.raises(UsageError, match="does not have, such as a"):
        extract(options(root))
    assert store.names() == ["a"]


def test_a_frame_that_cannot_be_decoded_shows_no_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    decode = media.Reading.__iter__
    monkeypatch.setattr(
        media.Reading, "__iter__", lambda reading: (item for item in decode(reading) if getattr(item, "index", 0) != 33)
    )
    recording = only_recording(extract(options(tmp_path / "root", hop=2)))
    assert np.flatnonzero(~recording.array("frame_face")).tolist() == [33]
    assert recording.array("face_share").min() == 7 / 8


# Two people in one video


def write_aff_wild2(root: Path, partition_of: dict[str, str], num_rows: int = 60) -> None:
    """Write the annotations of recordings, by the folder of their partition."""
    for name, folder in partition_of.items():
        path = root / "VA_Estimation_Challenge" / folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("valence,arousal\n" + "0.1,0.2\n" * num_rows)
    for folder in ("Train_Set", "Validation_Set"):
        (root / "VA_Estimation_Challenge" / folder).mkdir(parents=True, exist_ok=True)


def test_two_people_are_told_apart_by_their_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, dim = tmp_path / "root", (FACE * 0.5).astype(np.uint8)
    dim_has_left = range(40, 60)

    def image(i: int) -> npt.NDArray[np.uint8]:
        return np.hstack([FACE, np.full_like(FACE, 90) if i in dim_has_left else dim])

    video = face_video(root / "batch1" / "pair.mp4", CONSTANT, image)
    write_aff_wild2(root, {"pair_left": "Train_Set", "pair_right": "Train_Set"})
    digested: list[Path] = []
    sha256 = spec_module._sha256
    monkeypatch.setattr(spec_module, "_sha256", lambda path, on_read: (digested.append(path), sha256(path, on_read))[1])
    summary = extract(options(root, corpus="aff_wild2", detect_every=1))
    assert summary.failures == ()
    assert digested.count(video) == 1
    left, right = FeatureCache.open(summary.store).recordings()
    assert [item.name for item in (left, right)] == ["pair_left", "pair_right"]
    assert [item.source.face_side for item in (left, right)] == ["left", "right"]
    assert [item.source.file for item in (left, right)] == ["batch1/pair.mp4"] * 2
    assert left.array("frame_face").all()
    assert np.flatnonzero(~right.array("frame_face")).tolist() == list(dim_has_left)
    np.testing.assert_array_equal(left.array("audio"), right.array("audio"))
    together = left.array("end_frame") < dim_has_left.start
    brightness = [maps(item)[together].mean() for item in (left, right)]
    assert brightness[1] / brightness[0] == pytest.approx(0.5, abs=0.03)  # the same picture, half as bright
    alone = [item for item in maps(right)[-1, :, 0, 0].tolist() if item == 0]
    assert len(alone) == 4  # of the frames 27, 31, ..., 55 of the last clip those from 43 on


# Aligned images


def write_crops(folder: Path, level_of: dict[int, int], suffix: str = ".png", size_px: int = 112) -> None:
    """Write grey images of the frames, by the frame's index from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for frame, level in level_of.items():
        Image.new("RGB", (size_px, size_px), (level,) * 3).save(folder / f"{frame + 1:05d}{suffix}")


def cropped_corpus(root: Path, **level_of: dict[int, int]) -> ExtractOptions:
    """Write a corpus of videos without a face and of aligned images; return the options that read them."""
    wall = np.full((64, 64, 3), 255, np.uint8)
    for name, levels in level_of.items():
        face_video(root / "videos" / f"{name}.mp4", CONSTANT, lambda i: wall)
        if levels:
            write_crops(root / "cropped_aligned" / name, levels)
    write_aff_wild2(root, dict.fromkeys(level_of, "Train_Set"))
    return options(root, corpus="aff_wild2", faces="cropped")


def test_aligned_images_stand_in_for_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {i: 3 * i + 20 for i in range(60) if i not in (3, 30, 31, 59)}
    given = cropped_corpus(tmp_path / "root", a=levels)
    monkeypatch.setattr(networks, "FaceDetector", lambda *_: pytest.fail("a detector was made"))
    monkeypatch.setattr(media, "_Picture", lambda *given: pytest.fail(f"{given[1]} was decoded"))
    recording = only_recording(extract(given))
    frame_NK = np.maximum(recording.array("end_frame")[:, None] - 4 * np.arange(7, -1, -1), 0)
    expected_NK = np.vectorize(lambda frame: levels.get(frame, 0))(frame_NK) / 255
    np.testing.assert_allclose(maps(recording)[:, :, 0, 0], expected_NK, atol=1e-3)  # a half-precision number
    assert np.flatnonzero(~recording.array("frame_face")).tolist() == [3, 30, 31, 59]
    np.testing.assert_array_equal(recording.array("frame_face_probability"), recording.array("frame_face"))
    found_NK = np.isin(frame_NK, list(levels))
    np.testing.assert_allclose(recording.array("face_share"), found_NK.mean(axis=1))
    assert recording.array("audio").max() > 0.01


def test_a_changed_image_is_another_recording(tmp_path: Path) -> None:
    given = cropped_corpus(tmp_path / "root", a=dict.fromkeys(range(60), 80), b=dict.fromkeys(range(60), 90))
    assert extract(given).num_extracted == 2
    assert extract(given).num_present == 2
    write_crops(tmp_path / "root" / "cropped_aligned" / "b", {30: 200})
    again = extract(given)
    assert (again.num_extracted, again.num_present) == (1, 1)
    sources = {item.name: item.source for item in FeatureCache.open(again.store).recordings()}
    assert all(source.crops_sha256 for source in sources.values())


def test_settings_of_the_detector_do_not_shape_a_store_of_aligned_images(tmp_path: Path) -> None:
    given = cropped_corpus(tmp_path / "root", a=dict.fromkeys(range(60), 80))
    stores = {
        extract(dataclasses.replace(given, detect_every=every, min_face_px=size_px)).store
        for every, size_px in ((4, 40), (2, 50))
    }
    assert len(stores) == 1
    (store,) = stores
    assert FeatureCache.open(store).spec.detector["detector"] == "cropped"
    detected = extract(dataclasses.replace(given, faces="detect", min_face_share=0.0))
    assert detected.store not in stores
    assert only_recording(detected).source.crops_sha256 is None


def test_a_recording_without_aligned_images_fails(tmp_path: Path) -> None:
    summary = extract(cropped_corpus(tmp_path / "root", a=dict.fromkeys(range(60), 80), b={}))
    (failure,) = summary.failures
    assert (failure.recording, failure.reason, summary.num_extracted) == ("b", "missing_crops", 1)
    assert "no folder of aligned images of b" in failure.message


def test_aligned_images_of_another_video_or_of_nothing_fail(tmp_path: Path) -> None:
    root = tmp_path / "root"
    given = cropped_corpus(root, a=dict.fromkeys(range(65), 80), b=dict.fromkeys(range(66), 80), c={0: 80, 1: 80})
    for path in (root / "cropped_aligned" / "c").iterdir():
        path.write_bytes(b"no image")
    summary = extract(given)
    assert [(item.recording, item.reason) for item in summary.failures] == [
        ("b", "missing_crops"),
        ("c", "missing_crops"),
    ]
    assert "66 images for 60 frames: are they of this video?" in summary.failures[0].message
    assert "none of 2 aligned images shows a frame, such as " in summary.failures[1].message
    assert FeatureCache.open(summary.store).names() == ["a"]


# Partitions


def test_leaks_are_refused_unless_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    for number, subject in enumerate(("s1", "s2", "s3")):
        for second, partition in enumerate(("train", "validation")):
            path = root / partition / subject / f"{partition}.mp4"
            face_video(path, np.arange(9) / FPS, beep_at_s=0.03 * (2 * number + second))
    face_video(root / "train" / "s4" / "a.mp4", np.arange(11) / FPS)
    (root / "test" / "s5").mkdir(parents=True)
    shutil.copy(root / "train" / "s4" / "a.mp4", root / "test" / "s5" / "b.mp4")
    probe = media.probe
    monkeypatch.setattr(media, "probe", lambda path: pytest.fail(f"{path} was opened"))
    named = r"two partitions \(4\) .*subject s1 is in train \(.*subject s2 .*subject s3 .*and 1 more; leave each"
    with pytest.raises(UsageError, match=named):
        extract(options(root))
    for folder in (root / "train", root / "validation"):
        for subject in ("s1", "s2"):
            shutil.rmtree(folder / subject)
    shutil.rmtree(root / "validation")
    with pytest.raises(UsageError, match=r"two partitions \(1\) .*the content of .*s4/a\.mp4 is in .*--allow-leaks"):
        extract(options(root))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(media, "probe", probe)
    with caplog.at_level(logging.WARNING):
        assert extract(options(root, allow_leaks=True)).num_extracted == 3
    assert ["s4/a.mp4" in message and "too good" in message for message in caplog.messages] == [True]


# Rows and frames


@pytest.mark.parametrize(("num_rows", "expected"), [(60, (0, 0, 0)), (62, (1, 2, 0)), (58, (1, 0, 2)), (61, (1, 1, 0))])
def test_rows_that_meet_no_frame_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_rows: int, expected: tuple[int, int, int]
) -> None:
    trace = write_trace(face_video(tmp_path / "root" / "train" / "a.mp4", CONSTANT), num_rows)
    with caplog.at_level(logging.WARNING):
        summary = extract(options(tmp_path / "root"))
    assert (summary.num_uneven, summary.num_rows_dropped, summary.num_frames_without_row) == expected
    kept = min(num_rows, 60)
    target = only_recording(summary).array("frame_target")
    np.testing.assert_allclose(target[:kept], trace[:kept], atol=1e-6)
    assert np.isnan(target[kept:]).all()
    _, dropped, without = expected
    told = [
        f"train/a: {num_rows} annotation rows for 60 frames: {dropped} rows that rate no frame are dropped, "
        f"{without} frames without a row are unrated (row i rates frame i)"
    ]
    assert caplog.messages == (told if num_rows != 60 else [])
    again = extract(options(tmp_path / "root"))
    assert (again.num_present, again.num_uneven) == (1, 0)  # of what was extracted now


def test_rows_with_times_are_counted_by_their_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = face_video(tmp_path / "root" / "train" / "a.mp4", CONSTANT)  # frames from 0 to 2.36 s
    rows = "".join(f"{time_s:.2f},0.5\n" for time_s in np.arange(0.1, 2.75, 0.1))
    path.with_suffix(".csv").write_text(f"time,arousal\n{rows}")
    with caplog.at_level(logging.WARNING):
        summary = extract(options(tmp_path / "root"))
    # Towards 2.4 s the last frame is interpolated, 2.5 to 2.7 s rate nothing; 0 to 0.08 s lie before the first row.
    assert (summary.num_uneven, summary.num_rows_dropped, summary.num_frames_without_row) == (1, 3, 3)
    assert "rows rate frames by their times" in caplog.text
    np.testing.assert_array_equal(np.isnan(only_recording(summary).array("frame_target")[:, 0]), np.arange(60) < 3)


def test_times_of_ratings_count_from_what_a_player_shows(tmp_path: Path) -> None:
    """A transport stream begins at 1.4 s on its own clock; the trace of who watched it begins at 0."""
    root, folder = tmp_path / "root", tmp_path / "root" / "train"
    made = face_video(tmp_path / "made.ts", CONSTANT, video_options={"bf": "0"})
    folder.mkdir(parents=True)
    remux(made, folder / "a.ts", shift_s=1.4)
    rows = "".join(f"{time_s:.1f},{np.sin(time_s):.6f}\n" for time_s in np.arange(0, 2.75, 0.1))
    (folder / "a.csv").write_text(f"time,arousal\n{rows}")
    summary = extract(options(root))
    # Frames are shown from 0.023 to 2.383 s after the start: of the rows from 0 to 2.7 s, the last three rate nothing.
    assert (summary.num_uneven, summary.num_rows_dropped, summary.num_frames_without_row) == (1, 3, 0)
    recording = only_recording(summary)
    lead_s = 1024 / 44_100  # of the sound's codec, with which the recording begins
    np.testing.assert_allclose(recording.array("frame_time_s"), 1.4 + lead_s + CONSTANT, atol=1e-4)
    target_F = recording.array("frame_target")[:, 0]
    # Linear interpolation errs by h^2/8 max|f''| = 1.25e-3; a shift of 1.4 s would by up to 1.
    np.testing.assert_allclose(target_F, np.sin(lead_s + CONSTANT), atol=2e-3)
    np.testing.assert_array_equal(recording.array("target"), target_F[recording.array("end_frame"), None])


def test_rows_behind_repeated_time_stamps_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, path = tmp_path / "root", tmp_path / "root" / "train" / "a.mkv"
    made = face_video(tmp_path / "made.mkv", CONSTANT, video_options={"bf": "0"})
    path.parent.mkdir(parents=True)
    repeat_stamps(made, path, (20, 40))
    write_trace(path, 58)
    with caplog.at_level(logging.WARNING):
        extract(options(root))
    (message,) = caplog.messages
    assert message.startswith("train/a: 2 frames have the time stamp of another, or none; rows by frame behind them ")
    path.with_suffix(".csv").write_text("time,arousal\n0,0.1\n2.36,0.5\n")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        extract(options(root, dataset="timed"))
    assert caplog.messages == []


# Arguments of a corpus


def test_arguments_of_the_corpus_reach_it_and_its_ranges_the_store(tmp_path: Path) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", np.arange(16) / FPS)
    (root / "ratings.csv").write_text("recording,subject,partition,start,end,value\na,s,train,0,1,6\n")

    def spec_of(*assignments: str) -> CacheSpec:
        return FeatureCache.open(extract(options(root, corpus="fatigue", corpus_option=assignments)).store).spec

    assert spec_of().ranges == ((0.0, 10.0),)
    assert spec_of("highest=7").ranges == ((0.0, 7.0),)
    assert spec_of("highest=10").fingerprint == spec_of().fingerprint
    summary = extract(options(root, corpus="fatigue", corpus_option=("highest=5",)))
    assert [item.reason for item in summary.failures] == ["annotation_invalid"]


def test_progress_counts_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        face_video(root / f"{name}.mp4", CONSTANT)
    (root / "c.mp4").touch()
    seen: list[ExtractProgress] = []
    extract(options(root, batch_size=3), seen.append)
    done = [item.num_done + item.share_under_way for item in seen]
    assert done == sorted(done)
    assert dataclasses.astuple(seen[-1])[:4] == (3, 3, 14, 1)
    assert [item.num_clips for item in seen] == sorted(item.num_clips for item in seen)


def test_another_draw_of_partitions_costs_no_features(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(4):
        face_video(root / f"s{number}" / f"{number}.mp4", np.arange(9) / FPS, beep_at_s=0.05 * number)
        write_trace(root / f"s{number}" / f"{number}", 9)
    partitions = []
    for draw in ("validation=0.25", "validation=0.75"):
        summary = extract(options(root, corpus="folder", corpus_option=(draw,)))
        partitions.append([item.source.partition for item in FeatureCache.open(summary.store).recordings()])
    assert [part.count("validation") for part in partitions] == [1, 3]
    assert (summary.num_extracted, summary.num_present) == (0, 4)


# Views


def test_further_views_are_the_clips_with_drawn_brightness_and_contrast(tmp_path: Path) -> None:
    levels = {i: 3 * i + 20 for i in range(60) if i not in (3, 30, 31, 59)}
    given = cropped_corpus(tmp_path / "root", a=levels)
    plain = only_recording(extract(given))
    summary = extract(dataclasses.replace(given, views=3))
    recording = only_recording(summary)
    assert (plain.num_views, recording.num_views, summary.num_views, summary.num_clips) == (1, 3, 3, 7)
    alone, among = ({name: item.arrays[name] for name in plain.arrays} for item in (plain, recording))
    assert alone == among  # names, shapes and digests: sound, clock and the first view do not know of the others
    first_NK = maps(recording)[:, :, 0, 0] * 255
    shown_NK = first_NK > 0
    for view in (1, 2):
        view_NK = maps(recording, view)[:, :, 0, 0] * 255
        assert (view_NK[~shown_NK] == 0).all()  # frames without an aligned image
        for clip in range(7):
            drawn = Jitter.draw("a", clip, view, False)
            # Pillow's levels are whole, and contrast leaves an image of one level alone; halves have 11 bits.
            level_K = first_NK[clip, shown_NK[clip]].round()
            expected_K = np.floor(np.float32(drawn.brightness) * level_K.astype(np.float32))
            np.testing.assert_allclose(view_NK[clip, shown_NK[clip]], expected_K, atol=0.1)
            ratio = float(view_NK[clip].mean() / first_NK[clip].mean())
            assert ratio == pytest.approx(drawn.brightness, abs=1 / float(level_K.mean()))
            assert 0.78 < ratio < 1.22


def test_contrast_and_mirroring_of_a_view_reach_the_encoder(tmp_path: Path) -> None:
    given = cropped_corpus(tmp_path / "root", a={0: 1})
    crop = np.full((112, 112, 3), 100, np.uint8)
    crop[:, :56] = 60  # darker on the left
    for frame in range(60):
        Image.fromarray(crop).save(tmp_path / "root" / "cropped_aligned" / "a" / f"{frame + 1:05d}.png")
    summary = extract(dataclasses.replace(given, views=4, flip=True, video_encoder="tiny_quarters"))
    recording = only_recording(summary)
    assert FeatureCache.open(summary.store).spec.views == views.describe(4, True)
    sides = set()
    for view in (1, 2, 3):
        map_NHW = maps(recording, view)[:, 0] * 255
        for clip in range(7):
            drawn = Jitter.draw("a", clip, view, True)
            image: Any = functional.adjust_brightness(Image.fromarray(crop), drawn.brightness)
            dark, bright = np.asarray(functional.adjust_contrast(image, drawn.contrast))[0, [0, -1], 0]
            expected_W = [bright, dark] if drawn.is_mirrored else [dark, bright]
            np.testing.assert_allclose(map_NHW[clip], [expected_W, expected_W], atol=0.1)
            sides.add(drawn.is_mirrored)
    assert sides == {False, True}


def test_views_do_not_depend_on_how_the_work_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    given = cropped_corpus(root, a={i: i + 9 for i in range(60)}, b={i: 99 - i for i in range(60)})
    given = dataclasses.replace(given, views=3, flip=True)
    batches: list[int] = []
    forward = tiny.BrightnessEncoder.forward
    monkeypatch.setattr(
        tiny.BrightnessEncoder, "forward", lambda self, clips: (batches.append(len(clips)), forward(self, clips))[1]
    )
    whole = Path(extract(given).store)
    assert batches == [8, 8, 6] * 2  # of 7 clips in 3 views: full ones, and the rest padded to an even number
    batches.clear()
    later = dataclasses.replace(given, cache=tmp_path / "later", batch_size=2)
    extract(later)
    store = FeatureCache.find(tmp_path / "later")
    assert batches == [2] * 22  # 21 of each recording: the last is padded
    assert files_of(whole) == files_of(Path(store.path))
    store.remove("a")  # another order
    assert extract(later).num_extracted == 1
    assert files_of(whole) == files_of(Path(store.path))


# What is kept of a map


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("maps_kept", ["whole", "pooled"])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_maps_are_kept_as_the_knobs_say(tmp_path: Path, dtype: str, maps_kept: str, num_views: int) -> None:
    crop = np.arange(112 * 112 * 3, dtype=np.uint8).reshape(112, 112, 3)
    crop[:56] //= 2
    given = cropped_corpus(tmp_path / "root", a={0: 1})
    for frame in range(60):
        Image.fromarray(crop - crop // 60 * frame).save(
            tmp_path / "root" / "cropped_aligned" / "a" / f"{frame + 1:05d}.png"
        )
    given = dataclasses.replace(given, video_encoder="tiny_quarters", views=num_views)
    expected = only_recording(extract(dataclasses.replace(given, dataset="plain")))
    summary = extract(dataclasses.replace(given, dtype=dtype, maps=maps_kept))
    recording, spec = only_recording(summary), FeatureCache.open(summary.store).spec
    shape = (8, 1, 1) if maps_kept == "pooled" else (8, 2, 2)
    assert (spec.storage, spec.video_shape) == ({"dtype": dtype, "maps": maps_kept}, shape)
    for view in range(num_views):
        stored = recording.view(view)
        assert (stored.shape, stored.dtype) == ((7, *shape), np.dtype(dtype))
        values, whole = maps(recording, view), maps(expected, view)
        if maps_kept == "pooled":
            whole = whole.mean(axis=(2, 3), keepdims=True)
        error = 2e-4  # halves below 1 have eleven bits
        if dtype == "uint8":
            scale_C, offset_C = (recording.array(f"video_{name}")[:, None, None] for name in ("scale", "offset"))
            values, error = values * scale_C + offset_C, error + scale_C.max() / 2
        np.testing.assert_allclose(values, whole, atol=error, rtol=0)


@pytest.mark.parametrize("compress", ["zstd", "pcodec"])
def test_compression_is_no_other_store_and_changes_no_value(tmp_path: Path, compress: str) -> None:
    pytest.importorskip("pcodec" if compress == "pcodec" else "zarr")
    given = cropped_corpus(tmp_path / "root", a={i: i + 9 for i in range(60)}, b={i: 99 - i for i in range(60)})
    store = FeatureCache.open(extract(given).store)
    before = {item.name: item.digest for item in store.recordings()}
    store.remove("b")
    again = extract(dataclasses.replace(given, compress=compress))
    assert (again.store, again.num_present, again.num_extracted) == (store.path, 1, 1)
    recordings = {item.name: item for item in FeatureCache.open(again.store).recordings()}
    assert {name: item.digest for name, item in recordings.items()} == before
    assert [item.video.is_mapped for item in recordings.values()] == [True, False]
    recordings["b"].check(0)


def test_a_compression_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avfuse.encoding.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'avfuse\[pcodec\]'"):
        extract(options(tmp_path / "nowhere", compress="pcodec"))
    with pytest.raises(UsageError, match="pcodec compresses float16, not uint8"):
        extract(options(tmp_path / "nowhere", compress="pcodec", dtype="uint8"))


def test_failures_of_what_left_the_corpus_are_forgotten(tmp_path: Path) -> None:
    root = tmp_path / "root"
    face_video(root / "good.mp4", CONSTANT)
    for name in ("bad", "worse"):
        (root / f"{name}.mp4").write_text("not a video")
    store = FeatureCache.open(extract(options(root)).store)
    assert [failure.recording for failure in store.ledger.failures()] == ["bad", "worse"]
    (root / "bad.mp4").unlink()
    summary = extract(options(root, shard="1/2"))
    assert [failure.recording for failure in store.ledger.failures()] == ["worse"]
    assert summary.share == "1/2"


def test_names_that_are_no_unicode_or_hold_control_characters(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in (b"caf\xe9", b"a\nb\x1b[31m"):
        video = face_video(root / "video.mp4", CONSTANT)
        video.rename(root / os.fsdecode(name + b".mp4"))
    summary = extract(options(root))
    assert (summary.failures, summary.num_extracted) == ((), 2)
    found = FeatureCache.open(summary.store).recordings()
    assert [item.name for item in found] == ["a\nb\x1b[31m", r"caf\xe9"]
    assert found[1].source.file == r"caf\xe9.mp4"
    assert extract(options(root)).num_present == 2


def test_what_killed_its_workers_does_not_hold_up_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", CONSTANT)
    face_video(root / "b.mp4", CONSTANT)
    killed = Failure("a", "worker_died", "it died")

    class Deadly(SerialEngine):
        """Takes the worker of one recording for dead."""

        def run(self, job: Any, recordings: Any, num_workers: int, on_progress: Any) -> Any:
            yield Receipt("a", "failed", failure=killed, is_recorded=False)
            yield from super().run(job, recordings[1:], num_workers, on_progress)

    monkeypatch.setattr("avfuse.preparation._make_engine", lambda options: Deadly())
    store = FeatureCache.open(extract(options(root)).store)
    assert store.ledger.find("a", store_source(root, "a")) == killed
    over, of = threading.Event(), Source.of
    monkeypatch.setattr("avfuse.extract.SOURCE_S", 0.05)
    monkeypatch.setattr(Source, "of", lambda *rest, **more: (over.wait(60), of(*rest, **more))[1])
    try:
        monkeypatch.setattr("avfuse.worker.Source", SimpleNamespace(of=of))
        assert extract(options(root)).num_present == 1
    finally:
        over.set()
    assert store.ledger.failures() == [killed]
    assert store.ledger.find("a", store_source(root, "a")) is None  # so it is tried again


def store_source(root: Path, name: str) -> Source:
    """Return what a recording of a folder is made from."""
    (recording,) = (item for item in FolderCorpus(root).recordings() if item.name == name)
    return Source.of(recording, root)
