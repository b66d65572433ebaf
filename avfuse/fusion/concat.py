"""Concatenation of the two modalities: fusion without attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import (
    BLSTM,
    DROPOUT,
    LinearRegressor,
    MeanVideo,
    Padding,
    Regressor,
    fixed_by_release,
    joint_output_size,
)


class ConcatFusion(FusionHead):
    """Audio and mean-pooled video, side by side, to the trace.

    Source: Kuhnke, Rumberg and Ostermann, "Two-Stream Aural-Visual Affect Analysis in the Wild" (FG 2020), whose
    fusion is the concatenation of one audio and one video vector per frame, before one linear layer.

    It differs from that so that a comparison with `RecursiveJointAttention` compares the fusion alone:

    - bidirectional LSTMs over the clips, on each modality and on the concatenation; the source has no temporal model.
      Without both (``unimodal_blstm=False, joint_blstm=False``) only the regressor differs from the source;
    - a regressor of two layers per target, instead of one linear layer for all tasks;
    - the encoders are frozen; the source trains them together with the fusion;
    - a learned vector for absent faces, an addition of this package; the source shows its network black frames.

    ``form="released"`` is the source's own fusion: one linear layer on the concatenation, clip by clip. Of its 17
    outputs (expressions, valence, arousal, action units) only the targets are here.

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
    unimodal_blstm, joint_blstm : bool
        Whether a bidirectional LSTM models each modality, and the concatenation, over the clips; paper form only.
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
        unimodal_blstm: bool = True,
        joint_blstm: bool = True,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        self.mean_video = MeanVideo(video_size, is_released=self.is_released)
        self.audio_blstm: BLSTM | None = None
        self.video_blstm: BLSTM | None = None
        self.joint_blstm: BLSTM | None = None
        self.regressor: Regressor | LinearRegressor
        joint_size = audio_size + video_size
        if self.is_released:
            fixed_by_release(
                unimodal_blstm=(unimodal_blstm, True), joint_blstm=(joint_blstm, True), dropout=(dropout, DROPOUT)
            )
            self.regressor = LinearRegressor(joint_size, len(self.targets))
            return
        if unimodal_blstm:
            self.audio_blstm, self.video_blstm = BLSTM(audio_size, audio_size), BLSTM(video_size, video_size)
        output_size = joint_output_size(joint_size) if joint_blstm else joint_size
        self.joint_blstm = BLSTM(joint_size, output_size) if joint_blstm else None
        self.regressor = Regressor(output_size, len(self.targets), dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        video_BTC = self.mean_video(video, face, padding, self.inputs)
        if self.audio_blstm is not None:
            audio_BTA = self.audio_blstm(audio_BTA, padding)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        joint_BTD = torch.cat([audio_BTA, video_BTC], dim=-1)  # D = A + C
        if self.joint_blstm is not None:
            joint_BTD = self.joint_blstm(joint_BTD, padding)
        trace_BTE: Tensor = self.regressor(joint_BTD)
        return trace_BTE
