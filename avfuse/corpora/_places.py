"""Where a video of a folder belongs: its partition and its subject, as a manifest says or else as its path does."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from avfuse.corpora._manifest import Entry
from avfuse.corpora._shares import Shares
from avfuse.schema import PARTITIONS, UsageError
from avfuse.spec import normal_name

log = logging.getLogger(__name__)

NAME_THE_PEOPLE = "name the people in the column 'subject' of a manifest.csv"
# Folders that are called so are meant as partitions; each with what it may be called instead.
_LIKE_PARTITIONS = {
    **dict.fromkeys(("train", "trains", "training", "trn"), "'train'"),
    **dict.fromkeys(("val", "vali", "valid", "validate", "validation", "validations", "validating"), "'validation'"),
    **dict.fromkeys(("dev", "devel", "development"), "'validation'"),
    **dict.fromkeys(("test", "tests", "testing", "tst"), "'test'"),
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "'validation' or 'test'"),
}
_WORDS_BEHIND = re.compile(r"((sub)?sets?|data|splits?|partition|videos?|clips?|files?)$")
_MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Place:
    """Partition, if one is declared, and subject of a video; `origin` is what the subject is named after, if it is."""

    partition: str | None
    subject: str
    origin: str | None


def places_of(root: Path, entries: Mapping[str, Entry]) -> dict[str, Place]:
    """Return where each video belongs.

    Raises
    ------
    UsageError
        If a folder looks like one of a partition but is none, a partition has two folders, or a rated video lies
        outside the folders of the partitions.
    """
    _check_folders(root, entries.values())
    places = {name: _place(root, entry) for name, entry in entries.items()}
    if any(place.partition for place in places.values()):
        outside = [name for name, place in places.items() if place.partition is None and entries[name].trace]
        if outside:
            found = f"{len(outside)}, such as {', '.join(sorted(outside)[:_MAX_NAMES_SHOWN])}"
            raise UsageError(
                f"{root}: rated videos outside the folders {', '.join(PARTITIONS)}: {found}; move them into these, or "
                "name the partition of every video in the column 'partition' of a manifest.csv"
            )
        _warn_of_one_folder(root, places.values())
    return places


def draw_partitions(
    root: Path, entries: Mapping[str, Entry], places: Mapping[str, Place], shares: Shares
) -> dict[str, str]:
    """Return the partition of each video, drawn by subject; those of subjects without a trace are test.

    Raises
    ------
    UsageError
        If the shares are none, or more than the subjects.
    """
    rated = {name: place for name, place in places.items() if entries[name].trace}
    subjects = {place.subject for place in rated.values()}
    origins = sorted({place.origin for place in rated.values() if place.origin})
    remedy = f"subjects are named after the videos' {' or '.join(origins)}s: {NAME_THE_PEOPLE}" if origins else None
    drawn = shares.draw(subjects, remedy)
    by_file = sorted(name for name, place in rated.items() if place.origin == "file")
    if len(by_file) > 1:
        found = f"{len(by_file)}, such as {by_file[0]}"
        what = "subjects that are named after their file, as neither folder nor manifest names them"
        log.warning("%s: %s: %s; if one person is in several, %s", root, what, found, NAME_THE_PEOPLE)
    if len(subjects) == 1 and len(rated) > 1 and origins == ["folder"]:
        found = f"all {len(rated)} rated videos lie in the folder {subjects.pop()} and so count as one subject"
        log.warning("%s: %s; if they show several people, %s", root, found, NAME_THE_PEOPLE)
    others = sorted(name for name, place in places.items() if name not in rated and place.subject not in drawn)
    if others:
        found = f"{len(others)}, such as {others[0]}"
        log.warning("%s: videos of subjects without any trace, and so test recordings: %s", root, found)
    return {name: drawn.get(place.subject, "test") for name, place in places.items()}


def _check_folders(root: Path, entries: Iterable[Entry]) -> None:
    """Refuse top folders that look like partitions but are none, and two of one partition, where the name matters."""
    spelled: dict[str, str] = {}
    for entry in entries:
        top, _ = _split(root, entry.path)
        if top is None or (entry.partition and entry.subject):
            continue
        partition = _partition_of(top)
        instead = _LIKE_PARTITIONS.get(_WORDS_BEHIND.sub("", re.sub(r"[\W_]", "", top.casefold())))
        if partition is None and instead is not None:
            raise UsageError(
                f"{root} holds a folder {top!r}, which names no partition; call it {instead} or, if "
                "it is a subject, name partition and subject of every video in a manifest.csv"
            )
        if partition is not None and spelled.setdefault(partition, top) != top and not entry.partition:
            both = " and ".join(sorted((spelled[partition], top)))
            raise UsageError(f"{root} holds two folders of the partition {partition}, {both}; make them one")


def _place(root: Path, entry: Entry) -> Place:
    """Return partition and subject, as the manifest says or else as the path does."""
    top, folders = _split(root, entry.path)
    partition = None if top is None else _partition_of(top)
    if partition is not None:
        folders = folders[1:]
    subject, origin = (folders[0], "folder") if folders else (entry.path.stem, "file")
    if entry.subject:
        return Place(entry.partition or partition, entry.subject, None)
    return Place(entry.partition or partition, normal_name(subject), origin)


def _split(root: Path, path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the first of the folders on the way from the root to a file, None without any, and all of them."""
    folders = path.relative_to(root).parent.parts
    return (folders[0] if folders else None), folders


def _partition_of(folder: str) -> str | None:
    return folder.casefold() if folder.casefold() in PARTITIONS else None


def _warn_of_one_folder(root: Path, places: Collection[Place]) -> None:
    """Say that all videos stand for one subject, in several partitions, as those in a 'videos' of each do."""
    subjects, origins = ({getattr(place, what) for place in places} for what in ("subject", "origin"))
    if len(subjects) == 1 and origins == {"folder"} and len({place.partition or "test" for place in places}) > 1:
        found = f"all videos lie in folders called {subjects.pop()} and so show one subject in several partitions"
        log.warning("%s: %s; if they show several people, %s", root, found, NAME_THE_PEOPLE)
