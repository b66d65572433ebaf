"""The audit: what in a corpus would corrupt training, before hours go into features. Imports no torch.

Every file is decoded and every annotation read; what they are like is measured (`avfuse.inspection`) and judged
(`avfuse.findings`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from avfuse import registry
from avfuse.corpora import Corpus
from avfuse.findings import (
    CODES,
    PROBLEM,
    REMARK,
    Finding,
    Limits,
    Ratings,
    judge_absence,
    judge_crops,
    judge_media,
    judge_ratings,
    list_faults,
)
from avfuse.inspection import Inspection, Picture, Sound, inspect_media
from avfuse.knobs import parse_assignments
from avfuse.options import AuditOptions
from avfuse.partitions import find_leaks
from avfuse.schema import Recording, RecordingError, ReportTable
from avfuse.spec import FileDigests, list_crops

log = logging.getLogger(__name__)

MAX_LINES_SHOWN = 10  # of one annotation file, each with what is wrong; the numbers of the others follow
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class RecordingAudit:
    """What one recording is like; the parts that cannot be measured are None.

    `offset_s` is the start of the sound minus the start of the picture, `drift_s` the length of the sound minus that of
    the picture, and `end_offset_s` the end of the sound minus the end of the picture. `zero_s` is where, on the
    container's clock, a player starts, and where the times of ratings count from.
    """

    recording: str
    partition: str
    subject: str
    path: Path
    zero_s: float | None
    picture: Picture | None
    sound: Sound | None
    offset_s: float | None
    drift_s: float | None
    end_offset_s: float | None
    ratings: Ratings | None


@dataclass(frozen=True)
class AuditProgress:
    """How far an audit is: recordings dealt with and in all, and problems found so far."""

    num_done: int
    num_recordings: int
    num_problems: int


@dataclass(frozen=True)
class AuditSummary:
    """What an audit found.

    Attributes
    ----------
    root : Path
    corpus : str
    targets : tuple of str
    recordings : tuple of RecordingAudit
        In the order of the corpus.
    findings : tuple of Finding
        Those of the corpus, then those of each recording.
    num_problems, num_remarks : int
    elapsed_s : float
    """

    root: Path
    corpus: str
    targets: tuple[str, ...]
    recordings: tuple[RecordingAudit, ...]
    findings: tuple[Finding, ...]
    num_problems: int
    num_remarks: int
    elapsed_s: float


_Audited = tuple[RecordingAudit, list[Finding]]


class _Stopped(BaseException):
    """The audit ends early; no `except Exception` is to take it for a fault of a recording."""


@dataclass(frozen=True)
class _Tools:
    """What every recording is held against, and a check that raises `_Stopped` once the audit is to end."""

    corpus: Corpus
    root: Path
    brings_crops: bool
    limits: Limits
    go_on: Callable[[], None]


def audit(options: AuditOptions, on_progress: Callable[[AuditProgress], None] = lambda progress: None) -> AuditSummary:
    """Measure and judge every recording of a corpus.

    Raises
    ------
    UsageError
        If the corpus cannot be used; no video has been opened then.
    """
    started_s = time.monotonic()
    arguments = registry.check_arguments(
        "corpus", options.corpus, parse_assignments(options.corpus_option), reserved=("root",)
    )
    corpus: Corpus = registry.load("corpus", options.corpus)(options.root, **arguments)
    recordings = corpus.recordings()
    leaks, audited = _audit_all(corpus, recordings, options, on_progress)
    findings = leaks + [finding for recording in recordings for finding in audited[recording.name][1]]
    num_problems = _num_problems(findings)
    return AuditSummary(
        root=options.root,
        corpus=options.corpus,
        targets=corpus.targets,
        recordings=tuple(audited[recording.name][0] for recording in recordings),
        findings=tuple(findings),
        num_problems=num_problems,
        num_remarks=len(findings) - num_problems,
        elapsed_s=time.monotonic() - started_s,
    )


def _audit_all(
    corpus: Corpus, recordings: Sequence[Recording], options: AuditOptions, on_progress: Callable[[AuditProgress], None]
) -> tuple[list[Finding], dict[str, _Audited]]:
    """Audit file by file, several side by side; recordings that share a file, as of two people, share its decoding."""
    by_path: dict[Path, list[Recording]] = {}
    for recording in recordings:
        by_path.setdefault(recording.path, []).append(recording)
    is_stopped = threading.Event()

    def go_on() -> None:
        if is_stopped.is_set():
            raise _Stopped

    brings_crops = any(recording.crops for recording in recordings)
    tools = _Tools(corpus, options.root, brings_crops, Limits(options.max_drift_s, options.max_lost), go_on)
    audited: dict[str, _Audited] = {}
    num_problems = 0
    pool = ThreadPoolExecutor(options.num_workers or os.cpu_count())
    try:
        leaks = pool.submit(_find_leaks, recordings, go_on)
        jobs = [pool.submit(_audit_file, group, tools) for group in by_path.values()]
        for job in as_completed(jobs):
            for item, findings in job.result():
                audited[item.recording] = item, findings
                num_problems += _num_problems(findings)
            if len(audited) == len(recordings):
                num_problems += len(leaks.result())
            on_progress(AuditProgress(len(audited), len(recordings), num_problems))
        return leaks.result(), audited
    finally:
        is_stopped.set()  # whoever is interrupted does not wait for the files at hand
        pool.shutdown(cancel_futures=True)


def _find_leaks(recordings: Sequence[Recording], go_on: Callable[[], None]) -> list[Finding]:
    digest = FileDigests()

    def digest_or_stop(path: Path) -> str:
        go_on()
        return digest(path)

    return [Finding.of(None, "leak", leak.message) for leak in find_leaks(recordings, digest_or_stop)]


def _audit_file(group: Sequence[Recording], tools: _Tools) -> list[_Audited]:
    """Audit the recordings of one file; an unexpected error costs this file alone."""
    try:
        inspection, unexpected = inspect_media(group[0].path, tools.go_on), None
    except Exception as error:
        inspection, unexpected = Inspection(), error
    audited = []
    for recording in group:
        tools.go_on()
        findings = [_unexpected(recording, unexpected)] if unexpected else []
        findings += judge_media(recording, inspection, tools.limits)
        findings += _look_at_crops(recording, inspection, tools)
        try:
            ratings, found = _rate(recording, inspection, tools.corpus)
        except Exception as error:
            ratings, found = None, [_unexpected(recording, error)]
        audited.append((_describe(recording, inspection, ratings), findings + found))
    return audited


def _look_at_crops(recording: Recording, inspection: Inspection, tools: _Tools) -> list[Finding]:
    """List the aligned images of a recording, where its corpus brings such, and hold them against the frames."""
    if not tools.brings_crops:
        return []
    try:
        return list(judge_crops(recording, list_crops(recording, tools.root), inspection.timeline))
    except RecordingError as error:
        return [Finding.of(recording, error.reason, str(error), recording.crops)]


def _unexpected(recording: Recording, error: Exception) -> Finding:
    log.error("%s: unexpected %s", recording.name, type(error).__name__, exc_info=error)
    return Finding.of(recording, "unexpected", f"{type(error).__name__}: {error}")


def _rate(recording: Recording, inspection: Inspection, corpus: Corpus) -> tuple[Ratings | None, list[Finding]]:
    """Read the annotation of a recording and hold it against the frames that extraction would use."""
    try:
        annotation = corpus.annotation(recording)
    except RecordingError as error:
        return None, list_faults(recording, error)
    if annotation is None:
        return None, judge_absence(recording, corpus.targets)
    return judge_ratings(recording, annotation, corpus.ranges, inspection.timeline)


def _describe(recording: Recording, inspection: Inspection, ratings: Ratings | None) -> RecordingAudit:
    return RecordingAudit(
        recording=recording.name,
        partition=recording.partition,
        subject=recording.subject,
        path=recording.path,
        zero_s=inspection.timeline.zero_s if inspection.timeline else None,
        picture=inspection.picture,
        sound=inspection.sound,
        offset_s=inspection.offset_s,
        drift_s=inspection.drift_s,
        end_offset_s=inspection.end_offset_s,
        ratings=ratings,
    )


def tabulate(summary: AuditSummary, *, with_remarks: bool = False) -> ReportTable:
    """Make a table of an audit: one row per recording, and below it the problems, and the remarks by code.

    Parameters
    ----------
    summary : AuditSummary
    with_remarks : bool
        Whether every remark is listed too.
    """
    own: dict[str | None, list[Finding]] = {}
    for finding in summary.findings:
        own.setdefault(finding.recording, []).append(finding)
    records = [_record(item, summary.targets, own.get(item.recording, [])) for item in summary.recordings]
    if None in own:
        records.append({"recording": None, **_record_of_findings(own[None])})
    return ReportTable(
        title=f"Audit of {summary.root}",
        columns=_COLUMNS,
        rows=tuple(_cells(item, own.get(item.recording, [])) for item in summary.recordings),
        records=tuple(records),
        notes=tuple(_notes(summary, with_remarks)),
    )


_COLUMNS = (
    "recording",
    "part.",
    "frames",
    "fps",
    "jitter\nms",
    "offset\ns",
    "drift\ns",
    "gaps\nv/a",
    "failed\nv/a",
    "silent\n%",
    "rows",
    "rated\n%",
    "problems,\nremarks",
)


def _cells(item: RecordingAudit, findings: Sequence[Finding]) -> tuple[str, ...]:
    picture, sound, ratings = item.picture, item.sound, item.ratings
    num_problems = _num_problems(findings)
    return (
        item.recording,
        item.partition,
        NOTHING if picture is None else _frames_cell(picture),
        NOTHING if picture is None else f"{picture.fps:.2f}{' var.' if picture.is_variable else ''}",
        NOTHING if picture is None else f"{picture.jitter_max_ms:.1f}",
        NOTHING if item.offset_s is None else f"{item.offset_s:+.3f}",
        NOTHING if item.drift_s is None else f"{item.drift_s:+.3f}",
        "/".join(str(stream.num_gaps) if stream else NOTHING for stream in (picture, sound)),
        "/".join(str(stream.num_failed) if stream else NOTHING for stream in (picture, sound)),
        NOTHING if sound is None else f"{100 * sound.silent_share:.0f}",
        NOTHING if ratings is None else f"{ratings.num_rows}",
        "/".join(f"{100 * share:.0f}" for share in ratings.rated_share.values()) or NOTHING if ratings else NOTHING,
        f"{num_problems}, {len(findings) - num_problems}",
    )


def _frames_cell(picture: Picture) -> str:
    num_seen = picture.num_frames - picture.num_lost
    return f"{picture.num_frames}" if picture.num_lost == 0 else f"{num_seen} of {picture.num_frames}"


def _num_problems(findings: Sequence[Finding]) -> int:
    return sum(finding.level == PROBLEM for finding in findings)


def _record(item: RecordingAudit, targets: Sequence[str], findings: Sequence[Finding]) -> dict[str, Any]:
    """Return every number of a recording under a name of its own; the parts that were not measured are None."""
    rated = item.ratings.rated_share if item.ratings else {}
    return {
        "recording": item.recording,
        "partition": item.partition,
        "subject": item.subject,
        "path": str(item.path),
        "zero_s": item.zero_s,
        **_flat("picture", Picture, item.picture),
        **_flat("sound", Sound, item.sound),
        "offset_s": item.offset_s,
        "drift_s": item.drift_s,
        "end_offset_s": item.end_offset_s,
        **{key: value for key, value in _flat("ratings", Ratings, item.ratings).items() if "rated_share" not in key},
        **{f"rated_share_{target}": rated.get(target) for target in targets},
        **_record_of_findings(findings),
    }


def _record_of_findings(findings: Sequence[Finding]) -> dict[str, Any]:
    num_problems = _num_problems(findings)
    return {
        "problems": num_problems,
        "remarks": len(findings) - num_problems,
        "codes": list(dict.fromkeys(finding.code for finding in findings)),
        "findings": [str(finding) for finding in findings],
    }


def _flat(prefix: str, kind: type, values: Any) -> dict[str, Any]:
    known = {} if values is None else asdict(values)
    return {f"{prefix}_{item.name}": known.get(item.name) for item in fields(kind)}


def _notes(summary: AuditSummary, with_remarks: bool) -> Iterator[str]:
    yield (
        "jitter: largest deviation from the median frame interval; offset: start of the sound - start of the picture; "
        "drift: length of the sound - length of the picture; v/a: video/audio; rated: share of the frames, by target."
    )
    for level in (PROBLEM, REMARK):
        found = [finding for finding in summary.findings if finding.level == level]
        if level == PROBLEM or with_remarks:
            for _, same in groupby(found, key=lambda finding: (finding.recording, finding.code)):
                yield from _said(level, list(same))
    for code, (level, meaning) in CODES.items():
        count = sum(finding.code == code for finding in summary.findings)
        if count and level == REMARK:
            yield f"{count} x {code}: {meaning}."
    yield f"{summary.num_problems} problems and {summary.num_remarks} remarks in {len(summary.recordings)} recordings."


def _said(level: str, findings: Sequence[Finding]) -> Iterator[str]:
    """Say each finding; of many faulty lines the first ones, and the numbers of all others."""
    for finding in findings[:MAX_LINES_SHOWN]:
        yield f"{level}: {finding}"
    rest = findings[MAX_LINES_SHOWN:]
    if rest:
        lines = _ranges([finding.line for finding in rest if finding.line is not None])
        yield f"{level}: {rest[0].recording}: {rest[0].code}: {len(rest)} more, in lines {lines} of {rest[0].path}"


def _ranges(lines: Sequence[int]) -> str:
    """Write 3, 4, 5, 9 as "3-5, 9"."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
