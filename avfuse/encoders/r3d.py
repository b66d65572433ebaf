"""R3D-18 and R(2+1)D-18: eight face crops to a map of 512 channels on 7 x 7 positions.

The networks are torchvision's (Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition",
CVPR 2018), cut after their last residual stage. The paper names R3D; its released code runs R(2+1)D.
"""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from avfuse.encoders import Encoder
from avfuse.encoders._weights import load_into
from avfuse.schema import UsageError

ARCHITECTURES = ("r3d_18", "r2plus1d_18")
MEAN = (0.43216, 0.394666, 0.37645)  # of Kinetics-400, RGB, as torchvision's weights expect
STD = (0.22803, 0.22145, 0.216989)


class R3DEncoder(Encoder):
    """torchvision's r3d_18 or r2plus1d_18 up to its last residual stage, averaged over time.

    Parameters
    ----------
    weights : str
        See `avfuse.encoders._weights`. A four-channel stem (three colours and a mask, as in tsav checkpoints) is cut to
        its first three channels.
    arch : str
        ``r3d_18`` or ``r2plus1d_18``.
    """

    modality: ClassVar[str] = "video"
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, weights: str, allow_download: bool = False, *, arch: str = "r3d_18") -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise UsageError(f"encoder r3d: arch '{arch}' is none of {', '.join(ARCHITECTURES)}")
        if weights.startswith("tsav:") and arch != "r2plus1d_18":
            raise UsageError(
                f"weights '{weights}' are of r2plus1d_18, not of {arch}; add --video-option arch=r2plus1d_18"
            )
        self.network, loaded = load_into(
            lambda: _residual_stages(arch),
            weights,
            tsav_prefix="video_model.r2plus1d.",
            adapt=_three_channels,
            allow_download=allow_download,
        )
        self.feature_shape: tuple[int, ...] = (512, 7, 7)
        self.fingerprint: dict[str, Any] = {"encoder": "r3d", "arch": arch, "state_sha256": loaded.state_sha256}
        self.provenance: dict[str, Any] = loaded.provenance
        self.register_buffer("mean_C", torch.tensor(MEAN).view(1, 3, 1, 1, 1) * 255)
        self.register_buffer("std_C", torch.tensor(STD).view(1, 3, 1, 1, 1) * 255)
        self._dtype = torch.float32

    def place(self, device: torch.device, precision: str) -> None:
        """Freeze, fold each batch norm into its convolution, and lay the memory out for fast convolutions."""
        self.eval().requires_grad_(False)
        _fold_batch_norms(self.network)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.to(device)
        self.network.to(dtype=self._dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, clips: Tensor) -> Tensor:
        """Return the maps (B, 512, 7, 7), float32, of crops (B, K, 112, 112, 3), uint8."""
        video_BCKYX = clips.permute(0, 4, 1, 2, 3).float()
        video_BCKYX = (video_BCKYX - self.mean_C) / self.std_C
        video_BCKYX = video_BCKYX.to(dtype=self._dtype, memory_format=torch.channels_last_3d)
        map_BCKHW: Tensor = self.network(video_BCKYX)
        return map_BCKHW.float().mean(dim=2)


def _residual_stages(arch: str) -> nn.Module:
    network = torchvision.models.get_model(arch, weights=None)
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in stages))


def _three_channels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stem = state.get("stem.0.weight")
    if stem is None or stem.ndim != 5 or stem.shape[1] != 4:
        return state
    return {**state, "stem.0.weight": stem[:, :3]}


def _fold_batch_norms(module: nn.Module) -> None:
    """Replace every convolution directly followed by a batch norm with one convolution."""
    for child in module.children():
        _fold_batch_norms(child)
    if not isinstance(module, nn.Sequential):
        return
    for i in range(len(module) - 1):
        layer, norm = module[i], module[i + 1]
        if isinstance(norm, nn.BatchNorm3d):
            # In R(2+1)D the norm follows a pair of convolutions; it folds into the last of them.
            owner, key = (layer, -1) if isinstance(layer, nn.Sequential) else (module, i)
            convolution = owner[key]
            assert isinstance(convolution, nn.Conv3d)
            owner[key], module[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
