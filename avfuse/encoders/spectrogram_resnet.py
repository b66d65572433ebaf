"""ResNet-18 on a log-mel spectrogram: the sound under a clip to a vector of 512.

The network is torchvision's (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) with one input
channel and without its classification layer. Spectrogram settings are those of the paper's released code, which took
them from Kuhnke et al., "Two-Stream Aural-Visual Affect Analysis in the Wild" (FG 2020).
"""

from typing import Any, ClassVar

import torch
import torchaudio
import torchvision
from torch import Tensor, nn

from avfuse.encoders import Encoder
from avfuse.encoders._weights import load_into

SAMPLE_RATE_HZ = 44_100
WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES, NUM_MELS = 882, 441, 1024, 64  # windows of 20 ms every 10 ms
MIN_SAMPLES = 45_599  # shorter sound is padded on the left with silence, to 104 spectrogram columns
FLOOR_DB, MEAN_DB, STD_DB = 80.0, -14.8, 19.895


class SpectrogramResNetEncoder(Encoder):
    """Log-mel spectrogram and torchvision's resnet18 with one input channel, up to its global average.

    Parameters
    ----------
    weights : str
        See `avfuse.encoders._weights`. A three-channel first convolution is averaged over its input channels.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, weights: str, allow_download: bool = False) -> None:
        super().__init__()
        self.network, loaded = load_into(
            _one_channel_resnet,
            weights,
            tsav_prefix="audio_model.resnet.",
            adapt=_one_channel,
            allow_download=allow_download,
        )
        self.feature_shape: tuple[int, ...] = (512,)
        self.fingerprint: dict[str, Any] = {"encoder": "spectrogram_resnet", "state_sha256": loaded.state_sha256}
        self.provenance: dict[str, Any] = loaded.provenance
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE_HZ, FFT_SAMPLES, WINDOW_SAMPLES, HOP_SAMPLES, n_mels=NUM_MELS, power=2.0
        )

    def place(self, device: torch.device, precision: str) -> None:
        """Freeze and move; the network is small, so it always computes in float32."""
        self.eval().requires_grad_(False).to(device)

    def log_mel(self, sound_BS: Tensor) -> Tensor:
        """Return the normalised log-mel spectrogram (B, 1, 64, 1 + S // 441) of sound (B, S).

        Power in dB, floored 80 dB below the clip's loudest cell, then (x + 14.8) / 19.895. Column c is centred on
        sample 441 c of the padded sound.
        """
        missing = max(0, MIN_SAMPLES - sound_BS.shape[-1])
        power_B1MW = self.mel(nn.functional.pad(sound_BS, (missing, 0)))[:, None]
        level_B1MW = torchaudio.functional.amplitude_to_DB(power_B1MW, 10.0, 1e-10, 0.0, top_db=FLOOR_DB)
        log_mel_B1MW: Tensor = (level_B1MW - MEAN_DB) / STD_DB
        return log_mel_B1MW

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features (B, 512), float32, of sound (B, S), float32."""
        feature_BA: Tensor = self.network(self.log_mel(clips))
        return feature_BA


def _one_channel_resnet() -> nn.Module:
    network: nn.Module = torchvision.models.resnet18(weights=None)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Identity()
    return network


def _one_channel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    first = state.get("conv1.weight")
    if first is None or first.ndim != 4 or first.shape[1] != 3:
        return state
    return {**state, "conv1.weight": first.mean(dim=1, keepdim=True)}
