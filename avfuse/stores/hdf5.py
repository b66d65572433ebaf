"""One HDF5 file, readable with plain h5py: a group per group, a data set per array, and the metadata as attributes.

The attribute ``zarr.json`` of a group holds the very bytes of its sealed metadata, that of a data set the metadata of
the array that it was exported from. Beside them stand a few attributes for people (`native_attributes`), which avfuse
does not read. Chunks carry a Fletcher-32 checksum and HDF5's own metadata theirs; chunks that are not compressed are
mapped, as those of a folder are. A file is written as a whole, by ``avfuse cache export``, and never changed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt

from avfuse import atomic
from avfuse.clips import ClipArray
from avfuse.schema import UsageError
from avfuse.sealed import read_attributes
from avfuse.stores import METADATA, Store, list_folder, tells_nothing

SUFFIXES = (".h5", ".hdf5")
_LAYOUT = {
    "libver": ("v110", "v110"),  # from here on HDF5 has checksums on its metadata
    "alignment_threshold": 1024,
    "alignment_interval": 64,  # mapped values begin where numpy wants them
}
_CHECKSUM_BYTES = 4  # behind every chunk
_END_OF_FILE = slice(28, 36)  # where the superblock, version 3, says how long the file is
_READ_ERRORS = (OSError, ValueError, LookupError, TypeError, RuntimeError)  # what h5py makes of damage
_PEOPLE_READ = {
    "spec": ("fingerprint",),
    "arrays": ("recording", "fps", "num_clips"),
    "reason": ("recording", "reason", "message"),
}
_AGAIN = "copy it again from where it is whole, or export the cache again"


def native_attributes(metadata: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return what the metadata of a root, a recording or a failure say to people, as native HDF5 attributes."""
    kind = next((key for key in _PEOPLE_READ if key in metadata), None)
    found = {key: metadata[key] for key in _PEOPLE_READ.get(kind or "", ())}
    if kind == "spec":
        found |= {"dataset": metadata["spec"]["dataset"], "targets": ", ".join(metadata["spec"]["targets"])}
    if kind == "arrays":
        found |= {key: metadata["source"][key] for key in ("partition", "subject")}
    return {key: _writable(value) if isinstance(value, str) else value for key, value in found.items()}


def _writable(text: str) -> str:
    """Return a text as HDF5 can hold it: without zeros, and without what is no Unicode."""
    return text.encode(errors="replace").decode().replace("\0", "?")


