"""Intervals and tests against slow loops over frames and closed forms; how well they keep their word, by simulation."""

import itertools
import math
import re

import numpy as np
import pytest
from simulated import draw, extreme, strong, weak

from avfuse import statistics
from avfuse.metrics import Sums, gather_groups
from avfuse.metrics.ccc import ccc
from avfuse.metrics.mae import mae
from avfuse.schema import UsageError
from avfuse.statistics import (
    UNDEFINED,
    bootstrap_difference,
    bootstrap_interval,
    cautions,
    check_unit,
    holm,
    paired_permutation,
    smallest_p,
)

NAN = float("nan")


def summed(pairs, *shape, metric=ccc, origin=None):
    """Sums of pairs in a shape, and a metric as a score of them."""
    sums = gather_groups(pairs, origin)
    return sums.values.reshape(*shape, -1), lambda values: metric.of(Sums(values, sums.origin))


def drawn(seed, num_subjects, *heads):
    return draw(np.random.default_rng(seed), num_subjects, heads)


def mean_of(sums):
    """A score that is linear in what matters: sums of (number, value)."""
    return sums[..., 1] / sums[..., 0]


def concatenated(pairs):
    return tuple(np.concatenate(values) for values in zip(*pairs, strict=True))


# Intervals


def slow_interval(runs, seed, num_resamples, to_scale, from_scale, metric):
    """Bootstrap-t over groups by loops over frames; a derivative is what a thousandth of a group more changes."""
    num_groups = len(runs[0])

    def score(weights):
        scores = []
        for pairs in runs:
            prediction, target = concatenated(pairs)
            frames = np.repeat(weights, [len(values) for _, values in pairs])
            scores.append(weighted[metric](prediction, target, frames / frames.sum()))
        return to_scale(np.mean(scores))

    def error(weights):
        total = 0.0
        for group in range(num_groups):
            step = 1e-3 * np.eye(num_groups)[group]
            derivative = (score(weights + step) - score(weights - step)) / 2e-3
            total += weights[group] * derivative**2
        return math.sqrt(total)

    ones = np.ones(num_groups)
    without = np.array([score(ones - np.eye(num_groups)[group]) for group in range(num_groups)])
    jackknife_error = math.sqrt((num_groups - 1) / num_groups * np.sum((without - without.mean()) ** 2))
    roots = []
    for draws in np.random.default_rng(seed).integers(0, num_groups, (num_resamples, num_groups)):
        counts = np.bincount(draws, minlength=num_groups).astype(float)
        roots.append((score(counts) - score(ones)) / error(counts))
    low, high = np.quantile(roots, [0.025, 0.975])
    return from_scale(score(ones) - high * jackknife_error), from_scale(score(ones) - low * jackknife_error)


def weighted_ccc(prediction, target, weights):
    """CCC of frames that count by weights of sum 1."""
    mean_p, mean_t = weights @ prediction, weights @ target
    var_p, var_t = weights @ (prediction - mean_p) ** 2, weights @ (target - mean_t) ** 2
    covariance = weights @ ((prediction - mean_p) * (target - mean_t))
    return 2 * covariance / (var_p + var_t + (mean_p - mean_t) ** 2)


weighted = {ccc: weighted_ccc, mae: lambda prediction, target, weights: weights @ np.abs(prediction - target)}


@pytest.mark.parametrize(
    ("metric", "scale", "there", "back"),
    [(ccc, "correlation", np.arctanh, np.tanh), (ccc, "plain", float, float), (mae, "plain", float, float)],
)
def test_interval_is_that_of_a_loop_over_frames(metric, scale, there, back):
    pairs = drawn(0, 8, strong(0.6))
    rival = [(0.5 * prediction, target) for prediction, target in pairs]
    sums_SGK, score = summed(pairs + rival, 2, 8, metric=metric)
    found = bootstrap_interval(sums_SGK, score, seed=1, num_resamples=100, scale=scale)
    slow = slow_interval([pairs, rival], 1, 100, there, back, metric)
    # 1e-4: the loop's derivatives err by the square of their step, relative to groups drawn once
    assert (found.low, found.high) == pytest.approx(slow, rel=1e-4)


