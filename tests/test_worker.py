import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_files
import numpy as np
import pytest
import torch
from conftest import beep, files_limited, write_video
from test_extract import CONSTANT, FACE, FPS, cropped_corpus, face_video, maps, write_trace
from test_gpu_decoding import is_there, skip_without_cuda
from tiny import options
from tiny import tiny_encoders as tiny_encoders  # a fixture
from toy import left_aside

from avfuse import extract as stage
from avfuse import gpu_decoding
from avfuse import worker as worker_module
from avfuse.cache import FeatureCache
from avfuse.dataset import WindowedPartition
from avfuse.engines import Worker
from avfuse.extract import extract
from avfuse.media import Reading
from avfuse.moments import feature_moments
from avfuse.options import ExtractOptions
from avfuse.preparation import prepare
from avfuse.schema import Receipt, Recording, UsageError
from avfuse.synthesis import Script, render_frames, smooth_trace

ALLOW_MORE_FILES = "allow more with ulimit -n, or take fewer --num-workers"
Process = Callable[[Recording], Receipt]


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture
def opened() -> Iterator[Callable[[ExtractOptions], tuple[Worker, FeatureCache, dict[str, Recording]]]]:
    """Return what starts a worker of an extraction; each is closed in the end."""
    workers = []

    def start(given: ExtractOptions) -> tuple[Worker, FeatureCache, dict[str, Recording]]:
        ready = prepare(given)
        cache = FeatureCache.create(given.cache or "", ready.spec, ready.networks.provenance)
        workers.append(ready.job(cache.path)(0))
        return workers[-1], cache, {recording.name: recording for recording in ready.share}

    yield start
    for worker in workers:
        worker.close()


def test_processing_a_recording_again_does_nothing(tmp_path: Path, opened: Any) -> None:
    write_trace(face_video(tmp_path / "root" / "train" / "a.mp4", CONSTANT), 60)
    worker, cache, recordings = opened(options(tmp_path / "root"))
    (recording,) = recordings.values()
    first = worker.process(recording, nothing)
    assert (first.outcome, first.num_clips, first.face_share) == ("extracted", 7, 1.0)
    assert first.rows is not None
    assert first.rows.num_rows == 60
    digest = cache.recording("train/a").digest
    assert worker.process(recording, nothing) == Receipt("train/a", "present")
    assert FeatureCache.open(cache.path).recording("train/a").digest == digest


