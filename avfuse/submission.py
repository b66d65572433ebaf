"""Submissions as the ABAW challenges want them: valence and arousal of every frame of every listed video.

Both kinds are written, from the same numbers::

    <folder>/videos/<video>.txt    header valence,arousal, one row per frame              (ABAW 1 to 4)
    <folder>/predictions.txt       header image_location,valence,arousal,
                                   rows <video>/00001.jpg,v,a                              (ABAW 5 and later)

The organisers count frames with another decoder, and score what has exactly their number of rows. A `Template` holds
their rows: a video of which they have a few more repeats its last row, one of which they have a few less is cut.
"""

import csv
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avfuse.atomic import flush_tree, naming, new_aside_name, remove_tree
from avfuse.schema import MAX_ROW_DIFFERENCE, MAX_ROW_DIFFERENCE_SHARE, Predictions, UsageError, row_tolerance

log = logging.getLogger(__name__)

TARGETS = ("valence", "arousal")
IMAGE_COLUMN = "image_location"
VIDEO_FOLDER, IMAGE_FILE = "videos", "predictions.txt"
_NUMBER = re.compile(r"\d")
_IMAGE = re.compile(r"(?P<video>.+)/(?P<number>\d+)\.\w+")


@dataclass(frozen=True)
class Template:
    """The organisers' rows.

    Attributes
    ----------
    rows : {video: int}
        Rows of a video's own file; a video that is not named has as many as frames.
    images : sequence of (str, str, int)
        Image location, video and frame number (from 1) of each row of the one file, in order; empty where the
        organisers list no images: every row of every video is then one, from 1.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    images: Sequence[tuple[str, str, int]] = ()

    @property
    def videos(self) -> list[str]:
        """The videos that must be predicted, in the organisers' order."""
        return list(dict.fromkeys([*self.rows, *(video for _, video, _ in self.images)]))


def read_template(place: Path) -> Template:
    """Read the organisers' rows: a file with a column ``image_location``, or a folder of one file per video.

    Raises
    ------
    UsageError
        If the place does not exist, or a line does not name an image; the message then names the line.
    """
    if place.is_dir():
        files = sorted(place.rglob("*.txt"))
        if not files:
            raise UsageError(f"{place} holds no <video>.txt; give the organisers' sample submission")
        return Template(rows={_video_name(place, file): _num_rows(file) for file in files})
    lines = _lines(place)
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    if IMAGE_COLUMN not in header:
        raise UsageError(f"{place}, line 1: expected a header with {IMAGE_COLUMN}, got {','.join(header)[:60]!r}")
    column = header.index(IMAGE_COLUMN)
    images = [_image(place, number, line, column) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    if not images:
        raise UsageError(f"{place} lists no image; give the organisers' list")
    return Template(images=images)


def check_submission(folder: Path, targets: Sequence[str], names: Collection[str], template: Template) -> None:
    """Refuse a submission that could not be written, before anything is predicted.

    Raises
    ------
    UsageError
        If the folder holds something, the targets are not valence and arousal, or a video of the template is not among
        the named ones.
    """
    if tuple(targets) != TARGETS:
        given = ", ".join(targets)
        raise UsageError(f"an ABAW submission is of {', '.join(TARGETS)}; these predictions are of {given}: use --csv")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; give a folder that is new or empty")
    missing = [video for video in template.videos if video not in names]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(template.videos)} videos of the template are not predicted, such as {missing[0]}; "
            "add them to the corpus's test list and extract them"
        )


def write_submission(folder: Path, predictions: Sequence[Predictions], template: Template) -> int:
    """Write both kinds of a submission to a folder that is new or empty; return the number of rows of the one file.

    Raises
    ------
    UsageError
        As `check_submission`, or if the rows of the template and the frames of a video differ by more than those of an
        annotation may (5, or 2 %).
    """
    check_submission(folder, predictions[0].targets, [item.recording for item in predictions], template)
    chosen = _choose(predictions, template)
    rows = {name: _rows(item, template.rows.get(name)) for name, item in chosen.items()}
    images = template.images or [
        (f"{name}/{number:05d}.jpg", name, number) for name in chosen for number in range(1, len(rows[name]) + 1)
    ]
    _check_images(images, rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / new_aside_name()
    try:
        for name, lines in rows.items():
            file = aside / VIDEO_FOLDER / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            with naming(folder):
                file.write_text("\n".join((",".join(TARGETS), *lines, "")), encoding="utf-8")
        located = [f"{image},{rows[video][min(number, len(rows[video])) - 1]}" for image, video, number in images]
        text = "\n".join((",".join((IMAGE_COLUMN, *TARGETS)), *located, ""))
        with naming(folder):
            (aside / IMAGE_FILE).write_text(text, encoding="utf-8")
        flush_tree(aside)
        aside.replace(folder)
    finally:
        remove_tree(aside)
    return len(images)


def _choose(predictions: Sequence[Predictions], template: Template) -> dict[str, Predictions]:
    """Return the predictions of the videos that the organisers list, in their order; of all where they list none."""
    found = {item.recording: item for item in predictions}
    videos = template.videos or list(found)
    if len(found) > len(videos):
        log.warning("predicted but not in the template, left out: %d", len(found) - len(videos))
    return {name: found[name] for name in videos}


def _rows(item: Predictions, num_rows: int | None) -> list[str]:
    """Return the values of each row of a video: cut, or with the last one repeated, to the organisers' number."""
    if not len(item.prediction_FE):
        raise UsageError(f"{item.recording} has no frames")
    lines = [",".join(f"{value:.5f}" for value in values) for values in item.prediction_FE.tolist()]
    if num_rows is None:
        return lines
    _check_difference(item.recording, num_rows, len(lines))
    return [*lines[:num_rows], *lines[-1:] * (num_rows - len(lines))]


def _check_images(images: Sequence[tuple[str, str, int]], rows: Mapping[str, Sequence[str]]) -> None:
    last: dict[str, int] = {}
    for _, video, number in images:
        last[video] = max(number, last.get(video, 0))
    for video, number in last.items():  # a list may leave frames out, but names none far behind the end
        if number > len(rows[video]):
            _check_difference(video, number, len(rows[video]))


def _check_difference(name: str, num_rows: int, num_frames: int) -> None:
    if abs(num_rows - num_frames) > row_tolerance(num_frames):
        raise UsageError(
            f"{name}: the template has {num_rows} rows, the video {num_frames} frames; they may differ by "
            f"{MAX_ROW_DIFFERENCE}, or by {MAX_ROW_DIFFERENCE_SHARE:.0%}. Is it the same video?"
        )


def _video_name(place: Path, file: Path) -> str:
    return file.relative_to(place).with_suffix("").as_posix()


def _num_rows(file: Path) -> int:
    """Return the number of rows below the header, which is a first line without a number."""
    lines = [line for line in _lines(file) if line.strip()]
    return len(lines) - (bool(lines) and not _NUMBER.search(lines[0]))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text ({error}); give the organisers' sample submission") from error


def _image(place: Path, number: int, line: str, column: int) -> tuple[str, str, int]:
    fields = next(csv.reader([line]))
    image = fields[column].strip() if column < len(fields) else ""
    match = _IMAGE.fullmatch(image)
    if match is None or int(match["number"]) < 1 or ".." in image.split("/") or image.startswith("/"):
        raise UsageError(f"{place}, line {number}: expected <video>/<frame number from 1>.jpg, got {image!r}")
    return image, match["video"], int(match["number"])
