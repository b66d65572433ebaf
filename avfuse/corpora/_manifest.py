"""The optional manifest of a folder of videos: which of them are recordings, of whom, and how they are rated."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from avfuse.corpora._series import CLOCKS, parse_header, series
from avfuse.corpora._tables import IDENTITY, Table, check_identity, check_place, check_video, place_of, read_table
from avfuse.corpora._text import Faults, invalid, shown
from avfuse.corpora._traces import Row
from avfuse.corpora._tree import name_below
from avfuse.schema import Annotation, AnnotationError, Range, UsageError

FILES = ("manifest.csv", "manifest.tsv")
_KNOWN = ("path", *IDENTITY, "annotation")


@dataclass(frozen=True)
class Entry:
    """One video and what is said about it; None where nothing is.

    `trace` is the file of its ratings, `sha256` the digest of its own part of that file, if others share it.
    """

    path: Path
    subject: str | None = None
    partition: str | None = None
    trace: Path | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes
    ----------
    path : Path
    entries : dict
        The videos by name, the path below the root without suffix.
    has_traces : bool
        Whether it tells where ratings are; otherwise they may lie beside the videos.
    clock : str or None
        ``time`` or ``frame`` where the manifest holds the ratings itself.
    targets : tuple of str
        The names of the ratings that it holds.
    """

    path: Path
    entries: dict[str, Entry]
    has_traces: bool
    clock: str | None
    targets: tuple[str, ...]
    _rows: dict[str, list[Row]] = field(default_factory=dict, repr=False)

    def annotation(self, name: str, ranges: Sequence[Range | None]) -> Annotation:
        """Read the ratings that the manifest holds of one recording; raises like `series`."""
        return series(Faults(self.path), self._rows[name], self.clock, self.targets, ranges)


def find_manifest(root: Path) -> Path | None:
    """Return the manifest at the top of a folder, None where there is none.

    Raises
    ------
    UsageError
        If there are two.
    """
    found = [root / name for name in FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UsageError(f"{root} holds {' and '.join(FILES)}; leave one of them")
    return found[0] if found else None


def read_manifest(root: Path, path: Path) -> Manifest:
    """Read a manifest, once.

    Raises
    ------
    UsageError
        If it is no table, or a row has a path that is not below the root, no subject or no known partition, or
        disagrees with another row of its video. All such lines are named.
    """
    try:
        return _read(root, path)
    except AnnotationError as error:
        raise UsageError(str(error)) from error


def _read(root: Path, path: Path) -> Manifest:
    faults = Faults(path)
    table = read_table(path, faults, ("path",), _KNOWN)
    clock, ratings = _check_columns(table)
    rows = _rows_of_videos(root, table, faults)
    if not ratings:
        for of_video in rows.values():
            for row in of_video[1:]:
                expected = f"a video that is not listed in line {of_video[0].line}"
                faults.add(row.line, expected, shown(table.field(row, "path") or ""), "list every video once")
    _check_annotations(root, table, faults)
    faults.raise_any()
    entries, rated = {}, {}
    for text, of_video in rows.items():
        entry = _entry(root, table, of_video[0])
        name = name_below(root, root / text)
        if name in entries:
            remedy = "rename one of the videos"
            raise invalid(path, of_video[0].line, "names that differ not in the suffix alone", shown(text), remedy)
        numbers = [Row(row.line, [row.fields[index] for index in ratings]) for row in of_video]
        if any(any(row.fields) for row in numbers):  # a row with neither clock nor rating only lists its video
            rated[name] = numbers
            entry = replace(entry, trace=path, sha256=_digest(table, ratings, numbers))
        entries[name] = entry
    targets = tuple(table.columns[index] for index in ratings[1:])
    return Manifest(path, entries, bool(ratings) or "annotation" in table.columns, clock, targets, rated)


def _check_columns(table: Table) -> tuple[str | None, list[int]]:
    """Return the name of the clock, and where clock and targets stand, in this order; None and [] without ratings."""
    others = [index for index, column in enumerate(table.columns) if column not in _KNOWN]
    if not others:
        return None, []
    clocks = [index for index in others if table.columns[index].lower() in CLOCKS]
    names = ",".join(table.columns[index] for index in others)
    if len(clocks) != 1 or len(others) == 1:
        expected = "one column 'time' or 'frame', and one per target, beside " + ",".join(_KNOWN)
        raise invalid(table.path, 1, expected, shown(names), "name the columns of the ratings, or remove them")
    if "annotation" in table.columns:
        expected, remedy = "a column 'annotation', or ratings", "remove the one or the others"
        raise invalid(table.path, 1, expected, f"both (annotation and {names})", remedy)
    ordered = clocks + [index for index in others if index not in clocks]
    header = parse_header(table.path, ",".join(table.columns[index] for index in ordered))
    return header.clock, ordered


def _rows_of_videos(root: Path, table: Table, faults: Faults) -> dict[str, list[Row]]:
    """Return the rows of each path; what is wrong with path, subject or partition becomes a fault."""
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        text = table.field(row, "path") or ""
        of_video = rows.setdefault(text, [])
        of_video.append(row)
        if of_video[0] is row:
            check_place(faults, row.line, text, root)
            check_video(faults, row.line, text)
        check_identity(faults, table, row, text, of_video[0])
    return rows


def _check_annotations(root: Path, table: Table, faults: Faults) -> None:
    for row in table.rows:
        if text := table.field(row, "annotation"):
            check_place(faults, row.line, text, root)


def _entry(root: Path, table: Table, row: Row) -> Entry:
    trace = table.field(row, "annotation")
    return Entry(
        path=place_of(root, table.field(row, "path") or ""),
        subject=table.field(row, "subject"),
        partition=table.field(row, "partition"),
        trace=place_of(root, trace) if trace else None,
    )


def _digest(table: Table, ratings: Sequence[int], rows: Sequence[Row]) -> str:
    """Return the sha256 of the ratings of one recording, with the names of their columns."""
    lines = [[table.columns[index] for index in ratings], *(row.fields for row in rows)]
    return hashlib.sha256("\n".join(",".join(fields) for fields in lines).encode()).hexdigest()
