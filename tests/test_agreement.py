"""Agreement: in what two caches differ, against numpy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from toy import CHANNELS, add_recording, toy_spec

from avfuse.agreement import CacheAgreement, Nearness, compare_caches
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheDiffOptions
from avfuse.commands._diff import diff
from avfuse.schema import UsageError
from avfuse.spec import Source
from avfuse.writer import RecordingWriter

NUM_CLIPS = 150  # several blocks of clips, and chunks where they are compressed


def features(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    video = np.maximum(rng.normal(size=(NUM_CLIPS, CHANNELS, 2, 2)), 0).astype(np.float32)
    return video, rng.normal(size=(NUM_CLIPS, 32)).astype(np.float32)


def write(
    cache: FeatureCache,
    name: str,
    video: np.ndarray,
    audio: np.ndarray,
    *views: np.ndarray,
    fps: float = 25.0,
    **source: Any,
) -> None:
    values = {"partition": "train", "subject": name, "file": name, "sha256": "0" * 64, "annotation_sha256": None}
    with RecordingWriter(cache, name, Source(**{**values, **source})) as writer:
        writer.begin(len(video))
        writer.append(video, audio, *views)
        writer.commit({"frame_time_s": np.arange(8) / 25}, fps=fps)


def make(home: Path, compress: str = "none", **changes: Any) -> FeatureCache:
    return FeatureCache.create(home, toy_spec(**changes), {}, compress)


def compared(one: FeatureCache, other: FeatureCache) -> CacheAgreement:
    return compare_caches(CacheDiffOptions(first=one.path, second=other.path))


def expected(one: np.ndarray, other: np.ndarray) -> Nearness:
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (one, other))
    cosines = [float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in zip(a, b, strict=True)]
    return Nearness(
        pytest.approx(np.abs(a - b).max()), pytest.approx(np.mean(cosines)), pytest.approx(min(cosines), rel=1e-9)
    )


def test_equal_caches_agree_whatever_their_files(tmp_path: Path) -> None:
    caches = [make(tmp_path / "plain"), make(tmp_path / "packed", "zstd")]
    for cache in caches:
        write(cache, "a", *features(0))
        write(cache, "b", *features(1))
    steps: list[tuple[int, int]] = []
    found = compare_caches(CacheDiffOptions(caches[0].path, caches[1].path), lambda *step: steps.append(step))
    assert found.is_equal
    assert (found.settings, found.only_first, found.only_second, found.video, found.audio) == ({}, (), (), None, None)
    assert [(item.recording, item.is_equal, item.arrays) for item in found.recordings] == [
        ("a", True, ()),
        ("b", True, ()),
    ]
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert compare_caches(CacheDiffOptions(first=tmp_path / "plain", second=caches[0].path)).is_equal


def test_features_that_differ_are_measured_clip_by_clip(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", "zstd")
    given: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, seed, factor in (("a", 0, 0.01), ("b", 1, 0.3)):
        video, audio = features(seed)
        noise = np.random.default_rng(9).normal(size=video.shape).astype(np.float32)
        given[name] = (video, video + factor * noise)
        write(one, name, video, audio)
        write(other, name, given[name][1], audio * (1 + factor))
    found = compared(one, other)
    assert not found.is_equal
    for item in found.recordings:
        assert item.arrays == ("audio", "video")
        assert item.video == expected(*(values.astype(np.float16) for values in given[item.recording]))
    sounds = [item.audio for item in found.recordings]
    assert [round(item.mean_cosine, 6) for item in sounds if item] == [1.0, 1.0]  # louder, in the same direction
    maps = [item.video for item in found.recordings if item.video]
    assert found.video == Nearness(
        max(item.max_difference for item in maps),
        pytest.approx(sum(item.mean_cosine for item in maps) / 2),
        min(item.worst_cosine for item in maps),
    )
    assert found.audio is not None
    assert found.audio.max_difference == pytest.approx(0.3 * np.abs(features(1)[1]).max(), rel=1e-5)


def test_bytes_are_turned_into_values_and_whole_maps_are_pooled(tmp_path: Path) -> None:
    video, audio = features(0)
    half = video.astype(np.float16)
    whole = make(tmp_path / "whole")
    write(whole, "a", video, audio)
    levels = make(tmp_path / "bytes", "zstd", storage={"dtype": "uint8", "maps": "whole"})
    write(levels, "a", video, audio)
    found = compared(whole, levels)
    assert found.settings == {"storage.dtype": ("float16", "uint8")}
    (item,) = found.recordings
    assert item.arrays == ("video", "video_offset", "video_scale")
    assert item.audio is None
    scale = half.astype(np.float32).max(axis=(0, 2, 3)) / 255
    assert item.video is not None
    assert 0 < item.video.max_difference <= scale.max() / 2 * 1.001
    assert item.video.worst_cosine > 0.9999
    pooled = make(tmp_path / "pooled", storage={"dtype": "float16", "maps": "pooled"}, video_shape=(CHANNELS, 1, 1))
    write(pooled, "a", video, audio)
    (item,) = compared(whole, pooled).recordings
    mean = half.astype(np.float32).mean(axis=(2, 3))
    assert item.video == expected(mean, mean.astype(np.float16))
    assert (item.note, item.arrays) == ("", ("video",))


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_each_view_is_compared_with_that_of_its_number(tmp_path: Path, dtype: str) -> None:
    """Bytes of one view share their scale with the others, which are then compared as well."""
    (video, audio), (second, _), (third, _) = map(features, range(3))
    storage = {"dtype": dtype, "maps": "whole"}
    one = make(tmp_path / "one", views={"count": 3}, storage=storage)
    other = make(tmp_path / "other", views={"count": 2}, storage=storage)
    louder = np.where(np.arange(CHANNELS)[:, None, None] == 3, 2 * second, second)
    write(one, "a", video, audio, second, third)
    write(other, "a", video, audio, louder)
    (item,) = compared(one, other).recordings
    assert (item.equal, item.audio, item.note) == (("audio",), None, "video_2 only in A")
    if dtype == "float16":
        assert item.video == expected(second.astype(np.float16), louder.astype(np.float16))
        assert item.arrays == ("video_1", "video_2")
    else:
        assert item.video is not None
        clips = [(video, video), (second, louder)]
        given = expected(*(np.concatenate(values).astype(np.float16) for values in zip(*clips, strict=True)))
        assert item.video.mean_cosine == pytest.approx(given.mean_cosine.expected, abs=1e-4)
    (item,) = compared(other, one).recordings
    assert item.note == "video_2 only in B"


def test_a_view_that_only_one_has_is_named_and_the_others_are_equal(tmp_path: Path) -> None:
    (video, audio), (second, _), (third, _) = map(features, range(3))
    one, other = make(tmp_path / "one"), make(tmp_path / "other", views={"count": 3})
    write(one, "a", video, audio)
    write(other, "a", video, audio, second, third)
    (item,) = compared(one, other).recordings
    assert (item.is_equal, item.equal, item.video) == (False, ("video", "audio"), None)
    assert item.note == "video_1, video_2 only in B"


def test_silence_and_darkness_compare(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    video, audio = features(0)
    for cache, factor in ((one, 0.0), (other, 1.0)):
        write(cache, "both zero in part", video * (np.arange(NUM_CLIPS) >= 100)[:, None, None, None], audio)
        write(cache, "one zero", video * factor, audio)
    write(other, "both zero in part", video * (np.arange(NUM_CLIPS) >= 99)[:, None, None, None], audio)
    first, second = compared(one, other).recordings
    assert first.video == Nearness(
        pytest.approx(np.abs(video[99].astype(np.float16)).max()), pytest.approx(149 / 150), 0
    )
    assert second.video is not None
    assert (second.video.mean_cosine, second.video.worst_cosine) == (0, 0)


def test_recordings_and_sources_that_differ_are_named(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", audio_shape=(31,))
    video, audio = features(0)
    write(one, "only here", video, audio)
    write(other, "only there", video, audio[:, 1:])
    write(one, "moved", video, audio)
    write(other, "moved", video, audio[:, 1:], partition="test", sha256="1" * 64)
    write(one, "longer", video, audio)
    write(other, "longer", video[:-1], audio[:-1, 1:])
    found = compared(one, other)
    assert (found.only_first, found.only_second) == (("only here",), ("only there",))
    assert found.settings == {"audio_shape": ([32], [31])}
    longer, moved = found.recordings
    assert (moved.source, moved.arrays, moved.note) == (("partition", "sha256"), ("audio",), "audio of 32 and 31")
    assert (longer.note, longer.video, longer.audio) == ("150 and 149 clips", None, None)
    assert not moved.is_equal


def test_another_source_alone_is_a_difference_and_features_are_not_read(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    for cache in (one, other):
        add_recording(cache, "a", "train", 9, seed=0)
    source = other.recording("a").source
    assert other.relabel("a", dataclasses.replace(source, subject="somebody else"))
    found = compared(one, other)
    assert [(item.source, item.arrays, item.is_equal) for item in found.recordings] == [(("subject",), (), False)]
    assert not found.is_equal


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    for cache, seed in ((one, 0), (other, 1)):
        write(cache, "a", *features(seed))
    file = Path(other.path) / "recordings/a/video/c/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"other/.*/recordings/a/video is damaged"):
        compared(one, other)


# The command


def shown(one: FeatureCache, other: FeatureCache) -> tuple[list[list[str]], str]:
    """Return the rows of the table of recordings, and the last line."""
    found = CliRunner().invoke(diff, [str(one.path), str(other.path)])
    assert found.exit_code == 4
    lines = found.stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return [row for row in rows if len(row) == 6], lines[-1]


def test_what_is_equal_is_told_from_what_does_not_compare(tmp_path: Path) -> None:
    video, audio = features(0)
    one, other = make(tmp_path / "one"), make(tmp_path / "other", audio_shape=(31,))
    write(one, "a", video, audio)
    write(other, "a", video, audio[:, 1:])
    rows, last = shown(one, other)
    assert rows == [["a", "equal", "", "-", "-", "audio of 32 and 31"]]
    assert last == "0 of 1 recording in both are equal"
    write(one, "b", video, audio)
    write(other, "b", -video, audio[:, 1:])
    rows, _ = shown(one, other)
    assert [row[1:5] for row in rows] == [
        ["equal", "", "-", "-"],
        [f"{2 * np.abs(video.astype(np.float16)).max():.3g}", "-1.000000 (-1.000000)", "-", "-"],
        [f"{2 * np.abs(video.astype(np.float16)).max():.3g}", "-1.000000 (-1.000000)", "-", "-"],
    ]
    assert rows[-1][0] == "all of them"


def test_only_another_subject_leaves_the_features_equal(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    for name in ("a", "b"):
        write(one, name, *features(0))
        write(other, name, *features(0), subject="somebody else")
    rows, last = shown(one, other)
    assert rows == [
        ["a", "equal", "", "equal", "", "other subject"],
        ["b", "equal", "", "equal", "", "other subject"],
        ["all of them", "equal", "", "equal", "", ""],
    ]
    assert last == "0 of 2 recordings in both are equal"


def test_another_rate_alone_is_named(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    write(one, "a", *features(0))
    write(other, "a", *features(0), fps=30.0)
    assert shown(one, other)[0] == [["a", "equal", "", "equal", "", "25 and 30 slots per second"]]


def test_where_no_recording_is_in_both_none_is_counted(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    write(one, "a", *features(0))
    write(other, "b", *features(0))
    assert shown(one, other) == ([], "no recording is in both")
