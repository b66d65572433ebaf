"""A trained head on the features of a recording of any length, by overlapping windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avfuse.fusion import FusionHead
from avfuse.windows import tile


def predict_recording(
    head: FusionHead,
    audio: Tensor,
    video: Tensor,
    face: Tensor | None = None,
    *,
    overlap: int | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Predict consecutive clips of any number, by overlapping windows of `head.num_clips` clips.

    A clip that stands in several windows has the mean of their traces; no more clips than `head.num_clips` are one
    window. The head is used as it is: in evaluation mode, if `load_head` gave it, and on its own device.

    Parameters
    ----------
    head : FusionHead
    audio, video : Tensor, (N, A) and (N, C, H, W)
        Features as cached, at the spacing that the head was trained with.
    face : Tensor, (N,), optional
        Share of each clip's frames that show the face; None means 1.
    overlap : int, optional
        Clips that consecutive windows share; half a window unless given.
    batch_size : int
        Windows per forward pass.

    Returns
    -------
    Tensor, (N, E)
        The trace, in float32 on the CPU.

    Raises
    ------
    UsageError
        If windows cannot share `overlap` clips.
    ValueError
        If there is no clip, or not one number of them.
    """
    inputs = {"audio": audio, "video": video} | ({} if face is None else {"face": face})
    numbers = {len(values) for values in inputs.values()}
    if len(numbers) > 1 or 0 in numbers:
        counted = ", ".join(f"{len(values)} of {name}" for name, values in inputs.items())
        raise ValueError(f"got clips: {counted}; their number must be the same and at least 1")
    windows = tile(len(audio), head.num_clips, head.num_clips // 2 if overlap is None else overlap)
    device = next(head.parameters(), audio).device
    traces: list[tuple[slice, npt.NDArray[np.float32]]] = []
    with torch.inference_mode():
        for start in range(0, len(windows), batch_size):
            chosen = [slice(window.start, window.stop) for window in windows[start : start + batch_size]]
            batch = {name: _stack(values, chosen).to(device) for name, values in inputs.items()}
            mask_BT = _stack(torch.ones(len(audio), dtype=torch.bool), chosen).to(device)
            trace_BTE = head(**batch, mask=mask_BT).float().cpu().numpy()
            traces += zip(chosen, trace_BTE, strict=True)
    return torch.from_numpy(_average(len(audio), len(head.targets), traces))


def _stack(values: Tensor, windows: Sequence[slice]) -> Tensor:
    """Return windows of consecutive clips as one batch, padded at the end to the longest."""
    return pad_sequence([values[clips] for clips in windows], batch_first=True)


def _average(
    num_clips: int, num_targets: int, windows: Iterable[tuple[slice, npt.NDArray[np.float32]]]
) -> npt.NDArray[np.float32]:
    """Return the mean trace of each clip, (N, E), over the windows in which it stands; padding behind them is cut."""
    total_NE, count_N1 = np.zeros((num_clips, num_targets)), np.zeros((num_clips, 1))
    with np.errstate(invalid="ignore"):  # a head that diverged may give anything, infinities of both signs included
        for clips, trace_TE in windows:
            total_TE = total_NE[clips]
            total_TE += trace_TE[: len(total_TE)]
            count_N1[clips] += 1
        return (total_NE / count_N1).astype(np.float32)
