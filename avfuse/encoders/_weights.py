"""Weights of the encoders: named, found, checked and loaded without running anything a file contains.

A name is one of

- ``random:SEED``: the architecture's own initialisation under that seed;
- ``PATH`` or ``PATH#sha256=HEX``: a .pt, .pth or .safetensors file, its digest checked when given;
- ``tsav:PATH``: the two-stream checkpoint of Kuhnke et al. (ABAW 2020), of which an encoder takes its own stream;
- a torchvision enum such as ``R3D_18_Weights.KINETICS400_V1``, looked for in ``$TORCH_HOME/hub/checkpoints``.

Nothing is fetched unless the caller allows it. Keys must match exactly, but for the classification layer, which an
encoder does not have.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from avfuse.schema import UsageError
from avfuse.weights import check_state, file_digest, read_state

DOWNLOAD_SILENCE_S, DOWNLOAD_LIMIT_S = 30, 1800  # how long a server may say nothing, and take in all


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded into a network: `state_sha256` is the digest of its parameters and buffers, by name."""

    spec: str
    state_sha256: str
    path: str | None = None
    file_sha256: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the record."""
        return {"weights": self.spec, "file": Path(self.path).name if self.path else None, "sha256": self.file_sha256}


def load_into(
    make: Callable[[], nn.Module],
    spec: str,
    *,
    tsav_prefix: str,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    allow_download: bool,
) -> tuple[nn.Module, LoadedWeights]:
    """Build a network and load the named weights into it.

    Parameters
    ----------
    make : callable
        Builds the network without its classification layer.
    spec : str
        Name of the weights; see the module's docstring.
    tsav_prefix : str
        Prefix of this network's parameters in a tsav checkpoint.
    adapt : callable
        Brings a foreign state dictionary into the network's input layout (number of input channels).
    allow_download : bool
        Whether torchvision weights may be fetched.

    Raises
    ------
    UsageError
        If the weights are missing, damaged or of another architecture; the message names the file, the digest or the
        first parameter that does not fit.
    """
    kind, _, rest = spec.partition(":")
    if kind == "random":
        if not rest.isdecimal() or int(rest) >= 2**63:
            raise UsageError(f"weights '{spec}' are not random:SEED with a whole number, for example random:0")
        network = _seeded(make, int(rest))
        return network, LoadedWeights(spec, state_digest(network.state_dict()))
    network = _seeded(make, 0)
    path, expected = _find(rest if kind == "tsav" else spec, allow_download)
    digest = _checked_digest(path, expected)
    state = read_state(path)
    if kind == "tsav":
        state = _strip(state, tsav_prefix, path)
    state = {key: value for key, value in adapt(state).items() if not key.startswith("fc.")}
    _load_strictly(network, state, path, tsav_prefix if kind == "tsav" else "")
    return network, LoadedWeights(spec, state_digest(network.state_dict()), str(path), digest)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, shapes and bytes of a state dictionary, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _find(spec: str, allow_download: bool) -> tuple[Path, str | None]:
    """Return the file that a name means and the digest it must have, or the beginning of one."""
    text, separator, digest = spec.partition("#sha256=")
    if separator and not re.fullmatch("[0-9a-fA-F]{8,64}", digest):
        raise UsageError(f"weights '{spec}': after #sha256= come 8 to 64 hexadecimal digits")
    path = Path(text).expanduser()
    if path.is_file():
        return path, digest or None
    name, _, member = text.partition(".")
    enums = {enum.__name__: enum for enum in _torchvision_enums()}
    if name not in enums:
        raise UsageError(
            f"weights '{spec}': no such file, and not a torchvision name such as R3D_18_Weights.KINETICS400_V1 "
            "or random:0; give one of these or the path of a .pt, .pth or .safetensors file"
        )
    if member not in enums[name].__members__:
        raise UsageError(f"weights '{spec}': {name} has {', '.join(enums[name].__members__)}")
    path, stamp = _find_torchvision(spec, enums[name][member].url, allow_download)
    return path, digest or stamp


def _torchvision_enums() -> list[Any]:
    return [torchvision.models.get_model_weights(name) for name in ("r3d_18", "r2plus1d_18", "mc3_18", "resnet18")]


def _find_torchvision(spec: str, url: str, allow_download: bool) -> tuple[Path, str | None]:
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    stamp = re.search(r"-([0-9a-f]{8,})\.", name)
    if not path.is_file() and allow_download:
        _download(url, path, stamp.group(1) if stamp else None)
    if not path.is_file():
        raise UsageError(
            f"weights '{spec}' are not here: looked for {path}. Copy {name} there from a connected machine, "
            "add --allow-download, or name other weights: a path, or random:0 to try things out"
        )
    return path, stamp.group(1) if stamp else None


def _download(url: str, path: Path, expected: str | None) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + DOWNLOAD_LIMIT_S
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SILENCE_S) as response, aside.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"not done after {DOWNLOAD_LIMIT_S} s")
        if expected and not file_digest(aside).startswith(expected):  # the next run would find it and stop there
            raise UsageError(f"{url} came in part or altered: its sha256 does not begin with {expected}; try again")
        aside.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise UsageError(f"{url} could not be fetched ({error}); copy the file to {path} by hand") from error
    finally:
        aside.unlink(missing_ok=True)


def _checked_digest(path: Path, expected: str | None) -> str:
    digest = file_digest(path)
    if expected and not digest.startswith(expected.lower()):
        raise UsageError(f"{path} is not the file that was asked for: its sha256 is {digest}, expected {expected}")
    return digest


def _strip(state: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not own:
        raise UsageError(f"{path} is not a tsav checkpoint: no parameter begins with '{prefix}'")
    return own


def _load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path, prefix: str) -> None:
    wanted = network.state_dict()
    check_state(state, wanted, path, prefix)
    network.load_state_dict({**wanted, **state})
