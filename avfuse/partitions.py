"""Partitions that share no subject: drawn by subject, and checked for what is in two of them.

A network that has seen a face in training knows it in validation; a score of such a split is not one of new people.
"""

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold, GroupShuffleSplit

from avfuse.schema import PARTITIONS, Recording, RecordingError, UsageError

log = logging.getLogger(__name__)

_Key = TypeVar("_Key", bound=Hashable)
_MAX_SEED = 2**32 - 1  # of numpy's legacy generator, which scikit-learn seeds
_MAX_NAMES_SHOWN = 3
_MAX_LEAKS_NAMED = 3


@dataclass(frozen=True)
class Leak:
    """What stands in two partitions and so makes the score of one of them too good.

    Attributes
    ----------
    kind : str
        ``subject`` or ``file``.
    name : str
        The subject, or the path of the first recording's file.
    recordings : tuple of str
        Names of the recordings concerned, in the order train, validation, test.
    partitions : tuple of str
        The partition of each of them.
    """

    kind: str
    name: str
    recordings: tuple[str, ...]
    partitions: tuple[str, ...]

    @property
    def message(self) -> str:
        """What leaks, where, and what to do, on one line."""
        return f"{self.words}; leave it in one partition"

    @property
    def words(self) -> str:
        """What leaks, and where."""
        held: dict[str, list[str]] = {}
        for recording, partition in zip(self.recordings, self.partitions, strict=True):
            held.setdefault(partition, []).append(recording)
        places = " and in ".join(f"{partition} ({_list(names)})" for partition, names in held.items())
        what = f"subject {self.name}" if self.kind == "subject" else f"the content of {self.name}"
        return f"{what} is in {places}"


def split_by_subject(
    subjects: Sequence[str], validation: float, test: float, seed: int, remedy: str = "add subjects"
) -> list[str]:
    """Draw partitions that share no subject, and return the partition of each item.

    Shares count subjects, not items, and are rounded to whole subjects; each partition with a share has at least one.
    The draw depends on the set of subjects and the seed alone: neither the order of the items nor how many a subject
    has changes it, but one subject more or less does.

    Parameters
    ----------
    subjects : sequence of str
        The subject of each item.
    validation, test : float
        Share of the subjects held out, from 0 up to, in sum, below 1; the others are trained on.
    seed : int
        Of the draw.
    remedy : str
        What to do where the subjects are too few, for the message.

    Raises
    ------
    UsageError
        If a share or the seed is out of range, or there are fewer subjects than partitions with a share.
    """
    _check_shares(validation, test, seed)
    names = sorted(set(subjects))
    if not names:
        return []
    num_wanted = 1 + (validation > 0) + (test > 0)
    if len(names) < num_wanted:
        raise UsageError(
            f"{num_wanted} partitions need as many subjects, and there is no more than {_list(names)} "
            f"(validation={validation:g}, test={test:g}); {remedy}, or set a share to 0"
        )
    num_test = _num_held_out(test, len(names), num_others=num_wanted - 1)
    num_validation = _num_held_out(validation, len(names), num_others=1 + num_test)
    others, tested = _draw(names, num_test, seed)
    _, validated = _draw(others, num_validation, seed)
    partition_of = (
        dict.fromkeys(names, "train") | dict.fromkeys(validated, "validation") | dict.fromkeys(tested, "test")
    )
    return [partition_of[subject] for subject in subjects]


def fold_by_subject(subjects: Sequence[str], num_folds: int, files: Sequence[str] | None = None) -> list[int]:
    """Spread items over folds of about equal size that share no subject and no file; return each item's fold, from 0.

    Items that share a subject or a file, directly or through others, make up a group, which stays in one fold. The
    folds depend on how many items each group has, not on the order of the items. Which of two groups with equally many
    items goes where may differ between processors, as numpy's sort does.

    Parameters
    ----------
    subjects : sequence of str
        The subject of each item.
    num_folds : int
    files : sequence of str or None
        What tells the file of each item, as the digest of its content does.

    Raises
    ------
    UsageError
        If there are fewer than two folds, or fewer groups than folds.
    """
    groups = list(subjects) if files is None else _joined_groups(subjects, files)
    num_subjects, num_groups = len(set(subjects)), len(set(groups))
    if not 2 <= num_folds <= num_groups:
        given = f"{num_folds} folds of {num_subjects} subjects"
        if num_groups == num_subjects:
            raise UsageError(f"{given}: give from 2 to as many folds as subjects")
        raise UsageError(
            f"{given}, of whom those that share a file stay together, in {num_groups} groups: "
            "give from 2 to as many folds as groups"
        )
    fold_of_item = [0] * len(subjects)
    for fold, (_, held_out) in enumerate(GroupKFold(num_folds).split(subjects, groups=groups)):
        for item in held_out:
            fold_of_item[item] = fold
    return fold_of_item


