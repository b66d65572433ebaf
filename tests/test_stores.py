"""Every store says the same of the same cache, and none shows half of what is put into it."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3
from toy import add_recording, left_aside, toy_spec

from avfuse import atomic, registry
from avfuse.cache import RECORDINGS, FeatureCache, open_store
from avfuse.cache_options import CacheExportOptions
from avfuse.cached import group_of
from avfuse.hdf5 import export_cache
from avfuse.ledger import FAILURES
from avfuse.schema import Failure, UsageError
from avfuse.sealed import read_attributes, read_sealed, seal
from avfuse.spec import folder_name
from avfuse.stores import METADATA, Store, quote
from avfuse.stores.directory import DirectoryStore
from avfuse.stores.hdf5 import HDF5Store

NAMES = ("plain", "a/b %c [x]~ü", "y" * 300)
WRITABLE = ("directory", "s3")
MISSING = (OSError, ValueError, LookupError)
every_writable_store = pytest.mark.parametrize("kind", WRITABLE)


def fill(home: Path | str, compress: str = "none") -> FeatureCache:
    """Make a cache with recordings of any name and a failure."""
    cache = FeatureCache.create(home, toy_spec(), {"made": "for a test"}, compress)
    for number, name in enumerate(NAMES):
        add_recording(cache, name, "train", 5 + number, seed=number)
    cache.ledger.record(Failure("broken/one", "unreadable", "because"), None)
    return cache


@pytest.fixture
def home(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> Path | str:
    """Return a place for caches of a kind."""
    return f"{request.getfixturevalue('bucket')}/home" if kind == "s3" else tmp_path / "home"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Return the cache in a folder, to be read only."""
    return fill(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module", params=registry.STORES)
def store(request: pytest.FixtureRequest, expected: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a store of every kind that holds the same, to be read only."""
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "directory":
            yield open_store(expected.path)
        elif request.param == "hdf5":
            export_cache(CacheExportOptions(home / "cache.h5", expected.path))
            yield open_store(home / "cache.h5")
        else:
            s3.use(request.getfixturevalue("s3_servers"), patch)
            patch.setattr(tempfile, "tempdir", str(home))
            yield fill(f"{s3.make_bucket()}/home").store


def test_every_store_says_the_same_of_the_same_cache(store: Store, expected: FeatureCache) -> None:
    is_of_files = not isinstance(store, HDF5Store)
    assert store.is_writable == is_of_files
    parent = str(store.location).rpartition("/")[0]
    assert type(store).find(parent) == [store.location]
    assert store.members("") == [FAILURES, RECORDINGS]
    for container in (RECORDINGS, FAILURES):
        groups = store.groups(container)
        assert groups == expected.store.groups(container) != []
        assert store.members(container) == [group.partition("/")[2] for group in groups]
        assert store.metadata_below(container) == {group: expected.store.metadata(group) for group in groups}
        assert store.survey(container) == {group: (store.metadata(group), store.files(group)) for group in groups}
    for group in ("", RECORDINGS, FAILURES, *expected.store.groups(RECORDINGS)):
        content = expected.store.metadata(group)
        assert store.metadata(group) == content is not None
        assert store.read(f"{group}/{METADATA}".lstrip("/")) == content
        assert store.files(group) == (expected.store.files(group) if is_of_files else None)
        assert store.find_contradictions(group) == []
    cache = FeatureCache.open(store.location)
    assert (cache.spec, cache.provenance) == (expected.spec, expected.provenance)
    assert cache.names() == sorted(NAMES)
    assert cache.ledger.failures() == expected.ledger.failures() != []
    assert cache.digest(("train",)) == expected.digest(("train",))
    assert store.count_bytes() > expected.recording(NAMES[0]).video.num_bytes
    assert store.changed_s() == pytest.approx((Path(expected.path) / METADATA).stat().st_mtime, abs=600)


def test_every_store_holds_the_same_values(store: Store, expected: FeatureCache) -> None:
    for recording in FeatureCache.open(store.location).recordings():
        folder = expected.recording(recording.name)
        for name in folder.arrays.keys() - {"video"}:
            np.testing.assert_array_equal(recording.array(name), folder.array(name), strict=True)
        video = recording.video
        assert (video.shape, video.dtype) == (folder.video.shape, folder.video.dtype)
        np.testing.assert_array_equal(np.concatenate(list(video.chunks())), np.concatenate(list(folder.video.chunks())))
        recording.check(0)
        assert video.is_mapped == isinstance(store.location, Path)


def test_what_is_not_there(store: Store) -> None:
    nowhere = group_of("nobody")
    assert store.metadata(nowhere) is None
    assert store.groups("nothing") == store.members("nothing") == []
    assert store.metadata_below("nothing") == store.survey("nothing") == {}
    with pytest.raises(OSError, match=r"not in|No such file"):
        store.read(f"{nowhere}/{METADATA}")
    for read in (store.array, store.clips):
        with pytest.raises(MISSING):
            read(f"{nowhere}/video")


@every_writable_store
@pytest.mark.parametrize("compress", ["zstd", "pcodec"])
def test_compressed_maps_have_the_same_values(
    kind: str, home: Path | str, expected: FeatureCache, compress: str
) -> None:
    if compress == "pcodec":
        pytest.importorskip("pcodec", reason="maps are compressed by that package")
    cache = fill(home, compress)
    assert cache.digest(("train",)) == expected.digest(("train",))
    for recording in cache.recordings():
        assert not recording.video.is_mapped
        recording.check(0)


def write_group(store: Store, number: int) -> Path:
    """Write a group aside whose files tell a number."""
    aside = store.aside()
    (aside / "array" / "c").mkdir(parents=True)
    (aside / METADATA).write_bytes(seal({"number": number}))
    (aside / "array" / METADATA).write_bytes(b"{}")
    (aside / "array" / "c" / "0").write_bytes(b"%d" % number)
    return aside


def number_of(store: Store, group: str) -> int:
    """Return what the metadata of a group tell; its files tell the same."""
    attributes = read_attributes(store.metadata(group))
    assert attributes is not None
    assert store.read(f"{group}/array/c/0") == b"%d" % attributes["number"]
    return int(attributes["number"])


@every_writable_store
def test_a_group_is_put_replaced_and_removed_whole(kind: str, home: Path | str) -> None:
    store, group = FeatureCache.create(home, toy_spec(), {}).store, group_of("new")
    aside = write_group(store, 1)
    assert store.metadata(group) is None
    assert store.put(aside, group)
    assert not aside.exists()
    assert number_of(store, group) == 1
    second = write_group(store, 2)
    assert not store.put(second, group)  # what is there stays
    assert number_of(store, group) == 1
    assert store.files(group) == {METADATA: len(seal({"number": 1})), f"array/{METADATA}": 2, "array/c/0": 1}
    store.remove(group)
    assert (store.metadata(group), store.files(group), store.groups(RECORDINGS)) == (None, {}, [])
    store.remove(group)  # nothing more to do
    assert store.replace(second, group)
    assert number_of(store, group) == 2
    longer = write_group(store, 3)
    (longer / "array" / "c" / "1").write_bytes(b"3")
    assert store.replace(longer, group)
    assert not longer.exists()
    assert store.replace(write_group(store, 2), group)
    assert number_of(store, group) == 2
    assert store.files(group) == {METADATA: len(seal({"number": 2})), f"array/{METADATA}": 2, "array/c/0": 1}
    store.write_metadata(group, seal({"number": 2, "more": True}))
    assert store.metadata(group) == seal({"number": 2, "more": True})
    assert store.prepare() == []
    assert store.groups(RECORDINGS) == [group]
    beside = list(store.aside().parent.iterdir())
    assert [path.read_bytes() for path in beside] == [b""] * (kind == "directory")  # the note of who is at work


@every_writable_store
def test_what_is_damaged_is_set_aside(kind: str, home: Path | str) -> None:
    cache = fill(home)
    store, group, beside = cache.store, group_of(NAMES[1]), type(cache.store)
    files, content = store.files(group), store.read(f"{group}/audio/c/0/0")
    assert files is not None
    place = store.set_aside(f"{group}/audio/c/0/0")
    assert store.files(group) == {path: length for path, length in files.items() if path != "audio/c/0/0"}
    parent, _, name = place.rpartition("/")
    assert beside(parent).read(name) == content
    with pytest.raises(UsageError, match="is damaged; see what is wrong with: avfuse cache verify"):
        cache.recordings()
    assert (
        f"avfuse cache verify {store.location}; set it aside with: avfuse cache repair {store.location}" in store.remedy
    )
    place = store.set_aside(group)
    assert folder_name(NAMES[1]) in place
    assert beside(place).read("video/c/0/0/0/0") != b""
    assert [item.name for item in cache.recordings()] == sorted({*NAMES} - {NAMES[1]})


@every_writable_store
def test_a_group_that_lost_its_metadata_is_still_there(kind: str, home: Path | str) -> None:
    cache = fill(home)
    group = group_of(NAMES[0])
    cache.store.set_aside(f"{group}/{METADATA}")
    assert cache.store.metadata(group) is None
    assert group in cache.store.groups(RECORDINGS)
    with pytest.raises(UsageError, match="plain is damaged"):
        cache.recordings()


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.prepare(),
        lambda store: store.aside(),
        lambda store: store.put(Path(), "recordings/a"),
        lambda store: store.write_metadata("recordings/a", b""),
        lambda store: store.remove("recordings/a"),
        lambda store: store.set_aside("recordings/a"),
    ],
)
def test_what_can_only_be_read_says_so(tmp_path: Path, act: Callable[[Store], Any]) -> None:
    with pytest.raises(UsageError, match="can be read, not written to; write to a folder, and export that"):
        act(open_store(tmp_path / "cache.h5"))


def test_a_store_of_no_known_kind() -> None:
    with pytest.raises(
        UsageError, match=r"^gs://bucket/features: there are no stores at gs://; give a path, or s3://\.\.\.$"
    ):
        open_store("gs://bucket/features")
    with pytest.raises(UsageError, match="there are no stores at hdf5://"):  # a kind, but of no address
        open_store("hdf5://bucket/features")


def test_places_are_quoted_for_a_shell() -> None:
    places = {"a/b": "a/b", "a b": "'a b'", "-dash": "./-dash", "-a b": "'./-a b'", "s3://b/x y": "'s3://b/x y'"}
    assert {place: quote(place) for place in places} == places
    assert DirectoryStore(Path("-x")).quoted == "./-x"


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.h5").touch()
    assert DirectoryStore.find(tmp_path) == [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    assert HDF5Store.find(tmp_path) == [tmp_path / "a.h5"]
    assert DirectoryStore.find(tmp_path / "nothing") == DirectoryStore.find(tmp_path / "a.h5") == []

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for kind in (DirectoryStore, HDF5Store):
        with pytest.raises(PermissionError):
            kind.find(tmp_path)


def test_what_cannot_be_put_is_named_by_where_it_belongs(tmp_path: Path) -> None:
    store, group = FeatureCache.create(tmp_path / "home", toy_spec(), {}).store, group_of("new")
    shutil.rmtree(Path(store.location) / RECORDINGS)
    for put in (store.put, store.replace):
        with pytest.raises(FileNotFoundError) as caught:
            put(write_group(store, 1), group)
        assert caught.value.filename == str(Path(store.location) / group)
    FeatureCache.create(tmp_path / "home", toy_spec(), {})  # makes it again
    assert store.put(write_group(store, 1), group)
    assert read_sealed(store.metadata(RECORDINGS)) == {}


def test_what_somebody_else_removes_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, group = FeatureCache.create(tmp_path / "home", toy_spec(), {}).store, group_of("new")
    assert store.put(write_group(store, 1), group)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        shutil.rmtree(Path(store.location) / group, ignore_errors=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    store.remove(group)
    assert store.metadata(group) is None
    assert left_aside(store.location) == []


def test_a_disk_that_is_full_is_not_a_place_that_was_given_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number), "there")

    monkeypatch.setattr(atomic, "announce", full)
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left on device"):
        FeatureCache.create(tmp_path / "home", toy_spec(), {})
    number = errno.EROFS
    with pytest.raises(UsageError, match=r"cannot be written to .*; give a folder that can be"):
        FeatureCache.create(tmp_path / "home", toy_spec(), {})
