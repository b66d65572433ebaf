"""The knobs: one frozen dataclass per stage, every knob declared once.

The command line is generated from these fields, and the same values are saved with every cache and run. A field made
by `avfuse.knobs.knob` carries its help text and, where there is a fixed set, its choices; a field named in upper case
in `argument` is positional.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from avfuse import registry
from avfuse.knobs import HALF_A_WINDOW, PROTOCOLS, knob, parse_fold, parse_place, parse_shard, protocol_knob
from avfuse.schema import PARTITIONS, UsageError

CACHE_VARIABLE = "AVFUSE_CACHE"
FACES = ("detect", "cropped")
DETECTIONS = ("adaptive", "every")
DECODERS = ("cpu", "gpu")
ON_ERROR = ("go-on", "stop")
DTYPES = ("float16", "uint8")
MAPS = ("whole", "pooled")
COMPRESSIONS = ("none", "zstd", "pcodec")
SCORING = ("strict", "smoothed", "released")
BREAKDOWNS = ("recording", "subject", "coverage", "face")
RESAMPLED = ("subjects", "recordings", "frames")
DEMO_SUBJECTS = {"aff_wild2": 32, "fatigue": 16}
DEMO_DURATION_S = {"aff_wild2": 20.5, "fatigue": 150.0}


def cache_home(given: Path | str | None) -> Path | str:
    """Return the place of everything that can be recomputed: `given`, else $AVFUSE_CACHE, else ./cache.

    It is a path, or the address of a remote store as it was given (see `avfuse.knobs.parse_place`).
    """
    chosen = given or os.environ.get(CACHE_VARIABLE) or "cache"
    return chosen if isinstance(chosen, Path) else parse_place(chosen)


def local_home() -> Path:
    """Return the folder of what is only kept on this machine, as runs are: $AVFUSE_CACHE, unless it is a store itself.

    Then, and where it is on a server, it is ./cache.
    """
    home = cache_home(None)
    is_folder = isinstance(home, Path) and home.suffix not in (".h5", ".hdf5") and not (home / "zarr.json").exists()
    return Path(home) if is_folder else Path("cache")


def _by_corpus(defaults: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g} for {corpus}" for corpus, value in defaults.items())


@dataclass(frozen=True)
class DemoOptions:
    """Knobs of ``avfuse demo``."""

    root: Path = knob(help="Folder to write the corpus to.", argument="ROOT")
    corpus: str = knob(
        "aff_wild2", "What to write: valence and arousal, or long sessions of fatigue.", choices=tuple(DEMO_SUBJECTS)
    )
    subjects: int | None = knob(
        None,
        "Number of subjects, one recording each; a quarter is held out for validation.  "
        f"[default: {_by_corpus(DEMO_SUBJECTS)}]",
        minimum=4,
    )
    duration_s: float | None = knob(
        None, f"Length of each recording in seconds.  [default: {_by_corpus(DEMO_DURATION_S)}]", minimum=4.0
    )
    seed: int = knob(0, "Seed; equal seeds give equal traces, pictures and sounds.", minimum=0)
    num_workers: int = knob(0, "Processes that render side by side; 0 takes one per core.", minimum=0, record=False)


@dataclass(frozen=True)
class ExtractOptions:
    """Knobs of ``avfuse extract``.

    Raises
    ------
    UsageError
        If the value of a knob with choices is not known, there is no view, or none that could be mirrored.
    """

    root: Path = knob(help="Root folder of the corpus.", argument="ROOT", record=False)
    corpus: str = knob("aff_wild2", "How the folder is laid out.", choices=tuple(registry.CORPORA))
    corpus_option: tuple[str, ...] = knob((), "An argument of the corpus as KEY=VALUE, e.g. highest=5.", record=False)
    allow_leaks: bool = knob(
        False, "Go on where a subject or a file is in two partitions: scores are then too good.", record=False
    )
    dataset: str | None = knob(None, "Name of the data set in the cache.  [default: the folder's name]")
    cache: Path | str | None = knob(
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
    faces: str = knob(
        "detect",
        "Where faces come from: found in the video, or the aligned images that the corpus brings.",
        choices=FACES,
    )
    decode: str = knob(
        "cpu",
        "What decodes pictures: the CPU, or an NVIDIA GPU through torchcodec (extra gpu-decode), whose conversion of "
        "colours makes pixels differ a little.",
        choices=DECODERS,
    )
    detection: str = knob(
        "adaptive",
        "Search the whole picture for the face only where it may be elsewhere and look near its last place between, "
        "or search in every frame that is looked at.",
        choices=DETECTIONS,
    )
    detect_every: int = knob(4, "Look for the face in every k-th frame at least, and interpolate between.", minimum=1)
    min_face_px: int = knob(40, "Smallest face looked for, in pixels.", minimum=12)
    precision: str = knob(
        "auto", "Arithmetic of the encoders; auto is bf16 where the hardware has it.", choices=("auto", "fp32", "bf16")
    )
    views: int = knob(
        1,
        "Views of each clip that are kept: the clip as it is, and others whose brightness and contrast are drawn.",
        minimum=1,
    )
    flip: bool = knob(False, "Mirror each of the other views with probability 1/2.")
    dtype: str = knob(
        "float16",
        "Numbers of the maps that are kept: two bytes each, or one, with a scale per channel and recording.",
        choices=DTYPES,
    )
    maps: str = knob(
        "whole",
        "Keep maps whole (512 x 7 x 7 are 49 KiB per clip and view in float16) or their mean over the cells (1 KiB).",
        choices=MAPS,
    )
    compress: str = knob(
        "none",
        "Compress the maps that are added; it changes no value, but they are then decoded rather than mapped.",
        choices=COMPRESSIONS,
        record=False,
    )
    max_corrupt: float = knob(
        0.05, "Share of a stream's packets that may fail before its recording is set aside.", minimum=0.0, record=False
    )
    min_face_share: float = knob(
        0.01,
        "Share of a recording's frames that must show a face; 0 keeps those without any.",
        minimum=0.0,
        record=False,
    )
    allow_missing: bool = knob(
        False, "Keep recordings without sound, or without picture, that modality marked as missing.", record=False
    )
    retry_failed: bool = knob(
        False, "Try again what failed before, though its files are as they were then.", record=False
    )
    on_error: str = knob(
        "go-on", "What a recording that cannot be used does to the run.", choices=ON_ERROR, record=False
    )
    engine: str = knob(
        "local", "What spreads recordings over processes.", choices=tuple(registry.ENGINES), record=False
    )
    engine_option: tuple[str, ...] = knob((), "An argument of the engine as KEY=VALUE.", record=False)
    num_workers: int = knob(0, "Processes; 0 takes one per GPU or, without one, per core.", minimum=0, record=False)
    shard: str | None = knob(
        None,
        "Do share I of N of the recordings, as I/N, for jobs that run side by side.  [default: as SLURM_ARRAY_TASK_ID "
        "and _COUNT say, else 1/1]",
        record=False,
    )
    batch_size: int = knob(
        0,
        "Clips per forward pass of the encoders; 0 takes 64 on a GPU, and 8 on a CPU, which takes no more.",
        minimum=0,
        record=False,
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.", record=False)
    allow_download: bool = knob(False, "Fetch torchvision weights that TORCH_HOME does not hold.", record=False)

    def __post_init__(self) -> None:
        _refuse_unknown(self, "faces", "decode", "detection", "precision", "dtype", "maps", "compress")
        _refuse_unknown(self, "on_error", "engine")
        for name in ("max_corrupt", "min_face_share"):
            if not 0 <= getattr(self, name) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name):g}: expected a share from 0 to 1, for example 0.05")
        if self.shard is not None:
            parse_shard(self.shard)
        if self.decode == "gpu" and self.faces == "cropped":
            raise UsageError("--decode gpu decodes videos, and --faces cropped takes images of the corpus; drop one")
        if self.views < 1:
            raise UsageError(f"--views {self.views}: there is at least 1, the clip as it is")
        if self.flip and self.views == 1:
            raise UsageError("--flip mirrors views other than the first; keep some, with --views 2 or more")


@dataclass(frozen=True)
class TrainOptions:
    """Knobs of ``avfuse fuse-train``.

    Those that the protocol sets (see `PROTOCOLS`) are filled in where they are not given, and `dataclasses.replace`
    takes them as given from then on.

    Raises
    ------
    UsageError
        If the protocol, or the value of a knob with choices, is not known, or an amount of augmentation is none.
    """

    cache: Path | str | None = knob(
        None, f"A feature store, or the folder that holds it.  [default: ${CACHE_VARIABLE}, else ./cache]", record=False
    )
    head: str = knob("recursive_joint_attention", "Fusion head.", choices=tuple(registry.HEADS))
    head_option: tuple[str, ...] = knob((), "An argument of the head as KEY=VALUE, e.g. recursions=2.")
    num_clips: int = knob(16, "Clips per window (T).", minimum=2)
    spacing: int = knob(32, "Frames between the clips of a window; a multiple of the cache's hop.", minimum=1)
    protocol: str = knob("default", "What sets the knobs that are not given.", choices=tuple(PROTOCOLS), record=False)
    batch_size: int = protocol_knob("batch_size", "Windows per training step.", minimum=1)
    epochs: int = protocol_knob("epochs", "Epochs at most.", minimum=1)
    learning_rate: float = protocol_knob("learning_rate", "Step size of Adam.", minimum=0.0)
    schedule: str = protocol_knob(
        "schedule",
        "How the step size changes: halved on a plateau, or tenfold from the seventh epoch on, then decaying.",
        choices=("plateau", "released"),
    )
    plateau: int = knob(3, "Epochs without a better validation CCC before the step size is halved.", minimum=1)
    patience: int = protocol_knob("patience", "Epochs without a better validation CCC before training ends.", minimum=1)
    gradient_clip: float = protocol_knob(
        "gradient_clip", "Largest norm of the gradient; 0 turns clipping off.", minimum=0.0
    )
    loss: str = protocol_knob(
        "loss",
        "1 - CCC, as it is scored, or as the release has it: summed over the targets and without a guard.",
        choices=("ccc", "released"),
    )
    windows: str = protocol_knob(
        "windows",
        "Windows trained on: all with a rated clip, or full ones whose clips have a rating in their last frames.",
        choices=("all", "complete"),
    )
    order: str = protocol_knob(
        "order", "Order of the windows: shuffled every epoch, or as recorded.", choices=("shuffled", "recorded")
    )
    overlap: int = protocol_knob(
        "overlap", "Clips that consecutive windows of a prediction share; shared ones are averaged.", minimum=0
    )
    amp: str = knob("off", "Mixed precision.", choices=("off", "bf16"))
    noise: float = knob(
        0.0, "Noise added to the features in training, in their standard deviations; 0 adds none.", minimum=0.0
    )
    drop_modality: float = knob(
        0.0, "Probability by which a window in training goes without its sound, or without its face.", minimum=0.0
    )
    mask_span: float = knob(
        0.0,
        "Largest share of a window's clips that a drawn span masks in training, one of the sound and one of the face.",
        minimum=0.0,
    )
    fold: str | None = knob(
        None,
        "Hold out fold I of N, as I/N, in place of the validation partition: the subjects of both partitions are "
        "spread over N folds.",
    )
    seed: tuple[int, ...] = knob((0,), "Seed of a run; give it several times for several runs.", minimum=0)
    out: Path | None = knob(
        None, "Folder of the runs.  [default: runs/<cache>/<head> beside the features]", record=False
    )
    resident: str = knob(
        "auto",
        "Hold the feature maps in this machine's memory (ram), in that of the device, or leave them where they are; "
        "auto takes a GPU's memory where they fit, and this machine's for maps that are compressed or on a server.",
        choices=("auto", "no", "ram", "device"),
        record=False,
    )
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.", record=False)

    def __post_init__(self) -> None:
        _refuse_unknown(self, "protocol")
        for name, value in PROTOCOLS[self.protocol].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.num_clips // 2 if value == HALF_A_WINDOW else value)
        _refuse_unknown(self, "schedule", "loss", "windows", "order", "amp", "resident")
        if self.fold is not None:
            parse_fold(self.fold)
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"--noise {self.noise:g}: expected a number of at least 0, for example 0.1")
        for name in ("drop_modality", "mask_span"):
            if not 0 <= getattr(self, name) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} {getattr(self, name):g}: expected a number from 0 to 1, for example 0.2")


def _refuse_unknown(options: ExtractOptions | TrainOptions, *names: str) -> None:
    """Refuse a value that is none of its knob's choices; the command line does, but Python may give any."""
    choices = {item.name: item.metadata["choices"] for item in fields(options)}
    for name in names:
        if getattr(options, name) not in choices[name]:
            raise UsageError(f"unknown {name} '{getattr(options, name)}'; known: {', '.join(choices[name])}")


