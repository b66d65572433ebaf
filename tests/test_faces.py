"""One face is followed, placed on the template, and never made up where there is none."""

import io
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.transform import SimilarityTransform

from avfuse import faces
from avfuse.faces import CROP_PX, TEMPLATE_PX, CroppedFaces, Face, FaceDetector, FaceTrack, align, overlap, similarity
from avfuse.schema import RecordingError

TEMPLATE = np.array(TEMPLATE_PX)
Images = list[npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(40, torch.device("cpu"))


def face_at(left_px: float, top_px: float = 10.0, size_px: float = 60.0) -> Face:
    """Return a face whose landmarks lie in its box as the template lies in the crop."""
    corner = np.array([left_px, top_px])
    return Face(np.r_[corner, corner + size_px], corner + TEMPLATE * size_px / CROP_PX, 0.9)


class ListedDetector:
    """Finds in the image whose pixels are all i the faces listed for frame i, and remembers what it was shown."""

    def __init__(self, listed: dict[int, list[Face]]) -> None:
        self.listed = listed
        self.batches: list[list[int]] = []

    def detect(self, images: Images) -> list[list[Face]]:
        self.batches.append([int(image[0, 0, 0]) for image in images])
        return [self.listed.get(i, []) for i in self.batches[-1]]


def follow(
    listed: dict[int, list[Face]],
    num_frames: int,
    detect_every: int,
    missing: tuple[int, ...] = (),
    side: str | None = None,
) -> tuple[FaceTrack, dict[int, npt.NDArray[np.uint8]], ListedDetector]:
    detector = ListedDetector(listed)
    track = FaceTrack(detector, num_frames, detect_every, side)  # type: ignore[arg-type]
    frames = ((i, np.full((100, 200, 3), i, np.uint8)) for i in range(num_frames) if i not in missing)
    return track, dict(track.crops(frames)), detector


# The detector


def test_one_face_is_found(detector: FaceDetector) -> None:
    image = skimage.data.astronaut()
    ((face,),) = detector.detect([image])
    left, top, right, bottom = face.box_px
    assert 150 < left < 200 < 250 < right < 290  # read off the picture by eye
    assert 40 < top < 80 < 160 < bottom < 190
    assert face.probability > 0.99
    (left_eye, right_eye, nose, left_mouth, right_mouth) = face.landmark_px
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_largest_face_comes_first(detector: FaceDetector) -> None:
    head = skimage.data.astronaut()[20:220, 130:330]
    small = head[::2, ::2]
    image = np.zeros((200, 320, 3), np.uint8)
    image[:100, :100], image[:, 120:] = small, head
    (found,) = detector.detect([image])
    widths = [face.box_px[2] - face.box_px[0] for face in found]
    assert len(widths) == 2
    assert widths[0] > 1.5 * widths[1]


def test_nothing_is_found_where_there_is_nothing(detector: FaceDetector) -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    assert detector.detect([black, black]) == [[], []]
    assert detector.detect([black[:39]]) == [[]]  # smaller than any face looked for: MTCNN itself would fail


def test_images_of_unequal_size(detector: FaceDetector) -> None:
    head = np.ascontiguousarray(skimage.data.astronaut()[20:220, 130:330])
    tiny = np.zeros((10, 10, 3), np.uint8)
    assert [len(found) for found in detector.detect([tiny, head, tiny])] == [0, 1, 0]
    assert [len(found) for found in detector.detect([head, tiny])] == [1, 0]


def test_a_failing_image_costs_itself_alone(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = np.ascontiguousarray(skimage.data.astronaut()[20:220, 130:330])
    bad = np.full_like(head, 7)
    detect = detector._mtcnn.detect

    def fail_on_bad(images: npt.NDArray[np.uint8], landmarks: bool) -> object:
        if any((image == 7).all() for image in images):
            raise RuntimeError("a box without area")
        return detect(images, landmarks=landmarks)

    monkeypatch.setattr(detector._mtcnn, "detect", fail_on_bad)
    with caplog.at_level(logging.WARNING):
        assert [len(found) for found in detector.detect([head, bad, head])] == [1, 0, 1]
    assert ["a box without area" in message for message in caplog.messages] == [True]


def test_a_full_memory_is_not_a_missing_face(detector: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(detector._mtcnn, "detect", fail)
    for num_images in (1, 2):
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            detector.detect([np.zeros((64, 64, 3), np.uint8)] * num_images)


# Geometry


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),
    ],
)
def test_overlap(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    assert overlap(np.array(a, float), np.array(b, float)) == pytest.approx(expected)
    assert overlap(np.array(b, float), np.array(a, float)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_agrees_with_scikit_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    from_px, to_px = rng.uniform(0, 500, (2, 5, 2))
    # Points with the orientation of the goal: scikit-image, too, then finds a turn without a mirror.
    to_px = 0.1 * to_px + from_px @ np.array([[0.3, 1.2], [-1.2, 0.3]])
    oracle = SimilarityTransform.from_estimate(from_px, to_px)
    np.testing.assert_allclose(similarity(from_px, to_px), oracle.params[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size_px", [24, 56, 112, 150, 400, 1000])
@pytest.mark.parametrize("angle_deg", [0, 25, -160])
def test_landmarks_come_to_the_template(size_px: float, angle_deg: float) -> None:
    # The image is a ramp whose colours are the coordinates, so that a crop tells where it was sampled.
    width_px = 1200
    turn = np.exp(1j * np.deg2rad(angle_deg)) * size_px / CROP_PX
    template = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1] - 56 * (1 + 1j)
    centre = complex(width_px / 2, width_px / 2 - 0.3)
    landmark_px = np.stack([(template * turn + centre).real, (template * turn + centre).imag], axis=1)
    span_px = 0.75 * size_px  # the ramp covers the landmarks: 3 grey levels to a pixel of the crop
    at_px = np.arange(width_px)
    ramp = np.clip((at_px - width_px / 2) / span_px * 250 + 127, 0, 255)
    image = np.zeros((width_px, width_px, 3), np.uint8)
    image[..., 0], image[..., 1] = ramp.round(), ramp.round()[:, None]
    crop = align(image, landmark_px).astype(float)
    assert crop.shape == (CROP_PX, CROP_PX, 3)
    for (x, y), (goal_x, goal_y) in zip(TEMPLATE, landmark_px, strict=True):
        # The crop is read between its pixels, bilinearly.
        column, row = int(x), int(y)
        weight = np.outer([1 - (y - row), y - row], [1 - (x - column), x - column])
        red, green = (crop[row : row + 2, column : column + 2, c] * weight for c in (0, 1))
        found_px = (np.array([red.sum(), green.sum()]) - 127) / 250 * span_px + width_px / 2
        off_px = np.abs(found_px - (goal_x, goal_y)).max() * CROP_PX / size_px  # in pixels of the crop
        assert off_px < 0.5  # rounding to grey levels, in the image and in the crop, is a third of a pixel


def test_a_large_face_does_not_alias() -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 255  # one sample per crop pixel would see one stripe or the other, never the mean
    crop = align(stripes, TEMPLATE * 10)
    assert np.abs(crop[2:-2, 2:-2].astype(int) - 128).max() <= 13  # a stripe more or less of ten


def test_a_face_of_the_crops_size_is_copied() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 160, 3), np.uint8)
    np.testing.assert_array_equal(align(image, TEMPLATE + np.array([20, 10])), image[10:122, 20:132])


def test_outside_of_the_image_is_black() -> None:
    white = np.full((150, 160, 3), 255, np.uint8)
    crop = align(white, TEMPLATE - np.array([30, 50]))
    assert not crop[:49].any()
    assert not crop[:, :29].any()
    assert (crop[51:, 31:] == 255).all()
    assert not align(white, TEMPLATE + np.array([500, 0])).any()
    assert not align(white, TEMPLATE - np.array([0, 500])).any()


# The track


@pytest.mark.parametrize(
    ("num_frames", "detect_every", "expected"),
    [(1, 4, [0]), (2, 4, [0, 1]), (9, 4, [0, 3, 7, 8]), (8, 4, [0, 3, 7]), (4, 1, [0, 1, 2, 3]), (5, 100, [0, 4])],
)
def test_every_kth_frame_is_looked_at(num_frames: int, detect_every: int, expected: list[int]) -> None:
    track, crops, detector = follow({i: [face_at(20)] for i in range(num_frames)}, num_frames, detect_every)
    assert [i for batch in detector.batches for i in batch] == expected
    assert list(crops) == list(range(num_frames))
    assert track.found_F.all()


def test_linear_motion_is_interpolated_exactly() -> None:
    truth = [face_at(20 + 1.5 * i, 10 + 0.5 * i, 60 - 0.5 * i) for i in range(9)]
    track, crops, _ = follow({i: [face] for i, face in enumerate(truth)}, 9, detect_every=4)
    assert track.found_F.all()
    for i, face in enumerate(truth):
        np.testing.assert_array_equal(crops[i], align(np.full((100, 200, 3), i, np.uint8), face.landmark_px))


def test_an_interpolated_face_is_as_probable_as_the_lesser_end() -> None:
    sure, unsure = face_at(20), Face(face_at(22).box_px, face_at(22).landmark_px, 0.6)
    track, _, _ = follow({0: [sure], 3: [unsure], 7: [sure]}, 8, detect_every=4)
    np.testing.assert_allclose(track.probability_F, [0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.9])


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
    np.testing.assert_array_equal(crops[7], align(np.full((100, 200, 3), 7, np.uint8), small.landmark_px))


def test_after_a_gap_the_old_face_is_preferred() -> None:
    small, large = face_at(10, size_px=40), face_at(90, size_px=80)
    _, crops, _ = follow({0: [small], 7: [large, small]}, 8, detect_every=4)
    np.testing.assert_array_equal(crops[7], align(np.full((100, 200, 3), 7, np.uint8), small.landmark_px))


def test_a_lost_track_takes_the_largest() -> None:
    large, medium = face_at(110, size_px=80), face_at(60, size_px=50)
    _, crops, _ = follow({0: [face_at(0, size_px=40)], 3: [large, medium], 7: [medium, large]}, 8, detect_every=4)
    for i in (3, 7):
        np.testing.assert_array_equal(crops[i], align(np.full((100, 200, 3), i, np.uint8), large.landmark_px))


def test_frames_that_do_not_come_are_passed_over() -> None:
    listed = {i: [face_at(20 + i)] for i in range(12)}
    track, crops, detector = follow(listed, 12, detect_every=4, missing=(3, 5, 11))
    assert [i for batch in detector.batches for i in batch] == [0, 7]
    assert list(crops) == [0, 1, 2, 4, 6, 7, 8, 9, 10]
    assert track.found_F[[0, 1, 2, 4, 6, 7]].all()
    assert not track.found_F[8:].any()  # nothing beyond the last face is known
    np.testing.assert_array_equal(crops[6], align(np.full((100, 200, 3), 6, np.uint8), face_at(26).landmark_px))


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
    assert all(np.array_equal(crops[i], reference_crops[i]) for i in crops)


def test_frames_wait_for_one_batch_at_most() -> None:
    track = FaceTrack(ListedDetector({}), 1000, 4)  # type: ignore[arg-type]
    taken = []
    crops = track.crops((taken.append(i) or i, np.zeros((8, 8, 3), np.uint8)) for i in range(1000))
    for index, _ in crops:
        assert len(taken) - index <= faces.DETECT_BATCH * 4
    assert taken == list(range(1000))


# Two people


def seen(side: str, *frames: list[Face]) -> list[float | None]:
    """Return the left edge of the face that a track of one side takes in each frame, None where it takes none."""
    images = [np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8) for _ in frames]
    for i, image in enumerate(images):
        image[0, 0] = i  # by which the detector knows the frame
    track = FaceTrack(ListedDetector(dict(enumerate(frames))), len(frames), 1, side)  # type: ignore[arg-type]
    crops = dict(track.crops(enumerate(images)))
    taken: list[float | None] = []
    for i, faces_here in enumerate(frames):
        same = [face for face in faces_here if np.array_equal(align(images[i], face.landmark_px), crops[i])]
        assert len(same) == int(track.found_F[i]), "a face that is found is one of the frame's, else the crop is black"
        taken.append(float(same[0].box_px[0]) if same else None)
    return taken


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


