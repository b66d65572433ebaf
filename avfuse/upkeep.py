"""Looking after one store of features: find what is not as it was written, and set it aside to be made again."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

from avfuse.cache import locate, open_store
from avfuse.cache_options import CacheRepairOptions, CacheVerifyOptions
from avfuse.cached import RECORDINGS, group_of
from avfuse.options import cache_home
from avfuse.schema import UsageError
from avfuse.sealed import read_attributes, seal
from avfuse.stores import METADATA, Store
from avfuse.verification import CONTAINERS, Damage, Verification, find_strays_between, look_at_group, verify_store

log = logging.getLogger(__name__)

MAX_NAMED = 3  # recordings that a message names


@dataclass(frozen=True)
class Removal:
    """What was set aside: its path in the store, the recording that it is of ("" if of none), and where it lies now."""

    path: str
    recording: str
    place: str


@dataclass(frozen=True)
class RepairSummary:
    """What a repair did.

    Attributes
    ----------
    store : Path or str
    num_damages : int
        What was found to be wrong.
    recordings : tuple of str
        Recordings that were set aside, to be made again by the next extract.
    removals : tuple of Removal
        All that was set aside.
    needs_root : bool
        Whether the root of the store is gone: the next extract of the same settings writes it anew.
    """

    store: Path | str
    num_damages: int
    recordings: tuple[str, ...]
    removals: tuple[Removal, ...]
    needs_root: bool


def verify(
    options: CacheVerifyOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Compare a store with what was written into it; see `avfuse.verification`.

    Raises
    ------
    UsageError
        If there is no store, more than one to choose from, none of this avfuse's format, or no such recording.
    OSError
        If something cannot be read now, as from a disk that fails: nobody can tell then what is damaged.
    """
    store = _find(options.store)
    only = None
    if options.recording:
        only = [group_of(name) for name in options.recording]
        here = store.groups(RECORDINGS)
        missing = [name for name, group in zip(options.recording, only, strict=True) if group not in here]
        if missing:
            raise UsageError(
                f"{store.location} holds no recording {', '.join(missing)}; {_tell_recordings(store, missing)}"
            )
    return verify_store(store, only, options.num_workers, on_progress)


def repair(
    options: CacheRepairOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> RepairSummary:
    """Set aside what is damaged in a store, so that what is left is as it was written; nothing is deleted.

    A recording goes as a whole, unless all that is wrong with it is a file that does not belong there.

    Raises
    ------
    UsageError
        As by `verify`; or if something is damaged in a store that cannot be written to.
    OSError
        As by `verify`, and nothing is set aside then.
    """
    store = _find(options.store)
    found = verify_store(store, None, options.num_workers, on_progress)
    removals: list[Removal] = []
    if found.damages:
        _prepare(store, len(found.damages))
        damages = sorted(found.damages, key=lambda damage: damage.group)
        for group, of_group in groupby(damages, key=lambda damage: damage.group):
            removals += _mend(store, group, list(of_group), found.fingerprint)
    return RepairSummary(
        store=store.location,
        num_damages=len(found.damages),
        recordings=tuple(_find_lost(store, removals)),
        removals=tuple(removals),
        needs_root=store.metadata("") is None,
    )


def _find_lost(store: Store, removals: Sequence[Removal]) -> list[str]:
    """Return the recordings that were set aside and that the store does not hold any more: of a copy it does."""
    names = []
    for item in removals:
        parent, _, key = item.path.rpartition("/")
        if parent == RECORDINGS and item.recording:
            plain = unquote(key)  # the name, where only that of the folder is known
            names.append(plain if item.recording == key and group_of(plain) == item.path else item.recording)
    return [name for name in dict.fromkeys(names) if store.metadata(group_of(name)) is None]


def _tell_recordings(store: Store, missing: Sequence[str]) -> str:
    """Say how many recordings there are, and the names nearest to those that are missing, or else the first ones."""
    found = {group: read_attributes(content) or {} for group, content in store.metadata_below(RECORDINGS).items()}
    names = sorted(str(attributes.get("recording", group.rpartition("/")[2])) for group, attributes in found.items())
    near = [name for wanted in missing for name in difflib.get_close_matches(wanted, names, MAX_NAMED)]
    if near:
        return f"of its {len(names):,}, the nearest by name: {', '.join(dict.fromkeys(near))}"
    shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
    return f"it holds {len(names):,}" + (f": {shown}" if names else "")


def _find(place: Path | str | None) -> Store:
    """Return the store to look at; of a single file also one that nobody could read."""
    chosen = cache_home(place)
    if not (isinstance(chosen, Path) and chosen.is_file()):
        return locate(chosen)
    store = open_store(chosen)
    if store.is_writable:  # a folder, by its name
        raise UsageError(f"{chosen} is not a feature store of avfuse: it is a file, and none of HDF5 (.h5, .hdf5)")
    return store


def _prepare(store: Store, num_damages: int) -> None:
    findings = f"{num_damages} finding{'' if num_damages == 1 else 's'}"
    if not store.is_writable:
        told = f"{store.location} is damaged ({findings}), and as one file it is never changed"
        raise UsageError(f"{told}; {store.remedy}")
    try:
        store.prepare()
    except OSError as error:
        told = f"{store.location} is damaged ({findings}), and nothing can be set aside there"
        raise UsageError(f"{told}: {error.strerror or error}") from error


def _mend(store: Store, group: str, damages: list[Damage], fingerprint: str | None) -> list[Removal]:
    """Set aside what is damaged of a group; the metadata of a container are always the same and written anew."""
    is_damaged = any(not damage.is_stray for damage in damages)
    if is_damaged and group not in ("", *CONTAINERS):
        if not look_at_group(store, group, fingerprint).damages:
            return []  # a writer has replaced it meanwhile
        return _set_aside(store, group, damages[0].recording)
    strays = [damage for damage in damages if damage.is_stray]
    if group in CONTAINERS:
        still = find_strays_between(store, group, [damage.file for damage in strays])
        strays = [damage for damage in strays if damage.file in still]
    removals = [removal for damage in strays for removal in _set_aside(store, damage.path, damage.recording)]
    if is_damaged:
        metadata = f"{group}/{METADATA}" if group else METADATA
        removals += _set_aside(store, metadata, "")
        if group:
            store.write_metadata(group, seal({}))
    return removals


def _set_aside(store: Store, path: str, recording: str) -> list[Removal]:
    """Move a group or file out of the store; nothing, if it is gone already."""
    try:
        place = store.set_aside(path)
    except FileNotFoundError:
        return []
    log.info("%s of %s now lies in %s", path, store.location, place)
    return [Removal(path, recording, place)]
