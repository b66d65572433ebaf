"""Aff-Wild2 as its valence-arousal challenge hands it out (Kollias & Zafeiriou, arXiv 1811.07770, 2202.10659)."""

import logging
from pathlib import Path
from typing import ClassVar

import numpy as np

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._traces import invalid, normal_name, parse_rows, read_lines, shown, tree_files
from avfuse.schema import Annotation, Recording, RecordingError, UsageError

log = logging.getLogger(__name__)

UNRATED = -5.0
_HEADER = "valence,arousal"
_ANNOTATIONS = "annotations"
_CHALLENGE = "VA_Estimation_Challenge"
_PARTITION_FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}
_TEST_FOLDER = "names_of_videos_in_each_test_set"
_TEST_PATTERN = "*Valence_Arousal*.txt"


class AffWild2Corpus(Corpus):
    """Aff-Wild2: one annotation row per frame, videos anywhere under the root.

    A row that holds -5 in either field, however written, is unrated in both. Any other value outside [-1, 1] is an
    error. A name in the annotations or in the test list without a video is still listed, with the path
    ``<root>/<name>.mp4``, so that extraction records it as missing. Aff-Wild2 names no subjects: the subject is the
    name.

    Raises
    ------
    UsageError
        If the folder is laid out otherwise, holds no annotations, names a video in two partitions, or holds two
        videos of one name.
    """

    layout: ClassVar[str] = (
        f"{_ANNOTATIONS}/{_CHALLENGE}/{{Train_Set,Validation_Set}}/<video>.txt with the header '{_HEADER}', "
        f"the videos anywhere else under the root, and optionally {_TEST_FOLDER}/{_TEST_PATTERN}"
    )
    targets = ("valence", "arousal")

    def __init__(self, root: Path) -> None:
        _check_layout(root)
        files = tree_files(root)
        traces = _find_traces(root, files)
        partitions = {name: partition for partition, paths in traces.items() for name in paths}
        for name in _test_names(files):
            if name in partitions:
                raise UsageError(f"{name} is in the test list and in the {partitions[name]} set; leave it in one")
            partitions[name] = "test"
        videos = _find_videos(root, files, set(partitions))
        self._recordings = [
            Recording(
                name=name,
                path=videos.get(name, root / f"{name}.mp4"),
                partition=partitions[name],
                subject=name,
                annotation_path=traces.get(partitions[name], {}).get(name),
            )
            for name in sorted(partitions)
        ]

    def recordings(self) -> list[Recording]:
        """Return every annotated or listed recording, sorted by name."""
        return list(self._recordings)

    def annotation(self, recording: Recording) -> Annotation | None:
        """Read one annotation file: row i rates frame i; None for the test partition.

        Raises
        ------
        RecordingError
            With reason ``annotation_invalid``, naming file and line.
        """
        path = recording.annotation_path
        if path is None:
            return None
        lines = read_lines(path)
        if [field.strip() for field in lines[0].split(",")] != list(self.targets):
            raise invalid(path, 1, f"the header '{_HEADER}'", shown(lines[0]), _header_remedy(lines[0]))
        values_FE = parse_rows(path, lines, self.targets, blank=False)
        wrong_FE = (np.abs(values_FE) > 1.0) & (values_FE != UNRATED)
        if wrong_FE.any():
            row, column = np.argwhere(wrong_FE)[0]
            got = f"{values_FE[row, column]:g} as {self.targets[column]}"
            remedy = "correct it, or write -5,-5 if the frame is unrated"
            raise invalid(path, int(row) + 2, "a value in [-1, 1], or -5 for an unrated frame", got, remedy)
        values_FE[(values_FE == UNRATED).any(axis=1)] = np.nan
        return Annotation(self.targets, values_FE)


def _header_remedy(line: str) -> str:
    fields = [field.strip().lower() for field in line.split(",")]
    if fields == ["arousal", "valence"]:
        return "swap the columns, the header with the values"
    return "write the header as the first line, above the first frame's row"


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give the root folder of Aff-Wild2")
    for folder in _PARTITION_FOLDERS.values():
        place = Path(_ANNOTATIONS, _CHALLENGE, folder)
        if not (root / place).is_dir():
            raise UsageError(
                f"{root} does not look like Aff-Wild2: it has no {place.as_posix()}. Expected {AffWild2Corpus.layout}; "
                f"give the folder that holds '{_ANNOTATIONS}', or name the corpus that fits"
            )


def _find_traces(root: Path, files: list[Path]) -> dict[str, dict[str, Path]]:
    """Return {partition: {name: annotation file}}."""
    traces: dict[str, dict[str, Path]] = {}
    seen: dict[str, Path] = {}
    for partition, folder in _PARTITION_FOLDERS.items():
        home = root / _ANNOTATIONS / _CHALLENGE / folder
        paths = [path for path in files if path.is_relative_to(home) and path.suffix.lower() == ".txt"]
        traces[partition] = {normal_name(path.stem): path for path in paths}
        for path in paths:
            first = seen.setdefault(normal_name(path.stem), path)
            if first is not path:
                raise UsageError(f"{path.stem} is annotated twice, in {first} and {path}; leave it in one partition")
    if not seen:
        raise UsageError(f"no annotations under {root}: expected {AffWild2Corpus.layout}; unpack them there")
    return traces


def _test_names(files: list[Path]) -> list[str]:
    """Return the names in the test lists, one per line, each once."""
    names: dict[str, None] = {}
    for path in files:
        if path.parent.name != _TEST_FOLDER or not path.match(_TEST_PATTERN):
            continue
        try:
            lines = read_lines(path)
        except RecordingError as error:
            raise UsageError(str(error)) from error
        for number, line in enumerate(lines, 1):
            name = normal_name(line.strip())
            if not name:
                continue
            if name in {".", ".."} or "/" in name or "\\" in name:
                raise UsageError(f"{path}, line {number}: expected the name of a video, got {shown(name)}; remove it")
            names[name] = None
    return list(names)


def _find_videos(root: Path, files: list[Path], wanted: set[str]) -> dict[str, Path]:
    """Return {name: video} for the wanted names; count the other videos in the log."""
    videos: dict[str, Path] = {}
    num_other = 0
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.relative_to(root).parts[0] == _ANNOTATIONS:
            continue
        name = normal_name(path.stem)
        if name not in wanted:
            num_other += 1
        elif name in videos:
            raise UsageError(f"two videos are named {name}: {videos[name]} and {path}; remove one")
        else:
            videos[name] = path
    if num_other:
        log.warning("%s: videos neither annotated nor in a test list, left out: %d", root, num_other)
    return videos
