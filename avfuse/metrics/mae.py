"""Mean absolute error."""

from avfuse.metrics import Sums, Values, metric


@metric(label="MAE", perfect=0.0)
def mae(sums: Sums) -> Values:
    """Mean absolute error of a predicted trace, in the target's unit. NaN if there is no rated value."""
    return sums.mean_absolute_error
