import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import files_limited
from toy import add_recording, left_aside, toy_cache, toy_spec

from avfuse.cache import FeatureCache
from avfuse.schema import Failure, RecordingError, UsageError
from avfuse.sealed import read_sealed
from avfuse.spec import CacheSpec, Source
from avfuse.stores import directory
from avfuse.writer import MAX_CHUNK_CLIPS, RecordingWriter

SHAPE = (6, 3, 3)
SOURCE = Source("train", "someone", "videos/a.mp4", "cd" * 32, "ab" * 32)


def spec(**changes: Any) -> CacheSpec:
    values: dict[str, Any] = {
        "dataset": "tiny",
        "corpus": "folder",
        "targets": ("valence", "arousal"),
        "decoder": {"pyav": "18"},
        "detector": {"detector": "none"},
        "clip": {"hop": 8},
        "video": {"encoder": "v"},
        "audio": {"encoder": "a"},
        "precision": "fp32",
        "libraries": {},
        "video_shape": SHAPE,
        "audio_shape": (5,),
        "ranges": ((-1.0, 1.0), None),
    }
    return CacheSpec(**{**values, **changes})


def features(num_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # float32 numbers that float16 holds exactly, so that equality can be asked for
    video = rng.integers(-100, 100, (num_clips, *SHAPE)).astype(np.float32) / 8
    return video, rng.normal(size=(num_clips, 5)).astype(np.float32)


def others(num_clips: int, num_frames: int = 20) -> dict[str, np.ndarray]:
    return {
        "target": np.full((num_clips, 2), np.nan, np.float32),
        "face_share": np.ones(num_clips, np.float32),
        "end_frame": np.arange(num_clips),
        "end_time_s": np.arange(num_clips) / 3,
        "frame_time_s": np.arange(num_frames) / 25,
        "frame_target": np.zeros((num_frames, 2), np.float32),
        "frame_face": np.arange(num_frames) % 2 == 0,
        "frame_face_probability": np.ones(num_frames, np.float32),
    }


def write(
    store: FeatureCache, name: str, num_clips: int, source: Source = SOURCE, batch: int = 8, seed: int = 0
) -> Any:
    video, audio = features(num_clips, seed)
    with RecordingWriter(store, name, source) as writer:
        writer.begin(num_clips)
        for start in range(0, num_clips, batch):
            writer.append(video[start : start + batch], audio[start : start + batch])
        writer.commit(others(num_clips), fps=25.0)
    return video, audio


@pytest.fixture
def store(tmp_path: Path) -> FeatureCache:
    return FeatureCache.create(tmp_path, spec(), {"weights": "none"})


@pytest.mark.parametrize("num_clips", [1, 7, MAX_CHUNK_CLIPS, MAX_CHUNK_CLIPS + 1, 2 * MAX_CHUNK_CLIPS + 3])
def test_what_was_written_is_read(store: FeatureCache, num_clips: int) -> None:
    video, audio = write(store, "a", num_clips)
    (read,) = store.recordings()
    assert (read.name, read.num_clips, read.fps, read.source, read.is_whole) == ("a", num_clips, 25.0, SOURCE, True)
    assert read.video.shape == (num_clips, *SHAPE)
    np.testing.assert_array_equal(read.array("audio"), audio)
    for name, values in others(num_clips).items():
        np.testing.assert_array_equal(read.array(name), values)
        assert read.array(name).dtype == values.dtype
    for start, step in ((0, 1), (min(3, num_clips - 1), 4)):
        expected = video[start::step]
        got = np.full_like(expected, np.nan)
        for at, run in read.video.strided(start, step, len(expected)):
            got[at : at + len(run)] = run
        np.testing.assert_array_equal(got, expected)


def test_features_of_zeros_are_stored_and_read(store: FeatureCache) -> None:
    with RecordingWriter(store, "a", SOURCE) as writer:
        writer.begin(3)
        writer.append(np.zeros((3, *SHAPE), np.float32), np.zeros((3, 5), np.float32))
        writer.commit(others(3), fps=25.0)
    (read,) = store.recordings()
    read.check(0)
    assert not read.video.chunk(0).any()
    assert all(f"{name}/c/0{'/0' * (len(entry['shape']) - 1)}" in read.files for name, entry in read.arrays.items())


def test_any_zarr_reader_opens_it_without_a_warning(store: FeatureCache) -> None:
    video, _ = write(store, "some/name", 5)
    store.ledger.record(Failure("broken", "unreadable", "because"), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(store.path, mode="r")
        assert sorted(name for name, _ in root.members()) == ["failures", "recordings"]
        ((_, group),) = root["recordings"].members()
        assert len(list(group.members())) == 10
        np.testing.assert_array_equal(group["video"][...], video)
    codecs = json.loads((group.store.root / group.path / "video" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "crc32c"]


def test_chunks_are_few_and_bounded(store: FeatureCache) -> None:
    num_clips = 2 * MAX_CHUNK_CLIPS + 3
    write(store, "a", num_clips)
    chunks = sorted((store.path / "recordings" / "a" / "video" / "c").iterdir())
    assert len(chunks) == 3
    bytes_needed = num_clips * int(np.prod(SHAPE)) * 2
    bytes_used = sum(
        file.stat().st_size for file in (store.path / "recordings" / "a" / "video" / "c").rglob("*") if file.is_file()
    )
    assert bytes_used <= bytes_needed + 3 * (
        4 + int(np.prod(SHAPE)) * 2
    )  # a checksum and at most a clip of padding each


def test_open_and_find(tmp_path: Path, store: FeatureCache) -> None:
    assert FeatureCache.open(store.path).spec == spec()
    assert FeatureCache.find(tmp_path).path == store.path == FeatureCache.find(store.path).path
    assert store.home == tmp_path.resolve()
    FeatureCache.create(tmp_path, spec(precision="bf16"), {})
    with pytest.raises(UsageError, match="several feature stores"):
        FeatureCache.find(tmp_path)
    with pytest.raises(UsageError, match="holds no features"):
        FeatureCache.find(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a feature store"):
        FeatureCache.open(tmp_path)


def test_a_folder_of_stores_is_told_from_the_home_that_holds_it(tmp_path: Path, store: FeatureCache) -> None:
    features = tmp_path / "features"
    (features / "of others.zarr").mkdir()
    told = f"^{features} is a folder of stores itself; give {tmp_path}, or one of: {store.path}$"
    with pytest.raises(UsageError, match=told):
        FeatureCache.find(features)
    with pytest.raises(UsageError, match=f"^{features} is a folder of stores itself; give the one that holds it$"):
        FeatureCache.create(features, spec(), {})
    assert [path.name for path in features.iterdir() if path.suffix == ""] == []
    moved = features.rename(tmp_path / "shared")
    with pytest.raises(UsageError, match=f"^{moved} is a folder of stores itself; give one of: {moved}/[^,]*$"):
        FeatureCache.find(moved)
    assert FeatureCache.create(moved, spec(), {}).path == moved / "features" / spec().store_name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precision", "fp8", "altered after"),
        ("ranges", [[-1.0, 1.0], [0.0, 1.0]], "altered after"),
        (
            "format_version",
            2,
            "version 2; this avfuse reads 3: read it with the avfuse that made it, or make its features again with",
        ),
        ("format_version", 99, "format version 99"),
    ],
)
def test_altered_settings_are_refused(store: FeatureCache, field: str, value: object, message: str) -> None:
    path = store.path / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["spec"][field] = value
    path.write_text(json.dumps(metadata))
    with pytest.raises(UsageError, match=message):
        FeatureCache.open(store.path)


def test_a_store_without_its_root_is_damaged_and_one_under_another_name_is_refused(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, spec(), {})
    write(store, "a", 2)
    root = (store.path / "zarr.json").read_bytes()
    for content in (None, b"", b"[]", b'{"attributes": []}', root.replace(b'"spec"', b'"spek"')):
        (store.path / "zarr.json").unlink()
        if content is not None:
            (store.path / "zarr.json").write_bytes(content)
        for place in (tmp_path, store.path):
            with pytest.raises(
                UsageError, match=r"the settings of .*\.zarr are damaged; see what is wrong with: avfuse"
            ):
                FeatureCache.find(place)
        (store.path / "zarr.json").touch()
    (store.path / "zarr.json").unlink()
    again = FeatureCache.create(tmp_path, spec(), {"weights": "none"})
    assert [item.name for item in again.recordings()] == ["a"]
    store.path.rename(store.path.with_name(spec(precision="bf16").store_name))
    with pytest.raises(UsageError, match=r"was renamed, it holds features of .* \(precision: fp32 there, bf16 here\)"):
        FeatureCache.create(tmp_path, spec(precision="bf16"), {})


def test_what_has_no_room_beside_a_store_is_named(store: FeatureCache) -> None:
    beside = store.path.with_suffix(".tmp")
    acts = {
        lambda: store.ledger.record(Failure("b", "unreadable", ""), None): str(beside),
        lambda: store.store.write_metadata("recordings", b"longer than that"): str(store.path / "recordings/zarr.json"),
    }
    for act, place in acts.items():
        with files_limited(10), pytest.raises(OSError, match="File too large") as refusal:
            act()
        assert refusal.value.filename == place
    assert store.ledger.failures() == []
    assert read_sealed(store.store.metadata("recordings")) == {}


def test_a_folder_of_recordings_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "recordings" / "holidays").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no features; make them with"):
        FeatureCache.find(tmp_path)
    with pytest.raises(UsageError, match="is not a feature store of avfuse"):
        FeatureCache.open(tmp_path)


def test_what_a_killed_change_of_metadata_left_is_beside_the_store_and_swept(tmp_path: Path, monkeypatch: Any) -> None:
    store = FeatureCache.create(tmp_path, spec(), {})
    write(store, "a", 2)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        store.relabel("a", dataclasses.replace(SOURCE, partition="test"))
    monkeypatch.undo()
    (left,) = left_aside(store.path)
    left.rename(left.with_name(left.name.replace(f"-{os.getpid()}-", "-999999999-")))
    (read,) = FeatureCache.create(tmp_path, spec(), {}).recordings()
    assert read.source == SOURCE
    assert left_aside(store.path) == []


def test_holds_only_what_is_whole_and_of_the_same_source(store: FeatureCache) -> None:
    assert not store.holds("a", SOURCE)
    write(store, "a", 4)
    assert store.holds("a", SOURCE)
    changes: list[dict[str, Any]] = [
        {"sha256": "ef" * 32},
        {"annotation_sha256": None},
        {"partition": "test"},
        {"subject": "other"},
        {"face_side": "left"},
        {"crops_sha256": "ef" * 32},
    ]
    for change in changes:
        assert not store.holds("a", dataclasses.replace(SOURCE, **change))
    chunk = store.path / "recordings" / "a" / "video" / "c" / "0" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    assert not store.holds("a", SOURCE)
    with pytest.raises(
        UsageError, match=r"recordings/a is damaged; see what is wrong with: avfuse cache verify /.*; set"
    ):
        store.recordings()
    chunk.unlink()
    assert not store.holds("a", SOURCE)
    assert store.names() == ["a"]
    chunk.write_bytes(whole)
    assert store.holds("a", SOURCE)
    attributes = store.path / "recordings" / "a" / "zarr.json"
    attributes.write_text(attributes.read_text().replace('"fps": 25.0', '"fps": 24.0'))
    assert not store.holds("a", SOURCE)


def test_a_recording_is_replaced_whole(store: FeatureCache) -> None:
    write(store, "a", 4)
    newer = dataclasses.replace(SOURCE, sha256="99" * 32)
    video, _ = write(store, "a", 3, source=newer, seed=1)
    (read,) = store.recordings()
    assert read.source == newer
    np.testing.assert_array_equal(next(read.video.strided(0, 1, 3))[1], video)
    assert left_aside(store.path) == []


def test_nothing_is_left_of_what_was_not_committed(store: FeatureCache) -> None:
    with pytest.raises(KeyboardInterrupt), RecordingWriter(store, "a", SOURCE) as writer:
        writer.begin(4)
        writer.append(*features(2))
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="2 clips came, 4 were announced"),
        RecordingWriter(store, "a", SOURCE) as writer,
    ):
        writer.begin(4)
        writer.append(*features(2))
        writer.commit(others(4), fps=25.0)
    assert store.recordings() == []
    assert left_aside(store.path) == []


