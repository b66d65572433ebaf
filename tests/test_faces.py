"""One face is followed, as well near its last place as in whole pictures, and never made up where there is none."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch

from avfuse import faces
from avfuse.crops import CROP_PX, TEMPLATE_PX, align
from avfuse.detection import Face, FaceDetector, overlap
from avfuse.faces import FaceTrack, describe_faces
from avfuse.synthesis import Corruption, Script, render_frames, smooth_trace

TEMPLATE = np.array(TEMPLATE_PX)
CPU = torch.device("cpu")


def face_at(left_px: float, top_px: float = 10.0, size_px: float = 60.0, probability: float = 0.99) -> Face:
    """Return a face whose landmarks lie in its box as the template lies in the crop."""
    corner = np.array([left_px, top_px])
    return Face(np.r_[corner, corner + size_px], corner + TEMPLATE * size_px / CROP_PX, probability)


class ListedDetector:
    """Finds in the image whose upper left pixel is i the faces listed for frame i, and remembers what it was shown."""

    def __init__(self, listed: dict[int, list[Face]]) -> None:
        self.listed = listed
        self.batches: list[list[int]] = []
        self.near: list[int] = []
        self.device = CPU

    def detect(self, images: Sequence[torch.Tensor]) -> list[list[Face]]:
        self.batches.append([int(image[0, 0, 0]) for image in images])
        return [self.listed.get(i, []) for i in self.batches[-1]]

    def detect_near(self, image: torch.Tensor, known: Sequence[Face]) -> list[Face]:
        self.near.append(int(image[0, 0, 0]))
        here = self.listed.get(self.near[-1], [])
        return [face for face in here if any(overlap(face.box_px, other.box_px) > 0.1 for other in known)]

    @property
    def searched(self) -> list[int]:
        return [i for batch in self.batches for i in batch]


def follow(
    listed: dict[int, list[Face]],
    num_frames: int,
    detect_every: int,
    missing: tuple[int, ...] = (),
    side: str | None = None,
    detection: str = "every",
    picture: Callable[[int], int] = lambda i: 0,
) -> tuple[FaceTrack, dict[int, npt.NDArray[np.uint8]], ListedDetector]:
    """Return a track, its crops and its detector; frame i has the grey level `picture(i)`, and i in its corner."""
    detector: Any = ListedDetector(listed)
    track = FaceTrack(detector, num_frames, detect_every, side, detection)
    frames = ((i, picture_of(i, picture(i))) for i in range(num_frames) if i not in missing)
    return track, {index: crop.numpy() for index, crop in track.crops(frames)}, detector


def picture_of(index: int, level: int = 0) -> npt.NDArray[np.uint8]:
    """Return a picture whose crops differ from place to place."""
    image = np.full((100, 200, 3), level, np.uint8)
    image[..., 1], image[..., 2] = np.arange(200), 2 * np.arange(100)[:, None]
    image[0, 0] = index
    return image


def shows(crop: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], face: Face) -> bool:
    """Whether a crop is that of a face, but for what is rounded otherwise beside other crops."""
    expected = align([torch.from_numpy(image)], [face.landmark_px])[0].numpy()
    return bool(np.abs(crop.astype(int) - expected).max() <= 1)


# The track, whole pictures searched


@pytest.mark.parametrize(
    ("num_frames", "detect_every", "expected"),
    [
        (1, 4, [0]),
        (2, 4, [0, 1]),
        (9, 4, [0, 3, 7, 8]),
        (8, 4, [0, 3, 7]),
        (4, 1, [0, 1, 2, 3]),
        (5, 100, [0, 4]),
        (70, 1000, [0, 31, 63, 69]),  # so that not too many frames wait for the next look
    ],
)
def test_every_kth_frame_is_looked_at(num_frames: int, detect_every: int, expected: list[int]) -> None:
    track, crops, detector = follow({i: [face_at(20)] for i in range(num_frames)}, num_frames, detect_every)
    assert detector.searched == expected
    assert list(crops) == list(range(num_frames))
    assert track.found_F.all()


def test_linear_motion_is_interpolated_exactly() -> None:
    truth = [face_at(20 + 1.5 * i, 10 + 0.5 * i, 60 - 0.5 * i) for i in range(9)]
    track, crops, _ = follow({i: [face] for i, face in enumerate(truth)}, 9, detect_every=4)
    assert track.found_F.all()
    for i, face in enumerate(truth):
        assert shows(crops[i], picture_of(i), face)


def test_an_interpolated_face_is_as_probable_as_the_lesser_end() -> None:
    sure, unsure = face_at(20), Face(face_at(22).box_px, face_at(22).landmark_px, 0.6)
    track, _, _ = follow({0: [sure], 3: [unsure], 7: [sure]}, 8, detect_every=4)
    np.testing.assert_allclose(track.probability_F, [0.99, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.99])


def test_a_gap_is_black_and_marked() -> None:
    listed = {i: [face_at(20)] for i in (0, 3, 15, 19)}  # nothing at 7 and 11
    track, crops, _ = follow(listed, 20, detect_every=4)
    assert np.flatnonzero(~track.found_F).tolist() == list(range(4, 15))
    np.testing.assert_array_equal(track.probability_F > 0, track.found_F)
    assert all(not crops[i].any() for i in range(4, 15))
    assert all(crops[i].any() for i in (*range(1, 4), *range(15, 20)))


def test_no_face_at_all() -> None:
    track, crops, _ = follow({}, 10, detect_every=4)
    assert not track.found_F.any()
    assert not any(crop.any() for crop in crops.values())


def test_no_interpolation_between_different_faces() -> None:
    track, crops, _ = follow({0: [face_at(5)], 3: [face_at(5)], 7: [face_at(120)]}, 8, detect_every=4)
    assert np.flatnonzero(~track.found_F).tolist() == [4, 5, 6]
    assert not crops[5].any()


def test_a_larger_face_elsewhere_does_not_take_over() -> None:
    small, large = face_at(10, size_px=40), face_at(90, size_px=80)
    track, crops, _ = follow({0: [small], 3: [large, small], 7: [large, small]}, 8, detect_every=4)
    assert track.found_F.all()
    assert shows(crops[7], picture_of(7), small)


def test_after_a_gap_the_old_face_is_preferred() -> None:
    small, large = face_at(10, size_px=40), face_at(90, size_px=80)
    _, crops, _ = follow({0: [small], 7: [large, small]}, 8, detect_every=4)
    assert shows(crops[7], picture_of(7), small)


def test_a_lost_track_takes_the_largest() -> None:
    large, medium = face_at(110, size_px=80), face_at(60, size_px=50)
    _, crops, _ = follow({0: [face_at(0, size_px=40)], 3: [large, medium], 7: [medium, large]}, 8, detect_every=4)
    for i in (3, 7):
        assert shows(crops[i], picture_of(i), large)


def test_frames_that_do_not_come_are_passed_over() -> None:
    listed = {i: [face_at(20 + i)] for i in range(12)}
    track, crops, detector = follow(listed, 12, detect_every=4, missing=(3, 5, 11))
    assert detector.searched == [0, 7]
    assert list(crops) == [0, 1, 2, 4, 6, 7, 8, 9, 10]
    assert track.found_F[[0, 1, 2, 4, 6, 7]].all()
    assert not track.found_F[8:].any()  # nothing beyond the last face is known
    assert shows(crops[6], picture_of(6), face_at(26))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batching_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {i: [face_at(20 + 2 * i)] for i in range(40) if not 12 <= i < 20}
    reference, reference_crops, _ = follow(listed, 40, detect_every=3)
    monkeypatch.setattr(faces, "DETECT_BATCH", size)
    monkeypatch.setattr(faces, "MAX_WAITING", 1000)
    track, crops, detector = follow(listed, 40, detect_every=3)
    assert max(map(len, detector.batches)) == min(size, int(track.detected_F().sum()))
    np.testing.assert_array_equal(track.found_F, reference.found_F)
    np.testing.assert_array_equal(track.probability_F, reference.probability_F)
    assert list(crops) == list(reference_crops)
    assert all(np.abs(crops[i].astype(int) - reference_crops[i]).max() <= 1 for i in crops)


@pytest.mark.parametrize("detection", ["every", "adaptive"])
def test_frames_wait_for_one_batch_at_most(detection: str) -> None:
    detector: Any = ListedDetector({})
    track = FaceTrack(detector, 1000, 4, None, detection)
    taken = []
    crops = track.crops((taken.append(i) or i, np.zeros((8, 8, 3), np.uint8)) for i in range(1000))
    for index, _ in crops:
        assert len(taken) - index <= faces.DETECT_BATCH * 4
    assert taken == list(range(1000))


@pytest.mark.parametrize("detection", ["every", "adaptive"])
def test_of_large_frames_fewer_wait(detection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {i: [face_at(20 + i)] for i in range(40)}
    reference, reference_crops, _ = follow(listed, 40, detect_every=3, detection=detection)
    num_pixels = math.prod(picture_of(0).shape[:2])
    monkeypatch.setattr(faces, "MAX_WAITING_PX", 4 * num_pixels)
    track, crops, detector = follow(listed, 40, detect_every=3, detection=detection)
    np.testing.assert_array_equal(track.found_F, reference.found_F)
    assert all(np.abs(crops[i].astype(int) - reference_crops[i]).max() <= 1 for i in range(40))
    if detection == "every":
        assert max(map(len, detector.batches)) == 3  # of the frames up to the first look behind the fourth: 0, 2, 5


# Two people


def seen(side: str, *frames: list[Face], ways: tuple[str, ...] = ("every", "adaptive")) -> list[float | None]:
    """Return the left edge of the face that a track of one side takes in each frame, None where it takes none."""
    images = [np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8) for _ in frames]
    for i, image in enumerate(images):
        image[0, 0] = i  # by which the detector knows the frame
    answers = []
    for detection in ways:
        detector: Any = ListedDetector(dict(enumerate(frames)))
        track = FaceTrack(detector, len(frames), 1, side, detection)
        crops = dict(track.crops(enumerate(images)))
        taken: list[float | None] = []
        for i, faces_here in enumerate(frames):
            same = [face for face in faces_here if shows(crops[i].numpy(), images[i], face)]
            assert len(same) == int(track.found_F[i]), "a face that is found is one of the frame's, else it is black"
            taken.append(float(same[0].box_px[0]) if same else None)
        answers.append(taken)
    assert all(taken == answers[0] for taken in answers), "both ways of looking take the same people"
    return answers[0]


def test_of_two_faces_each_side_takes_its_own() -> None:
    # Largest first, as the detector lists them: the order says nothing of the sides.
    frames = [face_at(120, size_px=64), face_at(20)], [face_at(25, size_px=62), face_at(118, size_px=56)]
    blank: list[Face] = []
    assert seen("left", blank, *frames) == [None, 20, 25]
    assert seen("right", blank, *frames) == [None, 120, 118]


def test_a_smaller_third_face_is_not_one_of_the_two() -> None:
    three = [face_at(40, size_px=60), face_at(120, size_px=50), face_at(0, size_px=30)]
    assert (seen("left", three), seen("right", three)) == ([40], [120])


def test_a_cut_does_not_swap_the_people() -> None:
    before, after = [face_at(40, size_px=60), face_at(120)], [face_at(45, size_px=60), face_at(0, size_px=40)]
    assert overlap(before[0].box_px, after[0].box_px) > 0.8  # the box at 45 would continue the track of the left one
    assert seen("left", before, after, before) == [40, 0, 40]
    assert seen("right", before, after, before) == [120, 45, 120]


@pytest.mark.parametrize("detection", ["every", "adaptive"])
def test_between_the_frames_of_a_swap_nobody_is_seen(detection: str) -> None:
    before, after = [face_at(5), face_at(75)], [face_at(70), face_at(138)]
    track, crops, _ = follow({0: before, 3: before, 7: after}, 8, 4, side="left", detection=detection)
    assert np.flatnonzero(~track.found_F).tolist() == [4, 5, 6]
    assert not crops[5].any()


def test_when_one_person_leaves_the_other_does_not_stand_in() -> None:
    left, right = face_at(15), face_at(125)
    frames = [left, right], [face_at(123)], [], [face_at(120)], [left, right]
    assert seen("left", *frames) == [15, None, None, None, 15]
    assert seen("right", *frames) == [125, 123, None, 120, 125]


@pytest.mark.parametrize(("left_px", "half"), [(0, "left"), (69, "left"), (70, "right"), (140, "right")])
def test_an_unknown_face_alone_is_of_its_half(left_px: float, half: str) -> None:
    alone = [face_at(left_px)]  # 60 pixels wide in a picture of 200: from 70 on its centre lies in the right half
    for side in ("left", "right"):
        assert seen(side, alone) == ([left_px] if side == half else [None])


def test_one_person_alone_may_cross_the_picture() -> None:
    way = [[face_at(left_px)] for left_px in (10, 35, 60, 85, 110, 135)]
    assert seen("left", *way) == [10, 35, 60, 85, 110, 135]
    assert seen("right", *way) == [None] * 6
    # A jump is a cut: then the half decides again.
    assert seen("left", way[0], way[5]) == [10, None]
    assert seen("right", way[0], way[5]) == [None, 135]


def test_a_box_that_only_touches_the_last_one_does_not_continue_it() -> None:
    # From 45 to 85, with a width of 60, the overlap is a fifth of the area: 20 of 100 pixels. At 86 it is less.
    assert overlap(face_at(45).box_px, face_at(85).box_px) == pytest.approx(0.2)
    for left_px, who in ((85, "left"), (86, "right")):  # both centres lie in the right half
        for side in ("left", "right"):
            before = [45.0] if side == "left" else [None]
            assert seen(side, [face_at(45)], [face_at(left_px)]) == [*before, left_px if side == who else None]


@pytest.mark.parametrize("seed", range(5))
def test_no_face_is_of_both_people(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [
        sorted(
            (face_at(rng.uniform(0, 140), rng.uniform(0, 40), rng.uniform(30, 60)) for _ in range(rng.integers(0, 4))),
            key=lambda face: face.box_px[0] - face.box_px[2],
        )
        for _ in range(60)
    ]
    taken_by_side = [seen(side, *frames, ways=("every",)) for side in ("left", "right")]
    for faces_here, left_px, right_px in zip(frames, *taken_by_side, strict=True):
        taken = [left_px is not None, right_px is not None]
        assert sum(taken) == min(2, len(faces_here))
        if all(taken):
            pair = sorted(faces_here[:2], key=lambda face: face.box_px[0] + face.box_px[2])
            assert [left_px, right_px] == [face.box_px[0] for face in pair]


# Adaptive detection


def adapt(listed: dict[int, list[Face]], num_frames: int, every: int = 1, **more: Any) -> tuple[FaceTrack, list[int]]:
    """Return an adaptive track and the frames that were searched whole."""
    track, _, detector = follow(listed, num_frames, every, detection="adaptive", **more)
    return track, detector.searched


def left_edges(track: FaceTrack) -> list[float]:
    return track.box_F4[:, 0].tolist()


def test_a_steady_face_is_searched_ever_more_rarely() -> None:
    listed = {i: [face_at(20 + i % 3)] for i in range(250)}
    track, searched = adapt(listed, 250)
    assert searched == [0, 25, 75, 175]
    assert left_edges(track) == [20 + i % 3 for i in range(250)]
    assert track.found_F.all()


def test_a_search_that_disagrees_is_soon_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drifting(ListedDetector):
        def detect_near(self, image: torch.Tensor, known: Sequence[Face]) -> list[Face]:
            return [face_at(face.box_px[0] + 4) for face in super().detect_near(image, known)]

    assert overlap(face_at(20).box_px, face_at(24).box_px) < faces.AGREES
    detector: Any = Drifting({i: [face_at(20)] for i in range(100)})
    track = FaceTrack(detector, 100, 1)
    for _ in track.crops((i, picture_of(i)) for i in range(100)):
        pass
    assert detector.searched == [0, 25, 50, 75]
    assert [i for i in range(100) if track.box_F4[i, 0] == 20] == detector.searched  # a search has the last word


@pytest.mark.parametrize(
    ("changed", "searched"),
    [
        ({}, [0, 25]),
        ({10: [face_at(20, probability=0.9)]}, [0, 10, 35]),  # improbable
        ({10: [], 11: [], 12: []}, [0, 10, 11, 12, 13, 38]),  # lost, until it is found
        ({i: [face_at(48)] for i in range(10, 40)}, [0, 10, 35]),  # a jump
        ({10: [face_at(20), face_at(120, size_px=90)]}, [0, 25]),  # another face is of no concern
    ],
)
def test_the_whole_picture_is_searched_where_the_face_may_be_elsewhere(
    changed: dict[int, list[Face]], searched: list[int]
) -> None:
    listed = {i: [face_at(20)] for i in range(40)} | changed
    track, found = adapt(listed, 40)
    assert found == searched
    assert track.found_F.tolist() == [bool(listed[i]) for i in range(40)]
    expected = [min(face.box_px[0] for face in listed[i]) if listed[i] else np.nan for i in range(40)]
    np.testing.assert_array_equal(left_edges(track), expected)


@pytest.mark.parametrize(("step", "searched"), [(20, [0, 25]), (40, [0, 10, 35])])
def test_a_cut_is_searched(step: int, searched: list[int]) -> None:
    listed = {i: [face_at(20)] for i in range(40)}
    _, found = adapt(listed, 40, picture=lambda i: 100 if i < 10 else 100 + 3 * step)
    assert found == searched  # one of three colours changes: by 20 levels in the mean of all, or by 40


def test_a_moving_face_is_looked_at_between() -> None:
    way_px = [20 + 0.9 * i**1.5 for i in range(24)]  # no straight line
    listed = {i: [face_at(left_px)] for i, left_px in enumerate(way_px)}
    track, crops, detector = follow(listed, 24, 4, detection="adaptive")
    np.testing.assert_allclose(left_edges(track)[15:], way_px[15:], rtol=1e-6)
    assert set(range(16, 24)) <= set(detector.near)
    for i in range(16, 24):
        assert shows(crops[i], picture_of(i), listed[i][0])
    interpolated = FaceTrack(detector, 24, 4, None, "every")
    list(interpolated.crops((i, picture_of(i)) for i in range(24)))
    assert np.abs(np.array(left_edges(interpolated))[16:] - way_px[16:]).max() > 0.1


def test_a_steady_face_is_interpolated() -> None:
    listed = {i: [face_at(20 + 2 * (i % 2))] for i in range(24)}
    track, _, detector = follow(listed, 24, 4, detection="adaptive")
    assert set(detector.near) <= {3, 7, 11, 15, 19, 23}
    assert left_edges(track)[4:8] == [22, 22, 22, 22]  # what the looks at 3 and 7 show


def test_a_moving_face_that_is_not_seen_between_is_not_made_up() -> None:
    listed = {i: [face_at(20 + 8 * i)] for i in range(8) if i not in (5, 6)}
    track, _ = adapt(listed, 8, every=4)
    assert np.flatnonzero(~track.found_F).tolist() == [5, 6]
    assert left_edges(track)[4] == 52


def test_frames_that_do_not_come_are_interpolated() -> None:
    listed = {i: [face_at(20 + 8 * i)] for i in range(8)}
    track, crops, detector = follow(listed, 8, 4, missing=(5,), detection="adaptive")
    assert 5 not in crops
    assert 5 not in detector.near
    np.testing.assert_allclose(left_edges(track), [20 + 8 * i for i in range(8)])


def test_a_face_that_comes_or_goes_between_looks_is_followed_to_its_end() -> None:
    listed = {i: [face_at(20 + 2 * i)] for i in (*range(6), *range(9, 16))}
    track, searched = adapt(listed, 16, every=4)
    assert np.flatnonzero(~track.found_F).tolist() == [6, 7, 8]
    np.testing.assert_array_equal(left_edges(track), [20 + 2 * i if i in listed else np.nan for i in range(16)])
    assert searched == [0, 7, 11]


def test_on_either_side_of_a_cut_the_face_is_its_own() -> None:
    listed = {i: [face_at(5 if i < 6 else 120)] for i in range(8)}
    track, _ = adapt(listed, 8, every=4)
    assert left_edges(track) == [5] * 6 + [120] * 2


def test_of_two_people_both_are_followed_while_both_are_seen() -> None:
    both, alone = [face_at(10), face_at(120)], [face_at(120)]
    listed = {i: alone if 10 <= i < 13 else both for i in range(30)}
    for side, num_seen in (("left", 27), ("right", 30)):
        track, searched = adapt(listed, 30, side=side)
        assert searched == [0, 10, 11, 12, 13]
        assert track.found_F.sum() == num_seen


def test_two_people_who_are_found_as_one_are_searched() -> None:
    apart, near = [face_at(10), face_at(80)], [face_at(45)]  # which overlaps either last box
    track, searched = adapt({0: apart, 1: apart, 2: near, 3: apart}, 4, side="left")
    assert searched == [0, 2, 3]
    assert track.found_F.tolist() == [True, True, True, True]


@pytest.mark.parametrize("num_frames", [60, 61])
def test_boxes_agree_with_a_search_of_every_frame(num_frames: int) -> None:
    detector = FaceDetector(40, CPU)
    rng = np.random.default_rng(5)
    cues = {name: smooth_trace(rng, num_frames, 25, 2.0) for name in ("light", "smile", "brow", "mouth")}
    script = Script(cues, (Corruption("face", "gone", 30, 42),), 25)
    frames = np.concatenate(list(render_frames(script, rng)))[:num_frames]
    whole, adaptive = FaceTrack(detector, num_frames, 1, None, "every"), FaceTrack(detector, num_frames, 4)
    for track in (whole, adaptive):
        assert [index for index, _ in track.crops(enumerate(frames))] == list(range(num_frames))
    assert 0 < whole.found_F.sum() < num_frames
    assert (whole.found_F == adaptive.found_F).mean() > 0.95
    both_F = whole.found_F & adaptive.found_F
    overlaps = [overlap(a, b) for a, b in zip(whole.box_F4[both_F], adaptive.box_F4[both_F], strict=True)]
    assert np.median(overlaps) > 0.95
    assert min(overlaps) > 0.7


@pytest.mark.gpu
def test_on_a_gpu_every_look_is_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FaceDetector(40, torch.device("cuda"))
    monkeypatch.setattr(detector, "detect_near", lambda *_: pytest.fail("a steady face is not looked at alone"))
    head = np.ascontiguousarray(skimage.data.astronaut()[20:220, 130:330])
    track = FaceTrack(detector, 40, 4)
    crops = dict(track.crops((i, head) for i in range(40)))
    assert {crop.device.type for crop in crops.values()} == {"cuda"}
    assert track.found_F.all()


# What is kept


def test_boxes_are_kept() -> None:
    track, _, _ = follow({0: [face_at(20)], 3: [face_at(23)]}, 8, detect_every=4)
    assert (track.box_F4.shape, track.box_F4.dtype) == ((8, 4), np.float32)
    assert left_edges(track)[:4] == [20, 21, 22, 23]
    assert np.isnan(track.box_F4[4:]).all()


def test_what_decides_about_boxes_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FaceDetector(40, CPU)
    given = describe_faces(detector, "adaptive", 4)
    assert given["detector"] == "mtcnn"
    assert (given["detection"], given["detect_every"], given["crop_px"]) == ("adaptive", 4, CROP_PX)
    others = [describe_faces(detector, "adaptive", 5), describe_faces(FaceDetector(30, CPU), "adaptive", 4)]
    every = describe_faces(detector, "every", 4)
    for name, value in (("STEADY", 0.5), ("SURE", 0.5), ("SEARCH_FRAMES", (1, 2)), ("CUT_LEVELS", 1.0)):
        with monkeypatch.context() as changed:
            changed.setattr(faces, name, value)
            others.append(describe_faces(detector, "adaptive", 4))
            assert describe_faces(detector, "every", 4) == every
    assert given not in [*others, every]
    assert json.loads(json.dumps(given)) == given
