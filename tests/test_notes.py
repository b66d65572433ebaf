"""The sentences below a table say how scores came about, and what they do not support."""

from pathlib import Path

import numpy as np
import pytest
from test_comparison import make_row
from test_report import make_predictions, make_run
from test_scores import make_folds

from avfuse.comparison import choose_rival, compare
from avfuse.notes import baseline_notes, count, data_notes, moments, paper_targets, scoring_notes, statistics_notes
from avfuse.scores import Row, score


def row_of(place: Path, **changes: object) -> Row:
    make_run(place, **changes)
    return score([place])[0][0]


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    assert moments(np.array([1.0, 2.0, 4.0])) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert moments(np.array([0.5])) == (0.5, None)


def test_a_target_of_the_paper_is_known_by_its_name() -> None:
    assert paper_targets(("valence", "dominance", "fatigue")) == {"valence": "Affwild2", "fatigue": "Fatigue"}


def test_each_protocol_is_named_with_its_targets(tmp_path: Path) -> None:
    make_run(tmp_path)
    (same,), _ = score([tmp_path])
    (mixed,), _ = score([tmp_path], ["valence=released", "smoothed"], ["0.5"])
    assert "Protocol: strict: rated frames, predictions as they are." in scoring_notes([same], ("ccc",), None)
    said = "\n".join(scoring_notes([mixed], ("ccc",), None))
    assert "Protocol of valence: released: predictions clipped to [-1, 1] and averaged over 20 frames" in said
    assert "Protocol of arousal: smoothed: rated frames, predictions averaged over a centred 0.5 s." in said


@pytest.mark.parametrize(
    ("hop", "said"),
    [
        (1, "A clip ends at every frame, and the frame has its prediction (of a variable rate, interpolated)."),
        (
            8,
            "One clip ends every 8 frames (of a variable rate, at its mean); predictions of the frames between are "
            "interpolated linearly.",
        ),
        (0, None),  # a record of before does not say
    ],
)
def test_interpolation_is_said(hop: int, said: str | None, tmp_path: Path) -> None:
    notes = scoring_notes([row_of(tmp_path, hop=hop)], ("ccc",), None)
    assert said in notes if said else not any("clip" in note for note in notes)


def test_every_metric_is_explained(tmp_path: Path) -> None:
    said = scoring_notes([row_of(tmp_path)], ("ccc", "rmse"), None)
    assert said[0] == "Scored over the frames of all validation recordings together."
    assert [note.split(":")[0] for note in said[1:3]] == ["CCC", "RMSE"]


def test_what_makes_one_score_is_said(tmp_path: Path) -> None:
    row = row_of(tmp_path)
    first = {by: scoring_notes([row], ("ccc",), by)[0] for by in ("recording", "subject", "face", "coverage")}
    assert first["recording"] == "Each score is over the frames of one recording of the validation partition."
    assert "one subject" in first["subject"]
    assert "by whether the frame shows the face" in first["face"]
    assert "share of the 32 frames up to each frame that show the face" in first["coverage"]


def test_signs_take_a_range_with_both(tmp_path: Path) -> None:
    row = row_of(tmp_path / "a", ranges=((-1.0, 1.0), (0.0, 10.0)))
    assert (row.has_signs("valence"), row.has_signs("arousal")) == (True, False)
    said = scoring_notes([row], ("sagr",), None)
    assert "Signs of arousal cannot agree or disagree: its ratings go from 0 to 10." in said
    assert not any("Signs of valence" in note for note in said)
    assert not any("Signs" in note for note in scoring_notes([row], ("ccc",), None))
    assert row_of(tmp_path / "b").has_signs("arousal")  # no range is declared


def test_folds_are_said(tmp_path: Path) -> None:
    make_folds(tmp_path, 0)
    rows, left_out = score([tmp_path])
    assert "Runs of several folds count as one: each subject is predicted by the head that did not see it." in (
        data_notes(rows, tmp_path, left_out)
    )


def test_intervals_and_tests_are_explained(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5)
    make_row(tmp_path, "audio_only", 0.6)
    make_row(tmp_path, "visual_only", 0.6, seeds=(7,))
    rows, _ = score([tmp_path])
    rival = choose_rival(rows, None, "concat")
    said = statistics_notes(rows, rival, "subjects", compare(rows, rival, ("ccc",), "subjects", 0))
    text = "\n".join(said)
    assert "Behind ± stands the standard deviation over seeds (n - 1)." in said
    assert "95 % bootstrap interval of the mean over seeds, over subjects" in text
    assert "difference to concat on the seeds that both have" in text
    assert "a paired permutation test that exchanges 7 recordings, Holm-corrected for 2 tests." in text
    assert "visual_only and concat have no seed in common, and are not compared." in said
    assert "7 subjects: with fewer than 12, intervals are so wide that they rule little out." in said
    assert "1 seed: 3 or more show how far chance moves a training." in said  # of the row that has fewest


def test_what_is_too_few_of_one_target_is_said(tmp_path: Path) -> None:
    predictions = make_predictions(0.5, 0, lengths=(60,) * 13)
    for item in predictions[4:]:
        item.target_FE[:, 0] = np.nan
    make_run(tmp_path, predictions=predictions)
    rows, _ = score([tmp_path])
    said = statistics_notes(rows, None, "subjects", compare(rows, None, ("ccc",), "subjects", 0))
    assert "valence: 4 subjects: too few for intervals; at least 5 are needed." in said
    assert not any(note.startswith("arousal") for note in said)


def test_rows_on_other_frames_are_not_judged(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "concat", predictions=make_predictions(0.1, 0))
    make_run(tmp_path / "b", "recursive_joint_attention", predictions=make_predictions(0.9, 0))
    make_run(
        tmp_path / "c", "recursive_joint_attention", predictions=make_predictions(0.9, 0, lengths=(60, 60)), seed=1
    )
    assert baseline_notes(score([tmp_path / "a", tmp_path / "b"])[0])
    assert not baseline_notes(score([tmp_path / "a", tmp_path / "c"])[0])


def test_numbers_and_nouns() -> None:
    assert (count(1, "run"), count(2, "run"), count(0, "run")) == ("1 run", "2 runs", "0 runs")
