"""``avfuse cache export`` and ``avfuse cache import``: caches and features that go from one machine to another."""

from pathlib import Path
from typing import Any

import click

from avfuse.cache_options import CacheExportOptions, CacheImportOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.schema import UsageError
from avfuse.terminal import print_json, print_rows, show_count, show_size

HDF5_SUFFIXES, MAPPING_SUFFIX = (".h5", ".hdf5"), ".toml"


@click.command()
@knobs_of(CacheExportOptions)
@json_flag
def export(as_json: bool, **knobs: Any) -> None:
    """Write a whole cache into the one HDF5 file FILE.

    Plain h5py reads it, avfuse trains from it with --cache FILE, and avfuse cache import gives the folder back, byte
    for byte.
    """
    from avfuse.hdf5 import export_cache

    with show_count("cache export", "recordings") as show:
        summary = export_cache(
            CacheExportOptions(**knobs),
            show,
        )
    if as_json:
        print_json(summary)
        return
    rows = [
        ("recordings", f"{summary.num_recordings}"),
        ("failures", f"{summary.num_failures}"),
        ("clips", f"{summary.num_clips:,}"),
        ("size", show_size(summary.num_bytes)),
        ("store", summary.store),
        ("file", summary.file),
    ]
    print_rows(("cache export", ""), rows)


@click.command("import")
@knobs_of(CacheImportOptions)
@json_flag
def import_(as_json: bool, **knobs: Any) -> None:
    """Put what FILE holds, or names, into a feature store.

    FILE is a cache that was exported (.h5, .hdf5), or a mapping (.toml) that says where features that others extracted
    lie; docs/features-of-others.md tells how one is written. The same command again does only what is missing.
    """
    options = CacheImportOptions(**knobs)
    is_mapping = _is_mapping(options.file)
    with show_count("cache import", "recordings") as show:
        summary: Any
        if is_mapping:
            from avfuse.foreign import import_features

            summary = import_features(options, show)
        else:
            from avfuse.hdf5 import import_cache

            summary = import_cache(options, show)
    if as_json:
        print_json(summary)
    else:
        _print_import(summary)


def _is_mapping(file: Path) -> bool:
    """Whether a file is a mapping of features of others rather than a cache; refuse what is neither."""
    from avfuse.arrays import PICKLE_SUFFIXES, PICKLED

    if file.suffix in PICKLE_SUFFIXES:
        raise UsageError(f"{file}: {PICKLED}")
    if file.suffix not in (*HDF5_SUFFIXES, MAPPING_SUFFIX):
        raise UsageError(
            f"{file} is neither an exported cache ({', '.join(HDF5_SUFFIXES)}) nor a mapping ({MAPPING_SUFFIX}) that "
            "says where features of others lie; docs/features-of-others.md tells how one is written"
        )
    return file.suffix == MAPPING_SUFFIX


def _print_import(summary: Any) -> None:
    rows = [
        ("recordings", f"{summary.num_recordings}"),
        ("imported now", f"{summary.num_imported} ({summary.num_clips:,} clips)"),
        ("there before", f"{summary.num_present}"),
    ]
    for name, words in (("num_failures", "failures"), ("num_unrated", "unrated"), ("num_cut", "cut to the shortest")):
        if hasattr(summary, name):
            rows.append((words, f"{getattr(summary, name)}"))
    print_rows(("cache import", ""), (*rows, ("store", summary.store)))
