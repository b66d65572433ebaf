"""A Zarr 3 hierarchy in a folder. A group is written beside it and renamed into place; plain chunks are mapped."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import atomic
from avfuse.clips import PLAIN_CODECS, ChangedError, ClipArray, map_file
from avfuse.stores import METADATA, Store, list_folder, open_array, tells_nothing

_ALREADY_THERE = (errno.ENOTEMPTY, errno.EEXIST)


class DirectoryStore(Store):
    """A folder ``<name>.zarr``; beside it ``<name>.tmp`` holds what is written, ``<name>.damaged`` what was damaged."""

    location: Path

    def __init__(self, location: Path | str) -> None:
        super().__init__(Path(location))
        self._announced_by = 0

    @classmethod
    def find(cls, folder: Path | str) -> list[Path | str]:
        """Return the folders ``*.zarr``, sorted."""
        return [path for path in list_folder(Path(folder)) if path.suffix == ".zarr" and path.is_dir()]

    def metadata(self, group: str) -> bytes | None:
        """Return the content of a group's zarr.json."""
        try:
            return (self.location / group / METADATA).read_bytes()
        except OSError as error:
            if tells_nothing(error):
                raise
            return None

    def groups(self, parent: str) -> list[str]:
        """Return the folders in a group's folder."""
        folder = self.location / parent
        if not folder.is_dir():
            return []
        return sorted(f"{parent}/{entry.name}" for entry in os.scandir(folder) if entry.is_dir())

    def files(self, group: str) -> dict[str, int]:
        """Return every file below a group's folder with its length; -1 is that of what is no file, as a broken link."""
        top = self.location / group
        found = (
            Path(folder, name)
            for folder, inside, names in os.walk(top, onerror=_raise_unless_gone)
            for name in (*names, *(name for name in inside if Path(folder, name).is_symlink()))
        )
        return {path.relative_to(top).as_posix(): path.stat().st_size if path.is_file() else -1 for path in found}

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return (self.location / path).read_bytes()

    def array(self, path: str) -> npt.NDArray[Any]:
        """Read an array through zarr."""
        return np.asarray(open_array(self.location / path, mode="r")[...])

    def clips(self, path: str) -> ClipArray:
        """Map the chunks of an array whose bytes are its values; decode those of another through zarr."""
        folder = self.location / path
        metadata = json.loads((folder / METADATA).read_bytes())
        shape: tuple[int, ...] = tuple(metadata["shape"])
        chunk_shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        inner = "/".join("0" for _ in shape[1:])
        unchanged = _Unchanged()
        if tuple(codec["name"] for codec in metadata["codecs"]) != PLAIN_CODECS:
            array = open_array(folder, mode="r")

            def decode(number: int) -> npt.NDArray[Any]:
                with unchanged.reading(folder / "c" / str(number) / inner):
                    return np.asarray(array.get_block_selection(number))

            return ClipArray(shape, array.dtype, chunk_shape[0], decode, is_mapped=False)
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        num_bytes = math.prod(chunk_shape) * dtype.itemsize

        def read(number: int) -> npt.NDArray[Any]:
            file = folder / "c" / str(number) / inner
            with unchanged.reading(file):
                chunk: npt.NDArray[Any] = map_file(file, num_bytes).view(dtype).reshape(chunk_shape)
            return chunk

        return ClipArray(shape, dtype, chunk_shape[0], read, is_mapped=math.prod(shape) > 0)

    def changed_s(self) -> float:
        """Return when a group was last put here or taken away, by the clock of the file system."""
        folders = (self.location, self.location / "recordings", self.location / "failures")
        return max(folder.stat().st_mtime for folder in folders if folder.exists())

    def aside(self) -> Path:
        """Return a new place in the folder beside the store, on the same file system; from now on a note lies there."""
        folder = self._beside("tmp")
        if self._announced_by != os.getpid():
            atomic.announce(self, folder)
            self._announced_by = os.getpid()
        atomic.make_folder(folder)  # should somebody have removed it with all that was in it
        return folder / atomic.new_aside_name()

    def prepare(self) -> list[str]:
        """Make the folder beside the store, leave a note there for as long as this object lives, and sweep it."""
        swept = atomic.sweep(self.aside().parent)
        inside = self.location / "recordings"
        if inside.exists() and not os.access(inside, os.W_OK):  # refused now, not after an hour of work
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return swept

    def put(self, aside: Path, group: str) -> bool:
        """Rename a folder into place."""
        target = self._place / group
        try:
            aside.rename(target)
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise OSError(error.errno or errno.EIO, error.strerror, str(target)) from error
            return False
        atomic.flush(target.parent)
        return True

    def replace(self, aside: Path, group: str) -> bool:
        """Let the folder and what stands there change places; there is no moment without one of them.

        Where the system cannot do that in one step, what stood there lies in the folder of what was damaged meanwhile.
        """
        target = self._place / group
        try:
            if atomic.exchange(aside, target):
                atomic.flush(target.parent)
                atomic.remove_tree(aside)
                return True
            before = Path(self.set_aside(group))
        except FileNotFoundError:  # nothing stands there
            return self.put(aside, group)
        is_ours = self.put(aside, group)
        shutil.rmtree(before)
        return is_ours

    def write_metadata(self, group: str, content: bytes) -> None:
        """Replace a group's zarr.json; what is on its way lies beside the store, where a dead writer's is swept."""
        aside, target = self.aside(), self._place / group / METADATA
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.naming(target):
                aside.write_bytes(content)
            atomic.flush(aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        atomic.flush(target.parent)

    def remove(self, group: str) -> None:
        """Rename a group's folder away, then remove it."""
        folder = self._place / group
        if not folder.exists():
            return
        away = self.aside()
        away.mkdir(parents=True)
        try:
            with suppress(FileNotFoundError):  # somebody else has removed it meanwhile
                folder.rename(away / "removed")
        finally:
            atomic.remove_tree(away, is_settled=True)

    def set_aside(self, path: str) -> str:
        """Rename a folder or a file into the folder of what was damaged."""
        place = self._beside("damaged") / f"{Path(path).name}-{atomic.new_aside_name()}"
        source = self.location / path
        while True:
            atomic.make_folder(place.parent)
            try:
                source.rename(place)
            except FileNotFoundError:
                if not os.path.lexists(source):
                    raise  # else somebody has removed the folder, which was empty
            else:
                return str(place)

    @property
    def _place(self) -> Path:
        """Where the folder lies, links followed: what is beside it there can be renamed into it."""
        return self.location.resolve()

    def _beside(self, suffix: str) -> Path:
        place = self._place
        return place.with_name(f"{place.name.removesuffix('.zarr')}.{suffix}")


class _Unchanged:
    """Sees to it that files that are read again are those that were read first, by length and time of change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int]] = {}

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Raise `ChangedError` if a file is another than it was, before or after it is read."""
        self._look(file)
        try:
            yield
        finally:
            self._look(file)

    def _look(self, file: Path) -> None:
        try:
            status = file.stat()
        except FileNotFoundError as error:
            if file in self._known:
                raise ChangedError(file) from error
            raise
        found = status.st_size, status.st_mtime_ns
        if self._known.setdefault(file, found) != found:
            raise ChangedError(file)


def _raise_unless_gone(error: OSError) -> None:
    if tells_nothing(error):
        raise error
