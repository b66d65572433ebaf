import errno
import hashlib
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from conftest import files_limited
from toy import add_recording, left_aside, toy_spec

from avfuse import atomic, checkpoint, hdf5, runs
from avfuse.cache import FeatureCache, open_store
from avfuse.cache_options import CacheExportOptions, CacheImportOptions
from avfuse.cached import CachedRecording
from avfuse.hdf5 import export_cache, import_cache
from avfuse.options import PredictOptions, TrainOptions
from avfuse.predict import predict
from avfuse.schema import Failure, UsageError
from avfuse.sealed import read_sealed, seal
from avfuse.spec import Source
from avfuse.stores.hdf5 import HDF5Store
from avfuse.train import train
from avfuse.verification import verify_store
from avfuse.writer import RecordingWriter

ODD = "odd/näme ~%2F: .x"
NAMES = [ODD, "a", "b", "unrated"]


def small_cache(home: Path, compress: str = "none", **changes: Any) -> FeatureCache:
    """Make a store with recordings of several lengths, one with an odd name, and a failure."""
    cache = FeatureCache.create(home, toy_spec(**changes), {"weights": "none"}, compress)
    for seed, (name, num_clips) in enumerate({ODD: 300, "a": 21, "b": 1, "unrated": 5}.items()):
        add_recording(cache, name, "train", num_clips, seed, rated=name != "unrated")
    cache.ledger.record(Failure("broken/ä", "unreadable", "be\0cause"), None)
    return cache


def export(cache: FeatureCache | Path, file: Path) -> Path:
    export_cache(CacheExportOptions(file, getattr(cache, "path", cache)))
    return file


def values_of(recording: CachedRecording, name: str) -> np.ndarray:
    return np.concatenate(list(recording.view(0).chunks())) if name == "video" else recording.array(name)


def assert_same_values(one: FeatureCache, other: FeatureCache) -> None:
    assert one.names() == other.names()
    for first, second in zip(one.recordings(), other.recordings(), strict=True):
        assert first.digest == second.digest
        for name in first.arrays:
            ours, theirs = values_of(first, name), values_of(second, name)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache and its export, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    export(small_cache(folder / "home"), folder / "all.h5")
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> FeatureCache:
    shutil.copytree(made / "home", tmp_path / "home")
    return FeatureCache.find(tmp_path / "home")


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made / "all.h5", tmp_path))


def test_plain_h5py_reads_what_the_folder_holds(cache: FeatureCache, file: Path) -> None:
    root = zarr.open_group(cache.path, mode="r")
    with h5py.File(file) as given:
        assert set(given) == {"recordings", "failures"}
        assert (given.attrs["dataset"], given.attrs["targets"]) == ("toy", "valence, arousal")
        assert given.attrs["zarr.json"] == (cache.path / "zarr.json").read_bytes()
        assert set(given["recordings"]) == {path.name for path in (cache.path / "recordings").iterdir()} - {"zarr.json"}
        for key, group in given["recordings"].items():
            attributes = cache.recording(group.attrs["recording"]).attributes
            assert group.attrs["zarr.json"] == (cache.path / "recordings" / key / "zarr.json").read_bytes()
            assert (group.attrs["fps"], group.attrs["num_clips"]) == (attributes["fps"], attributes["num_clips"])
            assert (group.attrs["partition"], group.attrs["subject"]) == ("train", attributes["recording"])
            assert set(group) == set(attributes["arrays"])
            for name, dataset in group.items():
                expected = root[f"recordings/{key}/{name}"][...]
                assert dataset.dtype == expected.dtype
                np.testing.assert_array_equal(dataset[...], expected)
                assert dataset.fletcher32
                assert dataset.attrs["zarr.json"] == (cache.path / "recordings" / key / name / "zarr.json").read_bytes()
        failure = given["failures/broken%2F%C3%A4"]
        assert (failure.attrs["reason"], failure.attrs["message"]) == ("unreadable", "be?cause")
    assert file.read_bytes()[8] == 3  # the version of the superblock: the first with checksums on all metadata


def test_chunks_hold_16_clips_or_64_kib(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(video_shape=(512, 7, 7)), {})
    with RecordingWriter(cache, "a", Source("train", "a", "a.mp4", "0" * 64, None)) as writer:
        writer.begin(40)
        writer.append(np.ones((40, 512, 7, 7), np.float32), np.ones((40, 32), np.float32))
        writer.commit({"target": np.zeros((40, 2), np.float32)}, fps=25.0)
    with h5py.File(export(cache, tmp_path / "all.h5")) as given:
        chunks = {name: dataset.chunks for name, dataset in given["recordings/a"].items()}
    assert chunks == {"video": (16, 512, 7, 7), "audio": (40, 32), "target": (40, 2)}


