"""The sentences below a table say how scores came about, and what they do not support."""

from pathlib import Path

import numpy as np
import pytest
from test_comparison import make_row
from test_report import make_run
from test_scores import make_folds

from avfuse.comparison import choose_rival, compare
from avfuse.notes import count, data_notes, moments, paper_targets, scoring_notes, spans_zero, statistics_notes
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
    assert "Protocol: strict: rated frames, predictions as they are." in scoring_notes([same], ("ccc",))
    said = "\n".join(scoring_notes([mixed], ("ccc",)))
    assert "Protocol of valence: released: predictions clipped to [-1, 1] and averaged over 20 frames" in said
    assert "Protocol of arousal: smoothed: rated frames, predictions averaged over a centred 0.5 s." in said


@pytest.mark.parametrize(
    ("hop", "said"),
    [
        (1, "Every frame ends a clip of its own and has that clip's prediction."),
        (8, "One clip ends every 8 frames; predictions of the frames between are interpolated linearly."),
        (0, None),  # a record of before does not say
    ],
)
def test_interpolation_is_said(hop: int, said: str | None, tmp_path: Path) -> None:
    notes = scoring_notes([row_of(tmp_path, hop=hop)], ("ccc",))
    assert said in notes if said else not any("clip" in note for note in notes)


def test_every_metric_is_explained(tmp_path: Path) -> None:
    said = scoring_notes([row_of(tmp_path)], ("ccc", "rmse"))
    assert said[0].startswith("Scored over the frames of all validation recordings together. CCC: Concordance")
    assert said[1].startswith("RMSE: ")


def test_signs_take_a_range_with_both(tmp_path: Path) -> None:
    row = row_of(tmp_path / "a", ranges=((-1.0, 1.0), (0.0, 10.0)))
    assert (spans_zero(row, "valence"), spans_zero(row, "arousal")) == (True, False)
    said = scoring_notes([row], ("sagr",))
    assert "Signs of arousal cannot agree or disagree: its ratings go from 0 to 10." in said
    assert not any("Signs of valence" in note for note in said)
    assert not any("Signs" in note for note in scoring_notes([row], ("ccc",)))
    assert spans_zero(row_of(tmp_path / "b"), "arousal")  # no range is declared


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
    assert any("7 subjects" in note for note in said)  # too few for what is called 95 %


def test_numbers_and_nouns() -> None:
    assert (count(1, "run"), count(2, "run"), count(0, "run")) == ("1 run", "2 runs", "0 runs")
