"""Inventory: what stores there are, and what one of them holds, counted by hand."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy import AUDIO, CHANNELS, MAP, add_recording, toy_cache, toy_spec

from avfuse.atomic import describe_files
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions, CacheFailuresOptions, CacheInfoOptions, CacheListOptions
from avfuse.hdf5 import export_cache
from avfuse.inventory import (
    ArrayCount,
    CacheInfo,
    PartitionCount,
    StoreEntry,
    describe_cache,
    list_failures,
    list_stores,
)
from avfuse.schema import Failure, UsageError
from avfuse.sealed import read_sealed, seal


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with two stores, one of them damaged, one of an older format, and one in HDF5."""
    home = tmp_path_factory.mktemp("inventory")
    cache = FeatureCache.create(home, toy_spec(), {"video": {"weights": "random:0"}})
    for name, partition, num_clips in (("a", "train", 9), ("b", "train", 20), ("c", "validation", 31)):
        add_recording(cache, name, partition, num_clips, seed=num_clips)
    for name, reason in (("x", "unreadable"), ("y", "unreadable"), ("z", "too_short")):
        cache.ledger.record(Failure(name, reason, ""), None)
    packed = {"dataset": "packed", "storage": {"dtype": "uint8", "maps": "pooled"}, "video_shape": (CHANNELS, 1, 1)}
    packed_cache = FeatureCache.create(home, toy_spec(**packed), {}, "zstd")
    add_recording(packed_cache, "a", "test", 9, seed=0)
    export_cache(CacheExportOptions(file=home / "features" / "toy.h5", cache=cache.path))
    for dataset, old, new in (
        ("broken", b'"fp32"', b'"fp33"'),
        ("elder", b'"format_version": 3', b'"format_version": 1'),
    ):
        root = Path(FeatureCache.create(home, toy_spec(dataset=dataset), {}).path) / "zarr.json"
        content = json.loads(root.read_bytes().replace(old, new))
        if dataset == "elder":
            del content["attributes"]["seal"]
        root.write_text(json.dumps(content))
    root = Path(FeatureCache.create(home, toy_spec(dataset="unversioned"), {}).path) / "zarr.json"
    attributes = read_sealed(root.read_bytes())
    assert attributes is not None
    del attributes["spec"]["format_version"]
    root.write_bytes(seal(attributes))
    return home


def store_of(home: Path, dataset: str) -> Path:
    (store,) = (home / "features").glob(f"{dataset}-*.zarr")
    return store


def num_bytes_of(store: Path) -> int:
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())


def test_every_store_is_listed_also_those_that_cannot_be_used(home: Path) -> None:
    toy = store_of(home, "toy")
    for folder in (toy, toy / "recordings", toy / "failures"):
        os.utime(folder, (1.7e9, 1.7e9))
    found = {Path(item.store).name.partition("-")[0]: item for item in list_stores(CacheListOptions(place=home))}
    assert list(found) == ["broken", "elder", "packed", "toy", "toy.h5", "unversioned"]
    assert found["toy"] == StoreEntry(
        store=str(toy),
        dataset="toy",
        storage="float16, whole",
        num_recordings=3,
        num_clips=60,
        num_failures=3,
        num_bytes=num_bytes_of(toy),
        changed="2023-11-14T22:13:20+00:00",
        state="",
    )
    assert (found["packed"].storage, found["packed"].num_clips) == ("uint8, pooled", 9)
    in_hdf5 = found["toy.h5"]
    assert (in_hdf5.num_recordings, in_hdf5.num_clips, in_hdf5.num_failures, in_hdf5.state) == (3, 60, 3, "")
    assert in_hdf5.num_bytes == (home / "features" / "toy.h5").stat().st_size
    assert found["broken"].state == f"damaged; see: avfuse cache verify {store_of(home, 'broken')}"
    assert found["unversioned"].state == "format version None; this avfuse reads 3"
    with pytest.raises(UsageError, match="has format version None; this avfuse reads 3"):
        FeatureCache.open(found["unversioned"].store)
    assert found["elder"].state == "format version 1; this avfuse reads 3"


