"""A folder of videos, each with an optional trace beside it, or described by a manifest."""

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._manifest import FILES, Entry, Manifest, find_manifest, read_manifest
from avfuse.corpora._places import draw_partitions, places_of
from avfuse.corpora._series import parse_header, read_trace
from avfuse.corpora._shares import SPLIT_SEED, TEST, VALIDATION, Shares
from avfuse.corpora._text import read_first_line
from avfuse.corpora._traces import declared_range
from avfuse.corpora._tree import name_below, tree_of, videos_below
from avfuse.schema import Annotation, AnnotationError, Recording, UsageError

log = logging.getLogger(__name__)

_TRACE_SUFFIXES = (".csv", ".tsv")
_NO_TRACE_SUFFIX = ".txt"  # may be anything, but may be meant as one
_TEXT_SUFFIXES = (*_TRACE_SUFFIXES, _NO_TRACE_SUFFIX)


class FolderCorpus(Corpus):
    """Every video under a folder; ``clip.csv`` or ``clip.tsv`` beside ``clip.mp4`` is its trace.

    The trace's header names the targets, after an optional clock: ``time`` (also ``timestamp``, ``frametime`` or
    ``frame_time``; seconds, increasing) or ``frame`` (index of the frame, from 0, increasing). Without a clock row i
    rates frame i. A first column ``name`` that is the same in every row is left out. Columns are separated by commas,
    semicolons or tabs. A blank or ``nan`` field is unrated. Ratings with times are interpolated linearly between the
    two rows around a frame, never beyond the first or the last row, nor where one of the two is unrated. All traces
    name the same targets: those of the first trace, by name, whose header can be read. A column that is called like
    another clock or number of rows, as ``time_ms`` is, is no target but a fault. Without any trace ``targets`` is
    empty: features only.

    The partition is the first folder of the path if it is called train, validation or test, in any case. The subject
    is the next folder, or the file's stem where there is none. If no path begins with a partition, the subjects with a
    trace are spread over partitions by their shares; the others are test. Otherwise a recording with a trace must lie
    in a partition's folder; one without is test elsewhere. A first folder that looks like a partition, as ``val`` does,
    is refused.

    A ``manifest.csv`` or ``manifest.tsv`` at the top lists the recordings, then no other video counts. Its column
    ``path`` holds the path of the video below the root; this name and the next may be written in any case. The columns
    ``subject`` and ``partition`` replace what the path says. The column ``annotation`` holds the path of a trace below
    the root, or nothing; instead the manifest may hold the ratings itself, one row each, in a column ``time`` or
    ``frame`` and one per target. Without either, traces lie beside the videos. A listed video that is not there is
    extracted as missing.

    Parameters
    ----------
    root : Path
        The folder.
    lowest, highest : float
        The range of the ratings of all targets, one outside is a fault; NaN where none is declared.
    validation, test : float
        Shares of the subjects with a trace, where no partition is declared; the others are trained on.
    split_seed : int
        Of the draw of these subjects.

    Raises
    ------
    UsageError
        If the folder does not exist or holds no video, two videos differ in their suffix alone, there are traces but
        none has a readable header, two lie beside one video, or the manifest is faulty; the message then names the
        lines. If folders look like partitions but are none, or a partition has two, or rated videos lie outside. If
        the range is none, the subjects are too few for the shares, or shares are given beside declared partitions.
    """

    layout: ClassVar[str] = (
        "[train|validation|test/][<subject>/]<video>.mp4 (or another video suffix), each with an optional <video>.csv "
        "or .tsv beside it whose header names the targets after an optional 'time' or 'frame' column; or "
        f"{' or '.join(FILES)} with a column 'path' and optionally 'subject', 'partition', and 'annotation' or ratings"
    )

    def __init__(
        self,
        root: Path,
        lowest: float = math.nan,
        highest: float = math.nan,
        validation: float = VALIDATION,
        test: float = TEST,
        split_seed: int = SPLIT_SEED,
    ) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder; give the root folder of the videos")
        limits = None if math.isnan(lowest) and math.isnan(highest) else declared_range(lowest, highest)
        path = find_manifest(root)
        self._manifest = None if path is None else read_manifest(root, path)
        entries = _found(root) if self._manifest is None else _listed(root, self._manifest)
        self.targets = _corpus_targets(root, self._manifest, entries)
        self._recordings = _recordings(root, entries, Shares(validation, test, split_seed))
        self.ranges = (limits,) * len(self.targets)

    def recordings(self) -> list[Recording]:
        """Return every recording, sorted by name."""
        return list(self._recordings)

    def annotation(self, recording: Recording) -> Annotation | None:
        """Read the trace of one recording; None where it has none.

        Raises
        ------
        AnnotationError
            Naming every faulty line.
        """
        path = recording.annotation_path
        if path is None:
            return None
        if self._manifest is not None and path == self._manifest.path:
            return self._manifest.annotation(recording.name, self.ranges)
        return read_trace(path, self.targets, self.ranges)


