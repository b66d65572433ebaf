"""What a feature was made from: the settings shared by a store, and the files behind one recording.

Both are plain values that compare equal when, and only when, the features would be the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import stat
import unicodedata
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from avfuse.atomic import digest_json
from avfuse.schema import Range, Recording, RecordingError

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
CROP_SUFFIXES = (".jpg", ".jpeg", ".png")  # in the order of preference
MAX_FILE_BYTES = 128 * 2**30  # a day of video in high definition; a hole of that length is read in minutes
_READ_BYTES = 2**22
_NO_UNICODE = re.compile("[\udc80-\udcff]")  # what Python makes of such a byte
_CROP_NUMBER = re.compile(r"\d{5}|[1-9]\d{5,}", re.ASCII)
_FINGERPRINT_LENGTH = 12
_MAX_NAME_BYTES = 180
_METADATA = "zarr.json"  # of the group of all recordings, beside their folders
_MAX_TOLD, _MAX_TOLD_LETTERS = 4, 32


@dataclass(frozen=True)
class CacheSpec:
    """Everything that a stored feature depends on, besides the recording itself.

    The fingerprint is a digest of all fields; two stores with equal fingerprints may be read as one. `ranges` holds
    the lowest and the highest rating of each target, None where the corpus declares none. `storage` says what becomes
    of a map when it is kept (``dtype`` float16 or uint8, ``maps`` whole or pooled), `views` how many views of each clip
    there are and how they differ; compression changes no value and is not part of it.
    """

    dataset: str
    corpus: str
    targets: tuple[str, ...]
    decoder: dict[str, str]
    detector: dict[str, Any]
    clip: dict[str, Any]
    video: dict[str, Any]
    audio: dict[str, Any]
    precision: str
    libraries: dict[str, str]
    video_shape: tuple[int, ...] = (512, 7, 7)
    audio_shape: tuple[int, ...] = (512,)
    ranges: tuple[Range | None, ...] = ()
    storage: dict[str, str] = field(default_factory=lambda: {"dtype": "float16", "maps": "whole"})
    views: dict[str, Any] = field(default_factory=lambda: {"count": 1})
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CacheSpec:
        """Restore a spec from what JSON made of its fields."""
        lists = ("targets", "video_shape", "audio_shape")
        fields: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in values.items()}
        ranges = tuple(None if item is None else (float(item[0]), float(item[1])) for item in fields.pop("ranges", ()))
        return cls(**fields, ranges=ranges)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them; see `from_json`."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @property
    def fingerprint(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of all fields."""
        return digest_json(asdict(self))[:_FINGERPRINT_LENGTH]

    @property
    def store_name(self) -> str:
        """Name of the folder that holds the store."""
        return f"{_slug(self.dataset)}-{self.fingerprint}.zarr"


def differences(these: Mapping[str, Any], those: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two specs, as JSON has them, differ: dotted name -> (value here, value there).

    A setting that one of them lacks is None there.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*these, *those}):
        here, there = these.get(key), those.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found |= differences(here, there, f"{prefix}{key}.")
        elif here != there:
            found[f"{prefix}{key}"] = (here, there)
    return found


def tell_differences(
    these: Mapping[str, Any], those: Mapping[str, Any], names: tuple[str, str] = ("there", "here")
) -> str:
    """Return in words in which settings two specs differ, as "video.arch: r3d_18 there, r2plus1d_18 here".

    It is empty where they do not, or where one of them is not known, as in a run's record of before.
    """
    found = differences(these, those) if these and those else {}
    told = [f"{key}: {_told(one)} {names[0]}, {_told(other)} {names[1]}" for key, (one, other) in found.items()]
    more = [f"and {len(told) - _MAX_TOLD} more"] if len(told) > _MAX_TOLD else []
    return "; ".join([*told[:_MAX_TOLD], *more])


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = "nothing" if value is None else text
    return text if len(text) <= _MAX_TOLD_LETTERS else f"{text[:_MAX_TOLD_LETTERS]}..."


