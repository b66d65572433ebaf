"""A whole feature cache into one HDF5 file, and back into a folder, bit for bit.

What is written is compared with its digests while it is read. A file is written aside and renamed when it is whole; a
recording that is imported is put in place whole, so that an import that was stopped goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from avfuse import atomic
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions, CacheImportOptions
from avfuse.cached import RECORDINGS, CachedRecording, group_of, view_name
from avfuse.ledger import FAILURES
from avfuse.options import cache_home
from avfuse.schema import UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.spec import folder_name
from avfuse.stores import METADATA, Store, open_array
from avfuse.stores.hdf5 import SUFFIXES, native_attributes, new_file

log = logging.getLogger(__name__)

CHUNK_CLIPS, MIN_CHUNK_BYTES = 16, 2**16  # a chunk holds so many clips, or more if they are small


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote; `num_bytes` is the length of the file."""

    file: str
    store: str
    fingerprint: str
    num_recordings: int
    num_failures: int
    num_clips: int
    num_bytes: int


@dataclass(frozen=True)
class RestoreSummary:
    """What came of importing a cache from HDF5.

    Attributes
    ----------
    store, fingerprint : str
    num_recordings, num_imported, num_present : int
        In the file; put into the store now; there before, with the same content.
    num_clips : int
        Of what was imported now.
    num_failures : int
        Recorded failures that came along.
    reencoded : tuple of str
        Recordings whose files have other bytes than where they were exported, and the same values.
    """

    store: str
    fingerprint: str
    num_recordings: int
    num_imported: int
    num_present: int
    num_clips: int
    num_failures: int
    reencoded: tuple[str, ...]