def test_the_networks_wait_until_a_recording_needs_them(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", CONSTANT)
    extract(options(root))
    worker, _, recordings = opened(options(root))
    monkeypatch.setattr(worker_module.Networks, "make", lambda *_: pytest.fail("networks were made"))
    assert worker.process(recordings["a"], nothing).outcome == "present"


# Failures


def test_what_failed_is_not_tried_again_while_its_files_are_the_same(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    face_video(root / "good.mp4", CONSTANT)
    write_video(root / "silent.mp4", CONSTANT, lambda i: FACE)
    first = extract(options(root))
    assert [(item.recording, item.reason) for item in first.failures] == [("silent", "no_audio_stream")]
    assert first.num_set_aside == 0
    with monkeypatch.context() as patch:
        patch.setattr(worker_module.media, "probe", lambda path: pytest.fail(f"{path} was opened"))
        second = extract(options(root))
    assert (second.failures, second.num_set_aside) == (first.failures, 1)
    retried = extract(options(root, retry_failed=True))
    assert (retried.failures, retried.num_set_aside) == (first.failures, 0)
    shutil.copy(root / "good.mp4", root / "silent.mp4")
    third = extract(options(root))
    assert (third.num_extracted, third.failures) == (1, ())
    assert FeatureCache.open(third.store).ledger.failures() == []


def test_the_first_failure_stops_a_run_that_is_to_be_stopped(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "c"):
        face_video(root / f"{name}.mp4", CONSTANT)
    (root / "b.mp4").write_text("not a video")
    summary = extract(options(root, on_error="stop"))
    assert (summary.num_extracted, summary.num_left, len(summary.failures)) == (1, 1, 1)
    assert extract(options(root, on_error="stop")).num_extracted == 1  # what failed before fails no run again


@pytest.mark.parametrize(("max_corrupt", "reason"), [(0.05, "corrupt_packets"), (0.5, None)])
def test_lost_packets_are_counted_and_allowed_up_to_a_share(
    tmp_path: Path, max_corrupt: float, reason: str | None
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    bad_files.FILES["damaged_picture.mp4"][1](root / "a.mp4")
    summary = extract(options(root, max_corrupt=max_corrupt, min_face_share=0.0))
    cache = FeatureCache.open(summary.store)
    if reason is None:
        (recording,) = cache.recordings()
        losses = recording.losses
        assert losses["num_video_packets"] == bad_files.NUM_FRAMES
        assert 0.05 < losses["num_video_lost"] / losses["num_video_packets"] <= 0.5
    else:
        (failure,) = summary.failures
        assert failure.reason == reason
        assert failure.share is not None
        assert 0.05 < failure.share <= 0.5
        assert cache.ledger.failures() == [failure]


def test_too_few_faces_are_a_reason(tmp_path: Path) -> None:
    root = tmp_path / "root"
    wall = np.full((240, 240, 3), 128, np.uint8)
    face_video(root / "a.mp4", CONSTANT, lambda i: FACE if i < 15 else wall)
    (failure,) = extract(options(root, min_face_share=0.5)).failures
    assert (failure.recording, failure.reason) == ("a", "no_face")
    assert failure.share == 12 / 60  # the face is seen at frame 11, and not at frame 15, where it is looked for next
    assert extract(options(root, min_face_share=0.1, retry_failed=True)).failures == ()


def test_a_cache_that_fails_stops_the_worker_and_leaves_nothing_half(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    worker, cache, recordings = opened(options(tmp_path / "root"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/where/it/is")

    with monkeypatch.context() as patch:
        patch.setattr("avfuse.writer.RecordingWriter.append", full)
        receipt = worker.process(recordings["a"], nothing)
    assert (receipt.outcome, receipt.error) == ("stopped", (28, "No space left on device", "/where/it/is"))
    assert (cache.names(), cache.ledger.failures(), left_aside(cache.path)) == ([], [], [])
    assert worker.process(recordings["a"], nothing).outcome == "extracted"


def test_a_gpu_that_has_failed_is_no_recordings_fault(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    worker, cache, recordings = opened(options(tmp_path / "root"))

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    for is_broken, outcome in ((True, "stopped"), (False, "failed")):
        with monkeypatch.context() as patch:
            patch.setattr(worker_module.footage, "clips", fail)
            patch.setattr(worker_module, "is_broken", lambda device, told=is_broken: told)
            receipt = worker.process(recordings["a"], nothing)
        assert receipt.outcome == outcome
        assert len(cache.ledger.failures()) == (not is_broken)
        if receipt.error is not None:
            assert receipt.error[0] == 0
            assert "cpu has failed and computes nothing any more (CUDA error: an illegal" in receipt.error[1]


@pytest.mark.parametrize("lacking", ["", "audio"])
def test_pictures_may_come_from_another_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    """torchcodec decodes on the CPU here, where it is installed; else, or where it fails, the other decoder does."""
    root = tmp_path / "root"
    if lacking:
        root.mkdir()
        write_video(root / "a.mp4", CONSTANT, lambda i: FACE)
    else:
        face_video(root / "a.mp4", CONSTANT)
    monkeypatch.setattr(gpu_decoding, "refuse_unusable", lambda device: None)
    monkeypatch.setattr(gpu_decoding, "version", lambda name: "0.11.1")
    if not is_there():
        monkeypatch.setattr(gpu_decoding.GpuReading, "_decoded", broken)
    stores = [extract(options(root, decode=decode, allow_missing=bool(lacking))).store for decode in ("cpu", "gpu")]
    assert stores[0] != stores[1]
    plain, other = (FeatureCache.open(store).recording("a") for store in stores)
    assert other.missing == lacking
    np.testing.assert_allclose(maps(other), maps(plain), rtol=0, atol=0.01)
    for name in ("audio", "frame_face"):
        np.testing.assert_array_equal(other.array(name), plain.array(name))
    assert ("decoded on the CPU" in caplog.text) == (not is_there())


def broken(*_: object) -> Iterator[Any]:
    yield from ()
    raise RuntimeError("no decoder")


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_a_gpu_extracts_the_same(tmp_path: Path, decode: str) -> None:
    if decode == "gpu":
        skip_without_cuda()
    root = tmp_path / "root"
    for name in ("a", "b", "c"):
        face_video(root / f"{name}.mp4", CONSTANT)
    given = {"views": 3, "flip": True, "hop": 4, "batch_size": 4}
    here = FeatureCache.open(extract(options(root, **given)).store)
    summary = extract(options(root, device="cuda", engine="local", decode=decode, **given))
    there = FeatureCache.open(summary.store)
    assert (summary.num_extracted, summary.failures, there.names()) == (3, (), here.names())
    for recording in here.names():
        one, other = here.recording(recording), there.recording(recording)
        np.testing.assert_array_equal(other.array("frame_face"), one.array("frame_face"))
        np.testing.assert_allclose(other.array("audio"), one.array("audio"), rtol=0, atol=1e-3)
        for view in range(3):
            np.testing.assert_allclose(maps(other, view), maps(one, view), rtol=0, atol=0.02)


def test_features_of_another_machine_are_refused(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    worker, _, recordings = opened(options(tmp_path / "root"))
    describe = worker_module.Networks.describe
    monkeypatch.setattr(
        worker_module.Networks,
        "describe",
        lambda *given: dataclasses.replace(describe(*given), libraries={"torch": "1.0"}),
    )
    receipt = worker.process(recordings["a"], nothing)
    assert receipt.outcome == "stopped"
    assert receipt.error is not None
    assert "features would differ (libraries.torch" in receipt.error[1]


# What is missing


def missing_corpus(root: Path) -> None:
    """Write recordings with both modalities, without sound and without picture."""
    for name in ("a", "b"):
        write_trace(face_video(root / "train" / f"{name}.mp4", CONSTANT), 60)
    write_trace(write_video(root / "train" / "mute.mp4", CONSTANT, lambda i: FACE), 60)
    write_video(root / "train" / "blind.mp4", [], sound_CS=beep(0.5, 60 / FPS))


def test_recordings_without_sound_or_picture_can_be_kept(tmp_path: Path) -> None:
    missing_corpus(tmp_path / "root")
    refused = extract(options(tmp_path / "root"))
    assert [item.reason for item in refused.failures] == ["no_video_stream", "no_audio_stream"]
    summary = extract(options(tmp_path / "root", allow_missing=True, retry_failed=True))
    assert (summary.num_extracted, summary.failures) == (2, ())
    cache = FeatureCache.open(summary.store)
    mute, blind = cache.recording("train/mute"), cache.recording("train/blind")
    assert (mute.missing, blind.missing, cache.recording("train/a").missing) == ("audio", "video", "")
    assert not mute.array("audio").any()
    np.testing.assert_array_equal(maps(mute), maps(cache.recording("train/a")))
    assert not maps(blind).any()
    assert not blind.array("frame_face").any()
    assert blind.fps == pytest.approx(25.0)
    assert blind.array("audio").max() > 0.01
    assert blind.array("frame_time_s")[-1] == pytest.approx(60 / FPS, abs=0.1)


def test_aligned_images_of_a_recording_without_picture_show_no_face(tmp_path: Path) -> None:
    root = tmp_path / "root"
    given = cropped_corpus(root, a=dict.fromkeys(range(60), 80), b=dict.fromkeys(range(60), 90))
    write_video(root / "videos" / "b.mp4", [], sound_CS=beep(0.5, 60 / FPS))
    summary = extract(dataclasses.replace(given, allow_missing=True))
    recording = FeatureCache.open(summary.store).recording("b")
    assert recording.missing == "video"
    assert not any(recording.array(name).any() for name in ("face_share", "frame_face", "frame_face_probability"))
    assert not maps(recording).any()
    assert summary.face_share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "allowing"),
    [
        ("no_sound.mp4", {"allow_missing": True}),
        ("damaged_picture.mp4", {"max_corrupt": 0.5}),
        ("good.mp4", {"min_face_share": 0.0}),  # without a face
    ],
)
def test_what_the_options_now_allow_is_tried_again(tmp_path: Path, name: str, allowing: dict[str, Any]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    bad_files.FILES[name][1](root / "a.mp4")
    kept = {"min_face_share": 0.0} if name != "good.mp4" else {}
    assert len(extract(options(root, **kept)).failures) == 1
    assert extract(options(root, **kept)).num_set_aside == 1
    assert extract(options(root, **{**kept, **allowing})).failures == ()


def test_missing_sound_stands_for_the_mean_and_does_not_shape_it(tmp_path: Path) -> None:
    missing_corpus(tmp_path / "root")
    cache = FeatureCache.open(extract(options(tmp_path / "root", allow_missing=True)).store)
    partition = WindowedPartition(cache, "train", 2, 8)
    heard = np.concatenate([item.array("audio") for item in partition.recordings if item.missing != "audio"])
    audio_mean, audio_std, *_ = feature_moments(partition)
    np.testing.assert_allclose(audio_mean, heard.mean(axis=0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(audio_std, heard.std(axis=0), rtol=1e-5, atol=1e-8)
    partition.set_missing_sound(audio_mean)
    lengths = [item.num_clips for item in partition.recordings]
    for item, audio_NA in zip(partition.recordings, partition.audio_NA.split(lengths), strict=True):
        expected_NA = audio_mean.expand(len(audio_NA), -1) if item.missing == "audio" else item.array("audio")
        np.testing.assert_array_equal(audio_NA, expected_NA)


# Engines


def test_local_workers_make_the_same_cache_as_one_process(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(5):
        write_trace(face_video(root / f"s{number}" / "a.mp4", np.arange(30 + 9 * number) / FPS), 30 + 9 * number)
    (root / "s5").mkdir()
    (root / "s5" / "text.mp4").write_text("not a video")
    here = extract(options(root, cache=tmp_path / "here"))
    progress: list[stage.ExtractProgress] = []
    there = extract(options(root, cache=tmp_path / "there", engine="local", num_workers=2), progress.append)
    assert there.failures == here.failures != ()
    assert (there.num_extracted, there.num_clips, there.face_share) == (5, here.num_clips, here.face_share)
    assert files(Path(there.store)) == files(Path(here.store))
    assert progress[-1].num_done == 6


def test_a_disk_that_is_full_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", CONSTANT)
    store = Path(extract(options(root)).store)
    for name in "bcd":
        face_video(root / f"{name}.mp4", CONSTANT, beep_at_s=0.1 * ord(name) - 9)
    with files_limited(500), pytest.raises(OSError, match=r"File too large: .*root-.*\.tmp"):
        extract(options(root, engine="local", num_workers=1))
    cache = FeatureCache.open(store)
    assert (cache.names(), cache.ledger.failures(), left_aside(store)) == (["a"], [], [])
    assert extract(options(root, engine="local", num_workers=1)).num_extracted == 3
    assert files(store) == files(Path(extract(options(root, cache=tmp_path / "whole")).store))


def test_features_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    root, real = tmp_path / "root", {"video_encoder": "r3d", "video_weights": "random:0", "precision": "auto"}
    rng = np.random.default_rng(7)  # the last bits of boxes and crops of these pictures do
    cues = {name: smooth_trace(rng, 48, FPS, 2.0) for name in ("light", "smile", "brow", "mouth")}
    images = [image.copy() for run in render_frames(Script(cues, (), FPS), rng) for image in run]
    face_video(root / "a.mp4", np.arange(48) / FPS, lambda i: images[i])
    stores = []
    for count in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            stores.append(Path(extract(options(root, cache=tmp_path / f"{count}", **real)).store))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    assert files(stores[0]) == files(stores[1])


def test_shares_together_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for number in range(5):
        face_video(root / f"{number}.mp4", np.arange(30 + 9 * number) / FPS)
    whole = extract(options(root, cache=tmp_path / "whole"))
    counts = [extract(options(root, cache=tmp_path / "shares", shard=f"{i}/3")).num_extracted for i in (1, 2)]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    last = extract(options(root, cache=tmp_path / "shares"))
    assert (whole.share, last.share) == ("", "3/3")
    assert sorted([*counts, last.num_extracted]) == [1, 2, 2]
    assert files(Path(last.store)) == files(Path(whole.store))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "13")
    with pytest.raises(UsageError, match=r"SLURM_ARRAY_TASK_ID=13, .*: nothing tells which share .* with --shard I/N"):
        extract(options(root))


def files(store: Path) -> dict[Path, bytes]:
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}


# Bad files


def test_every_bad_file_has_its_reason_and_every_good_one_is_there(tmp_path: Path) -> None:
    root, made = tmp_path / "root", tmp_path / "made"
    made.mkdir()
    expected = bad_files.write_files(made)
    # A manifest is text, and may not lead out of the root.
    expected = {name: expected[name] for name in expected if name.isprintable() and name != "endless.mp4"}
    recordings = {}
    for name, reason in expected.items():  # of one name and several kinds, in folders of their kinds
        place = root / Path(name).suffix[1:] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(made / name):
            (made / name).rename(place)
        recordings[place.relative_to(root).with_suffix("").as_posix()] = reason
    lines = [f"{Path(name).suffix[1:]}/{name}" for name in expected]
    (root / "manifest.csv").write_text("\n".join(["path", *lines]), encoding="utf-8")
    summary = extract(options(root, min_face_share=0.0))
    assert {item.recording: item.reason for item in summary.failures} == {
        name: reason for name, reason in recordings.items() if reason is not None
    }
    assert len(summary.failures) >= 34
    held = FeatureCache.open(summary.store).names()
    assert held == sorted(name for name, reason in recordings.items() if reason is None)


# What may pass, and what takes a while


def test_what_may_pass_is_tried_again_and_what_is_damaged_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    face_video(root / "a.mp4", CONSTANT)
    (root / "b.mp4").write_text("not a video")
    real = Reading._read

    def break_off(self: Any, container: Any, parts: Any) -> Iterator[Any]:
        yield from real(self, container, parts)
        self._breaks_off = True

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "_read", break_off)
        first = extract(options(root))
    assert [failure.reason for failure in first.failures] == ["truncated", "unreadable"]
    again = extract(options(root))
    assert (again.num_extracted, again.num_set_aside) == (1, 1)
    assert [failure.recording for failure in again.failures] == ["b"]


def test_a_machine_that_opens_no_more_files_blames_no_recording(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    worker, cache, recordings = opened(options(tmp_path / "root"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "file:a.mp4")

    with monkeypatch.context() as patch:
        patch.setattr("avfuse.container.av.open", refuse)
        receipt = worker.process(recordings["a"], nothing)
    assert receipt.outcome == "stopped"
    assert receipt.error[:2] == (errno.EMFILE, f"{os.strerror(errno.EMFILE)}; {ALLOW_MORE_FILES}")
    assert cache.ledger.failures() == []
    assert worker.process(recordings["a"], nothing).outcome == "extracted"


def test_reading_and_probing_are_signs_of_life(tmp_path: Path, opened: Any) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    worker, _, recordings = opened(options(tmp_path / "root"))
    told: list[tuple[int, int]] = []
    worker.process(recordings["a"], lambda done, total: told.append((done, total)))
    num_before = told.index((7, 7))
    assert set(told[:num_before]) == {(0, 1), (0, 7)}
    assert told[:num_before].count((0, 1)) > len(CONSTANT)  # of every packet when it is probed
    assert told[:num_before].count((0, 7)) > len(CONSTANT) / 4  # and of what is decoded
    assert told[num_before:].count((7, 7)) > 10  # of every file that is put away


def test_of_large_pictures_fewer_are_decoded_ahead(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face_video(tmp_path / "root" / "a.mp4", CONSTANT)
    limits: list[int] = []
    ahead = worker_module.Ahead

    def noted(items: Any, limit: int, name: str) -> Any:
        limits.append(limit)
        return ahead(items, limit, name)

    monkeypatch.setattr(worker_module, "Ahead", noted)
    worker, cache, recordings = opened(options(tmp_path / "root"))
    for num_pixels in (worker_module.DECODED_AHEAD_PX, 3 * FACE.shape[0] * FACE.shape[1], 5):
        monkeypatch.setattr(worker_module, "DECODED_AHEAD_PX", num_pixels)
        assert worker.process(recordings["a"], nothing).outcome == "extracted"
        cache.remove("a")
    assert limits == [worker_module.DECODED_AHEAD, 3, 1]