def test_between_the_frames_of_a_swap_nobody_is_seen() -> None:
    before, after = [face_at(5), face_at(75)], [face_at(70), face_at(138)]
    track, crops, _ = follow({0: before, 3: before, 7: after}, 8, detect_every=4, side="left")
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
    for faces_here, left_px, right_px in zip(frames, seen("left", *frames), seen("right", *frames), strict=True):
        taken = [left_px is not None, right_px is not None]
        assert sum(taken) == min(2, len(faces_here))
        if all(taken):
            pair = sorted(faces_here[:2], key=lambda face: face.box_px[0] + face.box_px[2])
            assert [left_px, right_px] == [face.box_px[0] for face in pair]


# Aligned images


def write_crop(path: Path, image: npt.NDArray[np.uint8], **arguments: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **arguments)  # type: ignore[arg-type]
    return path


def noise(seed: int, size_px: int = CROP_PX) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), np.uint8)


def test_an_aligned_image_is_taken_as_it_is(tmp_path: Path) -> None:
    images = {i: write_crop(tmp_path / f"{i + 1:05d}.png", noise(i)) for i in (0, 1, 3)}
    face = CroppedFaces(images, 5)
    assert face.detected_F().tolist() == [True] * 5
    crops = list(face.crops())
    assert [index for index, _ in crops] == list(range(5))
    for i, crop in crops:
        np.testing.assert_array_equal(crop, noise(i) if i in images else np.zeros((CROP_PX, CROP_PX, 3)))
        assert (crop.shape, crop.dtype) == ((CROP_PX, CROP_PX, 3), np.uint8)
    assert face.found_F.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(face.probability_F, [1, 1, 0, 1, 0])
    assert face.probability_F.dtype == np.float32


