"""A recording that is written: what is stored of its maps, in which chunks, and that it stands there whole or not."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import files_limited
from toy import left_aside, toy_spec

from avfuse import atomic, encoding
from avfuse import writer as writer_page
from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording, describe_array, view_name
from avfuse.encoding import find_scale, to_bytes
from avfuse.options import DTYPES, MAPS
from avfuse.schema import RecordingError, UsageError
from avfuse.spec import Source
from avfuse.stores import open_array
from avfuse.stores.directory import DirectoryStore
from avfuse.writer import MAX_CHUNK_CLIPS, MAX_COMPRESSED_CHUNK_CLIPS, RecordingWriter

SOURCE = Source("train", "someone", "a.mp4", "0" * 64, None)
SHAPE = (6, 2, 3)
STORAGES = [
    ("float16", "whole", "none", 1),
    ("float16", "whole", "zstd", 3),
    ("float16", "whole", "pcodec", 2),
    ("float16", "pooled", "none", 2),
    ("float16", "pooled", "pcodec", 1),
    ("uint8", "whole", "none", 1),
    ("uint8", "whole", "zstd", 3),
    ("uint8", "pooled", "none", 2),
    ("uint8", "pooled", "zstd", 1),
]
every_storage = pytest.mark.parametrize(("dtype", "maps", "compress", "num_views"), STORAGES)


def make_cache(
    home: Path, dtype: str = "float16", maps: str = "whole", compress: str = "none", num_views: int = 1
) -> FeatureCache:
    if compress == "pcodec":
        pytest.importorskip("pcodec", reason="the package pcodec is an extra")
    shape = SHAPE if maps == "whole" else (SHAPE[0], 1, 1)
    spec = toy_spec(storage={"dtype": dtype, "maps": maps}, views={"count": num_views}, video_shape=shape)
    return FeatureCache.create(home, spec, {}, compress)


@pytest.mark.parametrize("limit", [100, 1000, 3000])
@every_storage
def test_a_disk_without_room_is_named_and_nothing_is_left(
    tmp_path: Path, dtype: str, maps: str, compress: str, num_views: int, limit: int
) -> None:
    cache = make_cache(tmp_path, dtype, maps, compress, num_views)
    *views, audio = features(200, num_views)
    with files_limited(limit), pytest.raises(OSError, match="File too large") as refusal:  # noqa: SIM117
        with RecordingWriter(cache, "a", SOURCE) as writer:
            writer.begin(200)
            writer.append(views[0], audio, *views[1:])
            writer.commit({"target": np.zeros((200, 2), np.float32)}, 25.0)
    place = Path(cache.path).with_suffix(".tmp")
    assert refusal.value.filename == str(place)
    assert left_aside(cache.path) == []
    assert cache.names() == []


def features(num_clips: int, num_views: int = 1, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Return the maps of every view, some channels without negative values, one of zeros, and the sound."""
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(num_views, num_clips, *SHAPE)).astype(np.float32)
    views[:, :, 1:4] = np.maximum(views[:, :, 1:4], 0)
    views[:, :, 2] = 0
    return [*views, rng.normal(size=(num_clips, 32)).astype(np.float32)]


def write(cache: FeatureCache, given: Sequence[npt.NDArray[Any]], batch: int = 8, **begin: bool) -> CachedRecording:
    """Write a recording in batches; return it as it is read."""
    first, *others, audio = given
    with RecordingWriter(cache, "a", SOURCE) as writer:
        writer.begin(len(audio), **begin)
        for start in range(0, len(audio), batch):
            part = slice(start, start + batch)
            writer.append(first[part], audio[part], *(view[part] for view in others))
        assert writer.commit({"frame_time_s": np.arange(len(audio)) / 25}, fps=25.0)
    return cache.recordings()[0]


def stored(recording: CachedRecording, view: int = 0) -> npt.NDArray[Any]:
    """Return the maps of a view as any reader of Zarr has them."""
    place = Path(str(recording.store.location)) / recording.group / view_name(view)
    return np.asarray(open_array(place, mode="r")[...])


