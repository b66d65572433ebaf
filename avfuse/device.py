"""Where the numbers are computed, and in which precision the hardware is good."""

import ctypes
import math
import os
import re
import sys
from pathlib import Path

import torch

from avfuse.schema import UsageError

_CONTAINERS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_DROPPED = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def choose_device(name: str) -> torch.device:
    """Return the device of a name: ``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, separator, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind, 0)
    if count == 0 or (separator and (not index.isdecimal() or int(index) >= count)):
        cuda = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise UsageError(f"device '{name}' is not here; there is: auto, cpu{', ' + cuda if cuda else ''}")
    return torch.device(name)


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a device could be taken now, in bytes; of a CPU's, what the system calls available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits: list[float] = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if (found := _AVAILABLE.search(_read(Path("/proc/meminfo")))) is not None:
        limits.append(1024 * int(found[1]))
    limits += [most - used for most, used in map(_container_bytes, _CONTAINERS)]
    return max(0, int(min(limits)))


def _container_bytes(files: tuple[str, str]) -> tuple[float, int]:
    """Return how much memory this container may take, and takes; files that it has read can be dropped from it."""
    most, used = (_read(Path("/sys/fs/cgroup") / file).strip() for file in files)
    if not (most.isdecimal() and used.isdecimal()):
        return math.inf, 0
    dropped = _DROPPED.findall(_read((Path("/sys/fs/cgroup") / files[0]).with_name("memory.stat")))
    return int(most), int(used) - max(map(int, dropped), default=0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for it to take again, if it runs on glibc; else do nothing.

    A training step on a CPU frees some hundred megabytes at its end. As it comes, glibc hands them back to the system
    each time, and the next step waits for them page by page. Single buffers of 32 MB or more still come and go.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def keep_fp32(device: torch.device) -> None:
    """Let this process compute in float32 on a GPU what is to be computed in it.

    PyTorch rounds what goes into convolutions to 10 bits there (TF32), unless it is told not to.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def is_broken(device: torch.device) -> bool:
    """Whether a device cannot even count; a GPU is lost to a process after some errors, whoever made them."""
    try:
        return float(torch.ones(2, device=device).sum()) != 2.0
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True


def choose_precision(name: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` means bf16 where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
