import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from avfuse import registry, sizing
from avfuse.networks import Networks
from avfuse.options import ExtractOptions
from avfuse.schema import Recording, UsageError
from avfuse.sizing import Sample, TrialStores, Way, known_ways
from avfuse.spec import Source
from avfuse.timeline import ClipGrid, Timeline

RECORDING = Recording("someone/a", Path("a.mp4"), "train", "someone")
NUM_FRAMES, HOP = 85, 8
CRC_BYTES = 4  # behind each array of one chunk
SMALL_BYTES = 10 * 4 + 2 * 4 + 4 + 8 + 8  # of a clip: audio, target, face_share, end_frame, end_time_s
FRAME_BYTES = 8 + 2 * 4 + 1 + 4  # frame_time_s, frame_target, frame_face, frame_face_probability


@pytest.fixture(autouse=True)
def tiny_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in tiny.ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)


def sample_of(num_clips: int, num_views: int = 1) -> Sample:
    rng = np.random.default_rng(0)
    timeline = Timeline.from_pts(np.arange(NUM_FRAMES), 1 / 25)
    target_FE = np.zeros((NUM_FRAMES, 2), np.float32)
    source = Source("train", "someone", "a.mp4", "0" * 64, None)
    sample = Sample(RECORDING, "", source, timeline, ClipGrid.lay(timeline, HOP), target_FE)
    for start in range(0, num_clips, 4):
        count = min(4, num_clips - start)
        maps = [np.round(rng.normal(size=(count, 8, 2, 2))).astype(np.float32) for _ in range(num_views)]
        sample.batches.append((rng.normal(size=(count, 10)).astype(np.float32), *maps))
    return sample


def stores_below(home: Path, **changes: Any) -> TrialStores:
    names = {"video_encoder": "tiny_video", "audio_encoder": "tiny_audio", "precision": "fp32"}
    options = ExtractOptions(home / "root", corpus="folder", hop=HOP, **names, **changes)
    networks = Networks.make(options, torch.device("cpu"))
    options.root.mkdir()
    (options.root / "a.mp4").touch()
    corpus = registry.load("corpus", "folder")(options.root)
    return TrialStores(options, corpus, networks, home)


def test_a_sample_knows_its_clips_and_the_frames_below_them() -> None:
    sample = sample_of(6)
    assert (sample.num_clips, sample.num_frames) == (6, 6 * HOP)
    audio_NA, maps_NCHW = sample.first(5)
    assert (audio_NA.shape, maps_NCHW.shape) == ((5, 10), (5, 8, 2, 2))
    np.testing.assert_array_equal(audio_NA[4], sample.batches[1][0][0])
    assert sample_of(10).num_frames == NUM_FRAMES  # all clips: what is behind the last one too


def test_bytes_are_those_of_the_arrays(tmp_path: Path) -> None:
    num_views = 3
    taken = stores_below(tmp_path, views=num_views).sizes(sample_of(10, num_views))
    small = 10 * SMALL_BYTES + NUM_FRAMES * FRAME_BYTES + 9 * CRC_BYTES
    for dtype, maps, num_bytes in (
        ("float16", "whole", 10 * 8 * 4 * 2),
        ("float16", "pooled", 10 * 8 * 2),
        ("uint8", "whole", 10 * 8 * 4 + 2 * (8 * 4 + CRC_BYTES) / num_views),  # with scale and offset of each channel
        ("uint8", "pooled", 10 * 8 + 2 * (8 * 4 + CRC_BYTES) / num_views),
    ):
        expected = small + num_views * (num_bytes + CRC_BYTES)
        assert taken[Way(dtype, maps, "none")].per_clip == pytest.approx(expected / 10, abs=1e-9)
    packed, plain = (taken[Way("float16", "whole", compress)] for compress in ("zstd", "none"))
    assert packed.per_clip < plain.per_clip
    # What does not grow with the clips: the metadata of the recording and of its arrays.
    assert 5_000 < plain.fixed < 20_000


def test_no_more_clips_are_kept_in_every_way_than_tell_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "MAX_SIZED_CLIPS", 6)
    monkeypatch.setattr(sizing, "known_ways", lambda: [Way("float16", "whole", "none")])
    taken = stores_below(tmp_path).sizes(sample_of(10))
    expected = 6 * (SMALL_BYTES + 64) + 6 * HOP * FRAME_BYTES + 10 * CRC_BYTES
    assert taken[Way("float16", "whole", "none")].per_clip == pytest.approx(expected / 6, abs=1e-9)


def test_what_is_written_does_not_stay(tmp_path: Path) -> None:
    stores, way = stores_below(tmp_path), Way("uint8", "pooled", "zstd")
    files = stores.write(way, sample_of(10), 3)
    assert {file.partition("/")[0] for file in files} >= {"video", "audio", "target", "frame_face", "zarr.json"}
    assert stores.write(way, sample_of(10), 3) == files
    (store,) = (tmp_path / "zstd" / "features").glob("*.zarr")
    assert [path.name for path in (store / "recordings").iterdir()] == ["zarr.json"]


def test_a_modality_that_is_missing_is_told_in_the_metadata(tmp_path: Path) -> None:
    stores, way = stores_below(tmp_path), Way("float16", "whole", "none")
    files = stores.write(way, sample_of(3), 3)
    lacking = stores.write(way, dataclasses.replace(sample_of(3), lacking="audio"), 3)
    assert lacking["zarr.json"] > files["zarr.json"]
    assert {**lacking, "zarr.json": 0} == {**files, "zarr.json": 0}


def test_ways_that_cannot_be_had_here_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Way("uint8", "whole", "pcodec") not in known_ways()
    found = known_ways()

    def without_pcodec(compress: str, dtype: str) -> dict[str, Any]:
        if compress == "pcodec":
            raise UsageError("compression by pcodec needs that package")
        return {}

    monkeypatch.setattr(sizing, "codecs", without_pcodec)
    assert known_ways() == [way for way in found if way.compress != "pcodec"]
    assert len(known_ways()) == 8
