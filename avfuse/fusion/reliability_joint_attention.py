"""Recursive joint attention that knows, clip by clip, how far each modality can be trusted."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, Padding, Regressor, linear, zero_padding
from avfuse.fusion._correlation import attend_through_correlation
from avfuse.fusion._joint import OUTPUT_SCALE, AudioGuidedPooling
from avfuse.schema import UsageError

TRUST_AT_START = 0.95
"""A modality is trusted until training finds otherwise."""


class ReliabilityJointAttention(FusionHead):
    """Joint attention in which a clip counts as far as its sound and its face can be trusted, in windows of any length.

    Source: an addition of this package to the recursive joint attention of R. G. Praveen, E. Granger and P. Cardinal
    (ICASSP 2023, arXiv 2304.07958). Per clip and modality a trust r between 0 and 1: for the audio the sigmoid of a
    learned score of its features, for the video that of its own times the share of frames that show the face. It acts

    - at the input: r X + (1 - r) v, with v learned, takes the place of the features X (`AbsentFace`, for both
      modalities), and the audio guides the pooling of the map only as far as it is trusted;
    - in the U-BLSTMs and the regressor, which see r beside the features;
    - in the correlation, where untrusted clips do not count: C = tanh(s X^T R W_j R' J / sqrt(d)), with R and R' the
      trust of the modality and, column by column, of the joint features, and s = num_clips / sum(r), so that few
      trusted clips weigh as much as many.

    Beside that it differs from the paper's head in what lets it learn from few recordings: the pooling starts as the
    mean of the map, every recursion close to the identity; there is no J-BLSTM, and the regressor sees both modalities.
    W_j holds a weight per distance between clips instead of one per pair of places, so a window may be of any length;
    clips `num_clips` apart or more are not related. It has no released form.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The window that it is trained with, and one more than the largest distance between related clips.
    form : str
        ``paper``; there is no other.
    recursions : int
        How often the attention is applied; below 0 is a UsageError, at 0 there is none.
    trust : bool
        Whether r is as above; False sets the audio's to 1 and the video's to the share of frames with a face.
    dropout : float
        Of the regressor.
    """

    takes_any_length: ClassVar[bool] = True

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        form: str = "paper",
        recursions: int = 1,
        trust: bool = True,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        if self.is_released:
            raise UsageError("reliability_joint_attention was never published elsewhere; form=paper is all there is")
        if recursions < 0:
            raise UsageError(f"recursions is {recursions}; allowed are whole numbers from 0")
        self.pooling = AudioGuidedPooling(audio_size, video_size, map_size**2, starts_as_mean=True)
        self.audio_trust = _Trust(audio_size, is_learned=trust, may_be_absent=trust)
        self.video_trust = _Trust(video_size, is_learned=trust, may_be_absent=True)
        self.audio_blstm, self.video_blstm = BLSTM(audio_size + 1, audio_size), BLSTM(video_size + 1, video_size)
        joint_size = audio_size + video_size
        self.audio_attention, self.video_attention = (
            nn.ModuleList(_TrustedAttention(size, joint_size, num_clips) for _ in range(recursions))
            for size in (audio_size, video_size)
        )
        self.regressor = Regressor(joint_size + 2, len(self.targets), dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        audio_trust_BT1 = zero_padding(self.audio_trust(audio_BTA), padding)
        guide_BTA = audio_trust_BT1 * audio_BTA
        video_BTC = self.pooling(zero_padding(video, padding), guide_BTA, self.inputs.video_cells)
        video_BTC = zero_padding(video_BTC.to(guide_BTA.dtype), padding)
        video_trust_BT1 = self.video_trust(video_BTC)
        if face is not None:
            video_trust_BT1 = video_trust_BT1 * face.to(video_trust_BT1.dtype)[..., None]
        video_trust_BT1 = zero_padding(video_trust_BT1, padding)
        audio_BTA = self.audio_blstm(self.audio_trust.see(audio_BTA, audio_trust_BT1, padding), padding)
        video_BTC = self.video_blstm(self.video_trust.see(video_BTC, video_trust_BT1, padding), padding)
        for attend_audio, attend_video in zip(self.audio_attention, self.video_attention, strict=True):
            joint_BTJ = torch.cat([audio_trust_BT1 * audio_BTA, video_trust_BT1 * video_BTC], dim=-1)
            audio_BTA = attend_audio(audio_BTA, audio_trust_BT1, joint_BTJ)
            video_BTC = attend_video(video_BTC, video_trust_BT1, joint_BTJ)
        trace_BTE: Tensor = self.regressor(torch.cat([audio_BTA, video_BTC, audio_trust_BT1, video_trust_BT1], dim=-1))
        return trace_BTE


class _Trust(nn.Module):
    """How far one modality can be trusted, and what stands in its place where it cannot."""

    def __init__(self, size: int, *, is_learned: bool, may_be_absent: bool) -> None:
        super().__init__()
        self.score = linear(size, 1) if is_learned else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
            nn.init.constant_(self.score.bias, math.log(TRUST_AT_START / (1 - TRUST_AT_START)))
        self.absent_D = nn.Parameter(torch.zeros(size)) if may_be_absent else None

    def forward(self, values_BTD: Tensor) -> Tensor:
        """Return the trust (B, T, 1)."""
        if self.score is None:
            return values_BTD.new_ones(*values_BTD.shape[:2], 1)
        with torch.autocast(values_BTD.device.type, enabled=False):
            trust_BT1: Tensor = self.score(values_BTD).sigmoid()
            return trust_BT1

    def see(self, values_BTD: Tensor, trust_BT1: Tensor, padding: Padding | None) -> Tensor:
        """Return the features as far as they are trusted, and the trust beside them, (B, T, D + 1)."""
        if self.absent_D is not None:
            values_BTD = trust_BT1 * values_BTD + (1 - trust_BT1) * self.absent_D
        return zero_padding(torch.cat([values_BTD, trust_BT1], dim=-1), padding)


class _TrustedAttention(nn.Module):
    """One recursion for one modality; the joint features come in weighted by their trust."""

    def __init__(self, size: int, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.num_clips = num_clips
        self.distance_weight = nn.Parameter(torch.randn(2 * num_clips - 1) / math.sqrt(num_clips))  # W_j
        self.feature_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(size, size)))  # W_c
        self.output_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(joint_size, size)))  # W_h / OUTPUT_SCALE

    def forward(self, values_BTD: Tensor, trust_BT1: Tensor, joint_BTJ: Tensor) -> Tensor:
        """Return the attended features (B, T, D)."""
        scale_B11 = self.num_clips / trust_BT1.sum(dim=1, keepdim=True).clamp(min=1) / joint_BTJ.shape[-1] ** 0.5
        mixed_BTJ = self._clip_weight(joint_BTJ.shape[1]) @ joint_BTJ * scale_B11
        attended_BTJ = attend_through_correlation(
            values_BTD @ self.feature_weight, (trust_BT1 * values_BTD).mT, mixed_BTJ
        )
        return values_BTD + OUTPUT_SCALE * (attended_BTJ.relu() @ self.output_weight)

    def _clip_weight(self, num_clips: int) -> Tensor:
        """Return W_j, (T, T): the weight of the distance between two clips, 0 beyond the largest."""
        place_T = torch.arange(num_clips, device=self.distance_weight.device)
        distance_TT = place_T[:, None] - place_T + self.num_clips - 1
        is_far_TT = (distance_TT < 0) | (distance_TT >= len(self.distance_weight))
        return self.distance_weight[distance_TT.clamp(0, len(self.distance_weight) - 1)].masked_fill(is_far_TT, 0)