def test_a_jpeg_shows_what_was_in_it(tmp_path: Path) -> None:
    head = np.ascontiguousarray(skimage.data.astronaut()[60:172, 170:282])
    path = write_crop(tmp_path / "00001.jpg", head, quality=95)
    ((_, crop),) = CroppedFaces({0: path}, 1).crops()
    assert np.abs(crop.astype(int) - head).mean() < 4  # grey levels lost to the JPEG, a shift would cost tens


def test_images_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    grey = noise(0)[..., 0]
    write_crop(tmp_path / "grey.png", grey)
    write_crop(tmp_path / "clear.png", np.dstack([noise(1), np.full((CROP_PX, CROP_PX), 9, np.uint8)]))
    crops = dict(CroppedFaces({0: tmp_path / "grey.png", 1: tmp_path / "clear.png"}, 2).crops())
    np.testing.assert_array_equal(crops[0], np.dstack([grey] * 3))
    np.testing.assert_array_equal(crops[1], noise(1))


def test_another_size_is_resized_without_aliasing(tmp_path: Path) -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 255
    ramp = np.repeat(np.repeat(np.arange(56, dtype=np.uint8)[None, :, None] * 4, 56, axis=0), 3, axis=2)
    images = {0: write_crop(tmp_path / "a.png", stripes), 1: write_crop(tmp_path / "b.png", ramp)}
    crops = dict(CroppedFaces(images, 2).crops())
    assert np.abs(crops[0][2:-2, 2:-2].astype(int) - 127).max() <= 2
    # Twice as large: pixel centres lie a quarter of an old pixel apart from the old centres.
    at_px = (np.arange(CROP_PX) + 0.5) / 2 - 0.5
    expected = np.interp(at_px, np.arange(56), np.arange(56) * 4.0)
    assert np.abs(crops[1][50, :, 0] - expected).max() <= 1


