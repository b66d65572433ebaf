"""Means over rectangles of pictures: pictures shrunken by areas, and boxes resampled, many at a time.

They are read from sums over the picture from its corner (Crow, 1984), which are exact in integers, so that a rectangle
costs the same whatever its size. The rectangles are those of PyTorch's resampling by areas.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STRIDE = 2  # of the network that looks at shrunken pictures: it pools pixels in such squares


class AreaSums:
    """Sums over pictures from their upper left corners, from which means over rectangles are read.

    They are integers of 32 bits. Those over a large picture wrap around, and so do their differences: back to what is
    right, as no rectangle that is read has more than 8 million pixels.

    Parameters
    ----------
    part_NYXC : Tensor, (N, Y, X, 3), uint8
        Pictures of one size, or the same part of each.
    left_px, top_px : int
        Where the part begins in the picture.
    picture_px : (int, int), optional
        Height and width of the picture, unless it is given whole.
    """

    def __init__(
        self, part_NYXC: Tensor, left_px: int = 0, top_px: int = 0, picture_px: tuple[int, int] | None = None
    ) -> None:
        num, height_px, width_px, channels = part_NYXC.shape
        self._height_px, self._width_px = picture_px or (height_px, width_px)
        self._left, self._top, self._right, self._bottom = left_px, top_px, left_px + width_px, top_px + height_px
        self._sum_NYXC = part_NYXC.new_zeros((num, height_px + 1, width_px + 1, channels), dtype=torch.int32)
        rows_NYXC = part_NYXC.cumsum(dim=1, dtype=torch.int32)
        torch.cumsum(rows_NYXC, dim=2, dtype=torch.int32, out=self._sum_NYXC[:, 1:, 1:])

    def shrink(self, scale: float) -> tuple[Tensor, int, int]:
        """Return the part at a scale, (N, 3, Y, X), as a network takes it, and its first column and row there.

        It begins at an even column and row and ends likewise, unless the picture ends there, so that P-Net pools the
        pixels that it would pool together in the whole picture.
        """
        device = self._sum_NYXC.device
        first_y, *rows = _bins(self._height_px, scale, self._top, self._bottom)
        first_x, *columns = _bins(self._width_px, scale, self._left, self._right)
        top_Y, bottom_Y, left_X, right_X = (torch.from_numpy(at).to(device) for at in (*rows, *columns))
        sum_NYXC = self._sum_NYXC[:, bottom_Y] - self._sum_NYXC[:, top_Y]
        sum_NYXC = sum_NYXC[:, :, right_X] - sum_NYXC[:, :, left_X]
        area_YX = (bottom_Y - top_Y)[:, None] * (right_X - left_X)
        return _normalised(sum_NYXC, area_YX), first_x, first_y

    def read(self, image_K: Tensor, box_K4: Tensor, size_px: int) -> Tensor:
        """Return boxes resampled to squares, (K, 3, size_px, size_px), as a network takes them."""
        left_K, top_K, right_K, bottom_K = self._within(box_K4)
        step_P = torch.arange(size_px, device=box_K4.device)
        _, height, width, channels = self._sum_NYXC.shape

        def edges(low_K: Tensor, high_K: Tensor) -> Tensor:
            """Return where the bins of each box begin, and then where they end, (K, 2 * size_px)."""
            span_K1 = (high_K - low_K)[:, None]
            starts_KP, stops_KP = step_P * span_K1 // size_px, -(-(step_P + 1) * span_K1 // size_px)
            return low_K[:, None] + torch.cat([starts_KP, stops_KP], dim=1)

        y_KQ, x_KQ = edges(top_K - self._top, bottom_K - self._top), edges(left_K - self._left, right_K - self._left)
        at_KQQ = (image_K[:, None, None] * height + y_KQ[:, :, None]) * width + x_KQ[:, None]
        sum_KQQC = self._sum_NYXC.view(-1, channels)[at_KQQ]
        sum_KPQC = sum_KQQC[:, size_px:] - sum_KQQC[:, :size_px]
        sum_KPPC = sum_KPQC[:, :, size_px:] - sum_KPQC[:, :, :size_px]
        height_KP, width_KP = (at_KQ[:, size_px:] - at_KQ[:, :size_px] for at_KQ in (y_KQ, x_KQ))
        return _normalised(sum_KPPC, height_KP[:, :, None] * width_KP[:, None])

    def holds(self, box_K4: Tensor) -> Tensor:
        """Return which boxes have a pixel in common with the part, (K,), bool."""
        left_K, top_K, right_K, bottom_K = self._within(box_K4)
        return (right_K > left_K) & (bottom_K > top_K)

    def _within(self, box_K4: Tensor) -> tuple[Tensor, ...]:
        """Return the pixels of boxes that lie in the part: first columns and rows, last ones plus one, each (K,)."""
        left_K, top_K, right_K, bottom_K = box_K4.trunc().long().unbind(dim=1)  # counted from 1, as in MTCNN
        return (
            (left_K - 1).clamp(min=self._left),
            (top_K - 1).clamp(min=self._top),
            right_K.clamp(max=self._right),
            bottom_K.clamp(max=self._bottom),
        )


def _bins(
    size_px: int, scale: float, start_px: int, stop_px: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first pixel of a scaled side that lies in a part, and where it and all others there begin and end."""
    num = int(size_px * scale + 1)
    at = np.arange(num)
    starts, stops = at * size_px // num, -(-(at + 1) * size_px // num)
    inside = np.flatnonzero((starts >= start_px) & (stops <= stop_px))
    if len(inside) == 0:
        return 0, starts[:0], stops[:0]
    first, end = int(inside[0]), int(inside[-1]) + 1
    first += first % STRIDE
    if end < num:
        end -= (end - first) % STRIDE
    return first, starts[first:end] - start_px, stops[first:end] - start_px


def _normalised(sum_NYXC: Tensor, area_NYX: Tensor) -> Tensor:
    """Return means (N, C, Y, X) from -1 to 1, in the order in memory of (N, Y, X, C), which convolutions like."""
    return ((sum_NYXC / area_NYX[..., None].float() - 127.5) / 128).permute(0, 3, 1, 2)
