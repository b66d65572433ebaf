"""Predictions of a partition: the mean over runs, smoothed and held to the ranges, written in every form."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import add_recording, toy_cache, toy_spec

from avfuse.cache import FeatureCache
from avfuse.options import PredictOptions, TrainOptions
from avfuse.predict import PredictSummary, predict
from avfuse.protocols import smooth
from avfuse.runs import read_predictions, read_run, write_run
from avfuse.schema import UsageError
from avfuse.train import train

RANGES = ((-0.1, 0.1), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Return a cache whose valence has a narrow range, and the runs of two seeds on it."""
    home = tmp_path_factory.mktemp("predict")
    store = FeatureCache.create(home, toy_spec(ranges=RANGES), {})
    for number, num_clips in enumerate((40, 33, 17)):
        add_recording(store, f"train-{number}", "train", num_clips, seed=number)
    add_recording(store, "validation-0", "validation", 45, seed=100)
    add_recording(store, "validation-1", "validation", 30, seed=101)
    add_recording(store, "test-0", "test", 12, seed=102, rated=False)
    add_recording(store, "test-1", "test", 50, seed=103, rated=False)
    options = TrainOptions(cache=home, head="concat", epochs=3, learning_rate=3e-3, device="cpu", seed=(0, 1))
    return home, [Path(item.run) for item in train(options)]


def predicted(home: Path, runs: list[Path], out: Path, **changes: Any) -> tuple[PredictSummary, list[dict[str, str]]]:
    out.mkdir(exist_ok=True)
    values = {"cache": home, "csv": out / "predictions.csv", "device": "cpu"}
    summary = predict(PredictOptions(runs=tuple(runs), **{**values, **changes}))
    with (out / "predictions.csv").open(newline="") as file:
        return summary, list(csv.DictReader(file))


def column(rows: list[dict[str, str]], recording: str, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows if row["recording"] == recording])


def test_the_validation_partition_is_predicted_as_it_was_scored(trained, tmp_path: Path) -> None:
    home, (run, _) = trained
    _, rows = predicted(home, [run], tmp_path, partition="validation")
    for item in read_predictions(run):
        valence, arousal = item.prediction_FE.T
        # written with six digits; the range of valence is narrow, arousal has none
        np.testing.assert_allclose(column(rows, item.recording, "valence"), valence.clip(-0.1, 0.1), rtol=1e-5)
        np.testing.assert_allclose(column(rows, item.recording, "arousal"), arousal, rtol=1e-5)
        assert np.abs(valence).max() > 0.1
        np.testing.assert_allclose(column(rows, item.recording, "time_s"), item.time_s, rtol=0, atol=5.1e-7)
        np.testing.assert_array_equal(column(rows, item.recording, "face"), item.face_F)
        np.testing.assert_array_equal(column(rows, item.recording, "frame"), np.arange(len(item.time_s)))


def test_several_runs_count_by_their_mean(trained, tmp_path: Path) -> None:
    home, runs = trained
    summary, rows = predicted(home, runs, tmp_path, partition="validation")
    assert summary.num_runs == 2
    for items in zip(*(read_predictions(run) for run in runs), strict=True):
        mean = np.mean([item.prediction_FE[:, 1] for item in items], axis=0)
        np.testing.assert_allclose(column(rows, items[0].recording, "arousal"), mean, rtol=2e-5, atol=1e-6)


def test_smoothing_is_by_target(trained, tmp_path: Path) -> None:
    home, (run, _) = trained
    _, plain = predicted(home, [run], tmp_path, partition="validation")
    _, rows = predicted(home, [run], tmp_path, partition="validation", smoothing=("arousal=2",))
    for item in read_predictions(run):
        expected = smooth(item.prediction_FE[:, 1].astype(np.float64), item.time_s, 2.0)
        np.testing.assert_allclose(column(rows, item.recording, "arousal"), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(column(rows, item.recording, "valence"), column(plain, item.recording, "valence"))


def test_the_test_partition_becomes_a_submission(trained, tmp_path: Path) -> None:
    home, runs = trained
    summary, rows = predicted(home, runs, tmp_path, submission=tmp_path / "submission")
    num_frames = {"test-0": 12 * 8 + 3, "test-1": 50 * 8 + 3}
    total = sum(num_frames.values())
    assert (summary.partition, summary.num_recordings, summary.num_frames) == ("test", 2, total)
    assert (summary.num_csv_rows, summary.num_submission_rows, len(rows)) == (total, total, total)
    for name, number in num_frames.items():
        lines = (tmp_path / "submission" / "videos" / f"{name}.txt").read_text().splitlines()
        assert len(lines) == number + 1
        values = np.array([[float(field) for field in line.split(",")] for line in lines[1:]])
        expected = np.stack([column(rows, name, target) for target in ("valence", "arousal")], axis=1)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1.1e-5)
        assert np.abs(values[:, 0]).max() <= 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"csv": None}, "nothing to write; give --csv FILE, --submission DIR, or both"),
        ({"template": Path("x")}, "--template lists the rows of a submission; give --submission DIR with it"),
        ({"smoothing": ("dominance=1",)}, "no target is called dominance"),
        ({"runs": (Path("/nowhere"),)}, "/nowhere does not exist"),
    ],
)
def test_refusals(trained, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    home, runs = trained
    values = {"runs": tuple(runs), "cache": home, "csv": tmp_path / "x.csv", "device": "cpu"}
    with pytest.raises(UsageError, match=message):
        predict(PredictOptions(**{**values, **changes}))
    assert not (tmp_path / "x.csv").exists()


def test_a_run_of_other_features_is_refused(trained, tmp_path: Path) -> None:
    toy_cache(tmp_path)
    with pytest.raises(UsageError, match=r"was trained on features \w+, .* holds others; extract the recordings"):
        predicted(tmp_path, trained[1], tmp_path)


def test_an_incomplete_run_is_refused(trained, tmp_path: Path) -> None:
    record = read_run(trained[1][0])
    write_run(tmp_path / "run", type(record)(**{**vars(record), "complete": False}))
    with pytest.raises(UsageError, match="run is incomplete; finish it with: avfuse fuse-train"):
        predicted(trained[0], [tmp_path / "run"], tmp_path)


def test_the_run_knows_the_ranges_and_the_hop(trained) -> None:
    record = read_run(trained[1][0])
    assert (record.ranges, record.hop) == (RANGES, 8)
