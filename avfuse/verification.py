"""Whether a feature cache is still what was written: every byte of a store made of files, every value of one at hand.

A recording's metadata are sealed and name every file with its length and sha256, and every array with the sha256 of its
values; so a byte that was changed, lost, cut off or added shows, and so does a file that nobody wrote. Damage of one
group, the root included, keeps nothing of the others from being looked at.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfuse.cached import RECORDINGS, CachedRecording, MissingCodecError, group_of, view_name
from avfuse.ledger import FAILURES
from avfuse.schema import UsageError
from avfuse.sealed import SEAL, read_attributes, read_sealed
from avfuse.spec import FORMAT_VERSION, CacheSpec, folder_name
from avfuse.stores import METADATA, Store, tells_nothing

CONTAINERS = (RECORDINGS, FAILURES)
MISSING, ALTERED, STRAY = "is missing", "holds other bytes than were written", "does not belong here"
_OTHER_VALUES = "holds other values than were written"
_TRIES, _PAUSE_S = 4, 0.5


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes
    ----------
    group : str
        Path of the recording, failure or container that it is found in; "" is the root of the store.
    recording : str
        Name of the recording, or that of its folder where its metadata do not tell; "" for what belongs to none.
    file : str
        The file, by its path in the group; "" where it is the group or the array as a whole.
    message : str
        What is wrong, in words.
    array : str
        The array it is in, if it is in one.
    is_stray : bool
        Whether it is a file that does not belong here, and nothing else is known to be wrong with what is around it.
    """

    group: str
    recording: str = ""
    file: str = ""
    message: str = ""
    array: str = ""
    is_stray: bool = False

    @property
    def path(self) -> str:
        """Where it is in the store."""
        return "/".join(filter(None, (self.group, self.file or self.array)))


@dataclass(frozen=True)
class Verification:
    """What was looked at in a store, and what is wrong with it.

    Attributes
    ----------
    store : Path or str
    fingerprint : str or None
        That of its settings; None where the root does not tell.
    num_recordings, num_failures, num_files, num_bytes : int
        What was looked at; files and bytes are 0 in a store that is not made of files.
    num_damaged : int
        Recordings of which something is wrong.
    damages : tuple of Damage
    elapsed_s : float
    remedy : str
        What to do about the damages, in words; empty if there are none.
    """

    store: Path | str
    fingerprint: str | None
    num_recordings: int
    num_failures: int
    num_files: int
    num_bytes: int
    num_damaged: int
    damages: tuple[Damage, ...]
    elapsed_s: float
    remedy: str = ""


@dataclass
class _Look:
    """What was looked at in one group, and what was found."""

    num_files: int = 0
    num_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


