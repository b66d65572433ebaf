"""In a corpus with known faults each is named by recording, file and line, and shows in the exit code."""

import csv
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import flash, remux, write_video

from avfuse import audit as stage
from avfuse import registry
from avfuse.audit import AuditProgress, AuditSummary, audit, tabulate
from avfuse.findings import PROBLEM, REMARK, Finding
from avfuse.inspection import inspect_media
from avfuse.options import AuditOptions
from avfuse.schema import Annotation, Recording, UsageError

FRAME_S = np.arange(50) / 25
RATE_HZ = 16_000


def noise(duration_s: float, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(duration_s * RATE_HZ)).astype(np.float32)


class Tree:
    """An Aff-Wild2 folder that grows recording by recording."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = root / "annotations" / "VA_Estimation_Challenge"
        for folder in ("Train_Set", "Validation_Set"):
            (self.rows / folder).mkdir(parents=True)

    def trace(self, name: str, rows: Sequence[str] | int = 50, folder: str = "Train_Set") -> Path:
        lines = [f"{0.01 * (i % 50):.2f},0.2" for i in range(rows)] if isinstance(rows, int) else rows
        path = self.rows / folder / f"{name}.txt"
        path.write_text("\n".join(["valence,arousal", *lines, ""]))
        return path

    def video(self, name: str, **settings: object) -> Path:
        """Write a video of two seconds, unlike any other."""
        seed = sum(name.encode())
        given = {"frame_time_s": FRAME_S, "image": flash(seed % 50), "sound_CS": noise(2.0, seed), "rate_hz": RATE_HZ}
        return write_video(self.root / name, **{**given, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus in which every recording is named after what it is like."""
    tree = Tree(tmp_path_factory.mktemp("corpus") / "root")
    for name in ("good", "two_rows_less", "two_rows_more", "many_rows_more", "invalid", "unrated"):
        tree.video(f"{name}.mp4")
    for name, rows in {"good": 50, "two_rows_less": 48, "two_rows_more": 52, "many_rows_more": 99}.items():
        tree.trace(name, rows)
    tree.trace("invalid", ["0,0"] * 3 + ["x,0", "0,1.5", "0,0", "0", "-5,0.1"] + ["0,0"] * 42)
    tree.trace("unrated", ["-5,-5.0"] * 50)
    tree.video("sound_late.mkv", sound_start_s=0.5)
    tree.video("sound_long.mp4", sound_CS=noise(4.0))
    tree.video("no_sound.mp4", sound_CS=None)
    tree.video("muted.mp4", sound_CS=0 * noise(2.0))
    tree.video("turned.mp4", rotation=90)
    tree.video("variable.mp4", frame_time_s=np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 50)))
    (tree.root / "empty.mp4").write_bytes(b"")
    (tree.root / "text.mp4").write_text("no video\n" * 99)
    for name in ("sound_late", "sound_long", "no_sound", "muted", "turned", "variable", "empty", "text", "gone"):
        tree.trace(name)
    (tree.root / "copy.mp4").write_bytes((tree.root / "good.mp4").read_bytes())
    tree.trace("copy", folder="Validation_Set")
    return tree.root


@pytest.fixture(scope="module")
def summary(faulty: Path) -> AuditSummary:
    return audit(AuditOptions(faulty))


PROBLEMS = {
    "many_rows_more": ["annotation_mismatch"],
    "invalid": ["annotation_invalid"] * 3,
    "unrated": ["unrated"],
    "sound_long": ["drift"],
    "no_sound": ["no_audio_stream"],
    "muted": ["silent"],
    "empty": ["unreadable"],
    "text": ["unreadable"],
    "gone": ["missing_file"],
    None: ["leak"],
}
REMARKS = {
    "two_rows_less": ["rows_differ"],
    "two_rows_more": ["rows_differ"],
    "sound_late": ["start_offset"],
    "turned": ["rotated"],
    "variable": ["variable_rate"],
}


def by_recording(summary: AuditSummary, level: str) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for finding in summary.findings:
        if finding.level == level:
            found.setdefault(finding.recording, []).append(finding.code)
    return found


