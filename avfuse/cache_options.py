"""The knobs of ``avfuse cache``: one frozen dataclass per command, declared as those of `avfuse.options` are."""

from dataclasses import dataclass
from pathlib import Path

from avfuse.knobs import knob
from avfuse.options import CACHE_VARIABLE, COMPRESSIONS, DTYPES, MAPS
from avfuse.schema import FAILURE_REASONS

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
class CacheFailuresOptions:
    """Knobs of ``avfuse cache failures``."""

    store: Path | str | None = knob(None, _STORE_HELP, argument="[STORE]")
    reason: tuple[str, ...] = knob(
        (), "List those of this reason; may be given several times.  [default: all]", choices=tuple(FAILURE_REASONS)
    )


@dataclass(frozen=True)
class CacheDiffOptions:
    """Knobs of ``avfuse cache diff``."""

    first: Path | str = knob(help="A feature store, or the folder that holds it.", argument="A")
    second: Path | str = knob(help="The one that it is compared with.", argument="B")


@dataclass(frozen=True)
class CacheShrinkOptions:
    """Knobs of ``avfuse cache shrink``."""

    store: Path | str | None = knob(None, _STORE_HELP, argument="[STORE]")
    dtype: str | None = knob(
        None,
        "Numbers of the maps: two bytes each, or one, with a scale per channel and recording.  [default: as they are]",
        choices=DTYPES,
    )
    maps: str | None = knob(
        None, "Keep maps whole, or their mean over the cells.  [default: as they are]", choices=MAPS
    )
    compress: str | None = knob(
        None,
        "Compress the maps, or let them be plain; it changes no value.  [default: as they are]",
        choices=COMPRESSIONS,
    )
    run: tuple[Path, ...] = knob(
        (),
        "Say what the smaller maps cost this run, trained on STORE, or the runs in this folder; may be given several "
        "times.",
    )
    replace: bool = knob(False, "Remove STORE when the smaller one is there and verified.")
    out: Path | str | None = knob(
        None, "Folder in whose `features` the smaller store is put.  [default: that of STORE]", flag="--out"
    )
    num_workers: int = knob(0, "Recordings that are re-encoded side by side; 0 takes one per core.", minimum=0)
    device: str = knob("auto", "Where runs predict: auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class CacheCollectOptions:
    """Knobs of ``avfuse cache gc``."""

    place: Path | str | None = knob(
        None,
        "Folder for everything that can be recomputed, the features in it, or one store.  "
        f"[default: ${CACHE_VARIABLE}, else ./cache]",
        argument="[PLACE]",
    )
    superseded: bool = knob(
        False,
        "Also remove, of the stores of one data set made with other settings, those of which a later one holds every "
        "recording.",
    )


@dataclass(frozen=True)
class CacheExportOptions:
    """Knobs of ``avfuse cache export``."""

    file: Path = knob(help="HDF5 file to write (.h5 or .hdf5).", argument="FILE")
    cache: Path | str | None = knob(None, _STORE_HELP)


@dataclass(frozen=True)
class CacheImportOptions:
    """Knobs of ``avfuse cache import``."""

    file: Path = knob(
        help="Exported cache (.h5, .hdf5), or mapping of the features of others (.toml).", argument="FILE"
    )
    cache: Path | str | None = knob(None, _PLACE_HELP)
    allow_leaks: bool = knob(
        False, "Go on where a subject or a feature is in two partitions: scores are then too good."
    )
