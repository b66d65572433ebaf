"""Predictions of a partition: the mean over runs, smoothed and held to the ranges, written in every form."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import add_recording, toy_cache, toy_spec

from avfuse.cache import FeatureCache
from avfuse.checkpoint import load_head
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
    told = r"was trained on features \w+, .* holds others \(ranges: .* there, .* here\); extract the recordings"
    with pytest.raises(UsageError, match=told):
        predicted(tmp_path, trained[1], tmp_path)
    record = read_run(trained[1][0])
    write_run(tmp_path / "before", type(record)(**{**vars(record), "settings": {}}))
    with pytest.raises(UsageError, match="holds others; extract the recordings with the settings of its training"):
        predicted(tmp_path, [tmp_path / "before"], tmp_path)


def test_an_incomplete_run_is_refused(trained, tmp_path: Path) -> None:
    record = read_run(trained[1][0])
    write_run(tmp_path / "run", type(record)(**{**vars(record), "complete": False}))
    with pytest.raises(UsageError, match="run is incomplete; finish it with: avfuse fuse-train"):
        predicted(trained[0], [tmp_path / "run"], tmp_path)


def test_the_run_knows_the_ranges_and_the_hop(trained) -> None:
    record = read_run(trained[1][0])
    assert (record.ranges, record.hop) == (RANGES, 8)


def test_a_store_without_ratings_is_predicted_all_the_same(trained, tmp_path: Path) -> None:
    """A run that names no features, as an imported one does, predicts a folder that nobody rated."""
    record = read_run(trained[1][0])
    run = tmp_path / "imported"
    write_run(run, type(record)(**{**vars(record), "fingerprint": ""}))
    (run / "head.pt").write_bytes((trained[1][0] / "head.pt").read_bytes())
    store = FeatureCache.create(tmp_path / "home", toy_spec(targets=(), ranges=()), {})
    add_recording(store, "a", "test", 20, seed=0)
    summary, rows = predicted(tmp_path / "home", [run], tmp_path / "out")
    assert (summary.targets, summary.num_frames, len(rows)) == (("valence", "arousal"), 163, 163)
    assert np.std(column(rows, "a", "valence")) > 0


def test_a_recording_is_predicted_on_the_windows_of_its_validation(tmp_path: Path) -> None:
    """Windows overlap and the precision is the training's: predictions are the run's own, to the last digit."""
    store = FeatureCache.create(tmp_path, toy_spec(), {})
    for number in range(3):
        add_recording(store, f"train-{number}", "train", 40, seed=number)
    add_recording(store, "validation", "validation", 150, seed=9)  # several windows per phase
    common = {"cache": tmp_path, "head": "concat", "epochs": 1, "device": "cpu", "amp": "bf16"}
    (summary,) = train(TrainOptions(**common))
    _, rows = predicted(tmp_path, [Path(summary.run)], tmp_path / "out", partition="validation")
    (item,) = read_predictions(Path(summary.run))
    np.testing.assert_array_equal(
        column(rows, "validation", "valence"), [float(f"{v:.6g}") for v in item.prediction_FE[:, 0]]
    )


def test_what_cannot_be_written_is_refused_before_anything_is_predicted(trained, tmp_path: Path, monkeypatch) -> None:
    home, runs = trained
    monkeypatch.setattr("avfuse.predict.load_head", lambda place: pytest.fail("a head was loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    template = tmp_path / "template.txt"
    template.write_text("image_location,valence,arousal\nsomething/00001.jpg,0,0\n")
    submission = tmp_path / "submission"
    for changes, message in (
        ({"submission": tmp_path / "full"}, "full is there already"),
        ({"submission": submission, "template": template}, "1 of 1 videos of the template are not predicted"),
        ({"csv": tmp_path / "nowhere" / "x.csv"}, r"--csv .*x\.csv: the folder .*nowhere does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(PredictOptions(**{"runs": tuple(runs), "cache": home, "device": "cpu", **changes}))


def test_runs_of_other_targets_or_folds_are_refused(trained, tmp_path: Path) -> None:
    home, (run, other) = trained
    record = read_run(run)
    for name, changes, message in (
        ("targets", {"targets": ("dominance",)}, "predicts dominance; .* is rated for valence, arousal"),
        (
            "fold",
            {"options": {**record.options, "fold": "1/3"}},
            "held out fold 1/3 and was trained on others of the val",
        ),
    ):
        write_run(tmp_path / name, type(record)(**{**vars(record), **changes}))
        with pytest.raises(UsageError, match=message):
            predicted(home, [other, tmp_path / name], tmp_path, partition="validation")


def test_a_prediction_that_is_not_finite_is_refused(trained, tmp_path: Path, monkeypatch) -> None:
    def diverged(place: Path):
        head = load_head(place)
        for parameter in head.parameters():
            parameter.data.fill_(float("nan"))
        return head

    monkeypatch.setattr("avfuse.predict.load_head", diverged)
    with pytest.raises(UsageError, match="test-0: a prediction is not finite; a training diverged, leave that run out"):
        predicted(trained[0], [trained[1][0]], tmp_path)
    assert not (tmp_path / "predictions.csv").exists()


def test_recordings_that_changed_since_the_training_are_said(trained, tmp_path: Path, caplog) -> None:
    home, (run, _) = trained
    predicted(home, [run], tmp_path)
    assert "have changed since" not in caplog.text
    record = read_run(run)
    changed = tmp_path / "run"
    write_run(changed, type(record)(**{**vars(record), "features": "0" * 64}))
    (changed / "head.pt").write_bytes((run / "head.pt").read_bytes())
    predicted(home, [changed], tmp_path)
    assert "training or validation recordings of" in caplog.text
