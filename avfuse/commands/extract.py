"""``avfuse extract``."""

import math
import time
from typing import Any

import click

from avfuse.commands import EXIT_FAILURES, json_flag, knobs_of
from avfuse.options import ExtractOptions
from avfuse.terminal import print_json, print_rows, show_progress


@click.command()
@knobs_of(ExtractOptions)
@json_flag
def extract(as_json: bool, **knobs: Any) -> None:
    """Turn the videos of the corpus at ROOT into a cache of features, once.

    Running it again does only what is missing. A recording that cannot be used is listed with its reason, and the exit
    code is then 3.
    """
    from avfuse.extract import ExtractProgress
    from avfuse.extract import extract as run

    started_s = time.monotonic()
    with show_progress("extract") as show:

        def on_progress(progress: ExtractProgress) -> None:
            speed = progress.num_clips / max(time.monotonic() - started_s, 1e-9)
            failed = f", {progress.num_failed} failed" if progress.num_failed else ""
            note = f"{progress.num_done}/{progress.num_recordings} recordings{failed}, {speed:.1f} clips/s"
            finished = progress.num_done == progress.num_recordings
            show(progress.num_done + progress.share_of_recording, progress.num_recordings, note, finished)

        summary = run(ExtractOptions(**knobs), on_progress)
    if as_json:
        print_json(summary)
    else:
        _print_extract(summary)
    if summary.failures:
        raise SystemExit(EXIT_FAILURES)


def _print_extract(summary: Any) -> None:
    views = f", each in {summary.num_views} views" if summary.num_views > 1 else ""
    rows = [
        ("recordings", f"{summary.num_recordings}"),
        ("extracted now", f"{summary.num_extracted}"),
        ("there before", f"{summary.num_present}"),
        ("failed", f"{len(summary.failures)}"),
        ("rows other than frames", _uneven(summary)),
        ("clips encoded", f"{summary.num_clips:,}{views} ({summary.num_clips / max(summary.elapsed_s, 1e-9):.1f}/s)"),
        ("frames with a face", "-" if math.isnan(summary.face_share) else f"{100 * summary.face_share:.1f} %"),
        ("time", f"{summary.elapsed_s:.0f} s"),
        ("store", str(summary.store)),
    ]
    print_rows(("extract", ""), rows)
    for failure in summary.failures:
        click.echo(f"failed: {failure.recording}: {failure.reason}: {failure.message}")


def _uneven(summary: Any) -> str:
    """Say in how many recordings annotation rows and frames did not meet, and what became of the rest."""
    rest = f"{summary.num_rows_dropped:,} rows dropped, {summary.num_frames_without_row:,} frames unrated"
    return f"{summary.num_uneven} recordings" + (f" ({rest})" if summary.num_uneven else "")
