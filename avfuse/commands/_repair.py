"""``avfuse cache repair``: what is damaged in a store is set aside."""

from typing import Any

import click

from avfuse.cache_options import CacheRepairOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.terminal import counted, print_json, print_rows, say, show_count


@click.command()
@knobs_of(CacheRepairOptions)
@json_flag
def repair(as_json: bool, **knobs: Any) -> None:
    """Set aside what is damaged in STORE, so that the next extract, or import, makes it anew, and nothing else.

    Nothing is deleted: it then lies in a folder beside the store, which avfuse cache gc removes; docs/remote.md says
    how that is done on a server.
    """
    from avfuse.upkeep import repair as run

    with show_count("cache repair", "checked") as show:
        summary = run(CacheRepairOptions(**knobs), show)
    if as_json:
        print_json(summary)
        return
    if summary.removals:
        rows = [(removal.recording or "-", removal.path, removal.place) for removal in summary.removals]
        print_rows(("recording", "set aside", "lies in"), rows)
    anew = [counted(len(summary.recordings), "recording")] if summary.recordings else []
    anew += ["the settings of the store"] if summary.needs_root else []
    if not summary.num_damages:
        say(f"{summary.store}: all as it was written")
    elif anew:
        say(f"to be made anew: {' and '.join(anew)}; run the same avfuse extract, or cache import, again")
    else:
        done = f"set aside: {len(summary.removals):,}" if summary.removals else "what was found is gone, or replaced"
        say(f"{summary.store}: {done}; nothing needs to be made anew")