def verify_store(
    store: Store,
    only: Collection[str] | None = None,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compare everything in a store with what was written, calling ``on_progress(done, total)`` by groups.

    Parameters
    ----------
    store : Store
    only : collection of str, optional
        Groups that are looked at beside the root and the containers; all unless given.
    num_workers : int
        Groups that are looked at side by side; 0 takes as many as there are cores.
    on_progress : callable

    Raises
    ------
    UsageError
        If the store has a format version that this avfuse does not know, or what it is compressed by is not installed.
    OSError
        If something cannot be read now, of which nobody can tell then whether it is damaged.
    """
    started_s = time.monotonic()
    groups: list[str] = []
    try:
        content = store.metadata("")
    except UsageError as error:  # of a file that holds everything, and of which nothing can be read
        fingerprint, damages = None, [Damage("", message=str(error))]
    else:
        fingerprint, damages = _look_at_root(store, content)
        for parent in CONTAINERS:
            found, wrong = _look_at_container(store, parent)
            groups += found
            damages += wrong
    chosen = [group for group in groups if only is None or group in only]
    looks: list[_Look] = []
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as executor:
        try:
            for look in executor.map(lambda group: look_at_group(store, group, fingerprint), chosen):
                looks.append(look)
                on_progress(len(looks), len(chosen))
        except BaseException:  # a signal, as a rule: what was not begun is not waited for
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    damages += [damage for look in looks for damage in look.damages]
    return Verification(
        store=store.location,
        fingerprint=fingerprint,
        num_recordings=sum(group.startswith(RECORDINGS) for group in chosen),
        num_failures=sum(group.startswith(FAILURES) for group in chosen),
        num_files=sum(look.num_files for look in looks),
        num_bytes=sum(look.num_bytes for look in looks),
        num_damaged=len({damage.group for damage in damages if damage.group.startswith(f"{RECORDINGS}/")}),
        damages=tuple(damages),
        elapsed_s=time.monotonic() - started_s,
        remedy=_remedy(store) if damages else "",
    )


def _remedy(store: Store) -> str:
    if not store.is_writable:
        return "export it, or copy it, again"
    return f"set it aside with: avfuse cache repair {store.quoted}; the next extract, or cache import, makes it anew"


def _look_at_root(store: Store, content: bytes | None) -> tuple[str | None, list[Damage]]:
    """Return the fingerprint of the store, None where its root does not tell, and what is wrong with the root."""
    attributes = read_attributes(content) or {}
    spec = attributes.get("spec")
    version = spec.get("format_version") if isinstance(spec, dict) else FORMAT_VERSION
    sealed = read_sealed(content)
    if version != FORMAT_VERSION and (sealed or SEAL not in attributes):
        raise UsageError(
            f"{store.location} has format version {version!r}; this avfuse can check {FORMAT_VERSION}: use the avfuse "
            "that made it"
        )
    damages = _look_at_metadata("", "", content)
    try:
        damages += _find_strays(store)
        damages += [Damage("", message=words) for words in store.find_contradictions("")]
    except UsageError as error:
        damages.append(Damage("", message=str(error)))
    if sealed is None:
        return None, damages
    try:
        fingerprint = CacheSpec.from_json(sealed["spec"]).fingerprint
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, [*damages, Damage("", file=METADATA, message="does not hold the settings of a feature store")]
    if sealed.get("fingerprint") != fingerprint:
        damages.append(
            Damage("", file=METADATA, message=f"has fingerprint {sealed.get('fingerprint')}, not {fingerprint}")
        )
    return fingerprint, damages


def _look_at_container(store: Store, group: str) -> tuple[list[str], list[Damage]]:
    """Return the groups in a container, and what is wrong with it and with what lies between them."""
    try:
        content, members, groups = store.metadata(group), store.members(group), store.groups(group)
        damages = [Damage(group, message=words) for words in store.find_contradictions(group)]
    except UsageError as error:
        return [], [Damage(group, message=str(error))]
    damages += _look_at_metadata(group, "", content)
    if read_sealed(content):
        damages.append(Damage(group, file=METADATA, message=ALTERED))
    strays = find_strays_between(store, group, {*members} - {path.rpartition("/")[2] for path in groups})
    return groups, damages + [Damage(group, file=name, message=STRAY, is_stray=True) for name in strays]


def find_strays_between(store: Store, group: str, names: Collection[str]) -> list[str]:
    """Return which of what lies in a container is no group, and none that a writer is bringing or has brought since."""
    apart = [name for name in names if not store.is_being_written(f"{group}/{name}")]
    here = store.groups(group) if apart else []
    return sorted(name for name in apart if f"{group}/{name}" not in here)


def _find_strays(store: Store) -> list[Damage]:
    """Return what lies beside the root and the containers."""
    listed = store.files("")
    names = store.members("") if listed is None else sorted(listed)
    own = {METADATA, *CONTAINERS}
    return [Damage("", file=name, message=STRAY, is_stray=True) for name in names if name.partition("/")[0] not in own]


def look_at_group(store: Store, group: str, fingerprint: str | None) -> _Look:
    """Look at a recording or a failure; again, if something is wrong: a writer may be replacing it, or have done so."""
    look, is_busy, seen = _Look(), False, list[bytes | None]()
    for _ in range(_TRIES):
        is_busy = bool(seen) and store.is_being_written(group)
        content = store.metadata(group)
        look_at = _look_at_recording if group.startswith(RECORDINGS) else _look_at_failure
        try:
            look = look_at(store, group, content, fingerprint)
        except MissingCodecError:
            raise
        except UsageError as error:
            look = _Look(damages=[Damage(group, group.partition("/")[2], message=str(error))])
        if not look.damages:
            return look
        if content is None and group not in store.groups(group.partition("/")[0]):
            return _Look()  # it was taken out of the store
        if seen[-1:] == [content] and not is_busy and store.metadata(group) == content:
            return look  # found twice, of one content
        seen.append(content)
        if is_busy:
            time.sleep(_PAUSE_S)
    return look if is_busy else _Look()  # replaced again and again: nobody can tell now


def _look_at_recording(store: Store, group: str, content: bytes | None, fingerprint: str | None) -> _Look:
    key = group.partition("/")[2]
    attributes = read_sealed(content)
    if attributes is None or "files" not in attributes:
        name = str((read_attributes(content) or {}).get("recording", key))
        return _Look(damages=_look_at_metadata(group, name, content) or [Damage(group, name, METADATA, ALTERED)])
    listed = store.files(group)
    item = CachedRecording(store, group, (content, listed))
    name = item.name
    look = _Look()
    if group != group_of(name):
        told = f"holds recording {name}, whose place is {group_of(name)}"
        both = ", which is there too" if store.metadata(group_of(name)) is not None else ""
        look.damages.append(Damage(group, name, message=told + both))
    if fingerprint not in (None, item.fingerprint):
        told = f"was made with other settings ({item.fingerprint}) and is not of this store"
        look.damages.append(Damage(group, name, message=told))
    look.damages += [Damage(group, name, message=words) for words in store.find_contradictions(group)]
    if listed is None:
        _look_at_members(item, look)
    else:
        _look_at_files(item, listed, len(content or b""), look)
    is_near = listed is None or isinstance(store.location, Path)  # from a server all would be fetched once more
    if is_near and all(damage.is_stray for damage in look.damages):
        _look_at_values(item, look)
    return look


def _look_at_failure(store: Store, group: str, content: bytes | None, fingerprint: str | None) -> _Look:
    key = group.partition("/")[2]
    attributes = read_sealed(content)
    name = str((attributes or read_attributes(content) or {}).get("recording", key))
    look = _Look(damages=_look_at_metadata(group, name, content))
    if attributes is not None and folder_name(name) != key:
        look.damages.append(
            Damage(group, name, message=f"holds the failure of {name}, whose place is {FAILURES}/{folder_name(name)}")
        )
    look.damages += [Damage(group, name, message=words) for words in store.find_contradictions(group)]
    listed = store.files(group)
    names = store.members(group) if listed is None else sorted({*listed} - {METADATA})
    look.damages += [Damage(group, name, file, STRAY, is_stray=True) for file in names]
    look.num_files, look.num_bytes = (0, 0) if listed is None else (1, len(content or b""))
    return look


def _look_at_files(item: CachedRecording, listed: dict[str, int], num_metadata_bytes: int, look: _Look) -> None:
    """Compare the files of a recording with their lengths and digests."""
    look.num_files, look.num_bytes = 1, num_metadata_bytes
    for file, entry in sorted(item.files.items()):
        message = _compare_file(item, file, listed.get(file), entry)
        if message:
            look.damages.append(Damage(item.group, item.name, file, message, array=file.partition("/")[0]))
        look.num_files += 1
        look.num_bytes += entry["bytes"]
    strays = sorted({*listed} - {*item.files, METADATA})
    look.damages += [Damage(item.group, item.name, file, STRAY, is_stray=True) for file in strays]


def _compare_file(item: CachedRecording, file: str, num_bytes: int | None, entry: dict[str, Any]) -> str:
    """Return what is wrong with a file; nothing, if it is as it was written."""
    if num_bytes is None:
        return MISSING
    if num_bytes != entry["bytes"]:
        return f"has {num_bytes:,} bytes, {entry['bytes']:,} were written"
    try:
        content = item.store.read(f"{item.group}/{file}")
    except OSError as error:
        if tells_nothing(error):
            raise
        return MISSING
    return "" if hashlib.sha256(content).hexdigest() == entry["sha256"] else ALTERED


def _look_at_members(item: CachedRecording, look: _Look) -> None:
    """Compare what lies in a recording, where that is not files, with the arrays that it should hold."""
    found, known = {*item.store.members(item.group)}, {*item.arrays}
    look.damages += [Damage(item.group, item.name, message=MISSING, array=name) for name in sorted(known - found)]
    strays = sorted(found - known)
    look.damages += [Damage(item.group, item.name, name, STRAY, is_stray=True) for name in strays]


def _look_at_values(item: CachedRecording, look: _Look) -> None:
    """Read every array as training does, and compare its values with their digest."""
    views = {view_name(number): number for number in range(item.num_views)}
    for name in sorted(item.arrays):
        try:
            if name in views:
                item.check(views[name])
            else:
                item.array(name)
        except MissingCodecError:  # nobody can tell what is there
            raise
        except UsageError:
            look.damages.append(Damage(item.group, item.name, message=_OTHER_VALUES, array=name))


def _look_at_metadata(group: str, recording: str, content: bytes | None) -> list[Damage]:
    """Return what is wrong with the metadata of a group, at first sight."""
    if content is None:
        return [Damage(group, recording, METADATA, MISSING)]
    return [] if read_sealed(content) is not None else [Damage(group, recording, METADATA, ALTERED)]
