from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from avfuse.arrays import Location
from avfuse.mapping import FeatureMapping, read_mapping
from avfuse.schema import UsageError

HEAD = 'fps = 25\nvideo = "{recording}.npy"\n'
BY_NAME = '[partitions]\ntrain = ["a*", "b"]\nvalidation = "v*"\nskip = "x"\n'


def read(folder: Path, text: str) -> FeatureMapping:
    (folder / "people.toml").write_text(text, encoding="utf-8")
    return read_mapping(folder / "people.toml")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def refuse(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^.*/people\.toml: {message}"):
        read(folder, text)


def found(mapping: FeatureMapping) -> dict[str, tuple[str, str, Any]]:
    return {item.name: (item.partition, item.subject, str(item.places["video"])) for item in mapping.recordings}


def test_what_a_mapping_says(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy")
    mapping = read(
        tmp_path,
        'dataset = "people"\nfps = 29.97\nhop = 8\ntargets = ["valence", "arousal"]\nranges = [[-1, 1], [0, 10]]\n'
        'target_rows = "frame"\nunrated = -5\nalign = "shortest"\n'
        'video = "{recording}.npy"\naudio = "all.npz:{recording}"\n'
        'target = "labels/{subject}/{partition}/{recording}.npy"\nvideo_encoder = "OpenFace 2.2"\n' + BY_NAME,
    )
    assert (mapping.dataset, mapping.fps, mapping.hop, mapping.first_frame) == ("people", 29.97, 8, 7)
    assert (mapping.targets, mapping.ranges) == (("valence", "arousal"), ((-1.0, 1.0), (0.0, 10.0)))
    assert (mapping.target_rows, mapping.unrated, mapping.align) == ("frame", -5.0, "shortest")
    assert mapping.encoders == {"video": "OpenFace 2.2", "audio": ""}
    assert mapping.places == {
        "video": "{recording}.npy",
        "audio": "all.npz:{recording}",
        "target": "labels/{subject}/{partition}/{recording}.npy",
    }
    (recording,) = mapping.recordings
    assert recording.places == {
        "video": Location("a.npy"),
        "audio": Location("all.npz", "a"),
        "target": Location("labels/a/train/a.npy"),
    }
    assert mapping.file_of(recording.places["audio"]) == tmp_path / "all.npz"


def test_what_need_not_be_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy")
    mapping = read(tmp_path, HEAD + BY_NAME)
    assert (mapping.dataset, mapping.hop, mapping.first_frame, mapping.targets) == ("people", 1, 0, ())
    assert (mapping.ranges, mapping.target_rows, mapping.unrated, mapping.align) == ((), "clip", None, "exact")


def test_recordings_are_found_by_their_files(tmp_path: Path) -> None:
    touch(tmp_path, "v 1.npy", "a2.npy", "b.npy", "x.npy", "a1.npz", "a9.npy/inside.npz")
    assert found(read(tmp_path, HEAD + BY_NAME)) == {
        "a2": ("train", "a2", "a2.npy"),
        "b": ("train", "b", "b.npy"),
        "v 1": ("validation", "v 1", "v 1.npy"),
    }


def test_recordings_are_found_in_folders(tmp_path: Path) -> None:
    touch(tmp_path, "f/train/anna/1.npy", "f/train/anna/2.npy", "f/test/ben/day/3.npy", "f/other/carl/4.npy", "f/5.npy")
    text = 'fps = 25\nvideo = "f/{partition}/{subject}/{recording}.npy"\n'
    assert found(read(tmp_path, text)) == {
        "1": ("train", "anna", "f/train/anna/1.npy"),
        "2": ("train", "anna", "f/train/anna/2.npy"),
        "day/3": ("test", "ben", "f/test/ben/day/3.npy"),
    }
    text = 'fps = 25\nvideo = "f/{partition}/{recording}.npy"\nsubject = "{subject}/*"\n'
    assert found(read(tmp_path, text)) == {
        "anna/1": ("train", "anna", "f/train/anna/1.npy"),
        "anna/2": ("train", "anna", "f/train/anna/2.npy"),
        "ben/day/3": ("test", "ben", "f/test/ben/day/3.npy"),
    }


def test_recordings_are_found_in_files(tmp_path: Path) -> None:
    for partition, names in (("train", ("s1.a", "s2.b")), ("test", ("s3.c",))):
        with h5py.File(tmp_path / f"{partition}.h5", "w") as file:
            for name in names:
                file[f"of/{name}/face"] = file[f"of/{name}/{name}"] = np.zeros((1, 1))
    np.savez(tmp_path / "all.npz", a1_face=np.zeros(1), b_face=np.zeros(1), a1_sound=np.zeros(1))
    expected = {
        "s1.a": ("train", "s1", "train.h5:/of/s1.a/face"),
        "s2.b": ("train", "s2", "train.h5:/of/s2.b/face"),
        "s3.c": ("test", "s3", "test.h5:/of/s3.c/face"),
    }
    text = 'fps = 25\nsubject = "{subject}.*"\nvideo = "{partition}.h5:/of/{recording}/'
    assert found(read(tmp_path, text + 'face"\n')) == expected
    assert set(found(read(tmp_path, text + '{recording}"\n'))) == set(expected)  # the same name in both places
    mapping = read(tmp_path, 'fps = 25\nvideo = "all.npz:{recording}_face"\n' + BY_NAME)
    assert set(found(mapping)) == {"a1", "b"}


@pytest.mark.parametrize("form", ["csv", "tables"])
def test_recordings_are_listed(tmp_path: Path, form: str) -> None:
    rows = [
        {"recording": "one", "partition": "train", "subject": "anna", "target": "t/{subject}.npy"},
        {"recording": "two, too", "partition": "validation", "subject": "", "video": "elsewhere.h5:/two", "target": ""},
        {"recording": "three", "partition": "test", "subject": "anna"},
    ]
    text = 'fps = 25\nvideo = "{recording}.npy"\ntargets = ["valence"]\ntarget = "labels/{recording}.npy"\n'
    if form == "csv":
        columns = ("recording", "partition", "subject", "video", "target")
        lines = [columns, *(tuple(row.get(key, "") for key in columns) for row in rows)]
        content = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
        (tmp_path / "list.csv").write_text(f"\ufeff{content}\r\n", encoding="utf-8")
        mapping = read(tmp_path, text + 'recordings = "list.csv"\n')
    else:
        tables = ["\n".join(f'{key} = "{value}"' for key, value in row.items()) for row in rows]
        mapping = read(tmp_path, text + "".join(f"[[recordings]]\n{table}\n" for table in tables))
    assert found(mapping) == {
        "one": ("train", "anna", "one.npy"),
        "two, too": ("validation", "two, too", "elsewhere.h5:/two"),
        "three": ("test", "anna", "three.npy"),
    }
    assert {item.name: str(item.places["target"]) for item in mapping.recordings} == {
        "one": "t/anna.npy",
        "two, too": "labels/two, too.npy",
        "three": "labels/three.npy",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hopp = 3", "unknown key 'hopp'; known: dataset, fps, hop, first_frame"),
        ("fps = 0", "fps = 0: expected a finite number above 0"),
        ('video = "{recording}.npy"\n' + BY_NAME, "fps is missing"),
        ("fps = 25\nhop = 0", "hop = 0: expected a whole number of at least 1"),
        (
            "fps = 25\nfirst_frame = -1\nvideo = '{recording}.npy'\n" + BY_NAME,
            "first_frame = -1: expected a whole number",
        ),
        ("fps = 25", "say where features lie, with video, with audio, or with both"),
        ("fps = 25\nvideo = 3", "video = 3: expected a text such as"),
        ("fps = 25\nvideo = 'a.npy'", "video = 'a.npy': expected the placeholder {recording} in it, or a list"),
        ("fps = 25\nvideo = 'b/{recording}.npy'", "video = .*: nothing below .* is named like that"),
        ("fps = 25\nvideo = 'all.h5:/{recording}'", r"video = 'all\.h5:/{recording}': all\.h5: there is no such file"),
        ("fps = 25\nvideo = '../{recording}.npy'", r"video = '\.\./{recording}\.npy': expected a path below"),
        (HEAD, "the partition of 'a' is missing: give patterns of names in a table"),
        (HEAD + "partitions = 3", "partitions = 3: expected a table of patterns"),
        (HEAD + "[partitions]\ndev = 'a'", "partitions: unknown key 'dev'; known: train, validation, test, skip"),
        (HEAD + "[partitions]\ntrain = 3", "partitions.train = 3: expected patterns of names"),
        (HEAD + "[partitions]\ntrain = 'A'", "partitions: no pattern matches 'a'; let one do, skip for one to be left"),
        (HEAD + "[partitions]\ntrain = 'a'\ntest = '*'", "partitions: train and test all match 'a'"),
        (HEAD + "[partitions]\nskip = '*'", "there is no recording"),
        (HEAD + "subject = 'a'\n" + BY_NAME, "subject = 'a': expected {subject} once, and"),
        (
            HEAD + "subject = '{subject}_*'\n" + BY_NAME,
            "subject = .*: expected a pattern that every name has; 'a' has not",
        ),
        (HEAD + "recordings = 3", "recordings = 3: expected a CSV file, or tables"),
        (HEAD + "recordings = '../list.csv'", r"recordings = '\.\./list\.csv': expected a path below"),
        (HEAD + "recordings = 'nothing.csv'", r"recordings = 'nothing\.csv': it cannot be read \(.*No such file"),
        (HEAD + "[[recordings]]\nname = 'a'", r"recordings\[0\]\.unknown key 'name'; known: recording, partition"),
        (HEAD + "[[recordings]]\npartition = 'train'", r"recordings\[0\]\.recording is missing"),
        (HEAD + "[[recordings]]\nrecording = 3", r"recordings\[0\]: expected texts"),
        (
            HEAD + "[[recordings]]\nrecording = 'a'\npartition = 'dev'",
            r"recordings\[0\]\.partition = 'dev': expected tr",
        ),
        (
            HEAD + 2 * "[[recordings]]\nrecording = 'a'\npartition = 'train'\n",
            r"recordings\[1\]\.recording 'a' occurs twice",
        ),
        (
            "fps = 25\n[[recordings]]\nrecording = 'a'\npartition = 'train'\nvideo = '/etc/a.npy'",
            r"recordings\[0\]\.video = '/etc/a\.npy': expected a path below",
        ),
        (
            HEAD + "[[recordings]]\nrecording = '../a'\npartition = 'train'",
            r"video of '\.\./a' = '\.\./a\.npy': expected a path below",
        ),
        ("fps = 25\n[[recordings]]\nrecording = 'a'\npartition = 'train'", "recording 'a' has neither video nor audio"),
        (
            HEAD + "[[recordings]]\nrecording = 'a'\npartition = 'train'\naudio = 'b.npy'\n"
            "[[recordings]]\nrecording = 'b'\npartition = 'train'",
            "recording 'a' has video and audio, 'b' has video; all recordings have the same",
        ),
        (HEAD + "target = 't/{recording}.npy'\n" + BY_NAME, "targets is missing: what the columns of target are"),
        (HEAD + "targets = ['valence']\n" + BY_NAME, "target is missing: where the ratings of valence lie"),
        (HEAD + "target_time = 't.npy'\n" + BY_NAME, "recording 'a' has a target_time, but no target"),
        (
            HEAD + "hop = 8\ntargets = ['x']\ntarget = 't/{recording}.npy'\n" + BY_NAME,
            "target_rows is missing: with hop = 8, say whether target has a row per 'clip'",
        ),
        (
            HEAD + "target_rows = 'clip'\ntargets = ['x']\ntarget = 't.npy'\ntarget_time = 's.npy'\n" + BY_NAME,
            "target_rows = 'clip': expected none where target_time says",
        ),
        (
            HEAD + "target_rows = 'second'\ntargets = ['x']\ntarget = 't.npy'\n" + BY_NAME,
            "target_rows = 'second': expected 'clip' or 'frame'",
        ),
    ],
)
def test_other_mappings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.npy")
    refuse(tmp_path, text, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recording,partition\na\n", "line 2: expected as many fields as there are columns"),
        ("recording,partition\na,train,more\n", "line 2: expected as many fields as there are columns"),
        ("recording,partition,age\na,train,3\n", "line 2: unknown key 'age'; known: recording, partition, subject"),
        (
            "recording,partition,partition\na,train,test\n",
            "line 1: column 'partition' occurs twice; columns are unique",
        ),
        ("recording,partition\na,train\n,train\n", "line 3: recording is missing"),
        ("recording,partition\na,train\n'a',dev\n", "line 3: partition = 'dev': expected train, validation, test"),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    refuse(tmp_path, HEAD + "recordings = 'list.csv'", rf"list\.csv, {message}")


@pytest.mark.parametrize(
    ("pattern", "name", "subject"),
    [
        ("{subject}_*", "s01_a_b", "s01"),
        ("*_{subject}", "x_y_s01", "s01"),
        ("*_{subject}_*", "x_s01_b", "s01"),
        ("*_{subject}_*_*", "trial_anna_01_b", "anna"),
        ("trial_{subject}_*", "trial_anna_01_b", "anna"),
        ("{subject}--*", "a-b--c--d", "a-b"),
        ("S{subject}_*", "SSam_1", "Sam"),
        ("x_{subject}_z", "x_a_b_z", "a_b"),
        ("*/{subject}/*", "a/anna_1/b", "anna_1"),
        ("{subject}.[a]*", "b.c.[a].[a]", "b.c"),
    ],
)
def test_who_it_is_is_read_from_the_name(tmp_path: Path, pattern: str, name: str, subject: str) -> None:
    text = f"{HEAD}subject = '{pattern}'\n[[recordings]]\nrecording = '{name}'\npartition = 'train'\n"
    assert [item.subject for item in read(tmp_path, text).recordings] == [subject]


@pytest.mark.parametrize(
    ("pattern", "name", "one", "other"),
    [
        ("*_{subject}_*", "trial_anna_01_b", "anna", "01"),
        ("{subject}*", "ab", "a", "ab"),
        ("*{subject}", "rec12", "rec12", "ec12"),
        ("s{subject}*_x", "s01_x", "0", "01"),
    ],
)
def test_a_name_that_may_mean_two_is_refused(tmp_path: Path, pattern: str, name: str, one: str, other: str) -> None:
    text = f"{HEAD}subject = '{pattern}'\n[[recordings]]\nrecording = '{name}'\npartition = 'train'\n"
    refuse(
        tmp_path, text, rf"subject = '.*': expected a pattern .*; the subject of '{name}' may be '{one}' or '{other}'"
    )


def test_recordings_are_found_by_links_within_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["raw/1/face"] = np.zeros((1, 1))
        file["raw/2/face"] = np.zeros((1, 1))
        file["of/a1/face"] = file["raw/1/face"]
        file["of/a2"] = h5py.SoftLink("/raw/2")
        file["of/b"] = h5py.ExternalLink("other.h5", "/b")
    mapping = read(tmp_path, 'fps = 25\nvideo = "all.h5:/of/{recording}/face"\n' + BY_NAME)
    assert set(found(mapping)) == {"a1", "a2"}
    assert "all.h5: 1 links lead to another file" in caplog.text
    assert "not followed: of/b" in caplog.text


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml does not exist"):
        read_mapping(tmp_path / "nothing.toml")
    for content in (b"fps = ", b"\xff\xfe"):
        (tmp_path / "a.toml").write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.toml cannot be read as TOML: "):
            read_mapping(tmp_path / "a.toml")