def _found(root: Path) -> dict[str, Entry]:
    """Return every video below the root, with the trace beside it."""
    files = tree_of(root, (*_TEXT_SUFFIXES, *VIDEO_SUFFIXES)).files
    videos = videos_below(root, files)
    if not videos:
        raise UsageError(f"{root} holds no video ({' '.join(VIDEO_SUFFIXES)}). Expected {FolderCorpus.layout}")
    traces = _traces(root, files, videos)
    num_stray = len(traces.keys() - videos.keys())
    if num_stray:
        kinds = " and ".join(suffix.removeprefix(".") for suffix in _TRACE_SUFFIXES)
        log.warning("%s: %s files beside no video of their name, left out: %d", root, kinds, num_stray)
    return {name: Entry(path, trace=traces.get(name)) for name, path in videos.items()}


def _listed(root: Path, manifest: Manifest) -> dict[str, Entry]:
    """Return the videos of a manifest, with the traces beside them unless it tells where they are."""
    if manifest.has_traces:
        return manifest.entries
    traces = _traces(root, tree_of(root, _TEXT_SUFFIXES).files, manifest.entries)
    return {name: replace(entry, trace=traces.get(name)) for name, entry in manifest.entries.items()}


def _traces(root: Path, files: Iterable[Path], videos: Collection[str]) -> dict[str, Path]:
    """Return {name: trace}; say in the log which videos have a file beside them that is none for its suffix alone.

    Raises
    ------
    UsageError
        If two lie beside one video.
    """
    manifests = [root / name for name in FILES]
    traces: dict[str, Path] = {}
    texts: list[str] = []
    for path in files:
        name, suffix = name_below(root, path), path.suffix.lower()
        if suffix == _NO_TRACE_SUFFIX and name in videos:
            texts.append(name)
        if suffix not in _TRACE_SUFFIXES or path in manifests:
            continue
        first = traces.setdefault(name, path)
        if first is not path and name in videos:
            raise UsageError(f"two traces lie beside the video {name}: {first} and {path}; remove one")
    mistaken = [name for name in texts if name not in traces]
    if mistaken:
        kinds, found = " or ".join(_TRACE_SUFFIXES), f"{len(mistaken)}, such as {mistaken[0]}"
        what = f"videos without a trace beside a {_NO_TRACE_SUFFIX} file of their name, which is not read"
        log.warning("%s: %s: %s; if it holds ratings, call it %s", root, what, found, kinds)
    return traces


def _recordings(root: Path, entries: dict[str, Entry], shares: Shares) -> list[Recording]:
    """Return the recordings, sorted by name, with what neither manifest nor folders say filled in."""
    places = places_of(root, entries)
    if any(place.partition for place in places.values()):
        shares.refuse(f"the paths or the manifest of {root} name partitions")
        partitions = {name: place.partition or "test" for name, place in places.items()}
    else:
        partitions = draw_partitions(root, entries, places, shares)
    return [
        Recording(
            name=name,
            path=entries[name].path,
            partition=partitions[name],
            subject=places[name].subject,
            annotation_path=entries[name].trace,
            annotation_sha256=entries[name].sha256,
        )
        for name in sorted(entries)
    ]


def _corpus_targets(root: Path, manifest: Manifest | None, entries: dict[str, Entry]) -> tuple[str, ...]:
    """Return the targets of the manifest or of the first readable header, reading no more than first lines."""
    if manifest is not None and manifest.targets:
        return manifest.targets
    first_error: AnnotationError | None = None
    for _, entry in sorted(entries.items()):
        if entry.trace is None:
            continue
        try:
            return parse_header(entry.trace, read_first_line(entry.trace)).targets
        except AnnotationError as error:
            first_error = first_error or error
    if first_error is not None:
        raise UsageError(f"no trace under {root} has a readable header; the first: {first_error}")
    return ()
