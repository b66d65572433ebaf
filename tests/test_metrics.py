"""Contract of the metrics over the registry's table; CCC against its oracle and closed forms."""

import math

import audmetric
import numpy as np
import pytest
import torch

from avfuse.metrics.ccc import ccc, concordance
from avfuse.registry import METRICS, load

PERFECT = {"ccc": 1.0, "pearson": 1.0}
"""What a metric gives for a perfect prediction; errors, which give 0, need no row."""


@pytest.fixture
def traces():
    generator = np.random.default_rng(0)
    target = np.tanh(generator.normal(size=200).cumsum() / 5)
    return 0.6 * target + 0.1 + 0.2 * generator.normal(size=200), target


@pytest.mark.parametrize("name", METRICS)
def test_contract_identity(name, traces):
    assert load("metric", name)(traces[1], traces[1]) == pytest.approx(PERFECT.get(name, 0.0), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_contract_unrated_left_out(name, traces):
    metric = load("metric", name)
    prediction, target = (values.copy() for values in traces)
    unrated = np.arange(200) % 3 == 0
    target[unrated] = np.nan
    expected = metric(prediction[~unrated], target[~unrated])
    prediction[unrated] = np.nan
    assert metric(prediction, target) == expected


@pytest.mark.parametrize("name", METRICS)
def test_contract_arrays_and_tensors(name, traces):
    metric = load("metric", name)
    prediction, target = (torch.tensor(values) for values in traces)
    result = metric(prediction.requires_grad_(), target)
    assert isinstance(result, float)
    assert result == metric(*traces)
    half = [torch.tensor(values).bfloat16() for values in traces]
    assert metric(*half) == metric(*(values.double() for values in half))


@pytest.mark.parametrize("name", METRICS)
def test_contract_undefined_is_nan(name):
    metric = load("metric", name)
    assert math.isnan(metric([], []))
    assert math.isnan(metric([0.3, 0.2], [np.nan, np.nan]))


@pytest.mark.parametrize("name", METRICS)
def test_contract_refusals(name):
    metric = load("metric", name)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metric(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="one-dimensional"):
        metric(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="prediction is NaN or infinite at 1 of 2"):
        metric([np.nan, 0.0, np.nan], [0.0, 1.0, np.nan])


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


def test_ccc_shift_lowers(traces):
    shifted = [ccc(traces[1] + shift, traces[1]) for shift in (0.0, 0.1, 0.5, 5.0)]
    assert shifted == sorted(shifted, reverse=True)
    assert len(set(shifted)) == 4


def test_ccc_symmetric(traces):
    assert ccc(*traces) == pytest.approx(ccc(*traces[::-1]), abs=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1e6 + 0.1])
def test_ccc_constants(value, traces):
    constant = np.full(200, value)  # the mean of 200 times 0.1 is not 0.1, and its variance about that not 0
    assert math.isnan(ccc(constant, constant))
    assert ccc(constant + 0.25, constant) == 0
    assert ccc(constant, traces[1]) == 0
    assert ccc(traces[0], constant) == 0


def test_ccc_one_value():
    assert math.isnan(ccc([0.1], [0.1]))
    assert ccc([0.1], [0.2]) == 0


def test_ccc_far_from_zero(traces):
    # numbers near 1e6 are rounded to 1e-10: the moments must not lose more than that
    assert ccc(traces[0] + 1e6, traces[1] + 1e6) == pytest.approx(ccc(*traces), abs=1e-8)


def test_concordance_takes_any_array():
    moments = (0.1, 0.2, 0.3, 0.4)
    expected = 0.2 / (0.5 + 0.16)
    assert concordance(*moments) == pytest.approx(expected)
    assert concordance(*(np.full(2, moment) for moment in moments)) == pytest.approx(np.full(2, expected))
    tensors = [torch.tensor([moment], dtype=torch.float64) for moment in moments]
    assert concordance(*tensors).item() == pytest.approx(expected)
