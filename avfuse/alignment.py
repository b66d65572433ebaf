"""How the rows of features that others extracted, and their ratings, meet on the frames of a recording.

Row i of the features ends at frame ``first_frame + i * hop``. Ratings have a row per clip, a row per frame, or times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse.arrays import MissingArrayError, OpenArray, open_array
from avfuse.mapping import MODALITIES, FeatureMapping, ForeignRecording
from avfuse.schema import Annotation, RecordingError, UsageError

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Plan:
    """One recording as it will be stored.

    Attributes
    ----------
    recording : ForeignRecording
    num_clips, num_frames : int
        N and F.
    is_cut : bool
        Whether features or ratings are left over at the end.
    num_rated_frames, num_rated_clips : int
        With a rating of a target at least; a clip's rating is that of its last frame.
    shapes : dict
        Of one clip's features by modality: (C, H, W) or (A,).
    """

    recording: ForeignRecording
    num_clips: int
    num_frames: int
    is_cut: bool
    num_rated_frames: int
    num_rated_clips: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def is_rated(self) -> bool:
        """Whether any frame has a rating."""
        return self.num_rated_frames > 0


def plan_recording(mapping: FeatureMapping, recording: ForeignRecording) -> Plan:
    """Look at the shapes of a recording's features, and at its ratings.

    Raises
    ------
    UsageError
        If they are not there, have other shapes than they can have, or other lengths than each other, or if there are
        ratings of which none falls on a frame.
    """
    shapes, lengths = {}, {}
    for key in MODALITIES:
        if key in recording.places:
            with open_feature(mapping, recording, key) as opened:
                lengths[key], shapes[key] = opened.shape[0], _clip_shape(key, opened.shape)
    ratings = read_ratings(mapping, recording)
    num_rows = None  # of ratings, where each is a frame's
    if ratings is not None and ratings.time_s is None:
        lengths["target"] = len(ratings.values_FE)
        if mapping.target_rows == "frame":
            num_rows = len(ratings.values_FE)
            lengths["target"] = max(0, (num_rows - 1 - mapping.first_frame) // mapping.hop + 1)
    num_clips, is_cut = min(lengths.values()), len(set(lengths.values())) > 1
    if num_clips == 0 or (is_cut and mapping.align == "exact"):
        raise UsageError(_say_lengths(mapping, recording, lengths, num_rows))
    end = mapping.first_frame + num_clips * mapping.hop  # the frame at which the next clip would end
    num_frames = end - mapping.hop + 1 if num_rows is None else min(num_rows, end)
    plan = Plan(recording, num_clips, num_frames, is_cut, 0, 0, shapes)
    is_rated_F = np.asarray(~np.isnan(frame_target(mapping, plan, ratings)).all(axis=1))
    if ratings is not None and not is_rated_F.any():
        _refuse_unrated(mapping, plan, ratings)
    num_rated_clips = int(is_rated_F[end_frames(mapping, plan)].sum())
    return replace(plan, num_rated_frames=int(is_rated_F.sum()), num_rated_clips=num_rated_clips)


def end_frames(mapping: FeatureMapping, plan: Plan) -> npt.NDArray[np.int64]:
    """Return the index of the last frame of each clip, (N,)."""
    return mapping.first_frame + mapping.hop * np.arange(plan.num_clips)


def frame_target(mapping: FeatureMapping, plan: Plan, ratings: Annotation | None) -> npt.NDArray[np.float32]:
    """Return the rating of each frame, (F, E), NaN where unrated; of ratings per clip that is all but its last frame.

    Raises
    ------
    UsageError
        If the times of the ratings reach far beyond the features.
    """
    frame_target_FE = np.full((plan.num_frames, len(mapping.targets)), np.nan, np.float32)
    if ratings is None:
        return frame_target_FE
    if ratings.time_s is not None:
        try:
            return ratings.at(np.arange(plan.num_frames) / mapping.fps)
        except RecordingError as error:
            raise UsageError(f"{mapping.path}: target_time of '{plan.recording.name}': {error}") from error
    if mapping.target_rows == "clip":
        frame_target_FE[end_frames(mapping, plan)] = ratings.values_FE[: plan.num_clips]
    else:
        frame_target_FE[:] = ratings.values_FE[: plan.num_frames]
    return frame_target_FE


def read_ratings(mapping: FeatureMapping, recording: ForeignRecording) -> Annotation | None:
    """Read the ratings of a recording, a row per clip, frame or time, NaN where unrated.

    Return None if there are none; of a recording for testing they may be missing, of others not.

    Raises
    ------
    UsageError
        If they cannot be read, or are not those of the targets.
    """
    if "target" not in recording.places:
        return None
    try:
        with open_feature(mapping, recording, "target") as opened:
            values_RE = _ratings_of(mapping, opened)
    except MissingArrayError:
        if recording.partition == "test":
            return None
        raise
    if "target_time" not in recording.places:
        return Annotation(mapping.targets, values_RE)
    with open_feature(mapping, recording, "target_time") as opened:
        time_s = opened.rows(0, opened.shape[0]).astype(np.float64)
        if time_s.shape not in (values_RE.shape[:1], (len(values_RE), 1)):
            raise UsageError(f"it has shape {time_s.shape}; expected one time per row of target, ({len(values_RE)},)")
        time_s = time_s.reshape(-1)
        if not np.isfinite(time_s).all() or (np.diff(time_s) <= 0).any():
            raise UsageError("expected times in seconds that are finite and increase from row to row")
    return Annotation(mapping.targets, values_RE, time_s)


@contextmanager
def open_feature(mapping: FeatureMapping, recording: ForeignRecording, key: str) -> Iterator[OpenArray]:
    """Open an array of a recording; an error in the ``with`` statement says which file, key and recording it is about.

    Raises
    ------
    UsageError
        If it cannot be opened.
    """
    location = recording.places[key]
    try:
        with open_array(mapping.file_of(location), location.inside) as opened:
            yield opened
    except UsageError as error:
        kind = MissingArrayError if isinstance(error, MissingArrayError) else UsageError
        raise kind(f"{mapping.path}: {key} of '{recording.name}' ({location}): {error}") from error


def _clip_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one clip's features, as stored: (C, H, W) or (A,)."""
    if key == "audio" and len(shape) == 2:
        return shape[1:]
    if key == "video" and len(shape) == 2:
        return (shape[1], 1, 1)
    if key == "video" and len(shape) == 4 and shape[2] == shape[3]:
        return shape[1:]
    expected = "(rows, A)" if key == "audio" else "(rows, D), or (rows, C, H, W) with H = W"
    raise UsageError(f"it has shape {shape}; expected {expected}")


