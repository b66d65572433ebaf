"""``avfuse cache shrink``: a cache with smaller maps, and what they cost the heads that were trained on the larger."""

from pathlib import Path
from typing import Any

import click

from avfuse.cache_options import CacheShrinkOptions
from avfuse.commands import json_flag, knobs_of
from avfuse.terminal import print_json, print_rows, say, show_count, show_size


@click.command()
@knobs_of(CacheShrinkOptions)
@json_flag
def shrink(as_json: bool, **knobs: Any) -> None:
    """Keep the maps in STORE as bytes, pooled or compressed.

    Where values change, that is another store, beside STORE or in --out, with another fingerprint. Compression changes
    none: without --out the recordings in STORE are replaced, one by one, and nothing should be trained from them
    meanwhile. The same command again does only what is missing.
    """
    from avfuse.shrinking import shrink as run

    with show_count("cache shrink", "recordings") as show:
        summary = run(
            CacheShrinkOptions(**knobs),
            show,
        )
    if as_json:
        print_json(summary)
        return
    num_clips = max(1, summary.num_clips)
    rows = [
        ("recordings", f"{summary.num_recordings} ({summary.num_clips:,} clips)"),
        ("re-encoded now", f"{summary.num_shrunk}"),
        ("there before", f"{summary.num_present}"),
        ("size before", _size(summary.num_bytes_before, num_clips)),
        ("size after", _size(summary.num_bytes_after, num_clips)),
        ("store", str(summary.store)),
    ]
    print_rows(("cache shrink", ""), rows)
    if summary.costs:
        _print_costs(summary.costs)
    if summary.store != summary.source:
        gone = " is removed" if summary.is_replaced else " stays"
        kin = "" if summary.fingerprint == summary.source_fingerprint else "; its runs are not runs of the smaller one"
        say(f"{summary.source}{gone}{kin}")


def _print_costs(costs: Any) -> None:
    """Show for every run and target the CCC from either maps, and the mean difference of a head with several runs."""
    from avfuse.runs import common_folder

    rows, changes = [], dict[tuple[str, str], list[float]]()
    folder = common_folder(Path(cost.run) for cost in costs)
    for cost in costs:
        run = Path(cost.run).relative_to(folder).as_posix()
        for target, before in cost.before.items():
            after = cost.after[target]
            changes.setdefault((cost.head, target), []).append(after - before)
            rows.append(
                (
                    run,
                    f"{cost.head}, seed {cost.seed}",
                    target,
                    f"{before:.4f}",
                    f"{after:.4f}",
                    f"{after - before:+z.4f}",
                )
            )
    for (head, target), found in changes.items():
        if len(found) > 1:
            rows.append((f"mean of {len(found)}", head, target, "", "", f"{sum(found) / len(found):+z.4f}"))
    columns = ("run", "head", "target", "CCC before", "after", "difference")
    print_rows(columns, rows, "Validation CCC, nothing trained again")


def _size(num_bytes: int, num_clips: int) -> str:
    return f"{show_size(num_bytes)} ({num_bytes / num_clips:,.0f} bytes per clip)"
