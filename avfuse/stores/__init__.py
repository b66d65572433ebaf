"""Stores: where the groups and arrays of a feature cache lie, as a folder, a file, or keys on a server.

Contract
--------
``Plug(location)`` opens what is there without reading it. A store is a hierarchy of groups; a group's metadata are the
bytes of its ``zarr.json``, an array is named by its path. What a store holds is described in `avfuse.cache`; a store
knows nothing of it but that a group without metadata is not there: `put` brings the metadata last, `remove` takes
them first.

Whoever writes a group writes it as a folder on this machine first (`aside`), flushed and whole, and hands it to `put`.
"""

from __future__ import annotations

import errno
import shlex
import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import zarr
from zarr.errors import ZarrUserWarning

from avfuse.clips import ClipArray
from avfuse.schema import UsageError

METADATA = "zarr.json"
_OF_WHAT_IS_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def tells_nothing(error: Exception) -> bool:
    """Whether an error of reading says nothing of what is there: a disk or server that fails or refuses, for now.

    That something is missing, or not what it should be, is not such an error; nor is what a codec or HDF5 raises.
    """
    is_of_system = isinstance(error, OSError) and bool(error.errno) and error.errno not in _OF_WHAT_IS_THERE
    return is_of_system or isinstance(error, ConnectionError)


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing, if it is none.

    Raises
    ------
    OSError
        If nobody can tell, as where it may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if tells_nothing(error):
            raise
        return []


def quote(place: Path | str) -> str:
    """Return a place as it is written in a command on a shell's line."""
    text = str(place)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


_FILTERING = threading.Lock()


def open_array(place: Any, **arguments: Any) -> Any:
    """Open a Zarr array, silent about codecs that are no part of Zarr's specification, as pcodec is not.

    Filters of warnings are the whole process's: threads change them one after the other.
    """
    with _FILTERING, warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        return zarr.open_array(place, **arguments)


class Store(ABC):
    """Where a cache lies; see the module's contract.

    Attributes
    ----------
    location : Path or str
        As the user names it: a path, or ``s3://bucket/prefix``.
    """

    is_writable: ClassVar[bool] = True

    def __init__(self, location: Path | str) -> None:
        self.location = location

    @property
    def quoted(self) -> str:
        """The location as a shell takes it, for the commands that a message gives."""
        return quote(self.location)

    @property
    def remedy(self) -> str:
        """What to do about damage, in words."""
        return (
            f"see what is wrong with: avfuse cache verify {self.quoted}; set it aside with: avfuse cache repair "
            f"{self.quoted}"
        )

    @classmethod
    @abstractmethod
    def find(cls, folder: Path | str) -> list[Path | str]:
        """Return the locations of the stores in a folder, sorted."""

    @abstractmethod
    def metadata(self, group: str) -> bytes | None:
        """Return the metadata of a group, "" being the root; None if there is no such group.

        Raises
        ------
        OSError
            If nobody can tell now, as of a disk that fails.
        """

    @abstractmethod
    def groups(self, parent: str) -> list[str]:
        """Return the paths of the groups in a group, such as ``recordings/a``, sorted.

        One whose metadata are missing is among them as long as anything of it is there.
        """

    @abstractmethod
    def files(self, group: str) -> dict[str, int] | None:
        """Return the length of every file of a group by its path in it; None if this store is not made of files."""

    def metadata_below(self, parent: str) -> dict[str, bytes | None]:
        """Return the metadata of every group in a group, by its path."""
        return {group: self.metadata(group) for group in self.groups(parent)}

    def survey(self, parent: str) -> dict[str, tuple[bytes | None, dict[str, int] | None]]:
        """Return what `metadata` and `files` say of every group in a group, by its path."""
        return {group: (content, self.files(group)) for group, content in self.metadata_below(parent).items()}

    def members(self, group: str) -> list[str]:
        """Return the names of what lies directly in a group, arrays, groups or else, without its metadata, sorted.

        A store that is not made of files says it by itself.
        """
        top = {path.partition("/")[0] for path in self.files(group) or {}}
        return sorted(top - {METADATA})

    def count_bytes(self) -> int:
        """Return how many bytes the store takes; one that is not made of files says it by itself."""
        return sum((self.files("") or {}).values())

    def changed_s(self) -> float | None:
        """Return when the store was last changed, in seconds since 1970; None if it cannot be told."""
        return None

    def is_being_written(self, group: str) -> bool:
        """Whether a writer may be at a group, so that it shows unfinished; where groups come whole, it never does."""
        return False

    def find_contradictions(self, group: str) -> list[str]:
        """Return, in words, what in a group is at odds with its metadata, beside values; "" is the root.

        Only a store that keeps more than metadata, as written, and values has something to look at.
        """
        return []

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        OSError
            If it is not there or cannot be read.
        """

    @abstractmethod
    def array(self, path: str) -> npt.NDArray[Any]:
        """Read an array.

        Raises
        ------
        OSError, ValueError, KeyError
            If it is not there, or damaged in a way that shows. Damage that does not show may give other values.
        """

    @abstractmethod
    def clips(self, path: str) -> ClipArray:
        """Return an array that is read chunk by chunk; raises as `array` does, and so does reading a chunk."""

    def aside(self) -> Path:
        """Return a new place on this machine where a group may be written.

        Raises
        ------
        UsageError
            If nothing can be put into this store.
        """
        raise self._refusal()

    def prepare(self) -> list[str]:
        """Make sure, as far as can be told, that groups can be put here; return what of dead writers was removed.

        Raises
        ------
        UsageError
            If nothing can be put into this store.
        OSError
            If the place cannot be written to.
        """
        raise self._refusal()

    def put(self, aside: Path, group: str) -> bool:
        """Move a folder to where its group belongs, the metadata last; return whether it is this one that stands there.

        A group that is there already stays: two writers of one recording end with one of the two, whole.
        """
        raise self._refusal()

    def replace(self, aside: Path, group: str) -> bool:
        """Move a folder to where its group belongs, in place of what may stand there; return what `put` does."""
        self.remove(group)
        return self.put(aside, group)

    def write_metadata(self, group: str, content: bytes) -> None:
        """Replace the metadata of a group, in one step."""
        raise self._refusal()

    def remove(self, group: str) -> None:
        """Take a group out of the store; nobody sees half of it."""
        raise self._refusal()

    def set_aside(self, path: str) -> str:
        """Move a group or a file, damaged as it may be, out of the store into a place beside it; return where it is."""
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(f"{self.location} can be read, not written to; write to a folder, and export that")
