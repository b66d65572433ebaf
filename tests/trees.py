"""Small corpora on disk, one per layout, with empty files for videos."""

from collections.abc import Callable
from pathlib import Path

CHALLENGE = "annotations/VA_Estimation_Challenge"
OLD_CHALLENGE = "annotations/VA_Set"
TEST_LIST = "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt"
RATINGS_HEADER = "recording,subject,partition,start,end,value"
RATINGS = f"{RATINGS_HEADER}\nday1/first,s1,train,0,2,3.5\nsecond,s2,validation,1,1.5,10\n"


def put(root: Path, name: str, content: str | bytes = b"") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def aff_wild2_tree(
    root: Path, trace: str | bytes = "valence,arousal\n0.5,-0.25\n-5,-5\n", challenge: str = CHALLENGE
) -> None:
    put(root, f"{challenge}/Train_Set/first.txt", trace)
    put(root, f"{challenge}/Validation_Set/second.txt", "valence,arousal\n0,0\n")
    put(root, TEST_LIST, "third\n")
    for name in ("batch1/first.mp4", "batch2/second.avi", "batch2/third.MP4"):
        put(root, name)


def folder_tree(root: Path, trace: str | bytes = "valence,arousal\n0.5,-0.25\nnan,\n") -> None:
    put(root, "train/s1/first.csv", trace)
    put(root, "validation/s2/second.csv", "valence,arousal\n0,0\n")
    for name in ("train/s1/first.mp4", "validation/s2/second.avi", "test/s3/third.MP4"):
        put(root, name)


def fatigue_tree(root: Path, ratings: str | bytes = RATINGS) -> None:
    put(root, "ratings.csv", ratings)
    for name in ("day1/first.mp4", "second.avi", "day2/third.MP4"):
        put(root, name)


TREES: dict[str, Callable[..., None]] = {
    "aff_wild2": aff_wild2_tree,
    "folder": folder_tree,
    "fatigue": fatigue_tree,
}
