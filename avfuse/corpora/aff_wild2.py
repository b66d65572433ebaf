"""Aff-Wild2 as its valence-arousal challenges hand it out (Kollias & Zafeiriou, arXiv 1811.07770, 2202.10659)."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import numpy as np

from avfuse.corpora import VIDEO_SUFFIXES, Corpus
from avfuse.corpora._text import Faults, read_lines, shown
from avfuse.corpora._traces import parse_numbers, split_rows
from avfuse.corpora._tree import is_hidden, outside, tree_of
from avfuse.schema import SIDES, Annotation, AnnotationError, Recording, UsageError
from avfuse.spec import normal_name

log = logging.getLogger(__name__)

UNRATED = -5.0
_HEADER = "valence,arousal"
_ANNOTATIONS = "annotations"
_CHALLENGES = ("VA_Estimation_Challenge", "VA_Set")  # from the third challenge on, and before
_PARTITION_FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}
_CROPS = "cropped_aligned*"  # later videos came in a folder of their own
_TEST_FOLDER = "names_of_videos_in_each_test_set"
_TEST_PATTERN = "*Valence_Arousal*.txt"
_TEST_LIST = "*valence_arousal*test_set*.txt"  # in any case, in whatever folder


class AffWild2Corpus(Corpus):
    """Aff-Wild2: one annotation row per frame, videos anywhere under the root.

    The annotations lie in a folder ``VA_Estimation_Challenge`` (third challenge and later) or ``VA_Set`` (first and
    second) anywhere under the root; there must be one such folder. It holds ``Train_Set`` and ``Validation_Set``; the
    case of all these names does not matter.

    A row that holds -5 in either field, however written, is unrated in both. Any other value outside [-1, 1] is an
    error. A name in the annotations or in the test list without a video is still listed, with the path
    ``<root>/<name>.mp4``, so that extraction records it as missing. Aff-Wild2 names no subjects: the subject is the
    name.

    Of a video that shows two people each is a recording, ``<video>_left`` and ``<video>_right``. Where no video has
    that name, its path is that of ``<video>``, with the side that is meant; both have the same sound. Where
    ``<video>`` itself is annotated beside one of them, it is of the person on the other side. The organisers' aligned
    images of a recording are those in ``cropped_aligned/<name>``, anywhere under the root, if they are there; the
    name of that folder may go on, as ``cropped_aligned_new_50_vids`` does.

    The test lists lie in a folder ``names_of_videos_in_each_test_set``, or anywhere outside the annotations under a
    name like ``Valence_Arousal_Estimation_Challenge_test_set_release.txt``.

    Raises
    ------
    UsageError
        If the folder is laid out otherwise, holds no annotations or two sets of them, names a video in two partitions,
        or holds two videos, or two folders of aligned images, of one name.
    """

    layout: ClassVar[str] = (
        f"one folder {' or '.join(_CHALLENGES)} with {{Train_Set,Validation_Set}}/<video>.txt with the header "
        f"'{_HEADER}', the videos anywhere else under the root, and optionally {_CROPS}/<video>/00001.jpg and "
        f"{_TEST_FOLDER}/{_TEST_PATTERN} or {_TEST_LIST}"
    )
    targets = ("valence", "arousal")
    ranges = ((-1.0, 1.0), (-1.0, 1.0))

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder; give the root folder of Aff-Wild2")
        tree = tree_of(root, (".txt", *VIDEO_SUFFIXES), closed=_CROPS)
        home, folders = _find_annotations(root, tree.folders)
        traces = _find_traces(root, folders, tree.files)
        partitions = {name: partition for partition, paths in traces.items() for name in paths}
        for name in _test_names(home, tree.files):
            if name in partitions:
                raise UsageError(f"{name} is in the test list and in the {partitions[name]} set; leave it in one")
            partitions[name] = "test"
        videos = _find_videos(root, home, tree.files, sorted(partitions))
        crops = _find_crops(tree.folders)
        self._recordings = [
            Recording(
                name=name,
                path=path,
                partition=partitions[name],
                subject=name,
                annotation_path=traces.get(partitions[name], {}).get(name),
                face_side=side,
                crops=crops.get(name),
            )
            for name, (path, side) in videos.items()
        ]

    def recordings(self) -> list[Recording]:
        """Return every annotated or listed recording, sorted by name."""
        return list(self._recordings)

    def annotation(self, recording: Recording) -> Annotation | None:
        """Read one annotation file: row i rates frame i; None for the test partition.

        Raises
        ------
        AnnotationError
            Naming every faulty line.
        """
        path = recording.annotation_path
        if path is None:
            return None
        lines, faults = read_lines(path), Faults(path)
        if [field.strip() for field in lines[0].split(",")] != list(self.targets):
            faults.add(1, f"the header '{_HEADER}'", shown(lines[0]), _header_remedy(lines[0]))
        rows = split_rows(faults, lines, self.targets, ",")
        values_FE = parse_numbers(faults, rows, self.targets, blank=False)
        wrong_FE = (np.abs(values_FE) > 1.0) & (values_FE != UNRATED)
        for index, column in np.argwhere(wrong_FE):
            got = f"{values_FE[index, column]:g} as {self.targets[column]}"
            remedy = "correct it, or write -5,-5 if the frame is unrated"
            faults.add(rows[index].line, "a value in [-1, 1], or -5 for an unrated frame", got, remedy)
        faults.raise_any()
        values_FE[(values_FE == UNRATED).any(axis=1)] = np.nan
        return Annotation(self.targets, values_FE)


def _header_remedy(line: str) -> str:
    fields = [field.strip().lower() for field in line.split(",")]
    if fields == ["arousal", "valence"]:
        return "swap the columns, the header with the values"
    return "write the header as the first line, above the first frame's row"


def _find_annotations(root: Path, folders: Sequence[Path]) -> tuple[Path, dict[str, Path]]:
    """Return the one folder of annotations, and {partition: its folder}."""
    names = {name.lower() for name in _CHALLENGES}
    held: dict[Path, dict[str, list[Path]]] = {path: {} for path in folders if path.name.lower() in names}
    for path in folders:
        for partition, name in _PARTITION_FOLDERS.items():
            if path.parent in held and path.name.lower() == name.lower():
                held[path.parent].setdefault(partition, []).append(path)
    homes = [home for home, found in held.items() if found]
    if len(homes) > 1:
        both = " and ".join(map(str, homes))
        raise UsageError(f"{root} holds the annotations of two challenges, {both}; leave the ones that you mean")
    if not homes:
        lacking = (
            f"no annotations: no folder {' or '.join(_CHALLENGES)} with {' and '.join(_PARTITION_FOLDERS.values())}"
        )
        raise UsageError(
            f"{root} does not look like Aff-Wild2: it has {lacking}. Expected {AffWild2Corpus.layout}; "
            "give the folder that holds them, or name the corpus that fits"
        )
    (home,) = homes
    for partition, name in _PARTITION_FOLDERS.items():
        paths = held[home].get(partition, [])
        if len(paths) != 1:
            found = " and ".join(map(str, paths)) if paths else f"no {(home / name).relative_to(root).as_posix()}"
            raise UsageError(
                f"{root} does not look like Aff-Wild2: it has {found}. Expected {AffWild2Corpus.layout}; "
                f"{home} must hold one folder {name}"
            )
    return home, {partition: held[home][partition][0] for partition in _PARTITION_FOLDERS}


def _find_traces(root: Path, folders: dict[str, Path], files: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Return {partition: {name: annotation file}}."""
    traces: dict[str, dict[str, Path]] = {}
    seen: dict[str, Path] = {}
    for partition, home in folders.items():
        paths = [path for path in files if path.is_relative_to(home) and path.suffix.lower() == ".txt"]
        traces[partition] = {normal_name(path.stem): path for path in paths}
        for path in paths:
            first = seen.setdefault(normal_name(path.stem), path)
            if first is not path:
                raise UsageError(f"{path.stem} is annotated twice, in {first} and {path}; leave it in one partition")
    if not seen:
        raise UsageError(f"no annotations under {root}: expected {AffWild2Corpus.layout}; unpack them there")
    return traces