def _ratings_of(mapping: FeatureMapping, opened: OpenArray) -> npt.NDArray[np.float64]:
    """Return ratings, (R, E), NaN where unrated."""
    num_targets = len(mapping.targets)
    if opened.shape[1:] != (num_targets,) and (opened.shape[1:], num_targets) != ((), 1):
        raise UsageError(f"it has shape {opened.shape}; expected (rows, {num_targets}): {', '.join(mapping.targets)}")
    values = opened.rows(0, opened.shape[0])
    values_RE = values.astype(np.float64).reshape(-1, num_targets)
    if mapping.unrated is not None:
        unrated = _in_numbers_of(values.dtype, mapping.unrated)
        if unrated is None:
            raise UsageError(
                f"it holds {values.dtype}, in which unrated = {mapping.unrated:g} cannot occur; give the number that "
                "stands for 'not rated' in it, or leave unrated out"
            )
        values_RE[(values == unrated).reshape(values_RE.shape)] = np.nan
    for target, value_R, declared in zip(mapping.targets, values_RE.T, mapping.ranges, strict=True):
        lowest, highest = declared or (-_LARGEST, _LARGEST)
        # A rating at the limit is the limit as the file can hold it, on whichever side of it that lies.
        rounded = [lowest, highest, *(_in_numbers_of(values.dtype, limit) for limit in (lowest, highest))]
        held = [float(limit) for limit in rounded if limit is not None]
        outside_R = (value_R < min(held)) | (value_R > max(held))
        if outside_R.any():
            row = int(np.argmax(outside_R))
            raise UsageError(
                f"row {row} has {target} = {value_R[row]:g}, outside of {lowest:g} to {highest:g}; a number that "
                "stands for 'not rated' is declared with unrated"
            )
    return values_RE


def _in_numbers_of(dtype: np.dtype[Any], number: float) -> Any:
    """Return a number as numbers of this type hold it (0.1 is another one in 32 bits than in 64); None if none does."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = dtype.type(number)
        return held if np.isfinite(held) and (held != 0 or number == 0) else None
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return dtype.type(int(number)) if number.is_integer() and lowest <= number <= highest else None


def _refuse_unrated(mapping: FeatureMapping, plan: Plan, ratings: Annotation) -> None:
    """Refuse ratings that rate no frame; those of a recording for testing may all be left blank."""
    is_rated_R = np.asarray(~np.isnan(ratings.values_FE).all(axis=1))
    name, partition = plan.recording.name, plan.recording.partition
    if not is_rated_R.any():
        if partition == "test":
            return
        raise UsageError(
            f"{mapping.path}: target of '{name}': all of its {len(is_rated_R)} rows say 'not rated', which only "
            f"recordings for testing may; leave this one out, with skip in partitions or by listing the others"
        )
    if ratings.time_s is None:
        raise UsageError(
            f"{mapping.path}: target of '{name}': none of its rows for the {plan.num_clips} clips holds a rating, only "
            f"those behind them, from row {int(np.argmax(is_rated_R))}; do target and features belong together?"
        )
    rated_s, end_s = ratings.time_s[is_rated_R], end_frames(mapping, plan)[[0, -1]] / mapping.fps
    raise UsageError(
        f"{mapping.path}: target_time of '{name}': no frame gets a rating: those of target lie at {rated_s[0]:g} s to "
        f"{rated_s[-1]:g} s, the ends of the {plan.num_clips} clips at {end_s[0]:g} s to {end_s[1]:g} s; times are in "
        "seconds from the first frame"
    )


def _say_lengths(
    mapping: FeatureMapping, recording: ForeignRecording, lengths: dict[str, int], num_rows: int | None
) -> str:
    counted = [f"{key} has {length} rows" for key, length in lengths.items()]
    if num_rows is not None:
        counted[-1] = (
            f"target has {num_rows} rows, one per frame, for {lengths['target']} clips (the first ends at "
            f"frame {mapping.first_frame}, the next {mapping.hop} frames later)"
        )
    remedy = "mend them, or drop what is left over at the end, with align = 'shortest'"
    return f"{mapping.path}: recording '{recording.name}': {', '.join(counted)}; {remedy}"
