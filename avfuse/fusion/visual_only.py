"""Video alone: the baseline that says what fusion must add to."""

from collections.abc import Sequence

from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, AbsentFace, Inputs, Regressor, find_padding


class VisualOnly(FusionHead):
    """Trace from the video features alone, pooled by their mean over the map; the audio is not read.

    Source: the visual-only row of the comparison in "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), which does not describe its network and released none.
    This one is the video branch of `RecursiveJointAttention` before the attention, with the same regressor; the mean
    stands for the pooling that audio guides there. The learned vector for absent faces is an addition of this package.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    unimodal_blstm : bool
        Whether a bidirectional LSTM models the video over the clips.
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
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.num_clips = num_clips
        self.inputs = Inputs(audio_size, video_size, map_size, num_clips)
        self.absent_face = AbsentFace(video_size)
        self.video_blstm = BLSTM(video_size, video_size) if unimodal_blstm else None
        self.regressor = Regressor(video_size, len(self.targets), dropout)

    def standardise(self, audio_mean: Tensor, audio_std: Tensor, video_mean: Tensor, video_std: Tensor) -> None:
        """Set the constants of standardisation; see `FusionHead`."""
        self.inputs.set_constants(audio_mean, audio_std, video_mean, video_std)

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        self.inputs.check(audio, video)
        padding = find_padding(mask)
        video_BTC = self.absent_face(self.inputs.mean_video(video, padding), face, padding)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        trace_BTE: Tensor = self.regressor(video_BTC)
        return trace_BTE
