"""Statistics of scores: what a table may claim, given how few subjects it rests on.

Everything is computed from sufficient statistics: sums over the frames of a group (a subject, a recording) that add up,
and a score of such sums. The axes of their arrays::

    S runs of a row, which differ in their seed    G groups, mostly subjects    R recordings    K sums

How well the intervals cover and the tests keep their level was measured; docs/statistics.md has the tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from avfuse.schema import UsageError

Values = npt.NDArray[np.float64]
Score = Callable[[Values], Values]
"""A score of sums, (..., K) -> (...): the same for any multiple of the sums, NaN where it is not defined."""

UNITS = ("subjects", "recordings")
"""What may be resampled."""
MIN_GROUPS = 5
"""Of fewer groups there is no interval: of 4, one draw in 64 is of one group alone, and has no standard error."""
FEW_GROUPS = 12
"""With fewer, intervals still hold what they say, but that of a CCC of 0.6 is wider than half of 0 to 1."""
FEW_SEEDS = 3
"""Of two trainings, nobody can tell which is the odd one."""
FEWEST_EXCHANGES = 6
"""With fewer groups to exchange, 2 / 2^R is above `LEVEL`."""
LEVEL = 0.05
"""What p must not exceed."""
MAX_UNDEFINED_SHARE = 0.01
"""Of the draws, above which there is no interval: it would be of those samples only that do have a score."""
_ROUNDING = 1e-12  # scores that differ by less, relatively, are equal
_STEP = 1e-4  # of a difference quotient, which errs by its square and by 1e-16 / 1e-4
_BATCH_NUMBERS = 1_000_000  # in the largest array of a batch of draws


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends are NaN where it is not defined."""

    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class _Scale:
    """A scale on which an interval is built: the way there, its derivative and the way back."""

    forward: Callable[[Values], Values]
    slope: Callable[[Values], Values]
    back: Callable[[Values], Values]


_SCALES = {
    "plain": _Scale(lambda value: value, np.ones_like, lambda value: value),
    "correlation": _Scale(np.arctanh, lambda value: 1 / (1 - value * value), np.tanh),
}


def bootstrap_interval(
    sums_SGK: Values,
    score: Score,
    *,
    seed: int,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    scale: str = "plain",
) -> Interval:
    """Return the interval of the mean over the seeds of the score of all groups together.

    The bootstrap-t interval (Efron & Tibshirani 1993, ch. 12) over groups: groups are drawn with replacement, the same
    for all seeds; in each draw the deviation from the estimate is divided by the draw's standard error, that of the
    infinitesimal jackknife (Efron 1982, ch. 6); and the quantiles of the quotient are laid off from the estimate in
    units of its jackknife standard error, which errs to the safe side (Efron & Stein 1981). With few groups that comes
    closest to its confidence, of the methods compared in docs/statistics.md.

    Parameters
    ----------
    sums_SGK : ndarray, (S, G, K)
        A group whose sums are all 0 has no frames; it is left out and not counted.
    score : callable, (..., K) -> (...)
    seed : int
        Of the draws; the same seed gives the same interval.
    num_resamples : int
    confidence : float
        Between 0 and 1.
    scale : str
        "correlation" for scores between -1 and 1: the interval is built on Fisher's z (Lin 1989 does so for the CCC)
        and lies between -1 and 1; or "plain".

    Returns
    -------
    Interval
        Undefined with fewer than `MIN_GROUPS` groups, where the score is not defined without one of them, or in more
        than a hundredth of the draws. A score that no draw changes has an interval of no width.
    """
    weights_S = np.full(len(sums_SGK), 1 / len(sums_SGK))
    return _interval(sums_SGK, score, weights_S, _SCALES[scale], seed, num_resamples, confidence)