@pytest.mark.parametrize(
    ("compress", "changes"),
    [
        ("none", {}),
        ("zstd", {}),
        ("pcodec", {}),
        ("none", {"storage": {"dtype": "uint8", "maps": "whole"}}),
        ("none", {"targets": (), "ranges": ()}),
    ],
)
def test_a_file_gives_the_folder_back_byte_for_byte(tmp_path: Path, compress: str, changes: dict[str, Any]) -> None:
    cache = small_cache(tmp_path / "here", compress, **changes)
    file = export(cache, tmp_path / "all.h5")
    summary = import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert (summary.num_recordings, summary.num_imported, summary.num_failures) == (4, 4, 1)
    assert (summary.num_clips, summary.reencoded) == (327, ())
    before = atomic.describe_files(cache.path)
    assert atomic.describe_files(tmp_path / "there/features" / cache.path.name) == before
    assert len(before) > 80
    again = import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert (again.num_imported, again.num_present, again.num_failures) == (0, 4, 0)
    assert atomic.describe_files(tmp_path / "there/features" / cache.path.name) == before


def test_every_view_goes_along(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path / "here", toy_spec(views={"count": 2}), {}, "zstd")
    rng = np.random.default_rng(0)
    views = rng.normal(size=(2, 90, 32, 2, 2)).astype(np.float32)
    with RecordingWriter(cache, "a", Source("train", "a", "a.mp4", "0" * 64, None)) as writer:
        writer.begin(90)
        writer.append(views[0], rng.normal(size=(90, 32)).astype(np.float32), views[1])
        writer.commit({"target": np.zeros((90, 2), np.float32)}, fps=25.0)
    file = export(cache, tmp_path / "all.h5")
    (given,) = FeatureCache.open(file).recordings()
    for number in range(2):
        given.check(number)
        assert given.view(number).is_mapped  # though it was compressed in the folder
        np.testing.assert_array_equal(
            np.concatenate(list(given.view(number).chunks())), views[number].astype(np.float16)
        )
    import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert atomic.describe_files(tmp_path / "there/features" / cache.path.name) == atomic.describe_files(cache.path)


