"""A connection to Ray: to one that is started here for as long as it is wanted, or to a cluster that is there."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from avfuse.schema import UsageError

try:
    import ray
    import ray._private.worker
    from ray.exceptions import RayError
except ImportError as error:
    raise UsageError(
        f"engine 'ray' needs a package that is missing ({error.name}); install it with: pip install 'avfuse[ray]'"
    ) from error

# Nothing is reported to the makers of Ray, and a worker that takes no GPU sees none.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


@contextmanager
def connected(address: str, num_cpus: int) -> Iterator[None]:
    """Join the cluster at an address, or start Ray here with room for as many CPUs; end what was begun.

    A connection that this process has already is used, and kept.

    Raises
    ------
    UsageError
        If that cannot be.
    """
    if ray.is_initialized():
        yield
        return
    with _silent():
        _begin(address, num_cpus)
        try:
            yield
        finally:
            ray.shutdown()


def _begin(address: str, num_cpus: int) -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    room: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **room)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        ray.shutdown()
        where = f"the Ray cluster {address} cannot be joined" if address else "Ray cannot be started"
        raise UsageError(f"{where}: {first_line(error)}") from error
    finally:
        # A Ray that is started takes the signal that asks this process to end; it is not Ray's to answer.
        if threading.current_thread() is threading.main_thread() and ends is not None:
            signal.signal(signal.SIGTERM, ends)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from writing to standard output of every process that dies: that is logged here, as for every engine."""
    worker, name = ray._private.worker, "print_to_stdstream"
    before = getattr(worker, name, None)
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


def room_for(takes: Mapping[str, float]) -> int:
    """Return how many workers fit the cluster, each of which takes so many CPUs and GPUs.

    Raises
    ------
    UsageError
        If none does.
    """
    there: dict[str, float] = ray.cluster_resources()
    room = min(int(there.get(name, 0) / amount) for name, amount in takes.items() if amount)
    if room == 0:
        has = " and ".join(f"{there.get(name, 0):g} {name}s" for name in takes)
        wants = ", ".join(f"num_{name.lower()}s={amount:g}" for name, amount in takes.items())
        raise UsageError(f"no worker fits the Ray cluster, which has {has}; give less with --engine-option: {wants}")
    return room


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says anything, or its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
