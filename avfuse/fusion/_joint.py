"""Blocks of joint attention: pooling that audio guides, a recursion, and the gate between attended and unattended.

`_released` holds what the published code has in their place; shapes follow `_blocks`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from avfuse.fusion._blocks import AbsentFace, Inputs, Padding, compute_dtype, in_parts, linear, zero_padding
from avfuse.fusion._correlation import attend_through_correlation
from avfuse.fusion._released import interleaved_cells

OUTPUT_SCALE = 0.1
"""Scale of W_h over the weights that are learned: every recursion begins close to the identity, as it does in the
release (where the inputs' unit length makes it so), and leaves it by small steps. At full scale the second recursion of
standardised features saturates C, and nothing is learned without BLSTMs. Weights that only start small end there too,
now and then: Adam moves them as fast as large ones."""
GATE_TEMPERATURE = 0.1
START_GAIN = 0.01
"""Scale of weights that start close to 0, and not at 0, where what stands before them would have no gradient."""


class AudioGuidedPooling(nn.Module):
    """Weighs the cells of a video map by the audio of the same clip.

    Per clip with audio g and cells X_r: u_r = ReLU(Lin X_r), q = ReLU(Lin g), z_r = w_h . tanh(W_1 u_r + W_2 q), the
    weights are the softmax of z over the cells, and the result is Lin(sum of weight_r X_r). In the released form W_2 q
    has one entry per cell instead of one per score unit: z_r = w_h . tanh(W_1 u_r + (W_2 q)_r). At Xavier's weights it
    starts anywhere; with `starts_as_mean` (small w_h, the last Lin the identity) close to the mean over the cells.
    """

    def __init__(
        self,
        audio_size: int,
        video_size: int,
        num_cells: int,
        *,
        is_released: bool = False,
        starts_as_mean: bool = False,
    ) -> None:
        super().__init__()
        self.cell_layer = linear(video_size, video_size)
        self.audio_layer = linear(audio_size, video_size)
        self.cell_score = linear(video_size, num_cells, bias=False)  # W_1
        self.audio_score = linear(video_size, num_cells, bias=False)  # W_2
        self.score = linear(num_cells, 1, bias=False)  # w_h
        self.output_layer = linear(video_size, video_size)
        self._query_axis = -1 if is_released else 1
        if starts_as_mean:
            nn.init.xavier_uniform_(self.score.weight, gain=START_GAIN)
            nn.init.eye_(self.output_layer.weight)

    def forward(self, video_BTCHW: Tensor, audio_BTA: Tensor, to_cells: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (B, T, C) from maps, of which `to_cells` makes the cells (B * T, H * W, C) of a few windows."""
        query_BTD = self.audio_score(self.audio_layer(audio_BTA).relu_())  # D = P, as in the release
        parts = in_parts(video_BTCHW, query_BTD, dtype=compute_dtype(audio_BTA))
        pooled_NC = torch.cat([self._weigh(to_cells(video), query.flatten(0, 1)) for video, query in parts])
        pooled_BTC: Tensor = self.output_layer(pooled_NC).unflatten(0, audio_BTA.shape[:2])
        return pooled_BTC

    def _weigh(self, cells_NPC: Tensor, query_ND: Tensor) -> Tensor:
        """Return the mean of the cells, (N, C), weighed as the query says."""
        cells_NPC = cells_NPC.to(compute_dtype(cells_NPC))  # the map is used twice: round it once
        hidden_RC = self.cell_layer(cells_NPC.flatten(0, 1)).relu_()  # rows: of a view, `relu_` would be copied back
        content_NPD = self.cell_score(hidden_RC).unflatten(0, cells_NPC.shape[:2])
        weight_NP1 = self.score((content_NPD + query_ND.unsqueeze(self._query_axis)).tanh_()).softmax(dim=1)
        mean_N1C: Tensor = weight_NP1.mT.to(cells_NPC.dtype) @ cells_NPC
        return mean_N1C.squeeze(1)


class GuidedVideo(nn.Module):
    """The video features of a clip: its map, pooled as the audio guides, and what stands for absent faces."""

    def __init__(self, audio_size: int, video_size: int, num_cells: int, *, is_released: bool) -> None:
        super().__init__()
        self.pooling = AudioGuidedPooling(audio_size, video_size, num_cells, is_released=is_released)
        self.absent_face = None if is_released else AbsentFace(video_size)

    def forward(
        self, video_BTCHW: Tensor, audio_BTA: Tensor, face_BT: Tensor | None, padding: Padding | None, inputs: Inputs
    ) -> Tensor:
        """Return (B, T, C), zero at padding, from maps as cached and the audio features that guide."""
        video_BTCHW = zero_padding(video_BTCHW, padding)
        to_cells = inputs.video_cells if self.absent_face else partial(interleaved_cells, dtype=audio_BTA.dtype)
        pooled_BTC = self.pooling(video_BTCHW, audio_BTA, to_cells)
        return self.absent_face(pooled_BTC, face_BT, padding) if self.absent_face else zero_padding(pooled_BTC, padding)


class JointAttention(nn.Module):
    """One recursion for one modality X, (T, D), given the joint features J = [X_a, X_v], (T, d).

    C = tanh(X^T W_j J / sqrt(d)) relates each feature of the modality to each joint feature over the clips of the
    window; H = ReLU(X W_c C); the result is X + H W_h, where W_h is `OUTPUT_SCALE` times what is learned.
    """

    def __init__(self, size: int, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.clip_weight = nn.Parameter(torch.empty(num_clips, num_clips))  # W_j
        self.feature_weight = nn.Parameter(torch.empty(size, size))  # W_c
        self.output_weight = nn.Parameter(torch.empty(joint_size, size))  # W_h / OUTPUT_SCALE
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, values_BTD: Tensor, joint_BTJ: Tensor) -> Tensor:
        """Return the attended features (B, T, D); J = A + C is the size of the joint features."""
        num_clips, joint_size = joint_BTJ.shape[1:]
        # The correlation, (D, J) per window, dwarfs all else: scale its factor instead.
        mixed_BTJ = (self.clip_weight[:num_clips, :num_clips] / joint_size**0.5) @ joint_BTJ
        attended_BTJ = attend_through_correlation(values_BTD @ self.feature_weight, values_BTD.mT, mixed_BTJ).relu()
        return values_BTD + OUTPUT_SCALE * (attended_BTJ @ self.output_weight)


class JointRecursion(nn.Module):
    """One recursion for both modalities."""

    def __init__(self, audio_size: int, video_size: int, num_clips: int) -> None:
        super().__init__()
        joint_size = audio_size + video_size
        self.audio = JointAttention(audio_size, joint_size, num_clips)
        self.video = JointAttention(video_size, joint_size, num_clips)

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
        """Return the attended features (B, T, A) and (B, T, C), zero at padding where the given ones are."""
        joint_BTJ = torch.cat([audio_BTA, video_BTC], dim=-1)
        return self.audio(audio_BTA, joint_BTJ), self.video(video_BTC, joint_BTJ)


class DynamicGate(nn.Module):
    """Chooses, clip by clip, between a modality's features before the attention and after it.

    Source: R. G. Praveen and J. Alam, "Cross-Attention is Not Always Needed: Dynamic Cross-Attention for Audio-Visual
    Dimensional Emotion Recognition" (ICME 2024, arXiv 2403.19554): the softmax, at temperature 0.1, of a linear map of
    the attended features weighs the two, and a ReLU ends it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.choice = linear(size, 2)

    def forward(self, before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
        """Return (B, T, D), zero where both are."""
        weight_BT2 = (self.choice(after_BTD) / GATE_TEMPERATURE).softmax(dim=-1)
        gated_BTD: Tensor = (weight_BT2[..., :1] * before_BTD + weight_BT2[..., 1:] * after_BTD).relu()
        return gated_BTD


class Gates(nn.Module):
    """One `DynamicGate` per modality."""

    def __init__(self, audio_size: int, video_size: int) -> None:
        super().__init__()
        self.audio, self.video = DynamicGate(audio_size), DynamicGate(video_size)

    def forward(self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the gated audio and video, (B, T, A) and (B, T, C)."""
        return self.audio(before[0], after[0]), self.video(before[1], after[1])
