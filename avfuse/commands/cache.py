"""``avfuse cache``: what is done with a cache of features as a whole."""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import click

from avfuse.cache_options import (
    CacheCollectOptions,
    CacheDiffOptions,
    CacheInfoOptions,
    CacheListOptions,
    CacheRepairOptions,
    CacheVerifyOptions,
)
from avfuse.commands import EXIT_PROBLEMS, json_flag, knobs_of
from avfuse.commands._exchange import export, import_
from avfuse.commands._shrink import shrink
from avfuse.schema import ReportTable, UsageError
from avfuse.terminal import print_json, print_table, show_progress, show_size

MAX_SHOWN = 40


@click.group()
def cache() -> None:
    """Look after caches of features: check, mend, list, describe, compare and shrink them, take them elsewhere."""


cache.add_command(export)
cache.add_command(import_)
cache.add_command(shrink)


@cache.command()
@knobs_of(CacheVerifyOptions)
@json_flag
def verify(as_json: bool, **knobs: Any) -> None:
    """Compare every byte and every value in STORE with what was written.

    What was changed, cut, lost or added is listed by recording and file, and the exit code is then 4.
    """
    from avfuse.upkeep import verify as run

    with show_progress("cache verify") as show:
        found = run(
            CacheVerifyOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} checked", done == total)
        )
    if as_json:
        print_json(found)
    else:
        held = f"{_count(found.num_recordings, 'recording')}, {_count(found.num_failures, 'failure')}"
        files = f", {_count(found.num_files, 'file')}, {show_size(found.num_bytes)}" if found.num_files else ""
        if found.damages:
            rows = [(damage.recording or "-", damage.path or "-", damage.message) for damage in found.damages]
            _print_rows(("recording", "where", "what is wrong"), rows)
            click.echo(found.remedy)
        verdict = f"{_count(len(found.damages), 'finding')}, {_count(found.num_damaged, 'recording')} damaged"
        click.echo(f"{found.store}: {held}{files}: {verdict if found.damages else 'all as it was written'}")
    if found.damages:
        raise SystemExit(EXIT_PROBLEMS)


@cache.command()
@knobs_of(CacheRepairOptions)
@json_flag
def repair(as_json: bool, **knobs: Any) -> None:
    """Set aside what is damaged in STORE, so that the next extract, or import, makes it anew, and nothing else.

    Nothing is deleted: it then lies in a folder beside the store, which avfuse cache gc removes.
    """
    from avfuse.upkeep import repair as run

    with show_progress("cache repair") as show:
        summary = run(
            CacheRepairOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} checked", done == total)
        )
    if as_json:
        print_json(summary)
        return
    if summary.removals:
        rows = [(removal.recording or "-", removal.path, removal.place) for removal in summary.removals]
        _print_rows(("recording", "set aside", "lies in"), rows)
    if not summary.num_damages:
        click.echo(f"{summary.store}: all as it was written")
    elif summary.recordings or summary.needs_root:
        click.echo(
            f"to be made anew: {_count(len(summary.recordings), 'recording')}; run the same avfuse extract, or cache "
            "import, again"
        )


@cache.command("ls")
@knobs_of(CacheListOptions)
@json_flag
def list_(as_json: bool, **knobs: Any) -> None:
    """List the feature stores in PLACE."""
    from avfuse.inventory import list_stores

    stores = list_stores(CacheListOptions(**knobs))
    if as_json:
        print_json({"stores": [vars(store) for store in stores]})
        return
    rows = [
        (
            PurePosixPath(store.store).name,
            f"{store.num_recordings:,}",
            f"{store.num_failures:,}",
            f"{store.num_clips:,}",
            show_size(store.num_bytes),
            store.state or store.storage,
            store.changed[:16].replace("T", " "),
        )
        for store in stores
    ]
    columns = ("store", "recordings", "failures", "clips", "size", "maps", "changed (UTC)")
    print_table(ReportTable("", columns, tuple(rows), ()))


