"""An array over clips that is read chunk by chunk, be its chunks mapped into memory or decoded when asked for."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse.schema import UsageError

PLAIN_CODECS = ("bytes", "crc32c")
"""Names of the codecs of a Zarr array whose chunk files are its memory, with a checksum behind."""


class ChangedError(UsageError):
    """What is read again is not what was read first, and compared with its digest."""

    def __init__(self, place: Path | str) -> None:
        super().__init__(f"{place} was changed while it was being used; run the same command again")


class ClipArray:
    """One value per clip, (N, ...), in chunks of consecutive clips.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy data type
    chunk_clips : int
        Clips per chunk; the last chunk may hold fewer.
    read : callable
        Returns chunk number i with at least the clips that belong to it, (chunk_clips, ...); whenever it is called
        again, the same values, or it raises `ChangedError`.
    is_mapped : bool
        Whether chunks are views of memory that the system pages in, so that holding many of them costs nothing.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        chunk_clips: int,
        read: Callable[[int], npt.NDArray[Any]],
        is_mapped: bool,
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.chunk_clips = chunk_clips
        self.is_mapped = is_mapped
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-len(self) // self.chunk_clips)

    @property
    def num_bytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def chunk(self, number: int) -> npt.NDArray[Any]:
        """Return the clips of one chunk, (n, ...)."""
        return self._read(number)[: len(self) - number * self.chunk_clips]

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the chunks in order."""
        return (self.chunk(number) for number in range(self.num_chunks))

    def strided(self, start: int, step: int, count: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the clips start, start + step, ... as runs (how many came before, view), one per chunk."""
        for done, number, clips in self.runs(start, step, count):
            yield done, self.chunk(number)[clips]

    def runs(self, start: int, step: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """Yield where the clips start, start + step, ... lie: how many came before, chunk, slice of the chunk."""
        done = 0
        while done < count:
            number, offset = divmod(start + done * step, self.chunk_clips)
            run = min(count - done, -(-(self.chunk_clips - offset) // step))
            yield done, number, slice(offset, offset + (run - 1) * step + 1, step)
            done += run


def map_file(file: Path, num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return the first bytes of a file, mapped to be read, without keeping the file open as `numpy.memmap` does.

    A process may hold some 65,000 maps, but often no more than 1,024 open files.

    Raises
    ------
    OSError
        If it cannot be opened or mapped.
    ValueError
        If it is shorter.
    """
    library = _library()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size < num_bytes:  # beyond its end is no memory
            raise ValueError(f"{file} has fewer than {num_bytes} bytes")
        address = library.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    finally:
        os.close(descriptor)
    memory = (ctypes.c_ubyte * num_bytes).from_address(address)
    weakref.finalize(memory, library.munmap, address, num_bytes).atexit = False  # threads may still be reading
    return np.frombuffer(memoryview(memory).toreadonly(), np.uint8)


@cache
def _library() -> ctypes.CDLL:
    """Return the C library, with the types of the functions that map files."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library


def digest_of(values: npt.NDArray[Any]) -> str:
    """Return the hexadecimal sha256 of an array's values, little-endian, in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
