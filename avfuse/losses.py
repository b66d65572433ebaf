"""The training loss: 1 - CCC over the rated clips of a batch."""

import torch
from torch import Tensor

from avfuse.metrics.ccc import concordance


def ccc_loss(trace_BTE: Tensor, target_BTE: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the targets of 1 - CCC, each over all rated, unpadded clips of the batch together.

    A target with fewer than two rated clips, or whose rated values are all equal in this batch, carries no concordance
    and is left out of the mean; where none is left the loss is 0 and its gradient zero. The moments are those of
    `avfuse.metrics.ccc`, taken from the target's least rated value as origin, so that equal values have variance 0
    exactly. As the target varies, constant predictions have a finite gradient. Nothing waits for the device.

    Parameters
    ----------
    trace_BTE : Tensor, (B, T, E)
        What the head returned; finite where rated.
    target_BTE : Tensor, (B, T, E)
        NaN where unrated.
    mask_BT : Tensor, (B, T), bool
        False for padding.

    Returns
    -------
    Tensor, ()
        In float32, or float64 if the trace is; under autocast too.
    """
    with torch.autocast(trace_BTE.device.type, enabled=False):
        dtype = torch.promote_types(trace_BTE.dtype, torch.float32)
        prediction_BTE, target_BTE = trace_BTE.to(dtype), target_BTE.to(dtype)
        rated_BTE = mask_BT.unsqueeze(-1) & ~target_BTE.isnan()
        num_rated_E = rated_BTE.sum((0, 1)).clamp(min=1)
        origin_E = target_BTE.masked_fill(~rated_BTE, torch.inf).amin((0, 1))

        def centre(values_BTE: Tensor) -> tuple[Tensor, Tensor]:
            """Return the mean of the rated values, from the origin, and their deviations, 0 where unrated."""
            values_BTE = torch.where(rated_BTE, values_BTE - origin_E, 0.0)
            mean_E = values_BTE.sum((0, 1)) / num_rated_E
            return mean_E, torch.where(rated_BTE, values_BTE - mean_E, 0.0)

        prediction_mean_E, prediction_BTE = centre(prediction_BTE)
        target_mean_E, target_BTE = centre(target_BTE)
        target_variance_E = target_BTE.square().sum((0, 1)) / num_rated_E
        varies_E = target_variance_E > 0
        ccc_E = concordance(
            (prediction_BTE * target_BTE).sum((0, 1)) / num_rated_E,
            prediction_BTE.square().sum((0, 1)) / num_rated_E,
            torch.where(varies_E, target_variance_E, 1.0),  # never divides by 0, even where the result is not used
            prediction_mean_E - target_mean_E,
        )
        return torch.where(varies_E, 1 - ccc_E, 0.0).sum() / varies_E.sum().clamp(min=1)