def test_interval_of_a_mean_is_the_textbooks():
    """For a mean of equally long groups all three errors have closed forms."""
    generator = np.random.default_rng(0)
    values = generator.exponential(size=15)
    sums_SGK = np.stack([np.full(15, 10.0), 10 * values], axis=-1)[None]
    found = bootstrap_interval(sums_SGK, mean_of, seed=3, num_resamples=999)
    draws = values[np.random.default_rng(3).integers(0, 15, (999, 15))]
    roots = (draws.mean(axis=1) - values.mean()) / (draws.std(axis=1) / math.sqrt(15))
    low, high = np.quantile(roots, [0.025, 0.975])
    error = values.std(ddof=1) / math.sqrt(15)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - high * error, values.mean() - low * error), rel=1e-6
    )


@pytest.mark.parametrize(
    ("head", "num_subjects"), [(weak(0.3), 20), (weak(0.6), 8), (strong(0.6), 12), (strong(0.85), 40)]
)
def test_interval_holds_the_populations_ccc(head, num_subjects):
    """In 93 to 97 % of 1,000 samples of subjects; 500 resamples each, for the sake of time."""
    generator, held = np.random.default_rng(7), 0
    for trial in range(1000):
        sums_SGK, score = summed(draw(generator, num_subjects, [head]), 1, num_subjects)
        found = bootstrap_interval(sums_SGK, score, seed=trial, num_resamples=500, scale="correlation")
        held += found.low <= head.ccc <= found.high
    assert 930 <= held <= 970


def test_difference_holds_the_populations_difference():
    heads, generator, held = (strong(0.6), weak(0.5)), np.random.default_rng(8), 0
    for trial in range(1000):
        sums_SGK, score = summed(draw(generator, 20, heads), 2, 1, 20)
        found = bootstrap_difference(*sums_SGK, score, seed=trial, num_resamples=500)
        held += found.low <= 0.1 <= found.high
    assert 930 <= held <= 970


def test_the_simulation_has_the_population_that_it_says():
    for head in (weak(0.3), strong(0.6), extreme(0.85)):
        pairs = drawn(9, 4000, head)
        # 0.02: 4,000 subjects estimate it so well
        assert ccc(*concatenated(pairs)) == pytest.approx(head.ccc, abs=0.02)


def test_the_same_seed_gives_the_same_interval():
    sums_SGK, score = summed(drawn(0, 12, strong(0.6)), 1, 12)
    first, again, other = (bootstrap_interval(sums_SGK, score, seed=seed, num_resamples=500) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.15)


def test_batches_do_not_change_the_draws(monkeypatch):
    sums_SGK, score = summed(drawn(0, 12, strong(0.6)), 1, 12)
    whole = bootstrap_interval(sums_SGK, score, seed=5, num_resamples=500)
    test = paired_permutation(sums_SGK, sums_SGK[:, ::-1], score, seed=5, num_resamples=500)
    monkeypatch.setattr(statistics, "_BATCH_NUMBERS", 1000)
    parts = bootstrap_interval(sums_SGK, score, seed=5, num_resamples=500)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-9)
    assert paired_permutation(sums_SGK, sums_SGK[:, ::-1], score, seed=5, num_resamples=500) == test


def test_a_higher_confidence_is_wider():
    sums_SGK, score = summed(drawn(0, 12, strong(0.6)), 1, 12)
    found = [
        bootstrap_interval(sums_SGK, score, seed=0, num_resamples=2000, confidence=confidence)
        for confidence in (0.5, 0.8, 0.95, 0.99)
    ]
    assert sorted((item.low for item in found), reverse=True) == [item.low for item in found]
    assert sorted(item.high for item in found) == [item.high for item in found]


def test_interval_of_a_correlation_stays_within_its_bounds():
    sums_SGK, score = summed(drawn(1, 5, strong(0.9)), 1, 5)
    found = bootstrap_interval(sums_SGK, score, seed=0, num_resamples=500, scale="correlation")
    assert -1 < found.low < found.high < 1


def test_interval_does_not_depend_on_origin_unit_or_frame_rate():
    pairs = drawn(2, 12, strong(0.6))
    found = []
    for origin, gain, repeats in ((None, 1, 1), ((3.0, -2.0), 1, 1), (None, 1000, 1), (None, 1, 3)):
        changed = [tuple(np.repeat(gain * values, repeats) for values in pair) for pair in pairs]
        sums_SGK, score = summed(changed, 1, 12, origin=origin)
        found.append(bootstrap_interval(sums_SGK, score, seed=0, num_resamples=500, scale="correlation"))
    for other in found[1:]:
        # 1e-6: what the difference quotients lose
        assert (other.low, other.high) == pytest.approx((found[0].low, found[0].high), rel=1e-6)


