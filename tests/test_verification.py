"""Verification finds every byte that is not as it was written, says where, and goes on to the next."""

import errno
import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numcodecs
import pytest
from toy import add_recording, toy_spec

from avfuse import atomic, verification
from avfuse.cache import FeatureCache, open_store
from avfuse.cache_options import CacheRepairOptions
from avfuse.cached import CachedRecording
from avfuse.schema import Failure, UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.stores import Store
from avfuse.stores.directory import DirectoryStore
from avfuse.upkeep import repair
from avfuse.verification import Damage, Verification, verify_store

SCRIPT = Path(__file__).parents[1] / "tools" / "damage_cache.py"


def make_store(home: Path) -> Path:
    """Make a store of two recordings and a failure; return where it lies."""
    cache = FeatureCache.create(home, toy_spec(), {"weights": "none"})
    for number, name in enumerate(("a", "b/c")):
        add_recording(cache, name, "train", 9, seed=number)
    cache.ledger.record(Failure("d/e", "unreadable", "it was not to be read"), None)
    return Path(cache.path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("original"))


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def verified(path: Path, **arguments: Any) -> Verification:
    return verify_store(DirectoryStore(path), **arguments)


def told(path: Path) -> list[tuple[str, str, str, str]]:
    """Return what is wrong: where, of which recording, in which array, in words."""
    return [(item.path, item.recording, item.array, item.message) for item in verified(path).damages]


