"""The correlation of features: by far the largest thing a head computes, and what it costs to drop parts of it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfuse.fusion._blocks import compute_dtype, in_parts
from avfuse.fusion._dropout import draw_masks, drop_, kept_scale


def attend_through_correlation(query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float = 0.0) -> Tensor:
    """Return ``query @ dropout(tanh(key @ value))``, (B, T, J), in the precision of autocast where it is on.

    The correlation, (D, J) per window, is computed and kept a few windows at a time, so that every step finds it in the
    caches of a CPU. What is dropped is drawn as `avfuse.fusion._dropout` draws it.
    """
    dtype = compute_dtype(query_BTD)
    with torch.autocast(query_BTD.device.type, enabled=False):
        tensors = (query_BTD.to(dtype), key_BDT.to(dtype), value_BTJ.to(dtype))
        result_BTJ: Tensor = _Correlation.apply(*tensors, dropout)  # type: ignore[no-untyped-call]
        return result_BTJ


class _Correlation(torch.autograd.Function):
    """One pass over the windows forward and one back; autograd's own would hold three correlations, this holds one."""

    @staticmethod
    def forward(ctx: Any, query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float) -> Tensor:
        ctx.scale = kept_scale(dropout)
        results, correlations, masks = [], [], []
        for query, key, value in in_parts(query_BTD, key_BDT, value_BTJ, dtype=key_BDT.dtype):
            correlation = torch.bmm(key, value).tanh_()
            if dropout:
                masks.append(draw_masks(correlation.numel(), dropout, correlation))
                drop_(correlation, masks[-1])
            results.append(torch.bmm(query, correlation))
            if any(ctx.needs_input_grad):  # prediction holds none
                correlations.append(correlation)
        ctx.save_for_backward(query_BTD, key_BDT, value_BTJ, *correlations, *masks)
        ctx.num_parts = len(correlations)
        return torch.cat(results).mul_(ctx.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, grad_BTJ: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BTD, key_BDT, value_BTJ, *held = ctx.saved_tensors
        parts = in_parts(query_BTD, key_BDT, value_BTJ, grad_BTJ * ctx.scale, dtype=key_BDT.dtype)
        grads: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, (query, key, value, grad) in enumerate(parts):
            correlation = held[place]
            grad_correlation = torch.bmm(query.mT, grad)
            if len(held) > ctx.num_parts:
                drop_(grad_correlation, held[ctx.num_parts + place])
            grad_score = torch.ops.aten.tanh_backward(grad_correlation, correlation)
            grads.append(
                (torch.bmm(grad, correlation.mT), torch.bmm(grad_score, value.mT), torch.bmm(key.mT, grad_score))
            )
        query_grad, key_grad, value_grad = (torch.cat(parts) for parts in zip(*grads, strict=True))
        return query_grad, key_grad, value_grad, None
