"""Concordance correlation coefficient (Lin 1989), with the population's variances (divided by n)."""

from typing import Any, TypeVar

from avfuse.metrics import Sums, Values, metric

Value = TypeVar("Value")


def concordance(covariance: Value, prediction_variance: Value, target_variance: Value, mean_difference: Value) -> Value:
    """Return the CCC from the moments of prediction and target: the one formula, for arrays, tensors and numbers.

    CCC = 2 cov / (var_p + var_t + (mean_p - mean_t)^2), Lin (1989), with all moments divided by n. It is not defined
    where the denominator is 0; the caller sees to that.
    """
    moments: tuple[Any, Any, Any, Any] = (covariance, prediction_variance, target_variance, mean_difference)
    cov, var_p, var_t, difference = moments
    value: Value = 2 * cov / (var_p + var_t + difference * difference)
    return value


@metric(label="CCC", perfect=1.0, scale="correlation")
def ccc(sums: Sums) -> Values:
    """Concordance correlation coefficient (Lin 1989), with the population's variances.

    Between -1 and 1. 0 if one of the traces is constant, or both are with different values. NaN where it is not
    defined: no rated value, or both traces constant and equal (so also one rated value, hit exactly).
    """
    return concordance(sums.covariance, sums.prediction_variance, sums.target_variance, sums.mean_difference)
