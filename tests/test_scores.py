"""Runs become rows: scored from their predictions by the oracle's formula, gathered over seeds, in the order given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import RJA, TARGETS, TOLERANCE, make_predictions, make_run, oracle

from avfuse.schema import Predictions, UsageError
from avfuse.scores import Row, score


def rows_of(*places: Path) -> list[Row]:
    return score(places)[0]


def test_a_row_holds_the_scores_of_its_seeds(tmp_path: Path) -> None:
    predictions = {seed: make_run(tmp_path / f"seed-{seed}", seed=seed, revision="a, b") for seed in (10, 2)}
    make_run(tmp_path / "torn", seed=3, complete=False)
    (row,), num_incomplete = score([tmp_path])
    expected = [[oracle(predictions[seed], column) for column in range(2)] for seed in (2, 10)]
    assert num_incomplete == 1
    assert [item.record.seed for item in row.runs] == [2, 10]
    assert row.values_SE() == pytest.approx(np.array(expected), abs=TOLERANCE)
    assert row.mean_ccc == pytest.approx({2: np.mean(expected[0]), 10: np.mean(expected[1])}, abs=TOLERANCE)
    assert row.overall_ccc == pytest.approx(np.mean(expected), abs=TOLERANCE)
    assert (row.head, row.options, row.label, row.revisions) == ("concat", "", "concat", ["a", "b"])
    assert list(row.runs[0].num_rated) == list(TARGETS)


def test_runs_named_one_by_one_keep_their_order_and_those_of_a_folder_the_registrys(tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {"b": {"recursions": 3}, "c": {}, "a": {"recursions": 1}}
    make_run(tmp_path / "concat", "concat")
    make_run(tmp_path / "strange", "strange")
    for name in options:
        make_run(tmp_path / name, RJA, head_options=options[name])
    labels = [RJA, f"{RJA} (recursions=1)", f"{RJA} (recursions=3)", "concat", "strange"]
    assert [row.label for row in rows_of(tmp_path)] == labels
    named = ["concat", f"{RJA} (recursions=3)", RJA]
    places = (tmp_path / "concat", tmp_path / "b", tmp_path / "c", tmp_path)
    assert [row.label for row in rows_of(*places)] == [*named, f"{RJA} (recursions=1)", "strange"]


def test_other_partitions_are_not_scored(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    stranger = Predictions(**{**vars(predictions[0]), "partition": "train", "recording": "train"})
    make_run(tmp_path / "a", predictions=[*predictions, stranger])
    assert rows_of(tmp_path)[0].values_SE()[0, 0] == pytest.approx(oracle(predictions, 0), abs=TOLERANCE)
    make_run(tmp_path / "b", predictions=[stranger])
    with pytest.raises(UsageError, match="b holds no predictions of the validation partition"):
        rows_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "beef"}, r"different feature caches: cafe0123 \(.*/a\) and beef \(.*/b\); report each by"),
        ({"features": "other"}, r"different states of that cache:  \(.*/a\) and other \(.*/b\)"),
        ({"dataset": "other"}, r"different data sets: demo \(.*/a\) and other \(.*/b\)"),
        ({"targets": ("valence",)}, r"different targets: valence, arousal \(.*/a\) and valence \(.*/b\)"),
        ({"seed": 0}, r"/a and .*/b are the same training, seed 0; give one of them"),
    ],
)
def test_runs_that_do_not_compare_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **{"seed": 1, **changes})
    with pytest.raises(UsageError, match=message):
        rows_of(tmp_path)


def test_runs_of_other_features_say_in_which_settings_they_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", settings={"video": {"arch": "r3d_18"}, "precision": "fp32"})
    make_run(tmp_path / "b", settings={"video": {"arch": "r2plus1d_18"}, "precision": "fp32"}, fingerprint="beef")
    told = r"beef \(.*/b\): video\.arch: r3d_18 in the first, r2plus1d_18 in the second; report each by itself"
    with pytest.raises(UsageError, match=told):
        rows_of(tmp_path)


def test_an_incomplete_run_of_another_cache_does_not_matter(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", fingerprint="beef", complete=False)
    assert score([tmp_path])[1] == 1


def test_nothing_to_report(tmp_path: Path) -> None:
    make_run(tmp_path / "a", complete=False)
    with pytest.raises(UsageError, match="none of 1 runs is complete; finish one with: avfuse fuse-train"):
        rows_of(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        rows_of(tmp_path / "nowhere")


def test_predictions_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    predictions = make_predictions(0.3, 0)
    predictions[0].target_FE[:, 0] = np.inf
    make_run(tmp_path / "infinite", predictions=predictions)
    with pytest.raises(UsageError, match=r"infinite cannot be scored on valence: .* infinite .*; train it again"):
        rows_of(tmp_path / "infinite")
    make_run(tmp_path / "mixed", predictions=make_predictions(0.3, 0, ("arousal", "valence")))
    with pytest.raises(UsageError, match="mixed is damaged: its predictions are of arousal, valence, its record"):
        rows_of(tmp_path / "mixed")


def make_folds(place: Path, seed: int, num_folds: int = 3, missing: int | None = None) -> list[Predictions]:
    """Make the runs of all folds of a seed, one recording held out in each; return all predictions."""
    everything = make_predictions(0.3, seed)
    for index in range(num_folds):
        if index != missing:
            fold = {"num_clips": 16, "fold": f"{index + 1}/{num_folds}"}
            held_out, revision = everything[index : index + 1], f"code {index}"
            make_run(place / f"{seed}-{index}", seed=seed, options=fold, predictions=held_out, revision=revision)
    return everything


def test_the_folds_of_a_seed_are_one_run(tmp_path: Path) -> None:
    expected = [[oracle(make_folds(tmp_path, seed), column) for column in range(2)] for seed in (0, 1)]
    (row,), num_incomplete = score([tmp_path])
    assert row.values_SE() == pytest.approx(np.array(expected), abs=TOLERANCE)
    assert (row.seeds, row.options, num_incomplete) == ((0, 1), "", 0)
    assert [place.name for place in row.runs[1].places] == ["1-0", "1-1", "1-2"]
    assert row.runs[0].recordings == ("recording 0", "recording 1", "recording 2")
    assert row.revisions == ["code 0", "code 1", "code 2"]


def test_rows_with_and_without_folds_are_told_apart(tmp_path: Path) -> None:
    make_folds(tmp_path / "folds", 0)
    make_run(tmp_path / "plain", options={"num_clips": 16, "fold": None})
    assert sorted(row.options for row in rows_of(tmp_path)) == ["", "folds=3"]


def test_a_seed_with_a_missing_fold_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folds(tmp_path, 0)
    make_folds(tmp_path, 1, missing=1)
    (row,), num_incomplete = score([tmp_path])
    assert (row.seeds, num_incomplete) == ((0,), 2)
    assert "fold 2/3 is missing" in caplog.text
    make_folds(tmp_path / "alone", 2, missing=0)
    with pytest.raises(UsageError, match="none of 2 runs stands beside those of all other folds; train the missing"):
        score([tmp_path / "alone"])


def test_a_recording_held_out_twice_is_refused(tmp_path: Path) -> None:
    everything = make_predictions(0.3, 0)
    for index in range(2):
        make_run(tmp_path / str(index), options={"fold": f"{index + 1}/2"}, predictions=everything)
    with pytest.raises(UsageError, match="hold out the same recording; train them again on one machine"):
        score([tmp_path])


@pytest.mark.parametrize("by", ["recording", "subject", "face", "coverage"])
def test_a_row_is_divided_without_a_frame_lost(by: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    predictions = [
        Predictions(**{**vars(item), "face_F": rng.random(len(item.time_s)) > 0.4}) for item in make_predictions(0.3, 0)
    ]
    make_run(tmp_path, predictions=predictions)
    (row,), _ = score([tmp_path], by=by)
    parts = row.divided(by)
    whole = parts.pop("all frames") if by in ("face", "coverage") else row
    assert whole.values("ccc", "valence") == row.values("ccc", "valence")
    assert sum(part.num_scored("valence") for part in parts.values()) == row.num_scored("valence")
    assert len(parts) == {"recording": 3, "subject": 3, "face": 2, "coverage": 4}[by]
    if by == "recording":
        for item in predictions:
            assert parts[item.recording].values("ccc", "valence")[0] == pytest.approx(oracle([item], 0), abs=TOLERANCE)
    if by == "face":
        for name, seen in (("frames with a face", True), ("frames without a face", False)):
            masked = [
                Predictions(
                    **{**vars(item), "target_FE": np.where((item.face_F == seen)[:, None], item.target_FE, np.nan)}
                )
                for item in predictions
            ]
            assert parts[name].values("ccc", "arousal")[0] == pytest.approx(oracle(masked, 1), abs=TOLERANCE)


def test_every_protocol_scores_by_its_own_frames(tmp_path: Path) -> None:
    make_run(tmp_path)
    (strict,), _ = score([tmp_path])
    (mixed,), _ = score([tmp_path], ["valence=released", "arousal=smoothed"], ["0.5"])
    assert mixed.num_scored("valence") == sum((120, 75, 200))  # the release scores every frame
    assert mixed.num_scored("arousal") == strict.num_scored("arousal") < strict.runs[0].num_frames
    assert mixed.values("ccc", "valence") != strict.values("ccc", "valence")


def test_subjects_are_not_recordings(tmp_path: Path) -> None:
    predictions = [Predictions(**{**vars(item), "subject": "one"}) for item in make_predictions(0.3, 0)]
    make_run(tmp_path, predictions=predictions)
    (row,), _ = score([tmp_path])
    assert (list(row.divided("subject")), len(row.divided("recording"))) == (["one"], 3)


def test_smoothing_takes_a_protocol_that_smooths(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(UsageError, match="--smoothing 3 applies to the smoothed protocol; add --protocol smoothed"):
        score([tmp_path], smoothing=["3"])
    (row,), _ = score([tmp_path], ["smoothed"], ["valence=0.5"])
    assert row.evaluation.smoothing_s == {"valence": 0.5, "arousal": 1.0}
