"""Contract of the metrics over the registry's table; each against its oracle, closed forms and slow loops."""

import math
import subprocess
import sys

import audmetric
import numpy as np
import pytest
import torch
from scipy import stats

from avfuse.metrics import NUM_SUMS, Sums, gather, gather_groups
from avfuse.metrics.ccc import ccc, concordance
from avfuse.registry import METRICS, load

NAN = float("nan")
every_metric = pytest.mark.parametrize("name", METRICS)


@pytest.fixture
def traces():
    generator = np.random.default_rng(0)
    target = np.tanh(generator.normal(size=200).cumsum() / 5)
    return 0.6 * target + 0.1 + 0.2 * generator.normal(size=200), target


@pytest.fixture
def groups():
    """Traces of several lengths, means and spreads, one of them unrated in part."""
    generator = np.random.default_rng(1)
    pairs = []
    for length in (3, 50, 200, 1, 77):
        target = generator.normal() + generator.normal(size=length)
        pairs.append((0.5 * target + generator.normal() + 0.3 * generator.normal(size=length), target))
    pairs[2][1][::3] = NAN
    return pairs


def concatenated(pairs):
    return tuple(np.concatenate(values) for values in zip(*pairs, strict=True))


@every_metric
def test_contract_description(name):
    metric = load("metric", name)
    assert metric.__name__ == name
    assert metric.__doc__
    assert metric.perfect in (0.0, 1.0)
    assert metric.scale in ("plain", "correlation")
    assert metric.label
    assert repr(metric) == f"<metric {name}>"


@every_metric
def test_contract_identity(name, traces):
    metric = load("metric", name)
    # 1e-12: variances are rounded
    assert metric(traces[1], traces[1]) == pytest.approx(metric.perfect, abs=1e-12)


@every_metric
def test_contract_worse_is_further_from_perfect(name, traces):
    metric = load("metric", name)
    good, bad = (metric(traces[1] + noise * np.sin(np.arange(200)), traces[1]) for noise in (0.1, 1.0))
    assert abs(good - metric.perfect) < abs(bad - metric.perfect)


@every_metric
def test_contract_unrated_left_out(name, traces):
    metric = load("metric", name)
    prediction, target = (values.copy() for values in traces)
    unrated = np.arange(200) % 3 == 0
    target[unrated] = NAN
    expected = metric(prediction[~unrated], target[~unrated])
    prediction[unrated] = NAN
    assert metric(prediction, target) == expected


@every_metric
def test_contract_arrays_and_tensors(name, traces):
    metric = load("metric", name)
    prediction, target = (torch.tensor(values) for values in traces)
    result = metric(prediction.requires_grad_(), target)
    assert isinstance(result, float)
    assert result == metric(*traces)
    half = [torch.tensor(values).bfloat16() for values in traces]
    assert metric(*half) == metric(*(values.double() for values in half))


@every_metric
def test_contract_undefined_is_nan(name):
    metric = load("metric", name)
    assert math.isnan(metric([], []))
    assert math.isnan(metric([0.3, 0.2], [NAN, NAN]))


@every_metric
def test_contract_refusals(name):
    metric = load("metric", name)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metric(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="one-dimensional"):
        metric(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="prediction is NaN or infinite at 1 of 2"):
        metric([NAN, 0.0, NAN], [0.0, 1.0, NAN])
    with pytest.raises(ValueError, match="target is NaN or infinite at 1 of 2"):
        metric([0.0, 0.0, NAN], [0.0, np.inf, NAN])


@every_metric
def test_contract_pooled_groups_are_the_concatenation(name, groups):
    metric = load("metric", name)
    sums = gather_groups(groups)
    # 1e-12: the same sums, added up in another order
    assert metric.of(sums.pooled()) == pytest.approx(metric(*concatenated(groups)), abs=1e-12)


@every_metric
def test_contract_of_each_group(name, groups):
    metric = load("metric", name)
    results = metric.of(gather_groups(groups))
    assert results.shape == (5,)
    assert results == pytest.approx([metric(*pair) for pair in groups], abs=1e-12, nan_ok=True)


@every_metric
def test_contract_of_resamples(name, groups):
    """Sums of drawn groups give the metric of the drawn frames, for arrays of any shape."""
    metric, sums = load("metric", name), gather_groups(groups)
    drawn = np.random.default_rng(2).integers(0, 5, size=(2, 3, 5))
    results = metric.of(Sums(sums.values[drawn].sum(axis=2), sums.origin))
    slow = [[metric(*concatenated([groups[i] for i in row])) for row in rows] for rows in drawn]
    assert results == pytest.approx(np.array(slow), abs=1e-12)


