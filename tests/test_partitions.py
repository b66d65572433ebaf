"""Partitions and folds share no subject whatever the order, and what stands in two partitions is found."""

import hashlib
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from avfuse.partitions import Leak, find_leaks, fold_by_subject, split_by_subject
from avfuse.schema import PARTITIONS, Recording, UsageError

SUBJECTS = [f"s{i}" for i in range(20) for _ in range(1 + i % 4)]


def num_subjects(subjects: list[str], partitions: list[str]) -> list[int]:
    """Count the subjects of each partition, each of which must be in one."""
    placed = set(zip(subjects, partitions, strict=True))
    assert len(placed) == len(set(subjects)), "a subject is in two partitions"
    return [sum(partition == wanted for _, partition in placed) for wanted in PARTITIONS]


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        (0.2, 0.0, [16, 4, 0]),
        (0.0, 0.25, [15, 0, 5]),
        (0.2, 0.2, [12, 4, 4]),
        (0.0, 0.0, [20, 0, 0]),
        (0.01, 0.01, [18, 1, 1]),  # at least one
        (0.49, 0.5, [1, 9, 10]),  # but one is left to train on
        (0.5, 0.49, [1, 9, 10]),
    ],
)
def test_shares_count_subjects(validation: float, test: float, expected: list[int]) -> None:
    assert num_subjects(SUBJECTS, split_by_subject(SUBJECTS, validation, test, seed=0)) == expected


@pytest.mark.parametrize("num", range(3, 12))
def test_every_partition_with_a_share_has_a_subject(num: int) -> None:
    subjects = [f"s{i}" for i in range(num)]
    for validation, test in ((0.1, 0.1), (0.3, 0.3), (0.45, 0.45), (0.1, 0.8), (0.8, 0.1)):
        assert min(num_subjects(subjects, split_by_subject(subjects, validation, test, seed=num))) >= 1


def test_a_split_depends_on_the_subjects_and_the_seed_alone() -> None:
    split = dict(zip(SUBJECTS, split_by_subject(SUBJECTS, 0.2, 0.2, seed=3), strict=True))
    shuffled = random.Random(0).sample(SUBJECTS, len(SUBJECTS)) + ["s0"] * 30
    again = split_by_subject(shuffled, 0.2, 0.2, seed=3)
    assert again == [split[subject] for subject in shuffled]
    splits = [tuple(split_by_subject(SUBJECTS, 0.2, 0.2, seed=seed)) for seed in range(10)]
    assert len(set(splits)) > 5
    held_out = Counter(subject for seed in range(400) for subject in held_out_of(seed))
    # Each of 20 subjects is among 4 held out 80 times in 400 draws on average, with a deviation of 8.
    assert len(held_out) == 20
    assert all(40 < count < 120 for count in held_out.values())


def held_out_of(seed: int) -> set[str]:
    split = split_by_subject(SUBJECTS, 0.2, 0.0, seed)
    return {subject for subject, partition in zip(SUBJECTS, split, strict=True) if partition == "validation"}


def test_no_items_are_no_subjects() -> None:
    assert split_by_subject([], 0.2, 0.2, seed=0) == []


@pytest.mark.parametrize(
    ("subjects", "validation", "test", "seed", "message"),
    [
        (["a", "a"], 0.2, 0.0, 0, r"2 partitions need as many subjects, and there is no more than a \(validation=0.2,"),
        (["a", "b"], 0.2, 0.2, 0, "3 partitions need as many subjects, and there is no more than a, b"),
        (["a", "b"], -0.1, 0.0, 0, "validation=-0.1, test=0: give shares from 0 that add up to less than 1"),
        (["a", "b"], 0.0, 1.0, 0, "validation=0, test=1: give shares"),
        (["a", "b"], 0.5, 0.5, 0, "validation=0.5, test=0.5: give shares"),
        (["a", "b"], float("nan"), 0.0, 0, "validation=nan, test=0: give shares"),
        (["a", "b"], 0.5, 0.0, -1, "seed -1 of the partitions: give a whole number from 0"),
        (["a", "b"], 0.5, 0.0, 2**32, "seed 4294967296 of the partitions"),
        ([], 0.5, 0.5, 0, "give shares"),
    ],
)
def test_splits_that_cannot_be(subjects: list[str], validation: float, test: float, seed: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_by_subject(subjects, validation, test, seed)


def test_too_few_subjects_are_told_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"than a \(validation=0.2, test=0\); name them, or set a share to 0$"):
        split_by_subject(["a"], 0.2, 0.0, 0, remedy="name them")


