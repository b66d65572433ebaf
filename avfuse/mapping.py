"""A mapping: the small TOML file that says where features of others lie, and what they are.

docs/features-of-others.md has every key and whole examples. A mapping is read strictly: what it does not say is asked
for, what is not known is refused, and no path leaves the folder that it lies in.
"""

from __future__ import annotations

import csv
import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfuse.arrays import Location, list_arrays
from avfuse.declarations import PLACEHOLDER, PLACEHOLDERS, Declarations
from avfuse.schema import PARTITIONS, Range, UsageError

MODALITIES = ("video", "audio")
RATINGS = ("target", "target_time")
KEYS = (
    *("dataset", "fps", "hop", "first_frame", "targets", "ranges", "target_rows", "unrated", "align"),
    *("video_encoder", "audio_encoder", "recordings", "partitions", "subject", *MODALITIES, *RATINGS),
)
ROW_KEYS = ("recording", "partition", "subject", *MODALITIES, *RATINGS)
ROWS_PER = ("clip", "frame")
ALIGNMENTS = ("exact", "shortest")
SKIP = "skip"


@dataclass(frozen=True)
class ForeignRecording:
    """One recording of a mapping; `places` says where ``video``, ``audio``, ``target`` and ``target_time`` lie."""

    name: str
    partition: str
    subject: str
    places: dict[str, Location]


@dataclass(frozen=True)
class FeatureMapping:
    """What a mapping says.

    Attributes
    ----------
    path : Path
        The mapping itself.
    dataset : str
    fps : float
        Frames per second.
    hop, first_frame : int
        Frames from one row of features to the next, and the frame, from 0, at which the first row ends.
    targets : tuple of str
    ranges : tuple of (float, float) or None
        Of each target.
    target_rows : str
        ``clip`` or ``frame``: what a row of ratings belongs to, where they have no times.
    unrated : float or None
        The number that stands for "not rated" beside NaN.
    align : str
        ``exact`` or ``shortest``.
    encoders : dict
        What made the features of each modality, as far as the mapping says it.
    places : dict
        The declared locations, with their placeholders.
    recordings : tuple of ForeignRecording
        Sorted by name.
    """

    path: Path
    dataset: str
    fps: float
    hop: int
    first_frame: int
    targets: tuple[str, ...]
    ranges: tuple[Range | None, ...]
    target_rows: str
    unrated: float | None
    align: str
    encoders: dict[str, str]
    places: dict[str, str]
    recordings: tuple[ForeignRecording, ...]

    @property
    def folder(self) -> Path:
        """The folder in which all features lie."""
        return self.path.parent

    def file_of(self, location: Location) -> Path:
        """Return the file of a location."""
        return self.folder / location.file


def read_mapping(path: Path) -> FeatureMapping:
    """Read a mapping, and find the recordings that it speaks of.

    Raises
    ------
    UsageError
        If it cannot be read or does not say what is needed; the message names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    given = Declarations(path, table)
    given.check_keys(table, KEYS)
    fps, hop, targets = given.number("fps", minimum=0.0), given.whole("hop", 1, minimum=1), given.targets()
    recordings = tuple(sorted(_find_recordings(given), key=lambda item: item.name))
    _check_recordings(given, recordings, targets)
    return FeatureMapping(
        path=path,
        dataset=given.text("dataset", path.stem),
        fps=fps,
        hop=hop,
        first_frame=given.whole("first_frame", hop - 1, minimum=0),
        targets=targets,
        ranges=given.ranges(len(targets)),
        target_rows=_target_rows(given, recordings, hop),
        unrated=given.number("unrated") if "unrated" in table else None,
        align=given.choice("align", "exact", ALIGNMENTS),
        encoders={key: given.text(f"{key}_encoder", "") for key in MODALITIES},
        places={key: given.text(key, "") for key in (*MODALITIES, *RATINGS) if key in table},
        recordings=recordings,
    )


def _find_recordings(given: Declarations) -> Iterator[ForeignRecording]:
    """Yield the recordings: those that are listed, or those whose features are found."""
    declared = {key: given.table[key] for key in (*MODALITIES, *RATINGS) if key in given.table}
    for key, text in declared.items():
        given.location(key, text)
    listed = given.table.get("recordings")
    rows = _discovered(given, declared) if listed is None else _listed(given, listed)
    seen: set[str] = set()
    for where, row in rows:
        name = row["recording"]
        if name in seen:
            raise UsageError(f"{given.path}: {where}recording '{name}' occurs twice; names are unique")
        seen.add(name)
        subject = row.get("subject") or _subject(given, name)
        partition = row.get("partition") or _partition(given, name)
        if partition is None:
            continue
        if partition not in PARTITIONS:
            raise UsageError(f"{given.path}: {where}partition = '{partition}': expected {', '.join(PARTITIONS)}")
        values = {"recording": name, "subject": subject, "partition": partition}
        texts = declared | {key: row[key] for key in (*MODALITIES, *RATINGS) if key in row}
        places = {
            key: given.location(f"{where}{key}" if key in row else f"{key} of '{name}'", _fill(text, values))
            for key, text in texts.items()
        }
        yield ForeignRecording(name, partition, subject, places)


def _fill(text: Any, values: Mapping[str, str]) -> Any:
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text) if isinstance(text, str) else text


def _listed(given: Declarations, listed: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a table, a CSV file or one in the mapping, each with where it stands."""
    if isinstance(listed, str):
        rows = _read_csv(given, listed)
    elif isinstance(listed, list) and all(isinstance(item, dict) for item in listed):
        rows = [(f"recordings[{number}].", item) for number, item in enumerate(listed)]
    else:
        raise given.wrong("recordings", listed, "a CSV file, or tables [[recordings]]")
    for where, row in rows:
        given.check_keys(row, ROW_KEYS, where)
        if not all(isinstance(value, str) for value in row.values()):
            raise UsageError(f"{given.path}: {where[:-1]}: expected texts, such as recording = 's01'")
        if not row.get("recording"):
            raise UsageError(f"{given.path}: {where}recording is missing: the name of the recording")
        yield where, {key: value for key, value in row.items() if value}