def test_all_seeds_see_the_same_draws():
    """Two runs whose errors cancel have a mean that no draw changes."""
    values = np.random.default_rng(0).normal(size=10)
    one, other = (np.stack([np.ones(10), sign * values + 3], axis=-1) for sign in (1, -1))
    found = bootstrap_interval(np.stack([one, other]), mean_of, seed=0, num_resamples=300)
    assert (found.low, found.high) == pytest.approx((3, 3), abs=1e-12)
    alone = bootstrap_interval(one[None], mean_of, seed=0, num_resamples=300)
    assert alone.high - alone.low > 0.5
    both = bootstrap_interval(np.stack([one, one]), mean_of, seed=0, num_resamples=300)
    assert (both.low, both.high) == pytest.approx((alone.low, alone.high), rel=1e-9)


def test_difference_of_rows_that_share_their_hard_groups_is_sure():
    """A constant lead has an interval of no width, however much the groups differ."""
    values = np.random.default_rng(0).normal(size=10)
    row, rival = (np.stack([np.ones(10), values + lead], axis=-1)[None] for lead in (0.25, 0.0))
    found = bootstrap_difference(row, rival, mean_of, seed=0, num_resamples=300)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25), abs=1e-12)
    three = bootstrap_difference(np.repeat(row, 3, axis=0), rival, mean_of, seed=0, num_resamples=300)
    assert (three.low, three.high) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_difference_changes_its_sign_with_the_order():
    sums_SGK, score = summed(drawn(3, 12, strong(0.6), weak(0.5)), 2, 1, 12)
    found = bootstrap_difference(*sums_SGK, score, seed=0, num_resamples=500)
    mirrored = bootstrap_difference(*sums_SGK[::-1], score, seed=0, num_resamples=500)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)


def test_a_perfect_row_has_no_width():
    pairs = [(target, target) for _, target in drawn(4, 8, weak(0.5))]
    sums_SGK, score = summed(pairs, 1, 8)
    for scale in ("plain", "correlation"):
        found = bootstrap_interval(sums_SGK, score, seed=0, num_resamples=200, scale=scale)
        assert (found.low, found.high) == pytest.approx((1, 1), abs=1e-12)
    same = bootstrap_difference(sums_SGK, sums_SGK, score, seed=0, num_resamples=200)
    assert (same.low, same.high) == (0, 0)


def test_too_few_groups_have_no_interval():
    sums_SGK, score = summed(drawn(5, 5, strong(0.6)), 1, 5)
    assert bootstrap_interval(sums_SGK, score, seed=0, num_resamples=200) != UNDEFINED
    sums_SGK[:, 2] = 0  # a subject without a rated frame is none
    found = bootstrap_interval(sums_SGK, score, seed=0, num_resamples=200)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert bootstrap_difference(sums_SGK, sums_SGK, score, seed=0) is UNDEFINED


def test_groups_without_frames_are_not_drawn():
    sums_SGK, score = summed(drawn(5, 9, strong(0.6)), 1, 9)
    found = bootstrap_interval(sums_SGK, score, seed=0, num_resamples=200)
    with_empty = np.insert(sums_SGK, 4, 0.0, axis=1)
    assert bootstrap_interval(with_empty, score, seed=0, num_resamples=200) == found


def test_what_is_not_defined_has_no_interval():
    sums_SGK, score = summed(drawn(5, 9, strong(0.6)), 1, 9)
    damaged = sums_SGK.copy()
    damaged[0, 3, 1] = NAN
    assert bootstrap_interval(damaged, score, seed=0, num_resamples=200) is UNDEFINED

    def needs_group(sums):  # defined in draws that hold the group in question
        return np.where(sums[..., 1] > 0, sums[..., 0], NAN)

    only_one, most, enough = (np.stack([np.arange(1.0, 31), np.arange(30) < num], axis=-1)[None] for num in (1, 3, 12))
    for sums in (only_one, most):  # without the one; then in 4 % of the draws
        assert bootstrap_interval(sums, needs_group, seed=0, num_resamples=500) is UNDEFINED
    assert bootstrap_interval(enough, needs_group, seed=0, num_resamples=500) != UNDEFINED
    assert bootstrap_interval(sums_SGK, lambda sums: np.full(sums.shape[:-1], NAN), seed=0) is UNDEFINED


