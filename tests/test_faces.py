"""One face is followed, placed on the template, and never made up where there is none."""

import logging

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from skimage.transform import SimilarityTransform

from avfuse import faces
from avfuse.faces import CROP_PX, TEMPLATE_PX, Face, FaceDetector, FaceTrack, align, overlap, similarity

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
    listed: dict[int, list[Face]], num_frames: int, detect_every: int, missing: tuple[int, ...] = ()
) -> tuple[FaceTrack, dict[int, npt.NDArray[np.uint8]], ListedDetector]:
    detector = ListedDetector(listed)
    track = FaceTrack(detector, num_frames, detect_every)  # type: ignore[arg-type]
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
