"""A folder of videos, each with an optional trace beside it."""

import logging
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._traces import invalid, normal_name, parse_rows, read_first_line, read_lines, shown, tree_files
from avfuse.schema import PARTITIONS, Annotation, Recording, RecordingError, UsageError

log = logging.getLogger(__name__)

CLOCKS = ("time", "frame")
MAX_FRAMES = 10_000_000
_TARGET_NAME = re.compile(r"[^\W\d][\w .+-]*")


class FolderCorpus(Corpus):
    """Every video under a folder; ``clip.csv`` beside ``clip.mp4`` is its trace.

    The trace's header names the targets, after an optional ``time`` (seconds, increasing) or ``frame`` (0-based index
    of the frame, increasing) column; without either, row i rates frame i. A blank or ``nan`` field is unrated. All
    traces name the same targets: those of the first trace, by name, whose header can be read. Without any trace
    ``targets`` is empty: features only.

    The partition is the first folder of the path if it is called train, validation or test, else train with a trace
    and test without. The subject is the next folder, or the file's stem where there is none.

    Raises
    ------
    UsageError
        If the folder does not exist or holds no video, two videos differ in their suffix alone, or there are traces
        but none has a readable header.
    """

    layout: ClassVar[str] = (
        "[train|validation|test/][<subject>/]<video>.mp4 (or another video suffix), each with an optional <video>.csv "
        "beside it whose header names the targets after an optional 'time' or 'frame' column"
    )

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder; give the root folder of the videos")
        files = tree_files(root)
        traces = {_name(root, path): path for path in files if path.suffix.lower() == ".csv"}
        found: dict[str, Recording] = {}
        for path in files:
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            name = _name(root, path)
            if name in found:
                raise UsageError(f"two videos are named {name}: {found[name].path} and {path}; rename one")
            found[name] = _recording(root, path, traces.pop(name, None))
        if not found:
            raise UsageError(f"{root} holds no video ({' '.join(VIDEO_SUFFIXES)}). Expected {self.layout}")
        if traces:
            log.warning("%s: csv files beside no video of their name, left out: %d", root, len(traces))
        self._recordings = [found[name] for name in sorted(found)]
        self.targets = _corpus_targets(root, self._recordings)

    def recordings(self) -> list[Recording]:
        """Return every recording, sorted by name."""
        return list(self._recordings)

    def annotation(self, recording: Recording) -> Annotation | None:
        """Read the trace of one recording; None where it has none.

        Raises
        ------
        RecordingError
            With reason ``annotation_invalid``, naming file and line.
        """
        path = recording.annotation_path
        if path is None:
            return None
        lines = read_lines(path)
        clock, targets = _parse_header(path, lines[0])
        if targets != self.targets:
            expected = f"the corpus's targets {','.join(self.targets)}"
            raise invalid(path, 1, expected, ",".join(targets), "give every trace the same columns in the same order")
        columns = targets if clock is None else (clock, *targets)
        values = parse_rows(path, lines, columns, blank=True)
        if clock is None:
            return Annotation(targets, values)
        clock_F, values_FE = values[:, 0], values[:, 1:]
        _check_clock(path, clock, clock_F)
        if clock == "time":
            return Annotation(targets, values_FE, time_s=clock_F)
        return Annotation(targets, _spread(clock_F, values_FE), is_dense=False)


def _name(root: Path, path: Path) -> str:
    return normal_name(path.relative_to(root).with_suffix("").as_posix())


def _recording(root: Path, path: Path, trace: Path | None) -> Recording:
    folders = path.relative_to(root).parent.parts
    partition = "train" if trace else "test"
    if folders and folders[0] in PARTITIONS:
        partition, folders = folders[0], folders[1:]
    return Recording(
        name=_name(root, path),
        path=path,
        partition=partition,
        subject=normal_name(folders[0] if folders else path.stem),
        annotation_path=trace,
    )


def _corpus_targets(root: Path, recordings: list[Recording]) -> tuple[str, ...]:
    """Return the targets of the first readable header, reading no more than first lines."""
    first_error: RecordingError | None = None
    for recording in recordings:
        path = recording.annotation_path
        if path is None:
            continue
        try:
            return _parse_header(path, read_first_line(path))[1]
        except RecordingError as error:
            first_error = first_error or error
    if first_error is not None:
        raise UsageError(f"no trace under {root} has a readable header; the first: {first_error}")
    return ()


def _parse_header(path: Path, line: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the clock column, or None, and the targets."""
    names = [normal_name(field.strip()) for field in line.split(",")]
    clock = names[0].lower() if names[0].lower() in CLOCKS else None
    targets = tuple(names if clock is None else names[1:])
    expected = "a header that names the targets, for example 'time,valence,arousal'"
    if not targets or not all(_TARGET_NAME.fullmatch(name) for name in targets):
        raise invalid(path, 1, expected, shown(line), "write the names of the columns, separated by commas, first")
    if len(set(targets)) < len(targets) or any(name.lower() in CLOCKS for name in targets):
        raise invalid(path, 1, expected, shown(line), "name every target once, and put 'time' or 'frame' first")
    return clock, targets


def _check_clock(path: Path, clock: str, clock_F: npt.NDArray[np.float64]) -> None:
    """Refuse a clock that is blank, does not increase, or names no frame."""
    unit = "a time in seconds" if clock == "time" else "the index of a frame, a whole number from 0"
    wrong_F = np.isnan(clock_F)
    if clock == "frame":
        wrong_F |= (clock_F != np.floor(clock_F)) | (clock_F < 0) | (clock_F >= MAX_FRAMES)
    if wrong_F.any():
        row = int(wrong_F.argmax())
        got = "a blank field" if np.isnan(clock_F[row]) else f"{clock_F[row]:g}"
        raise invalid(path, row + 2, unit, got, f"write {unit} in every row, or leave the column out")
    behind_F = np.diff(clock_F) <= 0
    if behind_F.any():
        row = int(behind_F.argmax()) + 1
        got = f"{clock_F[row]:.9g} after {clock_F[row - 1]:.9g}"
        raise invalid(path, row + 2, f"a {clock} that increases from row to row", got, "sort the rows, each once")


def _spread(frame_F: npt.NDArray[np.float64], values_FE: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return one row per frame up to the last named one, NaN where a frame is not named."""
    index_F = frame_F.astype(np.int64)
    spread_FE = np.full((index_F[-1] + 1, values_FE.shape[1]), np.nan)
    spread_FE[index_F] = values_FE
    return spread_FE
