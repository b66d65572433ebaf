"""An artefact is whole or absent, and what killed writers leave behind is swept away."""

import ctypes
import errno
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import files_limited

from avfuse import atomic
from avfuse.atomic import (
    announce,
    describe_files,
    digest_json,
    exchange,
    flush_tree,
    hold,
    is_left_behind,
    is_of_dead_writer,
    naming,
    new_aside_name,
    sweep,
    write_atomically,
)


@pytest.fixture(scope="module")
def dead_process() -> int:
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "größe.json"
    write_atomically(path, b"a long first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_change_places_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one ü", tmp_path / "other"
    for place in (one, other):
        place.mkdir()
        (place / "file").write_text(place.name)
    if not exchange(one, other):
        pytest.skip("this file system cannot")
    assert [(place / "file").read_text() for place in (one, other)] == ["other", "one ü"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        exchange(one, tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one ü", "other"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_a_system_that_cannot_exchange_places_says_so(
    tmp_path: Path, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        assert number is not None
        ctypes.set_errno(number)
        return -1

    library = SimpleNamespace() if number is None else SimpleNamespace(renameat2=refuse)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: library)
    assert not exchange(tmp_path, tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"first")

    def fail(*_: object) -> None:
        assert path.read_bytes() == b"first"
        assert len(list(tmp_path.iterdir())) == 2  # what is being written lies aside
        raise OSError("no space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_has_no_room_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"first")
    with files_limited(3), pytest.raises(OSError, match="File too large") as refusal:
        write_atomically(path, b"second")
    assert (refusal.value.errno, refusal.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_a_file_where_it_names_none() -> None:
    cases = [
        (OSError(errno.ENOSPC, "full"), (errno.ENOSPC, "full", "here")),
        (OSError("Can't write data"), (errno.EIO, "Can't write data", "here")),
        (PermissionError(errno.EACCES, "no", "there"), (errno.EACCES, "no", "there")),
    ]
    for error, (number, told, name) in cases:
        with pytest.raises(type(error)) as refusal, naming(Path("here")):
            raise error
        assert (refusal.value.errno, refusal.value.strerror, refusal.value.filename) == (number, told, name)
    with pytest.raises(ValueError, match="other"), naming(Path("here")):
        raise ValueError("other")


def test_content_is_on_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("flush") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda self, target: steps.append("rename") or replace(self, target))
    write_atomically(tmp_path / "run.json", b"content")
    assert steps == ["flush", "rename"]


def test_aside_names_are_unique_and_name_their_writer() -> None:
    names = {new_aside_name() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(f"{socket.gethostname()}-{os.getpid()}-") for name in names)


@pytest.mark.parametrize("host", ["node7", "node-7.cluster.example"])
def test_sweep_removes_what_dead_writers_left(
    host: str, dead_process: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    kept = {
        new_aside_name(),  # this process is alive
        f"other-{host}-{dead_process}-0a1b2c3d",
        f"elsewhere-{dead_process}-0a1b2c3d",
        f"{host}-{dead_process}",
        f"{host}-nobody-0a1b2c3d",
        "features.zarr",
        ".hidden",
        f"run.json.{host}-{dead_process}-0a1b2c3d",  # not hidden: no name that avfuse gives
        f".run.json.{host}-{os.getpid()}-0a1b2c3d",
        f"{host}-{dead_process}-results",  # a user's own
        f"{host}-{dead_process}-0A1B2C3D",
        f"{host}-{dead_process}-0a1b2c3d4",
        f"{host}-0{dead_process}-0a1b2c3d",
        f"{host}-99999999999999999999-0a1b2c3d",  # no number of a process
        f".folder.{host}-{dead_process}-0a1b2c3d",  # only files have their own name before
    }
    gone = {f"{host}-{dead_process}-0a1b2c3d", f".run.json.{host}-{dead_process}-0a1b2c3d"}
    for name in kept | gone:
        if "run.json" in name:
            (tmp_path / name).write_bytes(b"half")
        else:
            (tmp_path / name / "deep").mkdir(parents=True)
            (tmp_path / name / "deep" / "file").write_bytes(b"half")
    assert set(sweep(tmp_path)) == gone
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert sweep(tmp_path) == []


def test_only_what_was_left_of_one_file_goes_where_it_is_named(dead_process: int, tmp_path: Path) -> None:
    dead = f"{socket.gethostname()}-{dead_process}-0a1b2c3d"
    names = [f".all.h5.{dead}", f".other.h5.{dead}", f".small.all.h5.{dead}", dead]
    for name in names:
        (tmp_path / name).touch()
    assert sweep(tmp_path, "all.h5") == [names[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


class Owner:
    """Somebody who is at work."""


def test_a_writer_that_is_not_seen_is_alive_as_long_as_it_holds_its_note(
    dead_process: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner()
    with monkeypatch.context() as patch:  # as it is in a container of its own, under the same host name
        patch.setattr(os, "getpid", lambda: dead_process)
        announce(owner, tmp_path)
    (note,) = tmp_path.iterdir()
    mine, others = (f"{socket.gethostname()}-{number}-0a1b2c3d" for number in (dead_process, 999_999_999))
    for name in (mine, others):
        (tmp_path / name).mkdir()
    assert is_of_dead_writer(note.name)
    assert not is_left_behind(note)
    assert sweep(tmp_path) == [others]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([note.name, mine])
    del owner  # killed: nobody takes the note away, since this process is another than the one that left it
    assert note.exists()
    assert sweep(tmp_path) == sorted([note.name, mine])


def test_a_note_goes_with_its_owner_and_the_folder_with_the_last(tmp_path: Path) -> None:
    one, other, folder = Owner(), Owner(), tmp_path / "deep" / "beside"
    for owner in (one, other):
        announce(owner, folder)
    names = [path.name for path in folder.iterdir()]
    assert all(name.startswith(f"{socket.gethostname()}-{os.getpid()}-") for name in names)
    assert (len(names), sweep(folder)) == (2, [])
    del one, owner
    assert len(list(folder.iterdir())) == 1
    (folder / "file").touch()
    del other
    assert [path.name for path in folder.iterdir()] == ["file"]
    (folder / "file").unlink()
    another = Owner()
    announce(another, folder)
    del another
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_that_goes_before_the_note_is_there_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened, open_file = tmp_path / "beside", [], os.open

    def go_first(path: Path, *arguments: int) -> int:
        if not opened:
            folder.rmdir()  # as the last of the other writers does
        opened.append(path)
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", go_first)
    owner = Owner()
    announce(owner, folder)
    assert [len(opened), [*folder.iterdir()]] == [2, opened[1:]]
    with pytest.raises(FileExistsError):  # no way to make it
        (tmp_path / "link").symlink_to("nowhere")
        announce(owner, tmp_path / "link")


def test_a_note_that_was_swept_before_it_was_locked_is_left_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    folder = tmp_path / "beside"

    def sweep_first(descriptor: int) -> None:
        if not held:
            next(folder.iterdir()).unlink()
        held.append(descriptor)
        hold(descriptor)

    monkeypatch.setattr(atomic, "hold", sweep_first)
    owner = Owner()
    announce(owner, folder)
    assert (len(held), len(list(folder.iterdir()))) == (2, 1)


def test_a_file_that_is_being_written_is_held(
    dead_process: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[list[str]] = []
    monkeypatch.setattr(os, "getpid", lambda: dead_process)
    monkeypatch.setattr(os, "fsync", lambda _: swept.append(sweep(tmp_path)))
    write_atomically(tmp_path / "run.json", b"content")
    assert (swept, (tmp_path / "run.json").read_bytes()) == ([[]], b"content")


def test_where_nothing_can_be_locked_the_process_must_do(
    dead_process: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    owner, dead = Owner(), f"{socket.gethostname()}-{dead_process}-0a1b2c3d"
    folder = tmp_path / "beside"
    announce(owner, folder)
    (folder / dead).touch()
    assert sweep(folder) == [dead]
    assert len(list(folder.iterdir())) == 1


def test_a_process_of_somebody_else_is_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(process: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / f"{socket.gethostname()}-1-0a1b2c3d").mkdir()
    assert sweep(tmp_path) == []


def test_describe_files(tmp_path: Path) -> None:
    (tmp_path / "video" / "c").mkdir(parents=True)
    (tmp_path / "video" / "c" / "0").write_bytes(b"chunk")
    (tmp_path / "zarr.json").write_bytes(b"")
    assert describe_files(tmp_path) == {
        "video/c/0": {"bytes": 5, "sha256": hashlib.sha256(b"chunk").hexdigest()},
        "zarr.json": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    }
    assert list(describe_files(tmp_path)) == ["video/c/0", "zarr.json"]
    assert describe_files(tmp_path / "video" / "nothing") == {}


def test_flush_tree_reaches_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    flushed: list[Path] = []
    monkeypatch.setattr(atomic, "flush", flushed.append)
    flush_tree(tmp_path)
    assert set(flushed) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"}
    assert flushed[-1] == tmp_path
    monkeypatch.undo()
    flush_tree(tmp_path)  # files and folders can both be flushed
    with pytest.raises(FileNotFoundError, match="absent"):
        atomic.flush(tmp_path / "absent")


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [1.5, None]}) == digest_json({"b": [1.5, None], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
    assert digest_json({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()


def test_a_tree_goes_though_a_thread_still_writes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "aside"
    folder.mkdir()
    remove, calls = shutil.rmtree, []

    def remove_and_write_again(path: Path, **arguments: bool) -> None:
        remove(path, **arguments)
        calls.append(path)
        if len(calls) < 4:  # the thread is not done yet
            (folder / "late").mkdir(parents=True)

    monkeypatch.setattr(shutil, "rmtree", remove_and_write_again)
    atomic.remove_tree(folder)
    assert len(calls) >= 4
    assert not folder.exists()


def test_a_folder_is_made_though_another_goes_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = Path.mkdir, count()

    def mkdir(self: Path, *mode: int, **arguments: bool) -> None:
        if next(tries) < 3:  # as if it had been there when it was made, and gone when it was looked at
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        real(self, *mode, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        atomic.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        atomic.make_folder(tmp_path / "file")
