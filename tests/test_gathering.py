"""Maps of windows, gathered from files, decoded chunks, memory or a device: always what was written, or an error."""

import gc
import resource
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from toy import add_recording, toy_cache, toy_spec

from avfuse import dataset, gathering, train
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions
from avfuse.clips import ChangedError
from avfuse.dataset import WindowedPartition
from avfuse.encoding import decode
from avfuse.gathering import ahead, choose_residence, each_once
from avfuse.hdf5 import export_cache
from avfuse.moments import feature_moments
from avfuse.options import TrainOptions
from avfuse.schema import UsageError

every_residence = pytest.mark.parametrize("resident", ["no", "ram", "device"])
CPU = torch.device("cpu")


def decoded(partition: WindowedPartition, view: int = 0) -> list[np.ndarray]:
    """Return the values of every recording's maps, through zarr."""
    found = []
    for item in partition.recordings:
        name = f"video_{view}" if view else "video"
        found.append(decode(item.array(name), item.scale()).numpy())
    return found


@every_residence
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_batches_hold_the_stored_values(tmp_path: Path, resident: str, dtype: str, compress: str) -> None:
    spec = toy_spec(storage={"dtype": dtype, "maps": "whole"})
    store = FeatureCache.create(tmp_path, spec, {}, compress)
    for number, num_clips in enumerate((70, 9, 530)):  # windows cross the borders of chunks, and are padded
        add_recording(store, f"{number}", "train", num_clips, seed=number)
    partition = WindowedPartition(store, "train", 16, 32, resident=resident)
    values = decoded(partition)
    order = np.random.default_rng(0).permutation(len(partition.windows)).tolist()
    seen = []
    for places, batch in partition.batches(order, 7):
        time.sleep(0.002)  # the next batch is gathered meanwhile, elsewhere
        assert batch.video_BTCHW.dtype == (torch.float16 if dtype == "float16" else torch.float32)
        for row, place in enumerate(places):
            window = partition.windows[place]
            expected = values[window.recording][window.clips]
            np.testing.assert_array_equal(batch.video_BTCHW[row, : window.count].float().numpy(), expected)
            assert batch.mask_BT[row].tolist() == [True] * window.count + [False] * (16 - window.count)
            assert batch.video_BTCHW.isfinite().all()
        counts = [partition.windows[place].count for place in places]
        assert counts == sorted(counts, reverse=True)
        seen += places
    assert sorted(seen) == sorted(order)


@every_residence
def test_each_window_has_its_view(tmp_path: Path, resident: str) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(views={"count": 3}), {})
    arrays = add_recording(store, "a", "train", 40, seed=0)
    partition = WindowedPartition(store, "train", 4, 32, num_views=3, resident=resident)
    views = [place % 3 for place in range(len(partition.windows))]
    for places, batch in partition.batches(range(len(partition.windows)), 5, views):
        for row, place in enumerate(places):
            window = partition.windows[place]
            expected = arrays["video"][window.clips] + np.float16(views[place])
            np.testing.assert_array_equal(batch.video_BTCHW[row, : window.count].numpy(), expected)
    first = partition.batch([0])
    np.testing.assert_array_equal(first.video_BTCHW[0].numpy(), arrays["video"][partition.windows[0].clips])


@every_residence
def test_few_chunks_are_kept_and_read_again(tmp_path: Path, resident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MAX_MAPPED_CHUNKS", 1)
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident)
    values = decoded(partition)
    for places, batch in partition.batches(range(len(partition.windows)), 3):
        for row, place in enumerate(places):
            window = partition.windows[place]
            expected = values[window.recording][window.clips]
            np.testing.assert_array_equal(batch.video_BTCHW[row, : window.count].numpy(), expected)


@every_residence
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_changed_byte_is_an_error_before_the_first_batch(tmp_path: Path, resident: str, compress: str) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {}, compress)
    add_recording(store, "a", "train", 40, seed=0)
    (chunk,) = (path for path in (Path(store.path) / "recordings" / "a" / "video" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UsageError, match=r"recordings/a/video is damaged; see what is wrong with: avfuse cache verify"):
        WindowedPartition(store, "train", 16, 32, resident=resident)


@pytest.mark.parametrize(
    ("wanted", "free", "is_mapped", "expected"),
    [
        ("no", 0, False, "no"),
        ("auto", 1000, True, "no"),
        ("auto", 1000, False, "ram"),
        ("auto", 150, False, "no"),
        ("ram", 100, True, "ram"),
        ("device", 100, False, "device"),
    ],
)
def test_maps_are_held_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, wanted: str, free: int, is_mapped: bool, expected: str
) -> None:
    monkeypatch.setattr(gathering, "free_bytes", lambda device: free)
    assert choose_residence(wanted, 100, is_mapped, CPU) == expected


