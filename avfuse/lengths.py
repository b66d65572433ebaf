"""How much there is to extract: the lengths of recordings, by the headers of their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import av

from avfuse import media
from avfuse.container import audio_stream, open_file, video_stream
from avfuse.options import ExtractOptions
from avfuse.schema import Recording, RecordingError

MAX_HEADERS = 300  # that are read; of more recordings an even sample by size
NUM_READ = 3  # files whose time stamps are read where no header tells a length
MAX_FPS = 240.0  # of a header that is believed

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Header:
    """What the header of a recording's file tells.

    Attributes
    ----------
    recording : Recording
    length_s : float
        Length in seconds; 0 where it is not told.
    num_frames : int
    lacking : str
        The modality that it lacks and may lack, ``audio`` or ``video``, or "".
    """

    recording: Recording
    length_s: float
    num_frames: int
    lacking: str


@dataclass(frozen=True)
class Extent:
    """How much there is to extract.

    Attributes
    ----------
    num_unreadable, num_to_do : int
        Recordings whose headers say that they cannot be used, and all others.
    length_s : float
        Of those, in seconds.
    num_clips : int
    headers : tuple of Header
        Those that were read, the smallest file first.
    notes : tuple of str
        How this was found out, in sentences.
    """

    num_unreadable: int
    num_to_do: int
    length_s: float
    num_clips: int
    headers: tuple[Header, ...]
    notes: tuple[str, ...]


def measure_extent(
    recordings: Sequence[Recording], options: ExtractOptions, on_progress: Callable[[float, float, str], None]
) -> Extent:
    """Read headers, of all or of an even sample by size, which stands for the others by the bytes of their files."""
    by_size = sorted(recordings, key=lambda recording: (num_bytes(recording), recording.name))
    sample = evenly(by_size, MAX_HEADERS)
    headers: list[Header] = []
    reasons: Counter[str] = Counter()
    for done, recording in enumerate(sample):
        on_progress(done, len(sample), f"{done}/{len(sample)} headers read")
        try:
            headers.append(_read_header(recording, options))
        except RecordingError as error:
            reasons[error.reason] += 1
    known, notes = _known(headers)
    if reasons:
        notes.insert(0, f"Recordings whose headers say that they cannot be used: {tell_reasons(reasons)}.")
    if len(sample) < len(by_size):
        told = f"{len(sample)} headers of {len(by_size):,} recordings were read, evenly by size of the files"
        notes.insert(0, f"Minutes, clips and what cannot be used are estimates: {told}.")
    num_unreadable = round(sum(reasons.values()) * len(by_size) / max(1, len(sample)))
    scale = 0.0
    if known:
        known_bytes, usable_bytes = (sum(num_bytes(header.recording) for header in of) for of in (known, headers))
        scale = sum(map(num_bytes, by_size)) * usable_bytes / (sum(map(num_bytes, sample)) * known_bytes)
    return Extent(
        num_unreadable=num_unreadable,
        num_to_do=len(by_size) - num_unreadable,
        length_s=scale * sum(header.length_s for header in known),
        num_clips=round(scale * sum(max(1, header.num_frames // options.hop) for header in known)),
        headers=tuple(headers),
        notes=tuple(notes),
    )


def _known(headers: Sequence[Header]) -> tuple[list[Header], list[str]]:
    """Return the headers that tell a length, and a note about those that do not; if none does, a few files are read."""
    known = [header for header in headers if header.length_s > 0]
    if len(known) == len(headers):
        return known, []
    told = f"{len(headers) - len(known)} of {len(headers)} headers tell no length"
    if not known:
        known = [read for header in evenly(headers, NUM_READ) for read in _read_stamps(header)]
        told = f"No header tells a length, {len(known)} of {len(headers)} files were read for it"
    return known, [f"{told}; the others are taken to be as long as the sizes of their files say."]


def _read_header(recording: Recording, options: ExtractOptions) -> Header:
    """Read a header.

    Raises
    ------
    RecordingError
        If it tells that the recording cannot be used.
    """
    path = recording.path
    with open_file(path) as container:
        lacking, length_s = "", max(0, container.duration or 0) / av.time_base
        try:
            picture = video_stream(container, path)
        except RecordingError:
            if not options.allow_missing:
                raise
            lacking, picture = "video", None
        try:
            audio_stream(container, path)
        except RecordingError:
            if lacking or not options.allow_missing:
                raise
            lacking = "audio"
        if picture is None:
            return Header(recording, length_s, round(length_s * media.SOUND_FPS), lacking)
        return _header_of(recording, picture, length_s, lacking)


def _header_of(recording: Recording, picture: Any, length_s: float, lacking: str) -> Header:
    if picture.duration:
        length_s = float(picture.duration * picture.time_base)
    fps = float(picture.average_rate or 0)
    if not (length_s > 0 and 0 < fps <= MAX_FPS):
        return Header(recording, 0.0, 0, lacking)
    return Header(recording, length_s, picture.frames or round(length_s * fps), lacking)


def _read_stamps(header: Header) -> list[Header]:
    """Return what the time stamps of a file tell, or nothing if they cannot be used."""
    try:
        timeline = media.probe(header.recording.path)
    except RecordingError:
        return []
    return [Header(header.recording, timeline.num_slots / timeline.fps, timeline.num_slots, header.lacking)]


def num_bytes(recording: Recording) -> int:
    """Return the size of a recording's file; of one that is not there, 1."""
    try:
        return max(1, recording.path.stat().st_size)
    except OSError:
        return 1


def evenly(items: Sequence[_Item], limit: int) -> list[_Item]:
    """Return items, or so many of them at even distances."""
    count = min(limit, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def tell_reasons(reasons: Counter[str]) -> str:
    """Return reasons with their counts, in words."""
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