@pytest.mark.parametrize("num_folds", [2, 5, 20])
def test_folds_share_no_subject_and_are_about_equal(num_folds: int) -> None:
    folds = fold_by_subject(SUBJECTS, num_folds)
    assert set(folds) == set(range(num_folds))
    fold_of = dict(zip(SUBJECTS, folds, strict=True))
    assert folds == [fold_of[subject] for subject in SUBJECTS]
    sizes = Counter(folds)
    # No fold outgrows another by more than the items of one subject, of which there are at most 4.
    assert max(sizes.values()) - min(sizes.values()) <= 4
    shuffled = random.Random(1).sample(SUBJECTS, len(SUBJECTS))
    assert fold_by_subject(shuffled, num_folds) == [fold_of[subject] for subject in shuffled]


@pytest.mark.parametrize("num_folds", [0, 1, 3])
def test_folds_that_cannot_be(num_folds: int) -> None:
    with pytest.raises(UsageError, match=f"{num_folds} folds of 2 subjects: give from 2 to as many folds as subjects"):
        fold_by_subject(["a", "b", "a"], num_folds)


def joined(subjects: list[str], files: list[str]) -> list[set[int]]:
    """Return groups of items by joining, again and again, every two that share a subject or a file."""
    groups = [{item} for item in range(len(subjects))]
    for one, other in combinations(range(len(subjects)), 2):
        if subjects[one] == subjects[other] or files[one] == files[other]:
            first, second = (next(group for group in groups if item in group) for item in (one, other))
            if first is not second:
                groups.remove(second)
                first |= second
    return groups


@pytest.mark.parametrize("seed", range(8))
def test_folds_share_no_file_either_directly_or_through_others(seed: int) -> None:
    draw = random.Random(seed)
    subjects = [f"s{draw.randrange(20)}" for _ in range(30)]
    files = [f"f{draw.randrange(40)}" for _ in range(30)]
    groups = joined(subjects, files)
    assert len(groups) < len(set(subjects)), "a draw in which files join nothing tests nothing"
    for num_folds in (2, len(groups)):
        folds = fold_by_subject(subjects, num_folds, files)
        assert set(folds) == set(range(num_folds))
        assert all(len({folds[item] for item in group}) == 1 for group in groups)
    order = draw.sample(range(30), 30)
    turned = fold_by_subject([subjects[item] for item in order], len(groups), [files[item] for item in order])
    assert turned == [folds[item] for item in order]
    message = (
        rf"^{len(groups) + 1} folds of {len(set(subjects))} subjects, of whom those that share a file stay together, "
        f"in {len(groups)} groups: give from 2 to as many folds as groups$"
    )
    with pytest.raises(UsageError, match=message):
        fold_by_subject(subjects, len(groups) + 1, files)


def test_files_that_join_no_subjects_leave_the_folds_as_they_are() -> None:
    files = [str(item) for item in range(len(SUBJECTS) - 1, -1, -1)]
    assert fold_by_subject(SUBJECTS, 5, files) == fold_by_subject(SUBJECTS, 5)
    assert fold_by_subject(SUBJECTS, 5, [f"of {subject}" for subject in SUBJECTS]) == fold_by_subject(SUBJECTS, 5)
    with pytest.raises(UsageError, match=r"^21 folds of 20 subjects: give from 2 to as many folds as subjects$"):
        fold_by_subject(SUBJECTS, 21, files)


