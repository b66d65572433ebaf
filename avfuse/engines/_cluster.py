"""A connection to Ray: to one that is started here for as long as it is wanted, or to a cluster that is there."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from avfuse.schema import UsageError

try:
    import ray
    import ray._private.utils
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
    # Deaths of processes are logged, as for every engine; Ray would write them to standard output, too.
    with _replaced(ray._private.worker, "print_to_stdstream"):
        try:
            _begin(address, num_cpus)
            yield
        finally:
            _end()


def _end() -> None:
    ray.shutdown()
    # It has SIGTERM end this process at once from then on, past Python, which believes its handler to be in place.
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _begin(address: str, num_cpus: int) -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    room: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        with _signals_kept(are_held=not address):
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **room)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster {address} cannot be joined" if address else "Ray cannot be started"
        raise UsageError(f"{where}: {first_line(error)}") from error


@contextmanager
def _signals_kept(*, are_held: bool) -> Iterator[None]:
    """Keep Ray from answering the signals that ask this process to end: they are not Ray's.

    Held, they come when Ray is there: one that is half started cannot be ended, and some of its processes would stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    came: list[int] = []
    for number, handler in before.items():
        if are_held and handler not in (None, signal.SIG_IGN):
            signal.signal(number, lambda number, _: came.append(number))
    try:
        with _replaced(ray._private.utils, "set_sigterm_handler"):
            yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for came_number in dict.fromkeys(came):
            signal.raise_signal(came_number)


@contextmanager
def _replaced(module: ModuleType, name: str) -> Iterator[None]:
    """Let a function of Ray do nothing."""
    before = getattr(module, name, None)
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, before)


def room_for(takes: Mapping[str, float]) -> int:
    """Return how many workers fit the cluster, each of which takes so many CPUs and GPUs of one machine.

    Raises
    ------
    UsageError
        If none does.
    """
    machines: list[dict[str, float]] = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    room = sum(min(int(has.get(name, 0) / amount) for name, amount in takes.items() if amount) for has in machines)
    if room == 0:
        most = {name: max((has.get(name, 0) for has in machines), default=0) for name in takes}
        told = " and ".join(f"{amount:g} {name}s" for name, amount in most.items())
        wants = ", ".join(f"num_{name.lower()}s={amount:g}" for name, amount in takes.items())
        raise UsageError(
            f"no worker fits the Ray cluster, whose machines have up to {told}; give less with --engine-option: {wants}"
        )
    return room


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says anything, or its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