@cache.command()
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
    print_table(ReportTable("", ("cache", ""), tuple(rows), ()))
    counts = [
        (name, f"{of.num_recordings:,}", f"{of.num_subjects:,}", f"{of.num_clips:,}", f"{of.num_minutes:.1f}")
        for name, of in found.partitions.items()
    ]
    _print_rows(("partition", "recordings", "subjects", "clips", "minutes"), counts)
    arrays = [
        (
            name,
            of.dtype,
            show_size(of.num_value_bytes),
            "-" if of.num_file_bytes is None else show_size(of.num_file_bytes),
        )
        for name, of in found.arrays.items()
    ]
    _print_rows(("array", "numbers", "values", "files"), arrays)
    for how, count in found.compression.items():
        click.echo(f"compression: {how} ({_count(count, 'recording')})")
    for reason, count in found.failures.items():
        click.echo(f"failed: {reason} ({_count(count, 'recording')})")


@cache.command()
@knobs_of(CacheDiffOptions)
@json_flag
def diff(as_json: bool, **knobs: Any) -> None:
    """Say in what the stores A and B differ: settings, recordings, and how near their features are.

    The exit code is 0 if training from one is training from the other, and 4 if not.
    """
    from avfuse.agreement import compare_caches

    with show_progress("cache diff") as show:
        found = compare_caches(
            CacheDiffOptions(**knobs), lambda done, total: show(done, total, f"{done}/{total} compared", done == total)
        )
    if as_json:
        print_json(found)
    else:
        _print_diff(found)
    if not found.is_equal:
        raise SystemExit(EXIT_PROBLEMS)


def _print_diff(found: Any) -> None:
    if found.settings:
        settings = [(name, _text(one), _text(other)) for name, (one, other) in found.settings.items()]
        _print_rows(("setting", "A", "B"), settings)
    for names, where in ((found.only_first, found.first), (found.only_second, found.second)):
        if names:
            click.echo(f"only in {where}: {', '.join(names[:MAX_SHOWN])}{' ...' if len(names) > MAX_SHOWN else ''}")
    differing = [item for item in found.recordings if not item.is_equal]
    rows = [(item.recording, *_near(item.video), *_near(item.audio), _also(item)) for item in differing]
    if len(rows) > 1:
        rows.append(("all of them", *_near(found.video), *_near(found.audio), ""))
    if rows:
        columns = ("recording", "video: difference", "cosine (worst)", "audio: difference", "cosine (worst)", "also")
        _print_rows(columns, rows)
    num_equal = len(found.recordings) - len(differing)
    click.echo(f"{num_equal} of {_count(len(found.recordings), 'recording')} in both are equal")


def _near(found: Any) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found.max_difference:.3g}", f"{found.mean_cosine:.6f} ({found.worst_cosine:.6f})"


def _also(item: Any) -> str:
    """Name what else differs in a recording, beside the features whose nearness is shown."""
    shown = ("video", "video_scale", "video_offset", "audio")
    others = [name for name in (*item.source, *item.arrays) if name not in shown]
    return "; ".join(filter(None, (f"other {', '.join(others)}" if others else "", item.note)))


@cache.command()
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
        _print_rows(("what", "kind", "size", "why"), rows)
    click.echo(f"{found.place}: {_count(len(found.found), 'left-over')}, {show_size(found.num_bytes)}")
    if found.found and (yes or _agrees(len(found.found))):
        click.echo(f"freed {show_size(remove_leftovers(found.found))}")


def _agrees(count: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"{_count(count, 'left-over')} would be removed; nobody can be asked here, say so with --yes")
    try:
        return click.confirm("Remove them?", err=True)
    except click.Abort:  # the end of the input
        return False


def _print_rows(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    print_table(ReportTable("", columns, tuple(rows), ()))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows, with dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", _text(value))]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"[{_text(item)}]" if isinstance(item, list | tuple) else _text(item) for item in value)
    return "-" if value is None else str(value)