def export_cache(
    options: CacheExportOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> ExportSummary:
    """Write a cache into one HDF5 file; see `avfuse.stores.hdf5` for what is where.

    Raises
    ------
    UsageError
        If there is no cache, anything of it is damaged, or the file is there already or has no name for HDF5.
    OSError
        If the file cannot be written. In either case nothing is left of it.
    """
    file = options.file
    _check_target(file)
    cache = FeatureCache.find(cache_home(options.cache))
    recordings = cache.recordings()
    failures = _failures(cache)
    atomic.sweep(file.parent, file.name)
    with new_file(file) as (out, check):
        for group in ("", RECORDINGS, FAILURES, *failures):
            _write_group(out, cache.store, group)
        for number, recording in enumerate(recordings):
            on_progress(number, len(recordings))
            _write_group(out, cache.store, recording.group)
            for name in recording.arrays:
                _export_array(out[recording.group], recording, name, check)
    on_progress(len(recordings), len(recordings))
    return ExportSummary(
        file=str(file),
        store=str(cache.path),
        fingerprint=cache.spec.fingerprint,
        num_recordings=len(recordings),
        num_failures=len(failures),
        num_clips=sum(item.num_clips for item in recordings),
        num_bytes=file.stat().st_size,
    )


def import_cache(
    options: CacheImportOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> RestoreSummary:
    """Put what an HDF5 file holds into the store of its name below a cache folder.

    Raises
    ------
    UsageError
        If the file is no cache or is damaged, or the store holds one of its recordings with other content. What was
        put in place until then stays.
    """
    given = FeatureCache.open(options.file)
    recordings, failures = given.recordings(), _failures(given)
    _check_names(given, recordings, failures)
    cache = FeatureCache.create(cache_home(options.cache), given.spec, given.provenance)
    missing = [item for item in recordings if not _is_there(cache, item)]
    reencoded = []
    for number, recording in enumerate(missing):
        on_progress(len(recordings) - len(missing) + number, len(recordings))
        if _import_recording(cache, recording):
            reencoded.append(recording.name)
    num_failures = sum(_import_failure(cache, given.store, group) for group in failures)
    on_progress(len(recordings), len(recordings))
    if reencoded:
        log.warning(
            "%d recordings, such as %s, have the same values in other bytes: another version of a compressor wrote "
            "them; the digests of their files are those of the new ones",
            len(reencoded),
            reencoded[0],
        )
    return RestoreSummary(
        store=str(cache.path),
        fingerprint=cache.spec.fingerprint,
        num_recordings=len(recordings),
        num_imported=len(missing),
        num_present=len(recordings) - len(missing),
        num_clips=sum(item.num_clips for item in missing),
        num_failures=num_failures,
        reencoded=tuple(reencoded),
    )


def _check_target(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{file}: give a name that ends in {' or '.join(SUFFIXES)}, by which it is known when read")
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the folder {file.parent} does not exist")
    if file.exists():
        raise UsageError(f"{file} is there already; remove it, or give another name")


def _failures(cache: FeatureCache) -> list[str]:
    """Return the groups of recorded failures, none of them damaged."""
    groups = cache.store.groups(FAILURES)
    for group in groups:
        if read_sealed(cache.store.metadata(group)) is None:
            raise UsageError(f"{cache.path}/{group} is damaged; {cache.store.remedy}")
    return groups


def _write_group(out: Any, store: Store, group: str) -> None:
    """Make a group with its metadata, as they are, and what they say to people."""
    content = store.metadata(group)
    target = out.require_group(group or "/")
    if content is not None:
        target.attrs.update(native_attributes(read_sealed(content) or {}))
        target.attrs[METADATA] = np.bytes_(content)


def _export_array(target: Any, recording: CachedRecording, name: str, check: Callable[[], None]) -> None:
    """Copy an array and its metadata, which are compared with their digests; `check` says whether writing failed."""
    entry, file = recording.arrays[name], f"{name}/{METADATA}"
    try:
        metadata = recording.store.read(f"{recording.group}/{file}")
    except OSError as error:
        raise recording.damage(name) from error
    if hashlib.sha256(metadata).hexdigest() != recording.files[file]["sha256"]:
        raise recording.damage(name)
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    layout: dict[str, Any] = {}
    if 0 not in shape:
        num_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        rows = min(shape[0], max(CHUNK_CLIPS, MIN_CHUNK_BYTES // num_bytes))
        layout = {"chunks": (rows, *shape[1:]), "fletcher32": True}
    dataset = target.create_dataset(name, shape, dtype, **layout)
    start = 0
    for values in _in_blocks(_chunks(recording, name), layout["chunks"][0] if layout else 1):
        dataset[start : start + len(values)] = values
        start += len(values)
        check()
    dataset.attrs[METADATA] = np.bytes_(metadata)


def _chunks(recording: CachedRecording, name: str) -> Iterable[npt.NDArray[Any]]:
    """Yield an array in pieces, (n, ...); in the end, or for a small one at once, its digest has been compared."""
    views = {view_name(number): number for number in range(recording.num_views)}
    return recording.checked_chunks(views[name]) if name in views else [recording.array(name)]


def _in_blocks(pieces: Iterable[npt.NDArray[Any]], length: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the same rows in blocks of `length`, the last one with what is left."""
    held: list[npt.NDArray[Any]] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= length:
            rows = held[0] if len(held) == 1 else np.concatenate(held)
            num_whole = len(rows) // length * length
            yield from (rows[start : start + length] for start in range(0, num_whole, length))
            held = [rows[num_whole:]]
    if any(map(len, held)):
        yield np.concatenate(held)


def _check_names(given: FeatureCache, recordings: list[CachedRecording], failures: list[str]) -> None:
    """Refuse groups and arrays whose names are not those that avfuse gives; they become paths."""
    for item in recordings:
        if item.group != group_of(item.name) or not all(name.isidentifier() for name in item.arrays):
            raise UsageError(f"{item.path}: its name, or that of an array in it, is not one that avfuse gives")
    for group in failures:
        failure = read_sealed(given.store.metadata(group)) or {}
        if group != f"{FAILURES}/{folder_name(str(failure.get('recording')))}":
            raise UsageError(f"{given.path}/{group}: its name is not one that avfuse gives")


def _is_there(cache: FeatureCache, recording: CachedRecording) -> bool:
    """Whether the store holds a recording with the same content.

    Raises
    ------
    UsageError
        If what it holds is damaged, or has other content.
    """
    here = cache.recording(recording.name)
    if cache.store.metadata(here.group) is None and not cache.store.files(here.group):
        return False
    if not here.is_whole:
        raise UsageError(f"{here.path} is damaged; {cache.store.remedy}")
    if here.digest != recording.digest:
        raise UsageError(
            f"{here.path} has other content than {recording.path} (features, targets, partition or subject), and "
            "nothing is imported over it; import into another folder, with --cache"
        )
    return True


def _import_recording(cache: FeatureCache, recording: CachedRecording) -> bool:
    """Put a recording into the store; return whether its files have other bytes than where it was exported."""
    aside = cache.store.aside()
    try:
        for name in recording.arrays:
            _import_array(aside / name, recording, name)
        files = atomic.describe_files(aside)
        gone = sorted({*recording.files} - {*files})
        if gone:
            told = f"{gone[0]} of {recording.name} is gone, which was written; nothing of it is kept"
            raise FileNotFoundError(errno.ENOENT, told, str(aside))
        is_reencoded = files != recording.files
        attributes = {**recording.attributes, "files": files} if is_reencoded else recording.attributes
        with atomic.naming(aside.parent):
            (aside / METADATA).write_bytes(seal(attributes))
        atomic.flush_tree(aside)
        if not cache.store.put(aside, recording.group):
            _is_there(cache, recording)  # another process put it there meanwhile: the same content, or it is refused
    finally:
        atomic.remove_tree(aside)
    return is_reencoded


def _import_array(folder: Path, recording: CachedRecording, name: str) -> None:
    """Write an array as its metadata have it, and read again what was written."""
    folder.mkdir(parents=True)
    try:
        content = recording.store.read(f"{recording.group}/{name}/{METADATA}")
        with atomic.naming(folder.parents[1]):
            (folder / METADATA).write_bytes(content)
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = open_array(folder, mode="r+")
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        raise UsageError(
            f"{recording.path}/{name}: how it was stored is not known here ({type(error).__name__}: {error}); is its "
            "compression installed?"
        ) from error
    entry = recording.arrays[name]
    if (list(array.shape), array.dtype.name) != (entry["shape"], entry["dtype"]):
        raise recording.damage(name)
    digest, start = hashlib.sha256(), 0
    for values in _in_blocks(_chunks(recording, name), array.chunks[0]):
        end = start + len(values)
        with atomic.naming(folder.parents[1]):
            array[start:end] = values
        digest.update(np.ascontiguousarray(array[start:end]).data)
        start = end
    if digest.hexdigest() != entry["sha256"]:
        raise UsageError(f"{recording.path}/{name} reads as other values after writing than before; nothing is kept")


def _import_failure(cache: FeatureCache, given: Store, group: str) -> bool:
    """Put a recorded failure into the store, unless something is known of that recording there."""
    content = given.metadata(group) or b""
    known = (group, group.replace(FAILURES, RECORDINGS, 1))
    if any(cache.store.metadata(place) is not None for place in known):
        return False
    aside = cache.store.aside()
    aside.mkdir(parents=True)
    with atomic.naming(aside.parent):
        (aside / METADATA).write_bytes(content)
    return cache.store.put(aside, group)
