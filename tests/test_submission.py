"""Submissions read back frame for frame, with exactly the organisers' number of rows."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from avfuse.corpora.aff_wild2 import AffWild2Corpus
from avfuse.schema import Predictions, UsageError
from avfuse.submission import Template, read_template, write_submission


def item(name: str, num_frames: int, targets: tuple[str, ...] = ("valence", "arousal")) -> Predictions:
    rng = np.random.default_rng(num_frames)
    values = rng.uniform(-1, 1, size=(num_frames, len(targets))).astype(np.float32)
    unrated = np.full_like(values, np.nan)
    time_s, face = np.arange(num_frames) / 30, np.ones(num_frames, bool)
    return Predictions(name, name, "test", targets, time_s, values, unrated, face)


VIDEOS = [item("12-24-1920x1080", 40), item("video59_right", 300), item("a video", 1)]


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def values_of(rows: list[list[str]]) -> np.ndarray:
    return np.array([[float(field) for field in row[-2:]] for row in rows])


def test_both_kinds_hold_every_frame(tmp_path: Path) -> None:
    assert write_submission(tmp_path / "submission", VIDEOS, Template()) == 341
    everything = read_rows(tmp_path / "submission" / "predictions.txt")
    assert everything[0] == ["image_location", "valence", "arousal"]
    places = [f"{video.recording}/{frame:05d}.jpg" for video in VIDEOS for frame in range(1, len(video.time_s) + 1)]
    assert [row[0] for row in everything[1:]] == places
    expected = np.concatenate([video.prediction_FE for video in VIDEOS])
    # five decimals are written
    np.testing.assert_allclose(values_of(everything[1:]), expected, rtol=0, atol=5.1e-6)
    for video in VIDEOS:
        rows = read_rows(tmp_path / "submission" / "videos" / f"{video.recording}.txt")
        assert rows[0] == ["valence", "arousal"]
        np.testing.assert_allclose(values_of(rows[1:]), video.prediction_FE, rtol=0, atol=5.1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submission"]


def test_a_videos_file_reads_back_as_an_annotation(tmp_path: Path) -> None:
    write_submission(tmp_path / "submission", VIDEOS, Template())
    challenge = tmp_path / "corpus" / "annotations" / "VA_Estimation_Challenge"
    (challenge / "Validation_Set").mkdir(parents=True)
    (tmp_path / "submission" / "videos").rename(challenge / "Train_Set")
    corpus = AffWild2Corpus(tmp_path / "corpus")
    for recording in corpus.recordings():
        (video,) = (video for video in VIDEOS if video.recording == recording.name)
        frame_target_FE = corpus.annotation(recording).at(video.time_s)
        np.testing.assert_allclose(frame_target_FE, video.prediction_FE, rtol=0, atol=5.1e-6)


def test_the_organisers_images_and_no_others(tmp_path: Path) -> None:
    """Frames may be left out, in any order, and the last numbers may lie behind the end."""
    listed = [*(("video59_right", frame) for frame in (3, 4, 300, 301, 302)), ("12-24-1920x1080", 1)]
    template = tmp_path / "template.txt"
    lines = [f"{video}/{frame:05d}.jpg,0,0" for video, frame in listed]
    template.write_text("\n".join(("image_location,valence,arousal", *lines, "")))
    assert write_submission(tmp_path / "submission", VIDEOS, read_template(template)) == len(listed)
    rows = read_rows(tmp_path / "submission" / "predictions.txt")
    assert [row[0] for row in rows[1:]] == [line.split(",")[0] for line in lines]
    by_name = {video.recording: video.prediction_FE for video in VIDEOS}
    expected = [by_name[video][min(frame, len(by_name[video])) - 1] for video, frame in listed]
    np.testing.assert_allclose(values_of(rows[1:]), expected, rtol=0, atol=5.1e-6)
    assert not (tmp_path / "submission" / "videos" / "a video.txt").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("valence,arousal\n" + "0,0\n" * 99, 99),
        ("Valence,Arousal\n" + "0,0\n" * 99, 99),
        ("valence\tarousal\r\n" + "0\t0\r\n" * 99, 99),
        ("\ufeffvalence,arousal\n" + "0,0\n" * 99 + "\n\n", 99),
        ("0.1,0.2\n" * 99, 99),  # without a header
        ("", 0),
    ],
)
def test_rows_are_counted_below_any_header(text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "video.txt").write_text(text)
    assert read_template(tmp_path).rows == {"video": expected}


@pytest.mark.parametrize("difference", [-2, -1, 0, 1, 2])
def test_the_organisers_number_of_rows(difference: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "template"
    folder.mkdir()
    num_rows = {video.recording: len(video.time_s) + difference for video in VIDEOS[:2]}
    for name, number in num_rows.items():
        (folder / f"{name}.txt").write_text("valence,arousal\n" + "0,0\n" * number)
    with caplog.at_level(logging.WARNING):
        write_submission(tmp_path / "submission", VIDEOS, read_template(folder))
    assert "predicted but not in the template, left out: 1" in caplog.text
    written = read_rows(tmp_path / "submission" / "predictions.txt")[1:]
    assert len(written) == sum(num_rows.values())
    for video in VIDEOS[:2]:
        rows = values_of(read_rows(tmp_path / "submission" / "videos" / f"{video.recording}.txt")[1:])
        assert len(rows) == num_rows[video.recording]
        expected = [video.prediction_FE[min(row, len(video.time_s) - 1)] for row in range(len(rows))]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=5.1e-6)


def test_a_template_of_another_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="video59_right: the template has 320 rows, the video 300 frames; they may"):
        write_submission(tmp_path / "submission", VIDEOS, Template(rows={"video59_right": 320}))
    images = [("video59_right/00400.jpg", "video59_right", 400)]
    with pytest.raises(UsageError, match="the template has 400 rows, the video 300 frames"):
        write_submission(tmp_path / "submission", VIDEOS, Template(images=images))
    assert not list(tmp_path.iterdir())


def test_a_video_that_was_not_predicted_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 of 2 videos of the template are not predicted, such as video60"):
        write_submission(tmp_path / "submission", VIDEOS, Template(rows={"video59_right": 300, "video60": 10}))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already; give a folder that is new or empty"):
        write_submission(tmp_path, VIDEOS, Template())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of valence, arousal; these predictions are of fatigue: use --csv"):
        write_submission(tmp_path / "submission", [item("a", 3, ("fatigue",))], Template())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with image_location, got ''"),
        ("valence,arousal\n0,0\n", "line 1: expected a header with image_location, got 'valence,arousal'"),
        ("image_location,valence\n", "lists no image"),
        (
            "image_location\nvideo/00001.jpg\nvideo 2\n",
            "line 3: expected <video>/<frame number from 1>.jpg, got 'video 2'",
        ),
        ("image_location\nvideo/00000.jpg\n", "line 2: expected <video>/<frame number from 1>.jpg"),
        ("image_location\n../../x/00001.jpg\n", "line 2: expected <video>/<frame number from 1>.jpg"),
    ],
)
def test_what_is_no_template(text: str, message: str, tmp_path: Path) -> None:
    template = tmp_path / "template.txt"
    template.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_template(template)


def test_where_there_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_template(tmp_path / "nowhere.txt")
    with pytest.raises(UsageError, match=r"holds no <video>\.txt"):
        read_template(tmp_path)
