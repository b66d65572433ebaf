"""What smaller maps cost a run: the CCC that its training found, and that of the same head on the other maps."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import CHANNELS, HOP, add_recording, toy_spec

from avfuse.cache import FeatureCache
from avfuse.cached import CachedRecording
from avfuse.cost import RunCost, find_cost, read_runs
from avfuse.encoding import pool
from avfuse.options import TrainOptions
from avfuse.runs import read_run, write_run
from avfuse.schema import UsageError
from avfuse.train import train
from avfuse.writer import RecordingWriter

CPU = torch.device("cpu")
POOLED: dict[str, Any] = {"storage": {"dtype": "float16", "maps": "pooled"}, "video_shape": (CHANNELS, 1, 1)}


WEIGHT_HW = np.array([[2.0, 0.6], [-1.0, 0.4]])  # by which the mean of the cells tells less than they do


def fill(home: Path, act: Any = lambda maps_NCHW: maps_NCHW, **changes: Any) -> FeatureCache:
    """Make a cache whose cells differ, its maps changed by `act`."""
    toy = FeatureCache.create(home / "toy", toy_spec(), {})
    for number, num_clips in enumerate((40, 33, 17)):
        add_recording(toy, f"train-{number}", "train", num_clips, seed=number)
    add_recording(toy, "validation-0", "validation", 45, seed=100)
    add_recording(toy, "validation-1", "validation", 30, seed=101)
    level_CHW = np.random.default_rng(0).normal(size=(CHANNELS, 2, 2))
    cache = FeatureCache.create(home, toy_spec(**changes), {})
    for item in toy.recordings():
        arrays = {name: item.array(name) for name in item.arrays.keys() - {"video", "audio"}}
        maps_NCHW = (maps_of(item) * WEIGHT_HW + level_CHW).astype(np.float16)
        with RecordingWriter(cache, item.name, item.source) as writer:
            writer.begin(item.num_clips)
            writer.append(act(maps_NCHW).astype(np.float32), item.array("audio"))
            writer.commit(arrays, item.fps)
    return cache


def maps_of(item: CachedRecording) -> Any:
    return np.concatenate(list(item.video.chunks()))


def trained(cache: FeatureCache, out: Path, **knobs: Any) -> Path:
    options = {"head": "visual_only", "epochs": 3, "learning_rate": 3e-3, "device": "cpu", "out": out, **knobs}
    (run,) = train(TrainOptions(cache=cache.path, **options))
    return Path(run.run)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return fill(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def run(source: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(source, tmp_path_factory.mktemp("runs"))


def cost_of(run: Path, source: FeatureCache, target: FeatureCache) -> RunCost:
    ((place, record),) = read_runs([run], source)
    return find_cost(place, record, source, target, CPU)


@pytest.mark.parametrize("knobs", [{}, {"overlap": 0}, {"fold": "2/3"}, {"amp": "bf16"}])
def test_before_is_what_training_found(source: FeatureCache, tmp_path: Path, knobs: dict[str, Any]) -> None:
    run = trained(source, tmp_path, **knobs)
    record = read_run(run)
    cost = cost_of(run, source, source)
    assert cost.before == cost.after == pytest.approx(record.summary["ccc"], abs=1e-6)
    assert (cost.run, cost.head, cost.seed) == (str(run), "visual_only", 0)


def test_bytes_cost_little_and_not_nothing(source: FeatureCache, run: Path, tmp_path: Path) -> None:
    cost = cost_of(run, source, fill(tmp_path, storage={"dtype": "uint8", "maps": "whole"}))
    assert cost.after != cost.before
    assert cost.after == pytest.approx(cost.before, abs=0.01)  # a level is half a percent of a channel's range


def test_a_head_of_whole_maps_sees_its_mean_map_moved_to_the_pooled_mean(
    source: FeatureCache, run: Path, tmp_path: Path
) -> None:
    """The oracle is a cache of such maps, whole."""
    mean_CHW = np.concatenate([maps_of(item) for item in source.recordings("train")]).mean(axis=0, dtype=np.float64)
    difference_CHW = mean_CHW - mean_CHW.mean(axis=(1, 2), keepdims=True)
    moved = fill(tmp_path / "moved", lambda maps_NCHW: pool(maps_NCHW) + difference_CHW)
    flat = fill(tmp_path / "flat", lambda maps_NCHW: np.broadcast_to(pool(maps_NCHW), maps_NCHW.shape))
    found = cost_of(run, source, fill(tmp_path / "pooled", **POOLED)).after
    assert found == pytest.approx(cost_of(run, source, moved).after, abs=2e-3)  # halves have eleven bits
    for other in (source, flat):
        assert abs(found["valence"] - cost_of(run, source, other).after["valence"]) > 0.02


def test_a_released_form_sees_the_pooled_mean_in_every_cell(source: FeatureCache, tmp_path: Path) -> None:
    run = trained(source, tmp_path / "runs", head="recursive_joint_attention", head_option=("form=released",), epochs=1)
    flat = fill(tmp_path / "flat", lambda maps_NCHW: np.broadcast_to(pool(maps_NCHW), maps_NCHW.shape))
    cost = cost_of(run, source, fill(tmp_path / "pooled", **POOLED))
    assert cost.after == pytest.approx(cost_of(run, source, flat).after, abs=1e-6)
    assert cost.after != pytest.approx(cost.before, abs=1e-3)


def test_a_head_of_pooled_maps_takes_them_as_they_are(tmp_path: Path) -> None:
    pooled = fill(tmp_path / "pooled", **POOLED)
    run = trained(pooled, tmp_path / "runs")
    levels = fill(tmp_path / "bytes", **{**POOLED, "storage": {"dtype": "uint8", "maps": "pooled"}})
    cost = cost_of(run, pooled, levels)
    assert cost.before == pytest.approx(read_run(run).summary["ccc"], abs=1e-6)
    assert cost.after == pytest.approx(cost.before, abs=0.01)


def test_runs_of_other_features_are_refused(source: FeatureCache, run: Path, tmp_path: Path) -> None:
    other = fill(tmp_path, clip={"hop": HOP, "frames": 4, "dilation": 4})
    told = r"was trained on features \w+, not on those of .*\(clip\.frames: 8 there, 4 here\); give runs of that store"
    with pytest.raises(UsageError, match=told):
        read_runs([run], other)
    with pytest.raises(UsageError, match="does not exist"):
        read_runs([tmp_path / "nowhere"], source)
    copy = tmp_path / "run"
    write_run(copy, dataclasses.replace(read_run(run), complete=False))
    with pytest.raises(UsageError, match="is incomplete; finish it with: avfuse fuse-train"):
        read_runs([copy], source)


def test_runs_of_recordings_that_have_changed_are_warned_of(
    source: FeatureCache, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, dataclasses.replace(read_run(run), features="0" * 64))
    with caplog.at_level(logging.WARNING):
        assert len(read_runs([tmp_path, run], source)) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "have changed since it was trained" in caplog.text
