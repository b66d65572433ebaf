"""What may be found in a recording, how bad it is, and how its annotation meets its frames.

A *problem* would corrupt training, or cost the recording; a *remark* is something that avfuse handles and that is worth
knowing. `CODES` says which is which; `judge_media` and `judge_ratings` compare what was measured with what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avfuse.inspection import SILENCE_DBFS, Inspection, Picture, Sound
from avfuse.schema import (
    FAILURE_REASONS,
    PARTITIONS,
    Annotation,
    AnnotationError,
    Range,
    Recording,
    RecordingError,
    RowCount,
    row_tolerance,
)
from avfuse.timeline import Timeline

PROBLEM, REMARK = "problem", "remark"
NOTABLE_S = 0.05
"""Differences between sound and picture are remarked on from here: about where a viewer starts to notice them (45 ms,
ITU-R BT.1359), and more than the padding that lossy codecs put around a sound."""
CLOCK_NOTABLE_S = 0.02  # well above time stamps in milliseconds, and below a frame
MOSTLY_SILENT, PARTLY_ZERO, MOSTLY_UNRATED = 0.5, 0.1, 0.5
RATED_PARTITIONS = PARTITIONS[:2]  # ratings of the test partition are often held back
REFUSED = (
    "missing_file",
    "unreadable",
    "over_limit",
    "truncated",
    "too_short",
    "too_slow",
    "no_video_stream",
    "no_audio_stream",
    "annotation_invalid",
    "annotation_mismatch",
    "unexpected",
)
CODES = {
    **{reason: (PROBLEM, FAILURE_REASONS[reason]) for reason in REFUSED},
    "leak": (PROBLEM, "a subject or a file is in two partitions: scores are then too good"),
    "out_of_range": (PROBLEM, "a rating lies outside the range of its target"),
    "unrated": (PROBLEM, "a recording to train or validate on has no rated frame: its trace may not have been found"),
    "rows_shifted": (PROBLEM, "frames are left out, and rows by frame behind them rate other frames"),
    "drift": (PROBLEM, "sound and picture differ in length by more than --max-drift-s, and do not end together"),
    "sound_clock": (PROBLEM, "the sound's time stamps and its sample rate disagree by more than --max-drift-s"),
    "video_damaged": (PROBLEM, "more than --max-lost of the video packets fail, or of the frames are lost"),
    "audio_damaged": (PROBLEM, "more than --max-lost of the audio packets fail"),
    "silent": (PROBLEM, "the sound is silent throughout: there is nothing to fuse"),
    "missing_crops": (REMARK, "aligned images are missing, or of another video; --faces cropped would refuse it"),
    "crops_differ": (REMARK, "aligned images and frames differ; a frame without one counts as without a face"),
    "rows_differ": (REMARK, "annotation rows and frames do not cover each other; the rest is dropped, or unrated"),
    "target_unrated": (REMARK, "a target has no rated frame, others have; it is masked"),
    "mostly_unrated": (REMARK, "less than half of the frames to train or validate on are rated; the others are masked"),
    "starts_late": (
        REMARK,
        "the picture begins after the start that a player shows, from where times of ratings count",
    ),
    "variable_rate": (REMARK, "the frame rate varies; clips are laid in seconds"),
    "start_offset": (REMARK, "sound and picture begin apart; both are placed by their time stamps"),
    "length_differs": (REMARK, "sound and picture differ in length; where there is no sound, silence stands for it"),
    "sound_clock_off": (REMARK, "the sound's time stamps and its sample rate disagree; the time stamps count"),
    "rotated": (REMARK, "the picture is stored turned; frames are turned upright"),
    "picture_gap": (REMARK, "two or more frames are missing; the last one before the gap is shown meanwhile"),
    "sound_gap": (REMARK, "sound is missing, or overlaps; gaps are filled with silence, overlaps are heard once"),
    "video_lost": (REMARK, "a few video packets fail, or frames are lost; their faces count as not found"),
    "audio_lost": (REMARK, "a few audio packets fail; they are filled with silence"),
    "frames_advertised": (REMARK, "the container advertises another number of frames than it holds"),
    "repeated_times": (REMARK, "frames with the time stamp of another, or with none, are left out"),
    "mostly_silent": (REMARK, "half of the sound, or more, is silent"),
    "muted": (REMARK, "a tenth of the sound, or more, consists of zeros, as of a muted microphone"),
}
"""What an audit may find: code -> level and meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing found: in a recording, or in the corpus where `recording` is None.

    `code` is a key of `CODES`, and `level` goes with it. `line`, counted from 1, is given for annotation files.
    """

    recording: str | None
    level: str
    code: str
    message: str
    path: Path | None = None
    line: int | None = None

    @classmethod
    def of(cls, recording: Recording | None, code: str, message: str, path: Path | None = None) -> Finding:
        """Make a finding of a code; its path is the recording's file unless another is given."""
        name, file = (None, None) if recording is None else (recording.name, recording.path)
        return cls(name, CODES[code][0], code, message, path or file)

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}, line {self.line}: " if self.line else f"{self.path}: "
        message = self.message if self.path is None or str(self.path) in self.message else f"{place}{self.message}"
        return f"{self.recording or 'corpus'}: {self.code}: {message}"


