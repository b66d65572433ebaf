"""Long sessions rated for fatigue, one number per interval, with all ratings in one file."""

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._shares import SPLIT_SEED, TEST, VALIDATION, Shares
from avfuse.corpora._tables import IDENTITY, Table, check_identity, is_plain, read_table
from avfuse.corpora._text import Faults, invalid, shown
from avfuse.corpora._traces import Row, declared_range, read_number
from avfuse.corpora._tree import outside, tree_of, videos_below
from avfuse.schema import Annotation, AnnotationError, Recording, UsageError

_FILE = "ratings.csv"
_INTERVAL = ("start", "end", "value")
_REQUIRED = ("recording", "subject", *_INTERVAL)
_KNOWN = ("recording", *IDENTITY, *_INTERVAL)
_HEADER = ",".join(_KNOWN)


class FatigueCorpus(Corpus):
    """Every video under a folder; ``ratings.csv`` at its top has one row per rated interval.

    A row names the recording (the path of its video below the root, without suffix), its subject and partition, where
    the interval starts and ends in seconds on the video's clock, and the rating. The header says, in any case, which
    column is which. Every frame from the start up to, but not including, the end has that rating; a frame in no
    interval is unrated. A video without rows is a test recording without annotation, its subject is its name. A row
    without a video is still listed, with the path ``<root>/<recording>.mp4``, so that extraction records it as missing.

    The column ``partition`` may be left out: then the rated subjects are spread over partitions by their shares.

    The ratings are read once. Who is in which partition must be right throughout; what is wrong with an interval or a
    rating costs its recording alone, and a changed one makes that recording, not the others, be extracted again.

    Parameters
    ----------
    root : Path
        Folder that holds the videos and ``ratings.csv``.
    lowest, highest : float
        The range of the ratings; one outside is a fault.
    validation, test : float
        Shares of the rated subjects, where there is no column ``partition``; the others are trained on.
    split_seed : int
        Of the draw of these subjects.

    Raises
    ------
    UsageError
        If the folder or ``ratings.csv`` does not exist, two videos differ in their suffix alone, or the file is no
        table of ratings or has a fault in recording, subject or partition; the message then names the lines. If the
        range is none, the subjects are too few for the shares, or shares are given beside a column ``partition``.
    """

    layout: ClassVar[str] = (
        f"{_FILE} with the columns {_HEADER} in any order, 'partition' being optional, and one row per rated interval, "
        "the videos anywhere under the root; a recording is the path of its video without suffix, start and end are "
        "seconds, a value is from 0 to 10 or from 'lowest' to 'highest'"
    )
    targets = ("fatigue",)

    def __init__(
        self,
        root: Path,
        lowest: float = 0.0,
        highest: float = 10.0,
        validation: float = VALIDATION,
        test: float = TEST,
        split_seed: int = SPLIT_SEED,
    ) -> None:
        self._range = declared_range(lowest, highest)
        self.ranges = (self._range,)
        self._path = root / _FILE
        if not self._path.is_file():
            raise UsageError(f"{root} is no folder that holds {_FILE}. Expected {self.layout}")
        try:
            self._table, self._rows = _read_rows(self._path)
        except AnnotationError as error:
            raise UsageError(str(error)) from error
        partitions = self._partitions(Shares(validation, test, split_seed))
        videos = videos_below(root, tree_of(root, VIDEO_SUFFIXES).files)
        self._recordings = [
            self._rated(name, videos.get(name, root / f"{name}.mp4"), partitions[name])
            if name in self._rows
            else Recording(name, videos[name], partition="test", subject=name)
            for name in sorted({*videos, *self._rows})
        ]

    def _partitions(self, shares: Shares) -> dict[str, str]:
        """Return the partition of each rated recording, as declared or drawn by subject."""
        subjects, declared = (
            {name: self._table.field(rows[0], column) or "" for name, rows in self._rows.items()} for column in IDENTITY
        )
        if "partition" in self._table.columns:
            shares.refuse(f"{self._path} has a column 'partition'")
            return declared
        drawn = shares.draw(subjects.values())
        return {name: drawn[subject] for name, subject in subjects.items()}

    def _rated(self, name: str, path: Path, partition: str) -> Recording:
        rows = self._rows[name]
        text = "\n".join(",".join(self._interval_fields(row)) for row in rows)
        return Recording(
            name=name,
            path=path,
            partition=partition,
            subject=self._table.field(rows[0], "subject") or "",
            annotation_path=self._path,
            annotation_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )

    def recordings(self) -> list[Recording]:
        """Return every rated recording and every video, sorted by name."""
        return list(self._recordings)

    def annotation(self, recording: Recording) -> Annotation | None:
        """Return the ratings of one recording as steps; None where it has none.

        Raises
        ------
        AnnotationError
            Naming every faulty line of this recording.
        """
        if recording.annotation_path is None:
            return None
        faults = Faults(self._path)
        intervals = sorted(filter(None, (self._interval(faults, row) for row in self._rows[recording.name])))
        time_s: list[float] = []
        values: list[float] = []
        for start_s, end_s, value, line in intervals:
            if time_s and start_s < time_s[-1]:
                expected = f"an interval that starts at {time_s[-1]:g} or later, where the one before it ends"
                faults.add(line, expected, f"{start_s:g}", "let no two intervals overlap")
                continue
            if time_s and start_s == time_s[-1]:  # no gap to be unrated
                time_s.pop()
                values.pop()
            time_s += [start_s, end_s]
            values += [value, np.nan]
        faults.raise_any()
        values_FE = np.array(values)[:, None]
        return Annotation(self.targets, values_FE, time_s=np.array(time_s), is_stepped=True, num_rows=len(intervals))

    def _interval_fields(self, row: Row) -> list[str]:
        return [self._table.field(row, column) or "" for column in _INTERVAL]

    def _interval(self, faults: Faults, row: Row) -> tuple[float, float, float, int] | None:
        """Return start and end in seconds, the rating, and the line for messages; None if one of them is a fault."""
        start_s, end_s, value = (
            read_number(faults, row.line, column, field)
            for column, field in zip(_INTERVAL, self._interval_fields(row), strict=True)
        )
        if np.isnan([start_s, end_s, value]).any():
            return None
        if not 0 <= start_s < end_s:
            got = f"{start_s:g} to {end_s:g}"
            faults.add(row.line, "0 <= start < end in seconds", got, "correct the interval")
            return None
        if not self._range[0] <= value <= self._range[1]:
            expected = f"a value from {self._range[0]:g} to {self._range[1]:g}"
            faults.add(row.line, expected, f"{value:g}", "correct it, or remove the row if unrated")
        return start_s, end_s, value, row.line


def _read_rows(path: Path) -> tuple[Table, dict[str, list[Row]]]:
    """Return the table, and the rows of each recording in the order of the file."""
    faults = Faults(path)
    table = read_table(path, faults, _REQUIRED, _KNOWN)
    unknown = [column for column in table.columns if column not in _KNOWN]
    if unknown:
        raise invalid(path, 1, f"only the columns {_HEADER}", shown(",".join(unknown)), "remove these columns")
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        name = table.field(row, "recording") or ""
        _check_name(faults, row.line, name, path.parent)
        of_recording = rows.setdefault(name, [])
        of_recording.append(row)
        check_identity(faults, table, row, name, of_recording[0])
    faults.raise_any()
    return table, rows


def _check_name(faults: Faults, line: int, name: str, root: Path) -> None:
    """Note a name of no video that could lie below the root."""
    expected = "the path of a video below the root, with '/' and without suffix"
    if not is_plain(name) or Path(name).suffix.lower() in VIDEO_SUFFIXES:
        faults.add(line, expected, shown(name), "write it like 'videos/session-1'")
    elif real := outside(root, root / f"{name}.mp4"):
        faults.add(line, expected, f"{shown(name)}, a link to {real}", "copy the file to where the link is")