@every_metric
def test_all_six_are_symmetric(name, traces):
    metric = load("metric", name)
    assert metric(*traces[::-1]) == pytest.approx(metric(*traces), abs=1e-15)


@every_metric
@pytest.mark.parametrize("shift", [1e3, 1e6])
def test_contract_far_from_zero(name, traces, shift):
    metric = load("metric", name)
    result = metric(traces[0] + shift, traces[1] + shift)
    expected = 1.0 if name == "sagr" else metric(*traces)  # there all signs are positive
    assert result == pytest.approx(expected, abs=1e-8)  # numbers near 1e6 are rounded to 1e-10


@pytest.mark.parametrize("name", ["pearson", "icc"])
def test_shift_is_not_seen(name, traces):
    metric = load("metric", name)
    assert metric(traces[0] + 0.5, traces[1]) == pytest.approx(metric(*traces), abs=1e-12)


def test_shift_is_an_error_of_its_size(traces):
    for name in ("rmse", "mae"):
        assert load("metric", name)(traces[1] - 0.5, traces[1]) == pytest.approx(0.5, abs=1e-15)


def test_shift_beyond_all_targets_leaves_the_positive_signs(traces):
    share = np.mean(traces[1] > 0)
    assert 0.1 < share < 0.9
    assert load("metric", "sagr")(traces[1] + 2, traces[1]) == share


def test_ccc_shift_lowers(traces):
    shifted = [ccc(traces[1] + shift, traces[1]) for shift in (0.0, 0.1, 0.5, 5.0)]
    assert shifted == sorted(shifted, reverse=True)
    assert len(set(shifted)) == 4


CONSTANTS = {  # both constant and equal, both constant and 0.25 apart, prediction constant, target constant
    "ccc": (NAN, 0.0, 0.0, 0.0),
    "pearson": (NAN, NAN, NAN, NAN),
    "icc": (NAN, NAN, 0.0, 0.0),
    "rmse": (0.0, 0.25, None, None),
    "mae": (0.0, 0.25, None, None),
    "sagr": (1.0, None, None, None),
}
"""What a metric gives for constants; None: what it gives for any traces."""


def test_every_metric_states_what_it_gives_for_constants_and_for_one_frame():
    assert set(CONSTANTS) == set(ONE_FRAME) == set(METRICS)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1e6 + 0.1])
