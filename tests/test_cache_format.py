"""docs/cache-format.md says what is written: its examples run, its tables are those of the writers."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import zarr
from conftest import beep, write_video
from toy import toy_cache, toy_spec

from avfuse import registry
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheExportOptions, CacheImportOptions
from avfuse.cached import CachedRecording
from avfuse.encoding import codecs
from avfuse.extract import extract
from avfuse.foreign import import_features
from avfuse.hdf5 import export_cache
from avfuse.options import COMPRESSIONS, ExtractOptions
from avfuse.schema import Failure
from avfuse.sealed import read_sealed
from avfuse.spec import FORMAT_VERSION, Source, folder_name
from avfuse.writer import MAX_CHUNK_CLIPS, MAX_COMPRESSED_CHUNK_CLIPS, RecordingWriter

PAGE = (Path(__file__).parents[1] / "docs" / "cache-format.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NUM_CLIPS = 2 * MAX_CHUNK_CLIPS + 3


def table(heading: str) -> list[list[str]]:
    """Return the cells of the rows below the heading line of a table."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].splitlines()[2:]
    rows = [line for line, _ in zip(lines, iter(lambda: None, 1), strict=False)]
    end = next(number for number, line in enumerate(rows) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[:end]]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> CachedRecording:
    """Extract a recording as bytes, in two views."""
    root = tmp_path_factory.mktemp("root")
    write_video(root / "a.mp4", np.arange(40) / 25, lambda i: np.full((64, 64, 3), 90, np.uint8), beep(0.5, 1.8))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, row in tiny.ENCODERS.items():
            monkeypatch.setitem(registry.ENCODERS, name, row)
        options = ExtractOptions(
            root=root,
            corpus="folder",
            cache=root.parent / "cache",
            video_encoder="tiny_video",
            audio_encoder="tiny_audio",
            video_weights="none",
            audio_weights="none",
            device="cpu",
            precision="fp32",
            min_face_px=60,
            min_face_share=0.0,
            engine="serial",
            dtype="uint8",
            views=2,
        )
        summary = extract(options)
    assert summary.failures == ()
    (recording,) = FeatureCache.open(summary.store).recordings()
    return recording


def test_the_table_of_arrays_is_what_extraction_writes(extracted: CachedRecording) -> None:
    spec = FeatureCache.open(extracted.store.location).spec
    sizes = {
        "N": extracted.num_clips,
        "F": 40,
        "E": len(spec.targets),
        **dict(zip("CHW", spec.video_shape, strict=True)),
        "A": spec.audio_shape[0],
    }
    listed = {}
    for names, dtypes, shape, *_ in table("array | numbers | shape | unit | is"):
        name = re.findall(r"`(\w+)`", names)[0]
        listed[name] = {"dtype": dtypes.split(" or ")[-1], "shape": [sizes[letter] for letter in shape.split(", ")]}
    written = {name: {key: entry[key] for key in ("dtype", "shape")} for name, entry in extracted.arrays.items()}
    assert listed == written


def test_the_tables_of_attributes_are_what_is_written(extracted: CachedRecording) -> None:
    assert [re.findall(r"`(\w+)`", row[0]) for row in table("attribute | is")] == [
        [key] for key in ("recording", "num_clips", "fps", "fingerprint", "source", "arrays", "files")
    ]
    assert set(extracted.attributes) == {row[0].strip("`") for row in table("attribute | is")}
    source = next(row[1] for row in table("attribute | is") if row[0] == "`source`")
    assert set(re.findall(r"`(\w+)`", source)) == set(extracted.attributes["source"])
    settings = {name for row in table("in `spec` | is") for name in re.findall(r"`(\w+)`", row[0])}
    root = read_sealed(extracted.store.metadata("")) or {}
    assert settings == set(root["spec"])
    assert set(root) == {"spec", "fingerprint", "provenance"}
    assert f"Version {FORMAT_VERSION}." in PAGE
    assert f"| `format_version` | {FORMAT_VERSION} |" in PAGE


def test_what_is_said_of_an_incomplete_recording_and_of_a_failure(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path)
    counted = dict(
        zip(("num_video_packets", "num_video_lost", "num_audio_packets", "num_audio_lost"), range(4), strict=True)
    )
    with RecordingWriter(cache, "c", Source("train", "s", "c.mp4", "0" * 64, None)) as writer:
        writer.begin(0)
        writer.commit({}, fps=25.0, missing="audio", losses=counted)
    told = {row[0].strip("`"): row[1] for row in table("attribute of an incomplete recording | is")}
    plain = {row[0].strip("`") for row in table("attribute | is")}
    recording = cache.recording("c")
    assert set(recording.attributes) - plain == set(told)
    assert (recording.missing, recording.losses) == ("audio", counted)
    assert re.findall(r"`(\w+)`", told["losses"]) == list(counted)
    cache.ledger.record(Failure("d", "unreadable", "no frame"), None)
    entry = read_sealed(cache.store.metadata("failures/d")) or {}
    (line,) = re.findall(r"\*\*A failure\.\*\*(.*?)\n\n", PAGE, re.DOTALL)
    assert set(entry) == set(re.findall(r"`(\w+)`", line)) - {"unreadable"}


