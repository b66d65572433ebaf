"""Every registered corpus keeps the contract of `avfuse.corpora`; every fault in a trace is told with its line."""

import errno
import inspect
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import (
    CHALLENGE,
    OLD_CHALLENGE,
    RATINGS,
    RATINGS_HEADER,
    TEST_LIST,
    TREES,
    aff_wild2_tree,
    fatigue_tree,
    put,
)

from avfuse import registry
from avfuse.corpora import Corpus
from avfuse.corpora._text import Faults, read_lines
from avfuse.corpora._traces import Row, parse_numbers, read_number
from avfuse.corpora._tree import tree_of
from avfuse.corpora.aff_wild2 import AffWild2Corpus
from avfuse.corpora.fatigue import FatigueCorpus
from avfuse.corpora.folder import FolderCorpus
from avfuse.schema import PARTITIONS, AnnotationError, RecordingError, RowCount, UsageError
from avfuse.spec import Source

FIRST_TARGETS = {  # of the first frames, 0.04 s apart, of the recording to train on
    "aff_wild2": {"valence": [0.5, np.nan], "arousal": [-0.25, np.nan]},
    "folder": {"valence": [0.5, np.nan], "arousal": [-0.25, np.nan]},
    "fatigue": {"fatigue": [3.5, 3.5]},
}
every_corpus = pytest.mark.parametrize("name", list(registry.CORPORA))
every_ranged_corpus = pytest.mark.parametrize("name", ["folder", "fatigue"])
every_corpus_of_traces = pytest.mark.parametrize("name", [name for name in registry.CORPORA if name != "fatigue"])


def test_every_registered_corpus_has_a_tree() -> None:
    assert set(TREES) == set(FIRST_TARGETS) == set(registry.CORPORA), "add a tree for the new corpus"


