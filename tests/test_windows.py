"""Windows: every clip of a recording stands in one, or in several that share as many as they should."""

from itertools import pairwise

import pytest

from avfuse.windows import Window, lay_windows, tile


@pytest.mark.parametrize(
    ("num_clips", "overlap", "windows"),
    [
        (0, 8, []),
        (1, 0, [(0, 1)]),
        (16, 0, [(0, 16)]),
        (16, 8, [(0, 16)]),
        (9, 15, [(0, 9)]),
        (17, 0, [(0, 16), (16, 17)]),
        (40, 0, [(0, 16), (16, 32), (32, 40)]),
        (17, 8, [(0, 16), (1, 17)]),
        (24, 8, [(0, 16), (8, 24)]),
        (25, 8, [(0, 16), (8, 24), (9, 25)]),
        (40, 8, [(0, 16), (8, 24), (16, 32), (24, 40)]),
        (40, 4, [(0, 16), (12, 28), (24, 40)]),
        (18, 15, [(0, 16), (1, 17), (2, 18)]),
    ],
)
def test_tiles(num_clips: int, overlap: int, windows: list[tuple[int, int]]) -> None:
    assert [(window.start, window.stop) for window in tile(num_clips, 16, overlap)] == windows


def test_overlapping_tiles_are_full_cover_everything_and_share_enough() -> None:
    for length in (1, 2, 3, 8):
        for overlap in range(length):
            for num_clips in range(1, 30):
                windows = tile(num_clips, length, overlap)
                assert {clip for window in windows for clip in window} == set(range(num_clips))
                assert len(set(windows)) == len(windows)
                if num_clips > length and overlap:
                    assert {len(window) for window in windows} == {length}
                    shared = [one.stop - other.start for one, other in pairwise(windows)]
                    assert set(shared[:-1]) <= {overlap}
                    assert shared[-1] >= overlap


@pytest.mark.parametrize(("length", "step", "overlap"), [(4, 1, 0), (4, 4, 0), (3, 2, 1), (5, 3, 4)])
def test_windows_of_recordings_hold_every_clip_of_every_phase(length: int, step: int, overlap: int) -> None:
    num_clips_R = [1, 2, 11, 40]
    windows = lay_windows(num_clips_R, length, step, overlap)
    assert windows == sorted(windows, key=lambda window: (window.recording, window.start % step, window.start))
    for place, num_clips in enumerate(num_clips_R):
        inside = [list(range(num_clips))[window.clips] for window in windows if window.recording == place]
        assert [len(clips) for clips in inside] == [window.count for window in windows if window.recording == place]
        seen = [clip for clips in inside for clip in clips]
        assert set(seen) == set(range(num_clips))
        assert overlap or len(seen) == num_clips
        assert {after - before for clips in inside for before, after in pairwise(clips)} <= {step}
    assert Window(0, 2, 3, 4).clips == slice(2, 12, 3)
