"""Passes over the windows of a partition: one that trains a head, and one that predicts with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfuse.augment import Moments, augment
from avfuse.dataset import WindowedPartition
from avfuse.fusion import FusionHead
from avfuse.losses import LOSSES
from avfuse.options import TrainOptions
from avfuse.schema import Batch

TELL_EVERY_S = 0.25  # from a GPU, which is waited for then


def call_head(head: FusionHead, batch: Batch, amp: str) -> Tensor:
    """Return the trace (B, T, E) of a batch, computed where the batch is; `amp` is ``off`` or ``bf16``."""
    with torch.autocast(batch.audio_BTA.device.type, torch.bfloat16, enabled=amp == "bf16"):
        trace_BTE: Tensor = head(batch.audio_BTA, batch.video_BTCHW, batch.mask_BT, batch.face_BT)
    return trace_BTE


def predict_clips(
    head: FusionHead,
    partition: WindowedPartition,
    amp: str,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> npt.NDArray[np.float32]:
    """Return the trace of every clip of a partition, (N, E), by the head in evaluation mode.

    ``on_progress(done, total)`` is called by windows; a GPU is not waited for.
    """
    head.eval()
    partition.set_missing_sound(head.inputs.audio_mean)
    num_done = 0

    def trace(batch: Batch) -> Tensor:
        nonlocal num_done
        trace_BTE = call_head(head, batch, amp)
        num_done += len(trace_BTE)
        on_progress(num_done, len(partition.windows))
        return trace_BTE

    return partition.trace(trace, batch_size)


def train_once(
    head: FusionHead,
    optimizer: torch.optim.Optimizer,
    partition: WindowedPartition,
    places: Sequence[int],
    moments: Moments,
    options: TrainOptions,
    on_step: Callable[[int, float], None],
) -> float:
    """Take a step for each batch of windows, in the order of their places; return the mean loss of the windows.

    The view of each window, and what is augmented, is drawn from torch's generator. The host runs ahead of a GPU: it
    waits for it only to call ``on_step(number of windows done, loss)`` now and then, and at the end.
    """
    num_views, device = partition.num_views, partition.device
    views = torch.randint(num_views, (len(places),)).tolist() if num_views > 1 else None
    amounts = {name: getattr(options, name) for name in ("noise", "drop_modality", "mask_span")}
    head.train()
    partition.set_missing_sound(head.inputs.audio_mean)
    num_done, total, told_s = 0, torch.zeros((), device=device, dtype=torch.float64), 0.0
    for chosen, batch in partition.batches(places, options.batch_size, views):
        if any(amounts.values()):
            batch = augment(batch, moments=moments, **amounts)
        trace_BTE = call_head(head, batch, options.amp)
        loss = LOSSES[options.loss](trace_BTE, batch.target_BTE, batch.mask_BT.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if options.gradient_clip:
            torch.nn.utils.clip_grad_norm_(head.parameters(), options.gradient_clip)
        optimizer.step()
        num_done += len(chosen)
        total += loss.detach().double() * len(chosen)
        if device.type == "cpu" or time.monotonic() - told_s > TELL_EVERY_S:
            on_step(num_done, float(loss.detach()))
            told_s = time.monotonic()
    return float(total) / len(places)
