"""What a feature was made from: the settings shared by a store, and the files behind one recording.

Both are plain values that compare equal when, and only when, the features would be the same.
"""

from __future__ import annotations

import hashlib
import unicodedata
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avfuse.atomic import digest_json
from avfuse.schema import Recording, RecordingError

FORMAT_VERSION = 1
_FINGERPRINT_LENGTH = 12
_MAX_NAME_BYTES = 180


@dataclass(frozen=True)
class CacheSpec:
    """Everything that a stored feature depends on, besides the recording itself.

    The fingerprint is a digest of all fields; two stores with equal fingerprints may be read as one.
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
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CacheSpec:
        """Restore a spec from what JSON made of its fields."""
        lists = ("targets", "video_shape", "audio_shape")
        fields: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in values.items()}
        return cls(**fields)

    @property
    def fingerprint(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of all fields."""
        return digest_json(asdict(self))[:_FINGERPRINT_LENGTH]

    @property
    def store_name(self) -> str:
        """Name of the folder that holds the store."""
        return f"{_slug(self.dataset)}-{self.fingerprint}.zarr"


@dataclass(frozen=True)
class Source:
    """What a cached recording was made from; a changed source makes it again.

    `annotation_sha256` is None for a recording without annotation.
    """

    partition: str
    subject: str
    file: str
    sha256: str
    annotation_sha256: str | None

    @classmethod
    def of(cls, recording: Recording, root: Path) -> Source:
        """Describe the files of a recording.

        Raises
        ------
        RecordingError
            With reason ``missing_file`` or ``annotation_invalid``, when one of them cannot be read.
        """
        digest = _digest(recording.path, "missing_file")
        annotation, traced = recording.annotation_sha256, recording.annotation_path
        if annotation is None and traced is not None:
            annotation = _digest(traced, "annotation_invalid")
        inside = recording.path.is_relative_to(root)
        file = recording.path.relative_to(root).as_posix() if inside else recording.path.name
        return cls(recording.partition, recording.subject, file, digest, annotation)


def _digest(path: Path, reason: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecordingError(reason, f"{path} cannot be read ({error.strerror})") from error


def folder_name(name: str) -> str:
    """Return the folder name of a recording: portable, flat and reversible but for very long names."""
    key = urllib.parse.quote(unicodedata.normalize("NFC", name), safe=" ()[]+,=@").replace("~", "%7E")
    key = f"%2E{key[1:]}" if key.startswith(".") else key
    if len(key) <= _MAX_NAME_BYTES:
        return key
    return f"{key[: _MAX_NAME_BYTES - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.") or "corpus"
