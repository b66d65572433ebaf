"""The report's numbers come from the predictions, by the oracle's formula; runs that do not compare are refused."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pytest

from avfuse import registry
from avfuse.options import ReportOptions
from avfuse.report import report
from avfuse.runs import RunRecord, read_predictions, write_predictions, write_run
from avfuse.schema import Predictions, ReportTable, UsageError

TARGETS = ("valence", "arousal")
LENGTHS = (120, 75, 200)
OPTIONS = {"num_clips": 16, "learning_rate": 1e-4}
RJA, RELIABILITY = "recursive_joint_attention", "reliability_joint_attention"
NOTHING = "\N{EN DASH}"
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
    paper = np.array([0.493, 0.613])
    expected = [
        (f"{mean[column]:.3f} ± {sd[column]:.3f}", f"{paper[column]:.3f}\n({mean[column] - paper[column]:+.3f})")
        for column in range(2)
    ]
    overall = f"{both.mean():.3f} ± {both.std(ddof=1):.3f}"
    assert table.rows[0][:-1] == ("concat", *expected[0], *expected[1], overall)


def test_columns_rows_and_the_papers_values(tmp_path: Path) -> None:
    make_run(tmp_path / "visual", "visual_only")
    make_run(tmp_path / "concat", "concat")
    make_run(tmp_path / "rja3", RJA, head_options={"recursions": 3})
    make_run(tmp_path / "rja", RJA)
    make_run(tmp_path / "odd", RJA, head_options={"dropout": 0.4, "recursions": 3})
    table = table_of(tmp_path)
    assert [" ".join(column.split()) for column in table.columns] == [
        "head, options",
        "CCC valence",
        "paper valence (diff.)",
        "CCC arousal",
        "paper arousal (diff.)",
        "mean CCC",
        "runs, code",
    ]
    assert [(row[0], row[2][:5], row[4][:5]) for row in table.rows] == [
        (RJA, "0.721", "0.694"),
        (f"{RJA}\ndropout=0.4,\nrecursions=3", NOTHING, NOTHING),
        (f"{RJA}\nrecursions=3", "0.706", "0.652"),
        ("concat", "0.493", "0.613"),
        ("visual_only", NOTHING, NOTHING),
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    first, last = table.records[0], table.records[-1]
    scores = [f"{metric}_{what}" for metric in registry.METRICS for what in ("mean", "sd")]
    tests = [f"ccc_{what}" for what in ("low", "high", "gain", "gain_low", "gain_high", "gain_seeds", "p", "p_holm")]
    names = "paper_ccc paper_dataset paper_method difference dataset fingerprint revisions runs"
    head = ["head", "options", "target", "protocol"]
    assert list(first) == [*head, *scores, "seeds", "against", *tests, *names.split()]
    assert [first[key] for key in ("options", "ccc_sd", "paper_ccc", "paper_dataset")] == ["", None, 0.721, "Affwild2"]
    assert first["paper_method"] == "JA w/ recursion: BLSTMs t=2"
    assert first["difference"] == first["ccc_mean"] - 0.721
    assert (last["paper_ccc"], last["paper_dataset"], last["difference"]) == (None, None, None)


def test_every_row_says_where_it_comes_from(tmp_path: Path) -> None:
    for seed in (10, 1, 0):
        make_run(tmp_path / "runs" / "concat-3fa9c1d2" / f"seed-{seed}", seed=seed, revision="0123456789ab")
    make_run(tmp_path / "runs" / "old" / "seed-4", "visual_only", seed=4)
    make_run(tmp_path / "runs" / "audio" / "here", "audio_only", revision="0123456789ab, 0.1.0")
    make_run(tmp_path / "runs" / "audio" / "there", "audio_only", seed=1, revision="0.1.0")
    table = table_of(tmp_path)
    assert [row[-1] for row in table.rows] == [
        "concat-3fa9c1d2/seed-{0,1,10}\n0123456789ab",
        "audio/{here,there}\n0123456789ab 0.1.0",
        "old/seed-4",
    ]
    record = table.records[0]
    assert record["runs"] == [str(tmp_path / "runs" / "concat-3fa9c1d2" / f"seed-{seed}") for seed in (0, 1, 10)]
    assert (record["revisions"], record["fingerprint"], record["dataset"]) == (["0123456789ab"], "cafe0123", "demo")
    notes = "\n".join(table.notes)
    assert f"Data set demo, feature cache cafe0123; runs in {tmp_path / 'runs'}." in notes
    assert (
        "The runs stem from several revisions of the code: 0123456789ab (3 runs); 0123456789ab, 0.1.0 (1 run); "
        "0.1.0 (1 run); an unknown one (1 run)."
    ) in notes
    assert not any("several revisions" in note for note in table_of(tmp_path / "runs" / "concat-3fa9c1d2").notes)


def test_training_options_that_differ_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", options=OPTIONS, head_options={"dropout": 0.2})
    make_run(tmp_path / "b", options={**OPTIONS, "num_clips": 8}, head_options={"dropout": 0.2})
    options = [f"concat\ndropout=0.2,\nnum_clips={number}" for number in (16, 8)]
    assert [row[0] for row in table_of(tmp_path).rows] == options
    assert [row[0] for row in table_of(tmp_path / "a").rows] == ["concat\ndropout=0.2"]


def test_targets_that_the_paper_does_not_rate(tmp_path: Path) -> None:
    make_run(tmp_path, "unregistered", targets=("dominance",))
    table = table_of(tmp_path)
    assert table.columns == ("head,\noptions", "CCC\ndominance", "mean\nCCC", "runs,\ncode")
    assert not any("paper" in note for note in table.notes)
    assert table.rows[0][1] == table.rows[0][2]


def test_fatigue_stands_beside_the_papers_third_table(tmp_path: Path) -> None:
    make_run(tmp_path, "audio_only", targets=("fatigue",))
    table = table_of(tmp_path)
    assert table.columns[2] == "paper\nfatigue\n(diff.)"
    assert table.rows[0][2].startswith("0.312\n(")
    assert table.records[0]["paper_dataset"] == "Fatigue"


def test_notes(tmp_path: Path) -> None:
    predictions = make_run(tmp_path / "concat", "concat")
    for name in ("torn", "torn2"):
        make_run(tmp_path / name, "concat", seed=9, complete=False)
    table = table_of(tmp_path)
    num_rated = sum(int((~np.isnan(p.target_FE[:, 0])).sum()) for p in predictions)
    notes = "\n".join(table.notes)
    assert table.title == "Validation CCC on demo"
    assert "CCC: Concordance correlation coefficient (Lin 1989), with the population's variances." in table.notes
    assert "Protocol: strict: rated frames, predictions as they are." in notes
    assert f"3 recordings of 3 subjects, 395 frames; rated frames: valence {num_rated}, arousal {num_rated}. " in notes
    assert "Data set demo, feature cache cafe0123; runs in " in notes
    assert "2 runs are incomplete, or without the runs of the other folds, and left out." in notes
    assert "(arXiv 2304.07958, Tables 1-3; in brackets: ours - the paper's)" in notes
    assert "measured on the validation partition of Affwild2" in notes
    assert "not comparable" in notes
    assert "±" not in notes
    assert "beat" not in notes


def test_says_when_the_proposed_head_does_not_beat_concatenation(tmp_path: Path) -> None:
    make_run(tmp_path / "concat", "concat", predictions=make_predictions(0.3, 0))
    make_run(tmp_path / "good", RJA, predictions=make_predictions(0.1, 0))
    make_run(tmp_path / "bad", RJA, predictions=make_predictions(0.9, 0), head_options={"recursions": 4})
    table = table_of(tmp_path)
    means = {row[0]: row[-2] for row in table.rows}
    bad, baseline = means[f"{RJA}\nrecursions=4"], means["concat"]
    expected = f"{RJA} (recursions=4) does not beat concat here: mean CCC {bad} against {baseline}."
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
    assert [row[3:6] for row in table.rows] == [(NOTHING, paper, NOTHING) for paper in ("0.694", "0.613")]
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


def test_a_training_that_diverged_is_shown_as_undefined(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    predictions[0].prediction_FE[0, 0] = np.nan
    make_run(tmp_path / "diverged", predictions=predictions)
    table = table_of(tmp_path)
    assert table.rows[0][1] == NOTHING
    assert table.rows[0][3] != NOTHING
    assert "CCC valence is undefined for concat: no frame is rated, " in "\n".join(table.notes)
    assert "or a training diverged." in "\n".join(table.notes)


def test_a_title_of_its_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert report(ReportOptions(runs=(tmp_path,), title="Table 2")).title == "Table 2"


def reliability_notes(tmp_path: Path, differences: Sequence[float], **changes: Any) -> list[str]:
    """Return what is said of two heads whose mean CCC differ by these, seed by seed."""
    for seed, difference in enumerate(differences):
        make_run(tmp_path / "rja" / f"seed-{seed}", RJA, seed=seed, predictions=offset_predictions(0.5))
        predictions = offset_predictions(0.5 + difference)
        make_run(tmp_path / "rel" / f"seed-{seed}", RELIABILITY, seed=seed, predictions=predictions, **changes)
    return [note for note in table_of(tmp_path).notes if RELIABILITY in note]


def offset_predictions(ccc: float) -> list[Predictions]:
    """Return predictions with this CCC: ratings of variance 1, and the ratings moved by what lowers the CCC to it."""
    target_FE = np.tile(np.array([[-1.0], [1.0]]), (50, 2))
    shift = (2 / ccc - 2) ** 0.5  # CCC = 2 / (1 + 1 + shift^2)
    (item,) = make_predictions(0.3, 0, lengths=(100,))
    return [replace(item, prediction_FE=(target_FE + shift).astype(np.float32), target_FE=target_FE.astype(np.float32))]


def test_reliability_takes_five_seeds_to_tell(tmp_path: Path) -> None:
    (note,) = reliability_notes(tmp_path, [0.1, 0.1, 0.1, 0.1])
    assert note == (
        f"{RELIABILITY} against {RJA}: paired difference of mean CCC +0.100 ± 0.000 over 4 common seeds; "
        "too few to tell, it takes 5."
    )
    make_run(tmp_path / "rel" / "seed-9", RELIABILITY, seed=9)  # has no partner
    assert note in table_of(tmp_path).notes


def test_reliability_with_one_seed_or_none(tmp_path: Path) -> None:
    (note,) = reliability_notes(tmp_path, [-0.1])
    assert note.endswith("paired difference of mean CCC -0.100 over 1 common seed; too few to tell, it takes 5.")
    make_run(tmp_path / "rja" / "seed-0", RJA, seed=1)
    assert any(note.endswith(f"{RJA}: no seed in common, nothing to tell.") for note in table_of(tmp_path).notes)


def test_reliability_that_is_not_better_is_not_recommended(tmp_path: Path) -> None:
    differences = [0.10, -0.05, 0.05, 0.00, 0.02]
    sd = np.std(differences, ddof=1)
    (note,) = reliability_notes(tmp_path, differences)
    assert note.endswith(
        f"paired difference of mean CCC +0.024 ± {sd:.3f} over 5 common seeds, not above twice its standard error "
        f"({2 * sd / 5**0.5:.3f}); over seeds it is not better, and therefore not recommended."
    )


def test_reliability_between_one_and_two_standard_errors_is_not_better(tmp_path: Path) -> None:
    differences = [0.10, -0.03, 0.09, 0.00, 0.02]
    mean, error = np.mean(differences), np.std(differences, ddof=1) / 5**0.5
    assert error < mean < 2 * error
    (note,) = reliability_notes(tmp_path, differences)
    assert note.endswith("over seeds it is not better, and therefore not recommended.")


def test_reliability_that_diverged_is_not_recommended(tmp_path: Path) -> None:
    reliability_notes(tmp_path, [0.10, 0.12, 0.11, 0.08, 0.09])
    broken = make_predictions(0.3, 0)
    for item in broken:
        item.prediction_FE[:] = np.nan
    make_run(tmp_path / "rel" / "seed-5", RELIABILITY, seed=5, predictions=broken)
    make_run(tmp_path / "rja" / "seed-5", RJA, seed=5)
    (note,) = [note for note in table_of(tmp_path).notes if " against " in note]
    assert note.endswith("undefined in 1 of 6 common seeds; not recommended.")


def test_reliability_that_is_better(tmp_path: Path) -> None:
    (note,) = reliability_notes(tmp_path, [0.10, 0.12, 0.11, 0.08, 0.09])
    assert "+0.100 ± 0.016 over 5 common seeds, above twice its standard error (0.014); over seeds" in note
    assert note.endswith("on these recordings, it is better by 0.100.")


def test_reliability_is_compared_with_the_defaults_trained_alike(tmp_path: Path) -> None:
    make_run(tmp_path / "best", RJA, predictions=offset_predictions(0.9), head_options={"recursions": 3})
    (note,) = reliability_notes(tmp_path, [0.1])
    assert f"against {RJA}: paired difference of mean CCC +0.100" in note
    for place in (tmp_path / "rja").iterdir():
        make_run(place, RJA, options={**OPTIONS, "num_clips": 8})
    (note,) = [note for note in table_of(tmp_path).notes if RELIABILITY in note]
    assert f"against {RJA} (num_clips=16, recursions=3): paired difference of mean CCC -0.300" in note


@pytest.mark.parametrize("name", list(registry.FORMATS))
def test_every_format_writes_the_report(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", RJA, head_options={"joint_blstm": False})
    make_run(tmp_path / "b", RJA, seed=1, head_options={"joint_blstm": False})
    text = registry.load("format", name)(table_of(tmp_path))
    for words in ("valence", f"{tmp_path.name}/" if name in ("csv", "json") else "cafe0123"):
        assert words in text.replace(r"\_", "_")


def test_report_imports_no_torch() -> None:
    code = "import sys, avfuse.report, avfuse.metrics.ccc; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of two seeds on seven subjects; the second is clearly the worse."""
    place = tmp_path_factory.mktemp("runs")
    for head, noise in (("concat", 0.3), ("visual_only", 0.9)):
        for seed in (0, 1):
            predictions = make_predictions(noise, seed, lengths=(120, 75, 200, 90, 60, 150, 110))
            make_run(place / head / f"seed-{seed}", head, seed=seed, predictions=predictions)
    return place


