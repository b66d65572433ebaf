"""State dictionaries that others saved: read without running anything a file contains, and compared name by name."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from avfuse.schema import UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary of a .pt, .pth or .safetensors file, without wrappers and without ``module.``.

    Raises
    ------
    UsageError
        If the file does not load as tensors, or holds no state dictionary.
    """
    content = _read(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    items = content.items() if isinstance(content, dict) else ()
    if not items or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
        raise UsageError(f"{path} holds no state dictionary (names and tensors)")
    return {key.removeprefix("module."): value for key, value in content.items()}


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Compare a state dictionary with the one that a network wants.

    Counts of batches, which only training uses, may be missing.

    Raises
    ------
    UsageError
        Naming the first parameter that is missing, of another shape, not made of finite numbers, or unexpected.
    """
    for key, value in wanted.items():
        if key not in state:
            if not key.endswith("num_batches_tracked"):
                raise UsageError(f"{path} does not fit: parameter '{key}' is missing")
            continue
        given = state[key]
        if given.shape != value.shape:
            raise UsageError(f"{path} does not fit: '{key}' is {tuple(given.shape)}, expected {tuple(value.shape)}")
        if given.is_complex() or given.is_sparse or given.is_quantized:
            raise UsageError(f"{path} does not fit: '{key}' holds {str(given.dtype).removeprefix('torch.')} numbers")
        if not given.isfinite().all():
            raise UsageError(f"{path} cannot be used: '{key}' holds values that are not finite")
    for key in state:
        if key not in wanted:
            raise UsageError(f"{path} does not fit: parameter '{key}' is unexpected")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage the restricted unpickler raises whatever its stack machine runs into
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise UsageError(
            f"{path} does not load as a file of weights: only tensors in .pt, .pth or .safetensors are read, "
            f"never pickled objects ({type(error).__name__}: {reason})"
        ) from error
