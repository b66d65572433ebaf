"""One recording into a feature cache: written beside it, described by digests, put in place whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from avfuse import atomic
from avfuse.cache import FeatureCache
from avfuse.cached import describe_array, group_of, view_name
from avfuse.encoding import codecs, find_scale, pool, to_bytes
from avfuse.schema import RecordingError
from avfuse.sealed import seal
from avfuse.spec import Source
from avfuse.stores import METADATA

MAX_CHUNK_CLIPS = 256
MAX_COMPRESSED_CHUNK_CLIPS = 64  # a chunk is decoded whole, for the sake of one window


@dataclass
class RecordingWriter:
    """Write one recording beside the store and put it in place whole, or not at all.

    Clips are appended in batches; at most one chunk of them is held in memory. `commit` puts the recording in place;
    leaving the ``with`` statement without it removes what was written. Maps are pooled, and turned into bytes, as the
    store's spec has it; bytes want the range of the whole recording, so that halves are kept on disk until then.
    """

    cache: FeatureCache
    name: str
    source: Source

    def __enter__(self) -> RecordingWriter:
        self._aside = self.cache.store.aside()
        self._halves = self.cache.store.aside()
        self._audio: list[npt.NDArray[np.float32]] = []
        self._num_clips = 0
        try:
            self._group = zarr.create_group(self._aside)
        except BaseException:  # a signal may arrive before the with statement has begun
            atomic.remove_tree(self._aside)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        atomic.remove_tree(self._aside)
        atomic.remove_tree(self._halves)

    def begin(self, num_clips: int) -> None:
        """Say how many clips will come."""
        spec = self.cache.spec
        self._num_clips = num_clips
        kind = np.dtype(spec.storage["dtype"])
        self._views = [
            _ViewWriter(self._create(view_name(i), (num_clips, *spec.video_shape), kind))
            for i in range(spec.views["count"])
        ]
        self._spools = []
        if kind == np.uint8:
            self._halves.mkdir()
            self._spools = [_Spool(self._halves / f"{i}", spec.video_shape) for i in range(len(self._views))]

    def append(
        self, video_NCHW: npt.NDArray[np.float32], audio_NA: npt.NDArray[np.float32], *views: npt.NDArray[np.float32]
    ) -> None:
        """Add the features of the next clips; `views` are their maps in the further views that the spec asks for.

        Raises
        ------
        RecordingError
            With reason ``feature_overflow`` when a value is not finite in float16.
        """
        if len(views) + 1 != len(self._views):
            raise ValueError(f"{len(views) + 1} views came, the store keeps {len(self._views)}")
        with np.errstate(over="ignore"):
            halves = [self._shaped(values_NCHW).astype(np.float16) for values_NCHW in (video_NCHW, *views)]
        if not (np.isfinite(audio_NA).all() and all(np.isfinite(half_NCHW).all() for half_NCHW in halves)):
            raise RecordingError("feature_overflow", f"{self.name}: a feature is not finite; are the weights sound?")
        self._audio.append(audio_NA)
        takers: Sequence[_Spool | _ViewWriter] = self._spools or self._views
        for taker, half_NCHW in zip(takers, halves, strict=True):
            taker.append(half_NCHW)

    def commit(self, arrays: Mapping[str, npt.NDArray[Any]], fps: float) -> bool:
        """Write the other arrays, flush everything to disk and put the recording into the store.

        Return whether it is this one that stands there now: another process may have committed it meanwhile.
        """
        num_came = sum(map(len, self._audio))
        if num_came != self._num_clips:
            raise ValueError(f"{num_came} clips came, {self._num_clips} were announced")
        small = {"audio": np.concatenate(self._audio), **arrays, **self._quantise()}
        maps = {view_name(i): view.finish() for i, view in enumerate(self._views)}
        for name, values in small.items():
            self._create(name, values.shape, values.dtype)[...] = values
        attributes: dict[str, Any] = {
            "recording": self.name,
            "num_clips": self._num_clips,
            "fps": fps,
            "fingerprint": self.cache.spec.fingerprint,
            "source": asdict(self.source),
            "arrays": {name: describe_array(values) for name, values in small.items()} | maps,
            "files": {file: entry for file, entry in atomic.describe_files(self._aside).items() if file != METADATA},
        }
        (self._aside / METADATA).write_bytes(seal(attributes))
        atomic.flush_tree(self._aside)
        self.cache.remove(self.name)
        return self.cache.store.put(self._aside, group_of(self.name))

    def _shaped(self, values_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return pool(values_NCHW) if self.cache.spec.storage["maps"] == "pooled" else values_NCHW

    def _quantise(self) -> dict[str, npt.NDArray[np.float32]]:
        """Turn what was kept as halves into bytes; return the scales, or nothing where halves are what is stored."""
        if not self._spools:
            return {}
        scale_C, offset_C = find_scale(
            np.min([spool.lowest_C for spool in self._spools], axis=0),
            np.max([spool.highest_C for spool in self._spools], axis=0),
        )
        for spool, view in zip(self._spools, self._views, strict=True):
            half_NCHW = spool.read()
            for start in range(0, len(half_NCHW), view.chunk_clips):
                view.append(to_bytes(half_NCHW[start : start + view.chunk_clips], scale_C, offset_C))
        return {"video_scale": scale_C, "video_offset": offset_C}

    def _create(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        is_map = name.startswith("video") and len(shape) > 1
        compress = self.cache.compress if is_map else "none"
        limit = (MAX_CHUNK_CLIPS if compress == "none" else MAX_COMPRESSED_CHUNK_CLIPS) if is_map else shape[0]
        num_chunks = max(1, -(-shape[0] // max(1, limit)))
        return self._group.create_array(
            name,
            shape=shape,
            dtype=np.dtype(dtype),
            chunks=(max(1, -(-shape[0] // num_chunks)), *(max(1, length) for length in shape[1:])),
            fill_value=None,
            config={"write_empty_chunks": True},  # a chunk of zeros is stored too: one that is missing is damage
            **codecs(compress),
        )


@dataclass
class _ViewWriter:
    """Maps that come in batches, written chunk by chunk; their digest is that of what was written."""

    array: Any
    _held: list[npt.NDArray[Any]] = field(default_factory=list)
    _num_held: int = 0
    _num_written: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def chunk_clips(self) -> int:
        return int(self.array.chunks[0])

    def append(self, values: npt.NDArray[Any]) -> None:
        self._held.append(values)
        self._num_held += len(values)
        while self._num_held >= self.chunk_clips:
            self._write(self.chunk_clips)

    def finish(self) -> dict[str, Any]:
        """Write what is left; return what the recording's metadata say of the view."""
        if self._num_held:
            self._write(self._num_held)
        return {"shape": list(self.array.shape), "dtype": self.array.dtype.name, "sha256": self._digest.hexdigest()}

    def _write(self, count: int) -> None:
        held = np.concatenate(self._held)
        self.array[self._num_written : self._num_written + count] = held[:count]
        self._digest.update(np.ascontiguousarray(held[:count]).data)
        self._num_written += count
        self._held = [held[count:]]
        self._num_held -= count


class _Spool:
    """Halves on disk until the range of the whole recording is known."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self._shape = path, shape
        self.lowest_C = np.full(shape[0], np.inf, np.float32)
        self.highest_C = np.full(shape[0], -np.inf, np.float32)

    def append(self, half_NCHW: npt.NDArray[np.float16]) -> None:
        self.lowest_C = np.minimum(self.lowest_C, half_NCHW.min(axis=(0, 2, 3)))
        self.highest_C = np.maximum(self.highest_C, half_NCHW.max(axis=(0, 2, 3)))
        with self._path.open("ab") as file:
            half_NCHW.tofile(file)

    def read(self) -> npt.NDArray[np.float16]:
        """Return all of them, mapped."""
        return np.memmap(self._path, np.float16, mode="r").reshape(-1, *self._shape)
