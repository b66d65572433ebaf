"""The nouns refuse what they cannot be, and a trace gives every frame its rating."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avfuse.schema import FAILURE_REASONS, Annotation, AnnotationError, Fault, Recording, RecordingError, RowCount

NAN = float("nan")


def trace(values: list[float], time_s: list[float] | None = None, is_dense: bool = True) -> Annotation:
    values_FE = np.array(values, np.float64)[:, None]
    return Annotation(("valence",), values_FE, None if time_s is None else np.array(time_s), is_dense)


def rated(annotation: Annotation, frame_time_s: list[float] | npt.NDArray[np.float64]) -> list[float]:
    frame_target_FE = annotation.at(np.asarray(frame_time_s, np.float64))
    assert frame_target_FE.dtype == np.float32
    assert frame_target_FE.shape == (len(frame_time_s), 1)
    return [float(value) for value in frame_target_FE[:, 0]]


def test_row_i_rates_frame_i() -> None:
    annotation = Annotation(("valence", "arousal"), np.array([[0.5, -0.5], [NAN, 0.25], [1.0, NAN]]))
    frame_target_FE = annotation.at(np.array([7.0, 7.1, 9.0]))  # the times do not matter
    np.testing.assert_array_equal(frame_target_FE, np.array([[0.5, -0.5], [NAN, 0.25], [1.0, NAN]], np.float32))


def test_frames_beyond_the_last_row_are_unrated() -> None:
    assert rated(trace([0.5, 0.25]), np.arange(4)) == pytest.approx([0.5, 0.25, NAN, NAN], nan_ok=True)


def test_rows_beyond_the_last_frame_are_dropped() -> None:
    assert rated(trace([0.5, 0.25, 1.0]), np.arange(2)) == [0.5, 0.25]


@pytest.mark.parametrize(
    ("num_rows", "num_frames", "is_dense", "is_refused"),
    [
        (95, 100, True, False),  # 5 rows may be missing ...
        (94, 100, True, True),
        (105, 100, True, False),  # ... or left over ...
        (106, 100, True, True),
        (980, 1000, True, False),  # ... and in a long recording 2 %
        (979, 1000, True, True),
        (1020, 1000, True, False),
        (1021, 1000, True, True),
        (0, 1, True, False),
        (100, 1000, False, False),  # a sparse trace may end early, but not late
        (1020, 1000, False, False),
        (1021, 1000, False, True),
    ],
)
def test_tolerance(num_rows: int, num_frames: int, is_dense: bool, is_refused: bool) -> None:
    annotation = trace([0.5] * num_rows, is_dense=is_dense)
    if is_refused:
        with pytest.raises(RecordingError, match=f"{num_rows} annotation rows for {num_frames} video frames") as caught:
            annotation.at(np.arange(num_frames) / 30)
        assert caught.value.reason == "annotation_mismatch"
    else:
        values = rated(annotation, np.arange(num_frames) / 30)
        assert np.count_nonzero(~np.isnan(values)) == min(num_rows, num_frames)


def test_rows_with_times_are_interpolated() -> None:
    annotation = trace([0.0, 1.0, 0.0], [1.0, 2.0, 4.0])
    assert rated(annotation, [1.0, 1.25, 2.0, 3.0, 4.0]) == [0.0, 0.25, 1.0, 0.5, 0.0]
    assert all(np.isnan(rated(annotation, [0.0, 0.999, 4.001, 99.0])))


def test_frames_beside_an_unrated_row_are_unrated() -> None:
    annotation = trace([0.0, 0.5, NAN, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    # A frame at the very time of a rated row has its rating, whatever its neighbours.
    expected = [0.0, 0.25, 0.5, NAN, NAN, NAN, 1.0, 0.5, 0.0]
    assert rated(annotation, np.arange(9) / 2) == pytest.approx(expected, nan_ok=True)


def steps(values: list[float], time_s: list[float]) -> Annotation:
    return Annotation(("valence",), np.array(values)[:, None], np.array(time_s), is_stepped=True)


def test_steps_hold_until_the_next_row() -> None:
    annotation = steps([3.5, NAN, 10.0], [1.0, 2.0, 4.0])
    frame_time_s = [0.0, 0.999, 1.0, 1.5, 1.999, 2.0, 3.999, 4.0, 99.0]
    expected = [NAN, NAN, 3.5, 3.5, 3.5, NAN, NAN, 10.0, 10.0]
    np.testing.assert_array_equal(rated(annotation, frame_time_s), expected)


def test_steps_begin_with_the_frame_at_their_time_however_it_is_rounded() -> None:
    annotation = steps([0.0, 1.0], [0.0, 2.1])
    for frame_time_s in (21 * (1 / 10), 2.1 - 4e-16, 2.1 - 5e-7):
        assert rated(annotation, [frame_time_s]) == [1.0]
    assert rated(annotation, [2.1 - 1e-3]) == [0.0]  # as far as a container may round its time stamps


def test_steps_without_times_rate_frames_by_row() -> None:
    annotation = Annotation(("valence",), np.array([[0.5], [NAN]]), is_stepped=True)
    assert rated(annotation, [0.0, 0.1]) == pytest.approx([0.5, NAN], nan_ok=True)


def test_targets_are_unrated_one_by_one() -> None:
    values_FE = np.array([[0.0, 1.0], [NAN, 0.0], [1.0, 1.0]])
    annotation = Annotation(("valence", "arousal"), values_FE, np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(annotation.at(np.array([0.5, 2.0])), [[NAN, 0.5], [1.0, 1.0]])


@pytest.mark.parametrize("num_rows", [1, 2])
def test_few_rows_with_times(num_rows: int) -> None:
    annotation = trace([0.5] * num_rows, [1.0, 2.0][:num_rows])
    assert rated(annotation, [0.5, 1.0, 2.5]) == pytest.approx([NAN, 0.5, NAN], nan_ok=True)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (3, 2, 1)])
def test_annotation_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not hold 2 targets"):
        Annotation(("valence", "arousal"), np.zeros(shape))


def test_annotation_needs_a_time_for_every_row() -> None:
    with pytest.raises(ValueError, match="2 times for 3 rows"):
        trace([0.0, 0.0, 0.0], [0.0, 1.0])


def test_recording_refuses_an_unknown_partition(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="first: partition 'dev' is none of train, validation, test"):
        Recording("first", tmp_path_factory.getbasetemp(), "dev", "first")


@pytest.mark.parametrize("reason", list(FAILURE_REASONS))
def test_failure_reasons(reason: str) -> None:
    error = RecordingError(reason, "what was found")
    assert (error.reason, str(error)) == (reason, "what was found")
    assert FAILURE_REASONS[reason]


def test_unknown_failure_reason() -> None:
    with pytest.raises(ValueError, match="unknown failure reason 'bad_luck'; known: missing_file"):
        RecordingError("bad_luck", "what was found")


@pytest.mark.parametrize(("last_s", "is_refused"), [(9.9, False), (69.8, False), (70.1, True), (25_000.0, True)])
def test_steps_that_reach_beyond_the_video_are_refused(last_s: float, is_refused: bool) -> None:
    """Ten seconds; a schedule that goes on for another minute is forgiven."""
    annotation = Annotation(("fatigue",), np.array([[3.0], [np.nan]]), np.array([0.0, last_s]), is_stepped=True)
    frame_time_s = np.arange(100) / 10
    if is_refused:
        with pytest.raises(RecordingError, match=r"ratings reach to .* s, the video to 9\.900 s; are they in seconds"):
            annotation.at(frame_time_s)
    else:
        assert annotation.at(frame_time_s)[0] == 3.0


def test_a_side_is_left_or_right() -> None:
    assert Recording("a_left", Path("a.mp4"), "train", "a_left", face_side="left").face_side == "left"
    with pytest.raises(ValueError, match="a: side 'above' is none of left, right"):
        Recording("a", Path("a.mp4"), "train", "a", face_side="above")


def test_an_annotation_error_names_every_line() -> None:
    faults = [Fault(Path("a.txt"), line, f"fault {line}") for line in range(3, 20)]
    error = AnnotationError(faults)
    assert (error.reason, error.faults) == ("annotation_invalid", tuple(faults))
    lines = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, and 6 more"
    assert str(error) == f"a.txt, line 3: fault 3 (so also lines {lines})"
    assert str(AnnotationError(faults[:2])) == "a.txt, line 3: fault 3 (so also lines 4)"
    assert str(AnnotationError(faults[:1])) == "a.txt, line 3: fault 3"


@pytest.mark.parametrize(
    ("num_rows", "num_frames", "dropped", "without"), [(10, 10, 0, 0), (12, 10, 2, 0), (8, 10, 0, 2), (0, 3, 0, 3)]
)
def test_rows_and_frames_are_counted(num_rows: int, num_frames: int, dropped: int, without: int) -> None:
    annotation = trace([0.5] * num_rows)
    times_s = np.arange(num_frames) / 25
    assert annotation.count(times_s) == RowCount(num_rows, num_frames, dropped, without)
    assert int(np.isnan(annotation.at(times_s)).sum()) == without  # no row here is itself unrated


def test_rows_and_frames_are_counted_by_time() -> None:
    times_s = np.arange(10) / 10  # 0 to 0.9
    by_time = trace([1.0, NAN, 2.0, 3.0], [-0.5, 0.25, 0.55, 1.5])
    assert by_time.count(times_s) == RowCount(4, 10, 0, 0)  # the rows outside stand for the frames at both ends
    late = trace([1.0, 2.0], [0.25, 0.55])
    assert late.count(times_s) == RowCount(2, 10, 0, 7)
    assert int(np.isnan(late.at(times_s)).sum()) == 7
    steps = Annotation(("fatigue",), np.array([[1.0], [2.0], [NAN]]), np.array([0.25, 0.55, 1.5]), is_stepped=True)
    assert steps.count(times_s) == RowCount(3, 10, 0, 3)  # the last row only ends the second step
    assert int(np.isnan(steps.at(times_s)).sum()) == 3
    late_step = Annotation(("fatigue",), np.array([[1.0], [2.0]]), np.array([0.0, 0.95]), is_stepped=True)
    assert late_step.count(times_s) == RowCount(2, 10, 1, 0)


def test_a_sparse_trace_lacks_no_row() -> None:
    assert trace([0.5] * 3, is_dense=False).count(np.arange(10) / 10) == RowCount(3, 10, 0, 0)
    assert trace([0.5] * 12, is_dense=False).count(np.arange(10) / 10) == RowCount(12, 10, 2, 0)


def test_times_in_milliseconds_are_refused() -> None:
    times_s = np.arange(100) / 25
    in_ms = Annotation(("valence",), np.zeros((100, 1)), times_s * 1000)
    with pytest.raises(RecordingError, match=r"ratings reach to 3960 s, the video to 3\.960 s; are they in seconds"):
        in_ms.at(times_s)
    late = Annotation(("valence",), np.zeros((2, 1)), np.array([0.0, 60.0]))
    assert (late.at(times_s) == 0).all()  # a trace may outlast an excerpt


def test_a_frame_at_the_time_of_a_row_has_its_rating_beside_unrated_ones() -> None:
    times_s = np.arange(300) * (1 / 30) + 1e-9  # as products of a time stamp and its unit
    values = np.arange(300.0)
    values[np.arange(300) // 10 % 2 == 1] = NAN
    for stamps_s in (np.arange(300) / 30, np.round(np.arange(300) / 30, 3)):
        annotation = Annotation(("valence",), values[:, None], stamps_s)
        frame_target = annotation.at(times_s)[:, 0]
        np.testing.assert_array_equal(np.isnan(frame_target), np.isnan(values))
        assert annotation.count(times_s) == RowCount(300, 300, 0, 0)
    shifted = Annotation(("valence",), values[:, None], np.arange(300) / 30 + 0.01)  # no frame is at a row's time
    assert np.isnan(shifted.at(times_s)).sum() > np.isnan(values).sum()


def test_rows_are_those_of_the_file() -> None:
    spread = np.full((91, 1), NAN)
    spread[::10] = 1.0
    sparse = Annotation(("valence",), spread, is_dense=False, num_rows=10)
    assert sparse.count(np.arange(91) / 25) == RowCount(10, 91, 0, 0)
    assert sparse.count(np.arange(88) / 25) == RowCount(10, 88, 1, 0)


@pytest.mark.parametrize(
    ("stamps_s", "dropped"),
    [
        ([0.0, 1.0, 2.0], 0),  # the last frame, at 1.96, is interpolated towards 2
        ([0.0, 1.96, 3.0], 1),
        ([-1.0, 0.5, 1.96], 0),
        ([-1.0, 0.0, 1.96], 1),
        ([-2.0, -1.0, 3.0, 4.0], 2),
        ([3.0, 4.0], 2),
        ([-2.0, -1.0], 2),
        ([0.0, 1.0, 1.9, 2.5, 3.0], 1),
    ],
)
def test_a_row_that_frames_are_interpolated_towards_is_not_dropped(stamps_s: list[float], dropped: int) -> None:
    times_s = np.arange(50) / 25
    values = np.arange(float(len(stamps_s)))
    assert trace(list(values), stamps_s).count(times_s).num_dropped == dropped
    # A row is used if the targets change with it.
    whole = trace(list(values), stamps_s).at(times_s)
    used = 0
    for row in range(len(stamps_s)):
        changed = values.copy()
        changed[row] += 0.5
        used += not np.array_equal(trace(list(changed), stamps_s).at(times_s), whole, equal_nan=True)
    assert used == len(stamps_s) - dropped