def test_a_feature_that_does_not_fit_is_refused(store: FeatureCache) -> None:
    video, audio = features(2)
    for bad_video, bad_audio in ((video + 1e6, audio), (video * np.nan, audio), (video, audio * np.inf)):
        with pytest.raises(RecordingError, match="not finite") as caught, RecordingWriter(store, "a", SOURCE) as writer:
            writer.begin(2)
            writer.append(bad_video, bad_audio)
        assert caught.value.reason == "feature_overflow"


def test_a_long_name_of_a_data_set_is_cut(tmp_path: Path) -> None:
    longest = FeatureCache.create(tmp_path, toy_spec(dataset="ü" * 300), {})
    longer = FeatureCache.create(tmp_path, toy_spec(dataset="ü" * 299), {})
    assert longest.path.name == f"{'ü' * 90}-{longest.spec.fingerprint}.zarr"
    for cache in (longest, longer):
        add_recording(cache, "a", "train", 9, seed=0)
        assert FeatureCache.open(cache.path).spec == cache.spec


@pytest.mark.parametrize(
    "name",
    [
        "batch1/12-24-1920x1080",
        "Ünïcode ü",
        "a.b.c",
        ".hidden",
        "x" * 300,
        "per%cent",
        "tilde~",
        "..",
        "CON:1",
        "zarr.json",
    ],
)
def test_any_name_has_a_folder_of_its_own(store: FeatureCache, name: str) -> None:
    write(store, name, 2)
    write(store, name + "2", 2)
    assert {item.name for item in store.recordings()} == {name, name + "2"}
    assert store.holds(name, SOURCE)
    assert all(
        len(path.name.encode()) <= 255 and ":" not in path.name for path in (store.path / "recordings").iterdir()
    )
    assert len(list((store.path / "recordings").glob("*/zarr.json"))) == 2  # flat: no name leaves its folder