def expected_of(given: Sequence[npt.NDArray[np.float32]], dtype: str, maps: str) -> list[npt.NDArray[Any]]:
    """Return what is to be stored of each view, then scale and offset of bytes."""
    halves = [view.astype(np.float16) for view in given[:-1]]
    if maps == "pooled":
        halves = [half.astype(np.float64).mean(axis=(2, 3), keepdims=True).astype(np.float16) for half in halves]
    if dtype == "float16":
        return [*halves]
    together = np.concatenate(halves).astype(np.float32)
    scale = find_scale(together.min(axis=(0, 2, 3)), together.max(axis=(0, 2, 3)))
    return [*(to_bytes(half, *scale) for half in halves), *scale]


@every_storage
def test_maps_are_stored_as_the_spec_has_it(
    tmp_path: Path, dtype: str, maps: str, compress: str, num_views: int
) -> None:
    given = features(19, num_views)
    recording = write(make_cache(tmp_path, dtype, maps, compress, num_views), given, batch=5)
    expected = expected_of(given, dtype, maps)
    assert recording.num_views == num_views
    for view in range(num_views):
        found = stored(recording, view)
        np.testing.assert_array_equal(found, expected[view], strict=True)
        assert recording.arrays[view_name(view)] == describe_array(found)
        recording.check(view)
    scale = recording.scale()
    assert (scale is None) == (dtype == "float16")
    for found, values in zip(scale or (), expected[num_views:], strict=True):
        np.testing.assert_array_equal(found, values, strict=True)
    np.testing.assert_array_equal(recording.array("audio"), given[-1], strict=True)


@every_storage
def test_the_size_of_batches_shapes_no_byte(
    tmp_path: Path, dtype: str, maps: str, compress: str, num_views: int
) -> None:
    given = features(MAX_COMPRESSED_CHUNK_CLIPS + 3, num_views)
    metadata = set()
    for batch in (1, 7, 1000):
        recording = write(make_cache(tmp_path / f"{batch}", dtype, maps, compress, num_views), given, batch=batch)
        metadata.add(recording.store.metadata(recording.group))
    assert len(metadata) == 1  # which hold the sha256 of every file


