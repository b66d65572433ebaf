from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avfuse.alignment import Plan, end_frames, frame_target, open_feature, plan_recording, read_ratings
from avfuse.arrays import MissingArrayError
from avfuse.mapping import FeatureMapping, read_mapping
from avfuse.schema import UsageError


def mapping_of(folder: Path, partition: str = "train", **arrays: Any) -> FeatureMapping:
    """Write arrays of one recording, ``a``, and a mapping of them; what is no array is another key of the mapping."""
    lines = ["fps = 10"]
    for key, value in arrays.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{key}.npy", value)
            value = f"{key}.npy"
        lines.append(f"{key} = {value!r}")
    lines.append(f"[[recordings]]\nrecording = 'a'\npartition = '{partition}'\n")
    (folder / "people.toml").write_text("\n".join(lines))
    return read_mapping(folder / "people.toml")


def plan_of(mapping: FeatureMapping) -> Plan:
    return plan_recording(mapping, mapping.recordings[0])


def targets_of(mapping: FeatureMapping) -> np.ndarray:
    return frame_target(mapping, plan_of(mapping), read_ratings(mapping, mapping.recordings[0]))


def rows(count: int, *shape: int) -> np.ndarray:
    return np.arange(count * int(np.prod(shape)), dtype=np.float32).reshape(count, *shape) / 100


