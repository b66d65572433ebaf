"""A trace in a text file: which of its columns is the clock, which are targets, and where its rows lie in time.

Its ratings reach the frames of a video by one rule (`Annotation.at`). With times in seconds they are interpolated
linearly between the two rows around a frame; a frame before the first row, behind the last, or between two rows of
which one is unrated is unrated. With indices of frames, or without a clock, a row rates its frame and no other.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avfuse.corpora._text import SEPARATORS, Faults, invalid, read_lines, separator_of, shown
from avfuse.corpora._traces import Row, add_outside, parse_numbers, split_rows
from avfuse.schema import Annotation, Range
from avfuse.spec import normal_name

log = logging.getLogger(__name__)

CLOCKS = {"time": "time", "timestamp": "time", "frametime": "time", "frame_time": "time", "frame": "frame"}
MAX_FRAMES = 10_000_000
_INSTANCE = "name"
# What such columns are called, letters and digits alone, that hold a clock or number the rows, and no ratings.
_UNIT = "(s|secs?|seconds?|ms|msecs?|milliseconds?)"
_INDEX = "(number|num|no|nr|id|idx|index)s?"
_LIKE_A_CLOCK = re.compile(
    rf"(t|start|end|begin|(start|end|begin|frame)?time(stamp)?s?)?{_UNIT}?|frames?|(frame|segment|row|sample)s?{_INDEX}"
    rf"|{_INDEX}|segments?|rows?|onset|offset|duration|date|datetime|clock|unnamed\d*"
)
_TARGET_NAME = re.compile(r"[^\W\d][\w .+-]*")


@dataclass(frozen=True)
class Header:
    """What the columns of a trace are.

    `columns` are all names, in order; `clock` is ``time`` (seconds), ``frame`` (index from 0) or None; `has_instance`
    tells whether the first column names the recording.
    """

    separator: str
    columns: tuple[str, ...]
    has_instance: bool
    clock: str | None
    targets: tuple[str, ...]


def parse_header(path: Path, line: str) -> Header:
    """Read the header of a trace: [name,] [time or frame,] and the targets.

    Raises
    ------
    AnnotationError
        If it names no targets, one of them twice, or a clock among them, even by a name that is none of `CLOCKS`.
    """
    separator = separator_of(path, line)
    names = tuple(normal_name(field.strip()) for field in line.split(separator))
    has_instance = names[0].lower() == _INSTANCE
    rest = names[1:] if has_instance else names
    clock = CLOCKS.get(rest[0].lower()) if rest else None
    targets = rest if clock is None else rest[1:]
    if remedy := _header_remedy(line, targets):
        expected = "a header that names the targets, for example 'time,valence,arousal'"
        raise invalid(path, 1, expected, shown(line), remedy)
    return Header(separator, names, has_instance, clock, targets)


def _header_remedy(line: str, targets: Sequence[str]) -> str | None:
    """Return what to do about a header, None if it is good."""
    if '"' in line or "'" in line:
        return "write the names of the columns without quotes"
    for name in targets:
        if name.lower() not in CLOCKS and _LIKE_A_CLOCK.fullmatch(re.sub(r"[\W_]", "", name.casefold())):
            accepted = "'time' (in seconds), or 'frame' (from 0)"
            return f"if {shown(name)} is the clock, put it first and call it {accepted}, else remove the column"
    if not targets or not all(_TARGET_NAME.fullmatch(name) for name in targets):
        return f"write the names of the columns, separated by {'s, '.join(SEPARATORS.values())}s, first"
    if len(set(targets)) < len(targets) or any(name.lower() in (*CLOCKS, _INSTANCE) for name in targets):
        return "name every target once, and put 'time' or 'frame' first"
    return None


def read_trace(path: Path, targets: tuple[str, ...], ranges: Sequence[Range | None]) -> Annotation:
    """Read a trace that must name these targets, in this order.

    Raises
    ------
    AnnotationError
        Naming every faulty line.
    """
    lines, faults = read_lines(path), Faults(path)
    header = parse_header(path, lines[0])
    rows = split_rows(faults, lines, header.columns, header.separator)
    if header.has_instance:
        _check_instance(faults, rows)
        rows = [Row(row.line, row.fields[1:]) for row in rows]
    if header.targets != targets:
        swapped = " (in another order)" if set(header.targets) == set(targets) else ""
        remedy = "give every trace the same columns in the same order"
        got = ",".join(header.targets) + swapped
        faults.add(1, f"the corpus's targets {','.join(targets)}", got, remedy)
        ranges = [None] * len(header.targets)
    return series(faults, rows, header.clock, header.targets, ranges)


def series(
    faults: Faults, rows: Sequence[Row], clock: str | None, targets: tuple[str, ...], ranges: Sequence[Range | None]
) -> Annotation:
    """Read rows of [clock and] ratings, of which blank or "nan" ones are unrated.

    Raises
    ------
    AnnotationError
        With the faults found before and all that the rows hold: no numbers, a clock that does not increase, ratings
        out of range.
    """
    columns = targets if clock is None else (clock, *targets)
    values = parse_numbers(faults, rows, columns, blank=True)
    values_FE = values if clock is None else values[:, 1:]
    if clock is not None:
        _check_clock(faults, rows, clock, values[:, 0])
    add_outside(faults, rows, values_FE, targets, ranges)
    faults.raise_any()
    if clock is None:
        return Annotation(targets, values_FE)
    if clock == "time":
        return Annotation(targets, values_FE, time_s=values[:, 0])
    frame_F = values[:, 0]
    if frame_F[0] == 1 and frame_F[-1] == len(rows):
        log.warning("%s: frames count from 0; these begin at 1, and as many follow as there are rows", faults.path)
    return Annotation(targets, _spread(frame_F, values_FE), is_dense=False, num_rows=len(rows))


def _check_instance(faults: Faults, rows: Sequence[Row]) -> None:
    """Note the rows that name another recording than the first."""
    for row in rows:
        if row.fields[0] != rows[0].fields[0]:
            expected = f"the name of line {rows[0].line}, {shown(rows[0].fields[0])}, in every row"
            faults.add(row.line, expected, shown(row.fields[0]), "give each recording a file of its own")


def _check_clock(faults: Faults, rows: Sequence[Row], clock: str, clock_F: npt.NDArray[np.float64]) -> None:
    """Note the rows whose clock is blank, does not increase, or names no frame."""
    unit = "a time in seconds" if clock == "time" else "the index of a frame, a whole number from 0"
    wrong_F = np.isnan(clock_F)
    if clock == "frame":
        wrong_F |= (clock_F != np.floor(clock_F)) | (clock_F < 0) | (clock_F >= MAX_FRAMES)
    for index in np.flatnonzero(wrong_F).tolist():
        got = "a blank field" if np.isnan(clock_F[index]) else f"{clock_F[index]:g}"
        faults.add(rows[index].line, unit, got, f"write {unit} in every row, or leave the column out")
    good = np.flatnonzero(~wrong_F)
    for place in np.flatnonzero(np.diff(clock_F[good]) <= 0).tolist():
        before, index = good[place : place + 2].tolist()
        got = f"{clock_F[index]:.9g} after {clock_F[before]:.9g}"
        faults.add(rows[index].line, f"a {clock} that increases from row to row", got, "sort the rows, each once")


def _spread(frame_F: npt.NDArray[np.float64], values_FE: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return one row per frame up to the last named one, NaN where a frame is not named."""
    index_F = frame_F.astype(np.int64)
    spread_FE = np.full((index_F[-1] + 1, values_FE.shape[1]), np.nan)
    spread_FE[index_F] = values_FE
    return spread_FE
