from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import beep, remux, write_video

from avfuse import lengths, media
from avfuse.lengths import Extent, evenly, measure_extent, num_bytes, tell_reasons
from avfuse.options import ExtractOptions
from avfuse.schema import Recording
from avfuse.timeline import ClipGrid

FPS = 30


def recording(
    path: Path, num_frames: int = 60, fps: float = FPS, has_sound: bool = True, **arguments: Any
) -> Recording:
    time_s = np.arange(num_frames) / fps
    sound = beep(0.5, num_frames / fps) if has_sound else None
    write_video(path, time_s, sound_CS=sound, **arguments)
    return Recording(path.stem, path, "train", "someone")


def measure(recordings: list[Recording], **changes: Any) -> Extent:
    return measure_extent(recordings, ExtractOptions(Path("root"), **changes), lambda done, total, told: None)


def test_of_few_recordings_every_header_is_read(tmp_path: Path) -> None:
    given = [recording(tmp_path / f"{n}.{suffix}", n) for n, suffix in ((61, "mp4"), (47, "mp4"), (120, "mov"))]
    told: list[tuple[float, float, str]] = []
    found = measure_extent(given, ExtractOptions(tmp_path), lambda *arguments: told.append(arguments))
    grids = [ClipGrid.lay(media.probe(item.path), 8) for item in given]
    assert found.num_clips == sum(grid.num_clips for grid in grids) == 7 + 5 + 15
    assert found.length_s == pytest.approx((61 + 47 + 120) / FPS, abs=0.1)
    assert (found.num_unreadable, found.num_to_do, found.notes) == (0, 3, ())
    sizes = [num_bytes(header.recording) for header in found.headers]
    assert sizes == sorted(item.path.stat().st_size for item in given)
    assert told[-1] == (2, 3, "2/3 headers read")


def test_a_hop_that_is_longer_than_a_recording_leaves_one_clip(tmp_path: Path) -> None:
    assert measure([recording(tmp_path / "a.mp4", 20)], hop=25).num_clips == 1
    assert measure([recording(tmp_path / "a.mp4", 20)], hop=2).num_clips == 10


def test_headers_say_what_cannot_be_used(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    silent = recording(tmp_path / "silent.mp4", has_sound=False)
    heard = Recording("heard", write_video(tmp_path / "heard.mp4", [], sound_CS=beep(0.5, 2.0)), "train", "someone")
    gone = Recording("gone", tmp_path / "gone.mp4", "train", "someone")
    given = [recording(tmp_path / "a.mp4"), silent, heard, gone, Recording("text", text, "train", "someone")]
    found = measure(given)
    assert (found.num_unreadable, found.num_to_do, found.num_clips) == (4, 1, 60 // 8)
    assert found.notes == (
        "Recordings whose headers say that they cannot be used: missing_file (1), no_audio_stream (1), "
        "no_video_stream (1), unreadable (1).",
    )
    allowed = measure(given, allow_missing=True)
    assert (allowed.num_unreadable, allowed.num_to_do) == (2, 3)
    lacking = {header.recording.name: header.lacking for header in allowed.headers}
    assert lacking == {"a": "", "silent": "audio", "heard": "video"}
    # A recording without picture has 25 frames per second of sound.
    of_sound = ClipGrid.lay(media.probe_sound(heard.path), 8).num_clips
    assert abs(allowed.num_clips - (60 // 8 + 60 // 8 + of_sound)) <= 1


def test_of_many_an_even_sample_by_size_stands_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    lengths_of = [40, 80, 120, 160, 200, 240]
    given = [recording(tmp_path / f"{n}.mkv", n, image=lambda i: np.roll(noise, i, 0)) for n in lengths_of]
    (tmp_path / "bad.mkv").write_bytes(b"?" * num_bytes(given[1]))
    monkeypatch.setattr(lengths, "MAX_HEADERS", 3)
    found = measure(given)
    assert [header.recording.name for header in found.headers] == ["80", "160", "240"]
    read_bytes = sum(num_bytes(header.recording) for header in found.headers)
    scale = sum(map(num_bytes, given)) / read_bytes
    assert found.num_clips == round(scale * (80 + 160 + 240) / 8)
    assert found.num_clips == pytest.approx(sum(lengths_of) / 8, rel=0.05)
    assert found.length_s == pytest.approx(scale * (80 + 160 + 240) / FPS, rel=0.02)
    assert found.notes == (
        "Minutes, clips and what cannot be used are estimates: 3 headers of 6 recordings were read, evenly by size of "
        "the files.",
    )
    # One of three that cannot be used stands for a third of all, and for its share of the bytes.
    bad = Recording("bad", tmp_path / "bad.mkv", "train", "someone")
    found = measure([*given[2:], bad, given[0]])
    assert (found.num_unreadable, found.num_to_do) == (2, 4)


def test_where_no_header_tells_a_length_some_files_are_read(tmp_path: Path) -> None:
    told = recording(tmp_path / "told.mkv", 100)
    live = [
        Recording(f"live{i}", remux(told.path, tmp_path / f"live{i}.mkv", options={"live": "1"}), "train", "someone")
        for i in range(4)
    ]
    found = measure(live)
    assert found.notes == (
        "No header tells a length, 3 of 4 files were read for it; the others are taken to be as long as the sizes of "
        "their files say.",
    )
    assert found.num_clips == 4 * (100 // 8)
    mixed = measure([told, *live])
    assert mixed.notes == (
        "4 of 5 headers tell no length; the others are taken to be as long as the sizes of their files say.",
    )
    assert mixed.num_clips == pytest.approx(5 * (100 // 8), abs=5)  # by its sound, Matroska's length is a bit more


def test_nothing_is_no_length() -> None:
    assert measure([]) == Extent(0, 0, 0.0, 0, (), ())


@pytest.mark.parametrize(
    ("count", "limit", "expected"), [(0, 3, []), (2, 3, [0, 1]), (6, 3, [1, 3, 5]), (7, 2, [1, 5]), (5, 1, [2])]
)
def test_evenly_takes_the_middle_of_equal_parts(count: int, limit: int, expected: list[int]) -> None:
    assert evenly(range(count), limit) == expected


def test_reasons_are_told_with_their_counts() -> None:
    assert tell_reasons(Counter({"unreadable": 2, "missing_file": 1})) == "missing_file (1), unreadable (2)"
