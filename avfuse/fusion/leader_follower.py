"""Leader-follower attention: the video leads, what the attention adds to it follows."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import LinearRegressor, MeanVideo, Padding, PerTarget, linear

VIDEO_CHANNELS, AUDIO_CHANNELS = 128, 32
ATTENTION_SIZE = 32
KERNEL, NUM_LEVELS, DROPOUT = 5, 4, 0.1


class LeaderFollower(FusionHead):
    """Temporal convolutions on each modality, attention between the modalities of a clip, the leader kept beside it.

    Source: S. Zhang, Y. Ding, Z. Wei and C. Guan, "Continuous Emotion Recognition with Audio-visual Leader-follower
    Attentive Fusion" (ICCV Workshops 2021, arXiv 2107.01175). Per modality a causal temporal convolutional network
    (kernel 5, dilations 1, 2, 4, 8; 128 channels for the video, which leads, 32 for the audio, which follows). Per
    clip, each modality gives a query, a key and a value of 32: S = softmax(K Q^T / sqrt(32)), F = S V, then the norm
    over both modalities of F + V; the trace is a linear map of the leader beside that. No squashing.

    Where it departs from the source:

    - one audio feature per clip follows; the source has two per frame (VGGish and MFCC);
    - its networks see windows of T clips, not of 300 frames; one network serves all targets (per target in the source);
    - the encoders stay frozen; the source releases them in groups;
    - inputs are standardised; the video is the mean of its map; the absent face's learned vector is an addition.

    ``form="released"`` computes what the code published with the paper does: the follower's token is overwritten by its
    key before query and value are taken from it; and it has one network per target. It standardises the audio as the
    published code does, but with the training partition's constants for every partition.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    form : str
        ``paper`` or ``released``.
    """

    standardises_released_audio: ClassVar[bool] = True

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        form: str = "paper",
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        self.mean_video = MeanVideo(video_size, is_released=self.is_released)
        self.network: _Network | PerTarget
        if self.is_released:
            self.network = PerTarget(lambda: _Network(audio_size, video_size, 1, overwrites=True), len(self.targets))
        else:
            self.network = _Network(audio_size, video_size, len(self.targets), overwrites=False)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        # Padding stands at the end, and the convolutions look back only: nothing else has to know of it.
        audio_BTA = self.inputs.audio(audio, padding)
        video_BTC = self.mean_video(video, face, padding, self.inputs)
        trace_BTE: Tensor = self.network(audio_BTA, video_BTC)
        return trace_BTE


class _Network(nn.Module):
    """Both temporal networks, the attention and the regressor; `overwrites` is the release's slip."""

    def __init__(self, audio_size: int, video_size: int, num_targets: int, *, overwrites: bool) -> None:
        super().__init__()
        self.overwrites = overwrites
        self.video_tcn = _temporal_network(video_size, VIDEO_CHANNELS)
        self.audio_tcn = _temporal_network(audio_size, AUDIO_CHANNELS)
        self.video_token, self.audio_token = _Token(VIDEO_CHANNELS), _Token(AUDIO_CHANNELS)
        self.norm = nn.LayerNorm([2, ATTENTION_SIZE])
        self.regressor = LinearRegressor(VIDEO_CHANNELS + 2 * ATTENTION_SIZE, num_targets)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor) -> Tensor:
        leader_BTD = self.video_tcn(video_BTC.mT).mT
        follower_BTD = self.audio_tcn(audio_BTA.mT).mT
        key_BT2D = torch.stack([self.video_token.key(leader_BTD), self.audio_token.key(follower_BTD)], dim=2)
        if self.overwrites:
            follower_BTD = key_BT2D[:, :, 1]
        query_BT2D = torch.stack([self.video_token.query(leader_BTD), self.audio_token.query(follower_BTD)], dim=2)
        value_BT2D = torch.stack([self.video_token.value(leader_BTD), self.audio_token.value(follower_BTD)], dim=2)
        weight_BT22 = (key_BT2D @ query_BT2D.mT / math.sqrt(ATTENTION_SIZE)).softmax(dim=-1)
        attended_BT2D = self.norm(weight_BT22 @ value_BT2D + value_BT2D)
        trace_BTE: Tensor = self.regressor(torch.cat([leader_BTD, attended_BT2D.flatten(2)], dim=-1))
        return trace_BTE


class _Token(nn.Module):
    """Query, key and value of one modality."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (linear(size, ATTENTION_SIZE) for _ in range(3))


class _TemporalBlock(nn.Module):
    """Two dilated convolutions that look back only, and a residual path: (B, C, T) to (B, D, T)."""

    def __init__(self, input_size: int, output_size: int, dilation: int) -> None:
        super().__init__()
        self.look_back = (KERNEL - 1) * dilation
        self.convolutions = nn.ModuleList()
        for size in (input_size, output_size):
            convolution = nn.Conv1d(size, output_size, KERNEL, dilation=dilation)
            nn.init.xavier_uniform_(convolution.weight, gain=math.sqrt(2))
            self.convolutions.append(weight_norm(convolution))
        self.residual: nn.Module = nn.Identity()
        if input_size != output_size:
            self.residual = nn.Conv1d(input_size, output_size, 1)
            nn.init.xavier_uniform_(self.residual.weight, gain=math.sqrt(2))
        self.dropout = nn.Dropout1d(DROPOUT)

    def forward(self, values_BCT: Tensor) -> Tensor:
        output_BDT = values_BCT
        for convolution in self.convolutions:
            output_BDT = self.dropout(F.leaky_relu(convolution(F.pad(output_BDT, (self.look_back, 0)))))
        return F.leaky_relu(output_BDT + self.residual(values_BCT))


def _temporal_network(input_size: int, num_channels: int) -> nn.Sequential:
    sizes = (input_size, *[num_channels] * NUM_LEVELS)
    return nn.Sequential(*(_TemporalBlock(sizes[i], sizes[i + 1], 2**i) for i in range(NUM_LEVELS)))
