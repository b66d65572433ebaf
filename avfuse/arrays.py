"""Arrays in files that others wrote: ``.npy``, a key of ``.npz``, a data set of HDF5. Nothing is ever unpickled.

Numpy can keep Python objects in its files, and does so by pickling them; reading them back runs whatever the file says.
Such arrays are refused by what their header says, before anything of them is read.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from avfuse.schema import UsageError

log = logging.getLogger(__name__)

HDF5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
PICKLE_SUFFIXES = (".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib")
PICKLED = (
    "pickled Python objects run what the file says when they are read, so avfuse does not read them; "
    "save plain numbers with numpy, as docs/features-of-others.md shows in three lines"
)
_PICKLE_MARK = b"\x80"
_SPLIT = re.compile(r"(?P<file>.*?\.(?:npz|h5|hdf5)):(?P<inside>.+)")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_NAMES_SHOWN = 5
_MAX_LINKS = 10**6  # groups that link to each other have paths without end
_BROKEN = (OSError, ValueError, LookupError, RuntimeError, TypeError, EOFError, zipfile.BadZipFile)


class MissingArrayError(UsageError):
    """There is no such file, or no such array in it."""


@dataclass(frozen=True)
class Location:
    """Where an array lies: a file, and the path inside it, "" for ``.npy``."""

    file: str
    inside: str = ""

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read "FILE.npy", "FILE.npz:KEY" or "FILE.h5:/PATH".

        Raises
        ------
        UsageError
            If it is none of these.
        """
        found = _SPLIT.fullmatch(text)
        location = cls(found["file"], found["inside"]) if found else cls(text)
        suffix = Path(location.file).suffix
        if suffix in PICKLE_SUFFIXES:
            raise UsageError(PICKLED)
        if suffix not in SUFFIXES:
            raise UsageError(f"expected a file that ends in {', '.join(SUFFIXES)}")
        if suffix != ".npy" and not location.inside:
            what = "KEY" if suffix == ".npz" else "/PATH"
            raise UsageError(f"say which array of the file is meant, as {text}:{what}")
        return location

    def __str__(self) -> str:
        return f"{self.file}:{self.inside}" if self.inside else self.file