@pytest.mark.parametrize(("free", "expected"), [(200, "device"), (120, "ram")])
def test_a_gpu_is_taken_where_maps_fit(monkeypatch: pytest.MonkeyPatch, free: int, expected: str) -> None:
    monkeypatch.setattr(gathering, "free_bytes", lambda device: free if device.type == "cuda" else 1000)
    assert choose_residence("auto", 100, False, torch.device("cuda")) == expected


@pytest.mark.parametrize("wanted", ["ram", "device"])
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(gathering, "free_bytes", lambda device: 2_000_000_000)
    with pytest.raises(UsageError, match=rf"--resident {wanted}: the maps take 2,500 MB, and 2,000 MB are free; take"):
        choose_residence(wanted, 2_500_000_000, True, CPU)


def test_what_is_made_ahead_comes_in_order_and_no_more_than_one_is_ahead() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(1, 6):
            made.append(number)
            yield number

    for number in ahead(make()):
        time.sleep(0.002)
        assert len(made) <= number + 1
    assert made == [1, 2, 3, 4, 5]


def test_an_error_ahead_is_raised_in_its_place() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("of the second")

    items = ahead(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="of the second"):
        next(items)


def test_the_first_error_is_that_of_the_first_item() -> None:
    def act(number: int) -> int:
        if number > 2:
            time.sleep(0.02 / number)
            raise ValueError(f"of {number}")
        return 2 * number

    assert each_once(act, [0, 1, 2]) == [0, 2, 4]
    with pytest.raises(ValueError, match="of 3"):
        each_once(act, range(9))


@every_residence
def test_a_batch_that_is_asked_for_by_itself_stays(tmp_path: Path, resident: str) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident)
    first = partition.batch([3])
    before = first.video_BTCHW.clone()
    for places in ([4], [3, 4]):
        assert not torch.equal(partition.batch(places).video_BTCHW[-1], before[0])
    assert torch.equal(first.video_BTCHW, before)


@every_residence
def test_a_pass_that_was_left_midway_disturbs_no_other(tmp_path: Path, resident: str) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident)
    order = range(len(partition.windows))
    expected = [batch.video_BTCHW.clone() for _, batch in partition.batches(order, 4)]
    left = partition.batches(order, 4)
    next(left)
    for (_, batch), maps_BTCHW in zip(partition.batches(order, 4), expected, strict=True):
        assert torch.equal(batch.video_BTCHW, maps_BTCHW)
    left.close()
    for (_, batch), maps_BTCHW in zip(partition.batches(order, 4), expected, strict=True):
        assert torch.equal(batch.video_BTCHW, maps_BTCHW)


@every_residence
def test_two_passes_at_once_do_not_share_a_buffer(tmp_path: Path, resident: str) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident)
    order = list(range(len(partition.windows)))
    expected = [batch.video_BTCHW.clone() for _, batch in partition.batches(order, 4)]
    back = [batch.video_BTCHW.clone() for _, batch in partition.batches(order[::-1], 4)]
    both = zip(partition.batches(order, 4), partition.batches(order[::-1], 4), expected, back, strict=True)
    for (_, first), (_, second), maps_BTCHW, others_BTCHW in both:
        assert torch.equal(first.video_BTCHW, maps_BTCHW)
        assert torch.equal(second.video_BTCHW, others_BTCHW)


@every_residence
def test_maps_go_with_their_partition(tmp_path: Path, resident: str) -> None:
    partition = WindowedPartition(toy_cache(tmp_path), "train", 16, 32, resident=resident)
    for _ in partition.batches(range(len(partition.windows)), 4):
        pass
    maps = weakref.ref(partition._maps)
    gc.disable()  # nothing waits for a collection of cycles
    try:
        del partition
        assert maps() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("fold", [None, "1/2"])
