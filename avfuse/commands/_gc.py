"""``avfuse cache gc``: what nobody needs any more is removed, if it is wished."""

import dataclasses
import sys
from pathlib import PurePosixPath
from typing import Any

import click

from avfuse.cache_options import CacheCollectOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.schema import UsageError
from avfuse.terminal import counted, print_json, print_rows, say, show_size


@click.command()
@knobs_of(CacheCollectOptions)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_flag
def gc(as_json: bool, yes: bool, **knobs: Any) -> None:
    """List what nobody needs any more in PLACE, ask, and remove it.

    That is what dead writers left, what a repair set aside, and stores of a format that this avfuse no longer reads.
    What a living writer is at stays. With --json nothing is removed without --yes.
    """
    from avfuse.leftovers import find_leftovers, remove_leftovers

    found = find_leftovers(CacheCollectOptions(**knobs))
    if as_json:
        num_freed = remove_leftovers(found.found) if yes else 0
        print_json({**dataclasses.asdict(found), "num_bytes_freed": num_freed})
        return
    kinds = [*((item, item.kind) for item in found.found), *((item, "kept") for item in found.kept)]
    if kinds:
        rows = [(PurePosixPath(item.path).name, kind, show_size(item.num_bytes), item.reason) for item, kind in kinds]
        print_rows(("what", "kind", "size", "why"), rows)
    say(f"{found.place}: {counted(len(found.found), 'left-over')}, {show_size(found.num_bytes)}")
    if found.found and (yes or _agrees(len(found.found))):
        say(f"freed {show_size(remove_leftovers(found.found))}")


def _agrees(count: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"{counted(count, 'left-over')} would be removed; nobody can be asked here, say so with --yes")
    try:
        return click.confirm("Remove them?", err=True)
    except click.Abort:  # the end of the input
        return False