def test_a_score_stands_with_its_interval_and_its_difference(two_rows: Path) -> None:
    table = table_of(two_rows)
    record = next(
        record for record in table.records if (record["head"], record["target"]) == ("visual_only", "valence")
    )
    assert record["ccc_low"] < record["ccc_mean"] < record["ccc_high"]
    assert record["ccc_gain_low"] < record["ccc_gain"] < record["ccc_gain_high"] < 0
    assert (record["against"], record["ccc_gain_seeds"]) == ("concat", 2)
    assert record["ccc_p"] == 2 / 2**7  # worse in every recording: only the exchange of all is as far
    assert record["ccc_p_holm"] == 2 * record["ccc_p"]  # two tests
    assert table.rows[1][1] == (
        f"{record['ccc_mean']:.3f} ± {record['ccc_sd']:.3f}\n[{record['ccc_low']:.3f}, {record['ccc_high']:.3f}]\n"
        f"{record['ccc_gain']:+.3f}, p 0.031"
    )
    assert table.rows[0][1].count("\n") == 1  # the rival has no difference to itself
    assert table.records[0]["against"] is None


def test_the_metrics_asked_for_are_columns_and_all_are_in_the_records(two_rows: Path) -> None:
    table = report(ReportOptions(runs=(two_rows,), metric=("rmse", "ccc"), against="visual_only"))
    labels = [column.replace("\n", " ") for column in table.columns]
    assert labels[1:3] == ["RMSE valence", "CCC valence"]
    assert table.title == "Validation scores on demo"
    assert table.records[0]["against"] == "visual_only"
    for record in table.records:
        assert {f"{metric}_mean" for metric in registry.METRICS} <= set(record)
        assert ("rmse_low" in record, "mae_low" in record) == (True, False)
    assert not any("paper" in label for label in [*report(ReportOptions(runs=(two_rows,), metric=("mae",))).columns])