@dataclass(frozen=True)
class Ratings:
    """How the annotation of a recording meets its frames.

    Attributes
    ----------
    num_rows : int
    is_timed : bool
        Whether rows have times, and frames get their ratings by time; otherwise row i rates frame i.
    num_dropped, num_without : int or None
        Rows that rate no frame, and frames without row, as `Annotation.count` has them; None without frames.
    rated_share : dict
        Share of the frames that are rated, by target; empty where the annotation does not fit the frames.
    """

    num_rows: int
    is_timed: bool
    num_dropped: int | None
    num_without: int | None
    rated_share: dict[str, float]


@dataclass(frozen=True)
class Limits:
    """From where on a difference or a loss is a problem: seconds between sound and picture, share of what may fail."""

    max_drift_s: float
    max_lost: float


def judge_media(recording: Recording, inspection: Inspection, limits: Limits) -> Iterator[Finding]:
    """Yield what is wrong with, or worth knowing of, a recording's file."""
    for error in inspection.errors:
        yield Finding.of(recording, error.reason, str(error))
    picture, sound = inspection.picture, inspection.sound
    if picture is not None:
        yield from _judge_picture(recording, picture, limits)
    if sound is not None:
        yield from _judge_sound(recording, sound, limits)
    yield from _judge_length(recording, inspection, limits)
    timeline = inspection.timeline
    if timeline is not None and timeline.rated_time_s[0] > NOTABLE_S:
        found = f"the first frame is shown {timeline.rated_time_s[0]:.3f} s after the start, at {timeline.zero_s:.3f} s"
        yield Finding.of(recording, "starts_late", found)


def _judge_picture(recording: Recording, picture: Picture, limits: Limits) -> Iterator[Finding]:
    lost = max(_share(picture.num_failed, picture.num_packets), _share(picture.num_lost, picture.num_frames))
    if lost > 0:
        code = "video_damaged" if lost > limits.max_lost else "video_lost"
        yield Finding.of(
            recording,
            code,
            f"{picture.num_failed} of {picture.num_packets} video packets cannot be decoded, "
            f"{picture.num_lost} of {picture.num_frames} frames are lost{_allowed(lost, limits.max_lost)}",
        )
    if picture.num_advertised is not None and picture.num_advertised != picture.num_packets:
        found = f"the container advertises {picture.num_advertised} frames, and holds {picture.num_packets}"
        yield Finding.of(recording, "frames_advertised", found)
    if picture.num_unplaced:
        yield Finding.of(recording, "repeated_times", _describe_unplaced(picture))
    if picture.is_variable:
        found = (
            f"{picture.fps:.3f} frames per second on average, intervals off by {picture.jitter_max_ms:.1f} ms at most "
            f"(sd {picture.jitter_sd_ms:.1f} ms)"
        )
        yield Finding.of(recording, "variable_rate", found)
    if picture.rotation_deg:
        yield Finding.of(recording, "rotated", f"stored turned by {picture.rotation_deg} degrees")
    if picture.num_gaps:
        yield Finding.of(recording, "picture_gap", _describe_gaps(picture))


