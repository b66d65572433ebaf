"""``avfuse cache diff``: in what two stores differ."""

from typing import Any

import click

from avfuse.cache_options import CacheDiffOptions
from avfuse.commands import EXIT_PROBLEMS, json_flag, knobs_of
from avfuse.terminal import as_text, counted, print_json, print_rows, show_count

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
            click.echo(f"only in {where}: {', '.join(names[:MAX_SHOWN])}{' ...' if len(names) > MAX_SHOWN else ''}")
    differing = [item for item in found.recordings if not item.is_equal]
    rows = [(item.recording, *_near(item.video), *_near(item.audio), _also(item)) for item in differing]
    if len(rows) > 1:
        rows.append(("all of them", *_near(found.video), *_near(found.audio), ""))
    if rows:
        columns = ("recording", "video: difference", "cosine (worst)", "audio: difference", "cosine (worst)", "also")
        print_rows(columns, rows)
    num_equal = len(found.recordings) - len(differing)
    click.echo(f"{num_equal} of {counted(len(found.recordings), 'recording')} in both are equal")


def _near(found: Any) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found.max_difference:.3g}", f"{found.mean_cosine:.6f} ({found.worst_cosine:.6f})"


def _also(item: Any) -> str:
    """Name what else differs in a recording, beside the features whose nearness is shown."""
    shown = ("video", "video_scale", "video_offset", "audio")
    others = [name for name in (*item.source, *item.arrays) if name not in shown]
    return "; ".join(filter(None, (f"other {', '.join(others)}" if others else "", item.note)))
