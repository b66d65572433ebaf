"""What caches there are, and what one of them holds: what made it, how much it is, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from avfuse import registry
from avfuse.cache import (
    LOCAL_STORES,
    FeatureCache,
    asking,
    features_folder,
    holds_recordings,
    no_features,
    open_store,
)
from avfuse.cache_options import CacheFailuresOptions, CacheInfoOptions, CacheListOptions
from avfuse.cached import RECORDINGS, CachedRecording
from avfuse.encoding import compression_of
from avfuse.ledger import FAILURES
from avfuse.options import cache_home
from avfuse.schema import Failure, UsageError
from avfuse.sealed import read_attributes, read_sealed
from avfuse.spec import FORMAT_VERSION
from avfuse.stores import METADATA, Store, tells_nothing

_READS_AT_ONCE = 16


@dataclass(frozen=True)
class StoreEntry:
    """One store among others.

    Attributes
    ----------
    store : str
    dataset, storage : str
        Name of the data set, and how its maps are kept, as "float16, whole"; empty where the store does not tell.
    num_recordings, num_clips, num_failures, num_bytes : int
    changed : str
        When something was last put into it, as ISO 8601 in UTC; empty if it cannot be told.
    state : str
        Why it cannot be used; empty, if it can be, as far as its root tells.
    """

    store: str
    dataset: str
    storage: str
    num_recordings: int
    num_clips: int
    num_failures: int
    num_bytes: int
    changed: str
    state: str


@dataclass(frozen=True)
class PartitionCount:
    """How much a partition holds."""

    num_recordings: int
    num_subjects: int
    num_clips: int
    num_minutes: float


@dataclass(frozen=True)
class ArrayCount:
    """How much an array takes in all recordings: bytes of its values, and of its files (None where there are none)."""

    dtype: str
    num_value_bytes: int
    num_file_bytes: int | None


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Attributes
    ----------
    store, fingerprint : str
    settings, provenance : dict
        The `CacheSpec` as JSON, and where the encoders' weights came from.
    partitions, arrays : dict
        By name: `PartitionCount`, `ArrayCount`.
    compression : dict
        How many recordings' maps are compressed how; empty in a store that is not made of files.
    failures : dict
        How many recordings could not be used, by reason.
    num_bytes : int
    changed : str
        As of `StoreEntry`.
    """

    store: str
    fingerprint: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    partitions: dict[str, PartitionCount]
    arrays: dict[str, ArrayCount]
    compression: dict[str, int]
    failures: dict[str, int]
    num_bytes: int
    changed: str


@asking()
def list_stores(options: CacheListOptions) -> list[StoreEntry]:
    """Return the stores below a cache folder, or the one that is given, sorted; also those that cannot be used.

    Raises
    ------
    UsageError
        If there is none.
    """
    place = cache_home(options.place)
    is_local = isinstance(place, Path)
    kinds = [registry.load("store", kind) for kind in LOCAL_STORES] if is_local else [type(open_store(place))]
    found = [open_store(location) for kind in kinds for location in kind.find(features_folder(place))]
    found = found or [
        store for store in [open_store(place)] if store.metadata("") is not None or holds_recordings(store)
    ]
    if not found:
        raise no_features(place)
    return [_describe(store) for store in sorted(found, key=lambda store: str(store.location))]


def describe_cache(options: CacheInfoOptions) -> CacheInfo:
    """Return what a cache was made from, and how much of what it holds.

    Raises
    ------
    UsageError
        If there is no store, more than one to choose from, or a damaged one.
    """
    cache = FeatureCache.find(cache_home(options.store))
    recordings = cache.recordings()
    return CacheInfo(
        store=str(cache.path),
        fingerprint=cache.spec.fingerprint,
        settings=cache.spec.to_json(),
        provenance=cache.provenance,
        partitions=_count_partitions(recordings, int(cache.spec.clip["hop"])),
        arrays=_count_arrays(recordings, cache.store.files("") is not None),
        compression=_count_compressions(cache.store, recordings),
        failures=dict(sorted(Counter(failure.reason for failure in cache.ledger.failures()).items())),
        num_bytes=cache.store.count_bytes(),
        changed=_when(cache.store),
    )


@dataclass(frozen=True)
class Incomplete:
    """A recording that is kept though something of it is missing or was lost, and in words, what."""

    recording: str
    missing: str
    losses: dict[str, int]
    message: str


@dataclass(frozen=True)
class FailureList:
    """What could not be used for a store, and what was lost of what could."""

    store: str
    failures: tuple[Failure, ...]
    incomplete: tuple[Incomplete, ...]