def bootstrap_difference(
    sums_SGK: Values,
    rival_SGK: Values,
    score: Score,
    *,
    seed: int,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Return the interval of a row's mean score minus its rival's, both over the same groups.

    Both rows see the same draws, so that what makes a group hard for both cancels; their numbers of seeds may differ.
    Otherwise as `bootstrap_interval` on the plain scale.

    Raises
    ------
    ValueError
        If the groups or sums differ in number.
    """
    _check_paired(sums_SGK[:1], rival_SGK[:1])
    weights_S = np.repeat([1 / len(sums_SGK), -1 / len(rival_SGK)], [len(sums_SGK), len(rival_SGK)])
    both_SGK = np.concatenate([sums_SGK, rival_SGK])
    return _interval(both_SGK, score, weights_S, _SCALES["plain"], seed, num_resamples, confidence)


def _interval(
    sums_SGK: Values,
    score: Score,
    weights_S: Values,
    scale: _Scale,
    seed: int,
    num_resamples: int,
    confidence: float,
) -> Interval:
    """Return the bootstrap-t interval of the weighted sum of the seeds' scores."""
    sums_SGK = sums_SGK[:, sums_SGK.any(axis=(0, 2))]
    if sums_SGK.shape[1] < MIN_GROUPS or not np.isfinite(sums_SGK).all():
        return UNDEFINED
    drawn = _Drawn(sums_SGK, score, weights_S, scale)
    if np.isnan(drawn.estimate) or np.isnan(drawn.without_G).any():
        return UNDEFINED
    if np.abs(drawn.without_G - drawn.estimate).max() <= _ROUNDING * drawn.size:
        return Interval(drawn.estimate, drawn.estimate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of draws that are not defined, counted below
        roots_N = stats.bootstrap(
            (np.arange(drawn.num_groups),),
            drawn.roots,
            n_resamples=num_resamples,
            batch=max(1, _BATCH_NUMBERS // drawn.num_numbers),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    defined_N = roots_N[~np.isnan(roots_N)]
    if len(defined_N) < (1 - MAX_UNDEFINED_SHARE) * num_resamples:
        return UNDEFINED
    below, above = np.quantile(defined_N, [(1 - confidence) / 2, (1 + confidence) / 2])
    with np.errstate(divide="ignore", invalid="ignore"):  # an estimate of 1 lies at infinity on Fisher's scale
        ends = scale.back(scale.forward(np.array(drawn.estimate)) - drawn.jackknife_error * np.array([above, below]))
    return Interval(*map(float, ends)) if np.isfinite(ends).all() else UNDEFINED


class _Drawn:
    """The score of drawn groups, on a scale, and how far it is from that of all groups in standard errors."""

    def __init__(self, sums_SGK: Values, score: Score, weights_S: Values, scale: _Scale) -> None:
        self._sums_SGK, self._score, self._weights_S, self._scale = sums_SGK, score, weights_S, scale
        self.num_groups = sums_SGK.shape[1]
        total_SK = sums_SGK.sum(axis=1)
        self.estimate = float(self._value(total_SK))
        self.size = float(np.abs(score(total_SK)).max())
        self.without_G = self._value(np.moveaxis(total_SK[:, None] - sums_SGK, 1, 0))
        # Groups in terms of their principal directions: x_i = sum_j coordinates_ij directions_j. A small step along
        # one of these keeps variances positive, as one along a single sum, far from its origin, would not.
        size_S1K = np.linalg.norm(sums_SGK, axis=1, keepdims=True)
        size_S1K[size_S1K == 0] = 1.0
        self._coordinates_SGJ, lengths_SJ, directions_SJK = np.linalg.svd(sums_SGK / size_S1K, full_matrices=False)
        self._steps_JSK = np.moveaxis(_STEP * lengths_SJ[..., None] * directions_SJK * size_S1K, 1, 0)

    @property
    def num_numbers(self) -> int:
        """Numbers that a draw takes in the largest array."""
        num_numbers: int = max(self.num_groups, 2 * self._steps_JSK.size)
        return num_numbers

    @property
    def jackknife_error(self) -> float:
        """The jackknife standard error of the score of all groups, on the scale (Efron & Tibshirani 1993, ch. 11)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z_G = self._scale.forward(self.without_G)
            return math.sqrt((self.num_groups - 1) * np.mean((z_G - z_G.mean()) ** 2))

    def roots(self, drawn_NG: npt.NDArray[np.int64], axis: int) -> Values:
        """Return (score - score of all) / standard error of each draw, given as the numbers of its groups."""
        assert axis in (-1, drawn_NG.ndim - 1)
        counts_NG = _counts(np.atleast_2d(drawn_NG), self.num_groups)
        totals_NSK = np.moveaxis(counts_NG @ self._sums_SGK, 0, 1)
        value_N = self._value(totals_NSK)
        with np.errstate(divide="ignore", invalid="ignore"):
            shift_N = self._scale.forward(value_N) - self._scale.forward(np.array(self.estimate))
            roots_N: Values = shift_N / (self._scale.slope(value_N) * self._errors(counts_NG, totals_NSK))
        return roots_N if drawn_NG.ndim > 1 else roots_N[0]

    def _value(self, totals_NSK: Values) -> Values:
        value_N: Values = self._score(totals_NSK) @ self._weights_S
        return value_N

    def _errors(self, counts_NG: Values, totals_NSK: Values) -> Values:
        """Return the standard error of each draw's score by the infinitesimal jackknife.

        It is the root of the sum over the draw's groups of the square of the score's derivative by a group's weight
        (Efron 1982, ch. 6); that derivative is the gradient times the group's sums. The derivatives add up to 0, as
        the score is the same for any multiple of the sums.
        """
        steps_2JNSK = np.stack([self._steps_JSK, -self._steps_JSK])[:, :, None]
        ahead_JNS, behind_JNS = self._score(totals_NSK + steps_2JNSK)
        gradient_NSJ = np.moveaxis(ahead_JNS - behind_JNS, 0, -1) / (2 * _STEP)
        derivative_NG = np.einsum(
            "nsj,sgj->ng", gradient_NSJ * self._weights_S[:, None], self._coordinates_SGJ, optimize=True
        )
        errors_N: Values = np.sqrt(np.einsum("ng,ng,ng->n", counts_NG, derivative_NG, derivative_NG))
        return errors_N


def _counts(drawn_NG: npt.NDArray[np.int64], num_groups: int) -> Values:
    """Return how often each group is in each draw, (N, G)."""
    cells_NG = drawn_NG + num_groups * np.arange(len(drawn_NG))[:, None]
    counts = np.bincount(cells_NG.ravel(), minlength=len(drawn_NG) * num_groups)
    return counts.reshape(-1, num_groups).astype(np.float64)


def paired_permutation(
    sums_SRK: Values, rival_SRK: Values, score: Score, *, seed: int, num_resamples: int = 10_000
) -> float:
    """Return the two-sided p of a row's mean score against its rival's, over the same recordings and seeds.

    The paired permutation test: if it makes no difference which row predicts a recording, the predictions of both may
    change places in any of the recordings (in all seeds at once), and p is the share of such exchanges in which the
    scores of all recordings together differ as much as they do. All 2^R exchanges are gone through where they are at
    most `num_resamples`; else that many are drawn, and the actual one is counted among them (Phipson & Smyth 2010).
    Recordings of one subject are not exchangeable one by one: give the subjects' sums in place of the recordings'.

    Parameters
    ----------
    sums_SRK, rival_SRK : ndarray, (S, R, K)
        Of one origin, seeds in the same order. A recording whose sums are all 0 is left out.
    score : callable, (..., K) -> (...)
    seed : int
        Of the draws.
    num_resamples : int

    Returns
    -------
    float
        NaN where a score is not defined, or there is no recording.

    Raises
    ------
    ValueError
        If seeds, recordings or sums differ in number.
    """
    _check_paired(sums_SRK, rival_SRK)
    present_R = sums_SRK.any(axis=(0, 2)) | rival_SRK.any(axis=(0, 2))
    sums_SRK, rival_SRK = sums_SRK[:, present_R], rival_SRK[:, present_R]
    num_recordings = sums_SRK.shape[1]
    if num_recordings == 0 or not np.isfinite(sums_SRK + rival_SRK).all():
        return math.nan
    if num_recordings == 1:  # which SciPy refuses: exchanged, the difference is as far on the other side
        return 1.0 if np.isfinite(score(sums_SRK[:, 0]) - score(rival_SRK[:, 0])).all() else math.nan
    both_SK, half_SRK = (sums_SRK + rival_SRK).sum(axis=1) / 2, (sums_SRK - rival_SRK) / 2

    def difference(signs_NR: Values, axis: int) -> Values:
        assert axis in (-1, signs_NR.ndim - 1)
        half_NSK = np.moveaxis(np.atleast_2d(signs_NR) @ half_SRK, 0, 1)
        difference_N: Values = (score(both_SK + half_NSK) - score(both_SK - half_NSK)).mean(axis=-1)
        return difference_N if signs_NR.ndim > 1 else difference_N[0]

    found = stats.permutation_test(
        (np.ones(num_recordings),),  # one sample of +1, whose signs scipy flips: -1 where the rows change places
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _BATCH_NUMBERS // max(num_recordings, both_SK.size)),
        rng=np.random.default_rng(seed),
    )
    size = max(np.abs(score(sums_SK)).max() for sums_SK in (sums_SRK.sum(axis=1), rival_SRK.sum(axis=1)))
    is_drawn = 2**num_recordings > num_resamples
    return _share_as_far(found.null_distribution, found.statistic, _ROUNDING * size, int(is_drawn))


def _share_as_far(differences_N: Values, actual: float, tolerance: float, num_more: int) -> float:
    """Return the share of differences that are as far from 0 as the actual one; that is counted `num_more` times more.

    SciPy's own p has a tolerance relative to the actual difference, which may be smaller than the scores' rounding.
    """
    if not np.isfinite(differences_N).all():
        return math.nan
    num_as_far = np.count_nonzero(np.abs(differences_N) >= abs(actual) - tolerance)
    return float((num_as_far + num_more) / (len(differences_N) + num_more))


def smallest_p(num_recordings: int, num_resamples: int = 10_000) -> float:
    """Return the least p that `paired_permutation` can give: 2 of 2^R exchanges, or 1 of those drawn and the actual."""
    if num_recordings == 0:
        return math.nan
    num_exchanges = 2**num_recordings
    return 2 / num_exchanges if num_exchanges <= num_resamples else 1 / (num_resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for being several, in the same order (Holm 1979).

    The i-th smallest of m, from 0, is multiplied by m - i; none comes out smaller than one before it, nor above 1. A
    NaN, a test that could not be made, stays NaN and does not count.
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p_M))
    order = tested[np.argsort(p_M[tested], kind="stable")]
    adjusted_M = np.full(len(p_M), np.nan)
    adjusted_M[order] = np.minimum(1.0, np.maximum.accumulate(p_M[order] * np.arange(len(order), 0, -1)))
    return adjusted_M.tolist()


def check_unit(unit: str) -> None:
    """Check what is to be resampled.

    Raises
    ------
    UsageError
        If it is frames, with the reason, or nothing that is known.
    """
    if unit == "frames":
        raise UsageError(
            "frames cannot be resampled: neighbouring frames are nearly the same, so that an interval over frames is "
            f"several times too narrow; allowed are {' and '.join(UNITS)}"
        )
    if unit not in UNITS:
        raise UsageError(f"'{unit}' cannot be resampled; allowed are {' and '.join(UNITS)}")


def cautions(*, num_groups: int, num_seeds: int, unit: str = "subjects") -> tuple[str, ...]:
    """Return sentences on what is too few for what a table says; none where all is enough."""
    said = []
    groups = f"{num_groups} {unit if num_groups != 1 else unit[:-1]}"
    if num_groups < MIN_GROUPS:
        said.append(f"{groups}: too few for intervals; at least {MIN_GROUPS} are needed.")
    elif num_groups < FEW_GROUPS:
        said.append(f"{groups}: with fewer than {FEW_GROUPS}, intervals are so wide that they rule little out.")
    if num_groups < FEWEST_EXCHANGES:
        least = f", as p is never below {smallest_p(num_groups):.2g}" if num_groups else ""
        said.append(
            f"{groups}: no difference can be significant at {LEVEL:.0%}{least}; "
            f"at least {FEWEST_EXCHANGES} are needed, and more where there are several tests."
        )
    if num_seeds < FEW_SEEDS:
        seeds = f"{num_seeds} seed{'s' if num_seeds != 1 else ''}"
        said.append(f"{seeds}: {FEW_SEEDS} or more show how far chance moves a training.")
    return tuple(said)


def _check_paired(sums: Values, rival: Values) -> None:
    if sums.shape != rival.shape:
        raise ValueError(f"sums of shape {sums.shape} and a rival's of shape {rival.shape}: they are not paired")
