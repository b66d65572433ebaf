"""Corpora: what a data set's folder looks like, and how its annotation files read.

A corpus turns a root folder into `Recording`s and reads the annotation of one of them. It opens no video.

Contract
--------
``Plug(root: Path)`` raises `UsageError` when the folder is not laid out as the corpus expects, saying what it looked
for. ``targets`` names the rated dimensions in column order. ``recordings()`` returns every recording, sorted by name,
names unique. ``annotation(recording)`` reads one annotation file, NaN where unrated, or returns None for a recording
without one; a file that does not follow its format raises `RecordingError("annotation_invalid")` that names the file
and, where there is one, the line. Where one file rates several recordings, each of them carries the digest of its own
part as ``annotation_sha256``: a changed rating then makes only its own recording be extracted again.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from avfuse.schema import Annotation, Recording

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


class Corpus(ABC):
    """One data set on disk.

    Parameters
    ----------
    root : Path
        Root folder of the data set.

    Raises
    ------
    UsageError
        If `root` does not exist or is not laid out as this corpus expects.
    """

    layout: ClassVar[str]
    """What the folder must look like, in a few lines, for error messages and documentation."""

    targets: tuple[str, ...]

    @abstractmethod
    def __init__(self, root: Path) -> None: ...

    @abstractmethod
    def recordings(self) -> list[Recording]:
        """Return every recording, sorted by name."""

    @abstractmethod
    def annotation(self, recording: Recording) -> Annotation | None:
        """Read the annotation of one recording; None where it has none.

        Raises
        ------
        RecordingError
            With reason ``annotation_invalid``, naming file and line.
        """
