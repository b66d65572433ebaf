"""Measured numbers become problems and remarks at the stated limits, and annotations are held against frames."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avfuse.crops import CroppedFaces
from avfuse.findings import (
    CODES,
    PROBLEM,
    REMARK,
    Finding,
    Limits,
    judge_absence,
    judge_crops,
    judge_media,
    judge_ratings,
    list_faults,
)
from avfuse.inspection import Inspection, Picture, Sound
from avfuse.schema import FAILURE_REASONS, Annotation, AnnotationError, Fault, Recording, RecordingError
from avfuse.timeline import Timeline

NAN = float("nan")
LIMITS = Limits(max_drift_s=0.5, max_lost=0.02)
RECORDING = Recording("one", Path("one.mp4"), "train", "s1", Path("one.csv"))
PICTURE = Picture(
    num_frames=100,
    num_decoded=100,
    num_lost=0,
    num_unplaced=0,
    num_advertised=100,
    num_packets=100,
    num_failed=0,
    num_discarded=0,
    fps=25.0,
    is_variable=False,
    jitter_sd_ms=0.0,
    jitter_max_ms=0.0,
    start_s=0.0,
    end_s=4.0,
    num_gaps=0,
    longest_gap_s=0.0,
    longest_gap_at_s=None,
    rotation_deg=0,
)
SOUND = Sound(
    num_packets=100,
    num_failed=0,
    num_samples=176_400,
    rate_hz=44_100,
    start_s=0.0,
    end_s=4.0,
    clock_s=0.0,
    num_gaps=0,
    longest_gap_s=0.0,
    longest_gap_at_s=None,
    num_overlaps=0,
    silent_share=0.0,
    digital_silence_share=0.0,
)
TIMELINE = Timeline.from_pts(np.arange(100), 1 / 25)
FRAME_S = TIMELINE.frame_time_s


def codes(findings: list[Finding]) -> list[str]:
    for finding in findings:
        assert finding.level == CODES[finding.code][0]
        assert finding.recording == "one"
        assert finding.message
    return [finding.code for finding in findings]


def judged(picture: dict[str, object] | None = None, sound: dict[str, object] | None = None) -> list[Finding]:
    inspection = Inspection(None, replace(PICTURE, **(picture or {})), replace(SOUND, **(sound or {})))
    return list(judge_media(RECORDING, inspection, LIMITS))


def test_every_code_has_a_level_and_a_meaning() -> None:
    for level, meaning in CODES.values():
        assert level in {PROBLEM, REMARK}
        assert len(meaning) > 20
    # They come from finding faces, encoding and workers alone; for damage the audit has codes and a limit of its own.
    others = {"no_face", "feature_overflow", "out_of_memory", "worker_died", "corrupt_packets"}
    assert set(FAILURE_REASONS) - others <= set(CODES)


def test_the_documentation_lists_every_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    documented = [line for line in text.splitlines() if line.startswith("| `")]
    assert sorted(documented) == sorted(
        f"| `{code}` | {level} | {meaning} |" for code, (level, meaning) in CODES.items()
    )


def test_a_good_file_gives_nothing() -> None:
    assert judged() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_failed": 2}, ["video_lost"]),
        ({"num_failed": 3}, ["video_damaged"]),  # more than 2 %
        ({"num_lost": 2}, ["video_lost"]),
        ({"num_lost": 3}, ["video_damaged"]),
        ({"num_advertised": 101}, ["frames_advertised"]),
        ({"num_advertised": None}, []),
        ({"num_unplaced": 2}, ["repeated_times"]),
        ({"num_packets": 102, "num_advertised": None}, []),  # a packet need not give a frame
        ({"num_packets": 102, "num_discarded": 2, "num_advertised": 102}, []),
        ({"is_variable": True}, ["variable_rate"]),
        ({"rotation_deg": -90}, ["rotated"]),
        ({"num_gaps": 1, "longest_gap_s": 0.5, "longest_gap_at_s": 1.0}, ["picture_gap"]),
    ],
)
def test_what_is_said_of_a_picture(change: dict[str, object], expected: list[str]) -> None:
    assert codes(judged(picture=change)) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_failed": 2}, ["audio_lost"]),
        ({"num_failed": 3}, ["audio_damaged"]),
        ({"clock_s": 0.019}, []),
        ({"clock_s": -0.02}, ["sound_clock_off"]),
        ({"clock_s": 0.5}, ["sound_clock_off"]),
        ({"clock_s": -0.51}, ["sound_clock"]),
        ({"num_gaps": 2, "longest_gap_s": 0.5, "longest_gap_at_s": 1.0}, ["sound_gap"]),
        ({"num_overlaps": 1}, ["sound_gap"]),
        ({"silent_share": 1.0, "digital_silence_share": 1.0}, ["silent"]),
        ({"silent_share": 0.99}, ["mostly_silent"]),
        ({"silent_share": 0.49, "digital_silence_share": 0.09}, []),
        ({"silent_share": 0.2, "digital_silence_share": 0.1}, ["muted"]),
    ],
)
def test_what_is_said_of_a_sound(change: dict[str, object], expected: list[str]) -> None:
    assert codes(judged(sound=change)) == expected


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0.0, 4.04, []),
        (0.0, 4.4, ["length_differs"]),
        (0.0, 4.6, ["drift"]),
        (0.0, 3.4, ["drift"]),  # shorter than the picture
        (0.04, 4.0, []),
        (1.0, 4.0, ["start_offset", "length_differs"]),  # it begins late and ends with the picture: no drift
        (1.0, 5.0, ["start_offset"]),  # moved as a whole
        (-1.0, 3.0, ["start_offset"]),
        (1.0, 6.0, ["start_offset", "drift"]),
        (-1.0, 4.6, ["start_offset", "drift"]),
    ],
)
def test_sound_against_picture(start_s: float, end_s: float, expected: list[str]) -> None:
    assert codes(judged(sound={"start_s": start_s, "end_s": end_s})) == expected


@pytest.mark.parametrize(
    ("first_s", "zero_s", "expected"),
    [(0.0, 0.0, []), (1.4, 1.4, []), (1.44, 1.4, []), (1.46, 1.4, ["starts_late"]), (1.0, 0.0, ["starts_late"])],
)
def test_a_picture_that_begins_after_the_zero_of_times(first_s: float, zero_s: float, expected: list[str]) -> None:
    timeline = replace(Timeline.from_pts(np.arange(100) + round(first_s * 100), 0.01), zero_s=zero_s)
    findings = list(judge_media(RECORDING, Inspection(timeline, PICTURE, SOUND), LIMITS))
    assert codes(findings) == expected
    assert all(f"{first_s - zero_s:.3f} s after the start, at {zero_s:.3f} s" in item.message for item in findings)


def test_limits_are_the_users() -> None:
    inspection = Inspection(None, replace(PICTURE, num_failed=30), replace(SOUND, end_s=7.0))
    strict, lax = Limits(0.0, 0.0), Limits(5.0, 0.5)
    assert codes(list(judge_media(RECORDING, inspection, strict))) == ["video_damaged", "drift"]
    assert codes(list(judge_media(RECORDING, inspection, lax))) == ["video_lost", "length_differs"]


def test_messages_give_numbers_and_limits() -> None:
    damaged, drift = judged({"num_failed": 3}, {"end_s": 5.25})
    assert damaged.message == (
        "3 of 100 video packets cannot be decoded, 0 of 100 frames are lost: 3.0%, 2.0% is allowed"
    )
    assert drift.message == (
        "the sound lasts +1.250 s against the picture, it begins +0.000 s and ends +1.250 s from it; 0.5 s are allowed"
    )
    assert str(drift) == f"one: drift: one.mp4: {drift.message}"


def test_errors_of_a_file_are_problems() -> None:
    error = RecordingError("unreadable", "one.mp4 is empty")
    (finding,) = judge_media(RECORDING, Inspection(errors=(error,)), LIMITS)
    assert finding == Finding("one", PROBLEM, "unreadable", "one.mp4 is empty", RECORDING.path)
    assert str(finding) == "one: unreadable: one.mp4 is empty"  # the path is not said twice


def trace(values_FE: npt.ArrayLike, **arguments: object) -> Annotation:
    return Annotation(("valence", "arousal"), np.asarray(values_FE, np.float64), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_rows", "dropped", "without", "shares", "expected"),
    [
        (100, 0, 0, 1.0, []),
        (98, 0, 2, 0.98, ["rows_differ"]),
        (102, 2, 0, 1.0, ["rows_differ"]),
        (94, 0, 6, None, ["annotation_mismatch"]),
        (200, 100, 0, None, ["annotation_mismatch"]),
    ],
)
def test_rows_and_frames(num_rows: int, dropped: int, without: int, shares: float | None, expected: list[str]) -> None:
    ratings, findings = judge_ratings(RECORDING, trace(np.zeros((num_rows, 2))), (None, None), TIMELINE)
    assert codes(findings) == expected
    assert (ratings.num_rows, ratings.num_dropped, ratings.num_without) == (num_rows, dropped, without)
    assert ratings.rated_share == ({} if shares is None else {"valence": shares, "arousal": shares})
    assert all(finding.path == RECORDING.annotation_path for finding in findings)


def test_rows_differ_message() -> None:
    _, (finding,) = judge_ratings(RECORDING, trace(np.zeros((102, 2))), (None, None), TIMELINE)
    assert finding.message == (
        "102 rows, 100 frames (row i rates frame i): 2 rows rate no frame and are dropped, 0 frames have no row and "
        "are unrated"
    )


@pytest.mark.parametrize("num_values", [100, 60])
def test_a_sparse_trace_may_leave_frames_out_and_end_early(num_values: int) -> None:
    """Its reader spreads its rows over the frames that they name; the rows of the file are what is counted."""
    values_FE = np.full((num_values, 2), NAN)
    values_FE[::10] = 0.5
    annotation = trace(values_FE, is_dense=False, num_rows=num_values // 10)
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), TIMELINE)
    assert codes(findings) == ["mostly_unrated"]
    assert (ratings.num_rows, ratings.num_dropped, ratings.num_without) == (num_values // 10, 0, 0)
    assert ratings.rated_share["valence"] == pytest.approx(num_values / 1000)
    assert judge_ratings(RECORDING, annotation, (None, None), None)[0].num_rows == num_values // 10


def test_rows_of_a_sparse_trace_that_rate_no_frame() -> None:
    values_FE = np.zeros((102, 2))
    values_FE[:42] = values_FE[100] = NAN
    _, (finding,) = judge_ratings(RECORDING, trace(values_FE, is_dense=False, num_rows=59), (None, None), TIMELINE)
    assert (finding.code, finding.message) == (
        "rows_differ",
        "59 rows, 100 frames (rows name their frames): 1 rows rate no frame and are dropped, 0 frames have no row and "
        "are unrated",
    )


@pytest.mark.parametrize(("num_rows", "beside"), [(98, []), (100, ["rows_differ"]), (120, ["annotation_mismatch"])])
def test_rows_by_frame_are_shifted_where_frames_are_left_out(num_rows: int, beside: list[str]) -> None:
    timeline = Timeline.from_pts(np.delete(np.arange(100), [50, 60]).repeat([1] * 40 + [2, 2] + [1] * 56), 1 / 25)
    assert (timeline.num_frames, timeline.num_unplaced) == (98, 2)
    _, findings = judge_ratings(RECORDING, trace(np.zeros((num_rows, 2))), (None, None), timeline)
    assert codes(findings) == ["rows_shifted", *beside]
    assert findings[0].level == PROBLEM
    assert findings[0].message.startswith("2 frames have the time stamp of another, or none, and are left out")
    timed = trace(np.zeros((2, 2)), time_s=np.array([0.0, 3.96]))
    assert judge_ratings(RECORDING, timed, (None, None), timeline)[1] == []


@pytest.mark.parametrize(
    ("num_rated", "partition", "expected"),
    [(50, "train", []), (49, "train", ["mostly_unrated"]), (2, "validation", ["mostly_unrated"]), (2, "test", [])],
)
def test_a_low_rated_share(num_rated: int, partition: str, expected: list[str]) -> None:
    """A frame is rated that has a rating of any target."""
    values_FE = np.full((100, 2), NAN)
    values_FE[: num_rated // 2, 0] = values_FE[num_rated // 2 : num_rated, 1] = 0.5
    recording = replace(RECORDING, partition=partition)
    _, findings = judge_ratings(recording, trace(values_FE), (None, None), TIMELINE)
    assert codes(findings) == expected
    assert all(finding.message.startswith(f"{num_rated}.0% of the frames of a {partition} ") for finding in findings)


def test_minutes_in_place_of_seconds_are_remarked_on() -> None:
    annotation = trace([[5.0, 5.0], [NAN, NAN]], time_s=np.array([0.0, 4.0 / 60]), is_stepped=True, num_rows=1)
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), TIMELINE)
    assert codes(findings) == ["mostly_unrated"]
    assert (ratings.num_rows, ratings.rated_share["valence"]) == (1, 0.02)


def test_times_count_from_the_zero_of_the_file() -> None:
    late = replace(Timeline.from_pts(np.arange(100) + 35, 1 / 25), zero_s=1.4)
    annotation = trace(np.zeros((2, 2)), time_s=np.array([0.0, 3.96]))
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), late)
    assert (findings, ratings.rated_share["valence"]) == ([], 1.0)
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), replace(late, zero_s=0.0))
    # The first row, at 0, is the one that the first frames, from 1.4 on, are interpolated from.
    assert (codes(findings), ratings.num_dropped, ratings.rated_share["valence"]) == (["rows_differ"], 0, 0.65)


@pytest.mark.parametrize(
    ("first_s", "last_s", "expected"),
    [(0.0, 3.96, []), (0.0, 2.0, ["rows_differ"]), (1.0, 4.0, ["rows_differ"]), (-1.0, 4.0, ["rows_differ"])],
)
def test_rows_with_times(first_s: float, last_s: float, expected: list[str]) -> None:
    annotation = trace(np.zeros((11, 2)), time_s=np.linspace(first_s, last_s, 11))
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), TIMELINE)
    assert codes(findings) == expected
    inside = (first_s <= FRAME_S) & (last_s >= FRAME_S)
    assert ratings.is_timed
    assert ratings.rated_share["valence"] == pytest.approx(inside.mean())


@pytest.mark.parametrize(("last", "expected"), [(NAN, []), (0.5, ["rows_differ"])])
def test_the_last_step_may_end_behind_the_last_frame(last: float, expected: list[str]) -> None:
    annotation = trace([[0, 0], [last, last]], time_s=np.array([1.0, 4.0]), is_stepped=True)
    ratings, findings = judge_ratings(RECORDING, annotation, (None, None), TIMELINE)
    assert codes(findings) == expected
    assert (ratings.num_dropped, ratings.num_without) == (len(expected), 25)


def test_values_out_of_range() -> None:
    values_FE = np.zeros((100, 2))
    values_FE[[3, 7], 1] = 1.5, -2.0
    values_FE[5] = NAN
    _, (finding,) = judge_ratings(RECORDING, trace(values_FE), ((-1.0, 1.0), (-1.0, 1.0)), TIMELINE)
    assert finding.code == "out_of_range"
    assert finding.message == ("2 of 100 ratings of arousal lie outside [-1, 1], the first is 1.5 in row 4")
    assert judge_ratings(RECORDING, trace(values_FE), (None, None), TIMELINE)[1] == []
    assert judge_ratings(RECORDING, trace(values_FE), (None, (-2.0, 1.5)), TIMELINE)[1] == []


def test_values_are_judged_without_frames_too() -> None:
    ratings, findings = judge_ratings(RECORDING, trace(np.full((3, 2), 9.0)), ((-1.0, 1.0), None), None)
    assert codes(findings) == ["out_of_range"]
    assert (ratings.num_rows, ratings.num_dropped, ratings.num_without, ratings.rated_share) == (3, None, None, {})


@pytest.mark.parametrize(("partition", "expected"), [("train", ["unrated"]), ("validation", ["unrated"]), ("test", [])])
def test_a_recording_without_ratings(partition: str, expected: list[str]) -> None:
    recording = replace(RECORDING, partition=partition)
    _, findings = judge_ratings(recording, trace(np.full((100, 2), NAN)), (None, None), TIMELINE)
    assert codes(findings) == expected
    assert codes(judge_absence(recording, ("valence",))) == expected
    assert judge_absence(recording, ()) == []


def test_a_target_without_ratings() -> None:
    values_FE = np.zeros((100, 2))
    values_FE[:, 1] = NAN
    ratings, (finding,) = judge_ratings(RECORDING, trace(values_FE), (None, None), TIMELINE)
    assert (finding.code, finding.message) == ("target_unrated", "no frame is rated for arousal")
    assert ratings.rated_share == {"valence": 1.0, "arousal": 0.0}


# Aligned images

CROPPED = replace(RECORDING, crops=Path("crops"))


@pytest.mark.parametrize(
    ("indices", "expected", "words"),
    [
        (range(100), [], ""),
        (range(90), ["crops_differ"], "90 of 100 frames have an image, 0 images"),
        (range(105), ["crops_differ"], "100 of 100 frames have an image, 5 images are numbered beyond the frames"),
        ([*range(3, 100), 102], ["crops_differ"], "97 of 100 frames have an image, 1 images"),
        (range(106), ["missing_crops"], "106 images for 100 frames: are they of this video?"),
    ],
)
def test_aligned_images_and_frames(indices: Sequence[int], expected: list[str], words: str) -> None:
    images = {index: Path(f"crops/{index + 1:05d}.jpg") for index in indices}
    findings = list(judge_crops(CROPPED, images, TIMELINE))
    assert codes(findings) == expected
    assert all(item.level == REMARK and item.path == CROPPED.crops and words in item.message for item in findings)
    assert list(judge_crops(CROPPED, images, None)) == []


@pytest.mark.parametrize("num_frames", [1, 100, 250, 251, 1000])
def test_what_is_said_of_surplus_images_is_what_extraction_does(num_frames: int) -> None:
    timeline = Timeline.from_pts(np.arange(num_frames), 1 / 25)
    for num_beyond in range(22):
        images = {index: Path(f"crops/{index + 1:05d}.jpg") for index in range(num_frames + num_beyond)}
        try:
            CroppedFaces(images, num_frames)
            refusal = None
        except RecordingError as error:
            refusal = str(error).removeprefix("crops: ")
        said = [item.message for item in judge_crops(CROPPED, images, timeline) if item.code == "missing_crops"]
        assert said == ([] if refusal is None else [refusal])


def test_every_faulty_line_is_a_finding() -> None:
    path = Path("one.csv")
    error = AnnotationError([Fault(path, line, f"fault {line}") for line in (3, 8, 9)])
    findings = list_faults(RECORDING, error)
    assert codes(findings) == ["annotation_invalid"] * 3
    assert [(finding.path, finding.line, finding.message) for finding in findings] == [
        (path, line, f"fault {line}") for line in (3, 8, 9)
    ]
    assert str(findings[1]) == "one: annotation_invalid: one.csv, line 8: fault 8"
    (other,) = list_faults(RECORDING, RecordingError("annotation_invalid", "gone"))
    assert (other.path, other.line) == (RECORDING.annotation_path, None)
