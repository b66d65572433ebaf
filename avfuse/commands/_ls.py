"""``avfuse cache ls``: the stores in a folder, or on a server."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from avfuse.cache_options import CacheListOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.terminal import print_json, print_rows, say, show_size

if TYPE_CHECKING:
    from avfuse.inventory import StoreEntry


@click.command("ls")
@knobs_of(CacheListOptions)
@json_flag
def list_(as_json: bool, **knobs: Any) -> None:
    """List the feature stores in PLACE."""
    from avfuse.inventory import list_stores

    stores = list_stores(CacheListOptions(**knobs))
    if as_json:
        print_json({"stores": [vars(store) for store in stores]})
        return
    rows = [
        (
            PurePosixPath(store.store).name,
            f"{store.num_recordings:,}",
            f"{store.num_failures:,}",
            f"{store.num_clips:,}",
            show_size(store.num_bytes),
            _shorten(store) if store.state else store.storage,
            store.changed[:16].replace("T", " "),
        )
        for store in stores
    ]
    columns = ("store", "recordings", "failures", "clips", "size", "maps", "changed (UTC)")
    print_rows(columns, rows)
    for store in stores:
        if store.state:
            say(store.state if _names_itself(store) else f"{store.store}: {store.state}")


def _shorten(store: StoreEntry) -> str:
    """Return why a store cannot be used, without what to do about it, which no cell of a table has room for."""
    return "cannot be read" if _names_itself(store) else store.state.partition(";")[0]


def _names_itself(store: StoreEntry) -> bool:
    return store.state.startswith(store.store)
