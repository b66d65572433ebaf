"""``avfuse cache diff``: in what two stores differ."""

from typing import Any

import click

from avfuse.cache_options import CacheDiffOptions
from avfuse.commands import EXIT_PROBLEMS, json_flag, knobs_of
from avfuse.terminal import as_text, counted, print_json, print_rows, say, show_count

MAX_SHOWN = 40


@click.command()
@knobs_of(CacheDiffOptions)
@json_flag
def diff(as_json: bool, **knobs: Any) -> None:
    """Say in what the stores A and B differ: settings, recordings, and how near their features are.

    The exit code is 0 if training from one is training from the other, and 4 if not.
    """
    from avfuse.agreement import compare_caches

    with show_count("cache diff", "compared") as show:
        found = compare_caches(CacheDiffOptions(**knobs), show)
    if as_json:
        print_json(found)
    else:
        _print_diff(found)
    if not found.is_equal:
        raise SystemExit(EXIT_PROBLEMS)


def _print_diff(found: Any) -> None:
    if found.settings:
        settings = [(name, as_text(one), as_text(other)) for name, (one, other) in found.settings.items()]
        print_rows(("setting", "A", "B"), settings)
    for names, where in ((found.only_first, found.first), (found.only_second, found.second)):
        if names:
            say(f"only in {where}: {', '.join(names[:MAX_SHOWN])}{' ...' if len(names) > MAX_SHOWN else ''}")
    differing = [item for item in found.recordings if not item.is_equal]
    rows = [(item.recording, *_near(item, [item]), _also(item)) for item in differing]
    if len(rows) > 1:
        rows.append(("all of them", *_near(found, differing), ""))
    if rows:
        columns = ("recording", "video: difference", "cosine (worst)", "audio: difference", "cosine (worst)", "also")
        print_rows(columns, rows)
    if not found.recordings:
        say("no recording is in both")
        return
    num_equal = len(found.recordings) - len(differing)
    say(f"{num_equal} of {counted(len(found.recordings), 'recording')} in both are equal")


def _near(found: Any, recordings: Any) -> tuple[str, ...]:
    """Return how near video and audio are, two cells each: "equal" in all recordings, or "-" if they do not compare."""
    cells: list[str] = []
    for name in ("video", "audio"):
        near = getattr(found, name)
        if near is not None:
            cells += [f"{near.max_difference:.3g}", f"{near.mean_cosine:.6f} ({near.worst_cosine:.6f})"]
        else:
            cells += ["equal", ""] if all(name in item.equal for item in recordings) else ["-", "-"]
    return tuple(cells)


def _also(item: Any) -> str:
    """Name what else differs in a recording, beside the features whose nearness is shown."""
    others = [name for name in (*item.source, *item.arrays) if name.partition("_")[0] not in ("video", "audio")]
    return "; ".join(filter(None, (f"other {', '.join(others)}" if others else "", item.note)))
