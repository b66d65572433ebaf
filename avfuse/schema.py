"""The nouns of avfuse, and the legend of its shape suffixes.

Shapes are written as suffixes of tensor names, one capital per axis::

    B batch    T clips of a window    N clips of a recording    F frames of a recording    K frames of a clip
    Y X pixels C channels             H W map cells             A audio size               D hidden size
    E targets  S audio samples        M mel bands

A line that changes the shape of a tensor changes the suffix of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

PARTITIONS = ("train", "validation", "test")
SIDES = ("left", "right")
Range = tuple[float, float]
"""The lowest and the highest rating that a target can have."""
MAX_EXCESS_S = 60.0  # of intervals beyond the end of a video that is shorter
MAX_ROW_DIFFERENCE, MAX_ROW_DIFFERENCE_SHARE = 5, 0.02  # annotation rows that may be missing or left over
MAX_LINES_NAMED = 10  # in one message
_CLOCK_ROUNDING_S = 1e-6  # a frame's time is a product of a time stamp and its unit
_STAMP_ROUNDING_S = 1e-3  # time stamps of ratings, and of some containers, are rounded to milliseconds

FAILURE_REASONS = {
    "missing_file": "the media file is not where the corpus says it is",
    "missing_crops": "there are no aligned images of the face where the corpus says they are",
    "unreadable": "the media file cannot be opened or decoded",
    "over_limit": "the media file is larger, longer or made of more streams than is decoded",
    "truncated": "the file ends before the frames that it advertises",
    "corrupt_packets": "more of the file's packets cannot be decoded than is allowed",
    "too_short": "the recording has fewer frames than a clip",
    "too_slow": "the frame rate is too low for clips, as in time-lapse recordings",
    "no_video_stream": "the file holds no video stream, or one without frames",
    "no_audio_stream": "the file holds no audio stream, or one without samples",
    "no_face": "fewer of the frames show a face than is allowed",
    "annotation_invalid": "the annotation file does not follow its format",
    "annotation_mismatch": "the annotation and the video disagree about the number of frames",
    "feature_overflow": "a feature does not fit the number format of the cache",
    "out_of_memory": "the machine ran out of memory",
    "worker_died": "the process that worked at it ended without a word, each time it was tried",
    "unexpected": "an error that avfuse does not know; the message is kept",
}


class UsageError(ValueError):
    """Something the user gave cannot be used; the message says what was given, what is allowed and what to do."""


class RecordingError(Exception):
    """One recording cannot be used; the others can.

    Parameters
    ----------
    reason : str
        A key of `FAILURE_REASONS`.
    message : str
        What was found, and where.
    share : float, optional
        Share of what the reason counts, as of packets that are lost.
    """

    def __init__(self, reason: str, message: str, share: float | None = None) -> None:
        if reason not in FAILURE_REASONS:
            raise ValueError(f"unknown failure reason {reason!r}; known: {', '.join(FAILURE_REASONS)}")
        super().__init__(message)
        self.reason = reason
        self.share = share


class PassingError(RecordingError):
    """One recording cannot be used now; it may be with its files unchanged, as when a disk failed for a moment."""


@dataclass(frozen=True)
class Fault:
    """One line of an annotation file that does not follow its format, counted from 1, and what is wrong with it."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.message}"


