import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import tiny
from conftest import beep, write_video

from avfuse import extract as extract_module
from avfuse import registry
from avfuse.cache import FeatureCache
from avfuse.extract import ExtractProgress, ExtractSummary, extract
from avfuse.faces import FaceDetector
from avfuse.options import ExtractOptions
from avfuse.schema import UsageError

FPS = 25
FACE = np.ascontiguousarray(skimage.data.astronaut()[0:240, 100:340])


@pytest.fixture(autouse=True)
def tiny_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in tiny.ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)


def options(root: Path, **changes: Any) -> ExtractOptions:
    values = {
        "root": root,
        "corpus": "folder",
        "cache": root.parent / "cache",
        "video_encoder": "tiny_video",
        "audio_encoder": "tiny_audio",
        "video_weights": "none",
        "audio_weights": "none",
        "device": "cpu",
        "precision": "fp32",
    }
    return ExtractOptions(**{**values, **changes})


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


def maps(recording: Any) -> npt.NDArray[np.float32]:
    runs = [run for _, run in recording.video.strided(0, 1, recording.num_clips)]
    return np.concatenate(runs).astype(np.float32)


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
    probe = extract_module.media.probe
    monkeypatch.setattr(extract_module.media, "probe", lambda path: (opened.append(path.stem), probe(path))[1])
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
        if progress.num_done == 1 and progress.share_of_recording > 0:
            raise Stopped

    with pytest.raises(Stopped):
        extract(options(root, cache=tmp_path / "cut"), stop)
    assert list((tmp_path / "cut" / "features" / whole.with_suffix(".tmp").name).iterdir()) == []
    cut = Path(extract(options(root, cache=tmp_path / "cut", batch_size=3)).store)
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert files == {path.relative_to(cut): path.read_bytes() for path in cut.rglob("*") if path.is_file()}


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
    ]
    stores = {extract(options(root, **change)).store for change in changes}
    assert len(stores) == len(changes)
    same: list[dict[str, Any]] = [{"batch_size": 3}, {"video_weights": "elsewhere"}]
    assert {extract(options(root, **change)).store for change in same} <= stores


def test_failures_are_typed_kept_and_retried(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_trace(face_video(root / "good.mp4", CONSTANT), 60)
    (root / "text.mp4").write_text("not a video")
    (root / "empty.mp4").touch()
    write_video(root / "silent.mp4", CONSTANT, lambda i: FACE)
    write_video(root / "blind.mp4", [], sound_CS=beep(0.1, 1.0))
    write_trace(face_video(root / "mismatch.mp4", CONSTANT), 90)
    face_video(root / "header.mp4", CONSTANT)
    (root / "header.csv").write_text("0.1,0.2\n0.1,0.2\n")
    summary = extract(options(root))
    assert {item.recording: item.reason for item in summary.failures} == {
        "blind": "no_video_stream",
        "empty": "unreadable",
        "header": "annotation_invalid",
        "mismatch": "annotation_mismatch",
        "silent": "no_audio_stream",
        "text": "unreadable",
    }
    store = FeatureCache.open(Path(summary.store))
    assert store.failures() == list(summary.failures)
    assert [item.name for item in store.recordings()] == ["good"]
    shutil.copy(root / "good.mp4", root / "text.mp4")
    again = extract(options(root))
    assert (again.num_extracted, again.num_present, len(again.failures)) == (1, 1, 5)
    assert "text" not in {item.recording for item in store.failures()}


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

    monkeypatch.setattr("avfuse.cache.RecordingWriter.commit", full)
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
    ],
)
def test_what_cannot_be_used_is_refused_before_a_video_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    face_video(tmp_path / "root" / "a.mp4", np.arange(9) / FPS)
    monkeypatch.setattr(extract_module.media, "probe", lambda path: pytest.fail(f"{path} was opened"))
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
        face_video(root / f"{name}.mp4", np.arange(16) / FPS)
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
    read_frames = extract_module.media.read_frames
    monkeypatch.setattr(
        extract_module.media, "read_frames", lambda *given: (item for item in read_frames(*given) if item[0] != 33)
    )
    recording = only_recording(extract(options(tmp_path / "root", hop=2)))
    assert np.flatnonzero(~recording.array("frame_face")).tolist() == [33]
    assert recording.array("face_share").min() == 7 / 8


def test_progress_counts_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        face_video(root / f"{name}.mp4", CONSTANT)
    (root / "c.mp4").touch()
    seen: list[ExtractProgress] = []
    extract(options(root, batch_size=3), seen.append)
    done = [item.num_done + item.share_of_recording for item in seen]
    assert done == sorted(done)
    assert dataclasses.astuple(seen[-1])[:4] == (3, 3, 14, 1)
    assert [item.num_clips for item in seen] == sorted(item.num_clips for item in seen)