@pytest.mark.parametrize(("shape", "expected"), [((7,), (7, 1, 1)), ((4, 3, 3), (4, 3, 3)), ((4, 1, 1), (4, 1, 1))])
def test_video_is_vectors_or_maps(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    plan = plan_of(mapping_of(tmp_path, video=rows(6, *shape), audio=rows(6, 5)))
    assert plan.shapes == {"video": expected, "audio": (5,)}
    assert (plan.num_clips, plan.num_frames, plan.is_cut, plan.is_rated) == (6, 6, False, False)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("video", (), r"it has shape \(6,\); expected \(rows, D\), or \(rows, C, H, W\) with H = W"),
        ("video", (4, 3), r"it has shape \(6, 4, 3\); expected"),
        ("video", (4, 3, 2), r"it has shape \(6, 4, 3, 2\); expected"),
        ("audio", (4, 3, 3), r"it has shape \(6, 4, 3, 3\); expected \(rows, A\)$"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, key: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=rf"people\.toml: {key} of 'a' \({key}\.npy\): {message}"):
        plan_of(mapping_of(tmp_path, **{key: rows(6, *shape)}))


@pytest.mark.parametrize(("hop", "keys", "first"), [(1, {}, 0), (4, {}, 3), (4, {"first_frame": 5}, 5)])
def test_clips_end_every_hop_frames(tmp_path: Path, hop: int, keys: dict[str, Any], first: int) -> None:
    mapping = mapping_of(tmp_path, audio=rows(3, 5), hop=hop, **keys)
    plan = plan_of(mapping)
    assert end_frames(mapping, plan).tolist() == [first, first + hop, first + 2 * hop]
    assert plan.num_frames == first + 2 * hop + 1


def test_ratings_by_clip_hold_at_the_last_frame(tmp_path: Path) -> None:
    mapping = mapping_of(
        tmp_path,
        audio=rows(3, 5),
        hop=2,
        target=np.array([1.0, -5.0, np.nan]),
        target_rows="clip",
        unrated=-5,
        targets=["x"],
    )
    np.testing.assert_array_equal(targets_of(mapping)[:, 0], [np.nan, 1, np.nan, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("num_rows", [6, 7])
def test_ratings_by_frame_hold_at_their_frames(tmp_path: Path, num_rows: int) -> None:
    values = np.stack([np.arange(num_rows), -np.arange(num_rows)], axis=1).astype(np.int16)
    mapping = mapping_of(tmp_path, audio=rows(3, 5), hop=2, target=values, target_rows="frame", targets=["x", "y"])
    assert plan_of(mapping).num_frames == num_rows
    np.testing.assert_array_equal(targets_of(mapping), values)


def test_ratings_with_times_are_interpolated(tmp_path: Path) -> None:
    keys = {"targets": ["x"], "target": np.array([[0.0], [4.0], [np.nan], [8.0]])}
    mapping = mapping_of(tmp_path, audio=rows(6, 5), target_time=np.array([[0.1], [0.3], [0.4], [0.5]]), **keys)
    # Frames at 0, 0.1, ... 0.5 s; before the first row and towards an unrated one nothing is known.
    np.testing.assert_allclose(targets_of(mapping)[:, 0], [np.nan, 0, 2, 4, np.nan, 8], atol=1e-6)


@pytest.mark.parametrize(
    ("time_s", "message"),
    [
        (np.array([0.0, 0.1]), r"target_time of 'a' .*shape \(2,\); expected one time per row of target, \(3,\)"),
        (np.array([0.0, 0.2, 0.2]), "target_time of 'a' .*increase from row to row"),
        (np.array([0.0, 0.2, np.nan]), "target_time of 'a' .*finite and increase"),
        (np.array([0.0, 200.0, 400.0]), "target_time of 'a': ratings reach to 400 s, the video to 0.500 s"),
    ],
)
def test_other_times_are_refused(tmp_path: Path, time_s: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(mapping_of(tmp_path, audio=rows(6, 5), targets=["x"], target=rows(3, 1), target_time=time_s))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (rows(6, 3), r"target of 'a' \(target\.npy\): it has shape \(6, 3\); expected \(rows, 2\): x, y"),
        (rows(6), r"it has shape \(6,\); expected \(rows, 2\): x, y"),
        (
            np.full((6, 2), 0.0) - [[0, 5]] * 6,
            "row 0 has y = -5, outside of -1 to 1; a number that stands for 'not rated'",
        ),
        (np.where(np.arange(12).reshape(6, 2) == 8, np.inf, 0), "row 4 has x = inf, outside of"),
    ],
)
def test_other_ratings_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(mapping_of(tmp_path, audio=rows(6, 5), targets=["x", "y"], ranges=[[-1, 1], [-1, 1]], target=values))


def test_the_number_for_unrated_is_compared_in_the_numbers_of_the_file(tmp_path: Path) -> None:
    values = np.array([0.1, 0.2], np.float32)  # 0.1 in 32 bits is another number than in 64
    mapping = mapping_of(tmp_path, audio=rows(2, 5), targets=["x"], target=values, unrated=0.1)
    np.testing.assert_array_equal(targets_of(mapping)[:, 0], np.array([np.nan, 0.2], np.float32))


@pytest.mark.parametrize(
    ("kind", "unrated"),
    [("int16", 0.5), ("uint8", -5), ("uint8", 256), ("int64", 2.0**63), ("bool", 2), ("float16", 1e6), ("f4", 1e-60)],
)
def test_a_number_for_unrated_that_cannot_occur_is_refused(tmp_path: Path, kind: str, unrated: float) -> None:
    values = np.array([0, 1], kind)
    mapping = mapping_of(tmp_path, audio=rows(2, 5), targets=["x"], target=values, unrated=unrated)
    with pytest.raises(UsageError, match=rf"target of 'a' .*it holds {values.dtype}, in which unrated = .* cannot occ"):
        plan_of(mapping)


@pytest.mark.parametrize(
    ("kind", "unrated", "expected"),
    [("int16", -5, [1, 1, 0]), ("uint8", 251, [1, 1, 0]), ("bool", 0, [1, 1, 0]), (">f2", -9999, [1, 1, 0])],
)
def test_a_number_for_unrated_is_found_in_all_numbers(
    tmp_path: Path, kind: str, unrated: float, expected: list[int]
) -> None:
    values = np.array([1, 1, unrated]).astype(kind)
    mapping = mapping_of(tmp_path, audio=rows(3, 5), targets=["x"], target=values, unrated=unrated)
    np.testing.assert_array_equal(~np.isnan(targets_of(mapping)[:, 0]), expected)


@pytest.mark.parametrize("kind", ["float16", "float32", ">f4", "float64"])
def test_ratings_at_their_limits_are_kept(tmp_path: Path, kind: str) -> None:
    values = np.array([0.1, -0.1, 0.3, -0.3]).astype(kind)  # some lie beyond the limits, as 64 bits see them
    keys = {"audio": rows(2, 5), "targets": ["x", "y"], "ranges": [[-0.1, 0.1], [-0.3, 0.3]]}
    target = values.reshape(2, 2).T
    np.testing.assert_array_equal(targets_of(mapping_of(tmp_path, **keys, target=target)), target.astype(np.float32))
    beyond = np.nextafter(values[:2], values[:2] * 2).reshape(2, 1) * [1, 1]
    with pytest.raises(UsageError, match=r"row 0 has x = 0\.1.*, outside of -0\.1 to 0\.1"):
        plan_of(mapping_of(tmp_path, **keys, target=beyond.astype(values.dtype)))


def test_infinity_is_no_rating_in_few_bits_either(tmp_path: Path) -> None:
    keys = {"audio": rows(2, 5), "targets": ["x"], "target": np.array([0, np.inf], np.float16)}
    for ranges in ({}, {"ranges": [[-1e6, 1e6]]}):
        with pytest.raises(UsageError, match="row 1 has x = inf, outside of"):
            plan_of(mapping_of(tmp_path, **keys, **ranges))


@pytest.mark.parametrize(
    ("time_s", "where"),
    [
        (np.arange(6) / 10 - 200, "-200 s to -199.5 s"),
        (np.array([0.51, 0.55, 0.6, 0.65, 0.7, 0.75]), "0.51 s to 0.75 s"),
    ],
)
def test_times_beside_the_features_are_refused(tmp_path: Path, time_s: np.ndarray, where: str) -> None:
    keys = {"targets": ["x"], "target": rows(6, 1), "target_time": time_s}
    for partition in ("train", "test"):
        message = (
            rf"target_time of 'a': no frame gets a rating: .* lie at {where}, the ends of the 3 clips at 0.1 s to 0.5"
        )
        with pytest.raises(UsageError, match=message):
            plan_of(mapping_of(tmp_path, partition, audio=rows(3, 5), hop=2, **keys))


def test_ratings_that_are_all_blank_are_for_testing_alone(tmp_path: Path) -> None:
    keys = {"audio": rows(3, 5), "targets": ["x"], "target": np.array([-5.0, np.nan, -5]), "unrated": -5}
    plan = plan_of(mapping_of(tmp_path, "test", **keys))
    assert (plan.is_rated, plan.num_rated_frames, plan.num_rated_clips) == (False, 0, 0)
    for partition in ("train", "validation"):
        with pytest.raises(UsageError, match=r"target of 'a': all of its 3 rows say 'not rated', .*leave this one out"):
            plan_of(mapping_of(tmp_path, partition, **keys))


def test_ratings_behind_the_features_alone_are_refused(tmp_path: Path) -> None:
    keys = {"targets": ["x"], "target": np.array([np.nan] * 4 + [1.0]), "align": "shortest"}
    message = "target of 'a': none of its rows for the 3 clips holds a rating, only those behind them, from row 4;"
    with pytest.raises(UsageError, match=message):
        plan_of(mapping_of(tmp_path, audio=rows(3, 5), **keys))


def test_rated_frames_and_clips_are_counted(tmp_path: Path) -> None:
    values = np.array([[1, 1], [np.nan, 2], [3, np.nan], [np.nan, np.nan], [5, 5], [np.nan, np.nan]])
    keys = {"audio": rows(3, 5), "hop": 2, "targets": ["x", "y"], "target": values, "target_rows": "frame"}
    plan = plan_of(mapping_of(tmp_path, **keys))
    assert (plan.num_rated_frames, plan.num_rated_clips, plan.is_rated) == (4, 1, True)


def test_ratings_may_be_missing_in_the_test_partition_alone(tmp_path: Path) -> None:
    keys = {"audio": rows(3, 5), "targets": ["x"], "target": "nowhere.npz:a"}
    mapping = mapping_of(tmp_path, "test", **keys)
    plan = plan_of(mapping)
    assert not plan.is_rated
    np.testing.assert_array_equal(frame_target(mapping, plan, None), np.full((3, 1), np.nan))
    with pytest.raises(MissingArrayError, match=r"target of 'a' \(nowhere\.npz:a\): there is no such file"):
        plan_of(mapping_of(tmp_path, "validation", **keys))
    (tmp_path / "nowhere.npz").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"target of 'a' \(nowhere\.npz:a\): it cannot be read"):
        plan_of(mapping_of(tmp_path, "test", **keys))


@pytest.mark.parametrize(
    ("lengths", "keys", "expected"),
    [
        ({"video": 5, "audio": 6}, {}, "video has 5 rows, audio has 6 rows"),
        ({"video": 6, "audio": 6, "target": 4}, {}, "video has 6 rows, audio has 6 rows, target has 4 rows; mend"),
        (
            {"audio": 3, "target": 8},
            {"hop": 2, "target_rows": "frame"},
            r"audio has 3 rows, target has 8 rows, one per frame, for 4 clips \(the first ends at frame 1, the next 2",
        ),
        (
            {"audio": 3, "target": 5},
            {"hop": 2, "target_rows": "frame"},
            "target has 5 rows, one per frame, for 2 clips",
        ),
    ],
)
def test_lengths_that_differ_are_refused_unless_cut(
    tmp_path: Path, lengths: dict[str, int], keys: dict[str, Any], expected: str
) -> None:
    arrays: dict[str, Any] = {key: rows(length, 1 if key == "target" else 5) for key, length in lengths.items()}
    keys = keys | ({"targets": ["x"]} if "target" in lengths else {})
    with pytest.raises(UsageError, match=rf"people\.toml: recording 'a': .*{expected}.*align = 'shortest'"):
        plan_of(mapping_of(tmp_path, **arrays, **keys))
    plan = plan_of(mapping_of(tmp_path, **arrays, **keys, align="shortest"))
    hop = keys.get("hop", 1)
    num_clips = min(length // (hop if key == "target" else 1) for key, length in lengths.items())
    assert (plan.num_clips, plan.is_cut) == (num_clips, True)
    # Frames behind the last clip are kept up to where the next one would end.
    assert plan.num_frames == min(lengths.get("target", 99), (num_clips + 1) * hop - 1)


def test_what_is_shorter_than_a_clip_is_refused(tmp_path: Path) -> None:
    keys = {"audio": rows(1, 5), "targets": ["x"], "target": rows(7, 1), "hop": 8, "target_rows": "frame"}
    with pytest.raises(UsageError, match="target has 7 rows, one per frame, for 0 clips"):
        plan_of(mapping_of(tmp_path, **keys, align="shortest"))


def test_errors_in_the_with_statement_say_what_they_are_about(tmp_path: Path) -> None:
    mapping = mapping_of(tmp_path, audio=rows(3, 5))
    with (
        pytest.raises(UsageError, match=r"people\.toml: audio of 'a' \(audio\.npy\): row 3 is odd"),
        open_feature(mapping, mapping.recordings[0], "audio"),
    ):
        raise UsageError("row 3 is odd")
