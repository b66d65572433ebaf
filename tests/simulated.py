"""Simulated subjects and heads whose scores over the whole population are known.

A subject's target is its mean plus an autoregressive trace. A head's prediction is the target, times a gain that the
head has for the subject, plus an offset that it has for the subject, a bias of its own and an autoregressive error.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.signal import lfilter

MEMORY = 0.98  # correlation of neighbouring frames: at 25 frames/s, a trace that forgets within two seconds
MEAN_SD, WITHIN_SD = 0.3, 0.3  # of the subjects' mean ratings about 0, and of a subject's ratings about its mean
TARGET_VARIANCE = MEAN_SD**2 + WITHIN_SD**2
BIAS = 0.05
MEDIAN_FRAMES, SPREAD = 200, 0.6  # of the log-normal lengths of subjects
FEWEST, MOST = 40, 800


@dataclass(frozen=True)
class Head:
    """A head with a concordance of `ccc` over the population.

    `offset`, `gain` and `error` say in what proportion its subjects' offsets and gains and its own error make it worse
    than perfect; how much worse follows from `ccc`.
    """

    ccc: float
    offset: float
    gain: float
    error: float = 0.3

    def noise(self, badness):
        """Mean squared deviation of its predictions from target and bias."""
        return (self.offset**2 + self.gain**2 * TARGET_VARIANCE + self.error**2) * badness**2

    @cached_property
    def badness(self):
        """What the three are multiplied by."""

        def ccc(badness):  # 2 cov / (var_p + var_t + bias^2), as the gain is 1 on average
            return 2 * TARGET_VARIANCE / (2 * TARGET_VARIANCE + self.noise(badness) + BIAS**2)

        return brentq(lambda badness: ccc(badness) - self.ccc, 0.0, 100.0)

    @property
    def rmse(self):
        return float(np.sqrt(self.noise(self.badness) + BIAS**2))

    def predict(self, generator, target_GF, subjects):
        """Predict rows of targets; rows of the same number in `subjects` share offset and gain."""
        drawn = generator.normal(size=(2, max(subjects) + 1, 1))[:, subjects]
        offset, gain = self.badness * self.offset * drawn[0], 1 + self.badness * self.gain * drawn[1]
        return BIAS + offset + gain * target_GF + self.badness * self.error * traces(generator, len(target_GF))


def weak(ccc):
    """Return a head whose error is hardly the subject's own."""
    return Head(ccc, offset=0.06, gain=0.1)


def strong(ccc):
    """Return a head whose error is the subject's own by six parts in ten: for some it sees twice what is there."""
    return Head(ccc, offset=0.3, gain=0.5)


def extreme(ccc):
    """Return a head whose error is the subject's own by three quarters: some it reads upside down."""
    return Head(ccc, offset=0.3, gain=1.0)


def traces(generator, num):
    """Autoregressive traces of variance 1, (num, MOST)."""
    noise = generator.normal(size=(num, MOST))
    noise[:, 1:] *= np.sqrt(1 - MEMORY**2)
    return lfilter([1], [1, -MEMORY], noise, axis=1)


def draw(generator, num_subjects, heads, per_subject=1):
    """Draw subjects; return the (prediction, target) of every recording, head after head."""
    subjects = np.repeat(np.arange(num_subjects), per_subject)
    lengths = MEDIAN_FRAMES * np.exp(SPREAD * generator.normal(size=len(subjects)))
    means = MEAN_SD * generator.normal(size=(num_subjects, 1))[subjects]
    target_GF = means + WITHIN_SD * traces(generator, len(subjects))
    ends = np.clip(lengths, FEWEST, MOST).astype(int)
    return [
        (prediction_F[:end], target_F[:end])
        for head in heads
        for prediction_F, target_F, end in zip(
            head.predict(generator, target_GF, subjects), target_GF, ends, strict=True
        )
    ]
