"""Keys below a prefix of a bucket, on AWS or any server that speaks S3; the metadata of a group are created last.

Nothing can be renamed there, and two writers of one group write the same keys. So whoever begins to write or to remove
a group leaves a note beside the store, ``<name>.tmp/<group>/<writer>``, until it is done. A group without metadata that
a note tells of is unfinished, and nobody sees it; without a note it lost its metadata, which is damage. Who has written
a group looks at the tags of its files once more: where they are not those of its own, another writer was at it, and it
writes again. So the last of them to end leaves the group whole.

A server that cannot be asked, or refuses, is a `ConnectionError`: never an empty store, and never damage.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from avfuse import atomic
from avfuse.clips import ChangedError, ClipArray, digest_of
from avfuse.schema import UsageError
from avfuse.stores import METADATA, Store
from avfuse.stores._bucket import Bucket

SHORT_AT_ONCE, LONG_AT_ONCE = 32, 8  # requests under way, for a few bytes or a file that memory must hold
MAX_ATTEMPTS = 6  # to write a group that others write too

Item = TypeVar("Item")
Result = TypeVar("Result")


class S3Store(Store):
    """Keys below ``s3://bucket/prefix``; beside it ``<name>.tmp`` holds notes, ``<name>.damaged`` what was damaged."""

    location: str

    def __init__(self, location: Path | str) -> None:
        bucket, _, self._prefix = str(location).removeprefix("s3://").rstrip("/").partition("/")
        super().__init__("s3://" + _join(bucket, self._prefix))
        if not bucket or (self._prefix and not all(part.strip(".") for part in self._prefix.split("/"))):
            raise UsageError(f"{location} is no place on a server; give s3://BUCKET or s3://BUCKET/PREFIX")
        self._bucket = Bucket(bucket, self.location)

    @classmethod
    def find(cls, folder: Path | str) -> list[Path | str]:
        """Return the prefixes ``*.zarr``, sorted."""
        here = cls(folder)
        names, _ = here._bucket.list_directly(here._prefix)
        return [f"{here.location}/{name}" for name in names if name.endswith(".zarr")]

    def metadata(self, group: str) -> bytes | None:
        """Return the content of a group's zarr.json."""
        try:
            return self._bucket.read(self._key(group, METADATA), is_short=True)
        except FileNotFoundError:
            return None

    def metadata_below(self, parent: str) -> dict[str, bytes | None]:
        """Return the metadata of every group in a group, many asked for at once."""
        groups = self.groups(parent)
        return dict(zip(groups, each(self.metadata, groups, SHORT_AT_ONCE), strict=True))

    def survey(self, parent: str) -> dict[str, tuple[bytes | None, dict[str, int] | None]]:
        """Return metadata and files of every group in a group; a thousand files are listed by one request."""
        metadata, files = self.metadata_below(parent), dict[str, dict[str, int]]()
        for path, length in self.files(parent).items():
            name, _, rest = path.partition("/")
            files.setdefault(_join(parent, name), {})[rest] = length
        return {group: (content, files.get(group, {})) for group, content in metadata.items()}

    def groups(self, parent: str) -> list[str]:
        """Return the prefixes in a group but for unfinished ones."""
        names, _ = self._bucket.list_directly(self._key(parent))
        unfinished = self._unfinished(parent)
        return [group for name in names if (group := _join(parent, name)) not in unfinished]

    def members(self, group: str) -> list[str]:
        """Return the names of prefixes and keys in a group but for unfinished ones."""
        prefixes, names = self._bucket.list_directly(self._key(group))
        hidden = {METADATA, *(PurePosixPath(path).name for path in self._unfinished(group))}
        return sorted({*prefixes, *names} - hidden)

    def files(self, group: str) -> dict[str, int]:
        """Return every key below a group with its length."""
        return {path: entry.num_bytes for path, entry in self._bucket.list_below(self._key(group)).items()}

    def changed_s(self) -> float | None:
        """Return when the last of its keys was written, by the clock of the server."""
        return max((entry.changed_s for entry in self._bucket.list_below(self._prefix).values()), default=None)

    def read(self, path: str) -> bytes:
        """Return the content of a key."""
        return self._bucket.read(self._key(path))

    def array(self, path: str) -> npt.NDArray[Any]:
        """Read an array through zarr."""
        return np.asarray(self._bucket.open_array(self._key(path))[...])

    def clips(self, path: str) -> ClipArray:
        """Return an array whose chunks are fetched, and decoded through zarr, when they are asked for."""
        array = self._bucket.open_array(self._key(path))
        known: dict[int, str] = {}

        def read(number: int) -> npt.NDArray[Any]:
            try:
                values = np.asarray(array.get_block_selection(number))
            except FileNotFoundError as error:
                if number in known:
                    raise ChangedError(f"{self.location}/{path}") from error
                raise
            digest = digest_of(values)
            if known.setdefault(number, digest) != digest:
                raise ChangedError(f"{self.location}/{path}")
            return values

        return ClipArray(array.shape, array.dtype, array.chunks[0], read, is_mapped=False)

    def aside(self) -> Path:
        """Return a new place in the folder for temporary files of this machine, of which this user has one."""
        folder = Path(tempfile.gettempdir()) / f"avfuse-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / atomic.new_aside_name()

    def prepare(self) -> list[str]:
        """See whether keys can be written and removed, and remove what dead writers of this machine left."""
        if not self._prefix:
            raise UsageError(f"{self.location} is a bucket; give a place in it, such as {self.location}/features")
        probe = self._note("")
        self._bucket.write(probe, b"")
        self._bucket.delete([probe])
        return atomic.sweep(self.aside().parent) + self._sweep()

    def put(self, aside: Path, group: str) -> bool:
        """Upload a folder, its zarr.json last and only if there is none yet, and remove the folder."""
        return self.metadata(group) is None and self.replace(aside, group)

    def replace(self, aside: Path, group: str) -> bool:
        """Remove what may stand where a group belongs, its zarr.json first, and upload a folder as `put` does."""
        files = {path.relative_to(aside).as_posix(): path for path in aside.rglob("*") if path.is_file()}
        metadata = files.pop(METADATA).read_bytes()
        if group:
            is_ours = self._write_group(group, files, metadata)
        else:  # below the root are groups that others may have filled already, and what is written is the same
            self._upload(group, files)
            is_ours = self._bucket.create(self._key(METADATA), metadata)
        if is_ours:
            atomic.remove_tree(aside)
        return is_ours

    def write_metadata(self, group: str, content: bytes) -> None:
        """Replace a group's zarr.json."""
        self._bucket.write(self._key(group, METADATA), content)

    def remove(self, group: str) -> None:
        """Remove a group's zarr.json, then the other keys."""
        if self.files(group):
            note = self._leave_note(group)
            self._clear(group)
            self._bucket.delete([note])

    def set_aside(self, path: str) -> str:
        """Copy a group or a key to the prefix of what was damaged, on the server, then remove it."""
        place = _join(self._beside("damaged"), f"{PurePosixPath(path).name}-{atomic.new_aside_name()}")
        files = self.files(path)
        sources = sorted(files) or [""]
        each(lambda file: self._bucket.copy(self._key(path, file), _join(place, file)), sources, SHORT_AT_ONCE)
        if files:
            self.remove(path)
        else:
            self._bucket.delete([self._key(path)])
        return f"s3://{self._bucket.name}/{place}"

    def _write_group(self, group: str, files: dict[str, Path], metadata: bytes) -> bool:
        """Write a group until it is whole; return whether its metadata are those written here."""
        for attempt in range(MAX_ATTEMPTS):
            time.sleep(random.uniform(0, attempt))  # so that writers who meet do not meet again
            self._leave_note(group)
            self._clear(group)
            tags = self._upload(group, files)
            is_ours = self._bucket.create(self._key(group, METADATA), metadata)
            if is_ours or self.metadata(group) == metadata:  # where the metadata are the same, so are the files
                standing = {file: entry.tag for file, entry in self._bucket.list_below(self._key(group)).items()}
                standing.pop(METADATA, None)
                if standing == tags:
                    self._bucket.delete([key for notes in self._notes(group).values() for key in notes])
                    return is_ours
        raise OSError(errno.EBUSY, "other writers keep writing the same recording", f"{self.location}/{group}")

    def _upload(self, group: str, files: dict[str, Path]) -> dict[str, str]:
        """Write files; return the tags of their contents."""
        paths = sorted(files)

        def write(file: str) -> str:
            return self._bucket.write(self._key(group, file), files[file].read_bytes())

        return dict(zip(paths, each(write, paths, LONG_AT_ONCE), strict=True))

    def _clear(self, group: str) -> None:
        """Remove what there is of a group, its metadata first."""
        files = self._bucket.list_below(self._key(group))
        if files.pop(METADATA, None):
            self._bucket.delete([self._key(group, METADATA)])
        self._bucket.delete([self._key(group, file) for file in files])

    def _unfinished(self, parent: str) -> set[str]:
        """Return the groups in a group that have no metadata, as somebody is writing or removing them, or was."""
        noted = [group for group in self._notes(parent) if str(PurePosixPath(group).parent) == parent]
        found = each(self.metadata, noted, SHORT_AT_ONCE)
        return {group for group, content in zip(noted, found, strict=True) if content is None}

    def is_being_written(self, group: str) -> bool:
        """Whether somebody has left a note about the group."""
        return bool(self._notes(group))

    def _notes(self, group: str) -> dict[str, list[str]]:
        """Return the keys of the notes about a group, and about those in it, by group."""
        found: dict[str, list[str]] = {}
        for path in self._bucket.list_below(_join(self._beside("tmp"), group)):
            about, _, writer = _join(group, path).rpartition("/")
            found.setdefault(about, []).append(_join(self._beside("tmp"), about, writer))
        return found

    def _note(self, group: str) -> str:
        return _join(self._beside("tmp"), group, atomic.new_aside_name())

    def _leave_note(self, group: str) -> str:
        note = self._note(group)
        self._bucket.write(note, b"")
        return note

    def _sweep(self) -> list[str]:
        """Remove the notes of dead writers of this machine, and what they were writing; return its names."""
        swept = []
        for group, notes in self._notes("").items():
            dead = [note for note in notes if atomic.is_of_dead_writer(PurePosixPath(note).name)]
            if dead and len(dead) == len(notes) and group and self.metadata(group) is None:
                self._clear(group)
                swept.append(group)
            self._bucket.delete(dead)
        return swept

    def _key(self, *parts: str) -> str:
        return _join(self._prefix, *parts)

    def _beside(self, suffix: str) -> str:
        return f"{self._prefix.removesuffix('.zarr')}.{suffix}"


def each(act: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> list[Result]:
    """Return what comes of each item, some dealt with at once; after an error no more are begun."""
    with ThreadPoolExecutor(at_once) as pool:
        pending = [pool.submit(act, item) for item in items]
        try:
            return [item.result() for item in pending]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))
