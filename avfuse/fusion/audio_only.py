"""Audio alone: the baseline that says what fusion must add to."""

from collections.abc import Sequence

from torch import Tensor

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import BLSTM, DROPOUT, Inputs, Regressor, find_padding


class AudioOnly(FusionHead):
    """Trace from the audio features alone; the video is not read.

    Source: the audio-only row of the comparison in "Recursive Joint Attention for Audio-Visual Fusion in Regression
    based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), which does not describe its network and released none.
    This one is the audio branch of `RecursiveJointAttention` before the attention, with the same regressor.

    Parameters
    ----------
    targets : sequence of str
        Names of the columns of the trace.
    audio_size, video_size, map_size : int
        A; C; H = W.
    num_clips : int
        The longest window, T.
    unimodal_blstm : bool
        Whether a bidirectional LSTM models the audio over the clips.
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
        self.audio_blstm = BLSTM(audio_size, audio_size) if unimodal_blstm else None
        self.regressor = Regressor(audio_size, len(self.targets), dropout)

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
        trace_BTE: Tensor = self.regressor(audio_BTA)
        return trace_BTE