class OpenArray:
    """Numbers that can be sliced by rows: shape (rows, ...), and rows as they are in the file."""

    def __init__(self, shape: tuple[int, ...], values: Any) -> None:
        self.shape = shape
        self._values = values

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows from `start` up to `stop`; `UsageError` if they cannot be read."""
        with _explained():
            return np.asarray(self._values[start:stop])


@contextmanager
def open_array(path: Path, inside: str) -> Iterator[OpenArray]:
    """Open an array of numbers.

    Raises
    ------
    MissingArrayError
        If there is no such file or array.
    UsageError
        If it is damaged, or holds anything but numbers.
    """
    if not path.is_file():
        raise MissingArrayError("there is no such file")
    with ExitStack() as stack:
        with _explained():
            look = {".npy": _look_into_npy, ".npz": _look_into_npz}.get(path.suffix, _look_into_hdf5)
            shape, dtype, values = look(path, inside, stack)
        if dtype.kind not in "fiub":
            raise UsageError(f"it holds {dtype}; numbers are expected")
        if not shape or 0 in shape:
            raise UsageError(f"it has shape {shape}; at least one row of numbers is expected")
        yield OpenArray(shape, values)


def list_arrays(path: Path) -> list[str]:
    """Return the paths of the arrays in an ``.npz`` or HDF5 file, sorted; one that has several paths, by each of them.

    Links of HDF5 that lead out of the file, or nowhere, are warned of and left out.

    Raises
    ------
    UsageError
        If the file is not there or cannot be read.
    """
    if not path.is_file():
        raise UsageError("there is no such file")
    names, skipped = _list(path)
    if skipped:
        log.warning(
            "%s: %d links lead to another file, to nowhere, or back to a group that they lie in, and are not "
            "followed: %s",
            *(path, len(skipped), _shown(skipped)),
        )
    return names


def _list(path: Path) -> tuple[list[str], list[str]]:
    """Return the paths of arrays, and those of links that were not followed, sorted."""
    with _explained():
        if path.suffix not in HDF5_SUFFIXES:
            with zipfile.ZipFile(path) as archive:
                return sorted(name.removesuffix(".npy") for name in archive.namelist()), []
        names: list[str] = []
        skipped: list[str] = []
        with h5py.File(path, "r") as file:
            for number, (name, item) in enumerate(_walk(file, "", (file,))):
                if number == _MAX_LINKS:
                    raise UsageError(f"it has more than {_MAX_LINKS} paths; list the recordings")
                if item is None:
                    skipped.append(name)
                elif isinstance(item, h5py.Dataset):
                    names.append(name)
        return sorted(names), sorted(skipped)


def _walk(group: h5py.Group, prefix: str, above: tuple[h5py.Group, ...]) -> Iterator[tuple[str, Any]]:
    """Yield every path below a group with what is there, None for a link that is not followed.

    h5py's own walk leaves out links, and whatever it has seen under another path.
    """
    for key in group:
        name = f"{prefix}{key}"
        link = group.get(key, getlink=True)
        item = None if isinstance(link, h5py.ExternalLink) else group.get(key)
        if item is not None and (item.file.filename != above[0].file.filename or item in above):
            item = None
        yield name, item
        if isinstance(item, h5py.Group):
            yield from _walk(item, f"{name}/", (*above, item))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except _BROKEN as error:
        raise UsageError(f"it cannot be read ({type(error).__name__}: {error})") from error


@dataclass
class _Member:
    """An array in an archive, read as a whole when its first row is asked for."""

    path: Path
    name: str
    _values: list[Any] = field(default_factory=list)

    def __getitem__(self, rows: slice) -> Any:
        if not self._values:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
                self._values.append(np.lib.format.read_array(stream, allow_pickle=False))
        return self._values[0][rows]


_Found = tuple[tuple[int, ...], np.dtype[Any], Any]  # shape, dtype, and what can be sliced


def _look_into_npy(path: Path, inside: str, stack: ExitStack) -> _Found:
    with path.open("rb") as stream:
        if stream.read(1) == _PICKLE_MARK:
            raise UsageError(PICKLED)
        stream.seek(0)
        shape, dtype = _read_header(stream)
    is_empty = 0 in shape or not shape
    return shape, dtype, None if is_empty else np.load(path, mmap_mode="r", allow_pickle=False)


def _look_into_npz(path: Path, inside: str, stack: ExitStack) -> _Found:
    with zipfile.ZipFile(path) as archive:
        if f"{inside}.npy" not in archive.namelist():
            raise MissingArrayError(f"it has no array '{inside}'; it has: {_shown(_list(path)[0])}")
        if archive.namelist().count(f"{inside}.npy") > 1:
            raise UsageError(f"it has several arrays '{inside}'; write it anew, with one")
        with archive.open(f"{inside}.npy") as stream:
            shape, dtype = _read_header(stream)
    return shape, dtype, _Member(path, f"{inside}.npy")


def _look_into_hdf5(path: Path, inside: str, stack: ExitStack) -> _Found:
    file = stack.enter_context(h5py.File(path, "r"))
    item = file.get(inside)
    if not isinstance(item, h5py.Dataset):
        raise MissingArrayError(f"it has no data set '{inside}'; it has: {_shown(_list(path)[0])}")
    if item.file.filename != file.filename or item.external or item.is_virtual:
        raise UsageError(f"its '{inside}' lies in another file; only what the file itself holds is read")
    return item.shape or (), item.dtype, item


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array in numpy's format, of which nothing else is read."""
    read = _HEADERS.get(np.lib.format.read_magic(stream))
    if read is None:
        raise UsageError("its version of numpy's format is not one of plain numbers")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise UsageError(PICKLED)
    return shape, dtype


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return (", ".join(names[:_MAX_NAMES_SHOWN]) + more) or "none"
