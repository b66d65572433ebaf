"""Left-overs: what nobody needs any more is found and removed, and nothing else, whatever links lead to."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from toy import add_recording, toy_spec

from avfuse import leftovers
from avfuse.atomic import new_aside_name
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheCollectOptions
from avfuse.leftovers import Leftovers, find_leftovers, remove_leftovers
from avfuse.schema import UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.upkeep import Removal
from avfuse.verification import verify_store

DEAD = f"{socket.gethostname()}-999999999-0123abcd"  # larger than any process number
ELSEWHERE = "another-machine-1-0123abcd"


def make_store(home: Path, **changes: object) -> Path:
    cache = FeatureCache.create(home, toy_spec(**changes), {})
    add_recording(cache, "a", "train", 9, seed=0)
    return Path(cache.path)


def found_in(home: Path, superseded: bool = False) -> Leftovers:
    return find_leftovers(CacheCollectOptions(place=home, superseded=superseded))


def kinds(found: Leftovers) -> dict[str, str]:
    return {Path(item.path).name: item.kind for item in found.found}


def write_version(store: Path, version: int, is_sealed: bool) -> None:
    attributes = read_sealed((store / "zarr.json").read_bytes())
    assert attributes is not None
    attributes["spec"]["format_version"] = version
    plain = {"attributes": attributes, "node_type": "group", "zarr_format": 3}
    (store / "zarr.json").write_bytes(seal(attributes) if is_sealed else json.dumps(plain).encode())


def test_nothing_is_left_over_in_a_store_in_use(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    found = found_in(tmp_path)
    assert (found.place, found.found, found.kept, found.num_bytes) == (str(tmp_path / "features"), (), (), 0)
    assert remove_leftovers(found.found) == 0
    assert verify_store(FeatureCache.open(store).store).damages == ()


def test_what_dead_writers_left_goes_and_what_living_ones_are_at_stays(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    beside, alive = store.with_suffix(".tmp"), new_aside_name()
    for name in (DEAD, alive, ELSEWHERE):
        (beside / name / "video").mkdir(parents=True)
        (beside / name / "video" / "0").write_bytes(b"12345")
    (beside.parent / f".cache.h5.{DEAD}").write_bytes(b"123")
    (beside.parent / f".cache.h5.{alive}").write_bytes(b"123")
    found = found_in(tmp_path)
    assert kinds(found) == {DEAD: "unfinished", f".cache.h5.{DEAD}": "unfinished"}
    assert sorted(item.num_bytes for item in found.found) == [3, 5]
    assert {Path(item.path).name: item.reason for item in found.kept} == dict.fromkeys(
        (alive, ELSEWHERE), "a writer is at it, or is of another machine"
    )
    assert remove_leftovers(found.found) == 8
    assert {path.name for path in beside.iterdir()} == {alive, ELSEWHERE}
    assert found_in(tmp_path).found == ()


def test_what_is_not_of_avfuse_stays(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    gone = tmp_path / "features" / "gone-0123456789ab.damaged"
    damaged, other = store.with_suffix(".damaged"), tmp_path / "features" / "photos.damaged"
    for folder in (gone, damaged, other):
        for name in (f"a-{ELSEWHERE}", "mine", "a-1-0123", ELSEWHERE.upper()):
            (folder / name).mkdir(parents=True)
    found = found_in(tmp_path)
    assert [item.path for item in found.found] == [str(folder / f"a-{ELSEWHERE}") for folder in (gone, damaged)]
    remove_leftovers(found.found)
    assert {len(list(folder.iterdir())) for folder in (gone, damaged)} == {3}
    assert len(list(other.iterdir())) == 4


def test_what_was_set_aside_goes_with_its_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    size = sum(file.stat().st_size for file in (store / "recordings/a").rglob("*") if file.is_file())
    opened = FeatureCache.open(store).store
    removal = Removal("recordings/a", "a", opened.set_aside("recordings/a"))
    found = found_in(tmp_path)
    assert [(item.path, item.kind, item.num_bytes) for item in found.found] == [(removal.place, "damaged", size)]
    assert remove_leftovers(found.found) == size
    assert [path.name for path in (tmp_path / "features").iterdir()] == [store.name]


def test_stores_of_an_older_format_go_and_newer_or_damaged_ones_stay(tmp_path: Path) -> None:
    stores = {name: make_store(tmp_path, dataset=name) for name in ("two", "sealed", "future", "damaged", "kept")}
    write_version(stores["two"], 2, is_sealed=False)
    write_version(stores["sealed"], 1, is_sealed=True)
    write_version(stores["future"], 99, is_sealed=True)
    root = stores["damaged"] / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"format_version": 3', b'"format_version": 2'))
    (tmp_path / "features" / "mine.zarr").mkdir()
    (tmp_path / "features" / "mine.zarr" / "zarr.json").write_text('{"attributes": {}}')
    found = found_in(tmp_path, superseded=True)
    assert kinds(found) == {stores["two"].name: "old format", stores["sealed"].name: "old format"}
    assert found.found[1].reason == "format version 2; this avfuse reads 3"
    remove_leftovers(found.found)
    left = {path.name for path in (tmp_path / "features").iterdir() if path.suffix == ".zarr"}
    assert left == {"mine.zarr", *(stores[name].name for name in ("future", "damaged", "kept"))}
    assert not stores["two"].with_suffix(".tmp").exists()


def test_superseded_stores_go_only_where_that_is_asked_for(tmp_path: Path) -> None:
    old, new = make_store(tmp_path), make_store(tmp_path, precision="bf16")
    other = make_store(tmp_path, dataset="other")
    for place in (old, old / "recordings", old / "failures"):
        os.utime(place, (1e9, 1e9))
    reason = f"{new.name} was changed later (precision: fp32 here, bf16 there)"
    found = found_in(tmp_path)
    assert found.found == ()
    assert [(item.path, item.reason) for item in found.kept] == [(str(old), f"{reason}; remove it with --superseded")]
    found = found_in(tmp_path, superseded=True)
    assert [(item.path, item.kind, item.reason) for item in found.found] == [(str(old), "superseded", reason)]
    assert remove_leftovers(found.found) == found.num_bytes > 0
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


def test_a_store_with_a_recording_that_no_later_one_holds_is_not_superseded(tmp_path: Path) -> None:
    older, newer = (FeatureCache.create(tmp_path, toy_spec(precision=name), {}) for name in ("fp32", "bf16"))
    for name in ("a", "b"):
        add_recording(older, name, "train", 4, seed=0)
    add_recording(newer, "a", "train", 4, seed=0)
    paths = [Path(cache.path) for cache in (older, newer)]
    for place in ("", "recordings", "failures"):
        os.utime(paths[0] / place, (1e9, 1e9))
    del older
    assert kinds(found_in(tmp_path, superseded=True)) == {}
    add_recording(newer, "b", "train", 4, seed=0)
    assert kinds(found_in(tmp_path, superseded=True)) == {paths[0].name: "superseded"}


def test_what_others_were_shrunk_from_is_not_superseded_by_them(tmp_path: Path) -> None:
    def shrink(source: FeatureCache, **changes: object) -> FeatureCache:
        return FeatureCache.create(
            tmp_path, toy_spec(**changes), {"shrunk_from": {"fingerprint": source.spec.fingerprint}}
        )

    older, whole = (FeatureCache.create(tmp_path, toy_spec(precision=name), {}) for name in ("fp16", "fp32"))
    small = shrink(whole, storage={"dtype": "uint8", "maps": "whole"})
    last = shrink(small, storage={"dtype": "uint8", "maps": "pooled"})
    for age, cache in enumerate((last, small, whole, older)):
        for place in ("", "recordings", "failures"):
            os.utime(Path(cache.path) / place, (1e9 - age, 1e9 - age))
    names = [Path(cache.path).name for cache in (older, last)]
    del older, whole, small, last, cache
    found = found_in(tmp_path, superseded=True)
    assert kinds(found) == {names[0]: "superseded"}
    assert found.found[0].reason.startswith(f"{names[1]} was changed later")


def test_a_store_whose_extraction_lives_stays_between_two_recordings(tmp_path: Path) -> None:
    old = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(old, "a", "train", 9, seed=0)
    path, _ = Path(old.path), make_store(tmp_path, precision="bf16")
    for place in (path, path / "recordings", path / "failures"):
        os.utime(place, (1e9, 1e9))
    found = found_in(tmp_path, superseded=True)
    assert found.found == ()
    assert {Path(item.path).parent.name: item.reason for item in found.kept}[path.with_suffix(".tmp").name] == (
        "a writer is at it, or is of another machine"
    )
    del old
    assert kinds(found_in(tmp_path, superseded=True)) == {path.name: "superseded"}


def test_a_store_that_is_being_written_stays(tmp_path: Path) -> None:
    old, _ = make_store(tmp_path), make_store(tmp_path, precision="bf16")
    os.utime(old / "recordings", (1e9, 1e9))
    for place in (old, old / "failures"):
        os.utime(place, (1e9, 1e9))
    found = found_in(tmp_path, superseded=True)
    assert len(found.found) == 1
    (old.with_suffix(".tmp") / new_aside_name()).mkdir(parents=True)
    assert remove_leftovers(found.found) == 0  # a writer came after it was found
    assert old.exists()
    again = found_in(tmp_path, superseded=True)
    assert again.found == ()
    assert any(item.reason.endswith("; a writer may be at it") for item in again.kept)


def test_what_a_writer_has_taken_up_since_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    (store.with_suffix(".tmp") / DEAD).mkdir(parents=True)
    found = found_in(tmp_path).found
    assert len(found) == 1
    monkeypatch.setattr(leftovers.atomic, "remove_left_behind", lambda path: False)
    assert remove_leftovers(found) == 0
    assert (store.with_suffix(".tmp") / DEAD).exists()


def test_the_folder_of_stores_may_be_given_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "home")
    for folder in (store.with_suffix(".tmp") / DEAD, store.with_suffix(".damaged") / f"a-{ELSEWHERE}"):
        folder.mkdir(parents=True)
    expected = found_in(tmp_path / "home").found
    assert len(expected) == 2
    assert found_in(tmp_path / "home" / "features").found == expected
    monkeypatch.chdir(tmp_path / "home" / "features")
    assert found_in(Path()).found == expected
    moved = (tmp_path / "home" / "features").rename(tmp_path / "shared")  # stores that lie in a folder of any name
    assert kinds(found_in(moved)) == {DEAD: "unfinished", f"a-{ELSEWHERE}": "damaged"}


def test_one_store_is_looked_at_alone(tmp_path: Path) -> None:
    stores = [make_store(tmp_path, dataset=name) for name in ("one", "two")]
    new = make_store(tmp_path, dataset="one", precision="bf16")
    for place in ("", "recordings", "failures"):
        os.utime(stores[0] / place, (1e9, 1e9))
    write_version(stores[1], 2, is_sealed=False)
    for store in stores:
        (store.with_suffix(".tmp") / DEAD).mkdir(parents=True)
        (store.with_suffix(".damaged") / f"a-{ELSEWHERE}").mkdir(parents=True)
    (tmp_path / "features" / f".cache.h5.{DEAD}").touch()
    here = {DEAD: "unfinished", f"a-{ELSEWHERE}": "damaged"}
    found = found_in(stores[0])
    assert (found.place, kinds(found)) == (str(stores[0]), here)
    assert {Path(item.path).name: item.kind for item in found.kept} == {stores[0].name: "superseded"}
    assert all(stores[0].stem in item.path for item in found.found)
    superseded = found_in(stores[0], superseded=True)
    assert kinds(superseded) == {**here, stores[0].name: "superseded"}
    assert superseded.found[-1].reason.startswith(f"{new.name} was changed later")
    assert kinds(found_in(stores[1])) == {**here, stores[1].name: "old format"}
    assert found_in(new, superseded=True).found == ()
    link = tmp_path / "link.zarr"
    link.symlink_to(stores[1])
    assert kinds(found_in(link)) == {**here, stores[1].name: "old format"}
    remove_leftovers(found_in(stores[1]).found)
    assert [path.name for path in (tmp_path / "features").iterdir() if path.stem == stores[1].stem] == []
    assert kinds(found_in(stores[0])) == here
    shutil.rmtree(stores[0])  # what lies beside it is still known by its name
    assert kinds(found_in(stores[0])) == here


def test_what_goes_while_it_is_looked_at_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, alive = make_store(tmp_path), new_aside_name()
    beside = store.with_suffix(".tmp")
    (beside / alive).mkdir(parents=True)

    def vanish(path: Path) -> bool:
        shutil.rmtree(beside)
        return is_left_behind(path)

    is_left_behind = leftovers.atomic.is_left_behind
    monkeypatch.setattr(leftovers.atomic, "is_left_behind", vanish)
    found = found_in(tmp_path)
    assert (found.found, [(item.path, item.num_bytes) for item in found.kept]) == ((), [(str(beside / alive), 0)])
    beside.mkdir()
    monkeypatch.setattr(leftovers, "_is_of_store", lambda path: path.rmdir() or True)
    assert found_in(tmp_path).kept == ()


def test_no_link_is_followed(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    store = make_store(home)
    elsewhere = make_store(outside, dataset="elsewhere")
    write_version(elsewhere, 2, is_sealed=False)
    (home / "features" / elsewhere.name).symlink_to(elsewhere)
    (outside / "treasure").mkdir()
    (outside / "treasure" / "file").write_bytes(b"1234567")
    (home / "features" / "linked.damaged").symlink_to(outside / "treasure")
    damaged, (one, other) = store.with_suffix(".damaged"), (f"{name}-{ELSEWHERE}" for name in "xy")
    (damaged / one).mkdir(parents=True)
    (damaged / one / "link").symlink_to(outside / "treasure")
    (damaged / other).symlink_to(outside / "treasure")
    found = found_in(home)
    assert {Path(item.path).name: item.num_bytes for item in found.found} == {one: 0, other: 0}
    remove_leftovers(found.found)
    assert not damaged.exists()
    assert (outside / "treasure" / "file").read_bytes() == b"1234567"
    assert elsewhere.is_dir()
    # The folder of features itself may be a link: it is what the user calls the cache.
    shutil.move(home / "features", outside / "moved")
    (home / "features").symlink_to(outside / "moved")
    (store.with_suffix(".tmp") / DEAD).mkdir(parents=True)
    assert kinds(found_in(home)) == {DEAD: "unfinished"}


def test_places_without_features_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "gone-0123456789ab.zarr", tmp_path / "file"):
        with pytest.raises(
            UsageError, match=rf"^{place} holds no features; give the folder that holds features/, or a store there$"
        ):
            found_in(place)
    with pytest.raises(UsageError, match=r"s3://bucket/prefix is on a server; this removes what lies in a folder of"):
        find_leftovers(CacheCollectOptions(place="s3://bucket/prefix"))