def _judge_sound(recording: Recording, sound: Sound, limits: Limits) -> Iterator[Finding]:
    lost = _share(sound.num_failed, sound.num_packets)
    if lost > 0:
        code = "audio_damaged" if lost > limits.max_lost else "audio_lost"
        found = f"{sound.num_failed} of {sound.num_packets} audio packets cannot be decoded"
        yield Finding.of(recording, code, found + _allowed(lost, limits.max_lost))
    if abs(sound.clock_s) >= CLOCK_NOTABLE_S:
        code = "sound_clock" if abs(sound.clock_s) > limits.max_drift_s else "sound_clock_off"
        found = f"by its time stamps the sound lasts {sound.clock_s:+.3f} s against its samples at {sound.rate_hz} Hz"
        yield Finding.of(recording, code, found)
    if sound.num_gaps or sound.num_overlaps:
        overlaps = f"; {sound.num_overlaps} overlaps" if sound.num_overlaps else ""
        yield Finding.of(recording, "sound_gap", _describe_gaps(sound) + overlaps)
    if sound.silent_share == 1.0:
        yield Finding.of(recording, "silent", f"no window of the sound reaches {SILENCE_DBFS:g} dB of full scale")
        return
    if sound.silent_share >= MOSTLY_SILENT:
        yield Finding.of(recording, "mostly_silent", f"{sound.silent_share:.0%} of the sound is silent")
    if sound.digital_silence_share >= PARTLY_ZERO:
        yield Finding.of(recording, "muted", f"{sound.digital_silence_share:.0%} of the sound consists of zeros")


def _judge_length(recording: Recording, inspection: Inspection, limits: Limits) -> Iterator[Finding]:
    """Compare sound and picture: one that ends with the other, or is moved as a whole, does not drift."""
    offset_s, drift_s, end_offset_s = inspection.offset_s, inspection.drift_s, inspection.end_offset_s
    if offset_s is None or drift_s is None or end_offset_s is None:
        return
    if abs(offset_s) >= NOTABLE_S:
        when = "after" if offset_s > 0 else "before"
        yield Finding.of(recording, "start_offset", f"the sound begins {abs(offset_s):.3f} s {when} the picture")
    if abs(drift_s) < NOTABLE_S:
        return
    found = (
        f"the sound lasts {drift_s:+.3f} s against the picture, it begins {offset_s:+.3f} s and ends "
        f"{end_offset_s:+.3f} s from it"
    )
    if min(abs(drift_s), abs(end_offset_s)) > limits.max_drift_s:
        yield Finding.of(recording, "drift", f"{found}; {limits.max_drift_s:g} s are allowed")
    else:
        yield Finding.of(recording, "length_differs", found)


def judge_crops(recording: Recording, images: Mapping[int, Path], timeline: Timeline | None) -> Iterator[Finding]:
    """Compare the aligned images of a recording, by the index of their frame, with the frames, None where unknown."""
    if timeline is None:
        return
    num_frames = timeline.num_frames
    num_beyond = sum(index >= num_frames for index in images)
    num_shown = len(images) - num_beyond
    if num_beyond > row_tolerance(num_frames):
        found = f"{len(images)} images for {num_frames} frames: are they of this video?"
        yield Finding.of(recording, "missing_crops", found, recording.crops)
    elif num_beyond or num_shown < num_frames:
        found = f"{num_shown} of {num_frames} frames have an image, {num_beyond} images are numbered beyond the frames"
        yield Finding.of(recording, "crops_differ", found, recording.crops)


def judge_ratings(
    recording: Recording, annotation: Annotation, ranges: Sequence[Range | None], timeline: Timeline | None
) -> tuple[Ratings, list[Finding]]:
    """Compare an annotation with the frames, None where there are none, and with what its targets allow.

    Returns
    -------
    tuple of Ratings and list of Finding
    """
    findings = list(_judge_values(recording, annotation, ranges))
    is_timed = annotation.time_s is not None
    if timeline is None:
        num_rows = len(annotation.values_FE) if annotation.num_rows is None else annotation.num_rows
        return Ratings(num_rows, is_timed, None, None, {}), findings
    if timeline.num_unplaced and not is_timed:
        found = f"{_describe_unplaced(timeline)}, and are left out: rows by frame behind them rate other frames"
        findings.append(Finding.of(recording, "rows_shifted", found, recording.annotation_path))
    count = annotation.count(timeline.rated_time_s)
    shares: dict[str, float] = {}
    try:
        is_rated_FE = ~np.isnan(annotation.at(timeline.rated_time_s))
    except RecordingError as error:
        findings.append(Finding.of(recording, error.reason, str(error), recording.annotation_path))
    else:
        shares = dict(zip(annotation.targets, is_rated_FE.mean(axis=0).tolist(), strict=True))
        findings += _judge_rows(recording, annotation, count)
        findings += _judge_shares(recording, shares, float(is_rated_FE.any(axis=1).mean()))
    return Ratings(count.num_rows, is_timed, count.num_dropped, count.num_without, shares), findings


