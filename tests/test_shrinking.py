"""A cache made smaller is what extraction would have made; what is read is compared, and nothing is lost on the way."""

import dataclasses
import errno
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import logging_and_signals_kept
from toy import CHANNELS, MAP, add_recording, left_aside, toy_cache, toy_spec

from avfuse import shrinking
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions, CacheShrinkOptions
from avfuse.cached import CachedRecording, view_name
from avfuse.cli import cli
from avfuse.commands._shrink import _print_costs
from avfuse.cost import RunCost
from avfuse.encoding import decode, find_scale, to_bytes
from avfuse.hdf5 import export_cache
from avfuse.options import TrainOptions
from avfuse.schema import Failure, UsageError
from avfuse.shrinking import ShrinkSummary, make_smaller
from avfuse.spec import Source
from avfuse.stores.directory import DirectoryStore
from avfuse.train import train
from avfuse.verification import verify_store
from avfuse.writer import RecordingWriter

LENGTHS = {"a": 9, "b/c": 80, "d": 1}
POOLED_SHAPE = (CHANNELS, 1, 1)


def fill(home: Path | str, compress: str = "none", **changes: Any) -> FeatureCache:
    """Make a cache of three recordings and a failure, always of the same features."""
    cache = FeatureCache.create(home, toy_spec(**changes), {"weights": "none"}, compress)
    for number, (name, num_clips) in enumerate(LENGTHS.items()):
        add_recording(cache, name, ("train", "validation", "test")[number], num_clips, seed=number)
    cache.ledger.record(Failure("e/f", "unreadable", "it was not to be read"), None)
    return cache


def shrink(cache: FeatureCache, **knobs: Any) -> ShrinkSummary:
    return shrinking.shrink(CacheShrinkOptions(cache.path, **{"num_workers": 1, "device": "cpu", **knobs}))


def metadata(cache: FeatureCache) -> dict[str, bytes | None]:
    """Return the metadata of every recording, which hold the digest of every file and of every array's values."""
    return cache.store.metadata_below("recordings")


def stored(recording: CachedRecording, view: int = 0) -> Any:
    recording.check(view)
    return np.concatenate(list(recording.view(view).chunks()))


def is_sound(cache: FeatureCache) -> bool:
    return verify_store(cache.store, num_workers=1).damages == ()


@pytest.mark.parametrize(
    ("kept", "knobs", "compress"),
    [
        ({}, {"dtype": "uint8"}, "none"),
        ({"views": {"count": 2}}, {"maps": "pooled"}, "none"),
        ({"views": {"count": 2}}, {"dtype": "uint8", "maps": "pooled"}, "none"),
        ({}, {"dtype": "uint8", "compress": "zstd"}, "none"),
        ({"views": {"count": 2}}, {"dtype": "uint8", "maps": "whole"}, "zstd"),
        ({"storage": {"dtype": "float16", "maps": "pooled"}, "video_shape": POOLED_SHAPE}, {"dtype": "uint8"}, "none"),
    ],
)
def test_a_smaller_cache_is_what_extraction_would_have_made(
    tmp_path: Path, kept: dict[str, Any], knobs: dict[str, str], compress: str
) -> None:
    source = fill(tmp_path / "source", compress, **kept)
    before = metadata(source)
    summary = shrink(source, **knobs)
    target = FeatureCache.open(summary.store)
    storage = {**source.spec.storage, **{name: value for name, value in knobs.items() if name != "compress"}}
    shape = POOLED_SHAPE if storage["maps"] == "pooled" else (CHANNELS, MAP, MAP)
    changes = {**kept, "storage": storage, "video_shape": shape}
    expected = fill(tmp_path / "expected", knobs.get("compress", compress), **changes)
    assert (target.spec, Path(target.path).name) == (expected.spec, Path(expected.path).name)
    assert metadata(target) == metadata(expected)
    assert (target.ledger.failures(), is_sound(target)) == (source.ledger.failures(), True)
    assert target.provenance["weights"] == "none"
    assert target.provenance["shrunk_from"]["fingerprint"] == source.spec.fingerprint
    assert (metadata(source), is_sound(source), left_aside(target.path)) == (before, True, [])
    assert dataclasses.replace(summary, elapsed_s=0) == ShrinkSummary(
        source=source.path,
        store=target.path,
        source_fingerprint=source.spec.fingerprint,
        fingerprint=expected.spec.fingerprint,
        num_recordings=3,
        num_shrunk=3,
        num_present=0,
        num_clips=90,
        num_bytes_before=source.store.count_bytes(),
        num_bytes_after=target.store.count_bytes(),
        is_replaced=False,
        costs=(),
        elapsed_s=0,
    )