@every_corpus
def test_contract(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    corpus: Corpus = registry.load("corpus", name)(tmp_path)
    recordings = corpus.recordings()
    names = [recording.name for recording in recordings]
    assert corpus.layout
    assert corpus.targets == tuple(FIRST_TARGETS[name])
    assert len(corpus.ranges) == len(corpus.targets)
    assert all(limits is None or limits[0] < limits[1] for limits in corpus.ranges)
    assert names == sorted(set(names))
    assert {recording.partition for recording in recordings} == set(PARTITIONS)
    for recording in recordings:
        assert recording.path.is_file()
        assert recording.path.is_relative_to(tmp_path)
        annotation = corpus.annotation(recording)
        assert (annotation is None) == (recording.partition == "test")
        assert (recording.annotation_path is None) == (annotation is None)
    trace = corpus.annotation(next(recording for recording in recordings if recording.partition == "train"))
    assert trace is not None
    assert trace.targets == corpus.targets
    assert trace.values_FE.dtype == np.float64
    np.testing.assert_array_equal(trace.at(np.array([0.0, 0.04])).T, list(FIRST_TARGETS[name].values()))


@every_corpus
def test_arguments_are_what_a_user_can_give(name: str, tmp_path: Path) -> None:
    plug = registry.load("corpus", name)
    first, *others = inspect.signature(plug).parameters.values()
    assert first.name == "root"
    assert all(type(parameter.default) in {bool, int, float, str} for parameter in others)
    given = {parameter.name: parameter.default for parameter in others}
    assert registry.check_arguments("corpus", name, given, reserved=("root",)).keys() <= {"lowest", "highest"}  # NaN
    TREES[name](tmp_path)
    assert plug(tmp_path, **given).recordings() == plug(tmp_path).recordings()


@every_corpus
@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_unusable_root(name: str, kind: str, tmp_path: Path) -> None:
    root = tmp_path / "given"
    if kind == "file":
        root.write_text("text")
    elif kind == "empty":
        root.mkdir()
    with pytest.raises(UsageError, match="given") as caught:
        registry.load("corpus", name)(root)
    assert "\n" not in str(caught.value)


FAULTS = {
    "too_many_fields": (b"valence,arousal\n0,0\n0,0,0\n", "line 3: expected 2 comma-separated fields .*, got 3"),
    "too_few_fields": (b"valence,arousal\n0\n", "line 2: expected 2 comma-separated fields .*, got 1"),
    "blank_line": (b"valence,arousal\n0,0\n\n0,0\n", "line 3: expected 2 .*, got a blank line"),
    "word": (b"valence,arousal\r\n0,0\r\n0,high\r\n", "line 3: expected a number, got 'high' as arousal"),
    "underscore": (b"valence,arousal\n0,0_1\n", "line 2: expected a number, got '0_1'"),
    "infinity": (b"valence,arousal\n0,inf\n", "line 2: expected a number, got 'inf'"),
    "quoted": (b'valence,arousal\n0,"0.5"\n', "line 2: expected a number without quotes, got '\"0.5\"' as arousal"),
    "decimal_comma": (b"valence,arousal\n0,5,0,1\n", "line 2: .*, got 4 .'0,5,0,1'., as decimal commas make; .* point"),
    "overflow": (b"valence,arousal\n0,1e999\n", "line 2: expected a number, got '1e999'"),
    "other_digits": ("valence,arousal\n0,\N{FULLWIDTH DIGIT ONE}\n".encode(), "line 2: expected a number"),
    "header_only": (b"valence,arousal\n", "line 2: expected rows of numbers below the header"),
    "header_and_blank": (b"valence,arousal\n\n\n", "line 2: expected rows of numbers below the header"),
    "utf16": ("valence,arousal\n0,0\n".encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
    "utf16_little": ("valence,arousal\n0,0\n".encode("utf-16-le"), "line 1: .*, got UTF-16 without a byte order mark"),
    "utf16_big": ("valence,arousal\n0,0\n".encode("utf-16-be"), "line 1: .*, got UTF-16 without a byte order mark"),
    "latin1": (b"valence,arousal\n0,0\n0,\xe9\n", "line 3: expected UTF-8 text, got the byte 0xe9"),
    "binary": (b"valence,arousal\n0,0\n\x00\x01", "line 3: expected UTF-8 text, got a zero byte .a binary file"),
    "cr_only": (b"valence,arousal\r0,0\r", "line 1: expected lines that end in LF or CRLF, got a lone CR"),
    "zeros": (bytes(80), "line 1: expected UTF-8 text, got a zero byte .a binary file"),
    "lone_cr": (b"valence,arousal\n0,0\r0,0\r", "line 2: expected lines that end in LF or CRLF, got a lone CR"),
    "empty_file": (b"", "line 1: expected a header, got an empty file"),
    "only_a_mark": (b"\xef\xbb\xbf", "line 1: expected a header, got an empty file"),
    "blank_first": (b"\nvalence,arousal\n0,0\n", "line 1: expected a header, got a blank line"),
    "no_header": (b"0.1,0.2\n0.1,0.2\n", "line 1: expected .*header .*, got '0.1,0.2'"),
    "swapped": (b"arousal,valence\n0,0\n", r"line 1: expected .*valence,arousal.*, got .*arousal,valence"),
    "wrong_header": (b"valence\n0\n", "line 1: expected .*valence,arousal.*, got .*valence"),
}


def first_fault(name: str, root: Path, trace: str | bytes) -> RecordingError:
    """Build the corpus with this trace as its first; the others must stay readable."""
    TREES[name](root, trace)
    # The folder's targets come from the first header by name: put a good one before the faulty one.
    put(root, "train/a.mp4")
    put(root, "train/a.csv", "valence,arousal\n0,0\n")
    corpus = registry.load("corpus", name)(root)
    recordings = {Path(recording.name).name: recording for recording in corpus.recordings()}
    assert corpus.annotation(recordings["second"]) is not None
    with pytest.raises(RecordingError) as caught:
        corpus.annotation(recordings["first"])
    return caught.value


@every_corpus_of_traces
@pytest.mark.parametrize("fault", list(FAULTS))
def test_faulty_trace(name: str, fault: str, tmp_path: Path) -> None:
    trace, message = FAULTS[fault]
    error = first_fault(name, tmp_path, trace)
    assert error.reason == "annotation_invalid"
    assert "\n" not in str(error)
    assert "; " in str(error)
    with pytest.raises(RecordingError, match=rf"first\.(txt|csv), {message}"):
        raise error


@every_corpus_of_traces
def test_every_faulty_line_is_named(name: str, tmp_path: Path) -> None:
    lines = ["arousal,valence", "0,0", "0", "", "0,high", "low,1e999", '0,"1"', "0,0,0", "1,1", "inf,"]
    error = first_fault(name, tmp_path, "\r\n".join(lines))
    assert isinstance(error, AnnotationError)
    assert {fault.path.stem for fault in error.faults} == {"first"}
    found = [(fault.line, fault.message.partition(" got ")[2].partition(";")[0]) for fault in error.faults]
    swapped = "'arousal,valence'" if name == "aff_wild2" else "arousal,valence (in another order)"
    column = "valence" if name == "aff_wild2" else "arousal"
    other = {"valence": "arousal", "arousal": "valence"}[column]
    assert found == [
        (1, swapped),
        (3, "1 ('0')"),
        (4, "a blank line"),
        (5, f"'high' as {other}"),
        (6, f"'low' as {column}"),
        (7, f"'\"1\"' as {other}"),
        (8, "3 ('0,0,0')"),
        (10, f"'inf' as {column}"),
    ]
    assert str(error).startswith(f"{error.faults[0]} (so also lines 3, 4, 5, 6, 7, 8, 10)")


AWKWARD = [
    *("0", "-0.5", "+.5e-3", "1.", ".", "", "nan", "NaN", "-nan", "inf", "1e999", "-1e999", "1_0", "0x1", "1e", "--1"),
    *("1 2", "0,5", "1d3", "\N{FULLWIDTH DIGIT ONE}", "\N{ARABIC-INDIC DIGIT ONE}", "infinity", "1e5", "1e-400", "1 "),
]


@pytest.mark.parametrize("blank", [False, True])
def test_rows_that_are_read_at_once_are_read_as_strictly_as_field_by_field(blank: bool, tmp_path: Path) -> None:
    for field in AWKWARD:
        alone, together = Faults(tmp_path), Faults(tmp_path)
        expected = read_number(alone, 7, "a", field, blank=blank)
        values = parse_numbers(together, [Row(7, [field, "0"])], ("a", "b"), blank=blank)
        np.testing.assert_array_equal(values, [[expected, 0]])
        messages = []
        for faults in (alone, together):
            try:
                faults.raise_any()
            except AnnotationError as error:
                messages.append(str(error))
        assert len(messages) in {0, 2}, field
        assert len(set(messages)) == len(messages) // 2
        assert (not messages) == (np.isfinite(expected) or (blank and field.lower() in {"", "nan"})), field


@every_corpus_of_traces
@pytest.mark.parametrize("trace", [b"\xef\xbb\xbfvalence,arousal\r\n0.5, 1\r\n\r\n", b"valence, arousal\n.5,+1e0"])
def test_mark_line_ends_and_spaces(name: str, trace: bytes, tmp_path: Path) -> None:
    TREES[name](tmp_path, trace)
    corpus = registry.load("corpus", name)(tmp_path)
    annotation = corpus.annotation(next(r for r in corpus.recordings() if r.name.endswith("first")))
    np.testing.assert_array_equal(annotation.values_FE, [[0.5, 1.0]])


@every_corpus_of_traces
def test_trace_that_vanished(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    corpus = registry.load("corpus", name)(tmp_path)
    recording = next(r for r in corpus.recordings() if r.annotation_path)
    recording.annotation_path.unlink()
    with pytest.raises(RecordingError, match="line 1: expected a readable text file, got No such file"):
        corpus.annotation(recording)


@every_corpus
def test_links_out_of_the_tree_and_hidden_files(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    TREES[name](root)
    before = registry.load("corpus", name)(root).recordings()
    outside = put(tmp_path, "outside/fourth.mp4")
    for folder in {before[0].path.parent, before[1].path.parent}:
        (folder / "fourth.mp4").symlink_to(outside)
        (folder / "folder").symlink_to(outside.parent)
        put(folder, ".hidden.mp4")
        put(folder, ".hidden/fifth.mp4")
    with caplog.at_level(logging.WARNING):
        assert registry.load("corpus", name)(root).recordings() == before
    assert "linked folders or links that lead out of it, left out: 4; copy the files" in caplog.text


def test_a_tree_holds_what_is_asked_for_and_enters_no_closed_folder(tmp_path: Path) -> None:
    for name in ("b/1.JPG", "b/2.txt", "a/closed/x/3.jpg", "jpg"):
        put(tmp_path, name)
    put(tmp_path, "__MACOSX/b/1.JPG")
    put(tmp_path, "b/__MACOSX/1.JPG")
    tree = tree_of(tmp_path, (".jpg",), closed="clos*")
    assert tree.files == [tmp_path / "b/1.JPG"]
    assert tree.folders == [tmp_path / "a", tmp_path / "a/closed", tmp_path / "b"]
    assert tree_of(tmp_path, (".jpg",)).files == [tmp_path / "a/closed/x/3.jpg", tmp_path / "b/1.JPG"]


def test_links_that_stay_in_the_tree_are_followed_to_files(tmp_path: Path) -> None:
    target = put(tmp_path, "a/x.mp4")
    (tmp_path / "b.mp4").symlink_to(target)
    assert tree_of(tmp_path, (".mp4",)).files == [target, tmp_path / "b.mp4"]


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "shut/a.mp4")
    put(tmp_path, "open/b.mp4")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert tree_of(tmp_path, (".mp4",)).files == [tmp_path / "open/b.mp4"]
    assert f"left out: 1, such as {tmp_path}/shut (Permission denied); check their permissions" in caplog.text


@pytest.mark.parametrize("row", ["-5,-5", "-5.0,0.5", "0.5,-5", "-5.000,-5e0", "1,-05"])
def test_aff_wild2_unrated(row: str, tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path, f"valence,arousal\n1,-1\n{row}\n0.25,0\n")
    corpus = AffWild2Corpus(tmp_path)
    annotation = corpus.annotation(corpus.recordings()[0])
    assert annotation is not None
    np.testing.assert_array_equal(annotation.values_FE, [[1, -1], [np.nan, np.nan], [0.25, 0]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.7,0", r"line 3: expected a value in \[-1, 1\].*, got 1.7 as valence"),
        ("0,-4.99", "line 3: .* got -4.99 as arousal"),
        ("-5,3", "line 3: .* got 3 as arousal"),
        (",0", "line 3: expected a number, got a blank field as valence"),
        ("0,nan", "line 3: expected a number, got 'nan' as arousal"),
    ],
)
def test_aff_wild2_values(row: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=message):
        raise first_fault("aff_wild2", tmp_path, f"valence,arousal\n0,0\n{row}\n")


def test_aff_wild2_says_how_to_mend_the_header(tmp_path: Path) -> None:
    assert "swap the columns" in str(first_fault("aff_wild2", tmp_path / "a", "arousal,valence\n0,0\n"))
    assert "write the header" in str(first_fault("aff_wild2", tmp_path / "b", "0,0\n0,0\n"))


def test_aff_wild2_recordings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    aff_wild2_tree(tmp_path)
    put(tmp_path, f"{CHALLENGE}/Train_Set/lost.txt", "valence,arousal\n0,0\n")
    put(tmp_path, f"{CHALLENGE}/Train_Set/first.mp4")
    put(tmp_path, "batch1/other.mp4")
    with caplog.at_level(logging.WARNING):
        recordings = {recording.name: recording for recording in AffWild2Corpus(tmp_path).recordings()}
    assert {name: recording.partition for name, recording in recordings.items()} == {
        "first": "train",
        "lost": "train",
        "second": "validation",
        "third": "test",
    }
    assert all(recording.subject == name for name, recording in recordings.items())
    assert recordings["first"].path == tmp_path / "batch1/first.mp4"
    assert recordings["third"].path == tmp_path / "batch2/third.MP4"
    assert recordings["lost"].path == tmp_path / "lost.mp4"
    assert not recordings["lost"].path.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: videos neither annotated nor in a test list, left out: 1"
    ]


def test_aff_wild2_matches_composed_and_decomposed_names(tmp_path: Path) -> None:
    put(tmp_path, f"{CHALLENGE}/Train_Set/caf\N{LATIN SMALL LETTER E WITH ACUTE}.1.txt", "valence,arousal\n0,0\n")
    put(tmp_path, "cafe\N{COMBINING ACUTE ACCENT}.1.mp4")
    (tmp_path / CHALLENGE / "Validation_Set").mkdir()
    (recording,) = AffWild2Corpus(tmp_path).recordings()
    assert recording.name == "caf\N{LATIN SMALL LETTER E WITH ACUTE}.1"
    assert recording.path.is_file()


def test_aff_wild2_refusals(tmp_path: Path) -> None:
    root = tmp_path / "two"
    aff_wild2_tree(root)
    put(root, "batch9/first.mkv")
    with pytest.raises(UsageError, match=r"two videos are named first: .*batch1/first.mp4 and .*batch9/first.mkv"):
        AffWild2Corpus(root)

    root = tmp_path / "leak"
    aff_wild2_tree(root)
    put(root, f"{CHALLENGE}/Validation_Set/first.txt", "valence,arousal\n0,0\n")
    with pytest.raises(UsageError, match=r"first is annotated twice, in .*Train_Set.* and .*Validation_Set"):
        AffWild2Corpus(root)

    root = tmp_path / "test leak"
    aff_wild2_tree(root)
    put(root, TEST_LIST, "second\n")
    with pytest.raises(UsageError, match="second is in the test list and in the validation set"):
        AffWild2Corpus(root)

    root = tmp_path / "no annotations"
    for folder in ("Train_Set", "Validation_Set"):
        (root / CHALLENGE / folder).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no annotations under .*Train_Set"):
        AffWild2Corpus(root)

    root = tmp_path / "half"
    (root / CHALLENGE / "Train_Set").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no annotations/VA_Estimation_Challenge/Validation_Set\. Expected"):
        AffWild2Corpus(root)

    root = tmp_path / "both"
    aff_wild2_tree(root)
    put(root, f"old/{OLD_CHALLENGE}/Train_Set/first.txt", "valence,arousal\n0,0\n")
    with pytest.raises(UsageError, match=r"of two challenges, .*/VA_Estimation_Challenge and .*/VA_Set; leave"):
        AffWild2Corpus(root)

    root = tmp_path / "case"
    aff_wild2_tree(root)
    put(root, f"{CHALLENGE}/train_set/fourth.txt", "valence,arousal\n0,0\n")
    with pytest.raises(
        UsageError,
        match=r"it has .*/Train_Set and .*/train_set\. .*VA_Estimation_Challenge must hold one folder Train_Set",
    ):
        AffWild2Corpus(root)

    root = tmp_path / "crops"
    aff_wild2_tree(root)
    for folder in ("a", "b"):
        put(root, f"{folder}/cropped_aligned/first/00001.jpg")
    with pytest.raises(UsageError, match=r"two folders of aligned images are named first: .*/a/.* and .*/b/"):
        AffWild2Corpus(root)


@pytest.mark.parametrize("challenge", [CHALLENGE, OLD_CHALLENGE, "VA_Set", "x/y/va_estimation_challenge"])
def test_aff_wild2_annotations_lie_in_either_folder_anywhere(challenge: str, tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path, challenge=challenge)
    (tmp_path / "empty" / "VA_Set").mkdir(parents=True)  # what another challenge left behind
    for folder in (challenge, "annotations/EXPR_Set"):  # no videos of the corpus
        put(tmp_path, f"{folder}/first.mp4")
    corpus = AffWild2Corpus(tmp_path)
    assert [(r.name, r.partition) for r in corpus.recordings()] == [
        ("first", "train"),
        ("second", "validation"),
        ("third", "test"),
    ]
    assert all("batch" in recording.path.parent.name for recording in corpus.recordings())
    assert corpus.ranges == ((-1, 1), (-1, 1))


def test_aff_wild2_tolerates_another_case_of_the_partition_folders(tmp_path: Path) -> None:
    put(tmp_path, "VA_Set/train_set/a.txt", "valence,arousal\n0,0\n")
    put(tmp_path, "VA_Set/VALIDATION_SET/b.txt", "valence,arousal\n0,0\n")
    assert [(r.name, r.partition) for r in AffWild2Corpus(tmp_path).recordings()] == [
        ("a", "train"),
        ("b", "validation"),
    ]


def test_aff_wild2_two_people_in_one_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    aff_wild2_tree(tmp_path)
    one_row = "valence,arousal\n0,0\n"
    for name in (
        "pair",
        "pair_left",
        "pair_right",
        "own_left",
        "own_right",
        "up_left",
        "lost_left",
        "one",
        "one_right",
    ):
        put(tmp_path, f"{CHALLENGE}/Train_Set/{name}.txt", one_row)
    put(tmp_path, TEST_LIST, "third\nlisted_right\nhands_left_right\n")
    put(tmp_path, f"{CHALLENGE}/Validation_Set/two.txt", one_row)
    put(tmp_path, f"{CHALLENGE}/Validation_Set/two_left.txt", one_row)
    put(tmp_path, f"{CHALLENGE}/Train_Set/up.txt", one_row)  # up_left has a file of its own
    names = ("pair", "own", "own_left", "own_right", "up", "up_left", "listed", "hands_left", "one", "two")
    for name in names:
        put(tmp_path, f"batch1/{name}.mp4")
    with caplog.at_level(logging.WARNING):
        recordings = {recording.name: recording for recording in AffWild2Corpus(tmp_path).recordings()}
    assert {name: (r.path.name, r.face_side) for name, r in recordings.items()} == {
        "first": ("first.mp4", None),
        "second": ("second.avi", None),
        "third": ("third.MP4", None),
        "one": ("one.mp4", "left"),
        "one_right": ("one.mp4", "right"),
        "two": ("two.mp4", "right"),
        "two_left": ("two.mp4", "left"),
        "up": ("up.mp4", None),
        "pair": ("pair.mp4", None),
        "pair_left": ("pair.mp4", "left"),
        "pair_right": ("pair.mp4", "right"),
        "own_left": ("own_left.mp4", None),
        "own_right": ("own_right.mp4", None),
        "up_left": ("up_left.mp4", None),
        "lost_left": ("lost_left.mp4", None),
        "listed_right": ("listed.mp4", "right"),
        "hands_left_right": ("hands_left.mp4", "right"),
    }
    assert recordings["listed_right"].partition == "test"
    assert recordings["pair_left"].subject == "pair_left"
    assert recordings["pair_left"].path == recordings["pair_right"].path
    assert "left out: 1" in caplog.text  # own.mp4, whose two people have files of their own
    put(tmp_path, "batch2/own.mp4")  # which nobody needs
    AffWild2Corpus(tmp_path)
    put(tmp_path, "batch2/listed.avi")
    with pytest.raises(UsageError, match=r"two videos are named listed: .*batch1/listed.mp4 and .*batch2/listed.avi"):
        AffWild2Corpus(tmp_path)


def test_aff_wild2_aligned_images(tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path)
    put(tmp_path, f"{CHALLENGE}/Train_Set/pair_left.txt", "valence,arousal\n0,0\n")
    put(tmp_path, "batch1/pair.mp4")
    put(tmp_path, "images/cropped_aligned/first/00001.jpg")
    put(tmp_path, "images/cropped_aligned/first/second.mp4")  # no video of the corpus
    put(tmp_path, "more/cropped_aligned/pair_left/00002.jpg")
    put(tmp_path, "more/cropped_aligned/third")  # a file
    put(tmp_path, "cropped_aligned_new_50_vids/cropped_aligned/second/00001.jpg")  # unpacked twice
    put(tmp_path, "cropped_aligned_new_50_vids/pair_right/second.mp4")
    for folder in ("images/cropped_aligned", "more/cropped_aligned"):
        put(tmp_path, f"{folder}/__MACOSX/._00001.jpg")
    put(tmp_path, f"{CHALLENGE}/Train_Set/pair_right.txt", "valence,arousal\n0,0\n")
    crops = {recording.name: recording.crops for recording in AffWild2Corpus(tmp_path).recordings()}
    assert crops == {
        "first": tmp_path / "images/cropped_aligned/first",
        "pair_left": tmp_path / "more/cropped_aligned/pair_left",
        "pair_right": tmp_path / "cropped_aligned_new_50_vids/pair_right",
        "second": tmp_path / "cropped_aligned_new_50_vids/cropped_aligned/second",
        "third": None,
    }
    put(tmp_path, "cropped_aligned_more/first/00001.jpg")
    with pytest.raises(UsageError, match=r"two folders of aligned images are named first: .*aligned_more/first and "):
        AffWild2Corpus(tmp_path)


@pytest.mark.parametrize("difference", [-2, 0, 2])
def test_aff_wild2_rows_that_are_not_as_many_as_frames(difference: int, tmp_path: Path) -> None:
    rows = ["-5.0,-5.0", *(f"{i / 100},{-i / 100}" for i in range(1, 10))]
    aff_wild2_tree(tmp_path, "\n".join(("valence,arousal", *rows, "")))
    corpus = AffWild2Corpus(tmp_path)
    annotation = corpus.annotation(corpus.recordings()[0])
    assert annotation is not None
    frame_time_s = np.arange(10 - difference) * 0.04
    expected_F = [i / 100 if 0 < i < 10 else np.nan for i in range(10 - difference)]
    np.testing.assert_array_equal(annotation.at(frame_time_s)[:, 0], np.float32(expected_F))
    assert annotation.count(frame_time_s) == RowCount(10, 10 - difference, max(0, difference), max(0, -difference))


def test_aff_wild2_test_list_in_another_folder(tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path)
    put(tmp_path, "lists/valence_arousal_Estimation_Challenge_TEST_SET_release.TXT", "fourth\nthird\n")
    put(tmp_path, "Valence_Arousal_test_set.txt", "fifth\n")
    put(tmp_path, "Expression_test_set.txt", "sixth\n")
    put(tmp_path, f"{CHALLENGE}/Valence_Arousal_test_set.txt", "seventh\n")
    names = [recording.name for recording in AffWild2Corpus(tmp_path).recordings() if recording.partition == "test"]
    assert names == ["fifth", "fourth", "third"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"third\n../../secret\n", "line 2: expected the name of a video, got '../../secret'"), (b"\xff\xfea", "UTF-16")],
)
def test_aff_wild2_test_list(content: bytes, message: str, tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path)
    put(tmp_path, TEST_LIST, content)
    with pytest.raises(UsageError, match=message):
        AffWild2Corpus(tmp_path)


