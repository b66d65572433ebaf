"""The correlation of features: by far the largest thing a head computes, and what it costs to drop parts of it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfuse.fusion._blocks import in_parts

_LEVELS = 2**16  # of the random numbers that decide what is dropped


def attend_through_correlation(query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float = 0.0) -> Tensor:
    """Return ``query @ dropout(tanh(key @ value))``, (B, T, J), in the precision of autocast where it is on.

    The correlation, (D, J) per window, is computed and kept a few windows at a time, so that every step finds it in the
    caches of a CPU. The probability of dropout is rounded to 1 / 65536.
    """
    device = query_BTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_BTD.dtype
    with torch.autocast(device, enabled=False):
        tensors = (query_BTD.to(dtype), key_BDT.to(dtype), value_BTJ.to(dtype))
        result_BTJ: Tensor = _Correlation.apply(*tensors, dropout)  # type: ignore[no-untyped-call]
        return result_BTJ


class _Correlation(torch.autograd.Function):
    """One pass over the windows forward and one back; autograd's own would hold three correlations, this holds one."""

    @staticmethod
    def forward(ctx: Any, query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float) -> Tensor:
        num_kept = round((1 - dropout) * _LEVELS)
        ctx.scale = _LEVELS / num_kept
        results, correlations, masks = [], [], []
        for query, key, value in in_parts(query_BTD, key_BDT, value_BTJ):
            correlation = torch.bmm(key, value).tanh_()
            if num_kept < _LEVELS:
                masks.append(_draw(correlation.shape, num_kept, correlation.device))
                correlation.mul_(masks[-1])
            correlations.append(correlation)
            results.append(torch.bmm(query, correlation))
        ctx.save_for_backward(query_BTD, key_BDT, value_BTJ, *correlations, *masks)
        ctx.num_parts = len(correlations)
        return torch.cat(results).mul_(ctx.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, grad_BTJ: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BTD, key_BDT, value_BTJ, *held = ctx.saved_tensors
        parts = in_parts(query_BTD, key_BDT, value_BTJ, grad_BTJ * ctx.scale)
        grads: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, (query, key, value, grad) in enumerate(parts):
            correlation = held[place]
            grad_correlation = torch.bmm(query.mT, grad)
            if len(held) > ctx.num_parts:
                grad_correlation.mul_(held[ctx.num_parts + place])
            grad_score = torch.ops.aten.tanh_backward(grad_correlation, correlation)
            grads.append(
                (torch.bmm(grad, correlation.mT), torch.bmm(grad_score, value.mT), torch.bmm(key.mT, grad_score))
            )
        query_grad, key_grad, value_grad = (torch.cat(parts) for parts in zip(*grads, strict=True))
        return query_grad, key_grad, value_grad, None


def _draw(shape: torch.Size, num_kept: int, device: torch.device) -> Tensor:
    """Draw what is kept, `num_kept` of 65536 on average: a fraction of the time that `bernoulli_` takes on a CPU."""
    if device.type != "cpu":
        return torch.rand(shape, device=device) < num_kept / _LEVELS
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[: shape.numel()] < num_kept - _LEVELS // 2).view(shape)
