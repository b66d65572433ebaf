"""Audio alone: the baseline that says what fusion must add to."""

from collections.abc import Sequence

from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, LinearRegressor, Padding, Regressor, fixed_by_release


class AudioOnly(FusionHead):
    """Trace from the audio features alone; the video is not read.

    Source: the audio-only row of the comparison in "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), which does not describe its network and released none.
    This one is the audio branch of `RecursiveJointAttention` before the attention, with the same regressor.
    ``form="released"`` is the audio stream of Kuhnke, Rumberg and Ostermann, "Two-Stream Aural-Visual Affect Analysis
    in the Wild" (FG 2020), whose code does have single streams: one linear layer per clip.

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
        Whether a bidirectional LSTM models the audio over the clips; paper form only.
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
        self.audio_blstm: BLSTM | None = None
        self.regressor: Regressor | LinearRegressor
        if self.is_released:
            fixed_by_release(unimodal_blstm=(unimodal_blstm, True), dropout=(dropout, DROPOUT))
            self.regressor = LinearRegressor(audio_size, len(self.targets))
        else:
            self.audio_blstm = BLSTM(audio_size, audio_size) if unimodal_blstm else None
            self.regressor = Regressor(audio_size, len(self.targets), dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        if self.audio_blstm is not None:
            audio_BTA = self.audio_blstm(audio_BTA, padding)
        trace_BTE: Tensor = self.regressor(audio_BTA)
        return trace_BTE