def test_aff_wild2_follows_no_link_out_of_the_root(tmp_path: Path) -> None:
    """A link that was left out with a warning must not come back as the place of a missing video."""
    root = tmp_path / "root"
    aff_wild2_tree(root)
    put(root, TEST_LIST, b"linked\n")
    (root / "linked.mp4").symlink_to(put(tmp_path, "outside.mp4"))
    with pytest.raises(
        UsageError, match=r"linked\.mp4 is a link to .*/outside\.mp4, which is not below the root; copy"
    ):
        AffWild2Corpus(root)


def test_fatigue_follows_no_link_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(tmp_path, "elsewhere/x.mp4")
    root.mkdir()
    (root / "day1").symlink_to(tmp_path / "elsewhere")
    found = r"line 2: expected the path of a video below the root, .*, got 'day1/x', a link to .*/elsewhere/x\.mp4"
    with pytest.raises(UsageError, match=rf"ratings\.csv, {found}"):
        fatigue_corpus(root, "day1/x,s1,train,0,1,2")


def test_a_pipe_is_no_trace(tmp_path: Path) -> None:
    """Opening it would wait for ever for who writes into it."""
    put(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"a\.csv, line 1: expected a readable text file, got it is a folder, a pipe"):
        FolderCorpus(tmp_path)