def test_only_the_views_that_are_asked_for_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: str | None
) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(views={"count": 3}), {})
    for number, partition in enumerate(("train", "train", "validation", "test")):
        add_recording(store, f"{number}", partition, 10, seed=number)
    clip_bytes = store.recordings()[0].video.num_bytes // 10
    asked: list[int] = []
    monkeypatch.setattr(dataset, "choose_residence", lambda wanted, num_bytes, *_: asked.append(num_bytes) or "no")
    options = TrainOptions(cache=tmp_path, head="concat", fold=fold, device="cpu")
    train._load_data(options, store)
    dataset.find_residence(store.recordings(), "auto", CPU, {"test": 1})
    assert asked == [(20 * 3 + 10 * (1 if fold is None else 3)) * clip_bytes, 10 * clip_bytes]


KINDS = ["plain", "compressed", "bytes", "hdf5"]


def stored_as(kind: str, home: Path) -> FeatureCache:
    """Make a cache of recordings with two views, kept in one of several ways."""
    spec = toy_spec(views={"count": 2}, storage={"dtype": "uint8" if kind == "bytes" else "float16", "maps": "whole"})
    store = FeatureCache.create(home, spec, {}, "zstd" if kind == "compressed" else "none")
    for number, partition in enumerate(("train", "train", "validation", "test")):
        add_recording(store, f"{number}", partition, 40 + number, seed=number)
    if kind != "hdf5":
        return store
    export_cache(CacheExportOptions(home / "cache.h5", store.path))
    return FeatureCache.open(home / "cache.h5")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resident", ["no", "ram", "device"])
