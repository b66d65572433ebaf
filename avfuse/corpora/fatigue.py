"""Long sessions rated for fatigue, one number per interval, with all ratings in one file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._traces import invalid, normal_name, parse_number, read_lines, shown, split_row, tree_files
from avfuse.schema import PARTITIONS, Annotation, Recording, RecordingError, UsageError

SCALE = (0.0, 10.0)
_FILE = "ratings.csv"
_HEADER = "recording,subject,partition,start,end,value"
_COLUMNS = tuple(_HEADER.split(","))


@dataclass(frozen=True)
class _Row:
    """One rated interval, not yet read: `fields` are the texts of start, end and value."""

    line: int
    subject: str
    partition: str
    fields: tuple[str, ...]


class FatigueCorpus(Corpus):
    """Every video under a folder; ``ratings.csv`` at its top has one row per rated interval.

    A row names the recording (the path of its video below the root, without suffix), its subject and partition, where
    the interval starts and ends in seconds on the video's clock, and the rating from 0 to 10. Every frame from the
    start up to, but not including, the end has that rating; a frame in no interval is unrated. A video without rows is
    a test recording without annotation, its subject is its name. A row without a video is still listed, with the path
    ``<root>/<recording>.mp4``, so that extraction records it as missing.

    The ratings are read once. Who is in which partition must be right throughout; what is wrong with an interval or a
    rating costs its recording alone, and a changed one makes that recording, not the others, be extracted again.

    Raises
    ------
    UsageError
        If the folder or ``ratings.csv`` does not exist, two videos differ in their suffix alone, or the file is no
        table of ratings or has a fault in its first three columns; the message then names the line.
    """

    layout: ClassVar[str] = (
        f"{_FILE} with the header '{_HEADER}' and one row per rated interval, the videos anywhere under the root; "
        "a recording is the path of its video without suffix, start and end are seconds, a value is from 0 to 10"
    )
    targets = ("fatigue",)

    def __init__(self, root: Path) -> None:
        self._path = root / _FILE
        if not self._path.is_file():
            raise UsageError(f"{root} is no folder that holds {_FILE}. Expected {self.layout}")
        try:
            self._rows = _read_rows(self._path)
        except RecordingError as error:
            raise UsageError(str(error)) from error
        videos = _find_videos(root)
        self._recordings = [
            self._rated(name, videos.get(name, root / f"{name}.mp4"))
            if name in self._rows
            else Recording(name, videos[name], partition="test", subject=name)
            for name in sorted({*videos, *self._rows})
        ]

    def _rated(self, name: str, path: Path) -> Recording:
        rows = self._rows[name]
        text = "\n".join(",".join(row.fields) for row in rows)
        return Recording(
            name=name,
            path=path,
            partition=rows[0].partition,
            subject=rows[0].subject,
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
        RecordingError
            With reason ``annotation_invalid``, naming file and line.
        """
        if recording.annotation_path is None:
            return None
        time_s: list[float] = []
        values: list[float] = []
        for start_s, end_s, value, line in sorted(self._interval(row) for row in self._rows[recording.name]):
            if time_s and start_s < time_s[-1]:
                expected = f"an interval that starts at {time_s[-1]:g} or later, where the one before it ends"
                raise invalid(self._path, line, expected, f"{start_s:g}", "let no two intervals overlap")
            if time_s and start_s == time_s[-1]:  # no gap to be unrated
                time_s.pop()
                values.pop()
            time_s += [start_s, end_s]
            values += [value, np.nan]
        return Annotation(self.targets, np.array(values)[:, None], time_s=np.array(time_s), is_stepped=True)

    def _interval(self, row: _Row) -> tuple[float, float, float, int]:
        """Return start and end in seconds, the rating, and the line for messages."""
        start_s, end_s, value = (
            parse_number(self._path, row.line, column, field)
            for column, field in zip(_COLUMNS[3:], row.fields, strict=True)
        )
        if not 0 <= start_s < end_s:
            got = f"{start_s:g} to {end_s:g}"
            raise invalid(self._path, row.line, "0 <= start < end in seconds", got, "correct the interval")
        if not SCALE[0] <= value <= SCALE[1]:
            expected, remedy = f"a value from {SCALE[0]:g} to {SCALE[1]:g}", "correct it, or remove the row if unrated"
            raise invalid(self._path, row.line, expected, f"{value:g}", remedy)
        return start_s, end_s, value, row.line


def _read_rows(path: Path) -> dict[str, list[_Row]]:
    """Return the rows of each recording, in the order of the file."""
    lines = read_lines(path)
    if [field.strip() for field in lines[0].split(",")] != list(_COLUMNS):
        raise invalid(path, 1, f"the header '{_HEADER}'", shown(lines[0]), "write the header as the first line")
    while not lines[-1].strip():
        lines.pop()
    if len(lines) == 1:
        raise invalid(path, 2, "ratings below the header", "the end of the file", "write one row per rated interval")
    rows: dict[str, list[_Row]] = {}
    for number, line in enumerate(lines[1:], start=2):
        name, subject, partition, *fields = split_row(path, number, line, _COLUMNS)
        name, row = normal_name(name), _Row(number, normal_name(subject), partition, tuple(fields))
        _check_place(path, name, row)
        first = rows.setdefault(name, [row])[0]
        if (first.subject, first.partition) != (row.subject, row.partition):
            expected = f"{name} with the subject and partition of line {first.line}, {first.subject},{first.partition}"
            got = f"{row.subject},{row.partition}"
            raise invalid(path, number, expected, got, "give a recording one subject and one partition")
        if first is not row:
            rows[name].append(row)
    return rows


def _check_place(path: Path, name: str, row: _Row) -> None:
    """Refuse a row that names no video that could lie below the root, no subject or no partition."""
    steps = name.split("/")
    if "\\" in name or {"", ".", ".."} & set(steps) or Path(name).suffix.lower() in VIDEO_SUFFIXES:
        expected = "the path of a video below the root, with '/' and without suffix"
        raise invalid(path, row.line, expected, shown(name), "write it like 'videos/session-1'")
    if not row.subject:
        raise invalid(path, row.line, "a subject", "a blank field", "name whom the recording shows")
    if row.partition not in PARTITIONS:
        expected = f"a partition ({', '.join(PARTITIONS)})"
        raise invalid(path, row.line, expected, shown(row.partition), "write one of them")


def _find_videos(root: Path) -> dict[str, Path]:
    videos: dict[str, Path] = {}
    for path in tree_files(root):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        name = normal_name(path.relative_to(root).with_suffix("").as_posix())
        if name in videos:
            raise UsageError(f"two videos are named {name}: {videos[name]} and {path}; rename one")
        videos[name] = path
    return videos