def test_unreadable_images_are_counted_and_black(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(0)).save(content, "PNG")
    whole = content.getvalue()
    images = {i: tmp_path / f"{i + 1:05d}.png" for i in range(5)}
    for path, damaged in zip(images.values(), (whole, b"", b"no image", whole[: len(whole) // 2], whole), strict=True):
        path.write_bytes(damaged)
    face = CroppedFaces(images, 5)
    with caplog.at_level(logging.WARNING):
        crops = dict(face.crops())
    assert face.found_F.tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(face.probability_F, [1, 0, 0, 0, 1])
    assert not any(crops[i].any() for i in (1, 2, 3))
    (message,) = caplog.messages
    assert message.startswith("3 aligned images cannot be decoded, such as ")
    assert "00002.png" in message


def test_images_beyond_the_video_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = {i: write_crop(tmp_path / f"{i + 1:05d}.png", noise(i)) for i in range(5)}
    with caplog.at_level(logging.WARNING):
        assert len(list(CroppedFaces(images, 3).crops())) == 3
    (message,) = caplog.messages
    assert message.startswith("2 aligned images are numbered beyond the 3 frames of the video, such as ")
    assert "00004.png" in message


@pytest.mark.parametrize(("num_images", "num_frames"), [(15, 10), (306, 300)])
def test_a_few_images_beyond_the_video_are_ignored(num_images: int, num_frames: int, tmp_path: Path) -> None:
    path = write_crop(tmp_path / "00001.png", noise(0))
    face = CroppedFaces(dict.fromkeys(range(num_images), path), num_frames)
    assert len(list(face.crops())) == num_frames
    found = rf"{tmp_path}: {num_images + 1} images for {num_frames} frames: are they of this video\?"
    with pytest.raises(RecordingError, match=found) as caught:
        CroppedFaces(dict.fromkeys(range(num_images + 1), path), num_frames)
    assert caught.value.reason == "missing_crops"


def test_images_of_which_none_shows_a_frame_cost_the_recording(tmp_path: Path) -> None:
    for name in ("00001.png", "00002.png"):
        (tmp_path / name).write_bytes(b"no image")
    face = CroppedFaces({0: tmp_path / "00001.png", 1: tmp_path / "00002.png"}, 5)
    with pytest.raises(RecordingError, match=r"none of 2 aligned images shows a frame, such as .*00001\.png") as caught:
        list(face.crops())
    assert caught.value.reason == "missing_crops"
    beyond = CroppedFaces({5: write_crop(tmp_path / "00006.png", noise(0))}, 5)
    with pytest.raises(RecordingError, match=r"none of 1 aligned images shows a frame$"):
        list(beyond.crops())


def test_whole_images_cause_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = {i: write_crop(tmp_path / f"{i + 1:05d}.png", noise(i)) for i in range(3)}
    with caplog.at_level(logging.WARNING):
        list(CroppedFaces(images, 9).crops())
    assert caplog.messages == []


def test_an_image_that_is_gone_costs_the_recording(tmp_path: Path) -> None:
    face = CroppedFaces({0: tmp_path / "00001.jpg"}, 1)
    with pytest.raises(RecordingError, match=r"00001\.jpg cannot be read \(No such file") as caught:
        list(face.crops())
    assert caught.value.reason == "missing_crops"


def test_no_frame_of_a_video_is_asked_for(tmp_path: Path) -> None:
    def frames() -> object:
        pytest.fail("the video would be decoded")
        yield

    face = CroppedFaces({0: write_crop(tmp_path / "00001.png", noise(0))}, 2)
    assert len(list(face.crops(frames()))) == 2  # type: ignore[arg-type]