def test_the_table_of_features_of_others_is_what_an_import_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "maps.npy", np.ones((4, 6), np.float32))
    mapping = tmp_path / "others.toml"
    mapping.write_text(
        'fps = 5\nhop = 2\nvideo = "maps.npy"\n[[recordings]]\nrecording = "a"\npartition = "train"\n'
        'video = "maps.npy"\n[[recordings]]\nrecording = "b"\npartition = "train"\n',
        encoding="utf-8",
    )
    summary = import_features(CacheImportOptions(file=mapping, cache=tmp_path / "cache"))
    root = read_sealed(FeatureCache.open(summary.store).store.metadata("")) or {}
    rows = {name: row[1] for row in table("of others | is") for name in re.findall(r"`(\w+)`", row[0])}
    spec = root["spec"]
    assert f"`{spec['corpus']}`; `{spec['precision']}`" == rows["corpus"] == rows["precision"]
    assert spec["decoder"] == spec["detector"] == spec["libraries"] == {}
    assert rows["decoder"] == rows["detector"] == rows["libraries"] == "`{}`"
    assert spec["clip"] == {"hop": 2, "frames": 2, "dilation": 1, "first_frame": 1, "fps": 5}
    assert {name for name in spec["clip"] if f"`{name}`" in rows["clip"]} == set(spec["clip"])
    assert spec["video"] == {"encoder": "of others", "location": "maps.npy"}
    assert spec["audio"] == {"encoder": "none"}
    words = {"encoder", "location", "of others", "none", "by recording"}
    assert set(re.findall(r"`([\w ]+)`", rows["video"])) == words
    assert root["provenance"] == {"mapping": mapping.read_text(encoding="utf-8"), "avfuse": version("avfuse")}
    assert set(re.findall(r"`(\w+)`", rows["provenance"])) == set(root["provenance"])


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_the_table_of_codecs_is_what_is_written(tmp_path: Path, compress: str) -> None:
    if compress == "pcodec":
        pytest.importorskip("pcodec", reason="the package pcodec is an extra")
    rows = table("`--compress` | codecs of the maps | who reads it")
    row = next(row for row in rows if row[0].startswith(f"`{compress}`"))
    zarr.create_array(tmp_path, shape=(4,), dtype="float16", **codecs(compress))
    found = re.findall(r'"name": "([a-z0-9.]+)"', (tmp_path / "zarr.json").read_text())
    assert re.findall(r"`([a-z0-9.]+)`", row[1]) == [name for name in found if name not in ("regular", "default")]
    limits = (f"at most {MAX_CHUNK_CLIPS} clips", f"at most {MAX_COMPRESSED_CHUNK_CLIPS} where they are compressed")
    assert all(limit in " ".join(PAGE.split()) for limit in limits)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("batch1/Ünï (1)", "batch1%2F%C3%9Cn%C3%AF (1)"),
        ("~.a:b", "%7E.a%3Ab"),
        (".hidden", "%2Ehidden"),
        ("x" * 181, "x" * 163 + "~"),
        ("x" * 180, "x" * 180),
    ],
)
def test_keys_are_made_as_the_page_has_it(name: str, key: str) -> None:
    assert folder_name(name).startswith(key)
    assert len(folder_name(name)) == (180 if len(name) > 180 else len(key))


def make(home: Path, dtype: str) -> FeatureCache:
    spec = toy_spec(storage={"dtype": dtype, "maps": "whole"})
    cache = FeatureCache.create(home, spec, {"avfuse": "0"})
    rng = np.random.default_rng(0)
    for name, num_clips in (("a", 9), ("b/c", NUM_CLIPS)):
        with RecordingWriter(cache, name, Source("train", name, name, "0" * 64, None)) as writer:
            writer.begin(num_clips)
            video = rng.normal(size=(num_clips, *spec.video_shape)).astype(np.float32)
            writer.append(video, rng.normal(size=(num_clips, *spec.audio_shape)).astype(np.float32))
            writer.commit({"frame_time_s": np.arange(5) / 25}, fps=25.0)
    cache.ledger.record(Failure("d", "unreadable", "no frame"), None)
    return cache


def run(example: str, cache: FeatureCache, tmp_path: Path) -> dict[str, Any]:
    """Run an example of the page on a cache of ours, in place of the one it names; return its variables."""
    for name, place in (("cache/features/demo-0123456789ab.zarr", cache.path), ("demo.h5", tmp_path / "demo.h5")):
        example = example.replace(f'"{name}', f'"{place}')
    variables: dict[str, Any] = {}
    exec(compile(example, "docs/cache-format.md", "exec"), variables)  # it is our own page
    return variables


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_the_examples_read_what_avfuse_reads(tmp_path: Path, dtype: str) -> None:
    cache = make(tmp_path, dtype)
    export_cache(CacheExportOptions(file=tmp_path / "demo.h5", cache=cache.path))
    recording = cache.recording("b/c")
    recording.check(0)
    stored = np.concatenate(list(recording.video.chunks()))
    scale = recording.scale()
    values = stored if scale is None else scale[1][:, None, None] + scale[0][:, None, None] * stored
    seal, plain, hdf5, mapped = EXAMPLES
    assert run(seal, cache, tmp_path)["attributes"]["spec"] == cache.spec.to_json()
    found = run(plain, cache, tmp_path)
    np.testing.assert_array_equal(found["maps"], values)
    assert found["partition_of"] == {"a": "train", "b/c": "train"}
    found = run(hdf5, cache, tmp_path)
    np.testing.assert_array_equal(found["window"], recording.array("audio")[4:8])
    assert found["partition_of"] == {"a": "train", "b/c": "train"}
    found = run(mapped, cache, tmp_path)
    assert len(found["chunks"]) == 3
    np.testing.assert_array_equal(found["maps"], stored)
