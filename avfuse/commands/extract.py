"""``avfuse extract``."""

import math
import time
from typing import Any

import click

from avfuse.commands import EXIT_FAILURES, json_flag, knobs_of
from avfuse.options import ExtractOptions
from avfuse.terminal import counted, print_json, print_rows, say, show_progress, show_size

MAX_FAILURES_SHOWN = 20


@click.command()
@knobs_of(ExtractOptions)
@click.option("--dry-run", is_flag=True, help="Say what there is to do, and how long it would take; make no feature.")
@json_flag
def extract(as_json: bool, dry_run: bool, **knobs: Any) -> None:
    """Turn the videos of the corpus at ROOT into a cache of features, once.

    Running it again does only what is missing. A recording that cannot be used is listed with its reason, and the exit
    code is then 3; "avfuse cache failures" lists them all.
    """
    options = ExtractOptions(**knobs)
    if dry_run:
        _plan(options, as_json)
        return
    from avfuse.extract import ExtractProgress
    from avfuse.extract import extract as run

    started_s = time.monotonic()
    with show_progress("extract") as show:

        def on_progress(progress: ExtractProgress) -> None:
            speed = progress.num_clips / max(time.monotonic() - started_s, 1e-9)
            failed = f", {progress.num_failed} failed" if progress.num_failed else ""
            note = f"{progress.num_done}/{progress.num_recordings} recordings{failed}, {speed:.1f} clips/s"
            finished = progress.num_done == progress.num_recordings
            show(progress.num_done + progress.share_under_way, progress.num_recordings, note, finished)

        summary = run(options, on_progress)
    if as_json:
        print_json(summary)
    else:
        _print_extract(summary)
    if summary.failures:
        raise SystemExit(EXIT_FAILURES)


def _print_extract(summary: Any) -> None:
    views = f", each in {summary.num_views} views" if summary.num_views > 1 else ""
    before = f" ({summary.num_set_aside} before, not tried again)" if summary.num_set_aside else ""
    left = [("not come to", f"{summary.num_left}")] if summary.num_left else []
    share = [("share", summary.share)] if summary.share else []
    rows = [
        *share,
        ("recordings", f"{summary.num_recordings}"),
        ("extracted now", f"{summary.num_extracted}"),
        ("there before", f"{summary.num_present}"),
        ("failed", f"{len(summary.failures)}{before}"),
        *left,
        ("rows other than frames", _uneven(summary)),
        ("clips encoded", f"{summary.num_clips:,}{views} ({summary.num_clips / max(summary.elapsed_s, 1e-9):.1f}/s)"),
        ("frames with a face", "-" if math.isnan(summary.face_share) else f"{100 * summary.face_share:.1f} %"),
        ("time", f"{summary.elapsed_s:.0f} s"),
        ("store", str(summary.store)),
    ]
    print_rows(("extract", ""), rows)
    for failure in summary.failures[:MAX_FAILURES_SHOWN]:
        say(f"failed: {failure.recording}: {failure.reason}: {failure.message}")
    if len(summary.failures) > MAX_FAILURES_SHOWN:
        say(f"and {len(summary.failures) - MAX_FAILURES_SHOWN} more; list them with: avfuse cache failures")
    if summary.num_set_aside:
        say("what failed before is tried again when its files change, or with --retry-failed")


def _uneven(summary: Any) -> str:
    """Say in how many recordings annotation rows and frames did not meet, and what became of the rest."""
    rest = f"{summary.num_rows_dropped:,} rows dropped, {summary.num_frames_without_row:,} frames unrated"
    return f"{summary.num_uneven} recordings" + (f" ({rest})" if summary.num_uneven else "")


def _plan(options: ExtractOptions, as_json: bool) -> None:
    from avfuse.planning import plan

    with show_progress("plan") as show:
        found = plan(options, lambda done, total, note: show(done, total, note))
    if as_json:
        print_json(found)
        return
    workers = counted(found.num_workers, "worker") if found.num_workers else "workers as the engine finds room"
    rows = [
        ("recordings", f"{found.num_recordings:,}"),
        ("there already", f"{found.num_present:,}"),
        ("set aside before", f"{found.num_set_aside:,}"),
        ("cannot be used", f"{found.num_unreadable:,}"),
        ("to extract", f"{found.num_to_do:,}"),
        ("minutes of these", f"{found.num_minutes:,.1f}"),
        ("clips of these", f"{found.num_clips:,}"),
        ("computed on", f"{found.device}, {found.precision}, {workers}"),
        ("time for all of it", _duration(found.total_s)),
        ("store", str(found.store)),
    ]
    print_rows(("plan", ""), rows)
    stages = [
        (
            item.name,
            f"{item.cpu_ms_per_clip:.1f} ms",
            f"{item.wall_ms_per_clip:.1f} ms",
            f"{100 * item.share:.1f} %",
            item.unit_speed,
        )
        for item in found.stages
    ]
    if stages:
        measured = f"Measured on {counted(found.num_probed, 'clip')}, one stage after the other"
        print_rows(("stage", "CPU per clip", "time per clip", "share", "speed"), stages, measured)
    sizes = [
        (item.dtype, item.maps, item.compress, show_size(item.num_bytes_per_clip), show_size(item.num_bytes))
        for item in found.sizes
    ]
    if sizes:
        print_rows(("numbers", "maps", "compression", "per clip", "for all of it"), sizes)
    for note in found.notes:
        say(note)


def _duration(seconds: float) -> str:
    """Write a time as "2 h 05 min", or as "40 s" where it is short."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
