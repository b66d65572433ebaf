"""Faces are found as MTCNN of facenet-pytorch finds them at its defaults, in whole pictures and near a face."""

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from facenet_pytorch import MTCNN
from PIL import Image as Pillow

from avfuse import detection
from avfuse.areas import AreaSums
from avfuse.detection import Face, FaceDetector, first_scale, overlap, pyramid
from avfuse.synthesis import Script, render_frames, smooth_trace

CPU = torch.device("cpu")
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(40, CPU)


@pytest.fixture(scope="module")
def fine_detector() -> FaceDetector:
    return FaceDetector(20, CPU)


@pytest.fixture(scope="module")
def moving() -> list[Pixels]:
    """Return frames (200, 300, 3) of one face of about 100 pixels that moves."""
    rng = np.random.default_rng(3)
    script = Script({name: smooth_trace(rng, 24, 25, 2.0) for name in ("light", "smile", "brow", "mouth")}, (), 25)
    frames = np.concatenate(list(render_frames(script, rng)))[:12]
    return [np.ascontiguousarray(np.pad(frame, ((0, 0), (0, 44), (0, 0)))[20:220]) for frame in frames]


@pytest.fixture(scope="module")
def group() -> Pixels:
    """Return a picture (240, 420, 3) with three faces of different sizes."""
    head = Pillow.fromarray(skimage.data.astronaut()[20:220, 130:330])
    image = np.full((240, 420, 3), 90, np.uint8)
    for size_px, left, top in ((200, 10, 20), (110, 220, 5), (64, 340, 150)):
        image[top : top + size_px, left : left + size_px] = head.resize((size_px, size_px))
    return image


def oracle(image: Pixels) -> list[Face]:
    """Return what facenet-pytorch finds at its defaults, largest first."""
    boxes, probabilities, landmarks = MTCNN(keep_all=True).detect(image[None], landmarks=True)
    found = zip(boxes[0], landmarks[0], probabilities[0], strict=True)
    return [Face(np.float64(box), np.float64(points), float(probability)) for box, points, probability in found]


