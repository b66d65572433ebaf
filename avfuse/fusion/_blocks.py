"""Blocks that the fusion heads share.

Rows are clips; beside the legend of `avfuse.schema`, N counts the clips of all windows (B * T), P the cells of a map
(H * W). Everything here keeps the promise of the contract that padding changes nothing: a padded clip enters
every block as zeros and leaves it as zeros.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avfuse.schema import UsageError

DROPOUT = 0.5
"""Dropout of the regressor in every head, so that a comparison of heads compares fusion."""
REGRESSOR_SIZE = 128
MIN_STD_SHARE = 0.01
WINDOWS_AT_ONCE = 4


class Padding(NamedTuple):
    """Where a batch is padded: True at padding, and how many clips each window holds (on the host, at least 1)."""

    padded_BT: Tensor
    num_clips_B: Tensor


def find_padding(mask_BT: Tensor | None) -> Padding | None:
    """Return where a batch is padded, or None if it is not; the only time that a head waits for the device.

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
    return Padding(~mask_BT, host_BT.sum(dim=1).clamp(min=1))


def zero_padding(values: Tensor, padding: Padding | None) -> Tensor:
    """Return `values`, (B, T, ...), with zeros at padding, whatever stood there."""
    if padding is None:
        return values
    return values.masked_fill(padding.padded_BT.reshape(values.shape[:2] + (1,) * (values.ndim - 2)), 0.0)


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over a batch a few windows at a time on a CPU, whose caches they fit; all at once elsewhere."""
    size = WINDOWS_AT_ONCE if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def linear(input_size: int, output_size: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with Xavier's uniform weights and zero bias."""
    layer = nn.Linear(input_size, output_size, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


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

    def __init__(self, audio_size: int, video_size: int, map_size: int, num_clips: int) -> None:
        super().__init__()
        self.num_clips = num_clips
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
        """Refuse windows that the head was not built for (ValueError)."""
        if audio_BTA.shape[1] > self.num_clips:
            raise UsageError(f"windows of {audio_BTA.shape[1]} clips; this head takes at most {self.num_clips}")
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


class AudioGuidedPooling(nn.Module):
    """Weighs the cells of a video map by the audio of the same clip.

    Per clip with audio g and cells X_r: u_r = ReLU(Lin X_r), q = ReLU(Lin g), z_r = w_h . tanh(W_1 u_r + W_2 q), the
    weights are the softmax of z over the cells, and the result is Lin(sum of weight_r X_r).
    """

    def __init__(self, audio_size: int, video_size: int, num_cells: int) -> None:
        super().__init__()
        self.cell_layer = linear(video_size, video_size)
        self.audio_layer = linear(audio_size, video_size)
        self.cell_score = linear(video_size, num_cells, bias=False)  # W_1
        self.audio_score = linear(video_size, num_cells, bias=False)  # W_2
        self.score = linear(num_cells, 1, bias=False)  # w_h
        self.output_layer = linear(video_size, video_size)

    def forward(self, cells_NPC: Tensor, audio_NA: Tensor) -> Tensor:
        """Return (N, C) from N clips with P cells each."""
        if torch.is_autocast_enabled(cells_NPC.device.type):  # the map is used twice: round it once
            cells_NPC = cells_NPC.to(torch.get_autocast_dtype(cells_NPC.device.type))
        content_NPD = self.cell_score(self.cell_layer(cells_NPC).relu_())  # D = P, as in the release
        query_N1D = self.audio_score(self.audio_layer(audio_NA).relu_()).unsqueeze(1)
        weight_NP1 = self.score((content_NPD + query_N1D).tanh_()).softmax(dim=1)
        pooled_NC: Tensor = self.output_layer((weight_NP1.mT.to(cells_NPC.dtype) @ cells_NPC).squeeze(1))
        return pooled_NC


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


class BLSTM(nn.Module):
    """Bidirectional LSTM of two layers; each direction holds half of the output.

    It runs in the precision of its weights, under autocast too: its state is summed over the window.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        if output_size < 2 or output_size % 2:
            raise UsageError(f"a bidirectional LSTM of size {output_size}; the size must be even and positive")
        self.lstm = nn.LSTM(input_size, output_size // 2, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, values_BTD: Tensor, padding: Padding | None) -> Tensor:
        """Return (B, T, output_size), zero at padding; the backward direction starts at a window's last clip."""
        with torch.autocast(values_BTD.device.type, enabled=False):
            values_BTD = values_BTD.to(next(self.lstm.parameters()).dtype)
            if padding is None:
                output_BTD: Tensor = self.lstm(values_BTD)[0]
                return output_BTD
            packed = pack_padded_sequence(values_BTD, padding.num_clips_B, batch_first=True, enforce_sorted=False)
            output_BTD, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=values_BTD.shape[1]
            )
            return zero_padding(output_BTD, padding)


class Regressor(nn.Module):
    """From the fused features to the trace: per target Linear, ReLU, Dropout, Linear, without squashing.

    It runs in the precision of its weights, under autocast too: bfloat16 would round the trace to two digits.
    """

    def __init__(self, input_size: int, num_targets: int, dropout: float) -> None:
        super().__init__()
        if num_targets < 1:
            raise UsageError("a head needs at least one target")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}; allowed are numbers from 0 to below 1")
        self.branches = nn.ModuleList(
            nn.Sequential(linear(input_size, REGRESSOR_SIZE), nn.ReLU(), nn.Dropout(dropout), linear(REGRESSOR_SIZE, 1))
            for _ in range(num_targets)
        )

    def forward(self, fused_BTD: Tensor) -> Tensor:
        """Return the trace (B, T, E)."""
        with torch.autocast(fused_BTD.device.type, enabled=False):
            return torch.cat([branch(fused_BTD) for branch in self.branches], dim=-1)