def test_every_fault_is_found_and_nothing_else(summary: AuditSummary) -> None:
    assert by_recording(summary, PROBLEM) == PROBLEMS
    assert by_recording(summary, REMARK) == REMARKS
    assert summary.num_problems == sum(map(len, PROBLEMS.values()))
    assert summary.num_remarks == sum(map(len, REMARKS.values()))


def test_recordings_stand_in_the_order_of_the_corpus(summary: AuditSummary, faulty: Path) -> None:
    corpus = registry.load("corpus", "aff_wild2")(faulty)
    assert [item.recording for item in summary.recordings] == [item.name for item in corpus.recordings()]
    assert summary.targets == ("valence", "arousal")


def test_faulty_rows_are_named_by_file_and_line(summary: AuditSummary, faulty: Path) -> None:
    path = faulty / "annotations" / "VA_Estimation_Challenge" / "Train_Set" / "invalid.txt"
    found = [item for item in summary.findings if item.recording == "invalid"]
    assert [(item.path, item.line) for item in found] == [(path, 5), (path, 6), (path, 8)]
    for item, words in zip(found, ("'x' as valence", "1.5 as arousal", "2 comma-separated fields"), strict=True):
        assert words in item.message


def test_what_is_measured(summary: AuditSummary) -> None:
    items = {item.recording: item for item in summary.recordings}
    good = items["good"]
    assert good.picture is not None
    assert good.ratings is not None
    assert (good.picture.num_frames, good.picture.num_advertised, good.ratings.num_rows) == (50, 50, 50)
    assert good.ratings.rated_share == {"valence": 1.0, "arousal": 1.0}
    piece_s = 1024 / RATE_HZ + 0.002  # of AAC, which fills its last one
    assert items["sound_late"].offset_s == pytest.approx(0.5, abs=0.001)
    assert items["sound_long"].drift_s == pytest.approx(2.0, abs=piece_s)
    less, more = items["two_rows_less"].ratings, items["two_rows_more"].ratings
    assert less is not None
    assert more is not None
    assert (less.num_rows, less.num_dropped, less.num_without, less.rated_share["valence"]) == (48, 0, 2, 0.96)
    assert (more.num_rows, more.num_dropped, more.num_without, more.rated_share["valence"]) == (52, 2, 0, 1.0)
    unrated = items["unrated"].ratings
    assert unrated is not None
    assert unrated.rated_share == {"valence": 0.0, "arousal": 0.0}
    assert items["gone"].picture is items["gone"].sound is None
    assert items["gone"].ratings is not None  # its annotation is read all the same
    assert items["gone"].ratings.num_dropped is None
    assert items["invalid"].picture is not None
    assert items["invalid"].ratings is None


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing_and_progress_is_told(num_workers: int, faulty: Path, summary: AuditSummary) -> None:
    told: list[AuditProgress] = []
    again = audit(AuditOptions(faulty, num_workers=num_workers), told.append)
    assert repr(again.recordings) == repr(summary.recordings)  # NaN equals itself in a representation
    assert again.findings == summary.findings
    total = len(summary.recordings)
    assert [item.num_done for item in told] == list(range(1, total + 1))
    assert {item.num_recordings for item in told} == {total}
    assert told[-1].num_problems == summary.num_problems  # with the leak, which belongs to no recording
    assert told[-2].num_problems < summary.num_problems


def test_limits_are_options(faulty: Path) -> None:
    lax = audit(AuditOptions(faulty, max_drift_s=3.0))
    assert "sound_long" not in by_recording(lax, PROBLEM)
    assert by_recording(lax, REMARK)["sound_long"] == ["length_differs"]


def test_a_corpus_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        audit(AuditOptions(tmp_path / "nowhere"))
    Tree(tmp_path / "root").trace("one")
    with pytest.raises(UsageError, match="corpus 'aff_wild2' has no argument 'highest'"):
        audit(AuditOptions(tmp_path / "root", corpus_option=("highest=5",)))


