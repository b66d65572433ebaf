"""Metrics: how well a predicted trace agrees with the rated one.

Conventions
-----------
- The order is always ``(prediction, target)``.
- Arrays are one-dimensional, equally long, of numpy or torch; the result is a float64 scalar.
- A NaN target means "unrated": those positions are left out. A NaN prediction at a rated position is an error.
- Variances and covariances are the population's (divided by n, not n - 1).
- Where a metric is not defined (its docstring says where), the result is NaN, never an exception and never zero.

A plug is a `Metric`: a formula of `Sums`, which add up over any split of the frames. So a metric of ten thousand
resampled sets of recordings is ten thousand sums and one call of `Metric.of`, and no frame is read again::

    @metric(label="RMSE", perfect=0.0)
    def rmse(sums: Sums) -> Values:
        return np.sqrt(sums.mean_squared_error)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Origin = tuple[float, float]

NUM_SUMS = 9
_NUM, _P, _T, _PP, _TT, _PT, _ABSOLUTE, _SQUARED, _AGREED = range(NUM_SUMS)
CONSTANT = 1e-12
"""A variance below this share of the mean square about the origin is rounding: the trace is constant.

Adding up 1e6 equal numbers errs by less than 1e-13 of their sum. No trace that varies about an origin among its own
values falls below 1 / n; about another's origin, one falls below whose deviation is a millionth of its distance.
"""


@dataclass(frozen=True)
class Sums:
    """What the metrics need to know of some frames; adds up over any split of them.

    Attributes
    ----------
    values : ndarray, (..., 9), float64
        Number of rated frames; their sums of p, t, p p, t t and p t, where p and t are prediction and target measured
        from the origin; their sums of absolute and of squared errors; number of those with equal signs.
    origin : (float, float)
        What was subtracted from predictions and targets. Values add up only with those of the same origin.
    """

    values: Values
    origin: Origin

    def pooled(self) -> Sums:
        """Return the sums of all frames together, of shape (9,)."""
        return Sums(self.values.reshape(-1, NUM_SUMS).sum(axis=0), self.origin)

    @property
    def num(self) -> Values:
        """Number of rated frames."""
        return self.values[..., _NUM]

    @cached_property
    def prediction_variance(self) -> Values:
        """Population variance of the predictions, never negative; exactly 0 where they are all equal."""
        return self._variance(_P, _PP)

    @cached_property
    def target_variance(self) -> Values:
        """Population variance of the targets, never negative; exactly 0 where they are all equal."""
        return self._variance(_T, _TT)

    @property
    def covariance(self) -> Values:
        """Population covariance, never beyond what the variances allow."""
        covariance = self._mean(_PT) - self._mean(_P) * self._mean(_T)
        most = np.sqrt(self.prediction_variance) * np.sqrt(self.target_variance)
        return np.clip(covariance, -most, most)

    @property
    def mean_difference(self) -> Values:
        """Mean prediction minus mean target, never beyond the mean absolute error; so 0 where all are equal."""
        difference = self.origin[0] - self.origin[1] + (self._mean(_P) - self._mean(_T))
        return np.clip(difference, -self.mean_absolute_error, self.mean_absolute_error)

    @property
    def mean_absolute_error(self) -> Values:
        """Mean of |prediction - target|."""
        return self._mean(_ABSOLUTE)

    @property
    def mean_squared_error(self) -> Values:
        """Mean of (prediction - target)^2."""
        return self._mean(_SQUARED)

    @property
    def sign_agreement(self) -> Values:
        """Share of the frames where prediction and target have the same sign; zero is a sign of its own."""
        return self._mean(_AGREED)

    def _mean(self, index: int) -> Values:
        """Return the mean of one summand, NaN where there is no frame."""
        num = self.num
        mean: Values = np.divide(self.values[..., index], num, out=np.full(num.shape, np.nan), where=num > 0)
        return mean

    def _variance(self, linear: int, square: int) -> Values:
        mean_square = self._mean(square)
        variance = mean_square - self._mean(linear) ** 2
        return np.where(variance < CONSTANT * mean_square, 0.0, variance)


@final
class Metric:
    """A plug: callable with a prediction and a target, and computed for whole arrays of sums by `of`.

    Attributes
    ----------
    label : str
        Heading of a column.
    perfect : float
        The result for a perfect prediction: 1.0 where more is better, 0.0 where less is.
    scale : str
        The scale on which intervals of it are built: "correlation" (Fisher's z) or "plain".
    """

    def __init__(self, formula: Callable[[Sums], Values], label: str, perfect: float, scale: str) -> None:
        self._formula = formula
        self.label, self.perfect, self.scale = label, perfect, scale
        self.__doc__, self.__module__ = formula.__doc__, formula.__module__
        self.__name__, self.__qualname__ = formula.__name__, formula.__qualname__

    def __repr__(self) -> str:
        return f"<metric {self.__name__}>"

    def __call__(self, prediction: Any, target: Any) -> float:
        """Return the metric of one predicted trace, see `gather` for what is taken and refused."""
        return float(self.of(gather(prediction, target)))

    def of(self, sums: Sums) -> Values:
        """Return the metric of each entry, of the shape of ``sums.num``; NaN where it is not defined."""
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is what "not defined" looks like
            return np.asarray(self._formula(sums), dtype=np.float64)


def metric(label: str, perfect: float, scale: str = "plain") -> Callable[[Callable[[Sums], Values]], Metric]:
    """Make a function of `Sums` a `Metric`."""
    return lambda formula: Metric(formula, label, perfect, scale)


def gather(prediction: Any, target: Any, origin: Origin | None = None) -> Sums:
    """Return the sums of one predicted trace, of shape (9,).

    Parameters
    ----------
    prediction, target : array or tensor, (n,)
        Where the target is NaN the position is unrated and left out.
    origin : (float, float), optional
        What to measure prediction and target from; near to them, or digits are lost. The first rated values, if not
        given: a trace of equal values then has variance 0 exactly, whatever the value.

    Raises
    ------
    ValueError
        If the shapes differ or are not one-dimensional, or a value at a rated position is NaN or infinite.
    """
    return gather_groups([(prediction, target)], origin).pooled()


def gather_groups(pairs: Sequence[tuple[Any, Any]], origin: Origin | None = None) -> Sums:
    """Return the sums of G predicted traces, of shape (G, 9) and of one origin, so that they add up.

    Sums that are compared, averaged or exchanged, as those of rival predictions, need the same origin: gather them in
    one call, or hand the first call's origin to the others. Parameters and errors are those of `gather`.
    """
    rated = [_rated(_as_float64(prediction), _as_float64(target)) for prediction, target in pairs]
    if origin is None:
        origin = next(((float(p[0]), float(t[0])) for p, t in rated if p.size), (0.0, 0.0))
    values_GK = np.zeros((len(rated), NUM_SUMS))
    for sums_K, (prediction_N, target_N) in zip(values_GK, rated, strict=True):
        sums_K[:] = _sum_up(prediction_N, target_N, origin)
    return Sums(values_GK, origin)


def _sum_up(prediction_N: Values, target_N: Values, origin: Origin) -> Values:
    """Return the nine sums of one trace, each by pairwise summation along its own contiguous row."""
    summands_KN = np.empty((NUM_SUMS, prediction_N.size))
    p, t, error = prediction_N - origin[0], target_N - origin[1], prediction_N - target_N
    summands_KN[_NUM] = 1.0
    summands_KN[_P], summands_KN[_T] = p, t
    summands_KN[_PP], summands_KN[_TT], summands_KN[_PT] = p * p, t * t, p * t
    summands_KN[_ABSOLUTE], summands_KN[_SQUARED] = np.abs(error), error * error
    summands_KN[_AGREED] = np.sign(prediction_N) == np.sign(target_N)
    sums_K: Values = summands_KN.sum(axis=1)
    return sums_K


def _as_float64(values: Any) -> Values:
    """Return an array or a tensor (of any device and float type) as a numpy array; torch is not imported for it."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _rated(prediction_N: Values, target_N: Values) -> tuple[Values, Values]:
    """Return both traces at the rated positions, after the checks of `gather`."""
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
