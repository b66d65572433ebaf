"""State dictionaries that others saved: read without running anything a file contains, and compared name by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from avfuse.schema import UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_NUMBERS = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary of a .pt, .pth or .safetensors file, without wrappers and without ``module.``.

    Raises
    ------
    UsageError
        If the file does not load as tensors, holds no state dictionary, or one name twice.
    """
    content = _read(path)
    while isinstance(content, dict):
        wrapped = [content[wrapper] for wrapper in _WRAPPERS if isinstance(content.get(wrapper), dict)]
        if not wrapped:
            break
        content = wrapped[0]
    items = content.items() if isinstance(content, dict) else ()
    if not items or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
        raise UsageError(f"{path} holds no state dictionary (names and tensors)")
    state = {key.removeprefix("module."): value for key, value in items}
    if len(state) < len(items):
        raise UsageError(f"{path} holds parameters twice, with and without 'module.' before their names")
    return state


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, prefix: str = "") -> None:
    """Compare a state dictionary with the one that a network wants, of which only shapes and types are read.

    Counts of batches, which only training uses, may be missing. `prefix` stands before the names in the file.

    Raises
    ------
    UsageError
        Naming the first parameter that is missing, of another shape, not made of finite numbers, or unexpected.
    """
    for key, value in wanted.items():
        if key in state:
            _check_tensor(state[key], value, path, prefix + key)
        elif not key.endswith("num_batches_tracked"):
            raise UsageError(f"{path} does not fit: parameter '{prefix}{key}' is missing")
    for key in state:
        if key not in wanted:
            raise UsageError(f"{path} does not fit: parameter {prefix + key!r} is unexpected")


def _check_tensor(given: Tensor, wanted: Tensor, path: Path, name: str) -> None:
    if given.layout != torch.strided or given.is_nested or given.is_meta or given.is_quantized:
        raise UsageError(f"{path} does not fit: '{name}' is no plain tensor")
    if given.shape != wanted.shape:
        raise UsageError(f"{path} does not fit: '{name}' is {tuple(given.shape)}, expected {tuple(wanted.shape)}")
    if wanted.is_floating_point() and given.dtype not in _FLOATS:
        raise UsageError(f"{path} does not fit: '{name}' holds {str(given.dtype).removeprefix('torch.')} numbers")
    if not given.to(wanted.dtype).isfinite().all():
        raise UsageError(f"{path} cannot be used: '{name}' holds values that are not finite")


class _Unread:
    """Stands for a NumPy number beside the weights, such as the score that a checkpoint was kept for."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Unread, name) for name in _NUMPY_NUMBERS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage the restricted unpickler raises whatever its stack machine runs into
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {found.group(1)}" if found else type(error).__name__
        raise UsageError(
            f"{path} does not load as a file of weights: only tensors in .pt, .pth or .safetensors are read, "
            f"never pickled objects ({what})"
        ) from error
