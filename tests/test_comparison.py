"""What rows support: intervals over subjects, and paired tests on the seeds and recordings that two rows share."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_report import TARGETS, make_predictions, make_run, oracle

from avfuse.comparison import choose_rival, compare, num_groups
from avfuse.metrics import Sums, gather_groups
from avfuse.metrics.ccc import ccc
from avfuse.runs import read_predictions
from avfuse.schema import Predictions, UsageError
from avfuse.scores import Row, score
from avfuse.statistics import bootstrap_difference, bootstrap_interval, holm, paired_permutation

LENGTHS = (120, 75, 200, 60, 90, 150, 110)


def make_row(place: Path, head: str, noise: float, seeds: tuple[int, ...] = (0, 1), subjects: str = "abcdefg") -> None:
    for seed in seeds:
        predictions = make_predictions(noise, 10 * seed + len(head), lengths=LENGTHS)
        predictions = [
            Predictions(**{**vars(item), "subject": subject})
            for item, subject in zip(predictions, subjects, strict=True)
        ]
        make_run(place / head / f"seed-{seed}", head, seed=seed, predictions=predictions)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    make_row(tmp_path, "concat", 0.5)
    make_row(tmp_path, "audio_only", 0.6)
    return score([tmp_path])[0]


def sums_of(row: Row, target: str) -> np.ndarray:
    """Return the sums of every run and recording, (S, R, K), gathered anew from the frames of the predictions."""
    index = row.record.targets.index(target)
    stacks = [
        gather_groups(
            [(p.prediction_FE[:, index], p.target_FE[:, index]) for p in read_predictions(item.places[0])], (0.0, 0.0)
        )
        for item in row.runs
    ]
    return np.stack([stack.values for stack in stacks])


def of(values: np.ndarray) -> np.ndarray:
    return ccc.of(Sums(values, (0.0, 0.0)))


def test_the_interval_is_that_of_the_subjects(rows: list[Row]) -> None:
    found = compare(rows, None, ("ccc",), "subjects", seed=3)
    for place, row in enumerate(rows):
        for target in TARGETS:
            expected = bootstrap_interval(sums_of(row, target), of, seed=3, scale="correlation")
            # the sums are taken from another origin: other roundings
            interval = found[place, "ccc", target].interval
            assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
            assert interval.low < row.values("ccc", target).mean() < interval.high


def test_recordings_of_a_subject_are_resampled_together(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, subjects="aabcdef")
    (row,), _ = score([tmp_path])
    sums_SRK = sums_of(row, "valence")
    merged = np.concatenate([sums_SRK[:, :1] + sums_SRK[:, 1:2], sums_SRK[:, 2:]], axis=1)
    by_subject, by_recording = (
        compare([row], None, ("ccc",), unit, seed=0)[0, "ccc", "valence"].interval
        for unit in ("subjects", "recordings")
    )
    assert tuple(num_groups(row, unit, "valence") for unit in ("subjects", "recordings")) == (6, 7)
    for interval, groups in ((by_subject, merged), (by_recording, sums_SRK)):
        expected = bootstrap_interval(groups, of, seed=0, scale="correlation")
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert by_subject != by_recording


def test_the_test_exchanges_recordings_of_both_rows(rows: list[Row]) -> None:
    rival = choose_rival(rows, "concat", "concat")
    found = compare(rows, rival, ("ccc",), "subjects", seed=0)
    (place,) = (place for place, row in enumerate(rows) if row is not rival)
    for target in TARGETS:
        own, other = sums_of(rows[place], target), sums_of(rival, target)

        def difference(swapped: tuple[int, ...], own=own, other=other) -> float:
            is_swapped = np.array(swapped, bool)[None, :, None]
            first, second = np.where(is_swapped, other, own), np.where(is_swapped, own, other)
            return float((of(first.sum(axis=1)) - of(second.sum(axis=1))).mean())

        actual = difference((0,) * len(LENGTHS))
        every = np.array([difference(swapped) for swapped in product((0, 1), repeat=len(LENGTHS))])
        comparison = found[place, "ccc", target]
        assert comparison.gain == pytest.approx(actual, abs=1e-9)
        assert comparison.p == pytest.approx(np.mean(np.abs(every) >= abs(actual) - 1e-9), abs=1e-12)
        interval = bootstrap_difference(own, other, of, seed=0)
        assert comparison.gain_interval.low == pytest.approx(interval.low, abs=1e-9)
        assert comparison.num_common == 2


def test_all_tests_of_a_table_are_corrected_together(rows: list[Row]) -> None:
    found = compare(rows, rows[0], ("ccc", "rmse"), "subjects", seed=0)
    assert [item.p_holm for item in found.values()] == pytest.approx(
        holm([item.p for item in found.values()]), nan_ok=True
    )
    assert sum(not np.isnan(item.p) for item in found.values()) == 4
    assert all(np.isnan(found[0, "ccc", target].p) for target in TARGETS)  # a row is not tested against itself


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, seeds=(0, 1, 2))
    make_row(tmp_path, "audio_only", 0.6, seeds=(2, 3))
    make_row(tmp_path, "visual_only", 0.6, seeds=(7,))
    rows, _ = score([tmp_path])
    rival = choose_rival(rows, None, "concat")
    found = {
        row.head: compare(rows, rival, ("ccc",), "subjects", 0)[place, "ccc", "valence"]
        for place, row in enumerate(rows)
    }
    by_head = {row.head: row for row in rows}
    gain = by_head["audio_only"].values("ccc", "valence")[0] - by_head["concat"].values("ccc", "valence")[2]
    assert found["audio_only"].gain == pytest.approx(gain, abs=1e-12)
    assert (found["audio_only"].num_common, found["visual_only"].num_common) == (1, 0)
    assert np.isnan(found["visual_only"].gain)
    assert np.isnan(found["visual_only"].p)
    assert not np.isnan(found["visual_only"].interval.low)


def test_rows_scored_on_other_frames_are_not_compared(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, seeds=(0,))
    make_run(tmp_path / "audio" / "seed-0", "audio_only", predictions=make_predictions(0.5, 0, lengths=LENGTHS[:6]))
    rows, _ = score([tmp_path])
    found = compare(rows, rows[0], ("ccc",), "subjects", 0)
    assert np.isnan(found[1, "ccc", "valence"].p)
    assert found[1, "ccc", "valence"].num_common == 0


def test_a_run_that_diverged_has_neither_interval_nor_test(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, seeds=(0,))
    broken = make_predictions(0.5, 0, lengths=LENGTHS)
    broken[0].prediction_FE[3, 0] = np.nan
    broken = [Predictions(**{**vars(item), "subject": name}) for item, name in zip(broken, "abcdefg", strict=True)]
    make_run(tmp_path / "audio" / "seed-0", "audio_only", predictions=broken)
    rows, _ = score([tmp_path])
    found = compare(rows, rows[0], ("ccc",), "subjects", 0)
    assert np.isnan([found[1, "ccc", "valence"].interval.low, found[1, "ccc", "valence"].p]).all()
    assert not np.isnan([found[1, "ccc", "arousal"].interval.low, found[1, "ccc", "arousal"].p]).any()


def test_the_rival_is_the_one_named_or_the_baseline_or_the_first(rows: list[Row]) -> None:
    assert choose_rival(rows, "audio_only", "concat").head == "audio_only"
    assert choose_rival(rows, None, "concat").head == "concat"
    assert choose_rival(rows, None, "elsewhere") is rows[0]
    assert choose_rival(rows[:1], None, "concat") is None
    with pytest.raises(UsageError, match="no row is called 'nobody'; there are: concat; audio_only"):
        choose_rival(rows, "nobody", "concat")


def test_frames_are_not_resampled(rows: list[Row]) -> None:
    with pytest.raises(UsageError, match="frames"):
        compare(rows, None, ("ccc",), "frames", 0)
    with pytest.raises(UsageError, match="'days' cannot be resampled; allowed are subjects and recordings"):
        compare(rows, None, ("ccc",), "days", 0)


def test_scores_are_the_oracles(rows: list[Row]) -> None:
    for row in rows:
        expected = [oracle(read_predictions(item.places[0]), 0) for item in row.runs]
        assert row.values("ccc", "valence") == pytest.approx(expected, abs=1e-9)


def test_the_recordings_of_a_subject_are_exchanged_together(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, subjects="aabcdef")
    make_row(tmp_path, "audio_only", 0.6, subjects="aabcdef")
    rows, _ = score([tmp_path])
    own, other = (sums_of(row, "valence") for row in rows)
    merged = [np.concatenate([sums[:, :1] + sums[:, 1:2], sums[:, 2:]], axis=1) for sums in (own, other)]
    for unit, (first, second) in {"subjects": merged, "recordings": (own, other)}.items():
        expected = paired_permutation(second, first, of, seed=0)
        assert compare(rows, rows[0], ("ccc",), unit, 0)[1, "ccc", "valence"].p == pytest.approx(expected, abs=1e-12)


def test_agreement_of_signs_is_not_tested_where_there_are_none(tmp_path: Path) -> None:
    for head in ("concat", "audio_only"):
        make_run(
            tmp_path / head,
            head,
            targets=("fatigue",),
            ranges=((0.0, 10.0),),
            predictions=make_predictions(0.5, len(head), ("fatigue",), LENGTHS),
        )
    rows, _ = score([tmp_path])
    found = compare(rows, rows[0], ("ccc", "sagr"), "subjects", 0)
    assert {metric for _, metric, _ in found} == {"ccc"}
    assert found[1, "ccc", "fatigue"].p_holm == found[1, "ccc", "fatigue"].p  # one test, not two


def test_a_variant_of_the_baseline_is_not_taken_for_it(tmp_path: Path) -> None:
    make_run(tmp_path / "variant", head_options={"joint_blstm": False})
    make_run(tmp_path / "audio", "audio_only")
    make_run(tmp_path / "plain")
    rows, _ = score([tmp_path / "variant", tmp_path / "audio", tmp_path / "plain"])
    assert choose_rival(rows, None, "concat").label == "concat"
    assert choose_rival(rows, "concat", "x").label == "concat"
    assert choose_rival(rows, "concat (joint_blstm=false)", "x").label == "concat (joint_blstm=false)"
    assert choose_rival(rows[:2], "concat", "x").label == "concat (joint_blstm=false)"


def test_gains_are_resampled_by_subject_and_by_the_seed_given(tmp_path: Path) -> None:
    make_row(tmp_path, "concat", 0.5, subjects="aabcdef")
    make_row(tmp_path, "audio_only", 0.6, subjects="aabcdef")
    rows, _ = score([tmp_path])
    pair = [[0, 1], [2], [3], [4], [5], [6]]
    merged = [
        np.stack([sums_of(row, "valence")[:, of_subject].sum(axis=1) for of_subject in pair], axis=1) for row in rows
    ]
    expected = bootstrap_difference(merged[1], merged[0], of, seed=5)
    found = compare(rows, rows[0], ("ccc",), "subjects", seed=5)[1, "ccc", "valence"].gain_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found != compare(rows, rows[0], ("ccc",), "subjects", seed=6)[1, "ccc", "valence"].gain_interval