def test_partitions(store: FeatureCache) -> None:
    for name, partition in (("b", "validation"), ("a", "train"), ("c", "train")):
        write(store, name, 2, source=dataclasses.replace(SOURCE, partition=partition))
    assert [item.name for item in store.recordings("train")] == ["a", "c"]
    assert [item.name for item in store.recordings()] == ["a", "b", "c"]


def test_failures_are_kept_and_forgotten(store: FeatureCache) -> None:
    first, second = Failure("b/c", "unreadable", "why"), Failure("a", "no_video_stream", "wherefore")
    for failure in (first, second, dataclasses.replace(second, message="newer")):
        store.ledger.record(failure, None)
    assert store.ledger.failures() == [dataclasses.replace(second, message="newer"), first]
    store.ledger.clear("a")
    store.ledger.clear("never failed")
    assert store.ledger.failures() == [first]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written to"):
        FeatureCache.create(tmp_path / "file", spec(), {})
    # A superuser may write anywhere, so what the system answers is put in its mouth.
    FeatureCache.create(tmp_path, spec(), {})
    monkeypatch.setattr(directory.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"cannot be written to \(Permission denied\); give a folder"):
        FeatureCache.create(tmp_path, spec(), {})


WRITER_THAT_IS_KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_cache import FeatureCache, RecordingWriter, SOURCE, features, spec
from pathlib import Path
store = FeatureCache.create(Path({home!r}), spec(), {{}})
with RecordingWriter(store, "a", SOURCE) as writer:
    writer.begin(4)
    writer.append(*features(4))
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_goes_when_the_store_is_opened_again(tmp_path: Path) -> None:
    code = WRITER_THAT_IS_KILLED.format(tests=str(Path(__file__).parent), home=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    aside = tmp_path / "features" / spec().store_name.replace(".zarr", ".tmp")
    left = {path.name for path in aside.iterdir()}
    assert len(left) == 2  # what it wrote, and the note that it was at work
    store = FeatureCache.create(tmp_path, spec(), {})
    assert left.isdisjoint(path.name for path in aside.iterdir())
    assert left_aside(store.path) == []
    assert store.recordings() == []


def test_another_partition_or_subject_costs_no_features(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    arrays = add_recording(store, "a", "train", 20, seed=0)
    (before,) = store.recordings()
    moved = dataclasses.replace(before.source, partition="validation", subject="other")
    assert not store.holds("a", moved)
    assert store.relabel("a", moved)
    (after,) = store.recordings("validation")
    assert store.holds("a", moved)
    assert (after.source, after.digest == before.digest) == (moved, False)
    np.testing.assert_array_equal(after.array("audio"), arrays["audio"])
    assert zarr.open_group(after.path, mode="r").attrs["source"]["subject"] == "other"
    assert not store.relabel("a", dataclasses.replace(moved, sha256="1" * 64))
    assert not store.relabel("b", moved)
    assert store.holds("a", moved)


def test_a_home_that_is_named_like_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cache\.h5 is named like a file; give the folder"):
        FeatureCache.create(tmp_path / "cache.h5", spec(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_a_store_is_that_store_or_refused(tmp_path: Path, store: FeatureCache) -> None:
    write(store, "a", 4)
    same = FeatureCache.create(Path(store.path), spec(), {})
    assert same.path == store.path
    assert same.holds("a", SOURCE)
    with pytest.raises(UsageError, match=r"zarr is a store of other features than these; give the folder that holds"):
        FeatureCache.create(Path(store.path), spec(precision="bf16"), {})
    assert not (Path(store.path) / "features").exists()


def test_a_store_is_called_by_its_fingerprint(store: FeatureCache, tmp_path: Path) -> None:
    fingerprint = spec().fingerprint
    assert store.name == f"tiny-{fingerprint}"
    moved = Path(store.path).rename(tmp_path / "elsewhere.zarr")
    assert FeatureCache.open(moved).name == f"elsewhere-{fingerprint}"


def test_a_recording_that_is_replaced_while_it_is_listed_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy_cache(tmp_path)
    names = [item.name for item in store.recordings()]
    survey = type(store.store).survey

    def half(self: directory.DirectoryStore, parent: str) -> dict[str, Any]:
        found = survey(self, parent)
        first, second = list(found)[:2]
        return {**found, first: (found[first][0], {}), second: found[first]}

    monkeypatch.setattr(type(store.store), "survey", half)
    assert [item.name for item in store.recordings()] == names
    monkeypatch.setattr(
        type(store.store), "survey", lambda self, parent: {**survey(self, parent), "recordings/x": (None, {})}
    )
    assert [item.name for item in store.recordings()] == names