def _test_names(home: Path, files: Iterable[Path]) -> list[str]:
    """Return the names in the test lists, one per line, each once."""
    names: dict[str, None] = {}
    for path in files:
        is_listed = path.parent.name == _TEST_FOLDER and path.match(_TEST_PATTERN)
        if not is_listed and (path.is_relative_to(home) or not fnmatchcase(path.name.lower(), _TEST_LIST)):
            continue
        try:
            lines = read_lines(path)
        except AnnotationError as error:
            raise UsageError(str(error)) from error
        for number, line in enumerate(lines, 1):
            name = normal_name(line.strip())
            if not name:
                continue
            if name in {".", ".."} or "/" in name or "\\" in name:
                raise UsageError(f"{path}, line {number}: expected the name of a video, got {shown(name)}; remove it")
            names[name] = None
    return list(names)


def _find_videos(
    root: Path, home: Path, files: Iterable[Path], wanted: Sequence[str]
) -> dict[str, tuple[Path, str | None]]:
    """Return {name: (video, side of the person meant)} for the wanted names; count the other videos in the log."""
    found: dict[str, list[Path]] = {}
    for path in files:
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        if is_video and not path.is_relative_to(home) and _ANNOTATIONS not in path.relative_to(root).parts[:-1]:
            found.setdefault(normal_name(path.stem), []).append(path)
    videos: dict[str, tuple[Path, str | None]] = {}
    sides: dict[str, list[str]] = {}
    for name in wanted:
        both, _, side = name.rpartition("_")
        shared = name not in found and side in SIDES and both in found
        file = both if shared else name
        paths = found.get(file) or [_missing(root, name)]
        if len(paths) > 1:
            raise UsageError(f"two videos are named {file}: {paths[0]} and {paths[1]}; remove one")
        videos[name] = paths[0], side if shared else None
        sides.setdefault(file, []).extend([side] if shared else [])
    for file, taken in sides.items():
        if len(taken) == 1 and file in videos:
            (other,) = set(SIDES) - set(taken)
            videos[file] = videos[file][0], other
    num_other = sum(len(paths) for name, paths in found.items() if name not in sides)
    if num_other:
        log.warning("%s: videos neither annotated nor in a test list, left out: %d", root, num_other)
    return videos


def _missing(root: Path, name: str) -> Path:
    """Return where a video would lie that was not found; a link there was left out, as it leads out of the root."""
    path = root / f"{name}.mp4"
    if real := outside(root, path):
        raise UsageError(f"{path} is a link to {real}, which is not below the root; copy the file to where the link is")
    return path


def _find_crops(folders: Iterable[Path]) -> dict[str, Path]:
    """Return {name: folder of its aligned images}; the images themselves are not looked at."""
    crops: dict[str, Path] = {}
    for path in _image_folders(folder for folder in folders if fnmatchcase(folder.name, _CROPS)):
        first = crops.setdefault(normal_name(path.name), path)
        if first is not path:
            raise UsageError(f"two folders of aligned images are named {path.name}: {first} and {path}; remove one")
    return crops


def _image_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders in those of aligned images, also where an archive of that name was unpacked into another."""
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if is_hidden(path.name) or path.is_symlink() or not path.is_dir():
                continue
            if fnmatchcase(path.name, _CROPS):
                yield from _image_folders([path])
            else:
                yield path
