"""The released protocol against a slow transcription of what the release does; smoothing against a plain loop."""

from collections.abc import Sequence

import audmetric
import numpy as np
import pytest

from avfuse.metrics.ccc import ccc
from avfuse.options import SCORING
from avfuse.protocols import (
    COVERAGE_BANDS,
    PROTOCOLS,
    RELEASED_WINDOWS,
    Evaluation,
    by_target,
    coverage,
    parts,
    seconds_by_target,
    smooth,
)
from avfuse.schema import Predictions, UsageError

TARGETS = ("valence", "arousal")


def item(
    num_frames: int, seed: int, gaps: Sequence[tuple[int, int]] = (), targets=TARGETS, column: int | None = None
) -> Predictions:
    """Return raw predictions, beyond [-1, 1] here and there, of ratings with gaps, or with a gap in one column."""
    rng = np.random.default_rng(seed)
    walk_FE = np.cumsum(rng.normal(size=(num_frames, len(targets))), axis=0) / 6
    target_FE = np.tanh(walk_FE).astype(np.float32)
    prediction_FE = (1.5 * target_FE + rng.normal(0, 0.5, target_FE.shape)).astype(np.float32)
    for start, stop in gaps:
        target_FE[start:stop] = np.nan
    if column is not None:
        target_FE[num_frames // 4 : num_frames // 2, column] = np.nan
    face_F = rng.random(num_frames) > 0.3
    time_s = np.arange(num_frames) / 30
    return Predictions(f"r{seed}", f"s{seed}", "validation", tuple(targets), time_s, prediction_FE, target_FE, face_F)


GAPPED = (
    item(700, 1, [(0, 60), (200, 210), (300, 420), (690, 700)]),
    item(520, 2, [(100, 101), (130, 163), (164, 200)]),
    item(481, 3),
    item(90, 4, [(0, 90)]),  # not rated at all
    item(7, 5, [(0, 3)]),
    item(1, 6),
    item(300, 7, column=0),  # one target alone is unrated now and then
)


def transcribe_released(items: Sequence[Predictions], column: int) -> tuple[np.ndarray, np.ndarray]:
    """Write down, loop by loop, what the release's validation does with raw predictions of every frame.

    Frames are counted from 1. Block b and phase p, from 1 to 32, make a sequence of 16 clips that end at
    512 b + p + 32 k; the label of a clip is that of the last annotated frame in its window of 32, or -5.
    """
    window = (20, 50)[column]
    all_predictions, all_labels = [], []
    for one in items:
        num_frames = len(one.time_s)
        rows = {f + 1: one.target_FE[f, column] for f in range(num_frames) if not np.isnan(one.target_FE[f]).any()}
        prediction, label = np.zeros(num_frames), np.zeros(num_frames)
        block = 0
        while 512 * block + 1 <= num_frames + 1:
            for phase in range(1, 33):
                if 512 * block + phase > num_frames + 1:
                    continue
                for k in range(16):
                    end = 512 * block + phase + 32 * k
                    annotated = [frame for frame in range(end - 31, end + 1) if frame in rows]
                    clip_label = rows[annotated[-1]] if annotated else -5.0
                    if clip_label != -5.0 and end <= num_frames:
                        prediction[end - 1] = one.prediction_FE[end - 1, column]
                        label[end - 1] = clip_label
            block += 1
        prediction = np.minimum(np.maximum(prediction, -1.0), 1.0)
        smoothed = np.zeros(num_frames)
        for i in range(num_frames):
            for j in range(i - window // 2, i + window // 2):
                smoothed[i] += prediction[j] / window if 0 <= j < num_frames else 0.0
        all_predictions.append(smoothed)
        all_labels.append(label)
    return np.concatenate(all_predictions), np.concatenate(all_labels)


def released_metric(prediction: np.ndarray, label: np.ndarray) -> float:
    """Return the CCC by the release's formula: the correlation times both deviations, all divided by n."""
    correlation = np.mean((prediction - prediction.mean()) * (label - label.mean())) / (prediction.std() * label.std())
    return float(
        2
        * correlation
        * prediction.std()
        * label.std()
        / (prediction.var() + label.var() + (prediction.mean() - label.mean()) ** 2)
    )


def together(evaluation: Evaluation, items: Sequence[Predictions], target: str) -> tuple[np.ndarray, np.ndarray]:
    frames = [evaluation.frames(one, target) for one in items]
    return np.concatenate([p for p, _ in frames]), np.concatenate([t for _, t in frames])


@pytest.mark.parametrize("column", [0, 1])
def test_released_is_what_the_release_does(column):
    prediction, label = together(Evaluation(dict.fromkeys(TARGETS, "released")), GAPPED, TARGETS[column])
    expected_prediction, expected_label = transcribe_released(GAPPED, column)
    # Means of 50 numbers, added up in another order; labels are copied.
    np.testing.assert_allclose(prediction, expected_prediction, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(label, expected_label)
    assert ccc(prediction, label) == pytest.approx(released_metric(expected_prediction, expected_label), abs=1e-12)


def test_released_scores_unrated_frames_and_strict_does_not():
    unrated = GAPPED[3]
    prediction, label = Evaluation({"valence": "released"}).frames(unrated, "valence")
    assert (prediction == 0).all()
    assert (label == 0).all()
    assert np.isnan(Evaluation().frames(unrated, "valence")[1]).all()


def test_released_differs_from_strict_on_gaps():
    strict, released = (
        ccc(*together(Evaluation({"valence": protocol}), GAPPED, "valence")) for protocol in ("strict", "released")
    )
    assert abs(strict - released) > 0.01


@pytest.mark.parametrize("target", TARGETS)
def test_strict_is_the_oracles_score_of_the_valid_frames(target):
    prediction, label = together(Evaluation(), GAPPED, target)
    rated = ~np.isnan(label)
    assert 0 < rated.sum() < len(rated)
    assert ccc(prediction, label) == pytest.approx(audmetric.concordance_cc(label[rated], prediction[rated]), abs=1e-12)


def test_smoothing_is_a_centred_mean_by_time():
    rng = np.random.default_rng(0)
    time_s = np.cumsum(rng.choice([0.02, 0.04, 0.12], size=300))  # a variable frame rate
    values = rng.normal(size=300)
    for window_s in (0.04, 0.5, 3.0, 1000.0):
        expected = [values[np.abs(time_s - at) <= window_s / 2 + 1e-6].mean() for at in time_s]
        np.testing.assert_allclose(smooth(values, time_s, window_s), expected, rtol=0, atol=1e-12)


def test_smoothing_of_no_time_changes_nothing():
    assert smooth(np.array([1.0, -2.0, 3.0]), np.arange(3) / 30, 0.0) == pytest.approx([1.0, -2.0, 3.0], abs=1e-15)


def test_smoothed_keeps_the_ratings_and_which_frames_count():
    prediction, label = Evaluation({"valence": "smoothed"}, {"valence": 0.5}).frames(GAPPED[0], "valence")
    np.testing.assert_array_equal(label, GAPPED[0].target_FE[:, 0])
    expected = smooth(GAPPED[0].prediction_FE[:, 0].astype(np.float64), GAPPED[0].time_s, 0.5)
    np.testing.assert_array_equal(prediction, expected)


def test_each_target_has_its_own_protocol():
    evaluation = Evaluation({"valence": "released"}, {"arousal": 2.0})
    assert evaluation.describe("valence").startswith("released")
    assert evaluation.describe("arousal").startswith("strict")
    np.testing.assert_array_equal(evaluation.frames(GAPPED[0], "arousal")[0], GAPPED[0].prediction_FE[:, 1])


def test_every_protocol_is_offered_and_described():
    assert tuple(PROTOCOLS) == SCORING
    for protocol in PROTOCOLS:
        assert Evaluation({"valence": protocol}, {"valence": 1.5}).describe("valence").startswith(protocol)
    assert "1.5 s" in Evaluation({"valence": "smoothed"}, {"valence": 1.5}).describe("valence")
    assert "50 frames" in Evaluation({"arousal": "released"}).describe("arousal")
    assert RELEASED_WINDOWS == {"valence": 20, "arousal": 50}


@pytest.mark.parametrize(
    ("protocols", "smoothing_s", "message"),
    [
        ({"valence": "kind"}, {}, "unknown protocol 'kind'; known: strict, smoothed, released"),
        ({"fatigue": "released"}, {}, "the released protocol rates valence and arousal, not fatigue"),
        ({}, {"valence": -1.0}, "smoothing of valence is -1 s; give 0 or more seconds"),
        ({}, {"valence": float("nan")}, "smoothing of valence is nan s"),
    ],
)
def test_refusals(protocols, smoothing_s, message):
    with pytest.raises(UsageError, match=message):
        Evaluation(protocols, smoothing_s)


def test_values_by_target():
    assert by_target(["strict"], TARGETS, "protocol") == {"valence": "strict", "arousal": "strict"}
    assert by_target(["valence=smoothed", "strict"], TARGETS, "protocol") == {
        "valence": "smoothed",
        "arousal": "strict",
    }
    assert by_target(["valence=smoothed"], TARGETS, "protocol") == {"valence": "smoothed"}
    assert by_target([], TARGETS, "protocol") == {}
    assert seconds_by_target(["1", "valence=0.5"], TARGETS, 9.0) == {"valence": 0.5, "arousal": 1.0}
    assert seconds_by_target(["valence=0.5"], TARGETS, 1.0) == {"valence": 0.5, "arousal": 1.0}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["dominance=strict"], "no target is called dominance; they are: valence, arousal"),
        (["strict", "released"], "protocol is given twice for every target: strict, released"),
        (["valence=strict", "valence=released"], "protocol is given twice for one target"),
    ],
)
def test_values_by_target_refusals(items, message):
    with pytest.raises(UsageError, match=message):
        by_target(items, TARGETS, "protocol")