def test_folder_partitions_names_and_subjects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("Validation/s1/day/a.mp4", "train/b.mov", "loose.mp4", "TEST/rated.mp4", "s2/c.webm", "test.mp4"):
        put(tmp_path, name)
    for name in ("Validation/s1/day/a.csv", "TEST/rated.tsv", "stray.csv", "astray.tsv"):
        put(tmp_path, name, "valence\n0\n")
    with caplog.at_level(logging.WARNING):
        recordings = FolderCorpus(tmp_path).recordings()
    assert [(r.name, r.partition, r.subject, r.annotation_path is not None) for r in recordings] == [
        ("TEST/rated", "test", "rated", True),
        ("Validation/s1/day/a", "validation", "s1", True),
        ("loose", "test", "loose", False),
        ("s2/c", "test", "s2", False),
        ("test", "test", "test", False),
        ("train/b", "train", "b", False),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: csv and tsv files beside no video of their name, left out: 2"
    ]


def rated_folder(root: Path, *names: str) -> FolderCorpus:
    for name in names:
        put(root, f"{name}.mp4")
        put(root, f"{name}.csv", "valence\n0\n")
    return FolderCorpus(root)


def test_folder_refuses_two_folders_of_a_partition(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds two folders of the partition test, Test and test; make them one"):
        rated_folder(tmp_path, "train/a", "test/b", "Test/c")


LOOKALIKES = {
    "'train'": ("Training", "trn", "Train_Set", "training-data"),
    "'validation'": ("val", "VALID", "dev", "devel", "Development", "ValidationSet"),
    "'test'": ("testing", "tst", "test split"),
    "'validation' or 'test'": ("eval", "Evaluation"),
}


@pytest.mark.parametrize("beside", ["train/a", "s1/a"])
@pytest.mark.parametrize(("instead", "folder"), [(key, name) for key, names in LOOKALIKES.items() for name in names])
def test_folder_refuses_what_looks_like_a_partition(instead: str, folder: str, beside: str, tmp_path: Path) -> None:
    message = (
        f"holds a folder '{folder}', which names no partition; call it {instead} or, if it is a subject, name partition"
    )
    with pytest.raises(UsageError, match=message):
        rated_folder(tmp_path, beside, "s3/b", f"{folder}/s2/c")
    put(tmp_path, "manifest.csv", f"path,partition\n{folder}/s2/c.mp4,test\n")  # the folder would be the subject
    with pytest.raises(UsageError, match=message):
        FolderCorpus(tmp_path)
    put(tmp_path, "manifest.csv", f"path,partition,subject\n{folder}/s2/c.mp4,test,s2\n")
    assert described(FolderCorpus(tmp_path)) == [(f"{folder}/s2/c", "test", "s2", "c.csv")]


def test_folder_that_is_called_like_no_partition_is_a_subject(tmp_path: Path) -> None:
    subjects = {r.subject for r in rated_folder(tmp_path, "trainer/a", "val2/b", "s/val/c", "valentin/d").recordings()}
    assert subjects == {"trainer", "val2", "s", "valentin"}


def test_folder_refuses_rated_videos_outside_the_partitions(tmp_path: Path) -> None:
    message = (
        r"rated videos outside the folders train, validation, test: 4, such as d, s1/c, s2/a; move them into these, "
        "or name the partition of every video in the column 'partition'"
    )
    with pytest.raises(UsageError, match=message):
        rated_folder(tmp_path, "s2/b", "s1/c", "s2/a", "d", "Test/e")
    put(tmp_path, "manifest.csv", "path\ntest/e.mp4\nd.mp4\n")
    with pytest.raises(UsageError, match=r"outside the folders .*: 1, such as d; move"):
        FolderCorpus(tmp_path)


def test_folder_says_what_a_subject_is_named_after(tmp_path: Path) -> None:
    message = (
        r"^2 partitions need as many subjects, and there is no more than videos \(validation=0.2, test=0\); subjects "
        r"are named after the videos' folders: name the people in the column 'subject' of a manifest\.csv, or set a"
    )
    with pytest.raises(UsageError, match=message):
        rated_folder(tmp_path / "folder", "videos/a", "videos/b")
    with pytest.raises(UsageError, match=r"than only .*named after the videos' files: name the people"):
        rated_folder(tmp_path / "file", "only")
    put(tmp_path / "file", "manifest.csv", "path,subject\nonly.mp4,s1\n")
    with pytest.raises(UsageError, match=r"than s1 .*; add subjects, or set"):
        FolderCorpus(tmp_path / "file")


def test_folder_warns_where_one_name_may_be_several_people_or_one_person_have_several(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(folder: str, *names: str, **arguments: float) -> list[str]:
        for name in names:
            put(tmp_path, f"{folder}/{name}.mp4")
            put(tmp_path, f"{folder}/{name}.csv", "valence\n0\n")
        caplog.clear()
        FolderCorpus(tmp_path / folder, **arguments)
        return [record.getMessage().removeprefix(f"{tmp_path}/{folder}: ") for record in caplog.records]

    advice = "name the people in the column 'subject' of a manifest.csv"
    with caplog.at_level(logging.WARNING):
        assert warnings("one", "videos/a", "videos/b", validation=0) == [
            "all 2 rated videos lie in the folder videos and so count as one subject; if they show several people, "
            + advice
        ]
        assert warnings("flat", "b", "a", "s1/c") == [
            "subjects that are named after their file, as neither folder nor manifest names them: 2, such as a; "
            "if one person is in several, " + advice
        ]
        assert warnings("spread", "train/videos/a", "Test/videos/a") == [
            "all videos lie in folders called videos and so show one subject in several partitions; if they show "
            "several people, " + advice
        ]
        assert warnings("spread", "Test/s2/a") == []
        assert warnings("good", "s1/a", "s1/b", "s2/a") == []
        put(tmp_path / "flat", "manifest.csv", "path,subject\na.mp4,s1\nb.mp4,s1\n")
        assert warnings("flat", validation=0) == []


def test_folder_counts_videos_without_a_trace_where_partitions_are_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s1/unrated.mp4", "s9/a.mp4", "s8/b.mp4"):
        put(tmp_path, name)
    with caplog.at_level(logging.WARNING):
        recordings = rated_folder(tmp_path, "s1/a", "s2/a").recordings()
    assert [r.name for r in recordings if r.partition == "test"] == ["s8/b", "s9/a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: videos of subjects without any trace, and so test recordings: 2, such as s8/b"
    ]


@pytest.mark.parametrize("manifest", [None, "path\ns1/a.mp4\ns1/b.mp4\ns2/c.mp4\n"])
def test_folder_tells_of_traces_with_another_suffix(
    manifest: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s1/a", "s1/b", "s2/c"):
        put(tmp_path, f"{name}.mp4")
        put(tmp_path, f"{name}.TXT", "valence\n0\n")
    put(tmp_path, "s1/readme.txt", "no trace")
    put(tmp_path, "s1/b.TSV", "time\tvalence\n0\t0.5\n")
    if manifest is not None:
        put(tmp_path, "manifest.csv", manifest)
    with caplog.at_level(logging.WARNING):
        corpus = FolderCorpus(tmp_path, validation=0)
    assert described(corpus) == [
        ("s1/a", "train", "s1", None),
        ("s1/b", "train", "s1", "b.TSV"),
        ("s2/c", "test", "s2", None),
    ]
    np.testing.assert_array_equal(corpus.annotation(corpus.recordings()[1]).values_FE, [[0.5]])
    assert (
        f"{tmp_path}: videos without a trace beside a .txt file of their name, which is not read: 2, such as s1/a; "
        "if it holds ratings, call it .csv or .tsv"
    ) in [record.getMessage() for record in caplog.records]
    put(tmp_path, "s1/b.csv", "valence\n0\n")
    with pytest.raises(UsageError, match=r"two traces lie beside the video s1/b: .*b\.TSV and .*b\.csv; remove one"):
        FolderCorpus(tmp_path)


def folder_annotation(root: Path, trace: str) -> np.ndarray:
    put(root, "clip.mp4")
    put(root, "clip.csv", trace)
    corpus = FolderCorpus(root, validation=0.0)
    annotation = corpus.annotation(corpus.recordings()[0])
    assert annotation is not None
    if annotation.time_s is None:
        return annotation.values_FE
    return np.column_stack([annotation.time_s, annotation.values_FE])


def test_folder_clocks(tmp_path: Path) -> None:
    nan = np.nan
    np.testing.assert_array_equal(
        folder_annotation(tmp_path, "fatigue\n2\n\nNaN\n1\n\n"), [[2], [nan], [nan], [1], [nan]]
    )
    np.testing.assert_array_equal(
        folder_annotation(tmp_path, "time,valence,arousal\n0.04,1,\n0.5,nan,3\n"), [[0.04, 1, nan], [0.5, nan, 3]]
    )
    np.testing.assert_array_equal(
        folder_annotation(tmp_path, "Frame,valence\n1,0.5\n4,-0.5\n"), [[nan], [0.5], [nan], [nan], [-0.5]]
    )


@pytest.mark.parametrize(
    "trace",
    [
        "time,valence,arousal\n0.04,1,\n0.5,nan,3\n",
        "Timestamp;valence;arousal\r\n0.04;1;\r\n0.5;nan;3\r\n",
        "frameTime\tvalence\tarousal\n0.04\t1\t\n0.5\tNaN\t3\n",
        "name;frame_time;valence;arousal\n'Train_01';0.04;1;\n'Train_01';0.5;;3\n",
        '\ufeffName,TIME,valence,arousal\n"Train_01",0.04,1,\n"Train_01",0.5,nan,3\n',
    ],
)
def test_folder_separators_names_of_the_clock_and_of_the_instance(trace: str, tmp_path: Path) -> None:
    nan = np.nan
    np.testing.assert_array_equal(folder_annotation(tmp_path, trace), [[0.04, 1, nan], [0.5, nan, 3]])


def test_folder_interpolates_between_two_rated_rows_and_nowhere_else(tmp_path: Path) -> None:
    put(tmp_path, "clip.mp4")
    put(tmp_path, "clip.csv", "time;valence\n1;0\n2;1\n3;\n4;2\n")
    corpus = FolderCorpus(tmp_path, validation=0.0)
    annotation = corpus.annotation(corpus.recordings()[0])
    assert annotation is not None
    frame_time_s = np.array([0.5, 1, 1.25, 2, 2.5, 3, 3.5, 4, 4.5])
    nan = np.nan
    np.testing.assert_array_equal(annotation.at(frame_time_s)[:, 0], [nan, 0, 0.25, 1, nan, nan, nan, 2, nan])
    assert annotation.count(frame_time_s) == RowCount(4, 9, 0, 2)


@pytest.mark.parametrize(
    ("trace", "faults"),
    [
        (
            "time;valence;arousal\n0;0,5;0\n1,0,0\n",
            {
                2: "a number with a decimal point, got '0,5' as valence; write a point",
                3: "3 semicolon-separated .*got 1",
            },
        ),
        ("time\tvalence\tarousal\n0\t0\n", {2: "3 tab-separated fields .*, got 2"}),
        (
            "name;time;valence;arousal\na;0;0;0\nb;1;0;0\na;2;0;0\n'a';3;0;0\n",
            {3: "the name of line 2, 'a', in every row, got 'b'; give each", 5: "the name of line 2"},
        ),
        (
            "time,valence,arousal\n3,0,2\n2,-1.5,0\n4,x,0\n1,0,0\n,0,0\n5,1,1\n",
            {
                2: "a value from -1 to 1, got 2 as arousal; correct it, or leave it blank",
                3: "a time that increases .*, got 2 after 3",
                4: "a number, got 'x'",
                5: "a time that increases .*, got 1 after 4",
                6: "a time in seconds, got a blank field",
            },
        ),
    ],
)
def test_folder_faulty_rows(trace: str, faults: dict[int, str], tmp_path: Path) -> None:
    for name, content in {"a": "valence,arousal\n0,0\n", "b": trace}.items():
        put(tmp_path, f"{name}.mp4")
        put(tmp_path, f"{name}.csv", content)
    corpus = FolderCorpus(tmp_path, lowest=-1, highest=1)
    assert corpus.ranges == ((-1, 1), (-1, 1))
    with pytest.raises(AnnotationError, match=r"b\.csv, line") as caught:
        corpus.annotation(corpus.recordings()[1])
    assert [fault.line for fault in caught.value.faults] == list(faults)
    for fault, message in zip(caught.value.faults, faults.values(), strict=True):
        assert re.match(f"expected {message}", fault.message), fault


@every_ranged_corpus
@pytest.mark.parametrize(("lowest", "highest"), [(1.0, 1.0), (2, 1), (-math.inf, 1.0), (0.0, math.nan)])
def test_a_range_that_is_none(name: str, lowest: float, highest: float, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    with pytest.raises(UsageError, match=f"lowest={lowest:g}, highest={highest:g}: give the range of ratings, lowest"):
        registry.load("corpus", name)(tmp_path, lowest=lowest, highest=highest)


@every_ranged_corpus
@pytest.mark.parametrize("given", [{"validation": 0.3}, {"test": 0.1}, {"split_seed": 1}])
def test_shares_are_refused_where_partitions_are_declared(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    TREES[name](tmp_path)
    with pytest.raises(UsageError, match=r"^validation=.*, so none are drawn; leave these options out"):
        registry.load("corpus", name)(tmp_path, **given)


def drawn_folder(root: Path, **arguments: Any) -> FolderCorpus:
    for subject in range(10):
        for take in range(1 + subject % 3):
            put(root, f"s{subject}/{take}.mp4")
            put(root, f"s{subject}/{take}.csv", "valence\n0\n")
    put(root, "s1/unrated.mp4")
    put(root, "new/unrated.mp4")
    return FolderCorpus(root, **arguments)


def drawn_fatigue(root: Path, **arguments: Any) -> FatigueCorpus:
    rows = [
        f"{10 * take},{10 * take + 5},s{s},3,r{s}-{v}" for s in range(10) for v in range(1 + s % 3) for take in (0, 1)
    ]
    put(root, "ratings.csv", "\n".join(("start,end,subject,value,recording", *rows, "")))
    for subject in range(10):
        for video in range(1 + subject % 3):
            put(root, f"r{subject}-{video}.mp4")
    put(root, "new/unrated.mp4")
    return FatigueCorpus(root, **arguments)


@pytest.mark.parametrize("drawn", [drawn_folder, drawn_fatigue])
def test_partitions_are_drawn_by_subject_where_none_are_declared(drawn: Any, tmp_path: Path) -> None:
    def partition_of(**arguments: Any) -> dict[str, str]:
        recordings = drawn(tmp_path, **arguments).recordings()
        partitions: dict[str, set[str]] = {}
        for recording in recordings:
            partitions.setdefault(recording.subject, set()).add(recording.partition)
        assert all(len(found) == 1 for found in partitions.values()), "a subject is in two partitions"
        return {subject: found.pop() for subject, found in partitions.items()}

    def count(partitions: dict[str, str]) -> list[int]:
        rated = [partition for subject, partition in partitions.items() if subject.startswith("s")]
        return [rated.count(partition) for partition in PARTITIONS]

    default = partition_of()
    assert count(default) == [8, 2, 0]
    assert default == partition_of()
    assert [default[subject] for subject in default if not subject.startswith("s")] == ["test"]
    assert count(partition_of(validation=0.3, test=0.2)) == [5, 3, 2]
    assert count(partition_of(validation=0)) == [10, 0, 0]
    assert len({tuple(partition_of(split_seed=seed).items()) for seed in range(5)}) > 1


@pytest.mark.parametrize("drawn", [drawn_folder, drawn_fatigue])
def test_shares_that_cannot_be_drawn(drawn: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"validation=0\.6, test=0\.4: give shares .* less than 1"):
        drawn(tmp_path, validation=0.6, test=0.4)
    put(tmp_path / "one", "ratings.csv", "recording,start,end,value,subject\na,0,1,2,only\n")
    with pytest.raises(UsageError, match=r"2 partitions need as many subjects, and there is no more than only"):
        FatigueCorpus(tmp_path / "one")


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("time,valence\n0,0\n,0\n", "line 3: expected a time in seconds, got a blank field"),
        ("time,valence\n0,0\n1,0\n1,0\n", "line 4: expected a time that increases .*, got 1 after 1"),
        ("frame,valence\n2,0\n1,0\n", "line 3: expected a frame that increases .*, got 1 after 2"),
        ("frame,valence\n0,0\n1.5,0\n", "line 3: expected the index of a frame.*, got 1.5"),
        ("frame,valence\n-1,0\n", "line 2: expected the index of a frame.*, got -1"),
        ("frame,valence\n1e12,0\n", r"line 2: expected the index of a frame.*, got 1e\+12"),
    ],
)
def test_folder_faulty_clock(trace: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=message):
        folder_annotation(tmp_path, trace)


@pytest.mark.parametrize(
    "header",
    [
        "time",
        "valence,valence",
        "valence,time",
        "valence;arousal,x",
        "valence,,arousal",
        "0.5",
        "a,frame",
        "name",
        '"a","b"',
    ],
)
def test_folder_without_any_good_header(header: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no trace under .* has a readable header; .*clip.csv, line 1: expected a header"
    ):
        folder_annotation(tmp_path, f"{header}\n0,0\n")


CLOCKS_OF_OTHERS = [
    *("time_s", "time_ms", "t", "seconds", "sec", "secs", "ms", "timestamps", "Times", "frames", "Frame_Number"),
    *("frame_id", "frame_idx", "frame_index", "frameid", "Index", "idx", "segment_id", "ID", "time (s)", "Time [ms]"),
    *("Unnamed: 0", "frame time", "start", "end_time", "timestamp_ms", "frameTimes", "#"),
]


@pytest.mark.parametrize("name", CLOCKS_OF_OTHERS)
@pytest.mark.parametrize("header", ["{},valence", "name,{},valence", "time,{},valence", "valence,{}"])
def test_a_clock_of_another_name_is_no_target(header: str, name: str, tmp_path: Path) -> None:
    message = (
        f"line 1: expected a header that names the targets, .*; if '{re.escape(name)}' is the clock, put it first and "
        r"call it 'time' \(in seconds\), or 'frame' \(from 0\), else remove the column"
    )
    with pytest.raises(UsageError, match=message):
        folder_annotation(tmp_path, f"{header.format(name)}\n0,0\n")


@pytest.mark.parametrize("name", ["tension", "timeliness", "tiredness", "identity", "mood", "startle", "no-show", "T1"])
def test_targets_that_begin_like_a_clock_are_targets(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(folder_annotation(tmp_path, f"time,{name}\n0,3\n"), [[0, 3]])


@pytest.mark.parametrize(
    ("trace", "is_warned"),
    [("frame,v\n1,0\n2,0\n3,0\n", True), ("frame,v\n1,0\n3,0\n", False), ("frame,v\n0,0\n1,0\n", False)],
)
def test_folder_frames_that_count_from_one_are_told_and_kept(
    trace: str, is_warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        values_FE = folder_annotation(tmp_path, trace)
    assert np.isnan(values_FE[0, 0]) == trace.startswith("frame,v\n1")
    assert (f"{tmp_path}/clip.csv: frames count from 0; these begin at 1" in caplog.text) == is_warned


def test_annotations_know_the_rows_of_their_file(tmp_path: Path) -> None:
    put(tmp_path, "clip.mp4")
    for trace, num_rows in (("frame,v\n2,0\n90,\n", 2), ("time,v\n0,0\n1,0\n", None), ("v\n0\n0\n0\n", None)):
        put(tmp_path, "clip.csv", trace)
        corpus = FolderCorpus(tmp_path, validation=0)
        annotation = corpus.annotation(corpus.recordings()[0])
        assert annotation is not None
        assert annotation.num_rows == num_rows
    rows = ("day1/first,s1,train,0,2,3.5", "day1/first,s1,train,2,3,4", "day1/first,s1,train,5,6,4")
    fatigue = fatigue_corpus(tmp_path / "fatigue", *rows)
    steps = fatigue.annotation(fatigue.recordings()[0])
    assert steps is not None
    assert (len(steps.values_FE), steps.num_rows) == (5, 3)


def test_folder_passes_over_an_unreadable_first_header(tmp_path: Path) -> None:
    for name, trace in {"a": b"\xff\xfe", "b": b"valence\n0\n", "c": b"arousal\n0\n"}.items():
        put(tmp_path, f"{name}.mp4")
        put(tmp_path, f"{name}.csv", trace)
    corpus = FolderCorpus(tmp_path)
    assert corpus.targets == ("valence",)
    first, second, third = corpus.recordings()
    assert corpus.annotation(second) is not None
    with pytest.raises(RecordingError, match=r"a\.csv, line 1: expected UTF-8 text, got UTF-16"):
        corpus.annotation(first)
    with pytest.raises(RecordingError, match=r"c\.csv, line 1: expected the corpus's targets valence, got arousal"):
        corpus.annotation(third)


def test_folder_without_traces_has_no_targets(tmp_path: Path) -> None:
    put(tmp_path, "clip.mp4")
    corpus = FolderCorpus(tmp_path)
    assert corpus.targets == ()
    assert corpus.annotation(corpus.recordings()[0]) is None


def test_folder_refuses_names_that_differ_in_the_suffix(tmp_path: Path) -> None:
    put(tmp_path, "s/clip.mp4")
    put(tmp_path, "s/clip.avi")
    with pytest.raises(UsageError, match=r"two videos are named s/clip: .*clip.avi and .*clip.mp4"):
        FolderCorpus(tmp_path)


def manifest_tree(root: Path, manifest: str, name: str = "manifest.csv") -> None:
    put(root, name, manifest)
    for video in ("a.mp4", "day 1/b, c.avi", "d.MKV", "left/out.mp4"):
        put(root, video)
    put(root, "ratings/a.txt", "time;valence\n0;0\n1;1\n")
    put(root, "a.csv", "arousal\n1\n")


def described(corpus: FolderCorpus) -> list[tuple[str, str, str, str | None]]:
    return [(r.name, r.partition, r.subject, r.annotation_path and r.annotation_path.name) for r in corpus.recordings()]


def test_manifest_names_the_recordings_and_their_traces(tmp_path: Path) -> None:
    manifest_tree(
        tmp_path,
        'partition,path,annotation,subject\r\ntrain,a.mp4,ratings/a.txt,s1\r\ntest,"day 1/b, c.avi",,s2\r\n'
        "validation,gone/e.mov,ratings/gone.txt,s3\r\n",
    )
    corpus = FolderCorpus(tmp_path)
    assert corpus.targets == ("valence",)
    assert described(corpus) == [
        ("a", "train", "s1", "a.txt"),
        ("day 1/b, c", "test", "s2", None),
        ("gone/e", "validation", "s3", "gone.txt"),
    ]
    first, second, third = corpus.recordings()
    assert second.path == tmp_path / "day 1/b, c.avi"
    assert third.path == tmp_path / "gone/e.mov"
    annotation = corpus.annotation(first)
    assert annotation is not None
    np.testing.assert_array_equal(annotation.at(np.array([0.0, 0.5])), [[0], [0.5]])
    assert corpus.annotation(second) is None
    with pytest.raises(RecordingError, match=r"gone\.txt, line 1: expected a readable text file"):
        corpus.annotation(third)


@pytest.mark.parametrize(("name", "separator"), [("manifest.csv", ","), ("manifest.tsv", "\t"), ("manifest.csv", ";")])
def test_manifest_holds_the_ratings_itself(name: str, separator: str, tmp_path: Path) -> None:
    rows = [
        ("valence", "subject", "path", "Timestamp", "arousal"),
        ("0", "s1", "a.mp4", "0.5", "nan"),
        ("", "s2", "d.MKV", "0", "-1"),
        ("1", "s1", "a.mp4", "1.5", "2"),
        ("", "s3", "left/out.mp4", "", ""),
    ]
    manifest_tree(tmp_path, "\n".join(map(separator.join, rows)), name)
    corpus = FolderCorpus(tmp_path, validation=0.5, highest=2.0, lowest=-1.0)
    assert corpus.targets == ("valence", "arousal")
    assert corpus.ranges == ((-1, 2), (-1, 2))
    first, second, unrated = corpus.recordings()
    assert {first.partition, second.partition} == {"train", "validation"}
    assert (unrated.partition, unrated.annotation_path) == ("test", None)
    annotation = corpus.annotation(first)
    assert annotation is not None
    assert annotation.time_s is not None
    np.testing.assert_array_equal(annotation.time_s, [0.5, 1.5])
    np.testing.assert_array_equal(annotation.values_FE, [[0, np.nan], [1, 2]])
    np.testing.assert_array_equal(corpus.annotation(second).values_FE, [[np.nan, -1]])


def test_manifest_names_known_columns_in_any_case_and_targets_as_they_are(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "PATH,Time,Valence,SUBJECT,Partition\na.mp4,0,0.5,s1,train\n")
    corpus = FolderCorpus(tmp_path)
    assert corpus.targets == ("Valence",)
    assert described(corpus) == [("a", "train", "s1", "manifest.csv")]
    manifest_tree(tmp_path, "Path,Annotation\na.mp4,ratings/a.txt\n")
    assert described(FolderCorpus(tmp_path, validation=0)) == [("a", "train", "a", "a.txt")]


def test_manifest_with_frames(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "path,frame,valence\na.mp4,1,0.5\na.mp4,3,-0.5\n")
    corpus = FolderCorpus(tmp_path, validation=0)
    annotation = corpus.annotation(corpus.recordings()[0])
    assert annotation is not None
    target_F = annotation.at(np.arange(100) * 0.04)[:, 0]  # frames beyond the last row need none
    np.testing.assert_array_equal(target_F, [np.nan, 0.5, np.nan, -0.5, *[np.nan] * 96])


def test_manifest_that_says_no_more_than_who_leaves_the_rest_to_the_folders(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "path,subject\na.mp4,s1\nd.MKV,s4\n")
    assert described(FolderCorpus(tmp_path, validation=0)) == [
        ("a", "train", "s1", "a.csv"),
        ("d", "test", "s4", None),
    ]
    put(tmp_path, "validation/s3/f.mp4")
    put(tmp_path, "manifest.csv", "path\nvalidation/s3/f.mp4\nd.MKV\n")
    assert described(FolderCorpus(tmp_path)) == [
        ("d", "test", "d", None),
        ("validation/s3/f", "validation", "s3", None),
    ]


def test_manifest_rating_that_changes_concerns_its_recording_alone(tmp_path: Path) -> None:
    def sources(*rows: str) -> list[Source]:
        manifest_tree(tmp_path, "\n".join(("path,time,valence", *rows)))
        return [Source.of(recording, tmp_path) for recording in FolderCorpus(tmp_path, validation=0).recordings()]

    before = sources("a.mp4,0,0", "d.MKV,0,0", "a.mp4,1,1")
    assert sources("d.MKV,0,0", "a.mp4,0,0", "a.mp4,1,1") == before
    after = sources("a.mp4,0,0", "d.MKV,0,0", "a.mp4,1,1.5")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]
    manifest_tree(tmp_path, "path,frame,valence\na.mp4,0,0\nd.MKV,0,0\na.mp4,1,1\n")  # the same numbers mean others
    assert not set(before) & {Source.of(r, tmp_path) for r in FolderCorpus(tmp_path, validation=0).recordings()}


def test_manifest_is_no_trace(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "path,subject\nmanifest.mp4,s\na.mp4,s\n")
    put(tmp_path, "manifest.mp4")
    assert described(FolderCorpus(tmp_path, validation=0)) == [
        ("a", "train", "s", "a.csv"),
        ("manifest", "train", "s", None),
    ]


def test_manifest_matches_composed_and_decomposed_names(tmp_path: Path) -> None:
    put(tmp_path, "cafe\N{COMBINING ACUTE ACCENT}.mp4")
    put(tmp_path, "manifest.csv", "path\ncaf\N{LATIN SMALL LETTER E WITH ACUTE}.mp4\n")
    (recording,) = FolderCorpus(tmp_path).recordings()
    assert recording.name == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert recording.path.is_file()


def test_manifest_faulty_ratings_cost_their_recording_alone(tmp_path: Path) -> None:
    rows = ("path,time,valence", "a.mp4,0,9", "d.MKV,1,0", "a.mp4,x,0", "d.MKV,2,1", "a.mp4,1,0", "a.mp4,0.5,1")
    manifest_tree(tmp_path, "\n".join(rows))
    corpus = FolderCorpus(tmp_path, lowest=0, highest=1, validation=0)
    first, second = corpus.recordings()
    assert corpus.annotation(second) is not None
    with pytest.raises(AnnotationError, match=r"manifest\.csv, line 2: expected a value from 0 to 1, got 9") as caught:
        corpus.annotation(first)
    assert [(fault.line, fault.path) for fault in caught.value.faults] == [
        (line, tmp_path / "manifest.csv") for line in (2, 4, 7)
    ]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("file,subject\na.mp4,s\n", "line 1: expected a header like 'path,.*', got 'file,subject'; write the header"),
        ("path,path\na.mp4,a.mp4\n", "line 1: .*; name every column once"),
        ("Path,path\na.mp4,a.mp4\n", "line 1: .*; name every column once"),
        ("path,time,index,v\na.mp4,0,0,1\n", "line 1: .*; if 'index' is the clock, put it first and call it 'time'"),
        ("path,time_s,v\na.mp4,0,1\n", "line 1: expected one column 'time' or 'frame'.*, got 'time_s,v'"),
        ("path,notes\na.mp4,x\n", "line 1: expected one column 'time' or 'frame', and one per target.*, got 'notes'"),
        ("path,time\na.mp4,0\n", "line 1: expected one column 'time' or 'frame', and one per target.*, got 'time'"),
        ("path,time,frame,v\na.mp4,0,0,1\n", "line 1: expected one column 'time' or 'frame'.*, got 'time,frame,v'"),
        ("path,time,1\na.mp4,0,0\n", "line 1: expected a header that names the targets, .*, got 'time,1'"),
        (
            "path,annotation,time,valence\na.mp4,,0,0\n",
            r"line 1: expected a column 'annotation', or ratings, got both .annotation and time,valence.; remove the",
        ),
        ("path\n", "line 2: expected rows below the header, got the end of the file"),
        ("path,subject\na.mp4\n", r"line 2: expected 2 comma-separated fields .path,subject., got 1"),
        ('path,subject\n"a.mp4,s\n', "line 2: expected fields whose quotes are closed"),
        ("path,subject\na.mp4,\n", "line 2: expected a subject, got a blank field"),
        ("path,partition\na.mp4,dev\n", r"line 2: expected a partition .train, validation, test., got 'dev'"),
        ("path\na.mp4\n../a.mp4\n", "line 3: expected a path below the root, with '/', got '../a.mp4'"),
        ("path\n/a.mp4\n", "line 2: expected a path below the root, with '/', got '/a.mp4'"),
        ("path\nC:/a.mp4\n", "line 2: expected a path below the root, with '/', got 'C:/a.mp4'"),
        ("path\nC:a.mp4\n", "line 2: expected a path below the root, with '/', got 'C:a.mp4'"),
        ("path\n//host/share/a.mp4\n", "line 2: expected a path below the root, with '/', got '//host/share/a.mp4'"),
        ("path\nday/../../a.mp4\n", "line 2: expected a path below the root, with '/', got 'day/../../a.mp4'"),
        ("path\na\0.mp4\n", "line 2: expected UTF-8 text, got a zero byte"),
        ("path,annotation\na.mp4,link.csv\n", "line 2: .* got 'link.csv', a link to .*/outside.csv; copy the file"),
        ("path\nday 1\\a.mp4\n", "line 2: expected a path below the root"),
        ("path,subject\n,s\n", "line 2: expected a path below the root, with '/', got ''"),
        ("path\nlink.mp4\n", "line 2: expected a path below the root, .*, got 'link.mp4', a link to .*/outside.mp4"),
        ("path\nlinked/x.mp4\n", "line 2: .* got 'linked/x.mp4', a link to .*; copy the file to where the link is"),
        ("path,annotation\na.mp4,linked/a.csv\n", "line 2: .* got 'linked/a.csv', a link to"),
        ("path,annotation\na.mp4,../a.csv\n", "line 2: .* got '../a.csv'"),
        ("path\na.txt\n", r"line 2: expected the path of a video with its suffix .\.mp4 .*, got 'a.txt'"),
        ("path\na.mp4\na.mp4\n", "line 3: expected a video that is not listed in line 2, got 'a.mp4'"),
        ("path\na.mp4\na.avi\n", "line 3: expected names that differ not in the suffix alone, got 'a.avi'"),
        (
            "path,time,v,subject\na.mp4,0,0,s\na.mp4,1,0,t\n",
            "line 3: expected a.mp4 with the subject of line 2, s, got t; give a recording one subject$",
        ),
        ("path,subject\na.mp4,\nd.MKV,d\n../b.mp4,x\n\n,\n", r"line 2: .* .so also lines 4, 5, 6.$"),
    ],
)
def test_manifest_faults(manifest: str, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    manifest_tree(root, manifest)
    (root / "link.mp4").symlink_to(put(tmp_path, "outside.mp4"))
    (root / "link.csv").symlink_to(put(tmp_path, "outside.csv"))
    (root / "linked").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=rf"manifest\.csv, {message}"):
        FolderCorpus(root)


def test_manifest_may_name_what_a_link_inside_the_root_leads_to(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "path\nday/a.mp4\n")
    (tmp_path / "day").symlink_to(put(tmp_path, "there/a.mp4").parent)
    (recording,) = FolderCorpus(tmp_path).recordings()
    assert recording.path == tmp_path / "day/a.mp4"


def test_two_manifests_are_refused(tmp_path: Path) -> None:
    manifest_tree(tmp_path, "path\na.mp4\n")
    manifest_tree(tmp_path, "path\na.mp4\n", "manifest.tsv")
    with pytest.raises(UsageError, match=r"holds manifest\.csv and manifest\.tsv; leave one"):
        FolderCorpus(tmp_path)


def fatigue_corpus(root: Path, *rows: str) -> FatigueCorpus:
    fatigue_tree(root, "\n".join((RATINGS_HEADER, *rows, "")))
    return FatigueCorpus(root)


def test_fatigue_recordings(tmp_path: Path) -> None:
    put(tmp_path, "cafe\N{COMBINING ACUTE ACCENT}.mkv")
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    recordings = fatigue_corpus(
        tmp_path,
        f"{composed},s3,test,0,1,0",
        "second,s2,validation,0,1,2",
        "day2/lost,s1,train,0,1,2",
        "day1/first,s1,train,0,1,2",
    ).recordings()
    assert [(r.name, r.partition, r.subject, r.path.name, r.annotation_path is not None) for r in recordings] == [
        (composed, "test", "s3", "cafe\N{COMBINING ACUTE ACCENT}.mkv", True),
        ("day1/first", "train", "s1", "first.mp4", True),
        ("day2/lost", "train", "s1", "lost.mp4", True),
        ("day2/third", "test", "day2/third", "third.MP4", False),
        ("second", "validation", "s2", "second.avi", True),
    ]
    with pytest.raises(RecordingError, match=r"day2/lost\.mp4 cannot be read") as caught:
        Source.of(recordings[2], tmp_path)
    assert caught.value.reason == "missing_file"


def test_fatigue_steps(tmp_path: Path) -> None:
    corpus = fatigue_corpus(
        tmp_path,
        "day1/first,s1,train,3,4.5,10",  # rows need no order
        "second,s2,validation,0,25,5",
        "day1/first,s1,train,1,2,0",
        " day1/first , s1 , train , 2 , 2.5 , 7.5 ",
    )
    first, _, second = corpus.recordings()
    trace = corpus.annotation(first)
    assert trace is not None
    frame_time_s = np.array([0, 0.999, 1, 1.999, 2, 2.499, 2.5, 2.999, 3, 4.499, 4.5, 60])
    nan = np.nan
    expected = [nan, nan, 0, 0, 7.5, 7.5, nan, nan, 10, 10, nan, nan]
    np.testing.assert_array_equal(trace.at(frame_time_s)[:, 0], expected)
    # Every frame from start up to, not including, end, at whatever rate time stamps are counted.
    rated = corpus.annotation(second)
    assert rated is not None
    for fps, ticks_hz in ((10, 10_240), (25, 12_800), (24, 90_000), (30, 15_360)):
        frame_time_s = np.arange(0, 26 * ticks_hz, ticks_hz // fps) * (1 / ticks_hz)
        is_rated_F = np.arange(len(frame_time_s)) < 25 * fps
        np.testing.assert_array_equal(rated.at(frame_time_s)[:, 0], np.where(is_rated_F, 5.0, nan))


def test_fatigue_columns_in_any_order_and_another_range(tmp_path: Path) -> None:
    fatigue_tree(tmp_path / "a")
    columns = ("value", "end", "start", "partition", "recording", "subject")
    header, *others = RATINGS.splitlines()
    lines = (header.title(), *others)
    rows = [dict(zip(header.split(","), row.split(","), strict=True)) for row in lines]
    fatigue_tree(tmp_path / "b", "\n".join(";".join(row[column] for column in columns) for row in rows))
    usual, turned = FatigueCorpus(tmp_path / "a"), FatigueCorpus(tmp_path / "b", lowest=-1, highest=12)
    assert usual.ranges == ((0, 10),)
    assert turned.ranges == ((-1, 12),)
    for one, other in zip(usual.recordings(), turned.recordings(), strict=True):
        assert (one.name, one.partition, one.subject) == (other.name, other.partition, other.subject)
        assert one.annotation_sha256 == other.annotation_sha256
    first, second = (corpus.annotation(corpus.recordings()[0]) for corpus in (usual, turned))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.values_FE, second.values_FE)
    narrow = FatigueCorpus(tmp_path / "a", highest=7)
    assert narrow.annotation(narrow.recordings()[0]) is not None
    with pytest.raises(AnnotationError, match="line 3: expected a value from 0 to 7, got 10"):
        narrow.annotation(narrow.recordings()[2])


def test_fatigue_names_every_faulty_line_of_a_recording(tmp_path: Path) -> None:
    rows = ("0,1,x", "1,2,11", "3,2,5", "5,9,5", "6,7,5", "8,9,5", "10,11,5")
    corpus = fatigue_corpus(tmp_path, *(f"second,s2,train,{row}" for row in rows), "day1/first,s1,train,0,1,99")
    with pytest.raises(AnnotationError, match="line 2: expected a number, got 'x'") as caught:
        corpus.annotation(next(recording for recording in corpus.recordings() if recording.name == "second"))
    assert [fault.line for fault in caught.value.faults] == [2, 3, 4, 6, 7]


def test_fatigue_rating_that_changes_concerns_its_recording_alone(tmp_path: Path) -> None:
    rows = ["second,s2,validation,0,1,2", "day1/first,s1,train,0,1,2", "day1/first,s1,train,1,2,3"]
    before = [Source.of(recording, tmp_path) for recording in fatigue_corpus(tmp_path, *rows).recordings()]
    moved = [Source.of(recording, tmp_path) for recording in fatigue_corpus(tmp_path, *rows[1:], rows[0]).recordings()]
    rows[2] = "day1/first,s1,train,1,2,3.5"
    after = [Source.of(recording, tmp_path) for recording in fatigue_corpus(tmp_path, *rows).recordings()]
    assert before == moved
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]
    assert [source.annotation_sha256 is None for source in before] == [False, True, False]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,10.5", "line 3: expected a value from 0 to 10, got 10.5; correct it, or remove the row if unrated"),
        ("0,1,-0.5", "line 3: expected a value from 0 to 10, got -0.5"),
        ("0,1,", "line 3: expected a number, got a blank field as value"),
        ("0,1,nan", "line 3: expected a number, got 'nan' as value"),
        ("0,1,tired", "line 3: expected a number, got 'tired' as value"),
        ("0:00,1,5", "line 3: expected a number, got '0:00' as start"),
        ("0,1e999,5", "line 3: expected a number, got '1e999' as end"),
        ("2,2,5", "line 3: expected 0 <= start < end in seconds, got 2 to 2; correct the interval"),
        ("3,2,5", "line 3: expected 0 <= start < end in seconds, got 3 to 2"),
        ("-1,2,5", "line 3: expected 0 <= start < end in seconds, got -1 to 2"),
        ("19.5,25,5", "line 3: expected an interval that starts at 20 or later, .*, got 19.5; let no two .* overlap"),
        ("10,20,5", "line 3: expected an interval that starts at 20 or later, .*, got 10"),
        ("0,10.5,5", "line 2: expected an interval that starts at 10.5 or later, .*, got 10"),
    ],
)
def test_fatigue_fault_of_one_recording(row: str, message: str, tmp_path: Path) -> None:
    rows = ("day1/first,s1,train,10,20,5", f"day1/first,s1,train,{row}", "second,s2,validation,0,1,2")
    corpus = fatigue_corpus(tmp_path, *rows)
    first, _, second = corpus.recordings()
    assert corpus.annotation(second) is not None
    with pytest.raises(RecordingError, match=rf"ratings\.csv, {message}") as caught:
        corpus.annotation(first)
    assert caught.value.reason == "annotation_invalid"


