"""The run directory: what a training leaves behind, readable without torch.

::

    <run>/run.json          what was asked for, on which features, with which versions, and whether it is complete
    <run>/history.jsonl     one line per epoch: losses and CCC
    <run>/predictions.npz   per-frame predictions of the validation partition, with targets and times
    <run>/head.pt           the best head: name, arguments, weights (see `avfuse.checkpoint`)
    <run>/state.pt          what an interrupted training needs to go on; removed when it is complete

Every file is written aside and renamed; `run.json` with ``"complete": true`` comes last.
"""

import dataclasses
import io
import json
import os
import subprocess
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avfuse import __version__, registry
from avfuse.atomic import plain_values, write_atomically
from avfuse.schema import Predictions, Range, UsageError
from avfuse.spec import tell_differences

FORMAT_VERSION = 2
RUN_FILE = "run.json"
HISTORY_FILE = "history.jsonl"
PREDICTIONS_FILE = "predictions.npz"
HEAD_FILE = "head.pt"
STATE_FILE = "state.pt"


@dataclass(frozen=True)
class RunRecord:
    """What identifies a run.

    Attributes
    ----------
    head : str
        Name of the fusion head.
    head_options : dict
        The head's own arguments, as given.
    targets : tuple of str
    seed : int
    options : dict
        Every other training option that shapes the weights.
    fingerprint : str
        Fingerprint of the feature cache that the run was trained on.
    dataset : str
        Name of the data set in that cache.
    features : str
        Digest of the training and validation recordings that the cache held.
    versions : dict
        Versions of avfuse and of the packages that shape the numbers.
    revision : str
        What code made the run, see `code_revision`; where other code took it up, both in order: "first, second".
    summary : dict
        Filled when training ends: best epoch, epochs, number of parameters, seconds, validation CCC per target.
    complete : bool
    ranges : tuple of (float, float) or None
        Lowest and highest rating of each target; None where the corpus declares none, empty in records of before.
    hop : int
        Frames between two clips: 1 where every frame was predicted by itself, 0 where the record does not say.
    settings : dict
        Settings of the features, the `CacheSpec` as JSON; empty in records of before.
    """

    head: str
    head_options: dict[str, Any]
    targets: tuple[str, ...]
    seed: int
    options: dict[str, Any]
    fingerprint: str
    dataset: str
    features: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    revision: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    ranges: tuple[Range | None, ...] = ()
    hop: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def declared_ranges(self) -> dict[str, Range]:
        """The range of each target of which the corpus declares one."""
        return {target: known for target, known in zip(self.targets, self.ranges, strict=False) if known is not None}

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to be the same training."""
        return {
            "head": self.head,
            "head_options": self.head_options,
            "targets": list(self.targets),
            "seed": self.seed,
            "options": self.options,
            "fingerprint": self.fingerprint,
            "features": self.features,
        }


def code_revision(package: Path = Path(__file__).parent) -> str:
    """Return what code a package is: the commit of the checkout that it lies in, else the version of avfuse.

    The commit is twelve digits, with "+changes" behind them where a tracked file of the package differs from it. A
    checkout counts if it tracks the package: an environment inside somebody's repository does not make it theirs.
    """
    commit = _git(package, "rev-parse", "HEAD")
    if not commit or not _git(package, "ls-files", "--", "__init__.py"):
        return __version__
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return commit[:12] + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    """Return what git says in a folder; nothing, where there is no git or it refuses."""
    command = ("git", "--no-optional-locks", "-C", str(folder), *arguments)
    try:
        return subprocess.run(command, capture_output=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def make_folder(run: Path) -> None:
    """Make the folder of a run.

    Raises
    ------
    UsageError
        If it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{run} cannot be made ({error.strerror or error}); name another folder with --out") from error


def write_run(run: Path, record: RunRecord) -> None:
    """Write `run.json`, making the folder where needed."""
    make_folder(run)
    text = json.dumps(plain_values(dataclasses.asdict(record)), indent=2, sort_keys=True)
    write_atomically(run / RUN_FILE, text.encode() + b"\n")


