"""What the corpora share about text: lines of a UTF-8 file, and the faults that are found in them.

A byte order mark and CRLF line ends are allowed; everything else is a fault that names file and line. A fault reads
"expected X, got Y; what to do".
"""

import errno
import stat
from pathlib import Path
from typing import BinaryIO

from avfuse.schema import AnnotationError, Fault

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_HEADER_BYTES = 65_536
_MAX_BYTES = 256 * 2**20
_SHOWN_CHARACTERS = 60
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SAVE_AS_UTF8 = "save the file as UTF-8 text with comma-separated values"


class Faults:
    """The faulty lines of one file, each with the first fault that is found in it.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[int, Fault] = {}

    def add(self, line: int, expected: str, got: str, remedy: str) -> None:
        """Keep a fault of a line, counted from 1, unless the line has one already."""
        self._found.setdefault(line, Fault(self.path, line, f"expected {expected}, got {got}; {remedy}"))

    def raise_any(self) -> None:
        """Raise `AnnotationError` with all faults, in the order of the lines, if there are any."""
        if self._found:
            raise AnnotationError([self._found[line] for line in sorted(self._found)])


def invalid(path: Path, line: int, expected: str, got: str, remedy: str) -> AnnotationError:
    """Return the error for a file with one fault, behind which nothing can be read."""
    return AnnotationError([Fault(path, line, f"expected {expected}, got {got}; {remedy}")])


def shown(text: str) -> str:
    """Quote a piece of a file for a message, on one line and not too long."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return repr(short)


def separator_of(path: Path, header: str) -> str:
    """Return what separates the columns of a header: a comma, a semicolon or a tab; a comma where there is none.

    Raises
    ------
    AnnotationError
        If there are two kinds.
    """
    found = [separator for separator in SEPARATORS if separator in header]
    if len(found) > 1:
        expected = f"a header with one kind of separator ({', '.join(SEPARATORS.values())})"
        raise invalid(path, 1, expected, shown(header), "separate all columns alike, in every row")
    return found[0] if found else ","


def read_lines(path: Path) -> list[str]:
    """Read a whole text file as lines without their ends; the first one is not blank.

    Raises
    ------
    AnnotationError
        If the file cannot be read, is empty, or is not UTF-8 text.
    """
    try:
        with _open(path) as file:
            content = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _decode(path, content)


def read_first_line(path: Path) -> str:
    """Read only the first line of a text file; raises like `read_lines`."""
    try:
        with _open(path) as file:
            content = file.readline(_HEADER_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _decode(path, content)[0]


def _open(path: Path) -> BinaryIO:
    """Open a file to be read, but no pipe or device: it may never end, or never begin."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device")
    if found.st_size > _MAX_BYTES:
        told = f"it has {found.st_size / 2**20:,.0f} MiB, {_MAX_BYTES / 2**20:,.0f} are allowed"
        raise OSError(errno.EFBIG, told)
    return path.open("rb")


def _decode(path: Path, content: bytes) -> list[str]:
    if content.startswith(_UTF16_MARKS):
        raise invalid(path, 1, "UTF-8 text", "UTF-16", _SAVE_AS_UTF8)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        got = "UTF-16 without a byte order mark" if _looks_like_utf16(content) else "a zero byte (a binary file)"
        raise invalid(path, line, "UTF-8 text", got, _SAVE_AS_UTF8)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        got = f"the byte 0x{error.object[error.start]:02x} (another encoding, or a binary file)"
        raise invalid(path, line, "UTF-8 text", got, _SAVE_AS_UTF8) from error
    if "\r" in text:
        line = text[: text.index("\r")].count("\n") + 1
        raise invalid(path, line, "lines that end in LF or CRLF", "a lone CR", _SAVE_AS_UTF8)
    lines = text.removesuffix("\n").split("\n")
    if not lines[0].strip():
        got = "an empty file" if not text.strip() else "a blank line"
        raise invalid(path, 1, "a header", got, "write the names of the columns first")
    return lines


def _looks_like_utf16(content: bytes) -> bool:
    """Tell ASCII text in two bytes per character: every second byte of the beginning is zero, no other is."""
    even, odd = content[:64:2], content[1:64:2]
    return (not any(odd) and all(even)) or (not any(even) and all(odd))


def _unreadable(path: Path, error: OSError) -> AnnotationError:
    return invalid(path, 1, "a readable text file", error.strerror or str(error), "check the file and its permissions")
