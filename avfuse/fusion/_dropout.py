"""Dropout whose random numbers do not cost more than all that is computed with them.

On a CPU `bernoulli_` draws one number after the other. Here four 16-bit numbers come out of one 64-bit word of a fast
generator, seeded by torch's own, and become masks of bits, all 1 or all 0, that are laid over the floats. A probability
is rounded to 1 / 32768.
"""

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**15
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers as wide as a float, by its bytes


def num_kept_levels(dropout: float) -> int:
    """Return how many of 32768 numbers keep a value."""
    return round((1 - dropout) * _LEVELS)


def kept_scale(dropout: float) -> float:
    """Return the factor that keeps the mean of what is dropped in part."""
    return _LEVELS / num_kept_levels(dropout)


def draw_masks(num_values: int, dropout: float, like: Tensor) -> Tensor:
    """Draw one mask per value, flat, as wide as the numbers of `like`: all bits where it is kept, none elsewhere."""
    num_words = -(-num_values // 4)
    if like.device.type == "cpu":
        generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
        words = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, num_words, np.int64, endpoint=True))
    else:
        words = torch.empty(num_words, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    level = words.view(torch.int16)[:num_values]
    mask = level.bitwise_and_(_LEVELS - 1).sub_(num_kept_levels(dropout)).bitwise_right_shift_(15)
    return mask.to(_BITS[like.element_size()])


def drop_(values: Tensor, mask: Tensor) -> Tensor:
    """Set contiguous values to zero, in place, where their masks have no bits; what is kept is not scaled."""
    values.view(mask.dtype).bitwise_and_(mask.view(values.shape))
    return values


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, dropout: float) -> Tensor:  # type: ignore[no-untyped-def]
        mask = draw_masks(values.numel(), dropout, values)
        ctx.save_for_backward(mask)
        ctx.scale = kept_scale(dropout)
        return drop_(values * ctx.scale, mask)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return drop_(grad * ctx.scale, mask), None


class Dropout(nn.Module):
    """Dropout as torch has it, drawn as this page draws it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, some of them 0 and the others scaled, in training; in evaluation as they are."""
        if not self.training or not self.p:
            return values
        dropped: Tensor = _Dropped.apply(values.contiguous(), self.p)  # type: ignore[no-untyped-call]
        return dropped