# The test of two rows


def slow_permutation(row, rival):
    """P of two rows, each a list of runs of pairs, by all exchanges of their recordings, frame by frame."""

    def difference(swaps):
        scores = []
        for pairs, others in zip(row, rival, strict=True):
            first = [others[i] if swap else pairs[i] for i, swap in enumerate(swaps)]
            second = [pairs[i] if swap else others[i] for i, swap in enumerate(swaps)]
            scores.append(ccc(*concatenated(first)) - ccc(*concatenated(second)))
        return np.mean(scores)

    exchanges = list(itertools.product((False, True), repeat=len(row[0])))
    actual = abs(difference(exchanges[0]))
    return sum(abs(difference(swaps)) >= actual - 1e-12 for swaps in exchanges) / len(exchanges)


@pytest.mark.parametrize("seed", range(6))
def test_permutation_is_the_enumeration_over_frames(seed):
    pairs = drawn(seed, 6, strong(0.7), strong(0.6), weak(0.5), weak(0.4))
    runs = [pairs[i : i + 6] for i in range(0, 24, 6)]
    sums_RSGK, score = summed(pairs, 2, 2, 6)
    found = paired_permutation(*sums_RSGK, score, seed=0)
    assert found == pytest.approx(slow_permutation(runs[:2], runs[2:]), abs=1e-12)
    assert paired_permutation(*sums_RSGK[::-1], score, seed=0) == found


def test_drawn_exchanges_come_near_the_enumeration():
    sums_SRK, score = summed(drawn(11, 12, strong(0.6), strong(0.5)), 2, 1, 12)
    exact = paired_permutation(*sums_SRK, score, seed=0, num_resamples=4096)
    nearly = paired_permutation(*sums_SRK, score, seed=0, num_resamples=4095)
    assert 0.05 < exact < 0.95
    assert nearly != exact
    assert nearly == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4095))  # four standard errors


@pytest.mark.parametrize(("num_recordings", "num_resamples"), [(1, 100), (4, 100), (6, 64), (7, 99), (40, 199)])
def test_smallest_p_is_reached_and_not_passed(num_recordings, num_resamples):
    """Where a row is better in every recording; 2^7 exchanges are drawn from, and may hit the actual one."""
    targets = [target for _, target in drawn(12, num_recordings, weak(0.5))]
    row = [(0.99 * target, target) for target in targets]
    rival = [(-target, target) for target in targets]
    sums_SRK, score = summed(row + rival, 2, 1, num_recordings)
    found = paired_permutation(*sums_SRK, score, seed=0, num_resamples=num_resamples)
    least = smallest_p(num_recordings, num_resamples)
    assert least <= found <= (0.06 if num_recordings == 7 else least)


def test_smallest_p():
    assert [smallest_p(num) for num in (1, 2, 5, 6)] == [1.0, 0.5, 0.0625, 0.03125]
    assert smallest_p(13) == 2 / 8192
    assert smallest_p(14) == 1 / 10_001
    assert smallest_p(1000) == 1 / 10_001
    assert math.isnan(smallest_p(0))


def test_rows_that_are_the_same_differ_by_chance():
    sums_SRK, score = summed(drawn(13, 20, strong(0.6)), 1, 20)
    assert paired_permutation(sums_SRK, sums_SRK.copy(), score, seed=0, num_resamples=200) == 1
    assert paired_permutation(sums_SRK[:, :4], sums_SRK[:, :4], score, seed=0) == 1


def test_recordings_without_frames_do_not_count():
    sums_SRK, score = summed(drawn(14, 5, strong(0.7), weak(0.3)), 2, 1, 5)
    found = paired_permutation(*sums_SRK, score, seed=0)
    assert paired_permutation(*np.insert(sums_SRK, 2, 0.0, axis=2), score, seed=0) == found


def test_no_p_where_the_score_is_not_defined():
    sums_SRK, score = summed(drawn(15, 6, strong(0.7), weak(0.3)), 2, 1, 6)
    assert math.isnan(paired_permutation(sums_SRK[0, :, :0], sums_SRK[1, :, :0], score, seed=0))
    assert math.isnan(paired_permutation(np.full_like(sums_SRK[0], NAN), sums_SRK[1], score, seed=0))
    constant = [(np.ones(4), np.ones(4))] * 6
    sums, score = summed(constant, 1, 6)
    assert math.isnan(paired_permutation(sums, sums, score, seed=0))


