"""The frozen networks of an extraction, and what of their making a cache must know."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from avfuse import gpu_decoding, media, registry, views
from avfuse.batching import choose_size
from avfuse.corpora import Corpus
from avfuse.crops import CROPPED
from avfuse.detection import FaceDetector
from avfuse.encoders import Encoder
from avfuse.faces import describe_faces
from avfuse.knobs import parse_assignments
from avfuse.options import ExtractOptions
from avfuse.schema import UsageError
from avfuse.spec import CacheSpec
from avfuse.timeline import CLIP_DILATION, CLIP_FRAMES, SAMPLE_RATE_HZ, SOUND_INTERVALS

PIPELINE_VERSION = 4  # to be raised whenever the same settings give other features


@dataclass(frozen=True)
class Networks:
    """The frozen networks of an extraction, and where they compute."""

    video: Encoder
    audio: Encoder
    detector: FaceDetector | None  # None where faces come from aligned images
    device: torch.device

    @classmethod
    def make(cls, options: ExtractOptions, device: torch.device) -> Networks:
        """Load the networks that the options name; they are not placed yet.

        Raises
        ------
        UsageError
            If one is not known, has no such argument, or its weights cannot be had; if pictures are to be decoded on a
            GPU, and cannot be.
        """
        if options.decode == "gpu":
            gpu_decoding.refuse_unusable(device)
        video = _encoder("video", options.video_encoder, options.video_weights, options.video_option, options)
        audio = _encoder("audio", options.audio_encoder, options.audio_weights, options.audio_option, options)
        detector = FaceDetector(options.min_face_px, device) if options.faces == "detect" else None
        return cls(video, audio, detector, device)

    def describe(self, options: ExtractOptions, corpus: Corpus) -> CacheSpec:
        """Return everything that features made by these networks depend on, besides the recording.

        The precision of the options is one that was chosen.
        """
        decoder, detector = media.library_versions(), CROPPED
        if options.decode == "gpu":
            decoder |= gpu_decoding.library_versions()
        if self.detector is not None:
            detector = describe_faces(self.detector, options.detection, options.detect_every)
        return CacheSpec(
            dataset=options.dataset or options.root.resolve().name,
            corpus=options.corpus,
            targets=corpus.targets,
            decoder=decoder,
            detector=detector,
            clip={
                "pipeline": PIPELINE_VERSION,
                "frames": CLIP_FRAMES,
                "dilation": CLIP_DILATION,
                "hop": options.hop,
                "sound_intervals": SOUND_INTERVALS,
                "sample_rate_hz": SAMPLE_RATE_HZ,
            },
            video=self.video.fingerprint,
            audio=self.audio.fingerprint,
            precision=options.precision,
            libraries=_libraries(self.device, options.batch_size),
            video_shape=self.video.feature_shape if options.maps == "whole" else (self.video.feature_shape[0], 1, 1),
            audio_shape=self.audio.feature_shape,
            ranges=corpus.ranges,
            storage={"dtype": options.dtype, "maps": options.maps},
            views=views.describe(options.views, options.flip),
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the encoders' weights came from, and which avfuse this is."""
        return {"video": self.video.provenance, "audio": self.audio.provenance, "avfuse": version("avfuse")}


def _encoder(modality: str, name: str, weights: str, assignments: tuple[str, ...], options: ExtractOptions) -> Encoder:
    plug = registry.load("encoder", name)
    if plug.modality != modality:
        raise UsageError(f"encoder '{name}' is for {plug.modality}, not for {modality}")
    arguments = registry.check_arguments(
        "encoder", name, parse_assignments(assignments), reserved=("weights", "allow_download")
    )
    encoder: Encoder = plug(weights, options.allow_download, **arguments)
    return encoder


def _libraries(device: torch.device, batch_size: int) -> dict[str, str]:
    """Return what computes: PyTorch and its kin and, on a GPU, that it is one, and how many clips at a time."""
    versions = {name: version(name) for name in ("torch", "torchvision", "torchaudio")}
    if device.type == "cpu":
        return versions
    return {**versions, "device": device.type, "batch_size": str(choose_size(batch_size, device))}
