"""Recursive joint attention: each modality attends to itself and the other, again and again."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import (
    BLSTM,
    DROPOUT,
    AbsentFace,
    AudioGuidedPooling,
    Inputs,
    Regressor,
    find_padding,
    in_parts,
    joint_output_size,
    zero_padding,
)
from avfuse.schema import UsageError

OUTPUT_GAIN = 0.1
"""Scale of W_h at the start: every recursion begins close to the identity, whatever the scale of its input, as it does
in the release (where the inputs' unit length makes it so). At full scale the second recursion of standardised features
saturates C and nothing is learned without BLSTMs."""


class JointAttention(nn.Module):
    """One recursion for one modality X, (T, D), given the joint features J = [X_a, X_v], (T, d).

    C = tanh(X^T W_j J / sqrt(d)) relates each feature of the modality to each joint feature over the clips of the
    window; H = ReLU(X W_c C); the result is X + H W_h.
    """

    def __init__(self, size: int, joint_size: int, num_clips: int) -> None:
        super().__init__()
        self.clip_weight = nn.Parameter(torch.empty(num_clips, num_clips))  # W_j
        self.feature_weight = nn.Parameter(torch.empty(size, size))  # W_c
        self.output_weight = nn.Parameter(torch.empty(joint_size, size))  # W_h
        for weight in (self.clip_weight, self.feature_weight):
            nn.init.xavier_uniform_(weight)
        nn.init.xavier_uniform_(self.output_weight, gain=OUTPUT_GAIN)

    def forward(self, values_BTD: Tensor, joint_BTJ: Tensor) -> Tensor:
        """Return the attended features (B, T, D); J = A + C is the size of the joint features."""
        num_clips, joint_size = joint_BTJ.shape[1:]
        # The correlation, (D, J) per window, dwarfs all else: scale its factor instead, and keep it in the CPU's cache.
        mixed_BTJ = (self.clip_weight[:num_clips, :num_clips] / joint_size**0.5) @ joint_BTJ
        query_BTD = values_BTD @ self.feature_weight
        attended_BTJ = torch.cat(
            [
                torch.bmm(query, torch.bmm(values.mT, mixed).tanh_()).relu_()
                for query, values, mixed in in_parts(query_BTD, values_BTD, mixed_BTJ)
            ]
        )
        return values_BTD + attended_BTJ @ self.output_weight


class RecursiveJointAttention(FusionHead):
    """Audio-guided pooling, BLSTMs and recursive joint cross-attention.

    Source: R. G. Praveen, E. Granger and P. Cardinal, "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958): joint correlation matrices, attention maps and attended
    features as `JointAttention` states them, recomputed from the attended features in every recursion. BLSTMs model
    each modality before the fusion (U-BLSTM) and both after it (J-BLSTM).

    Where the paper is silent or does not compose:

    - features are (T, D) where the paper writes (d, L): only so do its products and sizes fit together;
    - W_j is num_clips x num_clips; a window of T clips uses its leading T x T block;
    - every recursion has its own matrices, as in the authors' later code; the paper counts only W_h by recursion;
    - the BLSTMs have two layers and the regressor is one of two layers per target, as in the release; dropout 0.5;
    - inputs are standardised by the training partition; the absent face's learned vector is this package's addition.

    Where the authors' release differs from this head (and from the paper): one recursion; a learned, biased map of the
    joint features; biases, a further tanh and ReLU, and dropout inside the attention; its inputs and the outputs of its
    BLSTMs scaled to unit length; BLSTMs that see their input again at the output and learn their initial state; in the
    pooling, channels and cells interleaved, and the audio term added per cell instead of per score unit; 0.6 dropout.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    recursions : int
        How often the attention is applied; below 1 is a UsageError.
    unimodal_blstm, joint_blstm : bool
        Whether there are U-BLSTMs and a J-BLSTM.
    dropout : float
        Of the regressor.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int = 512,
        video_size: int = 512,
        num_clips: int = 16,
        map_size: int = 7,
        recursions: int = 2,
        unimodal_blstm: bool = True,
        joint_blstm: bool = True,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        if recursions < 1:
            raise UsageError(f"recursions is {recursions}; allowed are whole numbers from 1")
        self.targets = tuple(targets)
        self.num_clips = num_clips
        self.inputs = Inputs(audio_size, video_size, map_size, num_clips)
        self.audio_blstm = BLSTM(audio_size, audio_size) if unimodal_blstm else None
        self.pooling = AudioGuidedPooling(audio_size, video_size, map_size**2)
        self.absent_face = AbsentFace(video_size)
        self.video_blstm = BLSTM(video_size, video_size) if unimodal_blstm else None
        joint_size = audio_size + video_size
        self.audio_attention, self.video_attention = (
            nn.ModuleList(JointAttention(size, joint_size, num_clips) for _ in range(recursions))
            for size in (audio_size, video_size)
        )
        output_size = joint_output_size(joint_size) if joint_blstm else joint_size
        self.joint_blstm = BLSTM(joint_size, output_size) if joint_blstm else None
        self.regressor = Regressor(output_size, len(self.targets), dropout)

    def standardise(self, audio_mean: Tensor, audio_std: Tensor, video_mean: Tensor, video_std: Tensor) -> None:
        """Set the constants of standardisation; see `FusionHead`."""
        self.inputs.set_constants(audio_mean, audio_std, video_mean, video_std)

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        self.inputs.check(audio, video)
        padding = find_padding(mask)
        audio_BTA = self.inputs.audio(audio, padding)
        if self.audio_blstm is not None:
            audio_BTA = self.audio_blstm(audio_BTA, padding)
        video_BTC = self.absent_face(self._pool(zero_padding(video, padding), audio_BTA), face, padding)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        for attend_audio, attend_video in zip(self.audio_attention, self.video_attention, strict=True):
            joint_BTJ = torch.cat([audio_BTA, video_BTC], dim=-1)  # J = A + C
            audio_BTA, video_BTC = attend_audio(audio_BTA, joint_BTJ), attend_video(video_BTC, joint_BTJ)
        fused_BTD = torch.cat([audio_BTA, video_BTC], dim=-1)
        if self.joint_blstm is not None:
            fused_BTD = self.joint_blstm(fused_BTD, padding)
        trace_BTE: Tensor = self.regressor(fused_BTD)
        return trace_BTE

    def _pool(self, video_BTCHW: Tensor, audio_BTA: Tensor) -> Tensor:
        """Return the video features (B, T, C), pooled under the guidance of the audio."""
        parts = in_parts(video_BTCHW, audio_BTA)
        pooled_NC = [self.pooling(self.inputs.video_cells(video), audio.flatten(0, 1)) for video, audio in parts]
        return torch.cat(pooled_NC).reshape(video_BTCHW.shape[:3])
