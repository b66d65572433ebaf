"""What the corpora share about files: which there are below a root, and what they are called."""

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from avfuse.corpora import VIDEO_SUFFIXES
from avfuse.schema import UsageError
from avfuse.spec import normal_name

log = logging.getLogger(__name__)

_LEFT_BY_ARCHIVES = "__MACOSX"  # holds a hidden file for each one that was packed


@dataclass(frozen=True)
class Tree:
    """Files of the wanted kinds below a root, and all folders, both sorted."""

    files: list[Path]
    folders: list[Path]


def tree_of(root: Path, suffixes: Sequence[str], closed: str = "") -> Tree:
    """Return what lies below `root`, but for hidden files and folders and links that lead out of it.

    The folders __MACOSX of unpacked archives count as hidden. Linked folders are not entered. One walk, which costs
    files of other kinds no more than their name.

    Parameters
    ----------
    root : Path
    suffixes : sequence of str
        Endings of the files to return, in lower case.
    closed : str
        Pattern of the names of folders that are listed but not entered; none if empty.

    Raises
    ------
    OSError
        If a folder cannot be listed for another reason than its permissions: what lies there would be left out unseen,
        and partitions that are drawn would be others.
    """
    endings = tuple(suffixes)
    files, folders, num_left_out = [], [], 0
    unread: list[OSError] = []

    def note(error: OSError) -> None:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
            raise error
        unread.append(error)

    for folder, inside, names in os.walk(root, onerror=note):
        here = Path(folder)
        inside[:] = [name for name in inside if not is_hidden(name)]
        linked = {name for name in inside if (here / name).is_symlink()}
        num_left_out += len(linked)
        folders += [here / name for name in inside if name not in linked]
        inside[:] = [name for name in inside if not fnmatchcase(name, closed) and name not in linked]
        for name in names:
            if name.startswith(".") or not name.lower().endswith(endings):
                continue
            path = here / name
            if path.is_symlink() and outside(root, path):
                num_left_out += 1
            else:
                files.append(path)
    if num_left_out:
        log.warning("%s: linked folders or links that lead out of it, left out: %d; copy the files", root, num_left_out)
    if unread:
        found = f"{len(unread)}, such as {unread[0].filename} ({unread[0].strerror})"
        log.warning("%s: folders that cannot be read, left out: %s; check their permissions", root, found)
    return Tree(sorted(files), sorted(folders))


def outside(root: Path, path: Path) -> Path | None:
    """Return where a path leads that does not end below the root, followed through all links; None if it does."""
    real = Path(os.path.realpath(path))
    return None if real.is_relative_to(os.path.realpath(root)) else real


def is_hidden(folder: str) -> bool:
    """Tell whether a folder of this name holds nothing of a data set."""
    return folder.startswith(".") or folder == _LEFT_BY_ARCHIVES


def videos_below(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return {path below the root without suffix: video}.

    Raises
    ------
    UsageError
        If two videos differ in their suffix alone.
    """
    videos: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        name = name_below(root, path)
        if name in videos:
            raise UsageError(f"two videos are named {name}: {videos[name]} and {path}; rename one")
        videos[name] = path
    return videos


def name_below(root: Path, path: Path) -> str:
    """Return the path of a file below the root, with '/' and without suffix."""
    return normal_name(path.relative_to(root).with_suffix("").as_posix())