def test_a_store_by_itself_is_listed_alone(home: Path) -> None:
    for place in (store_of(home, "packed"), home / "features" / "toy.h5", store_of(home, "broken")):
        assert [item.store for item in list_stores(CacheListOptions(place=place))] == [str(place)]
    with pytest.raises(UsageError, match="holds no features; make them with: avfuse extract ROOT --cache"):
        list_stores(CacheListOptions(place=home / "runs"))
    with pytest.raises(UsageError, match=f"is a folder of stores itself; give {home}, or one of: .*/toy-"):
        list_stores(CacheListOptions(place=home / "features"))


def described(store: Path) -> CacheInfo:
    return describe_cache(CacheInfoOptions(store=store))


def test_what_a_cache_holds_is_counted(home: Path) -> None:
    found = described(store_of(home, "toy"))
    assert found.partitions == {
        "train": PartitionCount(2, 2, 29, pytest.approx(29 * 8 / 25 / 60)),
        "validation": PartitionCount(1, 1, 31, pytest.approx(31 * 8 / 25 / 60)),
    }
    video = found.arrays["video"]
    assert (video.dtype, video.num_value_bytes) == ("float16", 60 * CHANNELS * MAP * MAP * 2)
    files = [file for file in store_of(home, "toy").glob("recordings/*/video/**/*") if file.is_file()]
    assert video.num_file_bytes == sum(file.stat().st_size for file in files)
    assert (found.arrays["audio"].dtype, found.arrays["audio"].num_value_bytes) == ("float32", 60 * AUDIO * 4)
    assert found.failures == {"too_short": 1, "unreadable": 2}
    assert found.compression == {"none": 3}
    assert found.provenance == {"video": {"weights": "random:0"}}
    assert found.settings == toy_spec().to_json()
    assert (found.fingerprint, found.num_bytes) == (toy_spec().fingerprint, num_bytes_of(store_of(home, "toy")))


def test_compression_and_bytes_show(home: Path) -> None:
    found = described(store_of(home, "packed"))
    assert found.compression == {"zstd": 1}
    assert found.arrays["video"].dtype == "uint8"
    assert found.arrays["video"].num_value_bytes == 9 * CHANNELS
    assert found.arrays["video_scale"].num_value_bytes == CHANNELS * np.dtype(np.float32).itemsize


def test_a_file_in_hdf5_holds_the_same(home: Path) -> None:
    found, folder = described(home / "features" / "toy.h5"), described(store_of(home, "toy"))
    assert (found.partitions, found.settings, found.failures) == (folder.partitions, folder.settings, folder.failures)
    assert found.arrays == {name: ArrayCount(of.dtype, of.num_value_bytes, None) for name, of in folder.arrays.items()}
    assert found.compression == {}


def test_a_damaged_store_is_not_described(home: Path) -> None:
    with pytest.raises(UsageError, match="see what is wrong with: avfuse cache verify"):
        described(store_of(home, "broken"))


@pytest.mark.parametrize("content", [None, b"{", b"{}"])
def test_an_array_without_metadata_is_damage(tmp_path: Path, content: bytes | None) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(), {})
    add_recording(cache, "a", "train", 9, seed=0)
    group = Path(cache.path) / "recordings" / "a"
    attributes = read_sealed((group / "zarr.json").read_bytes())
    assert attributes is not None
    (group / "video" / "zarr.json").unlink()
    del attributes["files"]["video/zarr.json"]
    if content is not None:
        (group / "video" / "zarr.json").write_bytes(content)
        attributes["files"] = {name: entry for name, entry in describe_files(group).items() if name != "zarr.json"}
    (group / "zarr.json").write_bytes(seal(attributes))
    with pytest.raises(UsageError, match="recordings/a/video is damaged; see what is wrong with: avfuse cache verify"):
        describe_cache(CacheInfoOptions(store=cache.path))


def test_failures_are_listed_beside_recordings_that_are_damaged(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path)
    cache.ledger.record(Failure("bad", "no_face", "nobody"), None)
    damaged = cache.recordings()[0]
    shutil.rmtree(Path(cache.path) / damaged.group / "video")
    assert [item.recording for item in list_failures(CacheFailuresOptions(cache.path)).failures] == ["bad"]
