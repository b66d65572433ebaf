import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from test_cache import spec

from avfuse import spec as spec_module
from avfuse.schema import Recording, RecordingError
from avfuse.spec import (
    MAX_FILE_BYTES,
    CacheSpec,
    FileDigests,
    Source,
    differences,
    folder_name,
    list_crops,
    normal_name,
    tell_differences,
)


def test_fingerprint_follows_every_field() -> None:
    fingerprints = {spec().fingerprint}
    changes = {
        "precision": "bf16",
        "targets": ("fatigue",),
        "video_shape": (1, 1, 1),
        "audio_shape": (1,),
        "ranges": ((-1.0, 1.0), (0.0, 1.0)),
        "format_version": 9,
    }
    for field in dataclasses.fields(CacheSpec):
        changed = changes.get(field.name, "other" if isinstance(getattr(spec(), field.name), str) else {"changed": 1})
        fingerprints.add(spec(**{field.name: changed}).fingerprint)
    assert len(fingerprints) == 1 + len(dataclasses.fields(CacheSpec))


def test_folders_do_not_collide_with_the_metadata_beside_them() -> None:
    assert folder_name("zarr.json") == "zarr%2Ejson"
    assert {folder_name(name) for name in ("a.json", "zarr.json.mp4")} == {"a.json", "zarr.json.mp4"}


def test_a_spec_comes_back_from_json() -> None:
    one = spec(dataset="Ünder/score d")
    again = CacheSpec.from_json(json.loads(json.dumps(dataclasses.asdict(one))))
    assert again == one
    assert again.fingerprint == one.fingerprint
    assert one.store_name == f"Ünder-score-d-{one.fingerprint}.zarr"
    assert again.ranges == ((-1.0, 1.0), None)


def test_differences_are_told_by_the_name_of_the_setting() -> None:
    these = spec(video={"arch": "r3d_18"}, libraries={"torch": "2.11"}).to_json()
    those = spec(video={"arch": "r2plus1d_18"}, libraries={}, ranges=()).to_json()
    assert differences(these, these) == {}
    assert differences(these, those) == {
        "video.arch": ("r3d_18", "r2plus1d_18"),
        "libraries.torch": ("2.11", None),
        "ranges": ([[-1.0, 1.0], None], []),
    }
    told = "libraries.torch: 2.11 there, nothing here; ranges: [[-1.0, 1.0], null] there, [] here; video.arch: r3d_18 "
    assert tell_differences(these, those) == f"{told}there, r2plus1d_18 here"
    assert tell_differences(these, these) == tell_differences({}, those) == tell_differences(these, {}) == ""
    many = {f"key{number}": number for number in range(7)}
    assert tell_differences(many, {"key0": "x" * 40}, ("in A", "in B")) == (
        f"key0: 0 in A, {'x' * 32}... in B; key1: 1 in A, nothing in B; key2: 2 in A, nothing in B; "
        "key3: 3 in A, nothing in B; and 3 more"
    )


def test_source_names_what_is_missing(tmp_path: Path) -> None:
    video, text = tmp_path / "v.mp4", tmp_path / "v.txt"
    recording = Recording("v", video, "train", "v", text)
    with pytest.raises(RecordingError, match=r"v\.mp4 cannot be read") as caught:
        Source.of(recording, tmp_path)
    assert caught.value.reason == "missing_file"
    video.write_bytes(b"123")
    with pytest.raises(RecordingError, match=r"v\.txt cannot be read") as caught:
        Source.of(recording, tmp_path)
    assert caught.value.reason == "annotation_invalid"
    text.write_text("x")
    source = Source.of(recording, tmp_path)
    assert (source.file, source.sha256) == ("v.mp4", hashlib.sha256(b"123").hexdigest())
    text.write_text("y")
    assert Source.of(recording, tmp_path) != source


def test_source_of_a_recording_that_shares_its_annotation_file(tmp_path: Path) -> None:
    video, text = tmp_path / "v.mp4", tmp_path / "ratings.csv"
    video.write_bytes(b"123")
    text.write_text("v's and others'")
    recording = Recording("v", video, "train", "v", text, annotation_sha256="ab" * 32)
    source = Source.of(recording, tmp_path)
    assert source.annotation_sha256 == "ab" * 32
    text.write_text("v's and others', which changed")
    assert Source.of(recording, tmp_path) == source
    assert Source.of(dataclasses.replace(recording, annotation_sha256="cd" * 32), tmp_path) != source


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, link = tmp_path / "v.mp4", tmp_path / "link.mp4"
    video.write_bytes(b"123")
    link.symlink_to(video)
    read: list[Path] = []
    sha256 = spec_module._sha256
    monkeypatch.setattr(spec_module, "_sha256", lambda path, on_read: (read.append(path), sha256(path, on_read))[1])
    digest = FileDigests()
    expected = hashlib.sha256(b"123").hexdigest()
    assert [digest(video), digest(video), digest(link)] == [expected] * 3
    people = [Recording(name, video, "train", name, face_side=name) for name in ("left", "right")]
    left, right = (Source.of(recording, tmp_path, digest) for recording in people)
    assert read == [video]
    assert (left.sha256, left.face_side, right.face_side) == (expected, "left", "right")
    video.write_bytes(b"456")
    os.utime(video, ns=(0, 0))
    assert digest(video) == hashlib.sha256(b"456").hexdigest()
    video.unlink()
    with pytest.raises(FileNotFoundError):
        digest(video)


