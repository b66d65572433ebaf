"""Corpora: what a data set's folder looks like, and how its annotation files read.

A corpus turns a root folder into `Recording`s and reads the annotation of one of them. It opens no video.

Contract
--------
``Plug(root: Path, **arguments)`` raises `UsageError` when the folder is not laid out as the corpus expects, saying what
it looked for, or when an argument cannot be used. Arguments are plain keywords with defaults of type bool, int, float
or str: what a user may give as ``--corpus-option KEY=VALUE``. ``targets`` names the rated dimensions in column order,
``ranges`` holds the lowest and the highest rating of each, None where the corpus declares none. ``recordings()``
returns every recording, sorted by name, names unique. ``annotation(recording)`` reads one annotation file, NaN where
unrated, or returns None for a recording without one; a file that does not follow its format raises `AnnotationError`
with all of its faulty lines. Where one file rates several recordings, each of them carries the digest of its own part
as ``annotation_sha256``: a changed rating then makes only its own recording be extracted again.

No path leaves the root. One that a file of the data set names only goes down, and where it ends, followed through all
links, must lie below the root; otherwise the corpus is refused. A link that lies in a folder and leads out of the root
is left out, and counted in the log. (Links among the aligned images of a recording are followed; no file names them.)

No subject belongs in two partitions. A corpus whose folder declares no partitions draws them by subject
(`avfuse.corpora._shares`).
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from avfuse.schema import Annotation, Range, Recording

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
        If `root` does not exist or is not laid out as this corpus expects, or an argument cannot be used.
    """

    layout: ClassVar[str]
    """What the folder must look like, in a few lines, for error messages and documentation."""

    targets: tuple[str, ...]
    ranges: tuple[Range | None, ...]

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
        AnnotationError
            Naming every faulty line.
        """
