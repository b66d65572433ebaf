"""What a folder of feature caches holds that nobody needs any more: found first, removed when it is said so.

That is what dead writers left, what was set aside as damaged, stores of a format that this avfuse no longer reads, and
where it is asked for, stores that another of the same data set has superseded. What a living writer is at stays, what a
writer of another machine may be at too, and no link is followed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfuse import atomic
from avfuse.cache import features_folder, find_directly, open_store
from avfuse.cache_options import CacheCollectOptions
from avfuse.cached import RECORDINGS
from avfuse.options import cache_home
from avfuse.schema import UsageError
from avfuse.sealed import SEAL, read_attributes, read_sealed
from avfuse.spec import FORMAT_VERSION, tell_differences
from avfuse.stores import list_folder

log = logging.getLogger(__name__)

_BESIDE = (".tmp", ".damaged")
_STEM = re.compile(r".+-[0-9a-f]{12}")  # of the name that avfuse gives a store: data set and fingerprint
_SET_ASIDE = re.compile(r".+-[1-9][0-9]*-[0-9a-f]{8}", re.DOTALL)  # what, and who did it
UNFINISHED, DAMAGED, OLD, SUPERSEDED = "unfinished", "damaged", "old format", "superseded"


@dataclass(frozen=True)
class Leftover:
    """Something that may be removed, or is kept: where it is, of what kind, why, and how many bytes it takes."""

    path: str
    kind: str
    reason: str
    num_bytes: int


@dataclass(frozen=True)
class Leftovers:
    """What may be removed from a folder, and what of these kinds is kept all the same."""

    place: str
    found: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that removing it would free."""
        return sum(item.num_bytes for item in self.found)


def find_leftovers(options: CacheCollectOptions) -> Leftovers:
    """Look for what nobody needs any more; nothing is removed.

    Raises
    ------
    UsageError
        If the place is neither a folder of this machine that holds features, nor a store there.
    """
    place = cache_home(options.place)
    if not isinstance(place, Path):
        raise UsageError(
            f"{place} is on a server; this removes what lies in a folder of this machine, and docs/remote.md says what "
            "to do there"
        )
    features, name = _find_features(place)
    entries = sorted(path for path in features.resolve().iterdir() if not path.is_symlink())
    found: list[Leftover] = []
    kept: list[Leftover] = []
    for path in entries:
        if name not in (None, path.stem):
            continue
        if path.suffix in _BESIDE and path.is_dir() and _is_of_store(path):
            for inside in list_folder(path):
                if path.suffix == ".tmp":
                    is_dead = atomic.is_left_behind(inside)
                    why = "its writer has ended" if is_dead else "a writer is at it, or is of another machine"
                    (found if is_dead else kept).append(_leftover(inside, UNFINISHED, why))
                elif _SET_ASIDE.fullmatch(inside.name):
                    found.append(_leftover(inside, DAMAGED, "set aside by a repair"))
        elif path.is_file() and atomic.is_left_behind(path):
            found.append(_leftover(path, UNFINISHED, "its writer has ended"))
    for path, kind, reason in _find_stores([path for path in entries if path.suffix == ".zarr"]):
        if name not in (None, path.stem):  # the others were looked at for what they supersede
            continue
        is_offered = kind == OLD or options.superseded
        if is_offered and not _is_busy(path):
            found.append(_leftover(path, kind, reason))
        else:
            why = "a writer may be at it" if is_offered else "remove it with --superseded"
            kept.append(_leftover(path, kind, f"{reason}; {why}"))
    return Leftovers(str(features if name is None else place), tuple(found), tuple(kept))


def remove_leftovers(found: Sequence[Leftover]) -> int:
    """Remove what was found, unless a writer has come to it since; return how many bytes it took.

    Raises
    ------
    OSError
        If something cannot be removed.
    """
    num_bytes = 0
    for item in found:
        path = Path(item.path)
        is_store = item.kind in (OLD, SUPERSEDED)
        if _is_busy(path) if is_store else item.kind == UNFINISHED and not atomic.remove_left_behind(path):
            log.warning("%s stays: a writer is at it", path)
            continue
        if is_store:
            away = path.with_suffix(".tmp") / atomic.new_aside_name()
            away.mkdir(parents=True)
            path = path.rename(away / path.name)  # at once, so that nobody sees half a store
            shutil.rmtree(away)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        num_bytes += item.num_bytes
        _remove_empty(Path(item.path), is_store)
    return num_bytes


