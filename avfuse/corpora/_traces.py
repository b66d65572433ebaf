"""What the corpora share: the files of a tree, and a strict reader of annotation text.

A trace is UTF-8 text (a byte order mark and CRLF line ends are allowed): a header, then one row of comma-separated
numbers per line. Everything else is an error that names file and line, for a lenient reader would train on it: without
a header `numpy.loadtxt` loses a row, with a swapped one it swaps the targets, and a missing value shifts a trace.
"""

import logging
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avfuse.schema import RecordingError

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_HEADER_BYTES = 65_536
_SHOWN_CHARACTERS = 60
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SAVE_AS_UTF8 = "save the file as UTF-8 text with comma-separated values"


def tree_files(root: Path) -> list[Path]:
    """Return every file under `root`, sorted; hidden ones and links that lead out of `root` are left out.

    Linked folders are not entered.
    """
    home, found, left_out = Path(os.path.realpath(root)), [], 0
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".")]
        left_out += sum((Path(folder) / name).is_symlink() for name in inside)
        for name in names:
            path = Path(folder) / name
            if name.startswith("."):
                continue
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                left_out += 1
                continue
            found.append(path)
    if left_out:
        log.warning("%s: linked folders or links that lead out of it, left out: %d; copy the files", root, left_out)
    return sorted(found)


def normal_name(text: str) -> str:
    """Return a file name in the composed Unicode form (NFC), so that it compares equal on every file system."""
    return unicodedata.normalize("NFC", text)


def invalid(path: Path, line: int, expected: str, got: str, remedy: str) -> RecordingError:
    """Return the error for one line of an annotation file."""
    return RecordingError("annotation_invalid", f"{path}, line {line}: expected {expected}, got {got}; {remedy}")


def shown(text: str) -> str:
    """Quote a piece of a file for a message, on one line and not too long."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return repr(short)


def read_lines(path: Path) -> list[str]:
    """Read a whole text file as lines without their ends; the first one is not blank.

    Raises
    ------
    RecordingError
        If the file cannot be read, is empty, or is not UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _decode(path, content)


def read_first_line(path: Path) -> str:
    """Read only the first line of a text file; raises like `read_lines`."""
    try:
        with path.open("rb") as file:
            content = file.readline(_HEADER_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _decode(path, content)[0]


def parse_rows(path: Path, lines: Sequence[str], columns: Sequence[str], *, blank: bool) -> npt.NDArray[np.float64]:
    """Read the numbers below the header.

    Parameters
    ----------
    path : Path
        Where the lines come from, for messages.
    lines : sequence of str
        All lines of the file; the first one, the header, is skipped. Row i is line i + 2 of the file.
    columns : sequence of str
        The names in the header.
    blank : bool
        Whether a field may be blank or "nan", which then reads as NaN.

    Returns
    -------
    ndarray, shape (rows, columns), float64

    Raises
    ------
    RecordingError
        If a line has another number of fields, a field is no finite number, or there is no row.
    """
    rows = list(lines[1:])
    while rows and not rows[-1].strip() and not (blank and len(columns) == 1):
        rows.pop()
    if not rows:
        raise invalid(path, 2, "rows of numbers below the header", "the end of the file", "write one row per frame")
    values = np.empty((len(rows), len(columns)))
    for index, row in enumerate(rows):
        for column, field in enumerate(split_row(path, index + 2, row, columns)):
            values[index, column] = parse_number(path, index + 2, columns[column], field, blank=blank)
    return values


def split_row(path: Path, line: int, row: str, columns: Sequence[str]) -> list[str]:
    """Return the fields of a row, one per column, without the spaces around them.

    Raises
    ------
    RecordingError
        If there are more or fewer.
    """
    fields = row.split(",")
    if len(fields) != len(columns):
        got = f"{len(fields)} ({shown(row)})" if row.strip() else "a blank line"
        expected = f"{len(columns)} comma-separated fields ({','.join(columns)})"
        raise invalid(path, line, expected, got, "write one field per column")
    return [field.strip() for field in fields]


def parse_number(path: Path, line: int, column: str, field: str, *, blank: bool = False) -> float:
    """Read one field; where `blank` allows it, an empty one or "nan" reads as NaN.

    Raises
    ------
    RecordingError
        If it is no finite number.
    """
    if _NUMBER.fullmatch(field):
        value = float(field)
        if math.isfinite(value):
            return value
    unrated = field.lower() in {"", "nan"}
    if unrated and blank:
        return math.nan
    got = ("a blank field" if not field else f"{shown(field)}") + f" as {column}"
    remedy = "leave it blank if unrated" if blank else "write a number in every field"
    raise invalid(path, line, "a number", got, remedy)


def _decode(path: Path, content: bytes) -> list[str]:
    if content.startswith(_UTF16_MARKS):
        raise invalid(path, 1, "UTF-8 text", "UTF-16", _SAVE_AS_UTF8)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise invalid(path, line, "UTF-8 text", "a zero byte (a binary file, or UTF-16)", _SAVE_AS_UTF8)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        got = f"the byte 0x{content[error.start]:02x} (another encoding, or a binary file)"
        raise invalid(path, line, "UTF-8 text", got, _SAVE_AS_UTF8) from error
    if "\r" in text:
        line = text[: text.index("\r")].count("\n") + 1
        raise invalid(path, line, "lines that end in LF or CRLF", "a lone CR", _SAVE_AS_UTF8)
    lines = text.removesuffix("\n").split("\n")
    if not lines[0].strip():
        got = "an empty file" if not text.strip() else "a blank line"
        raise invalid(path, 1, "a header", got, "write the names of the columns first")
    return lines


def _unreadable(path: Path, error: OSError) -> RecordingError:
    return invalid(path, 1, "a readable text file", error.strerror or str(error), "check the file and its permissions")
