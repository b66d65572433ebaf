"""Cross attention: each modality weighs its clips by their correlation with the other's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avfuse.fusion import FusionHead
from avfuse.fusion._blocks import DROPOUT, MeanVideo, Padding, PerTarget, Regressor, fixed_by_release, linear
from avfuse.fusion._joint import Gates
from avfuse.fusion._released import unit_length
from avfuse.fusion._transformers import attention_mask
from avfuse.schema import UsageError

RELEASED_DROPOUT = 0.5
RELEASED_SIZES = (512, 256)
_NEVER = -1e9  # a score that no softmax gives weight to, and finite, so that windows without a clip stay finite


class CrossAttention(FusionHead):
    """Cross-correlation of the clips of both modalities, and the features that it attends to.

    Source: R. G. Praveen, E. Granger and P. Cardinal, "Cross Attentional Audio-Visual Fusion for Dimensional Emotion
    Recognition" (FG 2021, arXiv 2111.05222). With columns for clips, Z = X_a^T W X_v; A_a is the softmax of Z / tau
    down its columns, A_v that of Z^T / tau; the attended features are tanh(X + X A), joined and fully connected.

    Where this form departs from the paper:

    - tau is ``temperature`` times the square root of the feature size: standardised features would saturate the softmax
      that the paper feeds with features of its own; the paper's temperature is not known for them;
    - a trace with a value per clip, from one regressor per target; there is no temporal model, as in the paper;
    - inputs are standardised; the video is the mean of its map; the absent face's learned vector is an addition.

    ``form="released"`` is the published code, in the one reading in which its products compose (as published they do
    not, and it stops): features of unit length, no temperature, no residual and no tanh; the modalities are added and
    the largest value over the clips is taken, so the trace is one value per window, held over its clips; then dropout
    0.5 and three linear layers (512, 256, 1), tanh after each, in a network of its own per target. Both features must
    have one size.

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
    temperature : float
        Of the softmax, above 0; paper form only.
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
        temperature: float = 1.0,
        gate: bool = False,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__(
            targets, audio_size=audio_size, video_size=video_size, num_clips=num_clips, map_size=map_size, form=form
        )
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature is {temperature}; allowed are numbers above 0")
        self.mean_video = MeanVideo(video_size, is_released=self.is_released)
        if self.is_released:
            fixed_by_release(temperature=(temperature, 1.0), gate=(gate, False), dropout=(dropout, DROPOUT))
            if audio_size != video_size:
                raise UsageError(
                    f"form=released adds the modalities: audio has {audio_size} features, video {video_size}"
                )
            self.released = PerTarget(lambda: _ReleasedNetwork(audio_size), len(self.targets))
            return
        self.scale = temperature * (audio_size * video_size) ** 0.25
        self.correlation = _correlation_weight(audio_size, video_size)
        self.gates = Gates(audio_size, video_size) if gate else None
        self.regressor = Regressor(audio_size + video_size, len(self.targets), dropout)

    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E); see the contract in `avfuse.fusion`."""
        audio_BTA = self.inputs.audio(audio, padding)
        video_BTC = self.mean_video(video, face, padding, self.inputs)
        if self.is_released:
            trace_BTE: Tensor = self.released(audio_BTA, video_BTC, padding)
            return trace_BTE
        attended_BTA, attended_BTC = _attend(audio_BTA, video_BTC, self.correlation, self.scale, padding)
        after = (audio_BTA + attended_BTA).tanh(), (video_BTC + attended_BTC).tanh()
        if self.gates is not None:
            after = self.gates((audio_BTA, video_BTC), after)
        trace_BTE = self.regressor(torch.cat(after, dim=-1))
        return trace_BTE


class _ReleasedNetwork(nn.Module):
    """The published network for one target: (B, T, 1) that is the same for all clips of a window."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.correlation = _correlation_weight(size, size)
        sizes = (size, *RELEASED_SIZES, 1)
        layers = [(linear(sizes[i], sizes[i + 1]), nn.Tanh()) for i in range(3)]
        self.regressor = nn.Sequential(nn.Dropout(RELEASED_DROPOUT), *(layer for pair in layers for layer in pair))

    def forward(self, audio_BTA: Tensor, video_BTC: Tensor, padding: Padding | None) -> Tensor:
        attended = _attend(unit_length(audio_BTA), unit_length(video_BTC), self.correlation, 1.0, padding)
        joint_BTD = attended[0] + attended[1]
        mask_BT = attention_mask(padding)
        if mask_BT is not None:
            joint_BTD = joint_BTD.masked_fill(mask_BT[..., None], _NEVER)
        with torch.autocast(joint_BTD.device.type, enabled=False):
            value_B11: Tensor = self.regressor(joint_BTD.amax(dim=1, keepdim=True).to(self.correlation.dtype))
        return value_B11.expand(-1, audio_BTA.shape[1], -1)


def _correlation_weight(audio_size: int, video_size: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(audio_size, video_size)))


def _attend(
    audio_BTA: Tensor, video_BTC: Tensor, weight_AC: Tensor, scale: float, padding: Padding | None
) -> tuple[Tensor, Tensor]:
    """Return X A of both modalities, rows for clips: row j weighs all rows by their fit to the other's clip j."""
    score_BTT = (audio_BTA @ weight_AC @ video_BTC.mT) / scale  # audio's clips down, video's across
    by_audio, by_video = score_BTT, score_BTT.mT
    mask_BT = attention_mask(padding)
    if mask_BT is not None:
        by_audio, by_video = (score.masked_fill(mask_BT[..., None], _NEVER) for score in (by_audio, by_video))
    return by_audio.softmax(dim=1).mT @ audio_BTA, by_video.softmax(dim=1).mT @ video_BTC
