"""A face comes onto the template, whatever its size and place; aligned images are taken as they are."""

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
from torch.nn import functional

from avfuse import crops
from avfuse.crops import CROP_PX, TEMPLATE_PX, CroppedFaces, align, similarity
from avfuse.schema import RecordingError

TEMPLATE = np.array(TEMPLATE_PX)


def align_one(image: npt.NDArray[np.uint8], landmark_px: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return align([torch.from_numpy(image)], [landmark_px])[0].numpy()


def aligned_by_itself(image_YXC: npt.NDArray[np.uint8], landmark_px: npt.NDArray[np.float64]) -> torch.Tensor:
    """Return a crop (112, 112, 3) sampled from the whole picture, unrounded."""
    (xx, xy, x0), (yx, yy, y0) = similarity(TEMPLATE, landmark_px).tolist()
    fineness = max(1, int(np.ceil(np.hypot(xx, yx) - 0.25)))
    at_px = (torch.arange(CROP_PX * fineness, dtype=torch.float64) + 0.5) / fineness - 0.5
    y_px, x_px = torch.meshgrid(at_px, at_px, indexing="ij")
    image_px = torch.stack([xx * x_px + xy * y_px + x0, yx * x_px + yy * y_px + y0], dim=-1)
    grid_1YX2 = (image_px[None] + 0.5) / torch.tensor([image_YXC.shape[1], image_YXC.shape[0]]) * 2 - 1
    image_1CYX = torch.from_numpy(image_YXC).permute(2, 0, 1)[None].double()
    crop_1CYX = functional.grid_sample(image_1CYX, grid_1YX2, mode="bilinear", align_corners=False)
    return functional.avg_pool2d(crop_1CYX, fineness)[0].permute(1, 2, 0)


# Alignment


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
    crop = align_one(image, landmark_px).astype(float)
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
    crop = align_one(stripes, TEMPLATE * 10)
    assert np.abs(crop[2:-2, 2:-2].astype(int) - 128).max() <= 13  # a stripe more or less of ten


def test_a_face_of_the_crops_size_is_copied() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 160, 3), np.uint8)
    np.testing.assert_array_equal(align_one(image, TEMPLATE + np.array([20, 10])), image[10:122, 20:132])


def test_outside_of_the_image_is_black() -> None:
    white = np.full((150, 160, 3), 255, np.uint8)
    crop = align_one(white, TEMPLATE - np.array([30, 50]))
    assert not crop[:49].any()
    assert not crop[:, :29].any()
    assert (crop[51:, 31:] == 255).all()
    assert not align_one(white, TEMPLATE + np.array([500, 0])).any()
    assert not align_one(white, TEMPLATE - np.array([0, 500])).any()