@pytest.mark.parametrize(("compress", "limit"), [("none", MAX_CHUNK_CLIPS), ("zstd", MAX_COMPRESSED_CHUNK_CLIPS)])
def test_chunks_are_of_one_length_and_bounded(tmp_path: Path, compress: str, limit: int) -> None:
    cache = make_cache(tmp_path, "uint8", "pooled", compress)
    for num_clips, lengths in ((limit, [limit]), (limit + 1, [limit // 2 + 1, limit // 2]), (1, [1])):
        video = write(cache, features(num_clips), batch=limit + 9).video
        assert [len(chunk) for chunk in video.chunks()] == lengths
        assert video.is_mapped == (compress == "none")


def test_only_maps_are_compressed(tmp_path: Path) -> None:
    recording = write(make_cache(tmp_path, "uint8", "whole", "zstd", 2), features(9, 2))
    for name in recording.arrays:
        metadata = recording.store.read(f"{recording.group}/{name}/zarr.json")
        is_map = name in ("video", "video_1")
        assert encoding.compression_of(metadata) == ("zstd" if is_map else "none")
        assert all(recording.files[file]["bytes"] > 0 for file in recording.files)
    assert json.loads(recording.store.read(f"{recording.group}/video/zarr.json"))["fill_value"] == 0


def test_batches_may_be_overwritten_once_they_were_taken(tmp_path: Path) -> None:
    """As an encoder does that keeps one buffer."""
    video, audio = features(20)
    for dtype in DTYPES:
        expected = write(make_cache(tmp_path / "expected", dtype), (video, audio))
        cache = make_cache(tmp_path / "found", dtype)
        with RecordingWriter(cache, "a", SOURCE) as writer:
            writer.begin(20)
            for start in range(0, 20, 5):
                held_video, held_audio = video[start : start + 5].copy(), audio[start : start + 5].copy()
                writer.append(held_video, held_audio)
                held_video[:], held_audio[:] = 7, 7
            writer.commit({"frame_time_s": np.arange(20) / 25}, fps=25.0)
        assert cache.recordings()[0].digest == expected.digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_taken_as_it_is(tmp_path: Path, dtype: str) -> None:
    """So that a cache can be compressed: bytes that are made into values and back may be others."""
    first = write(make_cache(tmp_path / "first", dtype, "whole", "none", 2), features(9, 2))
    cache = make_cache(tmp_path / "second", dtype, "whole", "zstd", 2)
    scales = {} if dtype == "float16" else {name: first.array(name) for name in ("video_scale", "video_offset")}
    with RecordingWriter(cache, "a", SOURCE) as writer:
        writer.begin(9, as_stored=True)
        assert not any((place / "0").exists() for place in left_aside(cache.path))  # there are no halves
        writer.append(stored(first, 0)[:4], first.array("audio")[:4], stored(first, 1)[:4])
        writer.append(stored(first, 0)[4:], first.array("audio")[4:], stored(first, 1)[4:])
        writer.commit({"frame_time_s": first.array("frame_time_s"), **scales}, fps=25.0)
    (second,) = cache.recordings()
    assert (second.digest, second.arrays) == (first.digest, first.arrays)
    assert second.files != first.files


def test_further_views_share_the_scale_of_the_first(tmp_path: Path) -> None:
    first, _, audio = features(9, 2)
    recording = write(make_cache(tmp_path, "uint8", num_views=2), (first, first * 10, audio))
    alone = write(make_cache(tmp_path / "alone", "uint8"), (first * 10, audio))
    for found, expected in zip(recording.scale() or (), alone.scale() or (), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(stored(recording, 1), stored(alone))


# What does not end well


def refusals() -> Iterator[Any]:
    video, other, audio = features(4, 2)
    yield "values", (video * 1e6, audio), RecordingError, "a: a feature is not finite"
    yield "nan", (np.where(video > 0, np.nan, video), audio), RecordingError, "a: a feature is not finite"
    yield (
        "infinities that cancel out",
        (np.copysign(np.inf, video), audio),
        RecordingError,
        "a: a feature is not finite",
    )
    yield "sound", (video, audio + np.inf), RecordingError, "a: a feature is not finite"
    yield "sound of 64 bits", (video, audio.astype(np.float64) * 1e300), RecordingError, "a: a feature is not finite"
    yield "a view too many", (video, audio, other), ValueError, "2 views came, the store keeps 1"
    yield "another number of sounds", (video, audio[:3]), ValueError, r"maps of \[4\] clips and sound of 3 came"
    yield "more than announced", (np.repeat(video, 2, 0), np.repeat(audio, 2, 0)), ValueError, "8 clips came, 5 were"


@pytest.mark.parametrize(("given", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in refusals()])
@pytest.mark.parametrize(("dtype", "maps"), list(product(DTYPES, MAPS)))
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, dtype: str, maps: str, given: Any, error: type[Exception], message: str
) -> None:
    cache = make_cache(tmp_path, dtype, maps)
    with pytest.raises(error, match=message), RecordingWriter(cache, "a", SOURCE) as writer:
        writer.begin(5)
        writer.append(*given)
    assert (cache.recordings(), left_aside(cache.path)) == ([], [])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("after", ["begin", "append", "commit"])
def test_nothing_is_left_of_what_was_interrupted(
    tmp_path: Path, dtype: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a signal, at any step; what stood there before stands there still."""
    cache = make_cache(tmp_path, dtype, "whole", "zstd")
    before = write(cache, features(9)).digest

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    video, audio = features(9, seed=1)
    with pytest.raises(KeyboardInterrupt), RecordingWriter(cache, "a", SOURCE) as writer:
        writer.begin(9)
        if after != "begin":
            writer.append(video[:5], audio[:5])
            writer.append(video[5:], audio[5:])
            assert any((place / "0").exists() for place in left_aside(cache.path)) == (dtype == "uint8")  # the halves
        if after == "commit":
            monkeypatch.setattr("avfuse.writer.atomic.flush_tree", interrupt)
            writer.commit({}, fps=25.0)
        interrupt()
    assert left_aside(cache.path) == []
    assert [item.digest for item in cache.recordings()] == [before]


def test_less_than_announced_is_not_committed(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, "uint8")
    video, audio = features(4)
    with pytest.raises(ValueError, match="4 clips came, 5 were"), RecordingWriter(cache, "a", SOURCE) as writer:
        writer.begin(5)
        writer.append(video, audio)
        writer.commit({}, fps=25.0)
    assert (cache.recordings(), left_aside(cache.path)) == ([], [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_codec_that_gives_back_other_values_keeps_nothing(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path, dtype, compress="zstd")
    soundly = writer_page._ArrayWriter._write

    def unsoundly(view: Any) -> None:
        soundly(view)
        view.array[3] = view.array[4]

    monkeypatch.setattr(writer_page._ArrayWriter, "_write", unsoundly)
    with pytest.raises(UsageError, match=r"^a/video reads as other values after compression by zstd than before"):
        write(cache, features(9))
    assert (cache.recordings(), left_aside(cache.path)) == ([], [])


# What stands there already


def test_what_stands_there_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path)
    write(cache, features(9))

    def refuse(*_: object) -> None:
        raise AssertionError("there was a moment without the recording")

    with monkeypatch.context() as patch:
        for name in ("remove", "put", "set_aside"):
            patch.setattr(DirectoryStore, name, refuse)
        given = features(5, seed=1)
        recording = write(cache, given)
    np.testing.assert_array_equal(stored(recording), given[0].astype(np.float16))
    assert (len(cache.recordings()), left_aside(cache.path)) == (1, [])


def test_where_places_cannot_be_exchanged_the_old_one_is_kept_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path)
    old = write(cache, features(9)).digest
    given = features(9, seed=1)
    damaged = Path(str(cache.path)).with_suffix(".damaged")
    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    new = write(cache, given)
    assert [item.digest for item in cache.recordings()] == [new.digest] != [old]
    assert (left_aside(cache.path), list(damaged.iterdir())) == ([], [])

    def refuse(self: DirectoryStore, aside: Path, group: str) -> bool:
        raise OSError("the disk was taken out")

    monkeypatch.setattr(DirectoryStore, "put", refuse)
    with pytest.raises(OSError, match="taken out"):
        write(cache, features(9, seed=2))
    (kept,) = damaged.iterdir()
    np.testing.assert_array_equal(open_array(kept / "video", mode="r")[...], given[0].astype(np.float16))


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, "uint8", "whole", "zstd", 2)
    recording = write(cache, features(9, 2))
    for file, entry in recording.files.items():
        content = (Path(str(cache.path)) / recording.group / file).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("lost", ["video/zarr.json", "video/c/1/0/0/0", "frame_time_s/c/0", "audio"])
def test_a_recording_of_which_a_file_is_gone_is_not_committed(tmp_path: Path, lost: str) -> None:
    cache = make_cache(tmp_path)
    video, audio = features(300)
    with (
        pytest.raises(FileNotFoundError, match=rf"{lost}.* of a is gone, which was written; nothing is kept"),
        RecordingWriter(cache, "a", SOURCE) as writer,
    ):
        writer.begin(300)
        writer.append(video, audio)
        (aside,) = [place for place in left_aside(cache.path) if (place / "video").exists()]
        describe = atomic.describe_files

        def lose(folder: Path, on_file: Any) -> Any:
            place = aside / lost
            shutil.rmtree(place) if place.is_dir() else place.unlink()
            return describe(folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(atomic, "describe_files", lose)
            writer.commit({"frame_time_s": np.arange(300) / 25}, fps=25.0)
    assert (cache.recordings(), left_aside(cache.path)) == ([], [])