_PATH_EXPECTED = "expected the path of a video below the root, with '/' and without suffix"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("day1/first,s1,train,0,1", "expected 6 comma-separated fields .*, got 5"),
        ("day1/first,s1,train,0,1,2,3", "expected 6 comma-separated fields .*, got 7"),
        ("", "expected 6 comma-separated fields .*, got a blank line"),
        (",s1,train,0,1,2", f"{_PATH_EXPECTED}, got ''"),
        ("../first,s1,train,0,1,2", f"{_PATH_EXPECTED}, got '../first'"),
        ("/day1/first,s1,train,0,1,2", f"{_PATH_EXPECTED}, got '/day1/first'"),
        ("day1/first.MP4,s1,train,0,1,2", f"{_PATH_EXPECTED}, got 'day1/first.MP4'; write it like 'videos/session-1'"),
        (r"day1\first,s1,train,0,1,2", _PATH_EXPECTED),
        ("day1/first,,train,0,1,2", "expected a subject, got a blank field"),
        ("day1/first,s1,dev,0,1,2", r"expected a partition \(train, validation, test\), got 'dev'"),
        (
            "day1/first,s1,test,0,1,2",
            "expected day1/first with the subject and partition of line 2, s1,train, got s1,test",
        ),
        ("day1/first,s2,train,0,1,2", "expected day1/first with .* of line 2, s1,train, got s2,train"),
    ],
)
def test_fatigue_fault_in_who_is_where(row: str, message: str, tmp_path: Path) -> None:
    rows = ("day1/first,s1,train,10,20,5", row, "second,s2,validation,0,1,2")
    with pytest.raises(UsageError, match=rf"ratings\.csv, line 3: {message}"):
        fatigue_corpus(tmp_path, *rows)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (b"", "line 1: expected a header, got an empty file"),
        (b"day1/first,s1,train,0,1,2\n", f"line 1: expected a header like '{RATINGS_HEADER}', got 'day1/.*first line"),
        (b"recording,partition,end,start,value\na,train,1,0,1\n", "line 1: .*; add the column subject"),
        (RATINGS.replace("value", "value,value", 1).encode(), "line 1: .*; name every column once"),
        (RATINGS.replace("value", "value,mood", 1).encode(), "line 1: expected only the columns .*, got 'mood'"),
        (RATINGS.replace("subject,", "subject;", 1).encode(), "line 1: expected a header with one kind of separator"),
        (f"{RATINGS_HEADER}\n\n".encode(), "line 2: expected rows below the header, got the end of the file"),
        (RATINGS.encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
        (RATINGS.encode() + b"\xe9\n", "line 4: expected UTF-8 text, got the byte 0xe9"),
    ],
)
def test_fatigue_file_that_is_no_table_of_ratings(ratings: bytes, message: str, tmp_path: Path) -> None:
    fatigue_tree(tmp_path, ratings)
    with pytest.raises(UsageError, match=rf"ratings\.csv, {message}"):
        FatigueCorpus(tmp_path)