def test_nothing_is_wrong_with_what_was_just_written(path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = verified(path, on_progress=lambda done, total: steps.append((done, total)), num_workers=1)
    inside = [file for top in ("recordings", "failures") for file in path.glob(f"{top}/*/**/*") if file.is_file()]
    assert found.damages == ()
    assert (found.num_recordings, found.num_failures, found.num_damaged) == (2, 1, 0)
    assert (found.num_files, found.num_bytes) == (len(inside), sum(file.stat().st_size for file in inside))
    assert found.fingerprint == FeatureCache.open(path).spec.fingerprint
    assert steps == [(1, 3), (2, 3), (3, 3)]


def flip(file: Path, place: int = -9) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


BYTES = 9 * 32 * 2 * 2 * 2 + 4  # of the maps of nine clips, and their checksum
CASES: dict[str, tuple[Callable[[Path], Any], list[tuple[str, str, str, str]]]] = {
    "a changed value": (
        lambda path: flip(path / "recordings/a/video/c/0/0/0/0"),
        [("recordings/a/video/c/0/0/0/0", "a", "video", "holds other bytes than were written")],
    ),
    "a cut file": (
        lambda path: (path / "recordings/a/video/c/0/0/0/0").write_bytes(b"123"),
        [("recordings/a/video/c/0/0/0/0", "a", "video", f"has 3 bytes, {BYTES:,} were written")],
    ),
    "a longer file": (
        lambda path: append(path / "recordings/b%2Fc/audio/c/0/0"),
        [("recordings/b%2Fc/audio/c/0/0", "b/c", "audio", "has 1,157 bytes, 1,156 were written")],
    ),
    "a missing chunk": (
        lambda path: (path / "recordings/a/target/c/0/0").unlink(),
        [("recordings/a/target/c/0/0", "a", "target", "is missing")],
    ),
    "a missing array": (
        lambda path: shutil.rmtree(path / "recordings/a/target"),
        [(f"recordings/a/target/{file}", "a", "target", "is missing") for file in ("c/0/0", "zarr.json")],
    ),
    "a file that nobody wrote": (
        lambda path: (path / "recordings/a/video/c/0/0/0/1").touch(),
        [("recordings/a/video/c/0/0/0/1", "a", "", "does not belong here")],
    ),
    "a link into nowhere": (
        lambda path: (path / "recordings/a/link").symlink_to("/nowhere"),
        [("recordings/a/link", "a", "", "does not belong here")],
    ),
    "a link to a folder": (
        lambda path: (path / "recordings/a/audio/link").symlink_to(path / "failures"),
        [("recordings/a/audio/link", "a", "", "does not belong here")],
    ),
    "a file beside the groups": (
        lambda path: (path / "recordings/notes.txt").touch(),
        [("recordings/notes.txt", "", "", "does not belong here")],
    ),
    "files beside all": (
        lambda path: [(path / name).touch() for name in ("x", ".DS_Store")],
        [(name, "", "", "does not belong here") for name in (".DS_Store", "x")],
    ),
    "altered metadata of a recording": (
        lambda path: flip(path / "recordings/b%2Fc/zarr.json", -60),
        [("recordings/b%2Fc/zarr.json", "b/c", "", "holds other bytes than were written")],
    ),
    "no metadata of a recording": (
        lambda path: (path / "recordings/b%2Fc/zarr.json").unlink(),
        [("recordings/b%2Fc/zarr.json", "b%2Fc", "", "is missing")],
    ),
    "a folder that is no recording": (
        lambda path: (path / "recordings/empty").mkdir(),
        [("recordings/empty/zarr.json", "empty", "", "is missing")],
    ),
    "a copy under another name": (
        lambda path: shutil.copytree(path / "recordings/a", path / "recordings/z"),
        [("recordings/z", "a", "", "holds recording a, whose place is recordings/a, which is there too")],
    ),
    "another name": (
        lambda path: (path / "recordings/a").rename(path / "recordings/z"),
        [("recordings/z", "a", "", "holds recording a, whose place is recordings/a")],
    ),
    "a failure in place of a recording": (
        lambda path: shutil.copy(path / "failures/d%2Fe/zarr.json", path / "recordings/a/zarr.json"),
        [("recordings/a/zarr.json", "d/e", "", "holds other bytes than were written")],
    ),
    "an altered failure": (
        lambda path: flip(path / "failures/d%2Fe/zarr.json", 40),
        [("failures/d%2Fe/zarr.json", "d/e", "", "holds other bytes than were written")],
    ),
    "a failure under another name": (
        lambda path: (path / "failures/d%2Fe").rename(path / "failures/f"),
        [("failures/f", "d/e", "", "holds the failure of d/e, whose place is failures/d%2Fe")],
    ),
    "a file with a failure": (
        lambda path: (path / "failures/d%2Fe/x").touch(),
        [("failures/d%2Fe/x", "d/e", "", "does not belong here")],
    ),
    "no metadata of a container": (
        lambda path: (path / "failures/zarr.json").unlink(),
        [("failures/zarr.json", "", "", "is missing")],
    ),
    "other metadata of a container": (
        lambda path: (path / "recordings/zarr.json").write_bytes(seal({"a": 1})),
        [("recordings/zarr.json", "", "", "holds other bytes than were written")],
    ),
    "an altered root": (
        lambda path: flip(path / "zarr.json"),
        [("zarr.json", "", "", "holds other bytes than were written")],
    ),
    "no root": (lambda path: (path / "zarr.json").unlink(), [("zarr.json", "", "", "is missing")]),
    "a root without settings": (
        lambda path: (path / "zarr.json").write_bytes(seal({})),
        [("zarr.json", "", "", "does not hold the settings of a feature store")],
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_what_is_wrong_is_said(path: Path, case: str) -> None:
    damage, expected = CASES[case]
    damage(path)
    assert told(path) == expected
    damaged = {where.split("/")[1] for where, *_ in expected if where.count("/") > 1 and where[:2] == "re"}
    assert verified(path).num_damaged == len(damaged | {where for where, *_ in expected if where == "recordings/z"})


def test_damage_here_keeps_nothing_there_from_being_looked_at(path: Path) -> None:
    names = ["an altered root", "no metadata of a container", "a changed value", "a longer file", "an altered failure"]
    for name in names:
        CASES[name][0](path)
    assert sorted(told(path)) == sorted(line for name in names for line in CASES[name][1])


def test_a_root_of_other_settings_is_found_by_its_fingerprint(path: Path) -> None:
    attributes = read_sealed((path / "zarr.json").read_bytes())
    assert attributes is not None
    was = attributes["fingerprint"]
    attributes["spec"]["precision"] = "bf16"
    (path / "zarr.json").write_bytes(seal(attributes))
    now = toy_spec(precision="bf16").fingerprint
    strange = f"was made with other settings ({was}) and is not of this store"
    assert told(path) == [
        ("zarr.json", "", "", f"has fingerprint {was}, not {now}"),
        ("recordings/a", "a", "", strange),
        ("recordings/b%2Fc", "b/c", "", strange),
    ]


@pytest.mark.parametrize(("version", "is_sealed"), [(2, False), (2, True), (99, True)])
def test_another_version_is_not_judged(path: Path, version: int, is_sealed: bool) -> None:
    attributes = read_sealed((path / "zarr.json").read_bytes())
    assert attributes is not None
    attributes["spec"]["format_version"] = version
    content = seal(attributes)
    if not is_sealed:
        content = content.replace(b'"seal"', b'"none"')
    (path / "zarr.json").write_bytes(content)
    with pytest.raises(
        UsageError, match=rf"has format version {version}; this avfuse can check 3: use the avfuse that"
    ):
        verified(path)


def test_a_version_that_was_altered_is_damage(path: Path) -> None:
    root = path / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"format_version": 3', b'"format_version": 2'))
    assert told(path) == CASES["an altered root"][1]


def test_only_some_groups_are_looked_at_where_that_is_asked_for(path: Path) -> None:
    for name in ("a changed value", "a longer file", "a file beside the groups"):
        CASES[name][0](path)
    found = verified(path, only=["recordings/a"])
    assert [item.path for item in found.damages] == ["recordings/notes.txt", "recordings/a/video/c/0/0/0/0"]
    assert (found.num_recordings, found.num_failures) == (1, 0)


def test_a_recording_that_is_replaced_meanwhile_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, (other,) = FeatureCache.open(path), (path.parent / "other",)
    (other / "features").mkdir(parents=True)
    again = FeatureCache.create(other, toy_spec(), {})
    add_recording(again, "a", "train", 12, seed=7)
    compare = CachedRecording.check
    replaced: list[str] = []

    def replace_first(item: CachedRecording, number: int) -> None:
        if item.name == "a" and not replaced:
            replaced.append(item.name)
            cache.remove("a")
            shutil.copytree(Path(again.path) / "recordings/a", path / "recordings/a")
        compare(item, number)

    monkeypatch.setattr(CachedRecording, "check", replace_first)
    assert verified(path).damages == ()
    assert replaced == ["a"]
    monkeypatch.setattr(CachedRecording, "check", lambda item, number: (cache.remove(item.name), compare(item, number)))
    assert verified(path).damages == ()  # they were taken out of the store while they were looked at


def test_a_server_that_does_not_answer_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: Store, path: str) -> bytes:
        raise ConnectionError(111, "it does not answer", path)

    monkeypatch.setattr(DirectoryStore, "read", refuse)
    with pytest.raises(ConnectionError, match="it does not answer"):
        verified(path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize(
    "at", ["zarr.json", "recordings/a/zarr.json", "failures/zarr.json", "recordings/a/video/c/0/0/0/0"]
)
def test_an_error_of_reading_that_may_pass_is_no_damage(
    path: Path, at: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = atomic.describe_files(path), Path.read_bytes

    def fail(file: Path) -> bytes:
        if file == path / at:
            raise OSError(number, os.strerror(number), str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        verified(path)
    with pytest.raises(OSError, match=os.strerror(number)):
        repair(CacheRepairOptions(store=path))
    monkeypatch.undo()
    assert (atomic.describe_files(path), path.with_suffix(".damaged").exists()) == (before, False)


def test_a_folder_that_cannot_be_listed_now_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def fail(folder: Any) -> Any:
        if Path(folder) == path / "recordings/a/video":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError, match="recordings/a/video"):
        verified(path)


def test_values_that_cannot_be_read_now_are_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(store: Store, path: str) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(DirectoryStore, "array", fail)
        verified(path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(DirectoryStore, "clips", fail)
        verified(path)
    assert verified(path).damages == ()


def test_a_codec_that_is_not_installed_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pcodec", reason="the package pcodec is an extra")
    cache = FeatureCache.create(tmp_path, toy_spec(), {}, "pcodec")
    add_recording(cache, "a", "train", 9, seed=0)
    assert verified(Path(cache.path)).damages == ()
    monkeypatch.delitem(numcodecs.registry.codec_registry, "pcodec")
    monkeypatch.delitem(numcodecs.registry.entries, "pcodec", raising=False)
    message = "recordings/a/video is compressed by pcodec, which is not installed; install it with: pip install"
    with pytest.raises(UsageError, match=message):
        verified(Path(cache.path))
    with pytest.raises(UsageError, match=message):
        cache.recordings()[0].check(0)


@pytest.fixture
def tool() -> Iterator[ModuleType]:
    """Load the script that damages caches as a module."""
    spec = importlib.util.spec_from_file_location("damage_cache", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["damage_cache"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["damage_cache"]


@pytest.mark.parametrize("toy", range(3))
def test_random_damage_is_found_and_never_read_as_values(tool: ModuleType, tmp_path: Path, toy: int) -> None:
    store = tool.make_toy(tmp_path, **list(tool.TOYS.values())[toy])
    said: list[str] = []
    counts = tool.run(store, 40, random.Random(toy), said.append)
    assert said == []
    assert sum(counts.values()) == sum(count for (_, how), count in counts.items() if how.startswith("found")) == 40
    assert {kind for kind, _ in counts} == set(tool.KINDS)


def test_random_damage_of_a_file_in_hdf5_is_never_read_as_values(tool: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    store = tool.export_toy(tool.make_toy(tmp_path), tmp_path / "toy.h5")
    counts = tool.run(store, 40, random.Random(0), said.append)
    assert said == []
    unnoticed = {how for how, outcome in counts if not outcome.startswith("found")}
    assert unnoticed <= {"changed"}  # in bytes that hold nothing, so that what is read is what was written
    assert counts["changed", "found, refused"] > 0


def test_the_script_notices_what_is_missed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What damages a cache is no test if it cannot fail: a reader that trusts what it finds is caught."""
    store = tool.make_toy(tmp_path)
    monkeypatch.setattr(CachedRecording, "check", lambda item, number: None)
    monkeypatch.setattr(CachedRecording, "is_whole", True)
    monkeypatch.setattr(tool, "verify_store", lambda store, *_, **__: Verification(store, "", 0, 0, 0, 0, 0, (), 0.0))
    said: list[str] = []
    counts = tool.run(store, 60, random.Random(0), said.append)
    assert counts.total() == 60
    assert sum(count for (_, how), count in counts.items() if how == "MISSED") == 60
    assert any("another view 0 of recordings" in line for line in said)


def test_what_is_wrong_only_while_a_writer_is_at_it_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced by one of the same content, a recording shows half of it, though the metadata stay the same."""
    store = open_store(make_store(tmp_path))
    real, looks = verification._look_at_recording, list[str]()

    def look(store: Store, group: str, *known: Any) -> verification._Look:
        looks.append(group)
        if looks.count(group) in damaged:
            return verification._Look(damages=[Damage(group, message="is missing")])
        return real(store, group, *known)

    monkeypatch.setattr(verification, "_look_at_recording", look)
    monkeypatch.setattr(verification, "_PAUSE_S", 0.0)
    damaged = {1}
    assert verify_store(store).damages == ()
    busy = iter([True, True, False] * 10)
    monkeypatch.setattr(type(store), "is_being_written", lambda *_: next(busy))
    damaged, looks[:] = {1, 2, 3}, []
    assert verification.look_at_group(store, "recordings/a", None).damages == []
    assert looks == ["recordings/a"] * 4
    damaged, looks[:] = {1, 2, 3, 4}, []
    assert len(verification.look_at_group(store, "recordings/a", None).damages) == 1


def test_what_is_replaced_again_and_again_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(make_store(tmp_path))
    monkeypatch.setattr(
        verification, "_look_at_recording", lambda *_: verification._Look(damages=[Damage("recordings/a")])
    )
    looks = list[None]()
    monkeypatch.setattr(type(store), "metadata", lambda *_: str(len(looks)).encode())
    monkeypatch.setattr(type(store), "is_being_written", lambda *_: looks.append(None))  # between one look and the next
    assert verification.look_at_group(store, "recordings/a", None).damages == []
    assert len(looks) == verification._TRIES - 1
    monkeypatch.setattr(type(store), "is_being_written", lambda *_: True)  # by a note that nobody takes away
    monkeypatch.setattr(verification, "_PAUSE_S", 0.0)
    assert len(verification.look_at_group(store, "recordings/a", None).damages) == 1