def test_bytes_that_are_pooled_are_the_mean_of_what_they_stand_for(tmp_path: Path) -> None:
    """Extraction would have pooled halves: these are other values, and the settings say so."""
    source = fill(tmp_path, storage={"dtype": "uint8", "maps": "whole"}, views={"count": 2})
    target = FeatureCache.open(shrink(source, maps="pooled").store)
    assert target.spec.storage == {"dtype": "uint8", "maps": "pooled", "pooled_from": "uint8"}
    direct = toy_spec(storage={"dtype": "uint8", "maps": "pooled"}, views={"count": 2}, video_shape=POOLED_SHAPE)
    assert target.spec.fingerprint != direct.fingerprint
    for name in LENGTHS:
        before, after = source.recording(name), target.recording(name)
        values = [decode(stored(before, view), before.scale()).numpy().astype(np.float16) for view in range(2)]
        pooled = [view.astype(np.float64).mean(axis=(2, 3), keepdims=True).astype(np.float16) for view in values]
        together = np.concatenate(pooled).astype(np.float32)
        scale = find_scale(together.min(axis=(0, 2, 3)), together.max(axis=(0, 2, 3)))
        for view in range(2):
            np.testing.assert_array_equal(stored(after, view), to_bytes(pooled[view], *scale))


@pytest.mark.parametrize("storage", [{"dtype": "float16", "maps": "whole"}, {"dtype": "uint8", "maps": "whole"}])
def test_compression_takes_place_where_the_cache_is_and_can_be_taken_back(
    tmp_path: Path, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fill(tmp_path, storage=storage, views={"count": 2})
    plain, digest = metadata(cache), cache.digest(("train", "validation", "test"))

    def refuse(*_: object) -> None:
        raise AssertionError("there was a moment without the recording")

    with monkeypatch.context() as patch:
        for name in ("remove", "put", "set_aside"):
            patch.setattr(DirectoryStore, name, refuse)
        summary = shrink(cache, compress="zstd", replace=True)
    assert (summary.store, summary.num_shrunk, summary.is_replaced) == (cache.path, 3, False)
    assert cache.digest(("train", "validation", "test")) == digest
    expected = fill(tmp_path / "expected", "zstd", storage=storage, views={"count": 2})
    assert metadata(cache) == metadata(expected) != plain
    assert (is_sound(cache), left_aside(cache.path), cache.ledger.failures()) == (True, [], expected.ledger.failures())
    again = shrink(cache, compress="zstd")
    assert (again.num_shrunk, again.num_present) == (0, 3)
    assert shrink(cache, compress="none", out=tmp_path).num_shrunk == 3
    assert metadata(cache) == plain


def test_a_store_anywhere_can_be_compressed_where_it_is(tmp_path: Path) -> None:
    made = fill(tmp_path / "home")
    path = Path(made.path).rename(tmp_path / "renamed.zarr")
    cache = FeatureCache.open(path)
    assert shrink(cache, compress="zstd").store == path
    with pytest.raises(UsageError, match=r"renamed\.zarr lies in no folder 'features'; say where .* with --out"):
        shrink(cache, dtype="uint8")
    assert Path(shrink(cache, dtype="uint8", out=tmp_path / "other").store).parent == tmp_path / "other" / "features"


def test_compression_may_differ_by_recording_and_is_kept(tmp_path: Path) -> None:
    cache = fill(tmp_path, "zstd")
    cache.remove("a")
    add_recording(FeatureCache.open(cache.path), "a", "train", 9, seed=0)
    target = FeatureCache.open(shrink(cache, dtype="uint8").store)
    assert {name: target.recording(name).video.is_mapped for name in LENGTHS} == {"a": True, "b/c": False, "d": False}
    assert shrink(cache, compress="zstd").num_shrunk == 1


def test_what_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    cache = fill(tmp_path / "home")
    steps: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 1:
            raise KeyboardInterrupt

    options = CacheShrinkOptions(cache.path, dtype="uint8", num_workers=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        shrinking.shrink(options, stop)
    target = FeatureCache.open(tmp_path / "home" / "features" / make_smaller(cache.spec, options).store_name)
    num_there = len(target.recordings())
    assert (left_aside(target.path), steps) == ([], [(0, 3), (1, 3)])
    assert 1 <= num_there <= 2  # the one that was begun is ended
    summary = shrinking.shrink(options, lambda done, total: steps.append((done, total)))
    assert (summary.num_present, summary.num_shrunk) == (num_there, 3 - num_there)
    assert steps[2:] == [(done, 3) for done in range(num_there, 4)]
    assert metadata(target) == metadata(fill(tmp_path / "expected", storage={"dtype": "uint8", "maps": "whole"}))


@pytest.mark.parametrize("knobs", [{"dtype": "uint8"}, {"compress": "zstd"}])
@pytest.mark.parametrize("array", ["video", "video_1", "audio"])
def test_what_is_read_is_compared_on_the_way(tmp_path: Path, array: str, knobs: dict[str, str]) -> None:
    cache = fill(tmp_path, views={"count": 2})
    chunk = next(path for path in Path(cache.path, "recordings", "b%2Fc", array, "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UsageError, match=rf"recordings/b%2Fc/{array} is damaged"):
        shrink(cache, **knobs)
    assert bytes(content) == chunk.read_bytes()
    for path in tmp_path.glob("features/*.zarr"):
        target = FeatureCache.open(path)
        assert left_aside(target.path) == []
        assert path == cache.path or "b/c" not in target.names()


def refusals() -> Iterator[Any]:
    pooled = {"storage": {"dtype": "float16", "maps": "pooled"}, "video_shape": POOLED_SHAPE}
    levels = {"storage": {"dtype": "uint8", "maps": "whole"}}
    yield "nothing", {}, {}, "say what is to become smaller: --dtype uint8, --maps pooled, --compress zstd"
    yield "unknown dtype", {}, {"dtype": "float8"}, "unknown dtype 'float8'; known: float16, uint8"
    yield "unknown maps", {}, {"maps": "half"}, "unknown maps 'half'; known: whole, pooled"
    yield "unknown compression", {}, {"compress": "gzip"}, "unknown compress 'gzip'; known: none, zstd, pcodec"
    yield "bytes to halves", levels, {"dtype": "float16"}, "--dtype float16: the maps are bytes"
    yield "pooled to whole", pooled, {"maps": "whole"}, "--maps whole: the maps were pooled"
    yield "bytes by pcodec", levels, {"compress": "pcodec"}, "pcodec compresses float16, not uint8"
    yield "into bytes by pcodec", {}, {"compress": "pcodec", "dtype": "uint8"}, "pcodec compresses float16, not uint8"
    yield "run", {}, {"compress": "zstd", "run": (Path("r"),)}, "--run: compression changes no value, and so no pred"
    yield "no run", {}, {"dtype": "uint8", "run": (Path("nowhere"),)}, "nowhere does not exist"
    yield "device", {}, {"dtype": "uint8", "device": "tpu"}, "device 'tpu' is not here"


@pytest.mark.parametrize(("kept", "knobs", "message"), [pytest.param(*case[1:], id=case[0]) for case in refusals()])
def test_what_cannot_be_is_refused(tmp_path: Path, kept: dict[str, Any], knobs: dict[str, Any], message: str) -> None:
    cache = FeatureCache.create(tmp_path, toy_spec(**kept), {})
    add_recording(cache, "a", "train", 3, seed=0)
    with pytest.raises(UsageError, match=message):
        shrink(cache, **knobs)
    assert [path.name for path in tmp_path.glob("features/*.zarr")] == [Path(cache.path).name]


def test_what_is_as_it_was_wanted_stays(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    before = metadata(cache)
    summary = shrink(cache, dtype="float16", maps="whole", compress="none")
    assert (summary.store, summary.num_shrunk, summary.num_present) == (cache.path, 0, 3)
    assert metadata(cache) == before


def test_a_damaged_failure_is_not_left_behind_in_silence(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    Path(cache.path, "failures", "e%2Ff", "zarr.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"/failures is damaged; see what is wrong with: avfuse cache verify"):
        shrink(cache, dtype="uint8")


def refuse_writing(*_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_place_that_can_only_be_read_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fill(tmp_path / "home")
    before = metadata(cache)
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "prepare", refuse_writing)
        with pytest.raises(UsageError, match=rf"^{cache.path} cannot be written to \(Read-only.*\); .* with --out$"):
            shrink(cache, compress="zstd")
        for knobs in ({"dtype": "uint8"}, {"compress": "zstd", "out": other}):
            home = knobs.get("out", tmp_path / "home")
            with pytest.raises(UsageError, match=rf"^the cache {home} cannot be written to .*; give .*, with --out$"):
                shrink(cache, **knobs)
    assert metadata(cache) == before
    assert FeatureCache.open(shrink(cache, compress="zstd", out=other).store).recording("a").is_whole


# What stands where the smaller cache goes


def test_recordings_of_other_features_are_not_overwritten(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    target = FeatureCache.open(shrink(cache, dtype="uint8").store)
    cache.remove("a")
    add_recording(cache, "a", "train", 9, seed=7)
    before = metadata(target)
    with pytest.raises(UsageError, match="recordings/a was made from other features, targets or files than"):
        shrink(cache, dtype="uint8")
    assert metadata(target) == before
    target.remove("a")
    assert shrink(cache, dtype="uint8").num_shrunk == 1
    cache.remove("a")
    with pytest.raises(UsageError, match=r"holds 1 recordings that .* does not have, such as a; remove it"):
        shrink(cache, dtype="uint8")


def test_recordings_of_other_values_are_not_overwritten_by_the_same_settings(tmp_path: Path) -> None:
    cache, other = fill(tmp_path / "one"), fill(tmp_path / "other")
    other.remove("d")
    add_recording(other, "d", "test", 1, seed=9)
    with pytest.raises(UsageError, match="recordings/d was made from other features, targets or files than"):
        shrink(cache, compress="zstd", out=tmp_path / "other")
    assert other.recording("d").video.is_mapped


def test_a_damaged_recording_is_not_gone_on_from(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    target = FeatureCache.open(shrink(cache, dtype="uint8").store)
    with Path(target.path, "recordings", "a", "audio", "c", "0", "0").open("ab") as file:
        file.write(b"0")
    with pytest.raises(UsageError, match="recordings/a is damaged; see what is wrong"):
        shrink(cache, dtype="uint8")


def test_the_larger_cache_goes_once_the_smaller_was_verified(tmp_path: Path) -> None:
    cache = fill(tmp_path)
    target = FeatureCache.open(shrink(cache, dtype="uint8").store)
    chunk = Path(target.path, "recordings", "a", "video", "c", "0", "0", "0", "0")
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(
        UsageError, match=rf"is not as it was written, so that .* stays; see what is wrong with: .*{target.path}$"
    ):
        shrink(cache, dtype="uint8", replace=True)
    assert is_sound(cache)
    chunk.write_bytes(content)
    summary = shrink(cache, dtype="uint8", replace=True)
    assert (summary.is_replaced, summary.num_present, is_sound(target)) == (True, 3, True)
    assert (Path(cache.path).exists(), left_aside(cache.path)) == (False, [])
    assert summary.num_bytes_before > summary.num_bytes_after > 0


# Stores that are no folder


def test_one_file_becomes_a_smaller_folder(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    (tmp_path / "features").mkdir()
    file = tmp_path / "features" / "cache.h5"
    export_cache(CacheExportOptions(file, source.path))
    cache = FeatureCache.open(file)
    with pytest.raises(UsageError, match="can be read only; leave out --replace, and remove it yourself"):
        shrink(cache, dtype="uint8", replace=True)
    with pytest.raises(UsageError, match=r"no recording can take another's place there in one step; .* with --out"):
        shrink(cache, compress="zstd")
    target = FeatureCache.open(shrink(cache, dtype="uint8").store)
    assert Path(target.path).parent == tmp_path / "features"
    expected = fill(tmp_path / "expected", storage={"dtype": "uint8", "maps": "whole"})
    assert metadata(target) == metadata(expected)
    packed = FeatureCache.open(shrink(cache, compress="zstd", out=tmp_path / "packed").store)
    assert metadata(packed) == metadata(fill(tmp_path / "zstd", "zstd"))


def test_a_cache_on_a_server_becomes_smaller_there_or_here(tmp_path: Path, bucket: str) -> None:
    cache = fill(f"{bucket}/home")
    with pytest.raises(UsageError, match=r"no recording can take another's place there in one step; .* with --out"):
        shrink(cache, compress="zstd")
    there = FeatureCache.open(shrink(cache, dtype="uint8").store)
    here = FeatureCache.open(shrink(cache, dtype="uint8", out=tmp_path / "here").store)
    assert str(there.path).startswith(f"{bucket}/home/features/")
    expected = fill(tmp_path / "expected", storage={"dtype": "uint8", "maps": "whole"})
    assert metadata(there) == metadata(here) == metadata(expected)
    summary = shrink(cache, maps="pooled", replace=True)
    assert summary.is_replaced
    assert cache.store.files("") == {}
    assert FeatureCache.open(summary.store).ledger.failures() == expected.ledger.failures()


# Memory, and the command


def test_memory_holds_a_few_clips_however_long_a_recording_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avfuse.writer.MAX_CHUNK_CLIPS", 16)
    monkeypatch.setattr("avfuse.shrinking.CLIPS_AT_ONCE", 16)
    cache = FeatureCache.create(tmp_path, toy_spec(video_shape=(64, 7, 7)), {})
    block_NCHW = np.random.default_rng(0).normal(size=(16, 64, 7, 7)).astype(np.float32)
    with RecordingWriter(cache, "a", Source("train", "someone", "a.mp4", "0" * 64, None)) as writer:
        writer.begin(1600)
        for _ in range(100):
            writer.append(block_NCHW, np.zeros((16, 32), np.float32))
        writer.commit({}, fps=25.0)
    shrink(cache, dtype="uint8", compress="zstd")  # what is imported on the way is there now
    peaks = {}
    for maps in ("whole", "pooled"):
        tracemalloc.start()
        shrink(cache, dtype="uint8", maps=maps, out=tmp_path / maps)
        peaks[maps] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(peaks.values()) < cache.recording("a").video.num_bytes / 3


def test_the_command_names_sizes_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = toy_cache(tmp_path)
    (run,) = train(TrainOptions(cache=tmp_path, head="concat", epochs=2, learning_rate=3e-3, device="cpu"))
    knobs = ["cache", "shrink", str(store.path), "--device", "cpu"]

    def call(*words: str) -> str:
        with logging_and_signals_kept():
            cli.main([*knobs, *words], standalone_mode=False)
        return capsys.readouterr().out

    out = call("--dtype", "uint8", "--run", str(run.run))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    folder = "/".join(Path(run.run).parts[-2:])
    costs = [row for row in rows if row[:2] == [folder, "concat, seed 0"]]
    assert [row[2] for row in costs] == ["valence", "arousal"]
    for _, _, target, before, after, difference in costs:
        assert float(before) == pytest.approx(run.ccc[target], abs=5.1e-5)
        assert float(after) - float(before) == pytest.approx(float(difference), abs=1.1e-4)
    assert ["recordings", "9 (340 clips)"] in rows
    assert f"{store.path} stays; its runs are not runs of the smaller one" in "".join(out.split("\n"))
    found = json.loads(call("--maps", "pooled", "--run", str(run.run), "--json"))
    assert found["costs"][0]["before"] == pytest.approx(dict(run.ccc), abs=1e-6)
    out = call("--compress", "zstd")
    assert "stays" not in out
    assert "re-encoded now │ 9 " in out
    assert view_name(0) in store.recordings()[0].arrays
    assert "is removed" in call("--dtype", "uint8", "--replace")
    assert not Path(store.path).exists()


def test_runs_are_told_apart_and_means_are_those_of_one_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = [
        RunCost(str(tmp_path / folder / f"seed-{seed}"), head, seed, {"valence": 0.5}, {"valence": 0.5 + change})
        for folder, head, seed, change in (
            ("one/concat-aa", "concat", 0, -0.01),
            ("one/concat-bb", "concat", 0, -0.02),
            ("two/concat-aa", "concat", 1, -0.06),
            ("two/audio_only-cc", "audio_only", 0, 0.01),
        )
    ]
    _print_costs(costs)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        ["one/concat-aa/seed-0", "concat, seed 0", "valence", "0.5000", "0.4900", "-0.0100"],
        ["one/concat-bb/seed-0", "concat, seed 0", "valence", "0.5000", "0.4800", "-0.0200"],
        ["two/concat-aa/seed-1", "concat, seed 1", "valence", "0.5000", "0.4400", "-0.0600"],
        ["two/audio_only-cc/seed-0", "audio_only, seed 0", "valence", "0.5000", "0.5100", "+0.0100"],
        ["mean of 3", "concat", "valence", "", "", "-0.0300"],
    ]
    _print_costs(costs[3:])
    out = capsys.readouterr().out
    assert "│ audio_only-cc/seed-0 │" in out
    assert "mean" not in out
