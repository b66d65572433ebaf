"""Artefacts that are whole or absent: written aside, flushed to disk, renamed into place.

What is being written carries the name of its writer (host and process), so that what a killed writer left behind can be
told from what a living one is at.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place."""
    aside = path.with_name(f".{path.name}.{new_aside_name()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change places in one step; return whether this system can do that.

    Raises
    ------
    OSError
        If one of them is not there, or may not be moved.
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
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def new_aside_name() -> str:
    """Return a name that no other writer uses: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def remove_tree(folder: Path) -> None:
    """Remove a folder into which a thread of this process may still be writing, as after a signal."""
    quiet = 0
    for _ in range(100):
        quiet = 0 if folder.exists() else quiet + 1
        if quiet == 3:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.005)


def sweep(folder: Path) -> list[str]:
    """Remove what dead writers of this machine left in a folder, files or folders; return the names of what went."""
    gone = []
    for leftover in folder.iterdir():
        if is_left_behind(leftover.name):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            gone.append(leftover.name)
    return gone


def is_left_behind(name: str) -> bool:
    """Whether a name, as `new_aside_name` gives it or behind a dot, is that of a dead writer of this machine."""
    writer, _, process = name.rpartition("-")[0].rpartition("-")
    is_ours = writer == socket.gethostname() or (writer.startswith(".") and writer.endswith(f".{socket.gethostname()}"))
    return is_ours and process.isdecimal() and not _is_alive(int(process))


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return length and sha256 of every file below a folder, by its path in it."""
    described = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return described


def flush_tree(folder: Path) -> None:
    """Flush a folder and everything below it to disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def flush(path: Path) -> None:
    """Flush one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
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


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
