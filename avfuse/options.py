"""The knobs: one frozen dataclass per stage, every knob declared once.

The command line is generated from these fields, and the same values are saved with every cache and run. A field made
by `knob` carries its help text and, where there is a fixed set, its choices; a field named in upper case in `argument`
is positional.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from avfuse import registry
from avfuse.schema import UsageError

CACHE_VARIABLE = "AVFUSE_CACHE"


def knob(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    argument: str | None = None,
    flag: str | None = None,
    record: bool = True,
) -> Any:
    """Declare a knob: a dataclass field with what the command line needs to know about it.

    `record` tells whether the value belongs to the identity of what the stage makes; a device or a place does not.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "argument": argument, "flag": flag}
    return field(default=default, metadata={**metadata, "record": record})


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, Any]:
    """Turn ("recursions=3", "joint_blstm=false") into {"recursions": 3, "joint_blstm": False}.

    Values read as true/false, whole numbers, decimal numbers or else text.

    Raises
    ------
    UsageError
        If an item is not KEY=VALUE.
    """
    values: dict[str, Any] = {}
    for item in assignments:
        key, separator, text = item.partition("=")
        if not separator or not key.isidentifier():
            raise UsageError(f"'{item}' is not KEY=VALUE, for example recursions=2")
        values[key] = _parse_value(text)
    return values


def _parse_value(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def format_assignments(values: Mapping[str, Any]) -> str:
    """Write {"recursions": 2, "joint_blstm": False} as "joint_blstm=false, recursions=2"."""
    return ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in sorted(values.items())
    )


def cache_home(given: Path | None) -> Path:
    """Return the place of everything that can be recomputed: `given`, else $AVFUSE_CACHE, else ./cache."""
    return Path(given or os.environ.get(CACHE_VARIABLE) or "cache")


@dataclass(frozen=True)
class DemoOptions:
    """Knobs of ``avfuse demo``."""

    root: Path = knob(help="Folder to write the corpus to.", argument="ROOT")
    subjects: int = knob(32, "Number of subjects, one recording each; a quarter is held out for validation.", minimum=4)
    duration_s: float = knob(20.5, "Length of each recording in seconds.", minimum=4.0)
    seed: int = knob(0, "Seed; equal seeds give equal traces, pictures and sounds.", minimum=0)
    num_workers: int = knob(0, "Processes that render side by side; 0 takes one per core.", minimum=0, record=False)


@dataclass(frozen=True)
class ExtractOptions:
    """Knobs of ``avfuse extract``."""

    root: Path = knob(help="Root folder of the corpus.", argument="ROOT", record=False)
    corpus: str = knob("aff_wild2", "How the folder is laid out.", choices=tuple(registry.CORPORA))
    dataset: str | None = knob(None, "Name of the data set in the cache.  [default: the folder's name]")
    cache: Path | None = knob(
        None, f"Folder for everything that can be recomputed.  [default: ${CACHE_VARIABLE}, else ./cache]", record=False
    )
    video_weights: str = knob(
        "R3D_18_Weights.KINETICS400_V1",
        "Weights of the video encoder: random:SEED, a torchvision name that is already in TORCH_HOME, "
        "PATH[#sha256=...] (.pt, .pth, .safetensors) or tsav:PATH.",
    )
    audio_weights: str = knob("ResNet18_Weights.IMAGENET1K_V1", "Weights of the audio encoder, named likewise.")
    video_encoder: str = knob("r3d", "Network from clip to feature map.", choices=tuple(registry.ENCODERS))
    audio_encoder: str = knob("spectrogram_resnet", "Network from sound to feature.", choices=tuple(registry.ENCODERS))
    video_option: tuple[str, ...] = knob((), "An argument of the video encoder as KEY=VALUE, e.g. arch=r2plus1d_18.")
    audio_option: tuple[str, ...] = knob((), "An argument of the audio encoder as KEY=VALUE.")
    hop: int = knob(8, "Frames between the ends of consecutive clips.", minimum=1)
    detect_every: int = knob(4, "Look for the face in every k-th frame and interpolate between.", minimum=1)
    min_face_px: int = knob(40, "Smallest face looked for, in pixels.", minimum=12)
    precision: str = knob(
        "auto", "Arithmetic of the encoders; auto is bf16 where the hardware has it.", choices=("auto", "fp32", "bf16")
    )
    batch_size: int = knob(8, "Clips per forward pass of the encoders.", minimum=1, record=False)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.", record=False)
    allow_download: bool = knob(False, "Fetch torchvision weights that TORCH_HOME does not hold.", record=False)


@dataclass(frozen=True)
class TrainOptions:
    """Knobs of ``avfuse fuse-train``."""

    cache: Path | None = knob(
        None, f"A feature store, or the folder that holds it.  [default: ${CACHE_VARIABLE}, else ./cache]", record=False
    )
    head: str = knob("recursive_joint_attention", "Fusion head.", choices=tuple(registry.HEADS))
    head_option: tuple[str, ...] = knob((), "An argument of the head as KEY=VALUE, e.g. recursions=2.")
    num_clips: int = knob(16, "Clips per window (T).", minimum=2)
    spacing: int = knob(32, "Frames between the clips of a window; a multiple of the cache's hop.", minimum=1)
    batch_size: int = knob(32, "Windows per training step.", minimum=1)
    epochs: int = knob(50, "Epochs at most.", minimum=1)
    learning_rate: float = knob(1e-4, "Step size of Adam.", minimum=0.0)
    plateau: int = knob(3, "Epochs without a better validation CCC before the step size is halved.", minimum=1)
    patience: int = knob(8, "Epochs without a better validation CCC before training ends.", minimum=1)
    gradient_clip: float = knob(1.0, "Largest norm of the gradient; 0 turns clipping off.", minimum=0.0)
    amp: str = knob("off", "Mixed precision.", choices=("off", "bf16"))
    seed: tuple[int, ...] = knob((0,), "Seed of a run; give it several times for several runs.", minimum=0)
    out: Path | None = knob(
        None, "Folder of the runs.  [default: runs/<cache>/<head> beside the features]", record=False
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.", record=False)


@dataclass(frozen=True)
class ReportOptions:
    """Knobs of ``avfuse report``."""

    runs: tuple[Path, ...] = knob(help="Runs, or folders of runs.", argument="RUN...")
    format: str | None = knob(None, "Write the table in this format.", choices=tuple(registry.FORMATS))
    out: Path | None = knob(None, "File to write to instead of the terminal.", flag="--out")
