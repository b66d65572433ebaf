"""Clips are laid on the times at which frames are shown."""

import numpy as np
import pytest

from avfuse.schema import RecordingError
from avfuse.timeline import ClipGrid, Timeline


def grid_of(num_frames: int, hop: int, fps: float = 30.0) -> ClipGrid:
    return ClipGrid.lay(Timeline.from_pts(np.arange(num_frames), 1 / fps), hop)


def test_clips_follow_the_paper() -> None:
    grid = grid_of(100, hop=8)
    np.testing.assert_array_equal(grid.end_frame_N, np.arange(7, 100, 8))
    for end, frame_K in zip(grid.end_frame_N, grid.frame_NK, strict=True):
        np.testing.assert_array_equal(frame_K, [max(0, end - 4 * k) for k in (7, 6, 5, 4, 3, 2, 1, 0)])
    np.testing.assert_allclose(grid.end_time_s, grid.end_frame_N / 30, atol=1e-12)
    assert grid.num_samples == 45_570
    assert grid_of(100, hop=8, fps=15).num_samples == 91_140


@pytest.mark.parametrize(
    ("num_frames", "hop", "ends"),
    [(8, 8, [7]), (9, 16, [8]), (15, 8, [7]), (16, 8, [7, 15]), (8, 1, list(range(8))), (31, 32, [30])],
)
def test_every_recording_has_a_clip(num_frames: int, hop: int, ends: list[int]) -> None:
    grid = grid_of(num_frames, hop)
    assert grid.end_frame_N.tolist() == ends
    assert grid.num_clips == len(ends)
    assert grid.frame_NK.shape == (len(ends), 8)
    assert grid.frame_NK[:, 0].tolist() == [max(0, end - 28) for end in ends]


def test_slots_of_a_variable_frame_rate() -> None:
    timeline = Timeline.from_pts(np.array([1000, 1010, 1020, 1500, 1510, 2000]), 0.001)
    assert timeline.variable
    assert timeline.fps == pytest.approx(5 / (2 * 0.5))
    slot = np.arange(-2, timeline.num_slots)
    np.testing.assert_allclose(timeline.slot_time_s(slot), 1.0 + slot / timeline.fps)
    shown = [
        max(np.flatnonzero(timeline.frame_time_s <= time_s + 1e-3), default=0) for time_s in timeline.slot_time_s(slot)
    ]
    np.testing.assert_array_equal(timeline.slot_frame(slot), shown)
    assert timeline.slot_frame(slot)[-1] == 5


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 59.94])
def test_milliseconds_do_not_make_a_rate_variable(fps: float) -> None:
    timeline = Timeline.from_pts(np.round(np.arange(1000) / fps * 1000).astype(np.int64), 0.001)
    assert not timeline.variable
    assert timeline.fps == pytest.approx(fps, rel=2e-5)  # 1 ms in 999 intervals


def test_a_dropped_frame_makes_the_rate_variable() -> None:
    pts = np.delete(np.arange(300), 100)
    timeline = Timeline.from_pts(pts, 1 / 30)
    assert timeline.variable
    shown = timeline.slot_frame(np.arange(timeline.num_slots))
    assert abs(timeline.frame_time_s[shown] - timeline.slot_time_s(np.arange(timeline.num_slots))).max() < 1.01 * 2 / 30


@pytest.mark.parametrize("num_frames", [1, 7])
def test_fewer_frames_than_a_clip_are_too_short(num_frames: int) -> None:
    with pytest.raises(RecordingError, match=f"{num_frames} frames are fewer than the 8 of a clip") as caught:
        grid_of(num_frames, hop=8)
    assert caught.value.reason == "too_short"


def test_a_time_lapse_is_too_slow() -> None:
    with pytest.raises(RecordingError, match="1 frames per second are too few") as caught:
        grid_of(100, hop=8, fps=1.0)
    assert caught.value.reason == "too_slow"