def test_seconds_must_be_numbers():
    with pytest.raises(UsageError, match="smoothing valence=long: expected seconds"):
        seconds_by_target(["valence=long"], TARGETS, 1.0)


def test_coverage_is_the_share_of_the_last_32_frames():
    face = np.random.default_rng(1).random(100) > 0.4
    expected = [face[max(0, f - 31) : f + 1].mean() for f in range(100)]
    np.testing.assert_allclose(coverage(face), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("by", ["face", "coverage"])
def test_every_frame_is_in_one_part(by):
    for one in GAPPED:
        masks = parts(one, by)
        assert (np.sum(list(masks.values()), axis=0) == 1).all()


def test_bands_of_coverage():
    face = np.zeros(160, bool)
    face[64:] = True  # the share rises from 0 at frame 63 to 1 at frame 95
    one = item(160, 9)
    masks = parts(Predictions(**{**vars(one), "face_F": face}), "coverage")
    assert list(masks) == list(COVERAGE_BANDS)
    assert [np.flatnonzero(mask)[[0, -1]].tolist() for mask in masks.values()] == [
        [0, 63],
        [64, 79],
        [80, 94],
        [95, 159],
    ]


def test_the_release_rates_from_minus_one_to_one():
    assert Evaluation({"valence": "released"}, ranges={"valence": (-1.0, 1.0)}).describe("valence")
    with pytest.raises(UsageError, match="the released protocol rates valence from -1 to 1, not from 1 to 9"):
        Evaluation({"valence": "released"}, ranges={"valence": (1.0, 9.0)})
