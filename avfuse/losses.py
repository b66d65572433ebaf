"""The training losses: 1 - CCC over the rated clips of a batch, as it is scored and as the released code has it."""

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
        prediction_BTE, target_BTE, rated_BTE = _prepare(trace_BTE, target_BTE, mask_BT)
        origin_E = target_BTE.masked_fill(~rated_BTE, torch.inf).amin((0, 1))
        num_rated_E = rated_BTE.sum((0, 1)).clamp(min=1)
        prediction_mean_E, prediction_BTE = _centre(prediction_BTE - origin_E, rated_BTE)
        target_mean_E, target_BTE = _centre(target_BTE - origin_E, rated_BTE)
        target_variance_E = target_BTE.square().sum((0, 1)) / num_rated_E
        varies_E = target_variance_E > 0
        ccc_E = concordance(
            (prediction_BTE * target_BTE).sum((0, 1)) / num_rated_E,
            prediction_BTE.square().sum((0, 1)) / num_rated_E,
            torch.where(varies_E, target_variance_E, 1.0),  # never divides by 0, even where the result is not used
            prediction_mean_E - target_mean_E,
        )
        return torch.where(varies_E, 1 - ccc_E, 0.0).sum() / varies_E.sum().clamp(min=1)


def released_loss(trace_BTE: Tensor, target_BTE: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the sum over the targets of 1 - CCC, as the code released with arXiv 2304.07958 computes it.

    Source: ``loss.py`` of that code. It differs from `ccc_loss` in that the targets are summed; variances are the
    sample's (divided by n - 1), beside a difference of means that is not scaled to match; and nothing guards what is
    not defined: constant predictions have a NaN gradient; fewer than two rated clips, or constant predictions that hit
    a constant target, have a NaN loss. The release sees full windows of labelled clips alone; where there are others,
    unrated and padded clips are left out as in `ccc_loss`. Parameters and result are as there.
    """
    with torch.autocast(trace_BTE.device.type, enabled=False):
        prediction_BTE, target_BTE, rated_BTE = _prepare(trace_BTE, target_BTE, mask_BT)
        prediction_mean_E, prediction_BTE = _centre(prediction_BTE, rated_BTE)
        target_mean_E, target_BTE = _centre(target_BTE, rated_BTE)
        prediction_norm_E = prediction_BTE.square().sum((0, 1)).sqrt()
        target_norm_E = target_BTE.square().sum((0, 1)).sqrt()
        norms_E = prediction_norm_E * target_norm_E
        correlation_E = (prediction_BTE * target_BTE).sum((0, 1)) / (norms_E + 1e-8)
        num_free_E = rated_BTE.sum((0, 1)) - 1
        ccc_E = concordance(
            correlation_E * norms_E / num_free_E,
            prediction_norm_E.square() / num_free_E,
            target_norm_E.square() / num_free_E,
            prediction_mean_E - target_mean_E,
        )
        return (1 - ccc_E).sum()


LOSSES = {"ccc": ccc_loss, "released": released_loss}


def _prepare(trace_BTE: Tensor, target_BTE: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return prediction and target in at least float32, and where both count: rated and not padded."""
    dtype = torch.promote_types(trace_BTE.dtype, torch.float32)
    rated_BTE = mask_BT.unsqueeze(-1) & ~target_BTE.isnan()
    return trace_BTE.to(dtype), target_BTE.to(dtype), rated_BTE


def _centre(values_BTE: Tensor, rated_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the rated values per target, and the deviations from it, 0 where unrated."""
    values_BTE = torch.where(rated_BTE, values_BTE, 0.0)
    mean_E = values_BTE.sum((0, 1)) / rated_BTE.sum((0, 1)).clamp(min=1)
    return mean_E, torch.where(rated_BTE, values_BTE - mean_E, 0.0)