def _find_features(place: Path) -> tuple[Path, str | None]:
    """Return the folder of stores that a place is or holds; with a name without suffix, if the place is one store."""
    features = Path(features_folder(place))
    if features.is_dir():
        return features, None
    store = place.resolve()
    if store.suffix == ".zarr" and any(store.with_suffix(suffix).is_dir() for suffix in (".zarr", *_BESIDE)):
        return store.parent, store.stem
    if place.is_dir() and (store.name == features.name or find_directly(place)):
        return place, None
    raise UsageError(f"{place} holds no features; give the folder that holds {features.name}/, or a store there")


def _is_of_store(beside: Path) -> bool:
    """Whether a folder lies beside a store, or beside what was one."""
    return beside.with_suffix(".zarr").is_dir() or bool(_STEM.fullmatch(beside.stem))


def _find_stores(paths: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """Yield the stores of an older format, and those that another of the same data set has superseded, with reasons.

    A store that holds a recording which no later one holds is superseded by none.
    """
    current: dict[str, list[tuple[float, Path]]] = {}
    roots = {}
    for path in paths:
        store = open_store(path)
        content = store.metadata("")
        attributes = read_attributes(content) or {}
        spec = attributes.get("spec")
        if not isinstance(spec, dict) or (SEAL in attributes and not read_sealed(content)):
            continue  # damaged: nobody can tell what it is
        version = spec.get("format_version")
        if isinstance(version, int) and version < FORMAT_VERSION:
            yield path, OLD, f"format version {version!r}; this avfuse reads {FORMAT_VERSION}"
        elif version == FORMAT_VERSION and SEAL in attributes:
            roots[path] = attributes
            current.setdefault(str(spec["dataset"]), []).append((store.changed_s() or 0.0, path))
    origins = {root["fingerprint"]: _origin(root) for root in roots.values()}
    for stores in current.values():
        ordered = [path for _, path in sorted(stores)]
        for number, path in enumerate(ordered):
            later = [
                other
                for other in ordered[number + 1 :]
                if roots[path]["fingerprint"] not in _trace(roots[other]["fingerprint"], origins)
                and _groups(path) <= _groups(other)
            ]
            if later:
                told = tell_differences(roots[path]["spec"], roots[later[-1]]["spec"], ("here", "there"))
                yield path, SUPERSEDED, f"{later[-1].name} was changed later ({told})"


def _groups(path: Path) -> set[str]:
    """Return the groups of a store's recordings."""
    return set(open_store(path).groups(RECORDINGS))


def _origin(root: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the store that another was shrunk from."""
    origin: str | None = root.get("provenance", {}).get("shrunk_from", {}).get("fingerprint")
    return origin


def _trace(fingerprint: str, origins: Mapping[str, str | None]) -> set[str]:
    """Return a store and those that it was shrunk from, one from the other, by their fingerprints."""
    line: set[str] = set()
    here: str | None = fingerprint
    while here is not None and here not in line:
        line.add(here)
        here = origins.get(here)
    return line


def _is_busy(store: Path) -> bool:
    """Whether something is being written beside a store, or may be by another machine."""
    return not all(atomic.is_left_behind(path) for path in list_folder(store.with_suffix(".tmp")))


def _leftover(path: Path, kind: str, reason: str) -> Leftover:
    return Leftover(str(path), kind, reason, _count_bytes(path))


def _count_bytes(path: Path) -> int:
    """Return the bytes of a file, or of those in a folder; links count nothing and lead nowhere."""
    walked = () if path.is_symlink() else os.walk(path)
    places = [path, *(Path(folder, name) for folder, _, names in walked for name in names)]
    num_bytes = 0
    for place in places:
        with suppress(FileNotFoundError):  # its writer has taken it away meanwhile
            status = place.lstat()
            num_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return num_bytes


def _remove_empty(path: Path, is_store: bool) -> None:
    """Remove the folders beside a store that hold nothing any more; a writer makes its own again."""
    for folder in [path.with_suffix(suffix) for suffix in _BESIDE] if is_store else [path.parent]:
        if folder.suffix in _BESIDE:
            with suppress(OSError):  # something is left in it, or it is gone
                folder.rmdir()
