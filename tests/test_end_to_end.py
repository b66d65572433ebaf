"""The README's path with the real encoders: demo corpus, features, heads, table."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import logging_and_signals_kept

import avfuse
from avfuse import runs
from avfuse.cache import FeatureCache
from avfuse.cli import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo corpus through both stages, small, in this process: it imports once what every command needs."""
    home = tmp_path_factory.mktemp("home")
    weights = ("--video-weights", "random:0", "--audio-weights", "random:0")
    train = ("fuse-train", "--cache", home / "cache", "--epochs", 2, "--amp", "bf16", "--head")
    with logging_and_signals_kept():
        for command in (
            ("demo", home / "demo", "--subjects", 4, "--duration-s", 4),
            ("extract", home / "demo", "--cache", home / "cache", *weights),
            (*train, "recursive_joint_attention"),
            (*train, "audio_only"),
        ):
            cli.main([*map(str, command)], standalone_mode=False)
    return home


def test_features_have_the_published_shapes(home: Path) -> None:
    store = FeatureCache.find(home / "cache")
    assert store.spec.targets == ("valence", "arousal")
    recordings = store.recordings()
    assert {item.source.partition for item in recordings} == {"train", "validation", "test"}
    for item in recordings:
        assert item.num_clips == 100 // 8
        assert item.video.shape == (12, 512, 7, 7)
        assert item.array("audio").shape == (12, 512)
        target = item.array("frame_target")
        assert target.shape == (100, 2)
        assert np.isnan(target).all() == (item.source.partition == "test")
        assert item.array("frame_face").mean() > 0.3


def test_runs_hold_a_head_that_predicts(home: Path) -> None:
    for run in runs.find_runs([home / "cache" / "runs"]):
        head = avfuse.load_head(run)
        assert head.targets == ("valence", "arousal")
        (validation,) = runs.read_predictions(run)
        assert validation.partition == "validation"
        assert np.isfinite(validation.prediction_FE).all()


def test_the_report_has_a_row_per_head(home: Path) -> None:
    command = [sys.executable, "-m", "avfuse", "report", home / "cache" / "runs", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["head"], row["target"]) for row in rows] == [
        (head, target) for head in ("recursive_joint_attention", "audio_only") for target in ("valence", "arousal")
    ]
    by_head = {row["head"]: row for row in rows if row["target"] == "valence"}
    assert by_head["recursive_joint_attention"]["paper_ccc"] == 0.721
    assert all(row["seeds"] == 1 and row["ccc_sd"] is None for row in rows)