class _Pair:
    """A corpus of one video of two people, of whom only one has aligned images; one of their traces is impossible."""

    targets = ("valence",)
    ranges = ((-1.0, 1.0),)

    def __init__(self, root: Path) -> None:
        self._root = root

    def recordings(self) -> list[Recording]:
        path = self._root / "a.mp4"
        return [
            Recording("a_left", path, "train", "left", face_side="left", crops=self._root),
            Recording("a_right", path, "train", "right", face_side="right"),
        ]

    def annotation(self, recording: Recording) -> Annotation:
        if recording.name == "a_right":
            raise ZeroDivisionError("a bug in the corpus")
        return Annotation(self.targets, np.full((50, 1), 2.0))


def test_two_people_in_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is decoded once; what befalls the one costs the other nothing."""
    monkeypatch.setitem(registry.CORPORA, "pair", f"{__name__}:_Pair")
    write_video(tmp_path / "a.mp4", FRAME_S, sound_CS=noise(2.0), rate_hz=RATE_HZ)
    inspected = []
    monkeypatch.setattr(stage, "inspect_media", lambda path, _: inspected.append(path) or inspect_media(path))
    summary = audit(AuditOptions(tmp_path, corpus="pair"))
    assert inspected == [tmp_path / "a.mp4"]
    left, right = summary.recordings
    assert left.picture == right.picture
    assert [(item.recording, item.code) for item in summary.findings] == [
        ("a_left", "missing_crops"),
        ("a_left", "out_of_range"),
        ("a_right", "missing_crops"),
        ("a_right", "unexpected"),
    ]
    assert summary.findings[-1].message == "ZeroDivisionError: a bug in the corpus"


def test_a_training_recording_without_annotation_is_a_problem(tmp_path: Path) -> None:
    for name in ("train/s1/a", "validation/s2/b", "test/s3/c"):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        write_video(path, FRAME_S, flash(len(name)), noise(2.0, len(name)), rate_hz=RATE_HZ)
    (tmp_path / "validation" / "s2" / "b.csv").write_text("valence\n" + "0.1\n" * 50)
    summary = audit(AuditOptions(tmp_path, corpus="folder"))
    assert [(item.recording, item.code, item.message) for item in summary.findings] == [
        ("train/s1/a", "unrated", "a train recording without annotation")
    ]


def test_aligned_images_are_looked_into(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "root")
    numbers = {
        "all": range(1, 51),
        "few": range(1, 31),
        "from_0": range(50),
        "more": range(1, 53),
        "none": (),
        "other": range(1, 90),
    }
    for name in (*numbers, "nowhere"):
        tree.video(f"{name}.mp4")
        tree.trace(name)
    for name, own in numbers.items():
        folder = tree.root / "cropped_aligned" / name
        folder.mkdir(parents=True)
        for number in own:
            (folder / f"{number:05d}.jpg").touch()
    summary = audit(AuditOptions(tree.root))
    assert by_recording(summary, PROBLEM) == {}
    assert by_recording(summary, REMARK) == {
        "few": ["crops_differ"],
        "from_0": ["missing_crops"],
        "more": ["crops_differ"],
        "none": ["missing_crops"],
        "nowhere": ["missing_crops"],
        "other": ["missing_crops"],
    }
    said = {item.recording: item.message for item in summary.findings}
    assert said["few"].startswith("30 of 50 frames have an image, 0 images")
    assert said["more"].startswith("50 of 50 frames have an image, 2 images")
    assert "images are counted from 1" in said["from_0"]
    assert said["other"] == "89 images for 50 frames: are they of this video?"


def test_times_count_from_the_start_that_a_player_shows(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "train"
    folder.mkdir(parents=True)
    made = write_video(tmp_path / "made.ts", FRAME_S, sound_CS=noise(6.0)[:88_200], video_options={"bf": "0"})
    remux(made, folder / "stream.ts", shift_s=1.4)
    write_video(folder / "late.mp4", FRAME_S + 1.0, flash(3), noise(3.0), rate_hz=RATE_HZ)
    (folder / "stream.csv").write_text("time,valence\n0,0.1\n2,0.2\n")
    (folder / "late.csv").write_text("time,valence\n1,0.1\n2.96,0.2\n")
    summary = audit(AuditOptions(folder.parent, corpus="folder"))
    late, stream = summary.recordings
    assert (late.zero_s, stream.zero_s) == (0.0, pytest.approx(1.4, abs=1e-4))
    assert late.ratings is not None
    assert stream.ratings is not None
    assert late.ratings.rated_share == stream.ratings.rated_share == {"valence": 1.0}
    codes = by_recording(summary, REMARK)
    assert codes["train/late"] == ["start_offset", "length_differs", "starts_late"]
    assert "starts_late" not in codes.get("train/stream", [])


class _Interrupted(BaseException):
    """As Ctrl-C is."""


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_interrupted_audit_does_not_wait_for_the_files_at_hand(
    num_workers: int, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_long, ended = threading.Event(), []

    def inspect(path: Path, on_packet: Callable[[], None]) -> object:
        if path.name == "empty.mp4":
            return inspect_media(path, on_packet)
        is_long.set()
        for _ in range(2000):  # a file that takes 20 s
            on_packet()
            time.sleep(0.01)
        ended.append(path.name)
        return inspect_media(path, on_packet)

    def interrupt(progress: AuditProgress) -> None:
        is_long.wait(20)
        raise _Interrupted

    monkeypatch.setattr(stage, "inspect_media", inspect)
    corpus = registry.load("corpus", "aff_wild2")
    recordings = corpus.recordings
    monkeypatch.setattr(  # so that something is done, and told, while the next file is long
        corpus, "recordings", lambda self: sorted(recordings(self), key=lambda item: item.name != "empty")
    )
    with pytest.raises(_Interrupted):
        audit(AuditOptions(faulty, num_workers=num_workers), interrupt)
    assert ended == []


def test_an_interrupted_audit_does_not_wait_for_the_search_for_leaks(
    faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_begun, ended = threading.Event(), []

    def find(recordings: Sequence[Recording], digest: Callable[[Path], str]) -> list[object]:
        is_begun.set()
        for _ in range(2000):  # files, which take 20 s
            digest(faulty / "good.mp4")
            time.sleep(0.01)
        ended.append("leaks")
        return []

    def interrupt(progress: AuditProgress) -> None:
        is_begun.wait(20)
        raise _Interrupted

    monkeypatch.setattr(stage, "find_leaks", find)
    with pytest.raises(_Interrupted):
        audit(AuditOptions(faulty, num_workers=2), interrupt)
    assert ended == []


def test_an_unexpected_error_costs_its_file_alone(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inspect(path: Path, on_packet: Callable[[], None]) -> object:
        if path.name == "good.mp4":
            raise ZeroDivisionError("a bug in the decoder")
        return inspect_media(path, on_packet)

    monkeypatch.setattr(stage, "inspect_media", inspect)
    again = audit(AuditOptions(faulty))
    assert by_recording(again, PROBLEM) == {**PROBLEMS, "good": ["unexpected"]}


def test_the_table(summary: AuditSummary) -> None:
    table = tabulate(summary)
    assert [row[0] for row in table.rows] == [item.recording for item in summary.recordings]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["good"]["frames"] == "50"
    assert rows["good"]["rated\n%"] == "100/100"
    assert rows["good"]["problems,\nremarks"] == "0, 0"
    assert rows["invalid"]["problems,\nremarks"] == "3, 0"
    assert rows["sound_late"]["offset\ns"] == "+0.500"
    assert rows["variable"]["fps"].endswith(" var.")
    assert rows["gone"]["frames"] == "\N{EN DASH}"
    problems = [note for note in table.notes if note.startswith("problem: ")]
    assert problems == [f"problem: {item}" for item in summary.findings if item.level == PROBLEM]
    assert not [note for note in table.notes if note.startswith("remark: ")]
    assert [note for note in table.notes if note.startswith("2 x rows_differ: ")]
    assert table.notes[-1] == f"12 problems and 5 remarks in {len(summary.recordings)} recordings."
    listed = [note for note in tabulate(summary, with_remarks=True).notes if note.startswith("remark: ")]
    assert listed == [f"remark: {item}" for item in summary.findings if item.level == REMARK]


def test_every_faulty_line_of_many_is_named(tmp_path: Path) -> None:
    """Ten with what is wrong, the others by number."""
    lines = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 40]
    findings = [Finding("one", PROBLEM, "annotation_invalid", "wrong", tmp_path / "one.txt", line) for line in lines]
    summary = AuditSummary(tmp_path, "folder", ("valence",), (), tuple(findings), len(findings), 0, 1.0)
    said = [note for note in tabulate(summary).notes if note.startswith("problem: ")]
    assert len(said) == 11
    assert said[9] == f"problem: one: annotation_invalid: {tmp_path / 'one.txt'}, line 11: wrong"
    assert said[10] == f"problem: one: annotation_invalid: 4 more, in lines 20-22, 40 of {tmp_path / 'one.txt'}"


def run(*arguments: object) -> tuple[int, str, str]:
    """Call the command line as a shell does."""
    command = [sys.executable, "-m", "avfuse", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_problems_give_4_and_are_listed(faulty: Path) -> None:
    code, out, err = run("audit", faulty)
    assert code == 4
    assert max(map(len, out[: out.index("jitter: ")].splitlines())) <= 160
    assert "invalid.txt, line 6: expected a value in [-1, 1]" in out
    assert "corpus: leak: the content of " in out
    assert "remark: " not in out
    assert "recordings, 12 problems" in err
    code, out, _ = run("-v", "audit", faulty)
    assert code == 4
    assert "remark: turned: rotated: " in out


def test_json_is_one_object(faulty: Path, summary: AuditSummary) -> None:
    code, out, _ = run("-q", "audit", faulty, "--json", "--num-workers", 1)
    assert code == 4
    values = json.loads(out)
    assert (values["num_problems"], values["num_remarks"]) == (12, 5)
    assert [item["recording"] for item in values["recordings"]] == [item.recording for item in summary.recordings]
    assert values["recordings"][0]["ratings"]["num_rows"] == 50
    assert {"invalid": 8}.items() <= {item["recording"]: item["line"] for item in values["findings"]}.items()


def test_formats(faulty: Path, summary: AuditSummary, tmp_path: Path) -> None:
    code, out, err = run("audit", faulty, "--format", "csv", "--out", tmp_path / "table.csv")
    assert (code, out) == (4, "")
    assert f"wrote {tmp_path / 'table.csv'}" in err
    rows = {row["recording"]: row for row in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))}
    assert list(rows) == [*(item.recording for item in summary.recordings), ""]  # the last one is the corpus
    assert float(rows["sound_late"]["offset_s"]) == pytest.approx(0.5, abs=0.001)
    assert rows["two_rows_more"]["ratings_num_dropped"] == "2"
    assert rows["two_rows_less"]["rated_share_valence"] == "0.96"
    assert rows["gone"]["picture_num_frames"] == rows["gone"]["zero_s"] == ""
    assert rows["good"]["zero_s"] == "0.0"
    assert (rows["invalid"]["problems"], rows["invalid"]["codes"]) == ("3", "annotation_invalid")
    assert rows[""]["codes"] == "leak"
    for name, words in (("markdown", "problem: gone: missing"), ("latex", "variable\\_rate"), ("json", '"drift_s": ')):
        assert words in registry.load("format", name)(tabulate(summary, with_remarks=True))


def test_a_sound_corpus_gives_0(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "root")
    for name, folder in (("one", "Train_Set"), ("two", "Validation_Set")):
        tree.video(f"{name}.mp4")
        tree.trace(name, folder=folder)
    code, out, err = run("audit", tree.root, "--out", tmp_path / "table.md")
    assert (code, out) == (0, "")
    assert "2/2 recordings, 0 problems" in err
    assert "0 problems and 0 remarks in 2 recordings." in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--json", "--format", "csv"), "--json prints one object"),
        (("--out", "nowhere/table.csv"), "the folder nowhere does not exist"),
        (("--corpus-option", "highest"), "'highest' is not KEY=VALUE"),
        (("--max-drift-s", "nan"), "not a finite number"),
    ],
)
def test_wrong_usage_gives_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    Tree(tmp_path / "root").trace("one")
    code, out, err = run("audit", tmp_path / "root", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "program", ["import avfuse.audit", "from avfuse.cli import cli; cli(['audit', '--help'], standalone_mode=False)"]
)
def test_the_audit_imports_no_torch(program: str) -> None:
    ask = f"{program}\nimport sys\nsys.exit(', '.join(name for name in ('torch', 'zarr') if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