def assert_same(found: list[Face], expected: list[Face]) -> None:
    """Compare all but the float32 of sums that are added in another order."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.box_px, other.box_px, atol=0.01)
        np.testing.assert_allclose(one.landmark_px, other.landmark_px, atol=0.01)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


# Against MTCNN


def test_faces_are_those_of_mtcnn(fine_detector: FaceDetector, moving: list[Pixels], group: Pixels) -> None:
    images = [moving[0], moving[7], group, np.ascontiguousarray(skimage.data.astronaut())]
    expected = [oracle(image) for image in images]
    assert [len(faces) for faces in expected[:3]] == [1, 1, 3]
    for found, faces in zip(fine_detector.detect(images), expected, strict=True):
        assert_same(found, faces)


def test_without_the_finest_scales_large_faces_are_the_same(
    detector: FaceDetector, moving: list[Pixels], group: Pixels
) -> None:
    for found, image in zip(detector.detect([*moving[::4], group]), [*moving[::4], group], strict=True):
        expected = oracle(image)
        pairs = [(face, other) for face in found for other in expected if overlap(face.box_px, other.box_px) > 0.5]
        assert len(pairs) == len(expected)
        assert np.median([overlap(face.box_px, other.box_px) for face, other in pairs]) > 0.95
        assert_same(found[:1], expected[:1])


@pytest.mark.parametrize(
    ("min_face_px", "smallest_px"),
    [(12, 10.05), (15, 14.18), (20, 20.0), (28, 20.0), (29, 28.21), (40, 39.79), (80, 79.15), (200, 157.45)],
)
def test_the_pyramid_begins_on_the_grid_of_the_defaults(min_face_px: int, smallest_px: float) -> None:
    assert 12 / first_scale(min_face_px) == pytest.approx(smallest_px, abs=0.005)
    assert smallest_px <= min_face_px < smallest_px / 0.709
    scale, scales = 12 / 20, []
    while 480 * scale >= 12:  # as MTCNN does
        scales.append(scale)
        scale *= 0.709
    assert pyramid(first_scale(20), 480) == scales
    common = [scale for scale in pyramid(first_scale(min_face_px), 480) if scale < 0.61]
    assert common == pytest.approx(scales[-len(common) :], rel=1e-12)


# Near a face


def test_near_a_face_it_is_found_as_in_the_whole_picture(detector: FaceDetector, moving: list[Pixels]) -> None:
    whole = [faces[0] for faces in detector.detect(moving)]
    for before, image, expected in zip(whole, moving[1:], whole[1:], strict=False):
        assert overlap(before.box_px, expected.box_px) < 0.999  # it moved
        assert_same(detector.detect_near(image, [before]), [expected])


def test_near_one_face_others_are_not_found(detector: FaceDetector, group: Pixels) -> None:
    (faces,) = detector.detect([group])
    assert len(faces) == 3
    for face in faces[:2]:
        (near,) = detector.detect_near(group, [face])
        assert overlap(near.box_px, face.box_px) > 0.8
    near_two = detector.detect_near(group, faces[:2])
    assert len(near_two) == 2
    assert near_two[0].area_px > near_two[1].area_px
    assert len(detector.detect_near(group, [faces[0], faces[0]])) == 1  # the same face, found twice


def test_near_a_place_without_a_face_none_is_found(detector: FaceDetector, moving: list[Pixels]) -> None:
    (face,) = detector.detect(moving[:1])[0]
    grey = np.full_like(moving[0], 100)
    assert detector.detect_near(grey, [face]) == []
    assert detector.detect_near(grey, []) == []


@pytest.mark.parametrize(
    "box_px",
    [
        (500, 500, 600, 600),
        (-300, -300, -200, -200),
        (50, 50, 50, 50),
        (50, 50, 51, 200),
        (90, 90, 60, 60),
        (0, 0, 9e4, 9e4),
    ],
)
def test_a_strange_box_gives_no_face(detector: FaceDetector, box_px: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    assert detector.detect_near(image, [Face(np.array(box_px, float), np.zeros((5, 2)), 1.0)]) == []


# Pictures


def test_one_face_is_found(detector: FaceDetector) -> None:
    image = skimage.data.astronaut()
    (face, *_) = detector.detect([image])[0]
    left, top, right, bottom = face.box_px
    assert 150 < left < 200 < 250 < right < 290  # read off the picture by eye
    assert 40 < top < 80 < 160 < bottom < 190
    assert face.probability > 0.99
    (left_eye, right_eye, nose, left_mouth, right_mouth) = face.landmark_px
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_largest_face_comes_first(detector: FaceDetector, group: Pixels) -> None:
    areas_px = [face.area_px for face in detector.detect([group])[0]]
    assert areas_px == sorted(areas_px, reverse=True)
    assert areas_px[0] > 2 * areas_px[1] > 4 * areas_px[2]


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 500), (11, 40), (12, 12), (16, 40), (39, 64), (64, 64)])
@pytest.mark.parametrize("min_face_px", [12, 40])
def test_nothing_is_found_where_there_is_nothing(shape: tuple[int, int], min_face_px: int) -> None:
    black = np.zeros((*shape, 3), np.uint8)
    detector = FaceDetector(min_face_px, CPU)
    assert detector.detect([black, black]) == [[], []]
    assert detector.detect_near(black, [Face(np.array([0.0, 0, 12, 12]), np.zeros((5, 2)), 1.0)]) == []


def test_no_picture_is_no_face(detector: FaceDetector) -> None:
    assert detector.detect([]) == []


def test_images_of_unequal_size(detector: FaceDetector) -> None:
    head = np.ascontiguousarray(skimage.data.astronaut()[20:220, 130:330])
    tiny = np.zeros((10, 10, 3), np.uint8)
    assert [len(found) for found in detector.detect([tiny, head, tiny])] == [0, 1, 0]
    assert [len(found) for found in detector.detect([head, tiny])] == [1, 0]


def test_arrays_and_tensors_of_any_kind_are_the_same(detector: FaceDetector) -> None:
    head = skimage.data.astronaut()[20:220, 130:330]
    frozen = head.copy()
    frozen.flags.writeable = False
    for image in (head, frozen, np.asfortranarray(head), torch.tensor(head)):
        assert_same(detector.detect([image])[0], oracle(np.ascontiguousarray(head)))


@pytest.mark.parametrize("batch_px", [1, 2 * 200 * 300, 2**25])
def test_the_size_of_a_batch_changes_nothing(batch_px: int, moving: list[Pixels]) -> None:
    detector = FaceDetector(40, CPU)
    detector._batch_px = batch_px
    images = [*moving[:3], np.zeros_like(moving[0]), *moving[3:6]]
    for found, image in zip(detector.detect(images), images, strict=True):
        assert_same(found, detector.detect([image])[0])


@pytest.mark.parametrize("candidates", [1, 3])
def test_candidates_go_through_a_few_at_a_time(
    candidates: int, detector: FaceDetector, group: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = detector.detect([group])[0]
    monkeypatch.setattr(detection, "CANDIDATES", candidates)
    assert_same(detector.detect([group])[0], expected)


# Memory


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let two pictures fit into the memory of the device, and return how many are tried at a time."""
    tried: list[int] = []

    class Small(AreaSums):
        def __init__(self, part_NYXC: torch.Tensor, *where: object) -> None:
            tried.append(len(part_NYXC))
            if len(part_NYXC) > 2:
                raise torch.OutOfMemoryError("full")
            super().__init__(part_NYXC, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(detection, "AreaSums", Small)
    return tried


def test_a_full_memory_halves_the_batch(moving: list[Pixels], small_memory: list[int]) -> None:
    detector = FaceDetector(40, CPU)
    detector._batch_px = 2**25
    found = detector.detect(moving[:9])
    assert [len(faces) for faces in found] == [1] * 9
    assert small_memory == [9, 4, 2, 2, 2, 2, 1]
    detector.detect(moving[:4])
    assert small_memory[7:] == [2, 2]  # it is remembered


def test_a_full_memory_is_not_a_missing_face(detector: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(detection, "AreaSums", fail)
    for num_images in (1, 2):
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            detector.detect([np.zeros((64, 64, 3), np.uint8)] * num_images)


def test_other_errors_halve_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fail(given: torch.Tensor, *_: object) -> None:
        asked.append(len(given))
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(detection, "AreaSums", fail)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        FaceDetector(40, CPU).detect([np.zeros((64, 64, 3), np.uint8)] * 3)
    assert asked == [3]


@pytest.mark.gpu
def test_a_gpu_finds_the_same(detector: FaceDetector, moving: list[Pixels], group: Pixels) -> None:
    on_gpu = FaceDetector(40, torch.device("cuda"))
    for found, expected in zip(on_gpu.detect([*moving, group]), detector.detect([*moving, group]), strict=True):
        assert [overlap(a.box_px, b.box_px) > 0.9 for a, b in zip(found, expected, strict=True)] == [True] * len(found)
    (face,) = detector.detect(moving[:1])[0]
    assert len(on_gpu.detect_near(moving[1], [face])) == 1


# Boxes


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
