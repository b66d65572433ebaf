"""Concatenation of the two modalities: fusion without attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, AbsentFace, Inputs, Regressor, find_padding, joint_output_size


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

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    unimodal_blstm, joint_blstm : bool
        Whether a bidirectional LSTM models each modality, and the concatenation, over the clips.
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
        unimodal_blstm: bool = True,
        joint_blstm: bool = True,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.num_clips = num_clips
        self.inputs = Inputs(audio_size, video_size, map_size, num_clips)
        self.absent_face = AbsentFace(video_size)
        self.audio_blstm = BLSTM(audio_size, audio_size) if unimodal_blstm else None
        self.video_blstm = BLSTM(video_size, video_size) if unimodal_blstm else None
        joint_size = audio_size + video_size
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
        video_BTC = self.absent_face(self.inputs.mean_video(video, padding), face, padding)
        if self.audio_blstm is not None:
            audio_BTA = self.audio_blstm(audio_BTA, padding)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        joint_BTD = torch.cat([audio_BTA, video_BTC], dim=-1)  # D = A + C
        if self.joint_blstm is not None:
            joint_BTD = self.joint_blstm(joint_BTD, padding)
        trace_BTE: Tensor = self.regressor(joint_BTD)
        return trace_BTE
