"""Concordance correlation coefficient (Lin 1989), with the population's variances (divided by n)."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

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


def ccc(prediction: Any, target: Any) -> float:
    """Concordance correlation coefficient of a predicted trace with the rated one.

    Moments are taken from the first rated value of each trace as origin, so that a trace of equal values has variance
    0 exactly, whatever the value (the mean of equal numbers is seldom that number in floating point).

    Parameters
    ----------
    prediction, target : array or tensor, (n,)
        Where the target is NaN the position is unrated and left out.

    Returns
    -------
    float
        Between -1 and 1, in float64. 0 if one of the traces is constant, or both are with different values. NaN where
        it is not defined: no rated value, or both traces constant and equal (so also one rated value, hit exactly).

    Raises
    ------
    ValueError
        If the shapes differ or are not one-dimensional, or a value at a rated position is NaN or infinite.
    """
    prediction_N, target_N = _rated(_as_float64(prediction), _as_float64(target))
    if prediction_N.size == 0:
        return float("nan")
    origin_difference = prediction_N[0] - target_N[0]
    prediction_N = prediction_N - prediction_N[0]
    target_N = target_N - target_N[0]
    mean_difference = origin_difference + (prediction_N.mean() - target_N.mean())
    prediction_N = prediction_N - prediction_N.mean()
    target_N = target_N - target_N.mean()
    prediction_variance, target_variance = np.mean(prediction_N**2), np.mean(target_N**2)
    if prediction_variance + target_variance + mean_difference**2 == 0:
        return float("nan")
    covariance = np.mean(prediction_N * target_N)
    return float(concordance(covariance, prediction_variance, target_variance, mean_difference))


def _as_float64(values: Any) -> npt.NDArray[np.float64]:
    """Return an array or a tensor (of any device and float type) as a numpy array; torch is not imported for it."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _rated(
    prediction_N: npt.NDArray[np.float64], target_N: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both traces at the rated positions, after the checks of `ccc`."""
    if prediction_N.ndim != 1 or prediction_N.shape != target_N.shape:
        raise ValueError(
            f"prediction of shape {prediction_N.shape} and target of shape {target_N.shape}: "
            "both must be one-dimensional and equally long"
        )
    rated_N = ~np.isnan(target_N)
    prediction_N, target_N = prediction_N[rated_N], target_N[rated_N]
    for what, values_N in (("prediction", prediction_N), ("target", target_N)):
        num_bad = np.count_nonzero(~np.isfinite(values_N))
        if num_bad:
            raise ValueError(f"{what} is NaN or infinite at {num_bad} of {values_N.size} rated positions")
    return prediction_N, target_N
