"""One recording into a feature cache: written beside it, described by digests, put in place whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from avfuse import atomic
from avfuse.cache import FeatureCache
from avfuse.cached import describe_array, group_of, view_name
from avfuse.encoding import codecs, find_scale, pool, to_bytes
from avfuse.schema import RecordingError, UsageError
from avfuse.sealed import seal
from avfuse.spec import Source
from avfuse.stores import METADATA

MAX_CHUNK_CLIPS = 256
MAX_SOUND_CLIPS = 4096
MAX_COMPRESSED_CHUNK_CLIPS = 64  # a chunk is decoded whole, for the sake of one window


@dataclass
class RecordingWriter:
    """Write one recording beside the store and put it in place whole, or not at all.

    Clips are appended in batches; at most one chunk of each view is held in memory. `commit` puts the recording in
    place; leaving the ``with`` statement without it removes what was written. Maps are turned into halves, pooled, and
    turned into bytes, as the store's spec has it; bytes want the range of the whole recording, so that halves are kept
    on disk until then. `on_step` is called now and then while `commit` is at work.
    """

    cache: FeatureCache
    name: str
    source: Source
    on_step: Callable[[], object] = lambda: None

    def __enter__(self) -> RecordingWriter:
        self._aside = self.cache.store.aside()
        self._spooled = self.cache.store.aside()
        self._arrays: dict[str, Any] = {}
        self._num_clips = self._num_came = 0
        try:
            with self._naming():
                self._group = zarr.create_group(self._aside)
        except BaseException:  # a signal may arrive before the with statement has begun
            atomic.remove_tree(self._aside)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for folder in (self._aside, self._spooled):
            atomic.remove_tree(folder, is_settled=kind is None)

    def begin(self, num_clips: int, *, as_stored: bool = False) -> None:
        """Say how many clips will come, and whether their maps are already what the store's spec makes of maps.

        Those of bytes come with their scales then, as ``video_scale`` and ``video_offset`` of `commit`.
        """
        spec = self.cache.spec
        self._num_clips, self._as_stored = num_clips, as_stored
        kind = np.dtype(spec.storage["dtype"])
        with self._naming():
            self._views = [
                _ArrayWriter(self._create(view_name(i), (num_clips, *spec.video_shape), kind))
                for i in range(spec.views["count"])
            ]
            self._sound = _ArrayWriter(self._create("audio", (num_clips, *spec.audio_shape), np.float32))
        self._spools = []
        if kind == np.uint8 and not as_stored:
            with self._naming():
                self._spooled.mkdir()
            self._spools = [_Spool(self._spooled / f"{i}", spec.video_shape) for i in range(len(self._views))]

    def append(self, video_NCHW: npt.NDArray[Any], audio_NA: npt.NDArray[Any], *views: npt.NDArray[Any]) -> None:
        """Add the features of the next clips; `views` are their maps in the further views that the spec asks for.

        Raises
        ------
        RecordingError
            With reason ``feature_overflow`` when a value is not finite in float16.
        """
        given = (video_NCHW, *views)
        if len(given) != len(self._views):
            raise ValueError(f"{len(given)} views came, the store keeps {len(self._views)}")
        counts = [len(values_NCHW) for values_NCHW in given]
        if {*counts} != {len(audio_NA)}:
            raise ValueError(f"maps of {counts} clips and sound of {len(audio_NA)} came")
        self._num_came += len(audio_NA)
        if self._num_came > self._num_clips:
            raise ValueError(f"{self._num_came} clips came, {self._num_clips} were announced")
        with np.errstate(over="ignore", invalid="ignore"):
            maps = [values_NCHW if self._as_stored else self._shaped(values_NCHW) for values_NCHW in given]
            audio_NA = np.array(audio_NA, np.float32)
        if not (np.isfinite(audio_NA).all() and all(np.isfinite(values_NCHW).all() for values_NCHW in maps)):
            raise RecordingError("feature_overflow", f"{self.name}: a feature is not finite; are the weights sound?")
        with self._naming():
            self._sound.append(audio_NA)
        takers: Sequence[_Spool | _ArrayWriter] = self._spools or self._views
        with self._naming():
            for taker, values_NCHW in zip(takers, maps, strict=True):
                taker.append(values_NCHW)

    def commit(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        fps: float,
        *,
        missing: str = "",
        losses: Mapping[str, int] | None = None,
    ) -> bool:
        """Write the other arrays, flush everything to disk and put the recording into the store.

        `missing` names the modality that the recording lacks, ``audio`` or ``video``, whose features are zeros then;
        `losses` counts what of its files could not be decoded. Return whether it is this one that stands there now:
        another process may have committed it meanwhile.

        Raises
        ------
        OSError
            If a file cannot be written, or is not there any more; nothing is put into the store then.
        """
        if self._num_came != self._num_clips:
            raise ValueError(f"{self._num_came} clips came, {self._num_clips} were announced")
        told = {"missing": missing} if missing else {}
        with self._naming():
            self._complete(arrays, {"fps": fps, **told, **({"losses": dict(losses)} if losses else {})})
        return self.cache.store.replace(self._aside, group_of(self.name))

    def _naming(self) -> AbstractContextManager[None]:
        """Let errors of writing name the folder in which the recording is written."""
        return atomic.naming(self._aside.parent)

    def _complete(self, arrays: Mapping[str, npt.NDArray[Any]], told: Mapping[str, Any]) -> None:
        """Write what is not written yet, the metadata last, and flush it all to disk."""
        small = {**arrays, **self._quantise()}
        sound = {"audio": self._sound.finish()}
        maps = {view_name(i): view.finish() for i, view in enumerate(self._views)}
        if self.cache.compress != "none":
            self._read_back(maps)
        for name, values in small.items():
            self._create(name, values.shape, values.dtype)[...] = values
        files = atomic.describe_files(self._aside, self.on_step)
        self._check_files(files)
        attributes: dict[str, Any] = {
            "recording": self.name,
            "num_clips": self._num_clips,
            **told,
            "fingerprint": self.cache.spec.fingerprint,
            "source": asdict(self.source),
            "arrays": sound | {name: describe_array(values) for name, values in small.items()} | maps,
            "files": {file: entry for file, entry in files.items() if file != METADATA},
        }
        (self._aside / METADATA).write_bytes(seal(attributes))
        atomic.flush_tree(self._aside, self.on_step)

    def _shaped(self, values_NCHW: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
        half_NCHW = values_NCHW.astype(np.float16)
        return pool(half_NCHW).astype(np.float16) if self.cache.spec.storage["maps"] == "pooled" else half_NCHW

    def _read_back(self, maps: Mapping[str, Mapping[str, Any]]) -> None:
        """Read what a codec has written before it counts; what is not compressed is the values' own bytes."""
        for view, (name, described) in zip(self._views, maps.items(), strict=True):
            digest = hashlib.sha256()
            for start in range(0, self._num_clips, view.chunk_clips):
                self.on_step()
                digest.update(np.ascontiguousarray(view.array[start : start + view.chunk_clips]).data)
            if digest.hexdigest() != described["sha256"]:
                raise UsageError(
                    f"{self.name}/{name} reads as other values after compression by {self.cache.compress} than before; "
                    "nothing is kept"
                )

    def _check_files(self, files: Mapping[str, Any]) -> None:
        """Refuse a recording of which a file is gone, as after somebody removed what lies beside the store."""
        for name, array in self._arrays.items():
            chunks = product(*map(range, array.cdata_shape))
            for file in (METADATA, *("/".join(map(str, ("c", *chunk))) for chunk in chunks)):
                if f"{name}/{file}" not in files:
                    told = f"{name}/{file} of {self.name} is gone, which was written; nothing is kept"
                    raise FileNotFoundError(errno.ENOENT, told, str(self._aside))

    def _quantise(self) -> dict[str, npt.NDArray[np.float32]]:
        """Turn what was kept as halves into bytes; return the scales, or nothing where halves are what is stored."""
        if not self._spools:
            return {}
        scale_C, offset_C = find_scale(
            np.min([spool.lowest_C for spool in self._spools], axis=0),
            np.max([spool.highest_C for spool in self._spools], axis=0),
        )
        for spool, view in zip(self._spools, self._views, strict=True):
            for half_NCHW in spool.read(view.chunk_clips):
                self.on_step()
                view.append(to_bytes(half_NCHW, scale_C, offset_C))
        return {"video_scale": scale_C, "video_offset": offset_C}

    def _create(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        is_map = name.startswith("video") and len(shape) > 1
        compress = self.cache.compress if is_map else "none"
        limit = MAX_SOUND_CLIPS if name == "audio" else shape[0]
        if is_map:
            limit = MAX_CHUNK_CLIPS if compress == "none" else MAX_COMPRESSED_CHUNK_CLIPS
        num_chunks = max(1, -(-shape[0] // max(1, limit)))
        self._arrays[name] = self._group.create_array(
            name,
            shape=shape,
            dtype=np.dtype(dtype),
            chunks=(max(1, -(-shape[0] // num_chunks)), *(max(1, length) for length in shape[1:])),
            fill_value=None,
            config={"write_empty_chunks": True},  # a chunk of zeros is stored too: one that is missing is damage
            **codecs(compress, np.dtype(dtype).name),
        )
        return self._arrays[name]


class _ArrayWriter:
    """Features that come in batches, written chunk by chunk; their digest is that of what was written."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self._held: npt.NDArray[Any] = np.empty(array.chunks, array.dtype)
        self._num_held = self._num_written = 0
        self._digest = hashlib.sha256()

    @property
    def chunk_clips(self) -> int:
        return len(self._held)

    def append(self, values: npt.NDArray[Any]) -> None:
        while len(values):
            part = values[: self.chunk_clips - self._num_held]
            self._held[self._num_held : self._num_held + len(part)] = part
            self._num_held += len(part)
            if self._num_held == self.chunk_clips:
                self._write()
            values = values[len(part) :]

    def finish(self) -> dict[str, Any]:
        """Write what is left; return what the recording's metadata say of the array."""
        if self._num_held:
            self._write()
        return {"shape": list(self.array.shape), "dtype": self.array.dtype.name, "sha256": self._digest.hexdigest()}

    def _write(self) -> None:
        held = self._held[: self._num_held]
        self.array[self._num_written : self._num_written + len(held)] = held
        self._digest.update(held.data)
        self._num_written += len(held)
        self._num_held = 0


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
            file.write(np.ascontiguousarray(half_NCHW).data)  # numpy's own way does not say why it cannot write

    def read(self, num_clips: int) -> Iterator[npt.NDArray[np.float16]]:
        """Yield them again, so many at a time."""
        clip_values = math.prod(self._shape)
        with self._path.open("rb") as file:
            while piece := file.read(2 * clip_values * num_clips):
                yield np.frombuffer(piece, np.float16).reshape(-1, *self._shape)
