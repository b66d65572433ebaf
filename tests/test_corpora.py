"""Every registered corpus keeps the contract of `avfuse.corpora`; every fault in a trace is told with its line."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avfuse import registry
from avfuse.corpora import Corpus
from avfuse.corpora.aff_wild2 import AffWild2Corpus
from avfuse.corpora.fatigue import FatigueCorpus
from avfuse.corpora.folder import FolderCorpus
from avfuse.schema import PARTITIONS, RecordingError, UsageError
from avfuse.spec import Source

CHALLENGE = "annotations/VA_Estimation_Challenge"
TEST_LIST = "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"


def put(root: Path, name: str, content: str | bytes = b"") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def aff_wild2_tree(root: Path, trace: str | bytes = "valence,arousal\n0.5,-0.25\n-5,-5\n") -> None:
    put(root, f"{CHALLENGE}/Train_Set/first.txt", trace)
    put(root, f"{CHALLENGE}/Validation_Set/second.txt", "valence,arousal\n0,0\n")
    put(root, TEST_LIST, "third\n")
    for name in ("batch1/first.mp4", "batch2/second.avi", "batch2/third.MP4"):
        put(root, name)


def folder_tree(root: Path, trace: str | bytes = "valence,arousal\n0.5,-0.25\nnan,\n") -> None:
    put(root, "train/s1/first.csv", trace)
    put(root, "validation/s2/second.csv", "valence,arousal\n0,0\n")
    for name in ("train/s1/first.mp4", "validation/s2/second.avi", "test/s3/third.MP4"):
        put(root, name)


RATINGS_HEADER = "recording,subject,partition,start,end,value"
RATINGS = f"{RATINGS_HEADER}\nday1/first,s1,train,0,2,3.5\nsecond,s2,validation,1,1.5,10\n"


def fatigue_tree(root: Path, ratings: str | bytes = RATINGS) -> None:
    put(root, "ratings.csv", ratings)
    for name in ("day1/first.mp4", "second.avi", "day2/third.MP4"):
        put(root, name)


TREES: dict[str, Callable[..., None]] = {
    "aff_wild2": aff_wild2_tree,
    "folder": folder_tree,
    "fatigue": fatigue_tree,
}
FIRST_TARGETS = {  # of the first frames, 0.04 s apart, of the recording to train on
    "aff_wild2": {"valence": [0.5, np.nan], "arousal": [-0.25, np.nan]},
    "folder": {"valence": [0.5, np.nan], "arousal": [-0.25, np.nan]},
    "fatigue": {"fatigue": [3.5, 3.5]},
}
every_corpus = pytest.mark.parametrize("name", list(registry.CORPORA))
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
    "overflow": (b"valence,arousal\n0,1e999\n", "line 2: expected a number, got '1e999'"),
    "other_digits": ("valence,arousal\n0,\N{FULLWIDTH DIGIT ONE}\n".encode(), "line 2: expected a number"),
    "header_only": (b"valence,arousal\n", "line 2: expected rows of numbers below the header"),
    "header_and_blank": (b"valence,arousal\n\n\n", "line 2: expected rows of numbers below the header"),
    "utf16": ("valence,arousal\n0,0\n".encode("utf-16"), "line 1: expected UTF-8 text, got UTF-16"),
    "utf16_unmarked": ("valence,arousal\n0,0\n".encode("utf-16-le"), "line 1: expected UTF-8 text, got a zero byte"),
    "latin1": (b"valence,arousal\n0,0\n0,\xe9\n", "line 3: expected UTF-8 text, got the byte 0xe9"),
    "binary": (b"valence,arousal\n0,0\n\x00\x01", "line 3: expected UTF-8 text, got a zero byte"),
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
    put(root, "a.mp4")
    put(root, "a.csv", "valence,arousal\n0,0\n")
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


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"third\n../../secret\n", "line 2: expected the name of a video, got '../../secret'"), (b"\xff\xfea", "UTF-16")],
)
def test_aff_wild2_test_list(content: bytes, message: str, tmp_path: Path) -> None:
    aff_wild2_tree(tmp_path)
    put(tmp_path, TEST_LIST, content)
    with pytest.raises(UsageError, match=message):
        AffWild2Corpus(tmp_path)


def test_folder_partitions_names_and_subjects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("validation/s1/day/a.mp4", "train/b.mov", "loose.mp4", "rated.mp4", "s2/c.webm", "test.mp4"):
        put(tmp_path, name)
    for name in ("validation/s1/day/a.csv", "rated.csv", "s2/c.csv", "stray.csv"):
        put(tmp_path, name, "valence\n0\n")
    with caplog.at_level(logging.WARNING):
        recordings = FolderCorpus(tmp_path).recordings()
    assert [(r.name, r.partition, r.subject, r.annotation_path is not None) for r in recordings] == [
        ("loose", "test", "loose", False),
        ("rated", "train", "rated", True),
        ("s2/c", "train", "s2", True),
        ("test", "test", "test", False),
        ("train/b", "train", "b", False),
        ("validation/s1/day/a", "validation", "s1", True),
    ]
    assert "csv files beside no video of their name, left out: 1" in caplog.text


def folder_annotation(root: Path, trace: str) -> np.ndarray:
    put(root, "clip.mp4")
    put(root, "clip.csv", trace)
    corpus = FolderCorpus(root)
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
    "header", ["time", "valence,valence", "valence,time", "valence;arousal", "valence,,arousal", "0.5", "a,frame"]
)
def test_folder_without_any_good_header(header: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no trace under .* has a readable header; .*clip.csv, line 1: expected a header"
    ):
        folder_annotation(tmp_path, f"{header}\n0,0\n")


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
        (b"day1/first,s1,train,0,1,2\n", f"line 1: expected the header '{RATINGS_HEADER}', got 'day1/first"),
        (b"recording,subject,partition,end,start,value\na,b,train,1,0,1\n", "line 1: expected the header"),
        (f"{RATINGS_HEADER}\n\n".encode(), "line 2: expected ratings below the header, got the end of the file"),
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
