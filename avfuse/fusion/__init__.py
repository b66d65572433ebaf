"""Fusion heads: from the cached features of T clips to a trace of the targets.

Contract
--------
``Plug(targets, *, audio_size=512, video_size=512, num_clips=16, **arguments)`` with plain keyword arguments that have
defaults. Called as ``head(audio, video, mask=None, face=None)``:

=========  ====================  ==========================================================================
argument   shape                 meaning
=========  ====================  ==========================================================================
audio      (B, T, A)             audio features as cached, T <= num_clips
video      (B, T, C, H, W)       video feature maps as cached, any float type
mask       (B, T) bool           True for a clip, False for padding; padding stands at the end of a window
face       (B, T)                share of the clip's frames that show the face, 0 to 1; None means 1
=========  ====================  ==========================================================================

It returns the trace (B, T, E), columns in the order of ``head.targets``; values at padding have no meaning but are
finite. What is padded never changes the trace of what is not, so a short window gives what it gives alone.

A head is final: heads share the blocks of `avfuse.fusion._blocks`, never each other. Every head's docstring cites its
source and lists where it differs from it.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FusionHead(nn.Module, ABC):
    """The light network that stage 2 trains; see the module's contract."""

    targets: tuple[str, ...]
    num_clips: int

    @abstractmethod
    def forward(self, audio: Tensor, video: Tensor, mask: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        """Return the trace (B, T, E) of a batch of windows."""

    @abstractmethod
    def standardise(self, audio_mean: Tensor, audio_std: Tensor, video_mean: Tensor, video_std: Tensor) -> None:
        """Set the constants by which the head standardises its inputs: (A,), (A,), (C, H, W), (C, H, W).

        They come from the training partition alone, are saved with the weights, and are 0 and 1 until set.
        """