@dataclass(frozen=True)
class AuditOptions:
    """Knobs of ``avfuse audit``."""

    root: Path = knob(help="Root folder of the corpus.", argument="ROOT")
    corpus: str = knob("aff_wild2", "How the folder is laid out.", choices=tuple(registry.CORPORA))
    corpus_option: tuple[str, ...] = knob((), "An argument of the corpus as KEY=VALUE, e.g. highest=5.")
    max_drift_s: float = knob(
        0.5, "Seconds by which sound and picture may differ in length before it counts as a problem.", minimum=0.0
    )
    max_lost: float = knob(
        0.02, "Share of a stream's packets that may fail before it counts as a problem.", minimum=0.0
    )
    num_workers: int = knob(0, "Recordings that are decoded side by side; 0 takes one per core.", minimum=0)
    format: str | None = knob(None, "Write the table in this format.", choices=tuple(registry.FORMATS))
    out: Path | None = knob(None, "File to write to instead of the terminal.", flag="--out")


@dataclass(frozen=True)
class PredictOptions:
    """Knobs of ``avfuse predict``."""

    runs: tuple[Path, ...] = knob(help="Runs whose predictions are averaged.", argument="RUN...")
    cache: Path | str | None = knob(
        None, f"A feature store, or the folder that holds it.  [default: ${CACHE_VARIABLE}, else ./cache]"
    )
    partition: str = knob("test", "Recordings to predict.", choices=PARTITIONS)
    csv: Path | None = knob(None, "Write one line per frame to this file.")
    submission: Path | None = knob(None, "Write the files of an ABAW submission to this folder.")
    template: Path | None = knob(
        None, "The organisers' list of rows: a file with a column image_location, or a folder of one file per video."
    )
    smoothing: tuple[str, ...] = knob(
        (), "Seconds of a centred moving mean, of every target or as TARGET=SECONDS.  [default: none]"
    )
    batch_size: int = knob(32, "Windows per forward pass.", minimum=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class ReportOptions:
    """Knobs of ``avfuse report``."""

    runs: tuple[Path, ...] = knob(help="Runs, or folders of runs.", argument="RUN...")
    title: str | None = knob(None, "Heading of the table.  [default: Validation CCC on DATA SET]")
    metric: tuple[str, ...] = knob(
        ("ccc",), "What to tabulate; may be given several times.", choices=tuple(registry.METRICS)
    )
    protocol: tuple[str, ...] = knob(
        ("strict",), f"How frames are scored, for every target or as TARGET=PROTOCOL: {', '.join(SCORING)}."
    )
    smoothing: tuple[str, ...] = knob(
        (), "Seconds of the moving mean of the smoothed protocol, of every target or as TARGET=SECONDS.  [default: 1]"
    )
    against: str | None = knob(
        None, "Head that the other rows are tested against.  [default: concat, else the first row]"
    )
    by: str | None = knob(None, "Split the scores of each row.", choices=BREAKDOWNS)
    resample: str = knob(
        "subjects", "What the intervals resample; frames are refused, as they are not independent.", choices=RESAMPLED
    )
    seed: int = knob(0, "Seed of resamples and permutations.", minimum=0)
    format: str | None = knob(None, "Write the table in this format.", choices=tuple(registry.FORMATS))
    out: Path | None = knob(None, "File to write to instead of the terminal.", flag="--out")


@dataclass(frozen=True)
class ImportOptions:
    """Knobs of ``avfuse checkpoint import``."""

    file: Path = knob(help="Checkpoint file (.pt, .pth or .safetensors).", argument="FILE")
    out: Path | None = knob(None, "The run to write.  [default: runs/imported/<file>-<digest>/seed-0 in the cache]")
    cache: Path | str | None = knob(None, "Score the run on the validation partition of this feature store, or folder.")
    batch_size: int = knob(32, "Windows per forward pass.", minimum=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N.")
