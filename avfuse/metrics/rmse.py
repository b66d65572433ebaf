"""Root mean squared error."""

import numpy as np

from avfuse.metrics import Sums, Values, metric


@metric(label="RMSE", perfect=0.0)
def rmse(sums: Sums) -> Values:
    """Root mean squared error of a predicted trace, in the target's unit.

    The root is taken once, of the mean over all frames together. NaN if there is no rated value.
    """
    return np.sqrt(sums.mean_squared_error)