def write_crops(folder: Path, *names: str) -> Recording:
    """Write files that hold their own names; return the recording whose aligned images they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    video = folder.parent / "v.mp4"
    video.write_bytes(b"123")
    return Recording("v", video, "train", "v", crops=folder)


def test_aligned_images_are_listed_by_frame(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    images = ["00001.jpg", "00003.PNG", "00010.jpeg", "99999.jpg", "100000.jpg"]
    others = ["1.jpg", "000002.jpg", "00002.gif", "a0001.jpg", "00002", "._00002.jpg", "00002.jpg.part", "٠٠٠٠٢.jpg"]
    recording = write_crops(folder, *images, *others)
    (folder / "00004.jpg").mkdir()
    listed = {0: "00001.jpg", 2: "00003.PNG", 9: "00010.jpeg", 99998: "99999.jpg", 99999: "100000.jpg"}
    assert {index: path.name for index, path in list_crops(recording, tmp_path).items()} == listed
    assert list(list_crops(recording, tmp_path)) == sorted(listed)


def test_of_two_images_of_a_frame_one_is_preferred(tmp_path: Path) -> None:
    recording = write_crops(tmp_path / "v", "00001.png", "00001.jpg", "00001.jpeg", "00002.png", "00002.jpeg")
    assert [path.name for path in list_crops(recording, tmp_path).values()] == ["00001.jpg", "00002.jpeg"]


def test_aligned_images_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    recording = write_crops(tmp_path / "v")
    cases = {
        "the corpus has no folder of aligned images of v": dataclasses.replace(recording, crops=None),
        r"nowhere cannot be read \(No such file": dataclasses.replace(recording, crops=tmp_path / "nowhere"),
        r"v\.mp4 cannot be read \(Not a directory": dataclasses.replace(recording, crops=tmp_path / "v.mp4"),
        r"v holds no image that is named as 00001\.jpg is": recording,
        r"00000\.jpg: images are counted from 1": write_crops(tmp_path / "nought", "00000.jpg", "00001.jpg"),
    }
    for message, case in cases.items():
        with pytest.raises(RecordingError, match=message) as caught:
            list_crops(case, tmp_path)
        assert caught.value.reason == "missing_crops"
        with pytest.raises(RecordingError, match=message):
            Source.of(case, tmp_path, with_crops=True)
        assert Source.of(case, tmp_path).crops_sha256 is None


def test_a_source_follows_its_aligned_images(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    recording = write_crops(folder, "00001.jpg", "00002.jpg")
    seen = [Source.of(recording, tmp_path, with_crops=True)]
    (folder / "Thumbs.db").write_text("no aligned image")
    assert Source.of(recording, tmp_path, with_crops=True) == seen[0]
    (folder / "00002.jpg").write_text("00002.JPG")  # as long as before
    seen.append(Source.of(recording, tmp_path, with_crops=True))
    (folder / "00002.jpg").rename(folder / "00003.jpg")
    seen.append(Source.of(recording, tmp_path, with_crops=True))
    (folder / "00003.jpg").unlink()
    seen.append(Source.of(recording, tmp_path, with_crops=True))
    assert len({source.crops_sha256 for source in seen}) == 4
    assert len({dataclasses.replace(source, crops_sha256=None) for source in seen}) == 1


def test_a_file_too_long_to_be_read_is_over_the_limit(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    with video.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a hole, which takes no room
    recording = Recording("v", video, "train", "v")
    with pytest.raises(RecordingError, match=r"v\.mp4 cannot be read \(it has 128 GiB, 128 are allowed\)") as caught:
        Source.of(recording, tmp_path)
    assert caught.value.reason == "over_limit"
    with pytest.raises(OSError, match="128 are allowed"):
        FileDigests()(video)


def test_who_waits_for_a_file_is_told_that_it_is_being_read(tmp_path: Path) -> None:
    video, annotation = tmp_path / "v.mp4", tmp_path / "v.csv"
    video.write_bytes(b"0" * (2 * spec_module._READ_BYTES + 1))
    annotation.write_bytes(b"1")
    told: list[None] = []
    recording = Recording("v", video, "train", "v", annotation)
    source = Source.of(recording, tmp_path, on_read=lambda: told.append(None))
    assert len(told) == 3 + 1
    assert source.sha256 == hashlib.sha256(video.read_bytes()).hexdigest()


def test_a_name_that_is_no_unicode_is_written_out() -> None:
    name = os.fsdecode(b"caf\xe9/t\xff")
    assert normal_name(name) == r"caf\xe9/t\xff"
    assert normal_name("cafe\u0301") == "caf\u00e9"
    assert folder_name(normal_name(name)) == "caf%5Cxe9%2Ft%5Cxff"


def test_aligned_images_that_are_links_stay_in_the_corpus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, beside = tmp_path / "root" / "crops" / "v", tmp_path / "root" / "crops" / "w"
    for place in (folder, beside):
        place.mkdir(parents=True)
    for path in (folder / "00001.jpg", beside / "00001.jpg", tmp_path / "secret.jpg"):
        path.write_bytes(b"0")
    (folder / "00002.jpg").symlink_to(beside / "00001.jpg")
    (folder / "00003.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "00004.jpg").symlink_to(folder / "00004.jpg")
    (folder / "00005.jpg").symlink_to(tmp_path / "root" / "v.mp4.md5")
    (tmp_path / "root" / "v.mp4.md5").write_bytes(b"1")
    recording = Recording("v", tmp_path / "root" / "v.mp4", "train", "v", crops=folder)
    assert list(list_crops(recording, tmp_path / "root")) == [0, 1, 4]
    assert "links that lead out of the corpus, or nowhere, left out: 2" in caplog.text
