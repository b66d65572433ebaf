"""The knobs of ``avfuse cache``: one frozen dataclass per command, declared as those of `avfuse.options` are."""

from dataclasses import dataclass
from pathlib import Path

from avfuse.knobs import knob
from avfuse.options import CACHE_VARIABLE

_STORE_HELP = f"A feature store, or the folder that holds it.  [default: ${CACHE_VARIABLE}, else ./cache]"
_PLACE_HELP = f"Folder for everything that can be recomputed.  [default: ${CACHE_VARIABLE}, else ./cache]"


@dataclass(frozen=True)
class CacheVerifyOptions:
    """Knobs of ``avfuse cache verify``."""

    store: Path | str | None = knob(None, _STORE_HELP, argument="[STORE]")
    recording: tuple[str, ...] = knob((), "Check this recording; may be given several times.  [default: all]")
    num_workers: int = knob(0, "Recordings that are checked side by side; 0 takes one per core.", minimum=0)


@dataclass(frozen=True)
class CacheRepairOptions:
    """Knobs of ``avfuse cache repair``."""

    store: Path | str | None = knob(None, _STORE_HELP, argument="[STORE]")
    num_workers: int = knob(0, "Recordings that are checked side by side; 0 takes one per core.", minimum=0)


@dataclass(frozen=True)
class CacheListOptions:
    """Knobs of ``avfuse cache ls``."""

    place: Path | str | None = knob(None, _PLACE_HELP, argument="[PLACE]")


@dataclass(frozen=True)
class CacheInfoOptions:
    """Knobs of ``avfuse cache info``."""

    store: Path | str | None = knob(None, _STORE_HELP, argument="[STORE]")


@dataclass(frozen=True)
class CacheDiffOptions:
    """Knobs of ``avfuse cache diff``."""

    first: Path | str = knob(help="A feature store, or the folder that holds it.", argument="A")
    second: Path | str = knob(help="The one that it is compared with.", argument="B")


@dataclass(frozen=True)
class CacheCollectOptions:
    """Knobs of ``avfuse cache gc``."""

    place: Path | str | None = knob(None, _PLACE_HELP, argument="[PLACE]")
    superseded: bool = knob(
        False, "Also remove, of the stores of one data set made with other settings, all but the one changed last."
    )
