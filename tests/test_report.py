"""The report's numbers come from the predictions, by the oracle's formula; runs that do not compare are refused."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pytest

from avfuse import registry
from avfuse.options import ReportOptions
from avfuse.report import report
from avfuse.runs import RunRecord, write_predictions, write_run
from avfuse.schema import Predictions, ReportTable, UsageError

TARGETS = ("valence", "arousal")
LENGTHS = (120, 75, 200)
OPTIONS = {"num_clips": 16, "learning_rate": 1e-4}
RJA = "recursive_joint_attention"
# Predictions are float32; report and oracle both sum them in float64, in another order.
TOLERANCE = 1e-9


def make_predictions(
    noise: float, seed: int, targets: Sequence[str] = TARGETS, lengths: Sequence[int] = LENGTHS
) -> list[Predictions]:
    """Ratings that are the same for every run, a fifth unrated, and predictions that miss them by `noise`."""
    rating_rng, noise_rng = np.random.default_rng(7), np.random.default_rng(seed)
    predictions = []
    for index, length in enumerate(lengths):
        target_FE = np.tanh(rating_rng.normal(index / 2, 0.4, size=(length, len(targets)))).astype(np.float32)
        prediction_FE = target_FE + noise_rng.normal(0, noise, size=target_FE.shape).astype(np.float32)
        target_FE[rating_rng.random(length) < 0.2] = np.nan
        predictions.append(
            Predictions(
                recording=f"recording {index}",
                subject=f"{index}",
                partition="validation",
                targets=tuple(targets),
                time_s=np.arange(length) / 30,
                prediction_FE=prediction_FE.astype(np.float32),
                target_FE=target_FE,
                face_F=np.ones(length, bool),
            )
        )
    return predictions


def make_run(
    run: Path, head: str = "concat", *, seed: int = 0, predictions: list[Predictions] | None = None, **changes: Any
) -> list[Predictions]:
    predictions = (
        predictions if predictions is not None else make_predictions(0.3, seed, changes.get("targets", TARGETS))
    )
    values = {
        "head_options": {},
        "targets": TARGETS,
        "options": OPTIONS,
        "fingerprint": "cafe0123",
        "dataset": "demo",
        "complete": True,
    }
    write_run(run, RunRecord(head=head, seed=seed, **{**values, **changes}))
    write_predictions(run, predictions)
    return predictions


def table_of(*places: Path) -> ReportTable:
    return report(ReportOptions(runs=places))


def oracle(predictions: list[Predictions], column: int) -> float:
    prediction = np.concatenate([p.prediction_FE[:, column] for p in predictions]).astype(np.float64)
    target = np.concatenate([p.target_FE[:, column] for p in predictions]).astype(np.float64)
    rated = ~np.isnan(target)
    return audmetric.concordance_cc(target[rated], prediction[rated])


def test_ccc_mean_and_deviation(tmp_path: Path) -> None:
    noise = {0: 0.2, 1: 0.4, 2: 0.7}
    runs = [
        make_run(tmp_path / f"seed-{seed}", seed=seed, predictions=make_predictions(noise[seed], seed))
        for seed in noise
    ]
    table = table_of(tmp_path)
    scores = np.array([[oracle(predictions, column) for column in range(2)] for predictions in runs])
    mean = scores.sum(axis=0) / 3
    sd = (((scores - mean) ** 2).sum(axis=0) / 2) ** 0.5
    assert [record["target"] for record in table.records] == list(TARGETS)
    for column, record in enumerate(table.records):
        assert record["ccc_mean"] == pytest.approx(mean[column], abs=TOLERANCE)
        assert record["ccc_sd"] == pytest.approx(sd[column], abs=TOLERANCE)
        assert record["seeds"] == 3
    both = scores.mean(axis=1)
    expected = (
        *(f"{mean[column]:.3f} ± {sd[column]:.3f}" for column in range(2)),
        f"{both.mean():.3f} ± {both.std(ddof=1):.3f}",
    )
    assert table.rows[0][:6] == ("concat", "\N{EN DASH}", "3", *expected)


def test_runs_named_one_by_one_keep_their_order_within_a_head(tmp_path: Path) -> None:
    names = {"b": {"recursions": 3}, "c": {}, "a": {"recursions": 1}}
    for name, head_options in names.items():
        make_run(tmp_path / name, RJA, head_options=head_options)
    make_run(tmp_path / "concat", "concat")
    table = report(ReportOptions(runs=(tmp_path / "concat", *(tmp_path / name for name in names), tmp_path)))
    assert [row[1] for row in table.rows] == ["recursions=3", "\N{EN DASH}", "recursions=1", "\N{EN DASH}"]


def test_columns_rows_and_the_papers_values(tmp_path: Path) -> None:
    make_run(tmp_path / "visual", "visual_only")
    make_run(tmp_path / "concat", "concat")
    make_run(tmp_path / "rja3", RJA, head_options={"recursions": 3})
    make_run(tmp_path / "rja", RJA)
    make_run(tmp_path / "odd", RJA, head_options={"dropout": 0.5})
    table = table_of(tmp_path)
    assert table.columns == (
        "head",
        "options",
        "seeds",
        "CCC valence",
        "CCC arousal",
        "mean CCC",
        "paper valence, Affwild2 validation",
        "paper arousal, Affwild2 validation",
    )
    assert [(*row[:3], *row[6:]) for row in table.rows] == [
        (RJA, "\N{EN DASH}", "1", "0.721", "0.694"),
        (RJA, "dropout=0.5", "1", "\N{EN DASH}", "\N{EN DASH}"),
        (RJA, "recursions=3", "1", "0.706", "0.652"),
        ("concat", "\N{EN DASH}", "1", "0.493", "0.613"),
        ("visual_only", "\N{EN DASH}", "1", "\N{EN DASH}", "\N{EN DASH}"),
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    first, last = table.records[0], table.records[-1]
    assert list(first) == ["head", "options", "target", "ccc_mean", "ccc_sd", "seeds", "paper_ccc", "paper_dataset"]
    assert (first["options"], first["ccc_sd"], first["paper_ccc"], first["paper_dataset"]) == (
        "",
        None,
        0.721,
        "Affwild2",
    )
    assert (last["paper_ccc"], last["paper_dataset"]) == (None, None)


def test_training_options_that_differ_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", options=OPTIONS, head_options={"dropout": 0.2})
    make_run(tmp_path / "b", options={**OPTIONS, "num_clips": 8}, head_options={"dropout": 0.2})
    assert [row[1] for row in table_of(tmp_path).rows] == ["dropout=0.2, num_clips=16", "dropout=0.2, num_clips=8"]
    assert [row[1] for row in table_of(tmp_path / "a").rows] == ["dropout=0.2"]


def test_targets_that_the_paper_does_not_rate(tmp_path: Path) -> None:
    make_run(tmp_path, "unregistered", targets=("dominance",))
    table = table_of(tmp_path)
    assert table.columns == ("head", "options", "seeds", "CCC dominance", "mean CCC")
    assert not any("paper" in note for note in table.notes)
    assert table.rows[0][3] == table.rows[0][4]


def test_fatigue_stands_beside_the_papers_third_table(tmp_path: Path) -> None:
    make_run(tmp_path, "audio_only", targets=("fatigue",))
    table = table_of(tmp_path)
    assert table.columns[-1] == "paper fatigue, Fatigue validation"
    assert table.rows[0][-1] == "0.312"
    assert table.records[0]["paper_dataset"] == "Fatigue"


def test_notes(tmp_path: Path) -> None:
    predictions = make_run(tmp_path / "concat", "concat")
    for name in ("torn", "torn2"):
        make_run(tmp_path / name, "concat", seed=9, complete=False)
    table = table_of(tmp_path)
    num_rated = sum(int((~np.isnan(p.target_FE[:, 0])).sum()) for p in predictions)
    notes = "\n".join(table.notes)
    assert table.title == "Validation CCC on demo"
    assert "Lin's concordance correlation coefficient (1989) with the population's variances" in notes
    assert "not smoothed" in notes
    assert f"3 recordings, 395 frames; rated frames: valence {num_rated}, arousal {num_rated}. " in notes
    assert "Data set demo, feature cache cafe0123." in notes
    assert "2 runs are incomplete and left out." in notes
    assert "(arXiv 2304.07958, Tables 1-3) were measured on Affwild2" in notes
    assert "not comparable" in notes
    assert "±" not in notes
    assert "beat" not in notes


def test_says_when_the_proposed_head_does_not_beat_concatenation(tmp_path: Path) -> None:
    make_run(tmp_path / "concat", "concat", predictions=make_predictions(0.3, 0))
    make_run(tmp_path / "good", RJA, predictions=make_predictions(0.1, 0))
    make_run(tmp_path / "bad", RJA, predictions=make_predictions(0.9, 0), head_options={"recursions": 4})
    table = table_of(tmp_path)
    means = {row[:2]: row[5] for row in table.rows}
    expected = (
        f"{RJA} (recursions=4) does not beat concat here: mean CCC {means[RJA, 'recursions=4']} "
        f"against {means['concat', chr(0x2013)]}."
    )
    assert [note for note in table.notes if "beat" in note] == [expected]


def test_equal_scores_are_no_win(tmp_path: Path) -> None:
    for head in ("concat", RJA):
        make_run(tmp_path / head, head, predictions=make_predictions(0.3, 0))
    assert any("does not beat concat here" in note for note in table_of(tmp_path).notes)


def test_undefined_ccc_is_said(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    for item in predictions:
        item.target_FE[:, 1] = np.nan
    make_run(tmp_path / "rja", RJA, predictions=predictions)
    make_run(tmp_path / "concat", predictions=predictions)
    table = table_of(tmp_path)
    assert [row[4:6] for row in table.rows] == [("\N{EN DASH}", "\N{EN DASH}")] * 2
    assert np.isnan(table.records[1]["ccc_mean"])
    assert any(note.startswith(f"CCC arousal is undefined for {RJA}: no frame is rated") for note in table.notes)
    assert not any("beat" in note for note in table.notes)
    assert '"ccc_mean": null' in registry.load("format", "json")(table)


def test_runs_scored_on_other_frames_are_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "concat")
    make_run(tmp_path / "b", "visual_only", predictions=make_predictions(0.3, 0, lengths=(50, 60)))
    (note,) = [note for note in table_of(tmp_path).notes if "not scored on the same frames" in note]
    assert "3 recordings with 395 frames" in note
    assert "2 recordings with 110 frames" in note


def test_other_partitions_are_not_scored(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    stranger = Predictions(**{**vars(predictions[0]), "partition": "train", "recording": "train"})
    make_run(tmp_path / "a", predictions=[*predictions, stranger])
    assert table_of(tmp_path).records[0]["ccc_mean"] == pytest.approx(oracle(predictions, 0), abs=TOLERANCE)
    make_run(tmp_path / "b", predictions=[stranger])
    with pytest.raises(UsageError, match="b holds no predictions of the validation partition"):
        table_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "beef"}, r"different feature caches: cafe0123 \(.*/a\) and beef \(.*/b\); report each by"),
        ({"dataset": "other"}, r"different data sets: demo \(.*/a\) and other \(.*/b\)"),
        ({"targets": ("valence",)}, r"different targets: valence, arousal \(.*/a\) and valence \(.*/b\)"),
        ({"seed": 0}, r"/a and .*/b are the same training, seed 0; give one of them"),
    ],
)
def test_runs_that_do_not_compare_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **{"seed": 1, **changes})
    with pytest.raises(UsageError, match=message):
        table_of(tmp_path)


def test_an_incomplete_run_of_another_cache_does_not_matter(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", fingerprint="beef", complete=False)
    assert "1 run is incomplete and left out." in table_of(tmp_path).notes


def test_nothing_to_report(tmp_path: Path) -> None:
    make_run(tmp_path / "a", complete=False)
    with pytest.raises(UsageError, match="none of 1 runs is complete; finish one with: avfuse fuse-train"):
        table_of(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        table_of(tmp_path / "nowhere")


def test_predictions_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    predictions[0].prediction_FE[:, 0] = np.nan
    make_run(tmp_path / "diverged", predictions=predictions)
    with pytest.raises(UsageError, match=r"diverged cannot be scored on valence: .* NaN .*; train it again"):
        table_of(tmp_path / "diverged")
    make_run(tmp_path / "mixed", predictions=make_predictions(0.3, 0, ("arousal", "valence")))
    with pytest.raises(UsageError, match="mixed is damaged: its predictions are of arousal, valence, its record"):
        table_of(tmp_path / "mixed")


@pytest.mark.parametrize("name", list(registry.FORMATS))
def test_every_format_writes_the_report(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", RJA, head_options={"joint_blstm": False})
    make_run(tmp_path / "b", RJA, seed=1, head_options={"joint_blstm": False})
    assert "valence" in registry.load("format", name)(table_of(tmp_path))


def test_report_imports_no_torch() -> None:
    code = "import sys, avfuse.report, avfuse.metrics.ccc; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