def random_places(seed: int, num: int) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.float64]]]:
    """Return pictures of two sizes and landmarks of any size and angle in them, of which some lie across an edge."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, ((90, 160, 3), (240, 200, 3))[i % 2], np.uint8) for i in range(num)]
    landmarks = []
    for image in images:
        turn = rng.uniform(0.2, 3.2) * np.exp(1j * rng.uniform(-0.6, 0.6))
        centred = (TEMPLATE[:, 0] - 56 + 1j * (TEMPLATE[:, 1] - 56)) * turn
        middle_px = rng.uniform(-20, np.array(image.shape[1::-1]) + 20)
        landmarks.append(np.stack([centred.real, centred.imag], axis=1) + middle_px)
    return images, landmarks


@pytest.mark.parametrize("most_px", [1, crops.ALIGNED_PX])
def test_many_crops_at_once_are_those_of_one_after_the_other(most_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "ALIGNED_PX", most_px)
    images, landmarks = random_places(1, 24)
    known = [None if i % 7 == 3 else landmark_px for i, landmark_px in enumerate(landmarks)]
    made = align([torch.from_numpy(image) for image in images], known)
    assert (made.shape, made.dtype) == ((24, CROP_PX, CROP_PX, 3), torch.uint8)
    for crop, image, landmark_px in zip(made, images, known, strict=True):
        if landmark_px is None:
            assert not crop.any()
        else:
            off = (crop.double() - aligned_by_itself(image, landmark_px)).abs()
            assert off.max() < 1  # rounding is half a grey level; the rest is the float32 of places up to 300 pixels


@pytest.mark.gpu
def test_a_gpu_samples_as_the_cpu_does() -> None:
    images, landmarks = random_places(2, 24)
    given = [torch.from_numpy(image) for image in images]
    made = align([image.cuda() for image in given], landmarks)
    assert made.device.type == "cuda"
    # Places of samples differ by some 1e-4 pixels, so that a level may be rounded the other way.
    torch.testing.assert_close(made.cpu().int(), align(given, landmarks).int(), rtol=0, atol=1)


def test_no_crop_is_made_of_no_picture() -> None:
    assert align([], []).shape == (0, CROP_PX, CROP_PX, 3)


# Aligned images


def read_all(face: CroppedFaces) -> dict[int, npt.NDArray[np.uint8]]:
    return {index: crop.numpy() for index, crop in face.crops()}


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
    made = read_all(face)
    assert list(made) == list(range(5))
    for i, crop in made.items():
        np.testing.assert_array_equal(crop, noise(i) if i in images else np.zeros((CROP_PX, CROP_PX, 3)))
        assert (crop.shape, crop.dtype) == ((CROP_PX, CROP_PX, 3), np.uint8)
    assert face.found_F.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(face.probability_F, [1, 1, 0, 1, 0])
    assert face.probability_F.dtype == np.float32


def test_a_jpeg_shows_what_was_in_it(tmp_path: Path) -> None:
    head = np.ascontiguousarray(skimage.data.astronaut()[60:172, 170:282])
    path = write_crop(tmp_path / "00001.jpg", head, quality=95)
    crop = read_all(CroppedFaces({0: path}, 1))[0]
    assert np.abs(crop.astype(int) - head).mean() < 4  # grey levels lost to the JPEG, a shift would cost tens


def test_images_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    grey = noise(0)[..., 0]
    write_crop(tmp_path / "grey.png", grey)
    write_crop(tmp_path / "clear.png", np.dstack([noise(1), np.full((CROP_PX, CROP_PX), 9, np.uint8)]))
    made = read_all(CroppedFaces({0: tmp_path / "grey.png", 1: tmp_path / "clear.png"}, 2))
    np.testing.assert_array_equal(made[0], np.dstack([grey] * 3))
    np.testing.assert_array_equal(made[1], noise(1))


def test_another_size_is_resized_without_aliasing(tmp_path: Path) -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 255
    ramp = np.repeat(np.repeat(np.arange(56, dtype=np.uint8)[None, :, None] * 4, 56, axis=0), 3, axis=2)
    images = {0: write_crop(tmp_path / "a.png", stripes), 1: write_crop(tmp_path / "b.png", ramp)}
    made = read_all(CroppedFaces(images, 2))
    assert np.abs(made[0][2:-2, 2:-2].astype(int) - 127).max() <= 2
    # Twice as large: pixel centres lie a quarter of an old pixel apart from the old centres.
    at_px = (np.arange(CROP_PX) + 0.5) / 2 - 0.5
    expected = np.interp(at_px, np.arange(56), np.arange(56) * 4.0)
    assert np.abs(made[1][50, :, 0] - expected).max() <= 1


def test_unreadable_images_are_counted_and_black(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(0)).save(content, "PNG")
    whole = content.getvalue()
    images = {i: tmp_path / f"{i + 1:05d}.png" for i in range(5)}
    for path, damaged in zip(images.values(), (whole, b"", b"no image", whole[: len(whole) // 2], whole), strict=True):
        path.write_bytes(damaged)
    face = CroppedFaces(images, 5)
    with caplog.at_level(logging.WARNING):
        made = read_all(face)
    assert face.found_F.tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(face.probability_F, [1, 0, 0, 0, 1])
    assert not any(made[i].any() for i in (1, 2, 3))
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