class Digests:
    """Digests files, and keeps which."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path) -> str:
        self.paths.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def recording(root: Path, name: str, partition: str, content: str | None = None, subject: str = "") -> Recording:
    path = root / f"{name}.mp4"
    if content is not None:
        path.write_text(content)
    return Recording(name, path, partition, subject or name)


def test_a_subject_in_two_partitions_leaks(tmp_path: Path) -> None:
    recordings = [
        recording(tmp_path, "b", "test", subject="s1"),
        recording(tmp_path, "a", "train", subject="s1"),
        recording(tmp_path, "c", "train", subject="s1"),
        recording(tmp_path, "d", "train", subject="s3"),
        recording(tmp_path, "e", "train", subject="s3"),
    ]
    (leak,) = find_leaks(recordings, Digests())
    assert leak == Leak("subject", "s1", ("a", "c", "b"), ("train", "train", "test"))
    assert leak.message == "subject s1 is in train (a, c) and in test (b); leave it in one partition"


def test_equal_content_in_two_partitions_leaks_and_few_files_are_read(tmp_path: Path) -> None:
    recordings = [
        recording(tmp_path, "a", "train", "twin"),
        recording(tmp_path, "b", "train", "twin"),
        recording(tmp_path, "c", "validation", "twin"),
        recording(tmp_path, "d", "test", "nope"),  # as long, of another content
        recording(tmp_path, "e", "train", "equal in one partition"),
        recording(tmp_path, "f", "train", "equal in one partition"),
        recording(tmp_path, "g", "train", "a file of its own length"),
        recording(tmp_path, "h", "train", ""),
        recording(tmp_path, "i", "test", ""),
        recording(tmp_path, "j", "train"),
        recording(tmp_path, "k", "test"),
    ]
    digest = Digests()
    (leak,) = find_leaks(recordings, digest)
    assert leak == Leak("file", str(tmp_path / "a.mp4"), ("a", "b", "c"), ("train", "train", "validation"))
    assert leak.message == (
        f"the content of {tmp_path}/a.mp4 is in train (a, b) and in validation (c); leave it in one partition"
    )
    assert sorted(path.name for path in digest.paths) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def test_two_people_of_one_video_in_two_partitions_leak(tmp_path: Path) -> None:
    path = tmp_path / "pair.mp4"
    path.write_text("video")
    pair = [
        Recording("pair_left", path, "train", "pair_left", face_side="left"),
        Recording("pair_right", path, "validation", "pair_right", face_side="right"),
    ]
    digest = Digests()
    (leak,) = find_leaks(pair, digest)
    assert (leak.kind, leak.recordings, leak.partitions) == ("file", ("pair_left", "pair_right"), PARTITIONS[:2])
    assert digest.paths == [path]  # once


def test_leaks_are_found_as_by_comparing_every_pair(tmp_path: Path) -> None:
    draw = random.Random(2)
    recordings = [
        recording(tmp_path, f"r{i}", draw.choice(PARTITIONS), draw.choice(["", "a", "b", "cc", "dd"]), f"s{i % 23}")
        for i in range(40)
    ]
    expected = set()
    for one, other in combinations(recordings, 2):
        if one.partition != other.partition:
            content = one.path.read_text()
            if one.subject == other.subject:
                expected.add(("subject", one.name, other.name))
            if content and content == other.path.read_text():
                expected.add(("file", one.name, other.name))
    leaks = find_leaks(recordings, Digests())
    partition_of = {recording.name: recording.partition for recording in recordings}
    order = {recording.name: place for place, recording in enumerate(recordings)}
    found = {
        (leak.kind, *sorted(pair, key=order.__getitem__))
        for leak in leaks
        for pair in combinations(leak.recordings, 2)
        if partition_of[pair[0]] != partition_of[pair[1]]
    }
    assert found == expected
    assert expected
    assert leaks == find_leaks(recordings[::-1], Digests())
    assert [leak.kind for leak in leaks] == sorted((leak.kind for leak in leaks), reverse=True)


def test_a_file_that_cannot_be_read_is_no_leak(tmp_path: Path) -> None:
    recordings = [recording(tmp_path, "a", "train", "twin"), recording(tmp_path, "b", "test", "twin")]

    def refuse(path: Path) -> str:
        raise PermissionError(path)

    assert find_leaks(recordings, refuse) == []
    assert len(find_leaks(recordings, Digests())) == 1


def test_a_long_message_stays_short(tmp_path: Path) -> None:
    recordings = [recording(tmp_path, f"r{i}", "test" if i == 9 else "train", subject="s1") for i in range(10)]
    (leak,) = find_leaks(recordings, Digests())
    assert leak.message == (
        "subject s1 is in train (r0, r1, r2 and 6 more) and in test (r9); leave it in one partition"
    )
