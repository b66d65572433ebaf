"""The feature cache: the only bridge from stage 1 to stage 2, and the only code that reads or writes it.

A store is one Zarr 3 hierarchy::

    <home>/features/<dataset>-<fingerprint>.zarr/
      zarr.json                        attributes: the CacheSpec and its fingerprint
      recordings/<name>/zarr.json      attributes: partition, subject, source, digests of every file below
      recordings/<name>/video          (N, C, H, W) float16   feature map of each clip
                       /audio          (N, A)       float32   audio feature of each clip
                       /target         (N, E)       float32   rating at the clip's end, NaN where unrated
                       /face_share     (N,)         float32   share of the clip's frames that show the face
                       /end_frame      (N,)         int64     index of the clip's last frame
                       /end_time_s     (N,)         float64   time of the clip's end in seconds
                       /frame_time_s   (F,)         float64   presentation time of each frame in seconds
                       /frame_target   (F, E)       float32   rating of each frame, NaN where unrated
                       /frame_face     (F,)         bool      whether the face is known in each frame
                       /frame_face_probability  (F,) float32  the detector's probability, 1 for an
                                                           aligned image of the corpus, 0 without a face
      failures/<name>/zarr.json        attributes: reason and message of a recording that could not be used

Arrays are uncompressed little-endian bytes with a CRC-32C behind every chunk, so that a chunk file is its array's
memory and stage 2 maps it instead of reading it. A recording is written beside the store, flushed, and renamed into it:
what stands in the store is whole. The name of a store carries the fingerprint of its `CacheSpec`; another setting is
another store, so a stale feature can never be read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from avfuse import atomic
from avfuse.mapped import ClipMaps
from avfuse.schema import Failure, RecordingError, UsageError
from avfuse.spec import FORMAT_VERSION, CacheSpec, Source, folder_name

log = logging.getLogger(__name__)

MAX_CHUNK_CLIPS = 256
_DAMAGED = "damaged; remove the folder of that recording and run avfuse extract again"
_ALREADY_THERE = (errno.ENOTEMPTY, errno.EEXIST)


class FeatureCache:
    """One store of features. Open an existing one with `open`, or make one with `create`.

    Attributes
    ----------
    path : Path
    spec : CacheSpec
    """

    def __init__(self, path: Path, spec: CacheSpec) -> None:
        self.path = path
        self.spec = spec

    @classmethod
    def create(cls, home: Path, spec: CacheSpec, provenance: Mapping[str, Any]) -> FeatureCache:
        """Open the store of `spec` under `home`, making it when there is none; left-overs of dead writers go.

        Raises
        ------
        UsageError
            If the place cannot be written to.
        """
        path = home / "features" / spec.store_name
        cache = cls(path, spec)
        try:
            cache._aside.mkdir(parents=True, exist_ok=True)
            for leftover in atomic.sweep(cache._aside):
                log.info("removed what a killed writer left: %s", leftover)
            if not path.exists():
                cache._make_root(provenance)
            if not os.access(path / "recordings", os.W_OK):  # refused now, not after an hour of work
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UsageError(
                f"the cache {path} cannot be written to ({error.strerror}); "
                "give a folder that can be, with --cache or $AVFUSE_CACHE"
            ) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> FeatureCache:
        """Open a store for reading.

        Raises
        ------
        UsageError
            If there is no store, or one whose format this version does not know.
        """
        attributes = _read_attributes(path)
        if attributes is None or "spec" not in attributes:
            raise UsageError(f"{path} is not a feature store of avfuse; make one with: avfuse extract")
        version = attributes["spec"].get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} has format version {version}; this avfuse reads {FORMAT_VERSION}: remove it, and make its "
                "features again with: avfuse extract"
            )
        spec = CacheSpec.from_json(attributes["spec"])
        if spec.fingerprint != attributes["fingerprint"]:
            raise UsageError(f"{path}: its settings were altered after it was made; extract the features again")
        return cls(path, spec)

    @classmethod
    def find(cls, place: Path | str) -> FeatureCache:
        """Open the store at `place`, or the only one in the cache folder `place`.

        Raises
        ------
        UsageError
            If there is none, or more than one to choose from.
        """
        place = Path(place)
        if (place / "zarr.json").is_file():
            return cls.open(place)
        stores = sorted(path for path in (place / "features").glob("*.zarr") if (path / "zarr.json").is_file())
        if not stores:
            raise UsageError(f"{place} holds no features; make them with: avfuse extract ROOT --cache {place}")
        if len(stores) > 1:
            raise UsageError(f"{place} holds several feature stores; give one of: {', '.join(map(str, stores))}")
        return cls.open(stores[0])

    @property
    def home(self) -> Path:
        """The folder that holds `features` and `runs`."""
        return self.path.resolve().parent.parent

    def recordings(self, partition: str | None = None) -> list[CachedRecording]:
        """Return the recordings, sorted by name; of one partition if given.

        Raises
        ------
        UsageError
            If one of them is damaged: something is missing, cut short or altered.
        """
        found = [CachedRecording(path) for path in (self.path / "recordings").iterdir() if path.is_dir()]
        for item in found:
            if not item.is_whole:
                raise UsageError(f"{item.path} is {_DAMAGED}")
        chosen = [item for item in found if partition in (None, item.source.partition)]
        return sorted(chosen, key=lambda item: item.name)

    def digest(self, partitions: Collection[str]) -> str:
        """Return a digest of what the recordings of some partitions hold."""
        held = [item for item in self.recordings() if item.source.partition in partitions]
        return atomic.digest_json({item.name: item.digest for item in held})

    def names(self) -> list[str]:
        """Return the names of the recordings, damaged ones included, sorted."""
        found = [_read_attributes(path) for path in (self.path / "recordings").iterdir()]
        return sorted(str(attributes["recording"]) for attributes in found if attributes)

    def holds(self, name: str, source: Source) -> bool:
        """Whether the recording is here, whole, and made from these very files."""
        cached = CachedRecording(self._group(name))
        return cached.is_whole and cached.source == source

    def relabel(self, name: str, source: Source) -> bool:
        """Give a recording made from these very files another partition and subject; tell whether that could be."""
        cached, path = CachedRecording(self._group(name)), self._group(name) / "zarr.json"
        if not cached.is_whole or source != replace(cached.source, partition=source.partition, subject=source.subject):
            return False
        content = json.loads(path.read_bytes())
        attributes = {**content["attributes"], "source": asdict(source)}
        del attributes["digest"]  # which does not count itself
        content["attributes"] = {**attributes, "digest": atomic.digest_json(attributes)}
        atomic.write_atomically(path, json.dumps(content).encode())
        return True

    def remove(self, name: str) -> None:
        """Take a recording out of the store, in one step."""
        group = self._group(name)
        if group.exists():
            away = self._new_aside()
            away.mkdir()
            group.rename(away / "removed")
            shutil.rmtree(away)

    def record_failure(self, failure: Failure) -> None:
        """Keep the reason why a recording could not be used."""
        aside = self._new_aside()
        zarr.create_group(aside, attributes=asdict(failure))
        target = self.path / "failures" / folder_name(failure.recording)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)

    def clear_failure(self, name: str) -> None:
        """Forget an earlier failure."""
        shutil.rmtree(self.path / "failures" / folder_name(name), ignore_errors=True)

    def failures(self) -> list[Failure]:
        """Return the recorded failures, sorted by name."""
        found = [_read_attributes(path) for path in (self.path / "failures").iterdir() if path.is_dir()]
        return sorted((Failure(**item) for item in found if item), key=lambda failure: failure.recording)

    @property
    def _aside(self) -> Path:  # on the same file system, so that a rename puts things in place
        return self.path.with_suffix(".tmp")

    def _new_aside(self) -> Path:
        return self._aside / atomic.new_aside_name()

    def _group(self, name: str) -> Path:
        return self.path / "recordings" / folder_name(name)

    def _make_root(self, provenance: Mapping[str, Any]) -> None:
        aside = self._new_aside()
        attributes = {"spec": asdict(self.spec), "fingerprint": self.spec.fingerprint, "provenance": dict(provenance)}
        root = zarr.create_group(aside, attributes=json.loads(json.dumps(attributes)))
        root.create_group("recordings")
        root.create_group("failures")
        atomic.flush_tree(aside)
        try:
            aside.rename(self.path)
        except OSError as error:  # another process was faster
            shutil.rmtree(aside)
            if error.errno not in _ALREADY_THERE:
                raise


class CachedRecording:
    """The features of one recording, mapped into memory rather than read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        return _read_attributes(self.path) or {}

    @property
    def name(self) -> str:
        """Name of the recording in its corpus."""
        return str(self._attributes["recording"])

    @property
    def source(self) -> Source:
        """What the features were made from."""
        return Source(**self._attributes["source"])

    @property
    def digest(self) -> str:
        """Digest of the recording's files and attributes."""
        return str(self._attributes["digest"])

    @property
    def fps(self) -> float:
        """Slots per second of the clip grid."""
        return float(self._attributes["fps"])

    @cached_property
    def is_whole(self) -> bool:
        """Whether the recording is here with every file at its full length and its own attributes unaltered."""
        attributes = dict(self._attributes)
        if not attributes or attributes.pop("digest", None) != atomic.digest_json(attributes):
            return False
        files = {self.path / file: entry["bytes"] for file, entry in attributes["files"].items()}
        return all(file.is_file() and file.stat().st_size == num_bytes for file, num_bytes in files.items())

    @property
    def files(self) -> dict[str, Any]:
        """Length and sha256 of every file but the attributes' own, by its path in the group."""
        return dict(self._attributes["files"])

    @cached_property
    def num_clips(self) -> int:
        """Number of clips (N)."""
        return int(self._attributes["num_clips"])

    @cached_property
    def video(self) -> ClipMaps:
        """Feature maps, (N, C, H, W) float16, mapped."""
        return ClipMaps(self.path / "video")

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return one of the small arrays (all but ``video``), read and checked against its checksum."""
        try:
            return np.asarray(zarr.open_array(self.path / name, mode="r")[...])
        except ValueError as error:  # the checksum is wrong
            raise UsageError(f"{self.path / name} is {_DAMAGED}") from error


@dataclass
class RecordingWriter:
    """Write one recording beside the store and put it in place whole, or not at all.

    Clips are appended in batches; at most one chunk of them is held in memory. `commit` puts the recording in place;
    leaving the ``with`` statement without it removes what was written.
    """

    cache: FeatureCache
    name: str
    source: Source
    _held: list[npt.NDArray[np.float16]] = field(default_factory=list)
    _num_held: int = 0
    _num_written: int = 0

    def __enter__(self) -> RecordingWriter:
        self._aside = self.cache._new_aside()
        self._audio: list[npt.NDArray[np.float32]] = []
        try:
            self._group = zarr.create_group(self._aside)
        except BaseException:  # a signal may arrive before the with statement has begun
            atomic.remove_tree(self._aside)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        atomic.remove_tree(self._aside)

    def begin(self, num_clips: int) -> None:
        """Say how many clips will come."""
        num_chunks = -(-num_clips // MAX_CHUNK_CLIPS)
        self._chunk_clips = -(-num_clips // num_chunks)
        self._video = self._create("video", (num_clips, *self.cache.spec.video_shape), np.float16, self._chunk_clips)

    def append(self, video_NCHW: npt.NDArray[np.float32], audio_NA: npt.NDArray[np.float32]) -> None:
        """Add the features of the next clips.

        Raises
        ------
        RecordingError
            With reason ``feature_overflow`` when a value is not finite in float16.
        """
        with np.errstate(over="ignore"):
            half_NCHW = video_NCHW.astype(np.float16)
        if not (np.isfinite(half_NCHW).all() and np.isfinite(audio_NA).all()):
            raise RecordingError("feature_overflow", f"{self.name}: a feature is not finite; are the weights sound?")
        self._audio.append(audio_NA)
        self._held.append(half_NCHW)
        self._num_held += len(half_NCHW)
        while self._num_held >= self._chunk_clips:
            self._write(self._chunk_clips)

    def commit(self, arrays: Mapping[str, npt.NDArray[Any]], fps: float) -> None:
        """Write the other arrays, flush everything to disk and rename the recording into the store."""
        if self._num_held:
            self._write(self._num_held)
        if self._num_written != self._video.shape[0]:
            raise ValueError(f"{self._num_written} clips came, {self._video.shape[0]} were announced")
        for name, values in {"audio": np.concatenate(self._audio), **arrays}.items():
            self._create(name, values.shape, values.dtype, max(1, len(values)))[...] = values
        attributes: dict[str, Any] = {
            "recording": self.name,
            "num_clips": self._num_written,
            "fps": fps,
            "source": asdict(self.source),
            "files": {file: entry for file, entry in atomic.describe_files(self._aside).items() if file != "zarr.json"},
        }
        self._group.attrs.put({**attributes, "digest": atomic.digest_json(attributes)})
        atomic.flush_tree(self._aside)
        self.cache.remove(self.name)
        try:
            self._aside.rename(self.cache._group(self.name))
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise
            log.info("%s was committed by another process meanwhile", self.name)
        atomic.flush(self.cache.path / "recordings")

    def _write(self, count: int) -> None:
        held = np.concatenate(self._held)
        self._video[self._num_written : self._num_written + count] = held[:count]
        self._num_written += count
        self._held = [held[count:]]
        self._num_held -= count

    def _create(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, chunk_rows: int) -> Any:
        return self._group.create_array(
            name,
            shape=shape,
            dtype=np.dtype(dtype),
            chunks=(chunk_rows, *(max(1, length) for length in shape[1:])),
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=None,
        )


def _read_attributes(group: Path) -> dict[str, Any] | None:
    try:
        attributes = json.loads((group / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
    except (OSError, ValueError):
        return None
    return dict(attributes)