def test_rows_that_are_not_paired_are_refused():
    sums_SRK, score = summed(drawn(16, 6, strong(0.7), weak(0.3)), 2, 1, 6)
    with pytest.raises(ValueError, match=r"\(1, 6, 9\).*\(1, 5, 9\).*not paired"):
        paired_permutation(sums_SRK[0], sums_SRK[1, :, :5], score, seed=0)
    with pytest.raises(ValueError, match=r"\(1, 6, 9\).*\(2, 6, 9\).*not paired"):
        paired_permutation(sums_SRK[0], np.repeat(sums_SRK[1], 2, axis=0), score, seed=0)
    with pytest.raises(ValueError, match=r"\(1, 6, 9\).*\(1, 5, 9\).*not paired"):
        bootstrap_difference(sums_SRK[0], sums_SRK[1, :, :5], score, seed=0)


def test_equally_good_heads_differ_in_five_percent():
    """Of 3,000 samples, which tell 5 % to 0.4 %; 399 exchanges each, of which p <= 5 % is 20 of 400 exactly."""
    head, generator, found = strong(0.6), np.random.default_rng(17), 0
    for trial in range(3000):
        sums_SRK, score = summed(draw(generator, 20, [head, head]), 2, 1, 20)
        found += paired_permutation(*sums_SRK, score, seed=trial, num_resamples=399) <= 0.05
    assert 0.04 <= found / 3000 <= 0.06


def test_a_better_head_is_found():
    sums_SRK, score = summed(drawn(18, 40, weak(0.7), weak(0.4)), 2, 1, 40)
    assert paired_permutation(*sums_SRK, score, seed=0, num_resamples=999) < 0.05


# Many tests, and what is too few


def slow_holm(p_values):
    """Holm (1979) from his procedure: the least level at which he rejects a hypothesis."""
    adjusted = []
    for candidate in p_values:
        before = sorted(p for p in p_values if p <= candidate)
        # rejected at a level, if every hypothesis up to it has p <= level / (number left)
        adjusted.append(min(1.0, max((len(p_values) - i) * p for i, p in enumerate(before))))
    return adjusted


def test_holm_against_its_procedure():
    generator = np.random.default_rng(19)
    for num in range(1, 9):
        for _ in range(20):
            p_values = (generator.random(num) ** 3).round(2).tolist()  # with ties
            assert holm(p_values) == pytest.approx(slow_holm(p_values), abs=1e-12)


def test_holm_example():
    # four tests: .005 * 4; .01 * 3; .03 * 2; .04 * 1, but not below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.01, NAN, 0.02]) == pytest.approx([0.02, NAN, 0.02], nan_ok=True)
    assert holm([NAN]) == pytest.approx([NAN], nan_ok=True)


def test_frames_are_not_resampled():
    for unit in ("subjects", "recordings"):
        check_unit(unit)
    with pytest.raises(UsageError, match=r"^frames cannot be resampled: neighbouring.*allowed are subjects and record"):
        check_unit("frames")
    with pytest.raises(UsageError, match=r"^'weeks' cannot be resampled; allowed are subjects and recordings$"):
        check_unit("weeks")


def test_enough_of_everything_needs_no_caution():
    assert cautions(num_groups=12, num_seeds=3) == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_groups": 4}, "4 subjects: too few for intervals; at least 5 are needed."),
        ({"num_groups": 1, "unit": "recordings"}, "1 recording: too few for intervals"),
        ({"num_groups": 11}, "11 subjects: with fewer than 12, intervals are so wide"),
        ({"num_seeds": 1}, "1 seed: 3 or more show"),
        ({"num_seeds": 2}, "2 seeds: 3 or more show"),
        (
            {"num_groups": 5},
            "5 subjects: no difference can be significant at 5%, as p is never below 0.062; at least 6",
        ),
        ({"num_groups": 0}, "0 subjects: no difference can be significant at 5%; at least 6"),
    ],
)
def test_what_is_too_few_is_said(given, said):
    sentences = cautions(**{"num_groups": 12, "num_seeds": 3} | given)
    assert any(re.match(re.escape(said), sentence) for sentence in sentences), sentences


def test_six_groups_are_the_fewest_that_can_be_significant():
    assert smallest_p(statistics.FEWEST_EXCHANGES) <= statistics.LEVEL < smallest_p(statistics.FEWEST_EXCHANGES - 1)
