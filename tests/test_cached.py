"""A cached recording: what it says of itself, and that nothing of it is handed out that was altered."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from toy import add_recording, toy_spec

from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording, describe_array, group_of, view_name
from avfuse.clips import digest_of
from avfuse.encoding import to_bytes
from avfuse.schema import UsageError
from avfuse.sealed import seal
from avfuse.spec import Source
from avfuse.stores.directory import DirectoryStore
from avfuse.writer import RecordingWriter

STORAGES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "none"),
    "compressed": ({}, "zstd"),
    "bytes, two views": ({"storage": {"dtype": "uint8", "maps": "whole"}, "views": {"count": 2}}, "none"),
}


def make(home: Path, changes: dict[str, Any], compress: str) -> tuple[CachedRecording, dict[str, np.ndarray]]:
    """Write a recording of 20 clips in two batches; return it with what was given to the writer."""
    cache = FeatureCache.create(home, toy_spec(**changes), {}, compress)
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(20, 32, 2, 2)).astype(np.float32) for _ in range(cache.spec.views["count"])]
    audio, time_s = rng.normal(size=(20, 32)).astype(np.float32), np.arange(163) / 25
    with RecordingWriter(cache, "a/b", Source("train", "someone", "a/b.mp4", "0" * 64, None)) as writer:
        writer.begin(20)
        for clips in (slice(0, 13), slice(13, 20)):
            writer.append(views[0][clips], audio[clips], *(view[clips] for view in views[1:]))
        writer.commit({"frame_time_s": time_s}, fps=25.0)
    (read,) = cache.recordings()
    return read, {"audio": audio, "frame_time_s": time_s, **{view_name(i): view for i, view in enumerate(views)}}


def stored(read: CachedRecording, values: np.ndarray) -> np.ndarray:
    """Return what should be stored of a view."""
    half = values.astype(np.float16)
    scale = read.scale()
    return half if scale is None else to_bytes(half, *scale)


@pytest.mark.parametrize("storage", list(STORAGES))
def test_it_says_what_it_holds(tmp_path: Path, storage: str) -> None:
    read, given = make(tmp_path, *STORAGES[storage])
    is_bytes = storage.startswith("bytes")
    views = [name for name in given if name.startswith("video")]
    scales = {"video_scale", "video_offset"} if is_bytes else set()
    assert (read.name, read.group, read.num_clips, read.fps) == ("a/b", "recordings/a%2Fb", 20, 25.0)
    assert (read.is_whole, read.num_views, set(read.arrays)) == (True, len(views), set(given) | scales)
    assert read.path == f"{read.store.location}/recordings/a%2Fb"
    for number, name in enumerate(views):
        read.check(number)
        values = np.concatenate(list(read.view(number).chunks()))
        np.testing.assert_array_equal(values, stored(read, given[name]))
        assert read.arrays[name] == describe_array(values)
        assert values.dtype == (np.uint8 if is_bytes else np.float16)
    for name in ("audio", "frame_time_s"):
        np.testing.assert_array_equal(read.array(name), given[name])
        assert read.arrays[name]["sha256"] == digest_of(given[name])
    assert read.files.keys() == set(read.store.files(read.group) or {}) - {"zarr.json"}


def test_its_digest_is_that_of_values_and_source_not_of_files(tmp_path: Path) -> None:
    plain, _ = make(tmp_path / "plain", {}, "none")
    packed, _ = make(tmp_path / "packed", {}, "zstd")
    assert plain.digest == packed.digest
    assert plain.files != packed.files
    cache = FeatureCache.open(plain.store.location)
    assert cache.relabel("a/b", dataclasses.replace(plain.source, subject="another"))
    assert cache.recordings()[0].digest != plain.digest
    other = FeatureCache.create(tmp_path / "other", toy_spec(), {})
    for number, seed in enumerate((0, 0, 1)):
        add_recording(other, f"{number}", "train", 9, seed=seed, file="one")
    assert len({item.arrays["video"]["sha256"] for item in other.recordings()}) == 2


def damage(file: Path, place: int = 5) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 64
    file.write_bytes(content)


@pytest.mark.parametrize("storage", list(STORAGES))
def test_values_that_were_altered_are_not_handed_out(tmp_path: Path, storage: str) -> None:
    read, given = make(tmp_path, *STORAGES[storage])
    folder = Path(read.path)
    refused = r"recordings/a%2Fb/{} is damaged; see what is wrong with: avfuse cache verify .*; set it aside with: avf"
    for number in range(read.num_views):
        name = view_name(number)
        damage(folder / name / "c/0/0/0/0")
        assert read.is_whole  # its lengths are right
        with pytest.raises(UsageError, match=refused.format(name)):
            read.check(number)
        with pytest.raises(UsageError, match=refused.format(name)):
            list(read.checked_chunks(number))
    for name in ("audio", *(("video_scale",) if read.scale() else ())):
        damage(next((folder / name / "c").rglob("0*" if name == "video_scale" else "0/0")))
        with pytest.raises(UsageError, match=refused.format(name)):
            read.array(name)
    np.testing.assert_array_equal(read.array("frame_time_s"), given["frame_time_s"])


@pytest.mark.parametrize("storage", list(STORAGES))
def test_missing_chunks_never_read_as_zeros(tmp_path: Path, storage: str) -> None:
    read, _ = make(tmp_path, *STORAGES[storage])
    folder = Path(read.path)
    for name in ("video", "audio", "frame_time_s"):
        shutil.rmtree(folder / name / "c")
    assert not CachedRecording(read.store, read.group).is_whole
    with pytest.raises(UsageError, match="video is damaged"):
        read.check(0)
    for name in ("audio", "frame_time_s"):
        with pytest.raises(UsageError, match=f"{name} is damaged"):
            read.array(name)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("video", "shape", [19, 32, 2, 2]),
        ("video", "shape", [20, 32, 4, 1]),
        ("video", "data_type", "int16"),
        ("video", "data_type", "nonsense"),
        ("video", "chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [7, 32, 2, 2]}}),
        ("video", "codecs", []),
        ("video", "codecs", [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]),
        ("video", "shape", None),
        ("audio", "shape", [32, 20]),
        ("audio", "data_type", "int32"),
        ("audio", "codecs", [{"name": "bytes", "configuration": {"endian": "big"}}]),
        ("audio", "chunk_key_encoding", {"name": "default", "configuration": {"separator": "."}}),
        ("audio", "zarr_format", 2),
    ],
)
def test_altered_metadata_of_an_array_give_no_other_values(tmp_path: Path, name: str, key: str, value: Any) -> None:
    read, _ = make(tmp_path, {}, "none")
    file = Path(read.path) / name / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata[key] = value
    file.write_text(json.dumps(metadata))
    if name == "video" and key == "codecs" and value:  # big-endian: mapped as what avfuse writes, which it still is
        values = np.concatenate(list(read.view(0).chunks()))
        assert read.arrays["video"] == describe_array(values)
        return
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        if name == "video":
            read.check(0)
        else:
            read.array(name)


def test_it_is_whole_only_where_it_belongs_and_with_metadata_of_a_recording(tmp_path: Path) -> None:
    read, _ = make(tmp_path, {}, "none")
    folder = Path(read.path)
    shutil.copytree(folder, folder.with_name("copy"))
    assert not CachedRecording(read.store, "recordings/copy").is_whole
    assert not CachedRecording(read.store, "recordings/nowhere").is_whole
    (folder / "extra").symlink_to("/nowhere")
    assert not CachedRecording(read.store, read.group).is_whole
    (folder / "extra").unlink()
    assert CachedRecording(read.store, read.group).is_whole
    (folder / "zarr.json").write_bytes(seal({"recording": "a/b", "reason": "unreadable", "message": ""}))
    assert not CachedRecording(read.store, read.group).is_whole
    assert CachedRecording(read.store, read.group, (None, {})).attributes == {}


def test_names_of_views_and_groups() -> None:
    assert [view_name(number) for number in range(3)] == ["video", "video_1", "video_2"]
    assert group_of("a/b") == "recordings/a%2Fb"


def test_any_zarr_reader_reads_the_same_values(tmp_path: Path) -> None:
    read, given = make(tmp_path, {}, "zstd")
    group: Any = zarr.open_group(read.path, mode="r")
    np.testing.assert_array_equal(group["video"][...], given["video"].astype(np.float16))
    assert isinstance(read.store, DirectoryStore)
    assert not read.video.is_mapped
