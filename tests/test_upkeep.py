"""Upkeep: what is damaged is set aside, so that the rest verifies and the next extraction makes just that anew."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny
from conftest import beep, write_video
from test_verification import BYTES, CASES, flip, make_store
from toy import add_recording, left_aside, toy_spec

from avfuse import atomic, registry
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions, CacheRepairOptions, CacheVerifyOptions
from avfuse.extract import ExtractSummary, extract
from avfuse.hdf5 import export_cache
from avfuse.options import ExtractOptions
from avfuse.schema import Failure, UsageError
from avfuse.stores.directory import DirectoryStore
from avfuse.upkeep import RepairSummary, repair, verify
from avfuse.verification import Verification


def checked(store: Path | str, **arguments: Any) -> Verification:
    return verify(CacheVerifyOptions(store=store, **arguments))


def mended(store: Path | str) -> RepairSummary:
    return repair(CacheRepairOptions(store=store))


def files_of(store: Path) -> dict[str, bytes]:
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def group_of_file(file: str) -> str:
    return "/".join(file.split("/")[:2])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("original"))


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.mark.parametrize("case", list(CASES))
def test_what_is_left_after_a_repair_is_as_it_was_written(path: Path, case: str) -> None:
    before = files_of(path)
    CASES[case][0](path)
    damaged, num_damages = files_of(path), len(checked(path).damages)
    summary = mended(path)
    left = checked(path).damages
    assert summary.num_damages == num_damages > 0
    assert summary.needs_root == any(item.file == "zarr.json" and not item.group for item in left)
    assert [item.path for item in left] == (["zarr.json"] if summary.needs_root else [])
    after = files_of(path)
    assert after.items() <= before.items()  # nothing was changed, something may be gone
    touched = {
        group_of_file(file) for file, content in {**before, **damaged}.items() if damaged.get(file) != before.get(file)
    }
    assert {group_of_file(file) for file in before.keys() - after.keys()} <= touched
    for removal in summary.removals:
        place = Path(removal.place)
        assert place.exists() or place.is_symlink()
        assert place.parent == path.with_suffix(".damaged")
    again = mended(path)
    assert (again.removals, again.recordings) == ((), ())


def test_a_file_that_does_not_belong_there_costs_no_features(path: Path) -> None:
    (path / "recordings/a/video/c/0/0/0/1").write_bytes(b"mine")
    (path / "recordings/a/notes.txt").touch()
    summary = mended(path)
    assert summary.recordings == ()
    assert sorted(item.path for item in summary.removals) == ["recordings/a/notes.txt", "recordings/a/video/c/0/0/0/1"]
    assert {Path(item.place).read_bytes() for item in summary.removals} == {b"mine", b""}
    assert checked(path).damages == ()


def test_a_store_in_order_is_left_alone(path: Path) -> None:
    before = files_of(path.parent)
    summary = mended(path)
    assert (summary.num_damages, summary.removals, summary.recordings, summary.needs_root) == (0, (), (), False)
    assert files_of(path.parent) == before


def test_a_recording_that_was_replaced_meanwhile_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.parent / "whole"
    shutil.copytree(path / "recordings/a", whole)
    flip(path / "recordings/a/audio/c/0/0")
    prepare = DirectoryStore.prepare

    def replace(store: DirectoryStore) -> list[str]:
        shutil.rmtree(path / "recordings/a")
        shutil.copytree(whole, path / "recordings/a")
        return prepare(store)

    monkeypatch.setattr(DirectoryStore, "prepare", replace)
    summary = mended(path)
    assert (summary.num_damages, summary.removals) == (1, ())
    assert checked(path).damages == ()


def test_a_store_that_cannot_be_written_to_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(path / "recordings/a/audio/c/0/0")

    def refuse(store: DirectoryStore) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(DirectoryStore, "prepare", refuse)
    message = r"\.zarr is damaged \(1 finding\), and nothing can be set aside there: Permission denied$"
    with pytest.raises(UsageError, match=message):
        mended(path)


def test_some_recordings_alone_are_checked(path: Path) -> None:
    flip(path / "recordings/a/audio/c/0/0")
    assert checked(path, recording=("b/c",)).damages == ()
    assert [item.recording for item in checked(path, recording=("b/c", "a")).damages] == ["a"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (("a", "b", "bb/c"), r"holds no recording b, bb/c; of its 2, the nearest by name: b/c$"),
        (("nope",), r"holds no recording nope; it holds 2: a, b/c$"),
    ],
)
def test_a_recording_that_is_not_there_is_told_from_those_that_are(path: Path, wanted: tuple[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        checked(path, recording=wanted)
    for number in range(3):
        (path / f"recordings/more-{number}").mkdir()  # one without metadata goes by the name of its folder
    with pytest.raises(UsageError, match=r"holds no recording x; it holds 5: a, b/c, more-0, \.\.\.$"):
        checked(path, recording=("x",))
    with pytest.raises(UsageError, match=r"of its 5, the nearest by name: more-2, more-1, more-0$"):
        checked(path, recording=("more-22",))
    shutil.rmtree(path / "recordings")
    with pytest.raises(UsageError, match=r"holds no recording a; it holds 0$"):
        checked(path, recording=("a",))


def test_the_remedy_is_a_command_for_this_store(path: Path, tmp_path: Path) -> None:
    moved = path.rename(tmp_path / "it's a store.zarr")
    flip(moved / "recordings/a/audio/c/0/0")
    with pytest.raises(UsageError) as refusal:
        FeatureCache.open(moved).recording("a").array("audio")
    for told, command in (
        (checked(moved).remedy, "repair"),
        (str(refusal.value), "repair"),
        (str(refusal.value), "verify"),
    ):
        given = told.partition(f": avfuse cache {command} ")[2].partition("; ")[0]
        assert shlex.split(given) == [str(moved)]


def test_a_store_is_found_without_its_root_and_by_the_folder_that_holds_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no features; make them with"):
        checked(tmp_path)
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(cache, "a", "train", 9, seed=0)
    cache.ledger.record(Failure("b", "unreadable", ""), None)
    (Path(cache.path) / "zarr.json").unlink()
    for place in (tmp_path, Path(cache.path)):
        assert [item.path for item in checked(place).damages] == ["zarr.json"]
    FeatureCache.create(tmp_path, toy_spec(), {})
    assert checked(tmp_path).damages == ()


def test_a_store_on_a_server_is_verified_and_mended(bucket: str, tmp_path: Path) -> None:
    cache = FeatureCache.create(f"{bucket}/home", toy_spec(), {})
    for number, name in enumerate(("a", "b/c", "d")):
        add_recording(cache, name, "train", 9, seed=number)
    assert checked(f"{bucket}/home").damages == ()
    store: Any = cache.store
    keys = {path: f"{store._prefix}/{path}" for path in store.files("")}
    before = {path: store.read(path) for path in keys}
    store._bucket.write(keys["recordings/a/video/c/0/0/0/0"], b"1" * BYTES)
    store._bucket.delete([keys["recordings/b%2Fc/zarr.json"]])
    store._bucket.write(f"{store._prefix}/recordings/d/stray", b"mine")
    store._bucket.write(f"{store._prefix}/notes.txt", b"mine too")
    store._bucket.write(keys["recordings/zarr.json"], b"{}")
    expected = {
        "recordings/a/video/c/0/0/0/0": "holds other bytes than were written",
        "recordings/b%2Fc/zarr.json": "is missing",
        "recordings/d/stray": "does not belong here",
        "notes.txt": "does not belong here",
        "recordings/zarr.json": "holds other bytes than were written",
    }
    assert {item.path: item.message for item in checked(cache.path).damages} == expected
    summary = mended(cache.path)
    assert summary.recordings == ("a", "b/c")
    assert all(removal.place.startswith(f"{bucket}/home/features/toy-") for removal in summary.removals)
    assert checked(cache.path).damages == ()
    left = {path: content for path, content in before.items() if path.split("/")[1:2] not in (["a"], ["b%2Fc"])}
    assert {path: store.read(path) for path in store.files("")} == left
    store._bucket.write(keys["zarr.json"], before["zarr.json"].replace(b"fp32", b"fp16"))
    summary = mended(cache.path)
    assert (summary.recordings, [item.path for item in summary.removals], summary.needs_root) == (
        (),
        ["zarr.json"],
        True,
    )
    assert [item.path for item in checked(cache.path).damages] == ["zarr.json"]
    FeatureCache.create(f"{bucket}/home", toy_spec(), {})
    # What a writer has not finished is no damage, and stays.
    store._leave_note("recordings/e")
    store._bucket.write(f"{store._prefix}/recordings/e/audio/zarr.json", b"{}")
    assert checked(cache.path).damages == ()


def test_a_file_that_is_no_store_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    file = tmp_path / "notes.zarr"
    file.write_text("mine")
    for act in (checked, mended):
        with pytest.raises(
            UsageError, match=r"notes\.zarr is not a feature store of avfuse: it is a file, and none of"
        ):
            act(file)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.zarr"]


def test_a_store_that_a_link_leads_to_is_mended_where_it_lies(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "features" / path.name
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    (path / "recordings/a/audio/c/0/0").unlink()
    assert checked(link).store == link
    summary = mended(link)
    assert [Path(item.place).parent for item in summary.removals] == [path.with_suffix(".damaged")]
    cache = FeatureCache.open(link)
    add_recording(cache, "new", "train", 9, seed=0)
    cache.remove("b/c")
    assert (cache.path, cache.names(), left_aside(path)) == (link, ["new"], [])
    assert list(link.parent.iterdir()) == [link]


def test_a_file_in_hdf5_is_verified_and_cannot_be_mended(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache.h5"
    export_cache(CacheExportOptions(file=file, cache=path))
    found = checked(file)
    assert (found.damages, found.num_recordings, found.num_failures, found.num_files) == ((), 2, 1, 0)
    with h5py.File(file, "r+") as opened:
        opened["recordings/a/audio"][3, 4] += 1
        del opened["recordings/b%2Fc/target"]
        opened["recordings/b%2Fc/notes"] = "mine"
        opened["stray"] = [1]
        opened["failures"].create_group("x")
        opened["recordings/a"].attrs["fps"] = 24.0
    found = checked(file)
    assert {(item.path, item.message) for item in found.damages} == {
        ("stray", "does not belong here"),
        ("recordings/a", "its attribute fps is 24.0, its metadata say 25.0"),
        ("recordings/b%2Fc/target", "is missing"),
        ("recordings/b%2Fc", "the zarr.json of its target was altered"),
        ("recordings/b%2Fc/notes", "does not belong here"),
        ("failures/x/zarr.json", "is missing"),
    }
    assert found.num_damaged == 2
    with h5py.File(file, "r+") as opened:
        opened["recordings/a"].attrs["fps"] = 25.0
    assert ("recordings/a/audio", "holds other values than were written") in {
        (item.path, item.message) for item in checked(file, recording=("a",)).damages
    }
    assert found.remedy == "export it, or copy it, again"
    with pytest.raises(
        UsageError,
        match=r"cache\.h5 is damaged \(6 findings\), and as one file it is never changed; .*it, or copy it, again$",
    ):
        mended(file)
    short, long = tmp_path / "short.h5", tmp_path / "long.h5"  # files of their own: HDF5 may hold the other open
    export_cache(CacheExportOptions(file=long, cache=path))
    short.write_bytes(long.read_bytes()[:-1000])
    (damage,) = checked(short).damages
    assert damage.message.startswith(f"{short} cannot be read")
    num_bytes = long.stat().st_size
    with long.open("ab") as opened:
        opened.write(b"0")
    assert [item.message for item in checked(long).damages] == [
        f"the file has {num_bytes + 1:,} bytes, {num_bytes:,} were written"
    ]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ExtractSummary]:
    """Make a corpus of three recordings and one that cannot be read; return what extracts it."""
    for name, row in tiny.ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)
    root = tmp_path / "root"
    root.mkdir()
    for number, name in enumerate("abc"):
        image = np.full((64, 64, 3), 80 + 40 * number, np.uint8)
        write_video(root / f"{name}.mp4", np.arange(40) / 25, lambda i, image=image: image, beep(0.5, 1.8))
    (root / "d.mp4").write_bytes(b"no video")
    options = ExtractOptions(
        root=root,
        corpus="folder",
        cache=tmp_path / "cache",
        video_encoder="tiny_video",
        audio_encoder="tiny_audio",
        video_weights="none",
        audio_weights="none",
        device="cpu",
        precision="fp32",
        min_face_px=60,
        min_face_share=0.0,
        engine="serial",
    )
    return lambda: extract(options)


def test_the_next_extraction_makes_anew_what_was_damaged_and_nothing_else(
    tmp_path: Path, corpus: Callable[[], ExtractSummary]
) -> None:
    store = Path(corpus().store)
    before = files_of(store)
    flip(store / "recordings/b/video/c/0/0/0/0")
    (store / "recordings/c/zarr.json").unlink()
    (store / "recordings/a/stray").touch()
    flip(store / "zarr.json", 40)
    flip(store / "failures/d/zarr.json", 40)
    with pytest.raises(UsageError, match="were altered after it was made and are damaged"):
        corpus()
    summary = mended(store)
    assert (summary.recordings, summary.needs_root) == (("b", "c"), True)
    assert [item.path for item in checked(tmp_path / "cache").damages] == ["zarr.json"]
    again = corpus()
    assert (again.num_extracted, again.num_present, len(again.failures)) == (2, 1, 1)
    assert files_of(store) == before
    assert checked(store).damages == ()


def test_what_is_damaged_is_set_aside_though_the_folder_for_it_goes_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = path / "recordings" / "a"
    flip(damaged / "zarr.json", 40)
    real, made = atomic.make_folder, list[Path]()

    def make_and_lose(folder: Path) -> None:
        real(folder)
        if folder.suffix == ".damaged" and not made:
            folder.rmdir()  # as `gc` removes one that is empty
            made.append(folder)

    monkeypatch.setattr(atomic, "make_folder", make_and_lose)
    assert mended(path).recordings == ("a",)
    assert made
    assert not damaged.exists()


def test_a_copy_of_a_recording_is_none_to_be_made_anew(path: Path) -> None:
    shutil.copytree(path / "recordings" / "a", path / "recordings" / "copy")
    summary = mended(path)
    assert (summary.recordings, [item.path for item in summary.removals]) == ((), ["recordings/copy"])
    assert checked(path).damages == ()


def test_metadata_that_are_a_folder_are_set_aside(path: Path) -> None:
    (path / "zarr.json").unlink()
    (path / "zarr.json").mkdir()
    summary = mended(path)
    assert ([item.path for item in summary.removals], summary.needs_root) == (["zarr.json"], True)
    assert not (path / "zarr.json").exists()


def test_a_recording_that_comes_while_its_folder_is_listed_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing of all that lies there and that of the recordings."""
    whole = path.with_suffix(".away")
    (path / "recordings" / "a").rename(whole)
    real, came = DirectoryStore.groups, list[str]()

    def list_early(store: DirectoryStore, parent: str) -> list[str]:
        found = real(store, parent)
        if parent == "recordings" and not came:
            came.append(parent)
            whole.rename(path / "recordings" / "a")
        return found

    real_members = DirectoryStore.members
    monkeypatch.setattr(DirectoryStore, "groups", list_early)
    monkeypatch.setattr(
        DirectoryStore,
        "members",
        lambda store, group: [*real_members(store, group), *(["a"] if group == "recordings" else [])],
    )
    summary = mended(path)
    assert came
    assert (summary.num_damages, summary.removals) == (0, ())


@pytest.mark.parametrize(("moves", "lost"), [({"a": "q"}, ["a"]), ({"a": "b%2Fc", "b%2Fc": "a"}, ["a", "b/c"])])
def test_recordings_in_the_place_of_others_are_to_be_made_anew(
    path: Path, moves: dict[str, str], lost: list[str]
) -> None:
    for source in moves:
        (path / "recordings" / source).rename(path / f"{source}.moving")
    for source, target in moves.items():
        (path / f"{source}.moving").rename(path / "recordings" / target)
    assert sorted(mended(path).recordings) == lost


def test_a_recording_without_readable_metadata_is_named_by_its_folder(path: Path) -> None:
    (path / "recordings" / "b%2Fc" / "zarr.json").write_text("{}", encoding="utf-8")
    assert mended(path).recordings == ("b/c",)
