"""Heads and training states on disk: names, numbers and tensors only, no pickled classes.

A head is stored as its registered name, its arguments and its weights, so that `load_head` builds it again without
knowing what trained it. Files are written aside and renamed, and read with ``weights_only=True``.
"""

import io
from pathlib import Path
from typing import Any

import torch

from avfuse import registry
from avfuse.atomic import write_atomically
from avfuse.fusion import FusionHead
from avfuse.runs import HEAD_FILE
from avfuse.schema import UsageError

FORMAT_VERSION = 1


def build_head(name: str, arguments: dict[str, Any]) -> FusionHead:
    """Build a registered head.

    Raises
    ------
    UsageError
        If there is no head of that name, or it refuses a value.
    """
    head: FusionHead = registry.load("head", name)(**arguments)
    return head


def save_head(path: Path, name: str, arguments: dict[str, Any], head: FusionHead) -> None:
    """Write a head: `arguments` are what `build_head` was given."""
    save_state(
        path, {"head": name, "arguments": {**arguments, "targets": list(head.targets)}, "weights": head.state_dict()}
    )


def load_head(run: Path | str) -> FusionHead:
    """Return the trained head of a run, or of a head file, in evaluation mode.

    It is called as ``head(audio, video, mask=None, face=None)`` with cached features and gives the trace (B, T, E), in
    the order of ``head.targets``; see `avfuse.fusion`.

    Raises
    ------
    UsageError
        If there is no such file, or it does not hold a head.
    """
    path = Path(run) / HEAD_FILE if Path(run).is_dir() else Path(run)
    content = load_state(path)
    if not {"head", "arguments", "weights"} <= content.keys():
        raise UsageError(f"{path} holds no fusion head")
    try:
        head = build_head(content["head"], content["arguments"])
        head.load_state_dict(content["weights"])
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"{path} does not fit the head '{content['head']}': {reason}") from error
    return head.eval()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of numbers, names and tensors, atomically."""
    content = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, content)
    write_atomically(path, content.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises
    ------
    UsageError
        If the file is missing, damaged, of another version, or holds more than numbers, names and tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage the restricted unpickler raises whatever its stack machine runs into
        raise UsageError(f"{path} cannot be read as a checkpoint; remove it and train again") from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise UsageError(f"{path} is not a checkpoint of format version {FORMAT_VERSION}")
    return content