@every_metric
def test_constants(name, value, traces):
    constant = np.full(200, value)  # the mean of 200 times 0.1 is not 0.1, and its variance about that not 0
    pairs = [(constant, constant), (constant + 0.25, constant), (constant, traces[1]), (traces[0], constant)]
    for pair, expected in zip(pairs, CONSTANTS[name], strict=True):
        if expected is not None:
            # 1e-9: 0.25 added to a million is not 0.25 more; 0 and NaN are exact
            tolerance = 1e-9 if expected == 0.25 else 0
            assert load("metric", name)(*pair) == pytest.approx(expected, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("value", [0.1, -0.7, 1 / 3, 123.4])
@every_metric
def test_constants_measured_from_the_origin_of_others(name, value, traces):
    """A recording with equal ratings among others has the metric that it has alone."""
    constant = np.full(10_000, value)
    pairs = [traces, (constant, constant), (constant + 0.25, constant), (np.resize(traces[0], 10_000), constant)]
    metric = load("metric", name)
    results = metric.of(gather_groups(pairs))
    for result, pair, expected in zip(results[1:], pairs[1:], [CONSTANTS[name][i] for i in (0, 1, 3)], strict=True):
        exact = expected is not None and expected != 0.25
        assert result == pytest.approx(metric(*pair), abs=0 if exact else 1e-12, nan_ok=True)
    # and so have many of them together: 300 equal recordings, as a draw may give
    drawn = Sums(300 * gather_groups(pairs[:2]).values, gather_groups(pairs).origin)
    assert metric.of(drawn)[1] == pytest.approx(metric(constant, constant), abs=0, nan_ok=True)


def test_equal_values_are_constant_however_many():
    generator = np.random.default_rng(3)
    for value, num in ((0.1, 1_000_000), (-0.7, 123_457), *((generator.normal(), 4321) for _ in range(20))):
        sums = gather(np.full(num, value), np.full(num, -value), origin=(0.3, 1.7))
        assert sums.prediction_variance == 0
        assert sums.target_variance == 0
        assert sums.covariance == 0


def test_what_hardly_varies_is_not_constant():
    # one value of a million differs from the first: the variance is a millionth of the mean square
    values = np.r_[0.0, np.ones(1_000_000)]
    assert gather(values, values).target_variance == pytest.approx(values.var(), rel=1e-9)
    assert gather(0.5 + 1e-9 * values, values).prediction_variance == pytest.approx(1e-18 * values.var(), rel=1e-6)


ONE_FRAME = {  # hit exactly, missed by 0.1, missed by its sign
    "ccc": (NAN, 0.0, 0.0),
    "pearson": (NAN, NAN, NAN),
    "icc": (NAN, NAN, NAN),
    "rmse": (0.0, 0.1, 0.2),
    "mae": (0.0, 0.1, 0.2),
    "sagr": (1.0, 1.0, 0.0),
}


@every_metric
def test_one_frame(name):
    results = [load("metric", name)([value], [0.1]) for value in (0.1, 0.2, -0.1)]
    assert results == pytest.approx(ONE_FRAME[name], abs=1e-15, nan_ok=True)


def test_ccc_oracle(traces):
    # audmetric takes truth first; the CCC is symmetric. 1e-12: other order of summation
    assert ccc(*traces) == pytest.approx(audmetric.concordance_cc(traces[1], traces[0]), abs=1e-12)


def test_ccc_closed_forms(traces):
    # prediction = a target + b: ccc = 2 a var / ((1 + a^2) var + ((a - 1) mean + b)^2), with the population's variance
    target = traces[1]
    var, mean = target.var(), target.mean()
    for a, b in ((1.0, 0.4), (-1.0, 0.0), (0.5, -0.2), (3.0, 0.0)):
        expected = 2 * a * var / ((1 + a * a) * var + ((a - 1) * mean + b) ** 2)
        assert ccc(a * target + b, target) == pytest.approx(expected, abs=1e-12)
    # divided by n: 2 * 1/4 / (1/4 + 1/4 + 1/4); with n - 1 it would be 2 * 1/2 / (1/2 + 1/2 + 1/4)
    assert ccc([0.5, 1.5], [0.0, 1.0]) == pytest.approx(2 / 3, abs=1e-15)


def test_concordance_takes_any_array():
    moments = (0.1, 0.2, 0.3, 0.4)
    expected = 0.2 / (0.5 + 0.16)
    assert concordance(*moments) == pytest.approx(expected)
    assert concordance(*(np.full(2, moment) for moment in moments)) == pytest.approx(np.full(2, expected))
    tensors = [torch.tensor([moment], dtype=torch.float64) for moment in moments]
    assert concordance(*tensors).item() == pytest.approx(expected)


def test_pearson_oracles(traces):
    result = load("metric", "pearson")(*traces)
    assert result == pytest.approx(stats.pearsonr(*traces).statistic, abs=1e-12)
    assert result == pytest.approx(audmetric.pearson_cc(*traces[::-1]), abs=1e-12)


def test_pearson_stays_within_its_bounds():
    generator = np.random.default_rng(4)
    for gain in generator.normal(size=200):
        target = generator.normal(size=7) * 1e-3
        assert abs(load("metric", "pearson")(gain * target + 5, target)) <= 1


def test_errors_oracles(traces):
    assert load("metric", "rmse")(*traces) == pytest.approx(
        audmetric.mean_squared_error(*traces[::-1]) ** 0.5, abs=1e-12
    )
    assert load("metric", "mae")(*traces) == pytest.approx(audmetric.mean_absolute_error(*traces[::-1]), abs=1e-12)


def test_sign_agreement_loop():
    generator = np.random.default_rng(5)
    prediction, target = generator.integers(-2, 3, size=(2, 500)) / 2
    agreed = 0
    for p, t in zip(prediction, target, strict=True):
        if (p > 0 and t > 0) or (p < 0 and t < 0) or (p == 0 and t == 0):
            agreed += 1
    assert 0 < agreed < 500
    assert load("metric", "sagr")(prediction, target) == agreed / 500
    assert load("metric", "sagr")([0.0, 0.0, -0.0], [0.1, -0.1, 0.0]) == pytest.approx(1 / 3, abs=1e-15)


def slow_icc(ratings):
    """ICC(3,1) by an analysis of variance of rows of one rating per rater, as Shrout & Fleiss (1979) lay it out."""
    num_rows, num_raters = len(ratings), len(ratings[0])
    mean = sum(map(sum, ratings)) / (num_rows * num_raters)
    row_means = [sum(row) / num_raters for row in ratings]
    rater_means = [sum(column) / num_rows for column in zip(*ratings, strict=True)]
    between = sum(num_raters * (row_mean - mean) ** 2 for row_mean in row_means) / (num_rows - 1)
    residual = 0.0
    for row, row_mean in zip(ratings, row_means, strict=True):
        for rating, rater_mean in zip(row, rater_means, strict=True):
            residual += (rating - row_mean - rater_mean + mean) ** 2
    residual /= (num_rows - 1) * (num_raters - 1)
    return (between - residual) / (between + (num_raters - 1) * residual)


def test_the_slow_icc_gives_the_published_example():
    # Shrout & Fleiss (1979), tables 2 and 4: six subjects, four judges, ICC(3,1) = .71
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert round(slow_icc(ratings), 2) == 0.71


def test_icc_against_the_analysis_of_variance(traces):
    icc = load("metric", "icc")
    assert icc(*traces) == pytest.approx(slow_icc(np.column_stack(traces).tolist()), abs=1e-12)
    assert icc([9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2]) == pytest.approx(
        slow_icc([[9, 2], [6, 1], [8, 4], [7, 1], [10, 5], [6, 2]]), abs=1e-12
    )


def test_icc_sees_gain_but_ccc_sees_shift_too(traces):
    target = traces[1]
    assert load("metric", "icc")(2 * target + 1, target) == pytest.approx(2 * 2 / (4 + 1), abs=1e-12)
    assert ccc(2 * target + 1, target) < 0.8


def test_sums_add_up(groups):
    sums = gather_groups(groups)
    assert sums.values.shape == (5, NUM_SUMS)
    whole = gather(*concatenated(groups), origin=sums.origin)
    assert sums.values.sum(axis=0) == pytest.approx(whole.values, rel=1e-12)
    assert sums.pooled().values == pytest.approx(whole.values, rel=1e-12)
    assert sums.pooled().origin == whole.origin == sums.origin
    assert Sums(sums.values[None, :, None], sums.origin).pooled().values == pytest.approx(whole.values, rel=1e-12)


def test_sums_from_any_origin_give_the_same_moments(groups):
    prediction, target = concatenated(groups)
    rated = ~np.isnan(target)
    prediction, target = prediction[rated], target[rated]
    expected = {
        "num": rated.sum(),
        "covariance": np.cov(prediction, target, bias=True)[0, 1],
        "prediction_variance": prediction.var(),
        "target_variance": target.var(),
        "mean_difference": prediction.mean() - target.mean(),
        "mean_absolute_error": np.abs(prediction - target).mean(),
        "mean_squared_error": ((prediction - target) ** 2).mean(),
        "sign_agreement": (np.sign(prediction) == np.sign(target)).mean(),
    }
    for origin in (None, (0.0, 0.0), (3.0, -2.0)):
        sums = gather_groups(groups, origin).pooled()
        assert {name: getattr(sums, name) for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_origin_is_the_first_rated_value():
    pairs = [([], []), ([5.0, 0.5, 9.0], [NAN, 0.25, 1.0]), ([2.0], [3.0])]
    assert gather_groups(pairs).origin == (0.5, 0.25)
    assert gather_groups(pairs, (1.0, 2.0)).origin == (1.0, 2.0)
    assert gather_groups([]).values.shape == (0, NUM_SUMS)


def test_a_group_without_ratings_adds_nothing(groups):
    sums = gather_groups([*groups, ([1.0, 2.0], [NAN, NAN])])
    assert not sums.values[-1].any()
    assert sums.num[-1] == 0
    for name in ("covariance", "prediction_variance", "mean_difference", "mean_absolute_error", "sign_agreement"):
        assert math.isnan(getattr(sums, name)[-1])
    assert np.array_equal(sums.pooled().values, gather_groups(groups).pooled().values)


def test_metrics_do_not_import_torch():
    names = ", ".join(f"{name!r}" for name in METRICS)
    program = f"""
import sys
from avfuse.registry import load
for name in ({names}):
    load("metric", name)([0.0, 1.0], [0.0, 2.0])
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