def test_fatigue_mark_line_ends_and_blank_lines_at_the_end(tmp_path: Path) -> None:
    fatigue_tree(tmp_path, b"\xef\xbb\xbf" + RATINGS.replace("\n", "\r\n").encode() + b"\r\n \r\n")
    corpus = FatigueCorpus(tmp_path)
    assert [corpus.annotation(recording) is None for recording in corpus.recordings()] == [False, True, False]


def test_fatigue_refuses_names_that_differ_in_the_suffix(tmp_path: Path) -> None:
    fatigue_tree(tmp_path)
    put(tmp_path, "day1/first.avi")
    with pytest.raises(UsageError, match=r"two videos are named day1/first: .*first.avi and .*first.mp4"):
        FatigueCorpus(tmp_path)


def test_a_folder_that_cannot_be_listed_for_now_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may train on other partitions because a server did not answer for a moment."""
    for name in ("a", "b"):
        put(tmp_path, f"{name}/video.mp4")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name == "b":
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        tree_of(tmp_path, [".mp4"])
    number = errno.EACCES
    assert [path.parent.name for path in tree_of(tmp_path, [".mp4"]).files] == ["a"]


def test_texts_larger_than_any_annotation_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(AnnotationError, match=r"a\.csv, line 1: .* it has 256 MiB, 256 are allowed"):
        read_lines(path)


def test_a_path_that_no_file_can_have_is_a_fault_of_its_line(tmp_path: Path) -> None:
    put(tmp_path, "manifest.csv", f"path,subject\n{'n' * 300}.mp4,a\n")
    with pytest.raises(UsageError, match=r"manifest\.csv, line 2: expected a path below the root"):
        FolderCorpus(tmp_path)
