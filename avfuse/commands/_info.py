"""``avfuse cache info``: what made a store, and how much of what it holds."""

from typing import Any

import click

from avfuse.cache_options import CacheInfoOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.terminal import as_text, counted, print_json, print_rows, say, show_size


@click.command()
@knobs_of(CacheInfoOptions)
@json_flag
def info(as_json: bool, **knobs: Any) -> None:
    """Say what made STORE, and how much of what it holds."""
    from avfuse.inventory import describe_cache

    found = describe_cache(CacheInfoOptions(**knobs))
    if as_json:
        print_json(found)
        return
    rows = [("store", found.store), ("fingerprint", found.fingerprint)]
    rows += [("size", show_size(found.num_bytes)), ("changed (UTC)", found.changed[:16].replace("T", " "))]
    rows += _flat(found.settings) + _flat(found.provenance, "provenance.")
    print_rows(("cache", ""), rows)
    counts = [
        (name, f"{of.num_recordings:,}", f"{of.num_subjects:,}", f"{of.num_clips:,}", f"{of.num_minutes:.1f}")
        for name, of in found.partitions.items()
    ]
    print_rows(("partition", "recordings", "subjects", "clips", "minutes"), counts)
    arrays = [
        (
            name,
            of.dtype,
            show_size(of.num_value_bytes),
            "-" if of.num_file_bytes is None else show_size(of.num_file_bytes),
        )
        for name, of in found.arrays.items()
    ]
    print_rows(("array", "numbers", "values", "files"), arrays)
    for how, count in found.compression.items():
        say(f"compression: {how} ({counted(count, 'recording')})")
    for reason, count in found.failures.items():
        say(f"failed: {reason} ({counted(count, 'recording')})")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows, with dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", as_text(value))]
    return rows
