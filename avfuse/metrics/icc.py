"""Intraclass correlation ICC(3,1) (Shrout & Fleiss 1979), prediction and target being the two raters."""

import numpy as np

from avfuse.metrics import Sums, Values, metric
from avfuse.metrics.ccc import concordance


@metric(label="ICC(3,1)", perfect=1.0, scale="correlation")
def icc(sums: Sums) -> Values:
    """Intraclass correlation ICC(3,1) of a predicted trace with the rated one.

    Shrout & Fleiss (1979), case 3: ICC(3,1) = (BMS - EMS) / (BMS + (k - 1) EMS), from the mean squares between frames
    (BMS) and of the residual (EMS) of an analysis of variance of frames by k raters. For k = 2 and n frames, BMS is
    n / (n - 1) (var_p + var_t + 2 cov) / 2 and EMS is n / (n - 1) (var_p + var_t - 2 cov) / 2, as half the sum and half
    the difference of the raters are what frames and residual are made of. Their difference is n / (n - 1) 2 cov, their
    sum n / (n - 1) (var_p + var_t), and so

        ICC(3,1) = 2 cov / (var_p + var_t),

    the CCC without its difference of means: blind to shift, but not to gain. Between -1 and 1. 0 if one of the traces
    is constant. NaN where it is not defined: no rated value, or both traces constant (so also one rated value).
    """
    return concordance(sums.covariance, sums.prediction_variance, sums.target_variance, np.zeros_like(sums.covariance))