def test_metadata_may_be_longer_than_an_old_attribute(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    cache.ledger.record(Failure("a", "unexpected", "because " * 20_000), None)  # 64 KiB is what an object header holds
    opened = FeatureCache.open(export(cache, tmp_path / "all.h5"))
    assert opened.ledger.failures() == cache.ledger.failures()
    assert opened.store.find_contradictions("failures/a") == []


def test_an_export_is_the_same_every_time_and_from_everywhere(cache: FeatureCache, file: Path, tmp_path: Path) -> None:
    assert export(cache, tmp_path / "again.h5").read_bytes() == file.read_bytes()
    assert export(file, tmp_path / "from-hdf5.hdf5").read_bytes() == file.read_bytes()


def test_training_and_predicting_from_hdf5_is_that_from_the_folder(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path / "home", toy_spec(), {})
    for number, partition in enumerate(("train", "train", "validation", "test")):
        add_recording(cache, f"{partition}-{number}", partition, 30 + 7 * number, seed=number)
    file = export(cache, tmp_path / "all.h5")
    weights, tables = [], []
    for place in (cache.path, file):
        out = tmp_path / f"runs-{Path(place).suffix[1:]}"
        (summary,) = train(TrainOptions(place, head="concat", epochs=2, num_clips=8, out=out, device="cpu"))
        weights.append(checkpoint.load_state(Path(summary.run) / runs.HEAD_FILE)["weights"])
        predict(PredictOptions((Path(summary.run),), place, csv=out / "test.csv", device="cpu"))
        tables.append((out / "test.csv").read_bytes())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("layout", ["exported", "gzip", "contiguous", "other chunks", "big-endian"])
def test_maps_are_the_same_however_others_lay_them_out(
    cache: FeatureCache, file: Path, tmp_path: Path, layout: str
) -> None:
    group = cache.recording(ODD).group
    if layout != "exported":
        options: dict[str, Any] = {
            "gzip": {"chunks": (16, 32, 2, 2), "compression": "gzip"},
            "contiguous": {},
            "other chunks": {"chunks": (8, 16, 2, 2)},
            "big-endian": {"chunks": (16, 32, 2, 2), "dtype": ">f2"},
        }[layout]
        with h5py.File(file, "r+") as given:
            values, metadata = given[group]["video"][...], given[group]["video"].attrs["zarr.json"]
            del given[group]["video"]
            given[group].create_dataset("video", data=values, **options).attrs["zarr.json"] = metadata
    clips = FeatureCache.open(file).recording(ODD).video
    assert clips.is_mapped == (layout == "exported")
    np.testing.assert_array_equal(np.concatenate(list(clips.chunks())), values_of(cache.recording(ODD), "video"))
    if layout == "exported":
        assert not clips.chunk(0).flags.owndata
        assert clips.chunk(1).flags.aligned


def test_a_store_in_hdf5_can_only_be_read(cache: FeatureCache, file: Path, tmp_path: Path) -> None:
    opened = FeatureCache.find(file)
    assert (opened.spec, opened.provenance) == (cache.spec, {"weights": "none"})
    assert_same_values(cache, opened)
    assert opened.ledger.failures() == cache.ledger.failures()
    assert opened.store.files("recordings/a") is None
    assert opened.store.members("recordings/a") == sorted(cache.recording("a").arrays)
    assert opened.store.count_bytes() == file.stat().st_size
    assert HDF5Store.find(tmp_path) == [file]
    for act in (
        lambda: opened.remove("a"),
        opened.store.aside,
        lambda: opened.ledger.record(cache.ledger.failures()[0], None),
    ):
        with pytest.raises(UsageError, match=r"all\.h5 can be read, not written to; write to a folder, and export"):
            act()
    for path in ("recordings/a/video/c/0/0/0/0", "recordings/nobody/zarr.json"):
        with pytest.raises(FileNotFoundError, match=r"not in .*all\.h5"):
            opened.store.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.h5 does not exist; make it with: avfuse cache export .*x\.h5$"),
        (b"", "is not an HDF5 file, or its beginning is lost"),
        (b"plain text " * 100, "is not an HDF5 file, or its beginning is lost"),
        ("cut", "cannot be read: .*truncated file: eof = .*; copy it again from where it is whole, or export"),
        ("others", r"is an HDF5 file, but not a cache of avfuse; features of others are imported by a mapping"),
        ("folder", "is a folder; a cache in HDF5 is one file"),
    ],
)
def test_what_is_no_cache_is_refused(file: Path, content: bytes | str | None, message: str) -> None:
    place = file.with_name("x.h5")
    if content == "cut":
        place.write_bytes(file.read_bytes()[:-1])
    elif content == "others":
        with h5py.File(place, "w") as given:
            given["features"] = np.zeros(3)
    elif content == "folder":
        place.mkdir()
    elif isinstance(content, bytes):
        place.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        FeatureCache.find(place)
    with pytest.raises(UsageError, match=message):
        import_cache(CacheImportOptions(place, file.parent / "there"))


def read_everything(file: Path) -> dict[Any, Any]:
    """Return all that a cache in HDF5 says, or raise `UsageError`."""
    cache = FeatureCache.open(file)
    found: dict[Any, Any] = {"spec": cache.spec, "failures": cache.ledger.failures()}
    groups = ["", "recordings", "failures", *cache.store.groups("failures")]
    for item in cache.recordings():
        groups.append(item.group)
        item.check(0)
        found |= {(item.name, name): values_of(item, name).tobytes() for name in item.arrays}
        found[item.name] = (item.attributes, cache.store.members(item.group))
    if contradictions := [words for group in groups for words in cache.store.find_contradictions(group)]:
        raise UsageError(contradictions[0])
    return found


