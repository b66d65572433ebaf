"""Video alone: the baseline that says what fusion must add to."""

from collections.abc import Sequence

from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, LinearRegressor, MeanVideo, Padding, Regressor, fixed_by_release


class VisualOnly(FusionHead):
    """Trace from the video features alone, pooled by their mean over the map; the audio is not read.

    Source: the visual-only row of the comparison in "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), which does not describe its network and released none.
    This one is the video branch of `RecursiveJointAttention` before the attention, with the same regressor; the mean
    stands for the pooling that audio guides there. The learned vector for absent faces is an addition of this package.
    ``form="released"`` is the video stream of Kuhnke, Rumberg and Ostermann, "Two-Stream Aural-Visual Affect Analysis
    in the Wild" (FG 2020), whose code does have single streams: one linear layer per clip on the mean of its map.

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
    unimodal_blstm : bool
        Whether a bidirectional LSTM models the video over the clips; paper form only.
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
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        self.mean_video = MeanVideo(video_size, is_released=self.is_released)
        self.video_blstm: BLSTM | None = None
        self.regressor: Regressor | LinearRegressor
        if self.is_released:
            fixed_by_release(unimodal_blstm=(unimodal_blstm, True), dropout=(dropout, DROPOUT))
            self.regressor = LinearRegressor(video_size, len(self.targets))
        else:
            self.video_blstm = BLSTM(video_size, video_size) if unimodal_blstm else None
            self.regressor = Regressor(video_size, len(self.targets), dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        video_BTC = self.mean_video(video, face, padding, self.inputs)
        if self.video_blstm is not None:
            video_BTC = self.video_blstm(video_BTC, padding)
        trace_BTE: Tensor = self.regressor(video_BTC)
        return trace_BTE