def test_each_array_is_opened_once_until_the_first_batch(
    tmp_path: Path, resident: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored_as(kind, tmp_path)
    opened: Counter[str] = Counter()

    def count(method: str) -> None:
        act = getattr(type(store.store), method)
        monkeypatch.setattr(type(store.store), method, lambda self, path: (opened.update([path]), act(self, path))[1])

    count("array")
    count("clips")
    options = TrainOptions(cache=store.path, head="concat", resident=resident, device="cpu")
    data = train._load_data(options, store)
    for partition in (data.train, data.validation):
        next(iter(partition.batches(range(len(partition.windows)), 4, [0] * len(partition.windows))))
    assert {path.split("/")[1] for path in opened} == {"0", "1", "2"}  # what is not trained on is not opened
    assert {f"recordings/{number}/{view}" for number in range(2) for view in ("video", "video_1")} <= opened.keys()
    assert opened == dict.fromkeys(opened, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resident", ["no", "ram", "device"])
def test_what_was_altered_after_it_was_opened_is_found(tmp_path: Path, resident: str, kind: str) -> None:
    store = stored_as(kind, tmp_path)
    recordings = store.recordings()
    dataset.find_residence(recordings, "auto", CPU, {"train": 2})
    video = recordings[1].view(1)
    values = np.array(video.chunk(0))
    if kind == "hdf5":
        file = Path(store.path)
        content = bytearray(file.read_bytes())
        content[content.index(values.tobytes()) + 100] ^= 1
    else:
        file = Path(store.path, "recordings", "1", "video_1", "c", "0", "0", "0", "0")
        content = bytearray(file.read_bytes())
        content[100] ^= 1
    with file.open("r+b") as out:  # in place: what is mapped shows it
        out.write(content)
    found = "recordings/1/video_1 is damaged" if kind == "hdf5" else "recordings/1/video_1/c/0/0/0/0 was changed"
    with pytest.raises(UsageError, match=found):
        WindowedPartition(store, "train", 16, 32, num_views=2, resident=resident, recordings=recordings)


@pytest.mark.parametrize("kind", ["plain", "compressed"])
@pytest.mark.parametrize("resident", ["no", "ram", "device"])
@pytest.mark.parametrize("is_removed", [False, True])
def test_a_recording_that_is_replaced_while_it_is_used_never_gives_other_maps(
    tmp_path: Path, resident: str, kind: str, is_removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MAX_MAPPED_CHUNKS", 1)
    monkeypatch.setattr(gathering, "MAX_DECODED_BYTES", 1)
    store = stored_as(kind, tmp_path)
    partition = WindowedPartition(store, "train", 16, 32, resident=resident)
    values = decoded(partition)
    places = range(len(partition.windows))
    store.remove("1")
    if not is_removed:
        add_recording(store, "1", "train", 41, seed=9)

    def gather() -> None:
        for found, batch in partition.batches(places, 3):
            for row, place in enumerate(found):
                window = partition.windows[place]
                expected = values[window.recording][window.clips]
                np.testing.assert_array_equal(batch.video_BTCHW[row, : window.count].float().numpy(), expected)

    if resident == "no":
        with pytest.raises(ChangedError, match="recordings/1/video/c/0/0/0/0 was changed while it was being used"):
            gather()
    else:
        gather()


def test_more_chunks_than_files_may_be_open_are_mapped(tmp_path: Path) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    for number in range(80):
        add_recording(store, f"{number}", "train", 2, seed=number)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 40, limits[1]))
    try:
        partition = WindowedPartition(store, "train", 2, 32)
        batches = [batch.mask_BT.sum() for _, batch in partition.batches(range(len(partition.windows)), 4)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sum(batches) == 160


@pytest.mark.parametrize("first", ["plain", "short"])
def test_decoded_chunks_take_no_more_than_their_share_whatever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    store = FeatureCache.create(tmp_path, toy_spec(), {}, "none" if first == "plain" else "zstd")
    add_recording(store, "0", "train", 40 if first == "plain" else 2, seed=0)
    store = FeatureCache(store.store, store.spec, "zstd")
    for number in range(1, 6):
        add_recording(store, f"{number}", "train", 40, seed=number)
    chunk_bytes = store.recordings()[1].video.chunk(0).nbytes
    monkeypatch.setattr(gathering, "MAX_DECODED_BYTES", 2 * chunk_bytes)
    partition = WindowedPartition(store, "train", 16, 32)
    maps = partition._maps
    assert isinstance(maps, gathering.StreamedMaps)
    for _ in partition.batches(range(len(partition.windows)), 3):
        held = [future.result().nbytes for future in maps._decoded._held.values() if future.done()]
        assert sum(held) <= 2 * chunk_bytes + 2 * chunk_bytes  # and what is being decoded
    held = [future.result().nbytes for future in maps._decoded._held.values()]
    assert 0 < sum(held) == maps._decoded._num_bytes <= 2 * chunk_bytes


def test_threads_that_want_the_same_chunk_wait_for_one_of_them() -> None:
    started, go_on, read = Event(), Event(), list[tuple[int, ...]]()

    def slow(*key: int) -> np.ndarray:
        read.append(key)
        started.set()
        assert go_on.wait(10)
        if key[2] == 1:
            raise OSError("gone")
        return np.full(4, key[2])

    chunks = gathering._Decoded(slow, 100)
    with ThreadPoolExecutor(4) as executor:
        for number in (0, 1):
            started.clear()
            go_on.clear()
            pending = [executor.submit(chunks, 0, 0, number) for _ in range(4)]
            assert started.wait(10)
            go_on.set()
            if number == 0:
                assert [future.result().tolist() for future in pending] == [[0] * 4] * 4
                assert read == [(0, 0, 0)]
            else:
                for future in pending:
                    with pytest.raises(OSError, match="gone"):
                        future.result()
    assert list(chunks._held) == [(0, 0, 0)]  # what could not be read is asked for again


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_moments_are_those_of_what_is_held_and_the_same_wherever(tmp_path: Path, kind: str) -> None:
    store = stored_as(kind, tmp_path)
    there = {resident: WindowedPartition(store, "train", 16, 32, resident=resident) for resident in ("no", "ram")}
    there["device"] = WindowedPartition(store, "train", 16, 32, resident="device")
    export_cache(CacheExportOptions(tmp_path / "cache.h5", store.path))
    there["hdf5"] = WindowedPartition(FeatureCache.open(tmp_path / "cache.h5"), "train", 16, 32)
    for max_clips in (1000, 30):
        expected = feature_moments(there["no"], max_clips)
        assert all(map(torch.equal, feature_moments(there["hdf5"], max_clips), expected))
        (tmp_path / "features").rename(tmp_path / "away")  # which is not asked once more
        for resident in ("ram", "device"):
            assert all(map(torch.equal, feature_moments(there[resident], max_clips), expected))
        (tmp_path / "away").rename(tmp_path / "features")
