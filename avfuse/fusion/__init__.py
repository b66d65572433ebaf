"""Fusion heads: from the cached features of T clips to a trace of the targets.

Contract
--------
``Plug(targets, *, audio_size=512, video_size=512, num_clips=16, map_size=7, form="paper", **arguments)`` with plain
keyword arguments that have defaults. Called as ``head(audio, video, mask=None, face=None)``:

=========  ====================  ==========================================================================
argument   shape                 meaning
=========  ====================  ==========================================================================
audio      (B, T, A)             audio features as cached, T <= num_clips unless the head takes any length
video      (B, T, C, H, W)       video feature maps as cached, any float type
mask       (B, T) bool           True for a clip, False for padding; padding stands at the end of a window; on the
                                 host or the device: a head reads it on the host
face       (B, T)                share of the clip's frames that show the face, 0 to 1; None means 1
=========  ====================  ==========================================================================

It returns the trace (B, T, E), columns in the order of ``head.targets``; values at padding have no meaning but are
finite. What is padded never changes the trace of what is not, so a short window gives what it gives alone.

A head has two forms. ``paper`` follows the equations of its source; its inputs are standardised by the training
partition, and a learned vector stands for a face that was not found. ``released`` computes what the published code
computes, quirks included: on raw features, and blind to `face` (there, a frame without a face is a black picture).

A head is final: heads share the blocks of the pages whose names begin with ``_``, never each other. Every head's
docstring cites its source and lists where it differs from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from avfuse.fusion._blocks import Inputs, Padding, find_padding, zero_padding
from avfuse.schema import UsageError

FORMS = ("paper", "released")


class FusionHead(nn.Module, ABC):
    """The light network that stage 2 trains; see the module's contract.

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
    """

    takes_any_length: ClassVar[bool] = False
    """Whether windows may be longer than `num_clips`."""
    standardises_released_audio: ClassVar[bool] = False
    """Whether the released form, too, standardises its audio, because the published code does."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        audio_size: int,
        video_size: int,
        num_clips: int,
        map_size: int,
        form: str = "paper",
    ) -> None:
        super().__init__()
        if not targets:
            raise UsageError("a head needs at least one target")
        if form not in FORMS:
            raise UsageError(f"form '{form}' is none of {', '.join(FORMS)}")
        self.targets = tuple(targets)
        self.num_clips = num_clips
        self.form = form
        self.inputs = Inputs(audio_size, video_size, map_size)

    @property
    def is_released(self) -> bool:
        """Whether this is the form of the published code."""
        return self.form == "released"

    def standardise(self, audio_mean: Tensor, audio_std: Tensor, video_mean: Tensor, video_std: Tensor) -> None:
        """Set the constants by which the head standardises its inputs: (A,), (A,), (C, H, W), (C, H, W).

        They come from the training partition alone, are saved with the weights, and are 0 and 1 until set. A released
        form takes raw features and leaves its constants alone, but for the audio where the published code has them.

        Raises
        ------
        ValueError
            If one has the wrong shape, is not finite, or is a negative deviation.
        """
        if not self.is_released:
            self.inputs.set_constants(audio_mean, audio_std, video_mean, video_std)
        elif self.standardises_released_audio:
            self.inputs.set_constants(audio_mean, audio_std, self.inputs.video_mean, self.inputs.video_std)

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        """Return the trace (B, T, E) of a batch of windows.

        Raises
        ------
        UsageError
            If the windows are longer, or the features of other shapes, than the head was built for.
        ValueError
            If the arguments are not of one batch and length, the mask is not boolean, or a clip follows padding.
        """
        given = {"audio": audio, "video": video, "mask": mask, "face": face}
        sizes = {name: tuple(values.shape[:2]) for name, values in given.items() if values is not None}
        if len(set(sizes.values())) > 1 or (mask is not None and mask.dtype != torch.bool):
            raise ValueError(f"audio, video, mask (boolean) and face are of one batch and length; got {sizes}")
        if audio.shape[1] > self.num_clips and not self.takes_any_length:
            raise UsageError(f"windows of {audio.shape[1]} clips; this head takes at most {self.num_clips}")
        self.inputs.check(audio, video)
        padding = find_padding(mask, audio.device)
        return self.fuse(audio, video, padding, None if face is None else zero_padding(face, padding))

    @abstractmethod
    def fuse(self, audio: Tensor, video: Tensor, padding: Padding | None, face: Tensor | None) -> Tensor:
        """Return the trace (B, T, E) of windows that were checked."""