class AnnotationError(RecordingError):
    """An annotation file does not follow its format; `faults` are all of its faulty lines, in order.

    The reason is ``annotation_invalid``; the message is the first fault, with the lines of the others behind it.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        first, *others = faults
        lines = ", ".join(str(fault.line) for fault in others[:MAX_LINES_NAMED])
        more = f", and {len(others) - MAX_LINES_NAMED} more" if len(others) > MAX_LINES_NAMED else ""
        super().__init__("annotation_invalid", f"{first}" + (f" (so also lines {lines}{more})" if others else ""))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Failure:
    """Why a recording could not be used: a key of `FAILURE_REASONS`, and what was found.

    `share` is that of what the reason counts: of packets that are lost, of frames that show a face; None elsewhere.
    """

    recording: str
    reason: str
    message: str
    share: float | None = None


@dataclass(frozen=True)
class Recording:
    """One source video with its subject.

    `name` is unique in its corpus: a POSIX path relative to the corpus root, without extension, or the name that the
    data set's annotation files use. `annotation_path` is None where no target is known (a test partition).
    `annotation_sha256` is the digest of the recording's own part of a file that rates several; without it the whole
    file counts as its annotation. `face_side` tells which of two people in the picture is meant, ``left`` or ``right``
    as seen by the viewer; None where there is one. `crops` is the folder of aligned images of the face,
    ``00001.jpg`` being the first frame's, for corpora that bring them.
    """

    name: str
    path: Path
    partition: str
    subject: str
    annotation_path: Path | None = None
    annotation_sha256: str | None = None
    face_side: str | None = None
    crops: Path | None = None

    def __post_init__(self) -> None:
        if self.partition not in PARTITIONS:
            raise ValueError(f"{self.name}: partition {self.partition!r} is none of {', '.join(PARTITIONS)}")
        if self.face_side not in (None, *SIDES):
            raise ValueError(f"{self.name}: side {self.face_side!r} is none of {', '.join(SIDES)}")


def row_tolerance(num_frames: int) -> float:
    """Return by how many the rows, or the images, of a recording may differ from its frames: 5, or 2 %."""
    return max(MAX_ROW_DIFFERENCE, MAX_ROW_DIFFERENCE_SHARE * num_frames)


@dataclass(frozen=True)
class RowCount:
    """How annotation rows and video frames met: `num_dropped` rows rate no frame, `num_without` frames have no row."""

    num_rows: int
    num_frames: int
    num_dropped: int
    num_without: int


@dataclass(frozen=True)
class Receipt:
    """What came of one recording in an extraction.

    Attributes
    ----------
    recording : str
    outcome : str
        ``extracted``; ``present``: it was there before; ``failed``, for the reason in `failure`; ``stopped``: the
        machine or the cache failed, as `error` says, and no other recording could be kept either.
    num_clips : int
        Clips encoded now.
    face_share : float
        Mean over these clips of the share of frames that show a face.
    rows : RowCount or None
        How annotation rows and frames met, where that was found out.
    failure : Failure or None
    is_recorded : bool
        Whether the failure is in the cache's ledger already.
    error : tuple of (int, str, str) or None
        Number, message and place of an error of the system; a number of 0 stands for something that the user gave.
    """

    recording: str
    outcome: str
    num_clips: int = 0
    face_share: float = 0.0
    rows: RowCount | None = None
    failure: Failure | None = None
    is_recorded: bool = True
    error: tuple[int, str, str] | None = None


@dataclass(frozen=True)
class Annotation:
    """A rated trace: one row per video frame, or one row per time stamp.

    Attributes
    ----------
    targets : tuple of str
        Names of the columns, for example ``("valence", "arousal")``.
    values_FE : ndarray, shape (rows, E), float64
        The ratings; NaN where unrated.
    time_s : ndarray, shape (rows,), float64, or None
        Time of each row in seconds on the video's clock, increasing; None when row i rates frame i.
    is_dense : bool
        Whether, without times, every frame is meant to have its row; otherwise frames beyond the last row are unrated.
    is_stepped : bool
        Whether, with times, a row's ratings hold until the next row, and the last row's to the end; otherwise ratings
        are interpolated between rows.
    num_rows : int or None
        Rows in the file, where its reader spread them over frames or made steps of them; None for one per value.
    """

    targets: tuple[str, ...]
    values_FE: npt.NDArray[np.float64]
    time_s: npt.NDArray[np.float64] | None = None
    is_dense: bool = True
    is_stepped: bool = False
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if self.values_FE.ndim != 2 or self.values_FE.shape[1] != len(self.targets):
            raise ValueError(f"values of shape {self.values_FE.shape} do not hold {len(self.targets)} targets")
        if self.time_s is not None and self.time_s.shape != self.values_FE.shape[:1]:
            raise ValueError(f"{self.time_s.shape[0]} times for {self.values_FE.shape[0]} rows")

    def at(self, frame_time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return the rating of each frame, (F, E), NaN where unrated.

        Without times row i rates frame i: rows beyond the last frame are dropped, frames beyond the last row unrated.
        With times the ratings are interpolated linearly between rows; a frame before the first row, after the last, or
        between two rows of which one is unrated is unrated. A frame at the time of a row, give or take a millisecond,
        then has that row's rating. With times and steps each frame has, exactly, the rating of the last row at or
        before it.

        Raises
        ------
        RecordingError
            With reason ``annotation_mismatch``, when rows and frames differ by more than 5 and by more than 2 %, or
            the last time is later after the last frame than a minute and than the video is long.
        """
        if self.time_s is not None:
            self._check_end(frame_time_s)
            return (self._steps_at if self.is_stepped else self._interpolated_at)(frame_time_s).astype(np.float32)
        num_rows, num_frames = len(self.values_FE), len(frame_time_s)
        difference = abs(num_rows - num_frames) if self.is_dense else max(0, num_rows - num_frames)
        if difference > row_tolerance(num_frames):
            raise RecordingError(
                "annotation_mismatch",
                f"{num_rows} annotation rows for {num_frames} video frames; they may differ by "
                f"{MAX_ROW_DIFFERENCE}, or by {MAX_ROW_DIFFERENCE_SHARE:.0%}",
            )
        frame_target_FE = np.full((num_frames, len(self.targets)), np.nan, np.float32)
        shared = min(num_rows, num_frames)
        frame_target_FE[:shared] = self.values_FE[:shared]
        return frame_target_FE

    def _steps_at(self, frame_time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        row_F = self._row_at(frame_time_s, _CLOCK_ROUNDING_S)
        return np.where(row_F[:, None] < 0, np.nan, self.values_FE[row_F])

    def _interpolated_at(self, frame_time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        assert self.time_s is not None
        columns = [
            np.interp(frame_time_s, self.time_s, column, left=np.nan, right=np.nan) for column in self.values_FE.T
        ]
        row_F = self._row_at(frame_time_s, _STAMP_ROUNDING_S)
        is_at_row_F = (row_F >= 0) & (np.abs(frame_time_s - self.time_s[row_F]) <= _STAMP_ROUNDING_S)
        values_FE = np.stack(columns, axis=1)
        return np.where(np.isnan(values_FE) & is_at_row_F[:, None], self.values_FE[row_F], values_FE)

    def _row_at(self, frame_time_s: npt.NDArray[np.float64], rounding_s: float) -> npt.NDArray[np.int64]:
        """Return the index of the last row at or before each frame, (F,); -1 where there is none."""
        assert self.time_s is not None
        return np.searchsorted(self.time_s, frame_time_s + rounding_s, side="right") - 1

    def count(self, frame_time_s: npt.NDArray[np.float64]) -> RowCount:
        """Count how the rows meet frames of the given times, by the same rules as `at`.

        By frame, a row without its frame is dropped. By time, a row is dropped that lies before the first frame or
        behind the last, unless it only ends a step, or frames are interpolated towards it. A frame is without row where
        no row, or no two rows around it, could rate it; one whose row says "unrated" has a row, and where not every
        frame is meant to have one, none lacks it.
        """
        num_values, num_frames = len(self.values_FE), len(frame_time_s)
        num_rows = num_values if self.num_rows is None else self.num_rows
        is_rated = np.asarray(~np.isnan(self.values_FE).all(axis=1))
        if self.time_s is None:
            num_dropped = max(0, num_values - num_frames) if self.is_dense else int(is_rated[num_frames:].sum())
            num_without = max(0, num_frames - num_values) if self.is_dense else 0
            return RowCount(num_rows, num_frames, num_dropped, num_without)
        first_s, last_s = frame_time_s[0], frame_time_s[-1]
        if self.is_stepped:
            num_dropped = int((is_rated & (self.time_s > last_s + _CLOCK_ROUNDING_S)).sum())
            num_without = int((frame_time_s + _CLOCK_ROUNDING_S < self.time_s[0]).sum())
            return RowCount(num_rows, num_frames, num_dropped, num_without)
        is_early, is_late = self.time_s < first_s - _STAMP_ROUNDING_S, self.time_s > last_s + _STAMP_ROUNDING_S
        num_early, num_late = int(is_early.sum()), int(is_late.sum())
        # Frames before the first row inside, or behind the last, are interpolated towards the next row outside.
        if num_early < num_values and self.time_s[num_early] > first_s + _STAMP_ROUNDING_S:
            num_early = max(0, num_early - 1)
        if num_late < num_values and self.time_s[num_values - num_late - 1] < last_s - _STAMP_ROUNDING_S:
            num_late = max(0, num_late - 1)
        is_without_F = frame_time_s + _STAMP_ROUNDING_S < self.time_s[0]
        is_without_F |= frame_time_s > self.time_s[-1] + _STAMP_ROUNDING_S
        return RowCount(num_rows, num_frames, num_early + num_late, int(is_without_F.sum()))

    def _check_end(self, frame_time_s: npt.NDArray[np.float64]) -> None:
        """Refuse times that reach far beyond the video, as times in milliseconds do."""
        assert self.time_s is not None
        length_s, excess_s = frame_time_s[-1] - frame_time_s[0], self.time_s[-1] - frame_time_s[-1]
        if excess_s > max(MAX_EXCESS_S, length_s):
            raise RecordingError(
                "annotation_mismatch",
                f"ratings reach to {self.time_s[-1]:g} s, the video to {frame_time_s[-1]:.3f} s; are they in seconds?",
            )


@dataclass
class Batch:
    """Windows of T consecutive clips, padded at the end to one length; what maps hold at padding means nothing.

    Attributes
    ----------
    audio_BTA : Tensor, (B, T, A), float32
    video_BTCHW : Tensor, (B, T, C, H, W), float16 as cached, or float32; heads compute in their own precision
    target_BTE : Tensor, (B, T, E), float32, NaN where unrated or padded
    mask_BT : Tensor, (B, T), bool, True for a clip, False for padding; on the host, wherever the others are
    face_BT : Tensor, (B, T), float32, share of the clip's frames that show the face, 0 for padding
    """

    audio_BTA: torch.Tensor
    video_BTCHW: torch.Tensor
    target_BTE: torch.Tensor
    mask_BT: torch.Tensor
    face_BT: torch.Tensor


@dataclass(frozen=True)
class Predictions:
    """Per-frame predictions of one recording, with what is needed to score them.

    Attributes
    ----------
    recording, subject, partition : str
    targets : tuple of str
    time_s : ndarray, (F,), float64
        Presentation time of each frame, in seconds.
    prediction_FE, target_FE : ndarray, (F, E), float32
        `target_FE` is NaN where the frame is unrated.
    face_F : ndarray, (F,), bool
        Whether the face was found in the frame.
    """

    recording: str
    subject: str
    partition: str
    targets: tuple[str, ...]
    time_s: npt.NDArray[np.float64]
    prediction_FE: npt.NDArray[np.float32]
    target_FE: npt.NDArray[np.float32]
    face_F: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReportTable:
    """A table ready to be written in any format.

    `columns` are the headings; `rows` hold one string per column, ready to print; `records` hold the same rows as
    plain values for formats that machines read; `notes` are lines printed below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
