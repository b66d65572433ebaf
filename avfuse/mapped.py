"""An array on disk whose chunk files are its memory: uncompressed Zarr chunks, mapped instead of read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt


class ClipMaps:
    """An uncompressed array over clips whose chunk files are mapped into memory."""

    def __init__(self, path: Path) -> None:
        metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        self.shape: tuple[int, ...] = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        chunk_shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        self._chunk_clips = chunk_shape[0]
        inner = "/".join("0" for _ in self.shape[1:])
        num_chunks = -(-self.shape[0] // self._chunk_clips)
        self._chunks = [
            np.memmap(path / "c" / str(i) / inner, self.dtype, mode="r", shape=chunk_shape) for i in range(num_chunks)
        ]

    def __len__(self) -> int:
        return self.shape[0]

    def strided(self, start: int, step: int, count: int) -> Iterator[tuple[int, npt.NDArray[np.float16]]]:
        """Yield the clips start, start + step, ... as runs (how many came before, view), one per chunk."""
        done = 0
        while done < count:
            first = start + done * step
            chunk, offset = divmod(first, self._chunk_clips)
            run = min(count - done, -(-(self._chunk_clips - offset) // step))
            yield done, self._chunks[chunk][offset : offset + (run - 1) * step + 1 : step]
            done += run