class FileDigests:
    """The sha256 of files, each of which is read once for as long as its size and its time of change stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}

    def __call__(self, path: Path, on_read: Callable[[], object] = lambda: None) -> str:
        """Return the hexadecimal sha256 of a file's content; `on_read` is called now and then meanwhile.

        Raises
        ------
        OSError
            If the file cannot be read, or is longer than `MAX_FILE_BYTES`.
        """
        found = path.stat()
        key = (path.resolve(), found.st_size, found.st_mtime_ns)
        if key not in self._known:
            self._known[key] = _sha256(path, on_read)
        return self._known[key]


@dataclass(frozen=True)
class Source:
    """What a cached recording was made from; a changed source makes it again.

    `annotation_sha256` is None for a recording without annotation, `face_side` for one of a single person.
    `crops_sha256` is the digest of the names and contents of the aligned images, None where faces were detected.
    """

    partition: str
    subject: str
    file: str
    sha256: str
    annotation_sha256: str | None
    face_side: str | None = None
    crops_sha256: str | None = None

    @classmethod
    def of(
        cls,
        recording: Recording,
        root: Path,
        digest: FileDigests | None = None,
        with_crops: bool = False,
        on_read: Callable[[], object] = lambda: None,
    ) -> Source:
        """Describe the files of a recording.

        Parameters
        ----------
        recording : Recording
        root : Path
            Root of its corpus.
        digest : FileDigests, optional
            Reads a file that several recordings share once.
        with_crops : bool
            Whether the faces come from the aligned images, which are then part of the source.
        on_read : callable
            Called now and then while files are read; what it raises ends the reading.

        Raises
        ------
        RecordingError
            With reason ``missing_file``, ``unreadable``, ``annotation_invalid`` or ``missing_crops``, when one of them
            cannot be read; ``over_limit``, when one is longer than `MAX_FILE_BYTES`.
        """
        read = partial(digest or FileDigests(), on_read=on_read)
        video = _readable(read, recording.path, "unreadable", "missing_file")
        annotation, traced = recording.annotation_sha256, recording.annotation_path
        if annotation is None and traced is not None:
            annotation = _readable(read, traced, "annotation_invalid")
        inside = recording.path.is_relative_to(root)
        file = normal_name(recording.path.relative_to(root).as_posix() if inside else recording.path.name)
        crops = _digest_crops(recording, root, on_read) if with_crops else None
        return cls(recording.partition, recording.subject, file, video, annotation, recording.face_side, crops)


def list_crops(recording: Recording, root: Path) -> dict[int, Path]:
    """Return the aligned images of a recording by the index of their frame: ``00001.jpg`` is that of frame 0.

    Numbers have five digits, or more from 100000 on. Of ``.jpg``, ``.jpeg`` and ``.png`` the first that is there
    counts; other files are no aligned images, nor are links that lead out of the corpus below `root`.

    Raises
    ------
    RecordingError
        With reason ``missing_crops``, if the recording has no folder of such images, the folder holds none or cannot
        be read, or its images are counted from 0.
    """
    folder = recording.crops
    if folder is None:
        raise RecordingError("missing_crops", f"the corpus has no folder of aligned images of {recording.name}")
    try:
        with os.scandir(folder) as entries:
            named = [entry for entry in entries if _is_crop(entry)]
        inside = root.resolve()
        found = [Path(entry.path) for entry in named if not entry.is_symlink() or _leads_into(entry, inside)]
    except OSError as error:
        raise RecordingError("missing_crops", f"{folder} cannot be read ({error.strerror})") from error
    if len(found) < len(named):
        left_out = len(named) - len(found)
        log.warning("%s: links that lead out of the corpus, or nowhere, left out: %d; copy the files", folder, left_out)
    found.sort(key=lambda path: (CROP_SUFFIXES.index(path.suffix.lower()), path.name), reverse=True)
    images = {int(path.stem) - 1: path for path in found}  # of two for one frame the last, which is the preferred
    if not images:
        raise RecordingError(
            "missing_crops", f"{folder} holds no image that is named as 00001.jpg is ({', '.join(CROP_SUFFIXES)})"
        )
    if -1 in images:
        raise RecordingError("missing_crops", f"{images[-1]}: images are counted from 1, the first frame is 00001.jpg")
    return dict(sorted(images.items()))


def _is_crop(entry: os.DirEntry[str]) -> bool:
    """Whether something is named as an aligned image, and is a file or a link."""
    path = Path(entry.path)
    is_named = bool(_CROP_NUMBER.fullmatch(path.stem)) and path.suffix.lower() in CROP_SUFFIXES
    return is_named and (entry.is_symlink() or entry.is_file())


def _leads_into(entry: os.DirEntry[str], folder: Path) -> bool:
    """Whether a link leads to a file below a folder."""
    real = Path(os.path.realpath(entry.path))
    return real.is_relative_to(folder) and real.is_file()


def _digest_crops(recording: Recording, root: Path, on_read: Callable[[], object]) -> str:
    """Return a digest of the names and contents of the aligned images, which are read one by one."""
    digest, read = hashlib.sha256(), partial(_sha256, on_read=on_read)
    for path in list_crops(recording, root).values():
        digest.update(f"{path.name}/{_readable(read, path, 'missing_crops')}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path, on_read: Callable[[], object]) -> str:
    found, digest = path.stat(), hashlib.sha256()
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if found.st_size > MAX_FILE_BYTES:
        told = f"it has {found.st_size / 2**30:,.0f} GiB, {MAX_FILE_BYTES / 2**30:,.0f} are allowed"
        raise OSError(errno.EFBIG, told, str(path))
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            on_read()
    return digest.hexdigest()


def _readable(digest: Callable[[Path], str], path: Path, reason: str, if_missing: str | None = None) -> str:
    """Return the digest of a file that the recording cannot do without; `reason` is why not, if it cannot be read."""
    try:
        return digest(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            reason = if_missing or reason
        elif error.errno == errno.EFBIG:
            reason = "over_limit"
        raise RecordingError(reason, f"{path} cannot be read ({error.strerror})") from error


def normal_name(text: str) -> str:
    """Return a file name in the composed Unicode form (NFC), so that it compares equal on every file system.

    What in it is no Unicode, as in a name of an older encoding, is written as ``\\xe9``.
    """
    written = _NO_UNICODE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return unicodedata.normalize("NFC", written)


def folder_name(name: str) -> str:
    """Return the folder name of a recording: portable, flat and reversible but for very long names."""
    key = urllib.parse.quote(unicodedata.normalize("NFC", name), safe=" ()[]+,=@").replace("~", "%7E")
    key = f"%2E{key[1:]}" if key.startswith(".") else key
    key = key.replace(".", "%2E") if key == _METADATA else key
    if len(key) <= _MAX_NAME_BYTES:
        return key
    return f"{key[: _MAX_NAME_BYTES - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _slug(name: str) -> str:
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in name)
    return slug.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip("-.") or "corpus"