def test_no_changed_byte_gives_other_values(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(cache, "a", "train", 3, seed=0)
    cache.ledger.record(Failure("b", "unreadable", "because"), None)
    file = export(cache, tmp_path / "all.h5")
    whole, content = read_everything(file), file.read_bytes()
    rng = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    num_found = 0
    changed = tmp_path / "changed.h5"
    for at in rng.choice(used, 150, replace=False).tolist():
        changed.write_bytes(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
        try:
            found = read_everything(changed)
        except UsageError:
            num_found += 1
        else:
            assert found == whole, at
    assert num_found > 120  # the others are checksums of chunks, and bytes that HDF5 does not use


def test_a_changed_checksum_of_a_chunk_is_found(file: Path) -> None:
    whole = file.read_bytes()
    for name in ("video", "audio", "target"):
        with h5py.File(file) as given:
            chunk = given[f"recordings/b/{name}"].id.get_chunk_info(0)
        at = chunk.byte_offset + chunk.size - 1  # of the last of the four bytes behind its values
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        damages = verify_store(open_store(file)).damages
        assert damages[0].message.startswith(f"HDF5 cannot read its {name} (")
        assert {damage.group for damage in damages} == {"recordings/b"}
    file.write_bytes(whole)
    assert verify_store(open_store(file)).damages == ()


def test_a_file_that_may_not_be_read_now_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "unable to open file")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*all\.h5'"):
        verify_store(open_store(file))


def test_altered_attributes_and_metadata_are_found(file: Path) -> None:
    with h5py.File(file, "r+") as given:
        given["recordings/a"].attrs["fps"] = 24.0
        given["recordings/a"].attrs["note"] = "mine"
        del given["recordings/b"].attrs["subject"]
        metadata = given["recordings/b/audio"].attrs["zarr.json"]
        given["recordings/b/audio"].attrs["zarr.json"] = np.bytes_(metadata.replace(b"0.0", b"1.0"))
        given["failures/broken%2F%C3%A4"].attrs["reason"] = "truncated"
    store = HDF5Store(file)
    assert store.find_contradictions("recordings/a") == [
        "its attribute fps is 24.0, its metadata say 25.0",
        "its attribute note is mine, its metadata say None",
    ]
    assert store.find_contradictions("recordings/b") == [
        "its attribute subject is None, its metadata say b",
        "the zarr.json of its audio was altered",
    ]
    assert store.find_contradictions("failures/broken%2F%C3%A4") == [
        "its attribute reason is truncated, its metadata say unreadable"
    ]
    assert not any(store.find_contradictions(group) for group in ("", "recordings", "failures", "recordings/unrated"))


def damage(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("recordings/a/video/c/0/0/0/0", "recordings/a/video is damaged"),
        ("recordings/a/audio/c/0/0", "recordings/a/audio is damaged"),
        ("recordings/b/audio/zarr.json", "recordings/b/audio is damaged"),
        ("recordings/a/zarr.json", "recordings/a is damaged"),
        ("failures/broken%2F%C3%A4/zarr.json", "failures/broken.* is damaged"),
    ],
)
def test_damage_is_not_exported(cache: FeatureCache, tmp_path: Path, damaged: str, message: str) -> None:
    damage(cache.path / damaged, at=5)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=message):
        export(cache, tmp_path / "damaged.h5")
    assert sorted(tmp_path.iterdir()) == before


