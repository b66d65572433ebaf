"""Joint cross attention: each modality attends once to itself and the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import (
    DROPOUT,
    MeanVideo,
    Padding,
    PerTarget,
    Regressor,
    fixed_by_release,
    in_parts,
    joint_output_size,
    linear,
    zero_padding,
)
from avfuse.fusion._joint import Gates, GuidedVideo, JointRecursion
from avfuse.fusion._released import (
    JOINT_DROPOUT,
    REGRESSOR_DROPOUT,
    LearnedStateBLSTM,
    SharedQueryRecursion,
    unit_length,
)
from avfuse.schema import UsageError

VERSIONS = ("tbiom", "cvprw")
BOTTLENECK = 32  # k
RELEASED_SIZE = 128


class JointCrossAttention(FusionHead):
    """Joint cross attention, in its two published versions.

    Source: R. G. Praveen et al., "A Joint Cross-Attention Model for Audio-Visual Fusion in Dimensional Emotion
    Recognition" (CVPR Workshops 2022, arXiv 2203.14779), and R. G. Praveen, P. Cardinal and E. Granger, "Audio-Visual
    Fusion for Emotion Recognition in the Valence-Arousal Space Using Joint Cross-Attention" (IEEE T-BIOM 2023, arXiv
    2209.09068). ``version`` picks one; rows are clips, J = [X_a, X_v], d its size:

    - ``tbiom``: audio-guided pooling and one recursion of `RecursiveJointAttention` without any BLSTM;
    - ``cvprw``: C = tanh(X^T W_j J / sqrt(d)), H = ReLU(C W_c + X^T W) with k = 32 columns, X + (H W_h)^T; the video is
      the mean of its map.

    Where the papers are silent: a trace from one two-layer regressor per target on both attended features; inputs are
    standardised; the absent face's learned vector is an addition. A window of T clips uses the leading T entries of
    what W_j, W and W_h have per clip.

    ``form="released"`` computes what the published code does. ``tbiom``: the released recursive joint attention with
    one recursion and without U-BLSTMs, but with a J-BLSTM, which its paper does not have. ``cvprw``: both modalities
    mapped to 128 first; the regressor (128, dropout 0.6, 1, nothing between) sees the raw and the attended video only,
    so that audio enters through the video's correlation alone; a network of its own per target.

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
    version : str
        ``tbiom`` or ``cvprw``.
    gate : bool
        Whether a `DynamicGate` chooses between the features before the attention and after it; paper form only.
    dropout : float
        Of the regressor; paper form only.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        form: str = "paper",
        version: str = "tbiom",
        gate: bool = False,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        if version not in VERSIONS:
            raise UsageError(f"version '{version}' is none of {', '.join(VERSIONS)}")
        if self.is_released:
            fixed_by_release(gate=(gate, False), dropout=(dropout, DROPOUT))
        joint_size = output_size = audio_size + video_size
        self.guided_video: GuidedVideo | None = None
        self.mean_video: MeanVideo | None = None
        self.joint_blstm: LearnedStateBLSTM | None = None
        self.attend: nn.Module
        if version == "tbiom":
            self.guided_video = GuidedVideo(audio_size, video_size, map_size**2, is_released=self.is_released)
            recursion = SharedQueryRecursion if self.is_released else JointRecursion
            self.attend = recursion(audio_size, video_size, num_clips)
            if self.is_released:
                output_size = joint_output_size(joint_size)
                self.joint_blstm = LearnedStateBLSTM(joint_size, output_size, JOINT_DROPOUT)
        else:
            self.mean_video = MeanVideo(video_size, is_released=self.is_released)
            if self.is_released:
                self.attend = PerTarget(lambda: _ReleasedNetwork(audio_size, video_size, num_clips), len(self.targets))
                return
            self.attend = _BottleneckAttention(joint_size, num_clips)
        self.gates = Gates(audio_size, video_size) if gate else None
        self.regressor = Regressor(output_size, len(self.targets), REGRESSOR_DROPOUT if self.is_released else dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        if self.guided_video is not None:
            audio_BTA = unit_length(audio_BTA) if self.is_released else audio_BTA
            video_BTC = self.guided_video(video, audio_BTA, face, padding, self.inputs)
        else:
            assert self.mean_video is not None
            video_BTC = self.mean_video(video, face, padding, self.inputs)
        trace_BTE: Tensor
        if isinstance(self.attend, PerTarget):
            trace_BTE = self.attend(audio_BTA, video_BTC, padding)
            return trace_BTE
        after = self.attend(audio_BTA, video_BTC, padding)
        if self.gates is not None:
            after = self.gates((audio_BTA, video_BTC), after)
        fused_BTD = torch.cat(after[::-1] if self.is_released else after, dim=-1)
        if self.joint_blstm is not None:
            fused_BTD = self.joint_blstm(fused_BTD, padding)
        trace_BTE = self.regressor(fused_BTD)
        return trace_BTE


class _BottleneckAttention(nn.Module):
    """The attention of the first version: (B, T, A) and (B, T, C) to attended features of the same sizes."""

    def __init__(self, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.audio, self.video = (_Bottleneck(joint_size, num_clips) for _ in range(2))

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> tuple[Tensor, Tensor]:
        joint_BTJ = torch.cat([audio_BTA, video_BTC], dim=-1)
        attended = self.audio(audio_BTA, joint_BTJ), self.video(video_BTC, joint_BTJ)
        return zero_padding(attended[0], padding), zero_padding(attended[1], padding)


class _Bottleneck(nn.Module):
    """One modality X, (T, D), given J, (T, d); what has an entry per clip uses the leading T."""

    def __init__(self, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.clip = linear(num_clips, num_clips, bias=False)  # W_j
        self.correlation = linear(joint_size, BOTTLENECK, bias=False)  # W_c
        self.feature = linear(num_clips, BOTTLENECK, bias=False)  # W
        self.output = linear(BOTTLENECK, num_clips, bias=False)  # W_h

    def forward(self, values_BTD: Tensor, joint_BTJ: Tensor) -> Tensor:
        num_clips, joint_size = joint_BTJ.shape[1:]
        mixed_BTJ = (self.clip.weight[:num_clips, :num_clips] / joint_size**0.5) @ joint_BTJ
        attention_BDK = torch.cat(  # K columns of the bottleneck; the correlation, (D, J) per window, a few at a time
            [self.correlation(torch.bmm(values.mT, mixed).tanh_()) for values, mixed in in_parts(values_BTD, mixed_BTJ)]
        )
        attention_BDK = (attention_BDK + F.linear(values_BTD.mT, self.feature.weight[:, :num_clips])).relu()
        return F.linear(attention_BDK, self.output.weight[:num_clips]).mT + values_BTD


class _ReleasedNetwork(nn.Module):
    """The published network of the first version, for one target.

    It computes the attended audio, too, and drops it; here it is not computed.
    """

    def __init__(self, audio_size: int, video_size: int, num_clips: int) -> None:
        super().__init__()
        self.audio_projection = linear(audio_size, RELEASED_SIZE)
        self.video_projection = linear(video_size, RELEASED_SIZE)
        self.attend = _Bottleneck(2 * RELEASED_SIZE, num_clips)
        self.regressor = nn.Sequential(
            linear(video_size + RELEASED_SIZE, RELEASED_SIZE), nn.Dropout(REGRESSOR_DROPOUT), linear(RELEASED_SIZE, 1)
        )

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        audio_BTD = zero_padding(self.audio_projection(audio_BTA), padding)
        video_BTD = zero_padding(self.video_projection(video_BTC), padding)
        attended_BTD = self.attend(video_BTD, torch.cat([audio_BTD, video_BTD], dim=-1))
        with torch.autocast(video_BTC.device.type, enabled=False):
            fused_BTD = torch.cat([video_BTC, attended_BTD.to(video_BTC.dtype)], dim=-1)
            trace_BT1: Tensor = self.regressor(fused_BTD)
            return trace_BT1
