"""Artefacts that are whole or absent: written aside, flushed to disk, renamed into place.

What is being written carries the name of its writer (host and process), so that what a killed writer left behind can be
told from what a living one is at. Containers may share a folder and the name of the host, but not the numbers of
processes; so a writer also holds a lock while it lives, which every machine of one file system sees.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2
_TRIES = 100


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place."""
    aside = path.with_name(f".{path.name}.{new_aside_name()}")
    try:
        with naming(path), aside.open("wb") as file:
            hold(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change places in one step; return whether this system can do that.

    Raises
    ------
    OSError
        If one of them is not there, or may not be moved; it names the second.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # it is Linux that has it
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # the file system cannot
        return False
    raise OSError(number, os.strerror(number), str(other))


def new_aside_name() -> str:
    """Return a name that no other writer uses: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def remove_tree(folder: Path, *, is_settled: bool = False) -> None:
    """Remove a folder into which a thread of this process may still be writing, as after a signal.

    Where `is_settled`, nobody is, and it is not waited for.
    """
    if is_settled:
        shutil.rmtree(folder, ignore_errors=True)
        return
    quiet = 0
    for _ in range(_TRIES):
        quiet = 0 if folder.exists() else quiet + 1
        if quiet == 3:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.005)


def hold(descriptor: int) -> None:
    """Lock an open file until it is closed, as its writer does while it lives; not every file system can."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that others may be making or removing at the same moment.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    for _ in range(_TRIES):
        with suppress(FileExistsError, FileNotFoundError):  # there it was, and then it was gone; or it is a file
            folder.mkdir(parents=True, exist_ok=True)
            return
        time.sleep(0.001)
    folder.mkdir(parents=True, exist_ok=True)


def announce(owner: object, folder: Path) -> None:
    """Let others see that this process works in a folder, by a note there that is locked while `owner` lives.

    The folder is made if it is not there, and goes with the last note, if nothing else is left in it.

    Raises
    ------
    OSError
        If nothing can be written there.
    """
    while True:
        make_folder(folder)
        note = folder / new_aside_name()
        try:
            descriptor = os.open(note, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileNotFoundError:  # the folder went with somebody else's note
            continue
        hold(descriptor)
        if note.exists():  # nobody has swept it before it was locked
            break
        os.close(descriptor)
    weakref.finalize(owner, _withdraw, note, descriptor, os.getpid())


def sweep(folder: Path, file: str | None = None) -> list[str]:
    """Remove what dead writers of this machine left in a folder; return the names of what went.

    With the name of a file, that is only what `write_atomically` and its like left of that file.
    """
    return sorted(path.name for path in folder.iterdir() if remove_left_behind(path, file))


def remove_left_behind(path: Path, file: str | None = None) -> bool:
    """Remove a file or folder if it `is_left_behind`, and of that file if one is named; return whether it was."""
    with _asking(path, file) as is_left:
        if is_left and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_left:
            path.unlink(missing_ok=True)
        return is_left


def is_left_behind(path: Path) -> bool:
    """Whether a file or folder has a name as `new_aside_name` gives it, and its writer, of this machine, is dead.

    A file may have that name behind its own, as `write_atomically` gives it. A writer is alive as long as it is seen
    from here, or holds a file of such a name in the same folder.
    """
    with _asking(path, None) as is_left:
        return is_left


def is_of_dead_writer(name: str) -> bool:
    """Whether a name is one that `new_aside_name` gave to a writer of this machine that is not seen from here."""
    found = _parse(name)
    return found is not None and not found[0] and not _is_alive(int(found[1]))


def describe_files(folder: Path, on_file: Callable[[], object] = lambda: None) -> dict[str, dict[str, Any]]:
    """Return length and sha256 of every file below a folder, by its path in it; `on_file` is called for each."""
    described = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        on_file()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return described


def flush_tree(folder: Path, on_file: Callable[[], object] = lambda: None) -> None:
    """Flush a folder and everything below it to disk; `on_file` is called for each."""
    for path in (*folder.rglob("*"), folder):
        on_file()
        flush(path)


def flush(path: Path) -> None:
    """Flush one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that ask for it; wait until it is free. It ends with its holder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def plain_values(values: Any) -> Any:
    """Return values as JSON has them: numbers that are not finite become null."""
    if isinstance(values, dict):
        return {key: plain_values(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain_values(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def digest_json(values: Mapping[str, Any]) -> str:
    """Return the sha256 of values written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _parse(name: str) -> tuple[str, str] | None:
    """Return the file that something was written for ("" for none) and the number of its writer; None if not ours."""
    host = re.escape(socket.gethostname())
    found = re.fullmatch(rf"(?:\.(.+)\.)?{host}-([1-9][0-9]*)-[0-9a-f]{{8}}", name, re.DOTALL)
    return found and (found[1] or "", found[2])


@contextmanager
def _asking(path: Path, file: str | None) -> Iterator[bool]:
    """Say whether something is left behind, and let its writer, should it come to life, wait meanwhile."""
    found = _parse(path.name)
    is_ours = found is not None and file in (None, found[0]) and not path.is_symlink()
    if found is None or not is_ours or (found[0] and not path.is_file()) or _is_alive(int(found[1])):
        yield False
        return
    try:
        beside = list(path.parent.iterdir())
    except FileNotFoundError:  # its writer has ended meanwhile, and the folder went too
        yield False
        return
    with ExitStack() as stack:
        places = [place for place in beside if (_parse(place.name) or ("", ""))[1] == found[1]]
        yield all(_is_free(place, stack) for place in places)


def _is_free(path: Path, stack: ExitStack) -> bool:
    """Whether nobody holds a file; nobody can until the stack is left. A folder is held by nobody."""
    if path.is_symlink() or not path.is_file():
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:  # somebody else's
        return False
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what is seen of processes must do
        return True
    return True


def _withdraw(note: Path, descriptor: int, process: int) -> None:
    """Take a note away, and its folder if it is empty then, unless it is that of the parent process."""
    is_ours = process == os.getpid()
    with suppress(OSError):
        if is_ours:
            note.unlink()
    os.close(descriptor)
    with suppress(OSError):  # something is left in it, as a rule: others work there too
        if is_ours:
            note.parent.rmdir()


def _is_alive(process: int) -> bool:
    """Whether a process is seen from here; what is no number of a process is none of ours, and stays."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
