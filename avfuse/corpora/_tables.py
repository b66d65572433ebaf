"""Tables that say which recordings there are: one header, whose names decide what a column is, and one row per line.

Fields may stand in double quotes, as paths with a comma must. What is wrong with whom a row shows, and where, stops the
corpus, as it would put a person into the wrong partition; what is wrong with a rating costs its recording alone.
"""

import csv
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from avfuse.corpora import VIDEO_SUFFIXES
from avfuse.corpora._text import Faults, invalid, read_lines, separator_of, shown
from avfuse.corpora._traces import Row, add_wrong_count
from avfuse.corpora._tree import outside
from avfuse.schema import PARTITIONS
from avfuse.spec import normal_name

IDENTITY = ("subject", "partition")
_MAX_PART_BYTES = 255  # of the name of a file or folder


@dataclass(frozen=True)
class Table:
    """The rows of a table, in the order of the file."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def index(self, column: str) -> int | None:
        """Return where a column stands, None where there is none."""
        return self.columns.index(column) if column in self.columns else None

    def field(self, row: Row, column: str) -> str | None:
        """Return a field of a row by the name of its column, None where there is no such column."""
        index = self.index(column)
        return None if index is None else normal_name(row.fields[index])


def read_table(path: Path, faults: Faults, required: Collection[str], known: Sequence[str]) -> Table:
    """Read a table; rows that cannot be split become faults and are left out.

    Parameters
    ----------
    path : Path
    faults : Faults
        Of the file, to be added to.
    required : collection of str
        Those of the known columns that there must be, in any order.
    known : sequence of str
        The columns whose names may be written in any case, in the order of a good header. Others keep their case.

    Raises
    ------
    AnnotationError
        If the file is no text, lacks a required column or any row, or names a column twice.
    """
    lines = read_lines(path)
    separator = separator_of(path, lines[0])
    names = (normal_name(field) for field in _split(lines[0], separator) or ())
    columns = tuple(name.lower() if name.lower() in known else name for name in names)
    missing = [column for column in required if column not in columns]
    if missing or len(set(columns)) < len(columns):
        remedy = f"add the column {', '.join(missing)}" if missing else "name every column once"
        if len(missing) == len(required):
            remedy = "write the header as the first line"
        raise invalid(path, 1, f"a header like '{','.join(known)}'", shown(lines[0]), remedy)
    while not lines[-1].strip():
        lines.pop()
    if len(lines) == 1:
        raise invalid(path, 2, "rows below the header", "the end of the file", "write one row per recording or rating")
    rows = []
    for line, text in enumerate(lines[1:], start=2):
        fields = _split(text, separator)
        if fields is None:
            faults.add(line, "fields whose quotes are closed", shown(text), "quote a whole field, or nothing")
        elif len(fields) != len(columns):
            add_wrong_count(faults, line, text, fields, columns, separator)
        else:
            rows.append(Row(line, fields))
    return Table(path, columns, rows)


def check_identity(faults: Faults, table: Table, row: Row, name: str, first: Row) -> None:
    """Note a row with a blank subject or an unknown partition, or another than the recording's first row has."""
    subject, partition = (table.field(row, column) for column in IDENTITY)
    if subject == "":
        faults.add(row.line, "a subject", "a blank field", "name whom the recording shows")
    if partition is not None and partition not in PARTITIONS:
        faults.add(row.line, f"a partition ({', '.join(PARTITIONS)})", shown(partition), "write one of them")
    of_first = tuple(table.field(first, column) for column in IDENTITY)
    if of_first != (subject, partition):
        what = " and ".join(column for column in IDENTITY if column in table.columns)
        expected = f"{name} with the {what} of line {first.line}, {_joined(of_first)}"
        got = _joined((subject, partition))
        faults.add(row.line, expected, got, f"give a recording one {what.replace(' and ', ' and one ')}")


def check_place(faults: Faults, line: int, text: str, root: Path) -> None:
    """Note a path that is not below the root, by its steps or by a link."""
    expected = "a path below the root, with '/'"
    if not is_plain(text) or max(len(os.fsencode(part)) for part in text.split("/")) > _MAX_PART_BYTES:
        faults.add(line, expected, shown(text), "write it like 'videos/session-1.mp4'")
    elif real := outside(root, place_of(root, text)):
        faults.add(line, expected, f"{shown(text)}, a link to {real}", "copy the file to where the link is")


def is_plain(text: str) -> bool:
    """Tell whether a path, written with '/', only goes down: no step back, none to nowhere, no drive, no root."""
    return "\\" not in text and not PureWindowsPath(text).drive and not {"", ".", ".."} & set(text.split("/"))


def check_video(faults: Faults, line: int, text: str) -> None:
    """Note a path that does not end like a video."""
    if Path(text).suffix.lower() not in VIDEO_SUFFIXES:
        expected = f"the path of a video with its suffix ({' '.join(VIDEO_SUFFIXES)})"
        faults.add(line, expected, shown(text), "write it like 'videos/session-1.mp4'")


def place_of(root: Path, text: str) -> Path:
    """Return the path below the root, in the Unicode form in which its name stands on the disk if it is there."""
    forms = [root / unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    return next((path for path in (root / text, *forms) if path.exists()), root / text)


def _split(text: str, separator: str) -> list[str] | None:
    """Return the fields of a line without the spaces around them, None if its quotes are not in order."""
    if '"' not in text:
        return [field.strip() for field in text.split(separator)]
    try:
        (fields,) = csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True)
    except csv.Error:
        return None
    return [field.strip() for field in fields]


def _joined(fields: tuple[str | None, ...]) -> str:
    return ",".join(field for field in fields if field is not None)