def _read_csv(given: Declarations, file: str) -> list[tuple[str, dict[str, str]]]:
    given.check_inside("recordings", file)
    path = given.path.parent / file
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or ()
            rows = [(f"{file}, line {reader.line_num}: ", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{given.path}: recordings = '{file}': it cannot be read ({error})") from error
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UsageError(f"{given.path}: {file}, line 1: column '{twice[0]}' occurs twice; columns are unique")
    for where, row in rows:
        if None in row or None in row.values():
            raise UsageError(f"{given.path}: {where}expected as many fields as there are columns")
    return [(where, {key: value.strip() for key, value in row.items()}) for where, row in rows]


def _discovered(given: Declarations, declared: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what the placeholders of the video's location, or else of the audio's, stand for."""
    key = next((key for key in MODALITIES if key in declared), None)
    if key is None:
        raise UsageError(f"{given.path}: say where features lie, with video, with audio, or with both")
    text = declared[key]
    if "{recording}" not in text:
        raise given.wrong(key, text, "the placeholder {recording} in it, or a list of recordings")
    location, num_found = Location.parse(text), 0
    for file, values in _matching_files(given.path.parent, location.file):
        if PLACEHOLDER.search(_fill(location.inside, values)):
            try:
                names = list_arrays(given.path.parent / file)
            except UsageError as error:
                raise UsageError(f"{given.path}: {key} = '{text}': {file}: {error}") from error
            pattern = _pattern(location.inside.strip("/"), values)
            found = [values | match.groupdict() for name in names if (match := pattern.fullmatch(name))]
        else:
            found = [values]
        num_found += len(found)
        yield from (("", item) for item in found)
    if not num_found:
        raise UsageError(f"{given.path}: {key} = '{text}': nothing below {given.path.parent} is named like that")


def _matching_files(folder: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    if not PLACEHOLDER.search(text):
        yield text, {}
        return
    start = folder / text.partition("{")[0].rpartition("/")[0]
    pattern = _pattern(text, {})
    for path in sorted(start.rglob(f"*{Path(text).suffix}")):
        name = path.relative_to(folder).as_posix()
        if (match := pattern.fullmatch(name)) and path.is_file():
            yield name, match.groupdict()


def _pattern(text: str, known: Mapping[str, str]) -> re.Pattern[str]:
    """Return what a text with placeholders matches; one that occurs twice stands for the same both times."""
    parts, seen = [], set()
    for number, part in enumerate(PLACEHOLDER.split(text)):
        if number % 2 == 0:
            parts.append(re.escape(part))
        elif part in known:
            parts.append(re.escape(known[part]))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>{PLACEHOLDERS[part]})")
            seen.add(part)
    return re.compile("".join(parts))


def _subject(given: Declarations, name: str) -> str:
    """Return the subject that a recording's name says, or the name where no pattern is given."""
    text = given.text("subject", "{subject}")
    if text.count("{subject}") != 1:
        raise given.wrong("subject", text, "{subject} once, and * for the rest of the name, as in '{subject}_*'")
    readings = _readings(text, name)
    if not readings:
        raise given.wrong("subject", text, f"a pattern that every name has; '{name}' has not")
    if len(readings) > 1:
        one, other = readings[:2]
        raise given.wrong(
            "subject",
            text,
            f"a pattern that reads every name in one way; the subject of '{name}' may be '{one}' or '{other}': say "
            "more of the name, or list the recordings with their subjects",
        )
    return readings[0]


def _readings(text: str, name: str) -> list[str]:
    """Return whom a name may mean by a pattern, by where they stand in it.

    A subject does not hold the text that parts it from a ``*``: of ``a_b_c``, ``{subject}_*`` means ``a`` alone.
    """
    before, _, after = text.partition("{subject}")
    (_, star_before, left), (right, star_after, _) = before.rpartition("*"), after.partition("*")
    marks = [mark for mark, star in ((left, star_before), (right, star_after)) if mark and star]
    matches = [re.compile(re.escape(part).replace(r"\*", ".*")).fullmatch for part in (before, after)]
    places = range(len(name) + 1)
    starts = [place for place in places if matches[0](name[:place])]
    ends = [place for place in places if matches[1](name[place:])]
    found = (name[start:end] for start in starts for end in ends if start < end)
    return list(dict.fromkeys(part for part in found if not any(mark in part for mark in marks)))


def _partition(given: Declarations, name: str) -> str | None:
    """Return the partition whose patterns a recording's name matches, None for one to be skipped."""
    table = given.table.get("partitions")
    if table is None:
        raise UsageError(
            f"{given.path}: the partition of '{name}' is missing: give patterns of names in a table [partitions], a "
            "list of recordings, or {partition} in the location"
        )
    if not isinstance(table, dict):
        raise given.wrong("partitions", table, "a table of patterns, such as train = ['s01*', 's02*']")
    given.check_keys(table, (*PARTITIONS, SKIP), "partitions: ")
    found = []
    for partition, patterns in table.items():
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
            raise given.wrong(f"partitions.{partition}", patterns, "patterns of names, such as ['s01*', 's02*']")
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found.append(partition)
    if len(found) != 1:
        what = f"{' and '.join(found)} all match" if found else "no pattern matches"
        raise UsageError(f"{given.path}: partitions: {what} '{name}'; let one do, {SKIP} for one to be left out")
    return None if found[0] == SKIP else str(found[0])


def _check_recordings(given: Declarations, recordings: tuple[ForeignRecording, ...], targets: tuple[str, ...]) -> None:
    """Refuse recordings that lack what the others have, and ratings without targets or the other way round."""
    if not recordings:
        raise UsageError(f"{given.path}: there is no recording")
    kinds = {tuple(key for key in MODALITIES if key in item.places): item for item in recordings}
    if () in kinds:
        raise UsageError(f"{given.path}: recording '{kinds[()].name}' has neither video nor audio")
    if len(kinds) > 1:
        has, lacks = sorted(kinds, key=len, reverse=True)[:2]
        raise UsageError(
            f"{given.path}: recording '{kinds[has].name}' has {' and '.join(has)}, '{kinds[lacks].name}' has "
            f"{' and '.join(lacks)}; all recordings have the same"
        )
    is_rated = any("target" in item.places for item in recordings)
    if is_rated and not targets:
        raise UsageError(f'{given.path}: targets is missing: what the columns of target are, as ["valence", "arousal"]')
    if targets and not is_rated:
        raise UsageError(f"{given.path}: target is missing: where the ratings of {', '.join(targets)} lie")
    for item in recordings:
        if "target_time" in item.places and "target" not in item.places:
            raise UsageError(f"{given.path}: recording '{item.name}' has a target_time, but no target")


def _target_rows(given: Declarations, recordings: tuple[ForeignRecording, ...], hop: int) -> str:
    """Return what a row of ratings belongs to, which must be said where it is not clear."""
    is_timed = any("target_time" in item.places for item in recordings)
    if is_timed and "target_rows" in given.table:
        raise given.wrong("target_rows", given.table["target_rows"], "none where target_time says when a rating holds")
    untimed = [item for item in recordings if "target" in item.places and "target_time" not in item.places]
    if untimed and hop > 1 and "target_rows" not in given.table:
        raise UsageError(
            f"{given.path}: target_rows is missing: with hop = {hop}, say whether target has a row per 'clip' (per row "
            "of features) or per 'frame'"
        )
    return given.choice("target_rows", "clip", ROWS_PER)