@contextmanager
def new_file(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Write a file aside, flush it to disk and rename it into place; what is written when an error comes is removed.

    Yield the `h5py.File`, and a function that raises the `OSError` of writing as soon as there is one.
    """
    aside = path.with_name(f".{path.name}.{atomic.new_aside_name()}")

    def check() -> None:
        with atomic.naming(path):
            sink.check()

    try:
        with _Sink(aside) as sink:
            atomic.hold(sink.fileno())
            with h5py.File(sink, "w", **_LAYOUT) as out:
                yield out, check
            check()
            with atomic.naming(path):
                os.fsync(sink.fileno())
        aside.replace(path)
        atomic.flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


class _Sink(io.FileIO):
    """A new file that never fails while it is written: on a full disk HDF5 would take the process down with it.

    The first error, or the signal that came meanwhile, is kept, and what comes after it goes nowhere.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the first error of writing, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, content: Any, /) -> int:
        """Write all of the content, or keep the error."""
        try:
            rest = memoryview(content)
            while self._error is None and rest:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self._error = error
        return len(content)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length of the file, or keep the error."""
        try:
            return super().truncate(size)
        except BaseException as error:
            self._error = self._error or error
            return size or 0


class HDF5Store(Store):
    """A file ``.h5`` or ``.hdf5``, to be read only."""

    is_writable: ClassVar[bool] = False
    location: Path

    def __init__(self, location: Path | str) -> None:
        super().__init__(Path(location))

    @property
    def remedy(self) -> str:
        """What to do about damage, in words: a file is never mended."""
        return f"see what is wrong with: avfuse cache verify {self.quoted}; export it, or copy it, again"

    @classmethod
    def find(cls, folder: Path | str) -> list[Path | str]:
        """Return the files ``*.h5`` and ``*.hdf5``, sorted."""
        return [path for path in list_folder(Path(folder)) if path.suffix in SUFFIXES]

    def metadata(self, group: str) -> bytes | None:
        """Return the attribute ``zarr.json`` of a group.

        Raises
        ------
        UsageError
            If the file is not there, is no HDF5, or is cut short; of the root also if it has no metadata.
        """
        content = self._metadata(group)
        if content is None and not group:
            raise UsageError(
                f"{self.location} is an HDF5 file, but not a cache of avfuse; features of others are imported by a "
                "mapping that says what is where: avfuse cache import MAPPING.toml"
            )
        return content

    def groups(self, parent: str) -> list[str]:
        """Return the groups in a group."""
        return [f"{parent}/{name}" for name in self.members(parent)]

    def files(self, group: str) -> dict[str, int] | None:
        """Return None: a file in HDF5 is not made of files."""
        return None

    def members(self, group: str) -> list[str]:
        """Return the names in a group, sorted.

        Raises
        ------
        UsageError
            If they cannot be read.
        """
        file = self._file
        try:
            return sorted(file[group or "/"]) if not group or group in file else []
        except _READ_ERRORS as error:
            raise UsageError(f"{self.location}: its group {group} is damaged ({error}); {_AGAIN}") from error

    def count_bytes(self) -> int:
        """Return the length of the file."""
        return self.location.stat().st_size

    def changed_s(self) -> float:
        """Return when the file was written, by the clock of the file system."""
        return self.location.stat().st_mtime

    def find_contradictions(self, group: str) -> list[str]:
        """Return what is at odds: attributes with metadata, metadata of arrays and length with what was written.

        Every chunk of every data set is read, for the sake of its checksum and of the metadata that lead to it.
        """
        metadata = read_attributes(self._metadata(group)) or {}
        try:
            found = {key: value for key, value in self._file[group or "/"].attrs.items() if key != METADATA}
        except _READ_ERRORS as error:
            return [f"its attributes cannot be read ({error})"]
        expected = native_attributes(metadata)
        wrong = [
            f"its attribute {key} is {found.get(key)}, its metadata say {expected.get(key)}"
            for key in sorted({*found, *expected})
            if str(found.get(key)) != str(expected.get(key))
        ]
        if not group and self.count_bytes() != (
            num_bytes := int.from_bytes(self._bytes[_END_OF_FILE].tobytes(), "little")
        ):
            wrong.append(f"the file has {self.count_bytes():,} bytes, {num_bytes:,} were written")
        files = metadata.get("files", {})
        for name in metadata.get("arrays", {}):
            content = self._metadata(f"{group}/{name}") or b""
            if hashlib.sha256(content).hexdigest() != files.get(f"{name}/{METADATA}", {}).get("sha256"):
                wrong.append(f"the {METADATA} of its {name} was altered")
        return wrong + self._find_unreadable(group)

    def read(self, path: str) -> bytes:
        """Return the metadata of a group or an array, the only files of a folder that are here as they were."""
        parent, _, name = path.rpartition("/")
        content = self._metadata(parent) if name == METADATA else None
        if content is None:
            raise FileNotFoundError(errno.ENOENT, f"not in {self.location}", path)
        return content

    def array(self, path: str) -> npt.NDArray[Any]:
        """Read a data set, whose checksums HDF5 compares."""
        return np.asarray(self._dataset(path)[...])

    def clips(self, path: str) -> ClipArray:
        """Map the chunks of a data set whose bytes are its values; read those of another through h5py."""
        dataset = self._dataset(path)
        shape, dtype = dataset.shape, dataset.dtype
        chunk_shape = dataset.chunks or (max(1, shape[0]), *shape[1:])
        offsets = self._find_plain_chunks(dataset)
        if offsets is None:
            num = chunk_shape[0]
            return ClipArray(shape, dtype, num, lambda i: np.asarray(dataset[i * num : (i + 1) * num]), is_mapped=False)
        values, num_bytes = self._bytes, math.prod(chunk_shape) * dtype.itemsize

        def read(number: int) -> npt.NDArray[Any]:
            start = offsets[number]
            chunk: npt.NDArray[Any] = values[start : start + num_bytes].view(dtype).reshape(chunk_shape)
            return chunk

        return ClipArray(shape, dtype, chunk_shape[0], read, is_mapped=True)

    def _find_unreadable(self, group: str) -> list[str]:
        """Return which data sets in a group HDF5 itself cannot read, with their attributes, and why."""
        wrong = []
        for name in self.members(group):
            try:
                item = self._file[f"{group}/{name}"]
                if isinstance(item, h5py.Dataset):
                    dict(item.attrs)
                    for place in item.iter_chunks() if item.chunks else [()]:
                        item[place]
            except _READ_ERRORS as error:
                if tells_nothing(error):
                    raise
                wrong.append(f"HDF5 cannot read its {name} ({error})")
        return wrong

    @cached_property
    def _file(self) -> Any:
        try:
            return h5py.File(self.location, "r")
        except FileNotFoundError as error:
            raise UsageError(
                f"{self.location} does not exist; make it with: avfuse cache export {self.quoted}"
            ) from error
        except OSError as error:
            if self.location.is_dir():
                raise UsageError(f"{self.location} is a folder; a cache in HDF5 is one file") from error
            if "signature not found" in str(error):
                raise UsageError(f"{self.location} is not an HDF5 file, or its beginning is lost; {_AGAIN}") from error
            if tells_nothing(error):
                raise OSError(error.errno, os.strerror(error.errno or 0), str(self.location)) from error
            raise UsageError(f"{self.location} cannot be read: {error}; {_AGAIN}") from error

    @cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        """The file as it lies on disk, mapped."""
        return np.asarray(np.memmap(self.location, np.uint8, mode="r"))

    def _metadata(self, path: str) -> bytes | None:
        """Return the attribute ``zarr.json`` of a group or a data set; None if it is not there or cannot be read."""
        file = self._file
        try:
            content = file[path or "/"].attrs[METADATA]
        except _READ_ERRORS:
            return None
        return bytes(content) if isinstance(content, bytes) else None

    def _dataset(self, path: str) -> Any:
        dataset = self._file[path]
        if not isinstance(dataset, h5py.Dataset):
            raise KeyError(f"{path} is not a data set")
        return dataset

    def _find_plain_chunks(self, dataset: Any) -> list[int] | None:
        """Return where in the file each chunk's values begin; None if their bytes are not the values."""
        shape, chunk_shape, dtype = dataset.shape, dataset.chunks, dataset.dtype
        pipeline = dataset.id.get_create_plist()
        filters = [pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())]
        is_plain = set(filters) <= {h5py.h5z.FILTER_FLETCHER32} and dtype.str[0] in "<|" and dtype.kind in "fiub"
        if chunk_shape is None or chunk_shape[1:] != shape[1:] or not is_plain:
            return None
        num_bytes = math.prod(chunk_shape) * dtype.itemsize
        offsets: dict[int, int] = {}

        def take(chunk: Any) -> None:
            is_here = chunk.size == num_bytes + _CHECKSUM_BYTES * len(filters) and chunk.filter_mask == 0
            if is_here and chunk.byte_offset % dtype.itemsize == 0:
                offsets[chunk.chunk_offset[0] // chunk_shape[0]] = chunk.byte_offset

        dataset.id.chunk_iter(take)
        numbers = range(-(-shape[0] // chunk_shape[0]))
        return [offsets[number] for number in numbers] if set(offsets) == set(numbers) else None