def judge_absence(recording: Recording, targets: Sequence[str]) -> list[Finding]:
    """Return what it means that a recording has no annotation: nothing where none is asked for."""
    if not targets or recording.partition not in RATED_PARTITIONS:
        return []
    return [Finding.of(recording, "unrated", f"a {recording.partition} recording without annotation")]


def list_faults(recording: Recording, error: RecordingError) -> list[Finding]:
    """Return one finding per faulty line of an annotation that cannot be used."""
    if isinstance(error, AnnotationError):
        level = CODES[error.reason][0]
        return [
            Finding(recording.name, level, error.reason, fault.message, fault.path, fault.line)
            for fault in error.faults
        ]
    return [Finding.of(recording, error.reason, str(error), recording.annotation_path)]


def _judge_values(recording: Recording, annotation: Annotation, ranges: Sequence[Range | None]) -> Iterator[Finding]:
    for target, allowed, values_F in zip(annotation.targets, ranges, annotation.values_FE.T, strict=True):
        if allowed is None:
            continue
        wrong = np.flatnonzero((values_F < allowed[0]) | (values_F > allowed[1]))
        if len(wrong):
            found = (
                f"{len(wrong)} of {len(values_F)} ratings of {target} lie outside [{allowed[0]:g}, {allowed[1]:g}], "
                f"the first is {values_F[wrong[0]]:g} in row {wrong[0] + 1}"
            )
            yield Finding.of(recording, "out_of_range", found, recording.annotation_path)


def _judge_rows(recording: Recording, annotation: Annotation, count: RowCount) -> Iterator[Finding]:
    """Yield that rows and frames do not cover each other; intervals of steps may leave frames out."""
    if count.num_dropped or (count.num_without and not annotation.is_stepped):
        found = _describe_rows(annotation, count)
        yield Finding.of(recording, "rows_differ", found, recording.annotation_path)


def _judge_shares(recording: Recording, shares: dict[str, float], rated_share: float) -> Iterator[Finding]:
    is_asked_for = recording.partition in RATED_PARTITIONS
    if rated_share == 0:
        if is_asked_for:
            found = f"no frame of a {recording.partition} recording is rated"
            yield Finding.of(recording, "unrated", found, recording.annotation_path)
        return
    if rated_share < MOSTLY_UNRATED and is_asked_for:
        found = f"{rated_share:.1%} of the frames of a {recording.partition} recording are rated"
        yield Finding.of(recording, "mostly_unrated", found, recording.annotation_path)
    unrated = [target for target, share in shares.items() if share == 0]
    if unrated:
        found = f"no frame is rated for {', '.join(unrated)}"
        yield Finding.of(recording, "target_unrated", found, recording.annotation_path)


def _describe_rows(annotation: Annotation, count: RowCount) -> str:
    rule = "row i rates frame i" if annotation.num_rows is None else "rows name their frames"
    rule = rule if annotation.time_s is None else "by time"
    return (
        f"{count.num_rows} rows, {count.num_frames} frames ({rule}): {count.num_dropped} rows rate no frame and are "
        f"dropped, {count.num_without} frames have no row and are unrated"
    )


def _describe_unplaced(stream: Picture | Timeline) -> str:
    return f"{stream.num_unplaced} frames have the time stamp of another, or none"


def _describe_gaps(stream: Picture | Sound) -> str:
    found = f"{stream.num_gaps} {'gap' if stream.num_gaps == 1 else 'gaps'}"
    if stream.longest_gap_at_s is None:
        return found
    return f"{found}, the longest of {stream.longest_gap_s:.3f} s at {stream.longest_gap_at_s:.3f} s"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _allowed(lost: float, max_lost: float) -> str:
    return f": {lost:.1%}, {max_lost:.1%} is allowed" if lost > max_lost else f": {lost:.1%}"
