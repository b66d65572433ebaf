"""Pearson's correlation coefficient."""

import numpy as np

from avfuse.metrics import Sums, Values, metric


@metric(label="Pearson r", perfect=1.0, scale="correlation")
def pearson(sums: Sums) -> Values:
    """Pearson's correlation coefficient of a predicted trace with the rated one: cov / (sd_p sd_t).

    Between -1 and 1, blind to shift and gain of the predictions. NaN where it is not defined: no rated value, or one
    of the traces constant (so also one rated value).
    """
    correlation: Values = sums.covariance / (np.sqrt(sums.prediction_variance) * np.sqrt(sums.target_variance))
    return correlation
