"""Blocks that the fusion heads share.

Rows are clips; beside the legend of `avfuse.schema`, N counts the clips of all windows (B * T), P the cells of a map
(H * W), J = A + C is the size of the joint features. Everything here keeps the promise of the contract that padding
changes nothing: a padded clip enters every block as zeros and leaves it as zeros.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avfuse.fusion._dropout import Dropout
from avfuse.schema import UsageError

DROPOUT = 0.5
"""Dropout of the regressor in every head, so that a comparison of heads compares fusion."""
REGRESSOR_SIZE = 128
MIN_STD_SHARE = 0.01
WINDOWS_AT_ONCE = 4  # of 32-bit numbers, on a CPU


class Padding(NamedTuple):
    """Where a batch is padded; on the host, how many clips each window holds, at least 1, and where clips are."""

    padded_BT: Tensor
    num_clips_B: Tensor
    clips_BT: Tensor


def find_padding(mask_BT: Tensor | None, device: torch.device) -> Padding | None:
    """Return where a batch on a device is padded, or None if it is not; a head waits for nothing but a mask there.

    Raises
    ------
    ValueError
        If a clip follows padding.
    """
    if mask_BT is None:
        return None
    host_BT = mask_BT.cpu()
    if host_BT.all():
        return None
    if (host_BT[:, 1:] & ~host_BT[:, :-1]).any():
        raise ValueError("the mask holds a clip after padding; padding must stand at the end of a window")
    return Padding((~mask_BT).to(device, non_blocking=True), host_BT.sum(dim=1).clamp(min=1), host_BT)


def zero_padding(values: Tensor, padding: Padding | None) -> Tensor:
    """Return `values`, (B, T, ...), with zeros at padding, whatever stood there."""
    if padding is None:
        return values
    return values.masked_fill(padding.padded_BT.reshape(values.shape[:2] + (1,) * (values.ndim - 2)), 0.0)


def compute_dtype(values: Tensor) -> torch.dtype:
    """Return the type that matrices are multiplied in: autocast's where it is on, else that of `values`."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def in_parts(
    *tensors: Tensor, dtype: torch.dtype = torch.float32, at_once: int = WINDOWS_AT_ONCE
) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over a batch a few windows at a time on a CPU, whose caches they fit; all at once elsewhere.

    `dtype` is the type that they are computed in: `at_once` windows of 32-bit numbers fit, and of shorter ones more.
    """
    size = max(1, at_once * 4 // dtype.itemsize) if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def linear(input_size: int, output_size: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with Xavier's uniform weights and zero bias."""
    layer = nn.Linear(input_size, output_size, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def fixed_by_release(**values: tuple[float, float]) -> None:
    """Refuse to change what the published code fixes: each value is (given, default)."""
    for name, (given, default) in values.items():
        if given != default:
            raise UsageError(
                f"{name}={given} goes with form=paper only: the released form has the release's own {name}"
            )


def joint_output_size(joint_size: int) -> int:
    """Return the output size of the BLSTM on the concatenated features: half of theirs, and even."""
    return joint_size // 4 * 2


class Inputs(nn.Module):
    """Checks and standardises what comes from the cache: per audio feature, and per channel and cell of the map.

    A feature that hardly varies in training must not blow up on other recordings: standard deviations below 0.01 of
    their mean over the modality are raised to it; where all are 0, to 1.
    """

    audio_mean: Tensor
    audio_std: Tensor
    video_mean: Tensor
    video_std: Tensor

    def __init__(self, audio_size: int, video_size: int, map_size: int) -> None:
        super().__init__()
        for modality, shape in (("audio", (audio_size,)), ("video", (video_size, map_size, map_size))):
            self.register_buffer(f"{modality}_mean", torch.zeros(shape))
            self.register_buffer(f"{modality}_std", torch.ones(shape))

    def set_constants(self, audio_mean: Tensor, audio_std: Tensor, video_mean: Tensor, video_std: Tensor) -> None:
        """Set means and standard deviations; ValueError if one has the wrong shape, is not finite or is negative."""
        given = {"audio_mean": audio_mean, "audio_std": audio_std, "video_mean": video_mean, "video_std": video_std}
        for name, values in given.items():
            shape = self.get_buffer(name).shape
            if values.shape != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; this head needs {tuple(shape)}")
            if not values.isfinite().all() or (name.endswith("std") and values.min() < 0):
                raise ValueError(f"{name} holds values that are not finite, or standard deviations below 0")
        for name, values in given.items():
            if name.endswith("std"):
                floor = MIN_STD_SHARE * values.mean()
                values = values.clamp(min=floor) if floor > 0 else torch.ones_like(values)
            self.get_buffer(name).copy_(values)

    def check(self, audio_BTA: Tensor, video_BTCHW: Tensor) -> None:
        """Refuse features that the head was not built for (UsageError)."""
        if audio_BTA.shape[2:] != self.audio_mean.shape or video_BTCHW.shape[2:] != self.video_mean.shape:
            raise UsageError(
                f"features of shape {tuple(audio_BTA.shape[2:])} (audio) and {tuple(video_BTCHW.shape[2:])} (video); "
                f"this head takes {tuple(self.audio_mean.shape)} and {tuple(self.video_mean.shape)}"
            )

    def audio(self, audio_BTA: Tensor, padding: Padding | None) -> Tensor:
        """Return the standardised audio features (B, T, A), zero at padding."""
        return zero_padding((audio_BTA.to(self.audio_mean.dtype) - self.audio_mean) / self.audio_std, padding)

    def video_cells(self, video_BTCHW: Tensor) -> Tensor:
        """Return the standardised map as one row per cell, (B * T, H * W, C)."""
        cells_NPC = video_BTCHW.flatten(0, 1).flatten(2).mT.contiguous()  # moves 16-bit numbers, before the cast
        cells_NPC = cells_NPC.to(self.video_mean.dtype) - self.video_mean.flatten(1).mT
        return cells_NPC.mul_(1 / self.video_std.flatten(1).mT)

    def mean_video(self, video_BTCHW: Tensor, padding: Padding | None) -> Tensor:
        """Return the mean of the standardised map over its cells, (B, T, C), zero at padding."""
        parts = in_parts(zero_padding(video_BTCHW, padding))
        video_NC = torch.cat([self.video_cells(part).mean(dim=1) for (part,) in parts])
        return zero_padding(video_NC.reshape(video_BTCHW.shape[:3]), padding)


class AbsentFace(nn.Module):
    """Replaces the video features of a clip without a face by a learned vector, in proportion to the frames without.

    An addition of this package: none of the sources says what stands for a face that was not found. Where the face is
    seen in every frame it changes nothing.
    """

    def __init__(self, video_size: int) -> None:
        super().__init__()
        self.absent_C = nn.Parameter(torch.zeros(video_size))

    def forward(self, video_BTC: Tensor, face_BT: Tensor | None, padding: Padding | None) -> Tensor:
        """Return ``face * video + (1 - face) * learned``, (B, T, C), zero at padding."""
        if face_BT is not None:
            face_BT1 = face_BT.to(video_BTC.dtype).unsqueeze(-1)
            video_BTC = face_BT1 * video_BTC + (1 - face_BT1) * self.absent_C
        return zero_padding(video_BTC, padding)


class MeanVideo(nn.Module):
    """The video features of a clip: the mean of its map over the cells, and what stands for absent faces.

    The released forms take the mean alone.
    """

    def __init__(self, video_size: int, *, is_released: bool) -> None:
        super().__init__()
        self.absent_face = None if is_released else AbsentFace(video_size)

    def forward(self, video_BTCHW: Tensor, face_BT: Tensor | None, padding: Padding | None, inputs: Inputs) -> Tensor:
        """Return (B, T, C), zero at padding, from maps as cached."""
        video_BTC = inputs.mean_video(video_BTCHW, padding)
        return video_BTC if self.absent_face is None else self.absent_face(video_BTC, face_BT, padding)


def over_clips(lstm: Callable[[Any], tuple[Any, Any]], values_BTD: Tensor, padding: Padding | None) -> Tensor:
    """Run an LSTM over the clips of each window, (B, T, D), and not over its padding, which becomes zero."""
    output_BTD: Tensor
    if padding is None:
        output_BTD = lstm(values_BTD)[0]
        return output_BTD
    is_sorted = bool((padding.num_clips_B.diff() <= 0).all())  # sorting would wait for the device
    packed = pack_padded_sequence(values_BTD, padding.num_clips_B, batch_first=True, enforce_sorted=is_sorted)
    output_BTD, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=values_BTD.shape[1])
    return zero_padding(output_BTD, padding)


