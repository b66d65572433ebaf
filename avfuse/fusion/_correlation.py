"""The correlation of features: by far the largest thing a head computes, and what it costs to drop parts of it."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfuse.fusion._blocks import compute_dtype, in_parts
from avfuse.fusion._dropout import draw_masks, drop_

WINDOWS_AT_ONCE = 2  # of 32-bit numbers


def attend_through_correlation(query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float = 0.0) -> Tensor:
    """Return ``query @ dropout(tanh(key @ value))``, (B, T, J), in the precision of autocast where it is on.

    On a CPU the correlation, (D, J) per window, is computed and kept a few windows at a time, so that every step finds
    it in the caches, and what is dropped is drawn as `avfuse.fusion._dropout` draws it. A GPU needs neither. `dropout`
    is 0 or from `avfuse.fusion._dropout.LEAST` to below 1.
    """
    dtype = compute_dtype(query_BTD)
    with torch.autocast(query_BTD.device.type, enabled=False):
        query_BTD, key_BDT, value_BTJ = query_BTD.to(dtype), key_BDT.to(dtype), value_BTJ.to(dtype)
        if query_BTD.device.type != "cpu":
            return query_BTD @ F.dropout((key_BDT @ value_BTJ).tanh(), dropout)
        result_BTJ: Tensor = _Correlation.apply(query_BTD, key_BDT, value_BTJ, dropout)  # type: ignore[no-untyped-call]
        return result_BTJ


class _Correlation(torch.autograd.Function):
    """One pass over the windows forward and one back; autograd's own would hold three correlations, this holds one."""

    @staticmethod
    def forward(ctx: Any, query_BTD: Tensor, key_BDT: Tensor, value_BTJ: Tensor, dropout: float) -> Tensor:
        result_BTJ = torch.empty_like(value_BTJ)
        parts = list(_in_parts(query_BTD, key_BDT, value_BTJ, result_BTJ))
        sizes = [len(key) * key.shape[1] * value.shape[2] for _, key, value, _ in parts]
        masks = draw_masks(sizes, dropout) if dropout else []
        correlations = []
        for place, (query, key, value, result) in enumerate(parts):
            correlation = _correlate(key, value)
            if dropout:
                drop_(correlation, masks[place])
            torch.bmm(query, correlation, out=result)
            if any(ctx.needs_input_grad):  # prediction holds none
                correlations.append(correlation)
        ctx.save_for_backward(query_BTD, key_BDT, value_BTJ, *correlations, *masks)
        ctx.num_parts, ctx.scale = len(correlations), 1 / (1 - dropout)
        return result_BTJ.mul_(ctx.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, grad_BTJ: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_BTD, key_BDT, value_BTJ, *held = ctx.saved_tensors
        grads = torch.empty_like(query_BTD), torch.empty_like(query_BTD), torch.empty_like(value_BTJ)
        parts = _in_parts(query_BTD, key_BDT, value_BTJ, grad_BTJ * ctx.scale, *grads)
        for place, (query, key, value, grad, query_grad, key_grad, value_grad) in enumerate(parts):
            correlation = held[place]
            grad_score = torch.bmm(query.mT, grad)
            if len(held) > ctx.num_parts:
                drop_(grad_score, held[ctx.num_parts + place])
            torch.ops.aten.tanh_backward.grad_input(grad_score, correlation, grad_input=grad_score)
            torch.bmm(grad, correlation.mT, out=query_grad)
            torch.bmm(value, grad_score.mT, out=key_grad)
            torch.bmm(key.mT, grad_score, out=value_grad)
        query_grad_BTD, key_grad_BTD, value_grad_BTJ = grads
        return query_grad_BTD, key_grad_BTD.mT, value_grad_BTJ, None


def _in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return in_parts(*tensors, dtype=tensors[0].dtype, at_once=WINDOWS_AT_ONCE)


def _correlate(key_BDT: Tensor, value_BTJ: Tensor) -> Tensor:
    """Return tanh(key @ value), (B, D, J).

    Of 16-bit numbers it is computed as 2 sigmoid(2 key @ value) - 1 in 32 bits, which PyTorch does six times faster.
    The error is that of 1 then, 1e-7, and not of the result: less than the rounding to 16 bits where a result is above
    6e-5, more below.
    """
    if key_BDT.element_size() > 2:
        return torch.bmm(key_BDT, value_BTJ).tanh_()
    doubled = torch.bmm(2 * key_BDT, value_BTJ).float()
    return doubled.sigmoid_().mul_(2).sub_(1).to(key_BDT.dtype)