def test_sign_agreement_of_ratings_without_signs_is_not_shown(tmp_path: Path) -> None:
    make_run(tmp_path, targets=("fatigue",), ranges=((0.0, 10.0),))
    table = report(ReportOptions(runs=(tmp_path,), metric=("sagr",)))
    assert table.rows[0][1] == NOTHING
    assert any("Signs of fatigue cannot agree" in note for note in table.notes)


@pytest.mark.parametrize(("by", "parts"), [("recording", 7), ("subject", 7), ("face", 3), ("coverage", 5)])
def test_rows_are_divided(by: str, parts: int, two_rows: Path) -> None:
    table = report(ReportOptions(runs=(two_rows,), by=by, metric=("ccc", "mae")))
    assert len(table.rows) == 2 * parts
    assert len(table.records) == 2 * parts * len(TARGETS)
    assert table.columns[1] == by
    assert table.title == f"Validation scores on demo, by {by}"
    num_rated = sum(int((~np.isnan(p.target_FE[:, 0])).sum()) for p in read_predictions(two_rows / "concat" / "seed-0"))
    for head in ("concat", "visual_only"):
        frames = {r[by]: r["frames"] for r in table.records if (r["head"], r["target"]) == (head, "valence")}
        assert frames.pop("all frames", num_rated) == sum(frames.values()) == num_rated
    assert {"protocol", "dataset", "fingerprint", "revisions", "runs"} <= set(table.records[0])
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_protocols_change_the_score_and_are_said(two_rows: Path) -> None:
    means = {}
    for protocol in ("strict", "smoothed", "released"):
        table = report(ReportOptions(runs=(two_rows,), protocol=(protocol,)))
        means[protocol] = table.records[0]["ccc_mean"]
        assert table.records[0]["protocol"].startswith(protocol)
        assert any(note.startswith("Protocol") and protocol in note for note in table.notes)
    assert len(set(means.values())) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": "frames"}, "frames"),
        ({"against": "nobody"}, "no row is called 'nobody'"),
        ({"protocol": ("dominance=strict",)}, "no target is called dominance"),
        ({"protocol": ("kind",)}, "unknown protocol 'kind'"),
        ({"by": "face", "resample": "frames"}, "frames cannot be resampled"),
        ({"by": "face", "against": "nobody"}, "no row is called 'nobody'"),
    ],
)
def test_options_that_cannot_be_used(changes: dict[str, Any], message: str, two_rows: Path) -> None:
    with pytest.raises(UsageError, match=message):
        report(ReportOptions(runs=(two_rows,), **changes))


def test_the_same_seed_gives_the_same_table(two_rows: Path) -> None:
    assert str(table_of(two_rows)) == str(table_of(two_rows))  # NaN is not equal to itself