def find_leaks(recordings: Sequence[Recording], digest: Callable[[Path], str]) -> list[Leak]:
    """Return every subject and every file content that stands in two partitions, subjects first, each by its name.

    Only files are digested whose size occurs in two partitions. Files that are missing, cannot be read or are empty
    are no leaks. Two recordings of one file, as of two people in one video, leak if their partitions differ.

    Parameters
    ----------
    recordings : sequence of Recording
    digest : callable
        Returns the digest of a file's content; an `OSError` or `RecordingError` leaves the file out.
    """
    by_subject = _grouped((recording.subject, recording) for recording in recordings)
    leaks = [_leak("subject", subject, group) for subject, group in by_subject.items() if _is_spread(group)]
    by_size = _grouped(
        (num_bytes, recording) for recording in recordings if (num_bytes := _num_bytes(recording.path)) > 0
    )
    suspects = [recording for group in by_size.values() if _is_spread(group) for recording in group]
    by_content = _grouped(_with_digests(suspects, digest))
    leaks += [_leak("file", None, group) for group in by_content.values() if _is_spread(group)]
    return sorted(leaks, key=lambda leak: (leak.kind != "subject", leak.name, leak.recordings))


def refuse_leaks(leaks: Sequence[Leak], are_allowed: bool) -> None:
    """Refuse partitions that share a subject or content: what is learned there is known here; or warn of them.

    Raises
    ------
    UsageError
        If there are any and they are not allowed.
    """
    if not leaks:
        return
    named = "; ".join(leak.words for leak in leaks[:_MAX_LEAKS_NAMED])
    more = f"; and {len(leaks) - _MAX_LEAKS_NAMED} more" if len(leaks) > _MAX_LEAKS_NAMED else ""
    if not are_allowed:
        raise UsageError(
            f"subjects or files in two partitions ({len(leaks)}) would make scores too good: {named}{more}; "
            "leave each in one partition, or go on all the same with --allow-leaks"
        )
    log.warning("subjects or files in two partitions (%d) will make scores too good: %s%s", len(leaks), named, more)


def _check_shares(validation: float, test: float, seed: int) -> None:
    given = f"validation={validation:g}, test={test:g}"
    if not all(math.isfinite(share) and 0 <= share < 1 for share in (validation, test)) or validation + test >= 1:
        raise UsageError(f"{given}: give shares from 0 that add up to less than 1, the rest is trained on")
    if not 0 <= seed <= _MAX_SEED:
        raise UsageError(f"seed {seed} of the partitions: give a whole number from 0 to {_MAX_SEED}")


def _num_held_out(share: float, num_subjects: int, *, num_others: int) -> int:
    """Return the rounded number of subjects of a share, at least 1, that leaves one for each of the others."""
    return min(max(1, round(share * num_subjects)), num_subjects - num_others) if share else 0


def _draw(names: list[str], num_drawn: int, seed: int) -> tuple[list[str], list[str]]:
    """Return the names that are left and those that are drawn."""
    if not num_drawn:
        return names, []
    splitter = GroupShuffleSplit(1, test_size=num_drawn, random_state=seed)
    left, drawn = next(splitter.split(names, groups=names))
    return [names[i] for i in sorted(left)], [names[i] for i in sorted(drawn)]


def _joined_groups(subjects: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return for each item the first subject, by name, of those that are linked to its own by files in common."""
    names, subject_of_item = np.unique(np.array(subjects, dtype=np.str_), return_inverse=True)
    digests, file_of_item = np.unique(np.array(files, dtype=np.str_), return_inverse=True)
    num_nodes = len(names) + len(digests)
    is_linked = np.ones(len(subjects), np.int8)
    links = coo_array((is_linked, (subject_of_item, len(names) + file_of_item)), shape=(num_nodes, num_nodes))
    _, group_of_node = connected_components(links, directed=False)
    group_of_name = group_of_node[: len(names)]
    _, first, name_group = np.unique(group_of_name, return_index=True, return_inverse=True)
    return [str(names[first[name_group[subject]]]) for subject in subject_of_item]


def _grouped(keyed: Iterable[tuple[_Key, Recording]]) -> dict[_Key, list[Recording]]:
    groups: dict[_Key, list[Recording]] = {}
    for key, recording in keyed:
        groups.setdefault(key, []).append(recording)
    return groups


def _is_spread(group: Sequence[Recording]) -> bool:
    return len({recording.partition for recording in group}) > 1


def _leak(kind: str, name: str | None, group: list[Recording]) -> Leak:
    """Describe a leak; one of a file is named after its first recording's path."""
    ordered = sorted(group, key=lambda recording: (PARTITIONS.index(recording.partition), recording.name))
    names, partitions = zip(*((recording.name, recording.partition) for recording in ordered), strict=True)
    return Leak(kind, name or str(ordered[0].path), names, partitions)


def _num_bytes(path: Path) -> int:
    """Return the size of a file, 0 for one that is missing."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _with_digests(recordings: Sequence[Recording], digest: Callable[[Path], str]) -> Iterable[tuple[str, Recording]]:
    """Yield the readable recordings with the digests of their files, each file read once."""
    known: dict[Path, str | None] = {}
    for recording in recordings:
        path = recording.path.resolve()
        if path not in known:
            try:
                known[path] = digest(path)
            except (OSError, RecordingError):
                known[path] = None
        found = known[path]
        if found is not None:
            yield found, recording


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + more