def read_run(run: Path) -> RunRecord:
    """Read `run.json`.

    Raises
    ------
    UsageError
        If the folder holds no run, or one of a format this version does not know.
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise UsageError(f"{run} is not a run: it holds no {RUN_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} has format version {version}; this avfuse reads {FORMAT_VERSION}: "
                "make the run again with this one, or read it with the one that made it"
            )
        ranges = tuple(item and (float(item[0]), float(item[1])) for item in values.get("ranges", ()))
        return RunRecord(**{**values, "targets": tuple(values["targets"]), "ranges": ranges})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a run record ({error}); remove {run} and train it again") from error


def is_complete(run: Path, record: RunRecord) -> bool:
    """Tell whether a folder holds a run complete, with all that it left behind.

    Raises
    ------
    UsageError
        If it holds another run.
    """
    if not (run / RUN_FILE).is_file():
        return False
    found = read_run(run)
    if found.identity != record.identity:
        different = sorted(key for key, value in record.identity.items() if found.identity[key] != value)
        told = tell_differences(found.settings, record.settings)
        raise UsageError(
            f"{run} holds a run with another {', '.join(different)}{f' ({told})' if told else ''}; "
            "give another --out or remove it"
        )
    return found.complete and all((run / name).is_file() for name in (HEAD_FILE, PREDICTIONS_FILE))


def common_folder(runs: Iterable[Path]) -> Path:
    """Return the folder below which every run stands as ROW/SEED."""
    return Path(os.path.commonpath([run.parent.parent for run in runs]))


def find_runs(places: Iterable[Path]) -> list[Path]:
    """Return every run in the given folders: a place is a run itself or holds runs at any depth.

    Raises
    ------
    UsageError
        If a place does not exist or holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            what = "is a file" if place.exists() else "does not exist"
            raise UsageError(f"{place} {what}; give a run or a folder of runs")
        inside = [place] if (place / RUN_FILE).is_file() else sorted(path.parent for path in place.rglob(RUN_FILE))
        if not inside:
            raise UsageError(f"{place} holds no run (no {RUN_FILE} at any depth); train one with: avfuse fuse-train")
        found.update(dict.fromkeys(path.resolve() for path in inside))
    return list(found)


def read_history(run: Path) -> list[dict[str, Any]]:
    """Read `history.jsonl`; an absent file is an empty history, a torn last line is left out, None is undefined.

    Raises
    ------
    UsageError
        If a line is damaged.
    """
    path = run / HISTORY_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1] if line]
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is damaged ({error}); remove {run} and train it again") from error


def write_history(run: Path, epochs: Sequence[dict[str, Any]]) -> None:
    """Replace `history.jsonl`."""
    write_atomically(run / HISTORY_FILE, "".join(json.dumps(plain_values(epoch)) + "\n" for epoch in epochs).encode())


def write_predictions(run: Path, predictions: Sequence[Predictions]) -> None:
    """Write the predictions of all recordings to `predictions.npz`, frames one after another."""
    content = io.BytesIO()
    np.savez(
        content,
        recording=np.array([p.recording for p in predictions], dtype=np.str_),
        subject=np.array([p.subject for p in predictions], dtype=np.str_),
        partition=np.array([p.partition for p in predictions], dtype=np.str_),
        targets=np.array(predictions[0].targets, dtype=np.str_),
        num_frames=np.array([len(p.time_s) for p in predictions]),
        time_s=np.concatenate([p.time_s for p in predictions]),
        prediction=np.concatenate([p.prediction_FE for p in predictions]),
        target=np.concatenate([p.target_FE for p in predictions]),
        face=np.concatenate([p.face_F for p in predictions]),
    )
    write_atomically(run / PREDICTIONS_FILE, content.getvalue())


def read_predictions(run: Path) -> list[Predictions]:
    """Read `predictions.npz`, one item per recording.

    Raises
    ------
    UsageError
        If the run has no predictions, or damaged ones.
    """
    path = run / PREDICTIONS_FILE
    if not path.is_file():
        if "weights" in read_run(run).options:
            raise UsageError(f"{run} was imported without a cache to score it on; import it again with --cache")
        raise UsageError(f"{run} holds no {PREDICTIONS_FILE}: its training did not end; start it again to go on")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _unpack_predictions(arrays)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); remove {run} and train it again") from error


def _unpack_predictions(arrays: Mapping[str, Any]) -> list[Predictions]:
    ends = np.cumsum(arrays["num_frames"])[:-1]
    parts = {name: np.split(arrays[name], ends) for name in ("time_s", "prediction", "target", "face")}
    names = {name: [str(text) for text in arrays[name]] for name in ("recording", "subject", "partition", "targets")}
    return [
        Predictions(
            recording=names["recording"][i],
            subject=names["subject"][i],
            partition=names["partition"][i],
            targets=tuple(names["targets"]),
            time_s=parts["time_s"][i],
            prediction_FE=parts["prediction"][i],
            target_FE=parts["target"][i],
            face_F=parts["face"][i],
        )
        for i in range(len(names["recording"]))
    ]


def ccc_by_target(predictions: Sequence[Predictions]) -> dict[str, float]:
    """Return the CCC of each target over the rated frames of all recordings together.

    It is NaN where it is not defined: so also where a head diverged, and what it predicts is not finite.

    Raises
    ------
    ValueError
        Beginning with the name of a target whose ratings cannot be scored.
    """
    ccc = registry.load("metric", "ccc")
    prediction_FE = np.concatenate([item.prediction_FE for item in predictions])
    target_FE = np.concatenate([item.target_FE for item in predictions])
    scores: dict[str, float] = {}
    for target, prediction_F, target_F in zip(predictions[0].targets, prediction_FE.T, target_FE.T, strict=True):
        try:
            scores[target] = float(ccc(prediction_F, target_F)) if np.isfinite(prediction_F).all() else float("nan")
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from error
    return scores