def list_failures(options: CacheFailuresOptions) -> FailureList:
    """Return why recordings could not be used, and which are incomplete; of some reasons, if any are given.

    Raises
    ------
    UsageError
        If there is no store, more than one to choose from, or a damaged one.
    """
    cache = FeatureCache.find(cache_home(options.store))
    failures = [item for item in cache.ledger.failures() if not options.reason or item.reason in options.reason]
    kept = [] if options.reason else [item for item in _with_metadata(cache) if item.missing or item.losses]
    return FailureList(str(cache.path), tuple(failures), tuple(map(_tell_incomplete, kept)))


def _with_metadata(cache: FeatureCache) -> list[CachedRecording]:
    """Return the recordings whose metadata can be read, whatever became of their values, sorted by name."""
    found = cache.store.metadata_below(RECORDINGS).items()
    items = [CachedRecording(cache.store, group, (content, None)) for group, content in found]
    return sorted((item for item in items if item.attributes), key=lambda item: item.name)


def _tell_incomplete(item: CachedRecording) -> Incomplete:
    missing = {"audio": "has no sound", "video": "has no picture"}
    told = [missing[item.missing]] if item.missing else []
    told += [f"{name.removeprefix('num_').replace('_', ' ')}: {count:,}" for name, count in item.losses.items()]
    return Incomplete(item.name, item.missing, item.losses, "; ".join(told))


def _describe(store: Store) -> StoreEntry:
    try:
        content = store.metadata("")
        held = [read_attributes(item) or {} for item in store.metadata_below(RECORDINGS).values()]
        num_failures = len(store.groups(FAILURES))
    except UsageError as error:
        return StoreEntry(str(store.location), "", "", 0, 0, 0, store.count_bytes(), _when(store), str(error))
    spec = (read_attributes(content) or {}).get("spec")
    spec = spec if isinstance(spec, dict) else {}
    version = spec.get("format_version")
    if spec and version != FORMAT_VERSION:
        state = f"format version {version!r}; this avfuse reads {FORMAT_VERSION}"
    else:
        state = "" if read_sealed(content) else f"damaged; see: avfuse cache verify {store.quoted}"
    return StoreEntry(
        store=str(store.location),
        dataset=str(spec.get("dataset", "")),
        storage="" if state else describe_storage(spec),
        num_recordings=len(held),
        num_clips=sum(item.get("num_clips", 0) for item in held),
        num_failures=num_failures,
        num_bytes=store.count_bytes(),
        changed=_when(store),
        state=state,
    )


def describe_storage(settings: dict[str, Any]) -> str:
    """Return how maps are kept by the settings of a cache, as "uint8, pooled, 4 views"."""
    count = settings["views"]["count"]
    views = [f"{count} views"] if count > 1 else []
    return ", ".join([settings["storage"]["dtype"], settings["storage"]["maps"], *views])


def _when(store: Store) -> str:
    changed_s = store.changed_s()
    return "" if changed_s is None else datetime.fromtimestamp(changed_s, UTC).isoformat(timespec="seconds")


def _count_partitions(recordings: Sequence[CachedRecording], hop: int) -> dict[str, PartitionCount]:
    found: dict[str, list[CachedRecording]] = {}
    for item in recordings:
        found.setdefault(item.source.partition, []).append(item)
    return {
        partition: PartitionCount(
            num_recordings=len(items),
            num_subjects=len({item.source.subject for item in items}),
            num_clips=sum(item.num_clips for item in items),
            num_minutes=sum(item.num_clips * hop / item.fps for item in items) / 60,
        )
        for partition, items in sorted(found.items())
    }


def _count_arrays(recordings: Sequence[CachedRecording], has_files: bool) -> dict[str, ArrayCount]:
    dtypes: dict[str, str] = {}
    value_bytes: Counter[str] = Counter()
    file_bytes: Counter[str] = Counter()
    for item in recordings:
        for name, entry in item.arrays.items():
            dtypes.setdefault(name, entry["dtype"])
            value_bytes[name] += prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        for file, entry in item.files.items():
            file_bytes[file.partition("/")[0]] += entry["bytes"]
    return {
        name: ArrayCount(dtypes[name], value_bytes[name], file_bytes[name] if has_files else None)
        for name in sorted(dtypes)
    }


def _count_compressions(store: Store, recordings: Sequence[CachedRecording]) -> dict[str, int]:
    """Return how many recordings' maps are compressed how, as their first views tell."""
    if store.files("") is None:
        return {}
    with ThreadPoolExecutor(_READS_AT_ONCE) as executor:
        return dict(sorted(Counter(executor.map(_compression, recordings)).items()))


def _compression(item: CachedRecording) -> str:
    try:
        return compression_of(item.store.read(f"{item.group}/video/{METADATA}"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        if tells_nothing(error):
            raise
        raise item.damage("video") from error
