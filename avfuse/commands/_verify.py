"""``avfuse cache verify``: whether a store is as it was written."""

from typing import Any

import click

from avfuse.cache_options import CacheVerifyOptions
from avfuse.commands import EXIT_PROBLEMS, json_flag, knobs_of
from avfuse.terminal import counted, print_json, print_rows, say, show_count, show_size


@click.command()
@knobs_of(CacheVerifyOptions)
@json_flag
def verify(as_json: bool, **knobs: Any) -> None:
    """Compare every byte and every value in STORE with what was written.

    What was changed, cut, lost or added is listed by recording and file, and the exit code is then 4.
    """
    from avfuse.upkeep import verify as run

    with show_count("cache verify", "checked") as show:
        found = run(CacheVerifyOptions(**knobs), show)
    if as_json:
        print_json(found)
    else:
        held = f"{counted(found.num_recordings, 'recording')}, {counted(found.num_failures, 'failure')}"
        files = f", {counted(found.num_files, 'file')}, {show_size(found.num_bytes)}" if found.num_files else ""
        if found.damages:
            rows = [(damage.recording or "-", damage.path or "-", damage.message) for damage in found.damages]
            print_rows(("recording", "where", "what is wrong"), rows)
            say(found.remedy)
        verdict = f"{counted(len(found.damages), 'finding')}, {counted(found.num_damaged, 'recording')} damaged"
        say(f"{found.store}: {held}{files}: {verdict if found.damages else 'all as it was written'}")
    if found.damages:
        raise SystemExit(EXIT_PROBLEMS)
