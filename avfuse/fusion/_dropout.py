"""Dropout whose random numbers do not cost more than all that is computed with them.

On a CPU `bernoulli_` draws one number after the other, on one core. Here every core draws, eight bytes to a 64-bit word
of a fast generator that torch's own seeds, and the bytes become masks of bits, all 1 or all 0, that are laid over the
floats. A byte keeps a value if it is below 256 times the probability, which is rounded up or down at random, column by
column: so the probability is exact. On a GPU torch's own dropout costs nothing, and is used.
"""

import functools
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from avfuse.schema import UsageError

LEAST = 1 / 256
_NUM_COLUMNS = 1024
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers as wide as a float, by its bytes


def draw_masks(sizes: Sequence[int], dropout: float) -> list[Tensor]:
    """Draw flat masks of so many values on the CPU, 8 bits to a value: all 1 where it is kept, all 0 elsewhere.

    `dropout`, the probability of the latter, is from `LEAST` to below 1; else UsageError.
    """
    _check(dropout)
    level = 256 * (1 - dropout)
    is_raised = torch.rand(_NUM_COLUMNS) < level - math.floor(level)
    threshold = (math.floor(level) - 128 + is_raised.int()).to(torch.int8)
    seeds = torch.randint(2**62, (len(sizes),)).tolist()
    draw = functools.partial(_draw, threshold.numpy())
    num_rows = [-(-size // _NUM_COLUMNS) for size in sizes]
    masks: Iterable[np.ndarray]
    try:
        masks = _drawing_threads().map(draw, num_rows, seeds)
    except RuntimeError:  # the main thread has ended: no other begins
        masks = map(draw, num_rows, seeds)
    return [torch.from_numpy(mask).flatten()[:size] for mask, size in zip(masks, sizes, strict=True)]


def _check(dropout: float) -> None:
    if not LEAST <= dropout < 1:
        raise UsageError(f"dropout is {dropout}; allowed are 0 and numbers from {LEAST} to below 1")


def _draw(threshold: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return masks, (num_rows, _NUM_COLUMNS); by NumPy, as a thread that enters OpenMP would slow all others down."""
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(-(2**63), 2**63 - 1, (num_rows, _NUM_COLUMNS // 8), np.int64, endpoint=True)
    mask = words.view(np.int8)
    np.less(mask, threshold, out=mask.view(np.bool_))
    return np.negative(mask, out=mask)


@functools.cache
def _drawing_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dropout")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_drawing_threads.cache_clear)


def drop_(values: Tensor, mask: Tensor) -> Tensor:
    """Set values to zero, in place, where their mask has no bits; what is kept is not scaled."""
    bits = _BITS[values.element_size()]
    values.view(bits).bitwise_and_(mask.view(values.shape).to(bits))
    return values


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, dropout: float) -> Tensor:  # type: ignore[no-untyped-def]
        (mask,) = draw_masks([values.numel()], dropout)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - dropout)
        return drop_(values * ctx.scale, mask)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return drop_(grad * ctx.scale, mask), None


class Dropout(nn.Module):
    """Dropout as torch has it, drawn as this page draws it; UsageError if the probability cannot be drawn."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if p:
            _check(p)
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, some of them 0 and the others scaled, in training; in evaluation as they are."""
        if not self.training or not self.p:
            return values
        if values.device.type != "cpu":
            return F.dropout(values, self.p)
        dropped: Tensor = _Dropped.apply(values, self.p)  # type: ignore[no-untyped-call]
        return dropped