def check_blstm_size(output_size: int) -> None:
    """Refuse a size that two directions cannot halve; a modality that a cache does not have is a feature of size 1."""
    if output_size < 2 or output_size % 2:
        hint = "; does the cache hold one modality alone? The heads audio_only and visual_only take just that one"
        raise UsageError(
            f"a bidirectional LSTM of size {output_size}; the size must be even and positive"
            + (hint if output_size == 1 else "")
        )


class BLSTM(nn.Module):
    """Bidirectional LSTM of two layers; each direction holds half of the output.

    It runs in the precision of its weights, under autocast too: its state is summed over the window.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        check_blstm_size(output_size)
        self.lstm = nn.LSTM(input_size, output_size // 2, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, values_BTD: Tensor, padding: Padding | None) -> Tensor:
        """Return (B, T, output_size), zero at padding; the backward direction starts at a window's last clip."""
        with torch.autocast(values_BTD.device.type, enabled=False):
            values_BTD = values_BTD.to(next(self.lstm.parameters()).dtype)
            return over_clips(self.lstm, values_BTD, padding)


class PerTarget(nn.Module):
    """One network of its own per target, side by side: what the sources do that train a model per target."""

    def __init__(self, make: Callable[[], nn.Module], num_targets: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(make() for _ in range(num_targets))

    def forward(self, *inputs: Any) -> Tensor:
        """Return the trace (B, T, E) from networks that give (B, T, 1)."""
        return torch.cat([network(*inputs) for network in self.networks], dim=-1)


class Regressor(nn.Module):
    """From the fused features to the trace: per target Linear, ReLU, Dropout, Linear, without squashing.

    It runs in the precision of its weights, under autocast too: bfloat16 would round the trace to two digits.
    """

    def __init__(self, input_size: int, num_targets: int, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(linear(input_size, REGRESSOR_SIZE), nn.ReLU(), Dropout(dropout), linear(REGRESSOR_SIZE, 1))
            for _ in range(num_targets)
        )

    def forward(self, fused_BTD: Tensor) -> Tensor:
        """Return the trace (B, T, E)."""
        with torch.autocast(fused_BTD.device.type, enabled=False):
            return torch.cat([branch(fused_BTD) for branch in self.branches], dim=-1)


class LinearRegressor(nn.Module):
    """One linear layer for all targets, in the precision of its weights, under autocast too."""

    def __init__(self, input_size: int, num_targets: int) -> None:
        super().__init__()
        self.layer = linear(input_size, num_targets)

    def forward(self, fused_BTD: Tensor) -> Tensor:
        """Return the trace (B, T, E)."""
        with torch.autocast(fused_BTD.device.type, enabled=False):
            trace_BTE: Tensor = self.layer(fused_BTD.to(self.layer.weight.dtype))
            return trace_BTE
