"""A cache made smaller: its maps pooled, turned into bytes, or compressed, recording by recording.

What changes a value is another store, with another fingerprint, and the one that it was made from stays unless it is to
be replaced. Compression changes none: within a store a recording takes the place of the same recording, in one step.
Everything that is read is compared with its digest on the way; what was stopped goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt

from avfuse.cache import FeatureCache, features_folder, open_store
from avfuse.cache_options import CacheShrinkOptions
from avfuse.cached import CachedRecording, view_name
from avfuse.cost import RunCost, find_cost, read_runs
from avfuse.device import choose_device
from avfuse.encoding import codecs, compression_of, decode
from avfuse.ledger import FAILURES
from avfuse.options import COMPRESSIONS, DTYPES, MAPS, cache_home
from avfuse.schema import UsageError
from avfuse.sealed import read_attributes
from avfuse.spec import CacheSpec
from avfuse.stores import METADATA
from avfuse.verification import verify_store
from avfuse.writer import RecordingWriter

CLIPS_AT_ONCE = 64
_CHOICES = {"dtype": DTYPES, "maps": MAPS, "compress": COMPRESSIONS}


@dataclass(frozen=True)
class ShrinkSummary:
    """What was made of a cache.

    Attributes
    ----------
    source, store : Path or str
        The store that was given, and the smaller one; the same where only the compression changes.
    source_fingerprint, fingerprint : str
    num_recordings, num_shrunk, num_present : int
        In the store that was given; re-encoded now; there before, as they are wanted.
    num_clips : int
        Of all recordings.
    num_bytes_before, num_bytes_after : int
        Of the store that was given, and of the smaller one.
    is_replaced : bool
        Whether the store that was given was removed.
    costs : tuple of RunCost
    elapsed_s : float
    """

    source: Path | str
    store: Path | str
    source_fingerprint: str
    fingerprint: str
    num_recordings: int
    num_shrunk: int
    num_present: int
    num_clips: int
    num_bytes_before: int
    num_bytes_after: int
    is_replaced: bool
    costs: tuple[RunCost, ...]
    elapsed_s: float


def shrink(
    options: CacheShrinkOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> ShrinkSummary:
    """Re-encode the maps of a cache, calling ``on_progress(done, total)`` by recordings.

    Raises
    ------
    UsageError
        If nothing is asked for, or something that cannot be; if the cache is damaged, a run was not trained on it, or
        the place of the smaller one cannot be written to or holds something else. What was put in place until then
        stays.
    """
    started_s = time.monotonic()
    source = _find_source(cache_home(options.store))
    recordings = source.recordings()
    _refuse_unread(source, options)
    spec = make_smaller(source.spec, options)
    compressions = [options.compress or _compression(item) for item in recordings]
    for compress in {*compressions}:
        codecs(compress, spec.storage["dtype"])  # whether it can be had
    device = choose_device(options.device)
    if options.run and spec == source.spec:
        raise UsageError("--run: compression changes no value, and so no prediction")
    records = read_runs(options.run, source)
    target = _open_target(source, spec, recordings, options)
    num_bytes_before = source.store.count_bytes()
    todo = [
        (item, FeatureCache(target.store, spec, compress))
        for item, compress in zip(recordings, compressions, strict=True)
        if not _is_there(target, item, compress)
    ]
    num_present = len(recordings) - len(todo)
    _reencode_all(todo, options.num_workers, lambda done: on_progress(num_present + done, len(recordings)))
    if target is not source:
        _copy_failures(source, target)
    costs = tuple(find_cost(place, record, source, target, device) for place, record in records)
    num_bytes_after = target.store.count_bytes()
    is_replaced = options.replace and target is not source
    if is_replaced:
        _replace(source, target, options.num_workers)
    return ShrinkSummary(
        source=source.path,
        store=target.path,
        source_fingerprint=source.spec.fingerprint,
        fingerprint=spec.fingerprint,
        num_recordings=len(recordings),
        num_shrunk=len(todo),
        num_present=num_present,
        num_clips=sum(item.num_clips for item in recordings),
        num_bytes_before=num_bytes_before,
        num_bytes_after=num_bytes_after,
        is_replaced=is_replaced,
        costs=costs,
        elapsed_s=time.monotonic() - started_s,
    )


def _find_source(place: Path | str) -> FeatureCache:
    """Return the store at a place; of several in a folder the one that others were made from by `shrink`.

    Raises
    ------
    UsageError
        As `FeatureCache.find` does.
    """
    stores = type(open_store(place)).find(features_folder(place))
    roots = {location: read_attributes(open_store(location).metadata("")) or {} for location in stores}
    known = {root.get("fingerprint") for root in roots.values()}
    first = [
        location
        for location, root in roots.items()
        if dict(root.get("provenance", {})).get("shrunk_from", {}).get("fingerprint") not in known
    ]
    return FeatureCache.find(first[0] if len(stores) > 1 and len(first) == 1 else place)


def make_smaller(spec: CacheSpec, options: CacheShrinkOptions) -> CacheSpec:
    """Return the settings of a cache whose maps are kept as the options say; the same, where no value changes.

    From halves they are those with which extraction makes the same values. Where bytes are pooled, it would have pooled
    halves: the settings say so.

    Raises
    ------
    UsageError
        If nothing is asked for, or what is gone should come back.
    """
    for name, known in _CHOICES.items():
        if getattr(options, name) not in (None, *known):
            raise UsageError(f"unknown {name} '{getattr(options, name)}'; known: {', '.join(known)}")
    if options.dtype is options.maps is options.compress is None:
        raise UsageError("say what is to become smaller: --dtype uint8, --maps pooled, --compress zstd, or several")
    kept = {"dtype": spec.storage["dtype"], "maps": spec.storage["maps"]}
    wanted = {"dtype": options.dtype or kept["dtype"], "maps": options.maps or kept["maps"]}
    if (kept["dtype"], wanted["dtype"]) == ("uint8", "float16"):
        raise UsageError("--dtype float16: the maps are bytes, and as halves they would only take twice the space")
    if (kept["maps"], wanted["maps"]) == ("pooled", "whole"):
        raise UsageError("--maps whole: the maps were pooled, and only extraction makes them whole again")
    if wanted == kept:
        return spec
    storage, shape = {**spec.storage, **wanted}, spec.video_shape
    if wanted["maps"] != kept["maps"]:
        shape = (shape[0], 1, 1)
        if kept["dtype"] == "uint8":
            storage["pooled_from"] = "uint8"
    return replace(spec, storage=storage, video_shape=shape)


def _refuse_unread(source: FeatureCache, options: CacheShrinkOptions) -> None:
    """Refuse a store of which something could not be taken along, or that could not be removed as it is wished."""
    if len(source.ledger.entries()) != len(source.store.groups(FAILURES)):
        raise UsageError(f"{source.path}/{FAILURES} is damaged; {source.store.remedy}")
    if options.replace and not source.store.is_writable:
        raise UsageError(f"{source.path} can be read only; leave out --replace, and remove it yourself")


def _compression(item: CachedRecording) -> str:
    """Return how the maps of a recording are compressed."""
    try:
        return compression_of(item.store.read(f"{item.group}/{view_name(0)}/{METADATA}"))
    except ConnectionError:
        raise  # nobody can tell what is there
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise item.damage(view_name(0)) from error


def _open_target(
    source: FeatureCache, spec: CacheSpec, recordings: Sequence[CachedRecording], options: CacheShrinkOptions
) -> FeatureCache:
    """Return the store for the smaller maps, which is the one that was given where no value changes."""
    home, own = options.out or _home_of(source), _home_of(source)
    if spec == source.spec and _resolved(home) == _resolved(own):
        if not source.store.is_writable or not isinstance(source.path, Path):
            raise UsageError(
                f"{source.path}: no recording can take another's place there in one step; compress them into another "
                "folder, with --out"
            )
        try:
            source.store.prepare()
        except OSError as error:
            raise UsageError(
                f"{source.path} cannot be written to ({error.strerror or error}); compress its recordings into another "
                "folder, with --out"
            ) from error
        return source
    if home is None:
        raise UsageError(f"{source.path} lies in no folder 'features'; say where the smaller store goes, with --out")
    origin = {"fingerprint": source.spec.fingerprint, "avfuse": version("avfuse")}
    target = FeatureCache.create(home, spec, {**source.provenance, "shrunk_from": origin}, knob="--out")
    strangers = {*target.names()} - {item.name for item in recordings}
    if strangers:
        raise UsageError(
            f"{target.path} holds {len(strangers)} recordings that {source.path} does not have, such as "
            f"{min(strangers)}; remove it, or give another folder with --out"
        )
    return target


def _home_of(source: FeatureCache) -> Path | str | None:
    """Return the folder, or place on a server, below which a store lies in ``features``; None, if it does not."""
    if not isinstance(source.path, Path):
        home, separator, _ = source.path.rstrip("/").rpartition("/features/")
        return home if separator else None
    parent = next(
        (path.parent for path in (source.path, source.path.resolve()) if path.parent.name == "features"), None
    )
    return None if parent is None else parent.parent


def _resolved(place: Path | str | None) -> Path | str | None:
    return place.resolve() if isinstance(place, Path) else place


def _is_there(target: FeatureCache, item: CachedRecording, compress: str) -> bool:
    """Whether the smaller store holds a recording as it is wanted.

    Raises
    ------
    UsageError
        If what it holds is damaged, or was not made from the recording.
    """
    here = target.recording(item.name)
    if target.store.metadata(here.group) is None and not target.store.files(here.group):
        return False
    if not here.is_whole:
        raise UsageError(f"{here.path} is damaged; {target.store.remedy}")
    is_of_item = here.digest == item.digest if here.fingerprint == item.fingerprint else _apart(here) == _apart(item)
    if not is_of_item:
        raise UsageError(
            f"{here.path} was made from other features, targets or files than {item.path} holds; remove it, or give "
            "another folder with --out"
        )
    return _compression(here) == compress


def _apart(item: CachedRecording) -> dict[str, Any]:
    """Return what a recording holds apart from its maps."""
    arrays = {name: entry for name, entry in item.arrays.items() if name not in _map_arrays(item)}
    return {**item.attributes, "arrays": arrays, "files": None, "fingerprint": None}


def _map_arrays(item: CachedRecording) -> set[str]:
    return {"video_scale", "video_offset", *map(view_name, range(item.num_views))}


def _reencode_all(
    todo: Sequence[tuple[CachedRecording, FeatureCache]], num_workers: int, on_done: Callable[[int], None]
) -> None:
    """Re-encode recordings into a store, some side by side."""
    on_done(0)
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as executor:
        try:
            for done, _ in enumerate(executor.map(lambda pair: _reencode(*pair), todo), start=1):
                on_done(done)
        except BaseException:  # a signal, or a damaged recording: what was not begun is not waited for
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _reencode(item: CachedRecording, target: FeatureCache) -> None:
    """Put a recording into a store, its maps as that one keeps them; at most a chunk of each view is in memory."""
    as_stored = target.spec.fingerprint == item.fingerprint
    audio_NA, scale = item.array("audio"), None if as_stored else item.scale()
    left_out = {"audio", *(map(view_name, range(item.num_views)) if as_stored else _map_arrays(item))}
    arrays = {name: item.array(name) for name in item.arrays if name not in left_out}
    views = [_blocks(item.checked_chunks(view)) for view in range(item.num_views)]
    with RecordingWriter(target, item.name, item.source) as writer:
        writer.begin(item.num_clips, as_stored=as_stored)
        start = 0
        for blocks in zip(*views, strict=True):  # to the end of each, where its digest is compared
            first, *others = blocks if scale is None else [decode(values, scale).numpy() for values in blocks]
            writer.append(first, audio_NA[start : start + len(first)], *others)
            start += len(first)
        writer.commit(arrays, item.fps, missing=item.missing, losses=item.losses)


def _blocks(chunks: Iterator[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Yield the clips of chunks a few at a time."""
    for values in chunks:
        for start in range(0, len(values), CLIPS_AT_ONCE):
            yield values[start : start + CLIPS_AT_ONCE]


def _copy_failures(source: FeatureCache, target: FeatureCache) -> None:
    known = target.ledger.entries()
    for entry in source.ledger.entries():
        if entry not in known:
            target.ledger.write(entry)


def _replace(source: FeatureCache, target: FeatureCache, num_workers: int) -> None:
    """Remove a store once the one that was made from it was compared with what was written."""
    found = verify_store(target.store, None, num_workers)
    if found.damages:
        raise UsageError(
            f"{target.path} is not as it was written, so that {source.path} stays; see what is wrong with: "
            f"avfuse cache verify {target.store.quoted}"
        )
    source.store.remove("")
