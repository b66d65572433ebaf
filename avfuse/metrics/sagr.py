"""Sign agreement (Nicolaou, Gunes & Pantic 2011)."""

from avfuse.metrics import Sums, Values, metric


@metric(label="SAGR", perfect=1.0)
def sagr(sums: Sums) -> Values:
    """Sign agreement: the share of frames where prediction and target have the same sign, zero being one of its own.

    From Nicolaou, Gunes & Pantic (2011), IEEE Transactions on Affective Computing 2(2). It says something where ratings
    span 0, as valence and arousal do; where all are positive it is the share of positive predictions. Between 0 and 1,
    for constants too. NaN if there is no rated value.
    """
    return sums.sign_agreement
