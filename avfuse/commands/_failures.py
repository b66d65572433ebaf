"""``avfuse cache failures``: which recordings could not be used, and what was lost of those that could."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from avfuse.cache_options import CacheFailuresOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.terminal import counted, print_json, print_rows, say


@click.command()
@knobs_of(CacheFailuresOptions)
@json_flag
def failures(as_json: bool, **knobs: Any) -> None:
    """List the recordings that could not be used for STORE, each with its reason, and what was lost of the others."""
    from avfuse.inventory import list_failures

    found = list_failures(CacheFailuresOptions(**knobs))
    if as_json:
        print_json(found)
        return
    rows = [(item.recording, item.reason, _share(item.share), item.message) for item in found.failures]
    print_rows(("recording", "reason", "share", "what was found"), rows)
    for reason, count in sorted(Counter(item.reason for item in found.failures).items()):
        say(f"{reason}: {counted(count, 'recording')}")
    for item in found.incomplete:
        say(f"kept: {item.recording}: {item.message}")
    if not found.failures and not found.incomplete:
        say("no failure, and nothing lost")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
