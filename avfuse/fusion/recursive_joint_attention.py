"""Recursive joint attention: each modality attends to itself and the other, again and again."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, Padding, Regressor, fixed_by_release, joint_output_size
from avfuse.fusion._joint import Gates, GuidedVideo, JointRecursion
from avfuse.fusion._released import (
    JOINT_DROPOUT,
    REGRESSOR_DROPOUT,
    UNIMODAL_DROPOUT,
    LearnedStateBLSTM,
    SharedQueryRecursion,
    unit_length,
)
from avfuse.schema import UsageError


class RecursiveJointAttention(FusionHead):
    """Audio-guided pooling, BLSTMs and recursive joint cross-attention.

    Source: R. G. Praveen, E. Granger and P. Cardinal, "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), equations 1 to 6: joint correlation matrices (1, 2),
    attention maps (3, 4) and attended features (5, 6) as `JointAttention` states them, recomputed from the attended
    features in every recursion. BLSTMs model each modality before the fusion (U-BLSTM) and both after it (J-BLSTM).

    Where the paper is silent or does not compose:

    - features are (T, D) where the paper writes (d, L): only so do its products and sizes fit together;
    - W_j is num_clips x num_clips; a window of T clips uses its leading T x T block;
    - every recursion has its own matrices, as in the authors' later code; the paper counts only W_h by recursion;
    - W_h is a tenth of the weights that are learned, so that training leaves the identity by small steps;
    - the BLSTMs have two layers and the regressor is one of two layers per target, as in the release; dropout 0.5;
    - inputs are standardised by the training partition; the absent face's learned vector is this package's addition.

    ``form="released"`` computes what the authors' code computes, which differs from the paper in what
    `avfuse.fusion._released` lists, in the pooling's audio term (`AudioGuidedPooling`) and in its dropouts (0.1 in the
    U-BLSTMs, 0.6 elsewhere). The published code has ``recursions=1``; its weights come in by
    ``avfuse checkpoint import``. With two recursions and the gate it is the authors' later Dynamic Cross-Attention.

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
    recursions : int
        How often the attention is applied, t; below 1 is a UsageError.
    unimodal_blstm, joint_blstm : bool
        Whether there are U-BLSTMs and a J-BLSTM.
    gate : bool
        Whether a `DynamicGate` chooses between the features before the first recursion and after the last.
    dropout : float
        Of the regressor; the released form has its own.
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
        recursions: int = 2,
        unimodal_blstm: bool = True,
        joint_blstm: bool = True,
        gate: bool = False,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        if recursions < 1:
            raise UsageError(f"recursions is {recursions}; allowed are whole numbers from 1")
        released = self.is_released
        if released:
            fixed_by_release(dropout=(dropout, DROPOUT))

        def blstm(input_size: int, output_size: int, released_dropout: float = UNIMODAL_DROPOUT) -> nn.Module:
            if released:
                return LearnedStateBLSTM(input_size, output_size, released_dropout)
            return BLSTM(input_size, output_size)

        self.audio_blstm = blstm(audio_size, audio_size) if unimodal_blstm else None
        self.guided_video = GuidedVideo(audio_size, video_size, map_size**2, is_released=released)
        self.video_blstm = blstm(video_size, video_size) if unimodal_blstm else None
        recursion = SharedQueryRecursion if released else JointRecursion
        self.recursions = nn.ModuleList(recursion(audio_size, video_size, num_clips) for _ in range(recursions))
        self.gates = Gates(audio_size, video_size) if gate else None
        joint_size = audio_size + video_size
        output_size = joint_output_size(joint_size) if joint_blstm else joint_size
        self.joint_blstm = blstm(joint_size, output_size, JOINT_DROPOUT) if joint_blstm else None
        self.regressor = Regressor(output_size, len(self.targets), REGRESSOR_DROPOUT if released else dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        if self.is_released:
            audio_BTA = unit_length(audio_BTA)
        if self.audio_blstm is not None:
            audio_BTA = self.audio_blstm(audio_BTA, padding)
        video_BTC = self.guided_video(video, audio_BTA, face, padding, self.inputs)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        before = audio_BTA, video_BTC
        for attend in self.recursions:
            audio_BTA, video_BTC = attend(audio_BTA, video_BTC, padding)
        if self.gates is not None:
            audio_BTA, video_BTC = self.gates(before, (audio_BTA, video_BTC))
        fused_BTD = torch.cat([video_BTC, audio_BTA] if self.is_released else [audio_BTA, video_BTC], dim=-1)
        if self.joint_blstm is not None:
            fused_BTD = self.joint_blstm(fused_BTD, padding)
        trace_BTE: Tensor = self.regressor(fused_BTD)
        return trace_BTE
