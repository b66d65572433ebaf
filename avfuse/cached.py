"""One recording of a feature cache, as it is read: nothing that was altered since it was written is handed out.

Its metadata are sealed and hold the sha256 of every array's values, whatever store, chunks and compression they lie in.
Small arrays are compared with theirs when they are read. Feature maps may be too many to be read twice; who uses them
calls `CachedRecording.check` once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from avfuse import atomic
from avfuse.clips import ChangedError, ClipArray, digest_of
from avfuse.schema import UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.spec import Source, folder_name
from avfuse.stores import METADATA, Store, tells_nothing

RECORDINGS = "recordings"
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError)  # what stores and codecs raise


class MissingCodecError(UsageError):
    """An array cannot be decoded on this machine; nothing is wrong with it."""


class CachedRecording:
    """The features of one recording, mapped into memory rather than read where its chunks are plain.

    `known` is what `Store.survey` said of it, if it was asked already. A view is opened once, and what is compared with
    its digest is what is handed out.
    """

    def __init__(
        self, store: Store, group: str, known: tuple[bytes | None, dict[str, int] | None] | None = None
    ) -> None:
        self.store = store
        self.group = group
        self._known = known
        self._views: dict[int, ClipArray] = {}

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return f"{self.store.location}/{self.group}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """What its metadata say; empty where there are none, or altered ones."""
        return read_sealed(self._known[0] if self._known else self.store.metadata(self.group)) or {}

    @cached_property
    def is_whole(self) -> bool:
        """Whether it lies where it belongs, its metadata unaltered and every file at its full length, and no other."""
        if "files" not in self.attributes or self.group != group_of(self.name):
            return False
        lengths = self._known[1] if self._known else self.store.files(self.group)
        return lengths is None or lengths == {
            METADATA: len(seal(self.attributes)),
            **{file: entry["bytes"] for file, entry in self.attributes["files"].items()},
        }

    @property
    def name(self) -> str:
        """Name of the recording in its corpus."""
        return str(self.attributes["recording"])

    @cached_property
    def source(self) -> Source:
        """What the features were made from."""
        return Source(**self.attributes["source"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the settings that the features were made with."""
        return str(self.attributes["fingerprint"])

    @property
    def digest(self) -> str:
        """Digest of what the recording holds: its source, its clock and the values of its arrays."""
        return atomic.digest_json({key: value for key, value in self.attributes.items() if key != "files"})

    @property
    def fps(self) -> float:
        """Slots per second of the clip grid."""
        return float(self.attributes["fps"])

    @property
    def missing(self) -> str:
        """The modality that the recording lacks, ``audio`` or ``video``; empty where it has both."""
        return str(self.attributes.get("missing", ""))

    @property
    def losses(self) -> dict[str, int]:
        """What of its files could not be decoded, counted; empty where nothing was lost."""
        return dict(self.attributes.get("losses", {}))

    @property
    def files(self) -> dict[str, Any]:
        """Length and sha256 of every file but the attributes' own, by its path in the group."""
        return dict(self.attributes["files"])

    @property
    def arrays(self) -> dict[str, Any]:
        """Shape, dtype and sha256 of the values of every array, by its name."""
        return dict(self.attributes["arrays"])

    @property
    def num_clips(self) -> int:
        """Number of clips (N)."""
        return int(self.attributes["num_clips"])

    @property
    def num_views(self) -> int:
        """Number of views of each clip (V)."""
        return sum(name == "video" or name.removeprefix("video_").isdecimal() for name in self.arrays)

    @property
    def video(self) -> ClipArray:
        """Feature maps of the first view, (N, C, H, W), float16 or uint8 as stored; not compared with their digest."""
        return self.view(0)

    def view(self, number: int) -> ClipArray:
        """Return the feature maps of a view, (N, C, H, W), as stored; see `check` for their digest.

        Raises
        ------
        UsageError
            If they are damaged in a way that shows.
        """
        if number not in self._views:
            name = view_name(number)
            try:
                self._views[number] = self.store.clips(f"{self.group}/{name}")
            except _UNREADABLE as error:
                if tells_nothing(error):
                    raise
                raise self._refusal(name, error) from error
        return self._views[number]

    def check(self, number: int) -> None:
        """Compare the values of a view, as they are read from here, with their digest.

        Raises
        ------
        UsageError
            If they are not those that were written.
        """
        for _ in self.checked_chunks(number):
            pass

    def checked_chunks(self, number: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the maps of a view chunk by chunk; at the end they are compared with their digest, as by `check`."""
        name, clips, digest = view_name(number), self.view(number), hashlib.sha256()
        try:
            for values in clips.chunks():
                digest.update(np.ascontiguousarray(values).data)
                yield values
        except _UNREADABLE as error:
            if tells_nothing(error) or isinstance(error, ChangedError):
                raise
            raise self._refusal(name, error) from error
        if self.arrays[name] != {"shape": [*clips.shape], "dtype": clips.dtype.name, "sha256": digest.hexdigest()}:
            raise self.damage(name)

    def scale(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Return scale and offset of each channel, (C,) each, of maps that are bytes; None if they are halves."""
        return self._scale

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return one of the small arrays (all but ``video``), read and compared with its digest.

        Raises
        ------
        UsageError
            If it is damaged.
        """
        try:
            values = self.store.array(f"{self.group}/{name}")
        except _UNREADABLE as error:
            if tells_nothing(error):
                raise
            raise self._refusal(name, error) from error
        if describe_array(values) != self.arrays.get(name):
            raise self.damage(name)
        return values

    @cached_property
    def _scale(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        return (self.array("video_scale"), self.array("video_offset")) if "video_scale" in self.arrays else None

    def damage(self, array: str) -> UsageError:
        """Return the error about a damaged array."""
        return UsageError(f"{self.path}/{array} is damaged; {self.store.remedy}")

    def _refusal(self, array: str, error: Exception) -> UsageError:
        """Return the error about an array that cannot be read: it is damaged, unless something is missing here."""
        codec = getattr(error, "codec_id", None)  # numcodecs names it where a codec's package is not installed
        if codec is None:
            return self.damage(array)
        name = str(codec).strip("'")
        message = f"{self.path}/{array} is compressed by {name}, which is not installed; install it with: pip install"
        return MissingCodecError(f"{message} {name}")


def group_of(name: str) -> str:
    """Return the group of a recording in its store."""
    return f"{RECORDINGS}/{folder_name(name)}"


def view_name(number: int) -> str:
    """Return the name of the array that holds a view of each clip, counted from 0."""
    return f"video_{number}" if number else "video"


def describe_array(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Return what a recording's metadata say of an array."""
    return {"shape": list(values.shape), "dtype": values.dtype.name, "sha256": digest_of(values)}