def test_where_an_export_cannot_go(cache: FeatureCache, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for target, message in (
        (file, "all.h5 is there already; remove it, or give another name"),
        (tmp_path / "all.zip", "give a name that ends in .h5 or .hdf5"),
        (tmp_path / "nowhere" / "all.h5", "the folder .*nowhere does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            export(cache, target)
    assert file.read_bytes() == content


def test_a_full_disk_is_named_and_leaves_nothing(cache: FeatureCache, tmp_path: Path) -> None:
    with files_limited(100_000), pytest.raises(OSError, match="File too large") as refusal:
        export(cache, tmp_path / "all.h5")
    assert refusal.value.filename == str(tmp_path / "all.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("limit", [900, 30_000])
def test_an_import_without_room_is_named_and_goes_on(file: Path, tmp_path: Path, limit: int) -> None:
    options = CacheImportOptions(file, tmp_path / "there")
    cache = FeatureCache.create(tmp_path / "there", toy_spec(), {})
    with files_limited(limit), pytest.raises(OSError, match="File too large") as refusal:
        import_cache(options)
    assert refusal.value.filename == str(Path(cache.path).with_suffix(".tmp"))
    assert left_aside(cache.path) == []
    assert import_cache(options).num_recordings == 4
    assert_same_values(FeatureCache.open(file), cache)


def test_what_a_killed_export_left_goes(cache: FeatureCache, tmp_path: Path) -> None:
    name = atomic.new_aside_name().split("-")
    dead = tmp_path / f".all.h5.{'-'.join(name[:-2])}-4194305-{name[-1]}"  # beyond the largest process id
    dead.write_bytes(b"half")
    export(cache, tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.h5", "home"]


def test_an_import_that_was_stopped_goes_on(file: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    options = CacheImportOptions(file, tmp_path / "there")
    with pytest.raises(KeyboardInterrupt):
        import_cache(options, stop)
    cache = FeatureCache.find(tmp_path / "there")
    assert (cache.names(), seen) == (sorted(NAMES)[:2], [0, 1, 2])
    assert left_aside(cache.path) == []
    seen.clear()
    summary = import_cache(options, lambda done, total: seen.append(done))
    assert (summary.num_imported, summary.num_present, seen) == (2, 2, [2, 3, 4])
    assert_same_values(FeatureCache.open(file), cache)


def test_a_recording_with_other_content_stays(cache: FeatureCache, file: Path, tmp_path: Path) -> None:
    here = FeatureCache.create(tmp_path / "there", toy_spec(), {})
    add_recording(here, "b", "train", 2, seed=9)
    before = atomic.describe_files(tmp_path / "there")
    with pytest.raises(UsageError, match=r"recordings/b has other content than .*all.h5/recordings/b .*with --cache"):
        import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert atomic.describe_files(tmp_path / "there") == before
    source = cache.recording("a").source
    assert cache.relabel("a", Source(**{**vars(source), "subject": "another"}))
    with pytest.raises(UsageError, match=r"recordings/a has other content .*subject"):
        import_cache(CacheImportOptions(file, tmp_path / "home"))
    damage(here.path / "recordings" / "b" / "zarr.json")
    with pytest.raises(UsageError, match=r"recordings/b is damaged; see .* avfuse cache verify"):
        import_cache(CacheImportOptions(file, tmp_path / "there"))


def test_a_failure_of_a_recording_that_is_here_is_not_imported(tmp_path: Path, file: Path) -> None:
    here = FeatureCache.create(tmp_path / "there", toy_spec(), {})
    add_recording(here, "broken/ä", "train", 2, seed=9)
    assert import_cache(CacheImportOptions(file, tmp_path / "there")).num_failures == 0
    assert here.ledger.failures() == []


def test_other_bytes_of_the_same_values_are_described_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file whose metadata name another digest of a chunk: as if another version of the compressor had written it."""
    cache = small_cache(tmp_path / "home", "zstd")
    file = export(cache, tmp_path / "all.h5")
    with h5py.File(file, "r+") as given:
        group = given[cache.recording("a").group]
        attributes = read_sealed(bytes(group.attrs["zarr.json"]))
        assert attributes is not None
        attributes["files"]["video/c/0/0/0/0"] = {"bytes": 7, "sha256": hashlib.sha256(b"another").hexdigest()}
        group.attrs["zarr.json"] = np.bytes_(seal(attributes))
    summary = import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert summary.reencoded == ("a",)
    assert "1 recordings, such as a, have the same values in other bytes" in caplog.text
    assert_same_values(cache, FeatureCache.find(tmp_path / "there"))
    assert import_cache(CacheImportOptions(file, tmp_path / "there")).num_present == 4


def test_damage_is_not_imported(file: Path, tmp_path: Path) -> None:
    with h5py.File(file, "r+") as given:
        given["recordings/b/video"][0, 0, 0, 0] += np.float16(1)
    with pytest.raises(UsageError, match=r"all.h5/recordings/b/video is damaged"):
        import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert "b" not in FeatureCache.find(tmp_path / "there").names()


@pytest.mark.parametrize("kind", ["group", "array", "failure"])
def test_names_in_a_file_lead_nowhere_else(file: Path, tmp_path: Path, kind: str) -> None:
    with h5py.File(file, "r+") as given:
        if kind == "failure":
            given.move("failures/broken%2F%C3%A4", "failures/..")
        elif kind == "group":
            given.move("recordings/a", "recordings/..")
        else:
            group = given["recordings/a"]
            attributes = read_sealed(bytes(group.attrs["zarr.json"]))
            assert attributes is not None
            attributes["arrays"]["../../outside"] = attributes["arrays"]["audio"]
            group.attrs["zarr.json"] = np.bytes_(seal(attributes))
    with pytest.raises(UsageError, match=r"not one that avfuse gives|recordings/\.\. is damaged"):
        import_cache(CacheImportOptions(file, tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_a_compression_that_is_not_known_here_is_refused(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "home", "zstd")
    file = export(cache, tmp_path / "all.h5")
    with h5py.File(file, "r+") as given:
        video = given["recordings/a/video"]
        video.attrs["zarr.json"] = np.bytes_(video.attrs["zarr.json"].replace(b'"zstd"', b'"what"'))
    with pytest.raises(UsageError, match=r"a/video: how it was stored is not known here .*compression installed"):
        import_cache(CacheImportOptions(file, tmp_path / "there"))


def test_pieces_of_any_length_make_blocks() -> None:
    rows = np.arange(23)
    for cuts in ([], [1, 2, 3], [10], [4, 8, 12, 16, 20], [22]):
        blocks = list(hdf5._in_blocks(np.split(rows, cuts), 4))
        assert [len(block) for block in blocks] == [4, 4, 4, 4, 4, 3]
        np.testing.assert_array_equal(np.concatenate(blocks), rows)
    assert list(hdf5._in_blocks([np.zeros((0, 2))], 4)) == []
