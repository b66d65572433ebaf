"""Means over rectangles are those of PyTorch's resampling by areas, of whole pictures and of parts of them."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from avfuse.areas import AreaSums

ROUNDING = 2e-6  # of float32, at values from -1 to 1


def pictures(num: int, height_px: int, width_px: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, height_px, width_px, 3), np.uint8))


def resampled(picture_NYXC: Tensor, height_px: int, width_px: int) -> Tensor:
    picture_NCYX = picture_NYXC.permute(0, 3, 1, 2).double()
    return (functional.interpolate(picture_NCYX, size=(height_px, width_px), mode="area") - 127.5) / 128


@pytest.mark.parametrize("scale", [1.3, 1.0, 0.6, 0.3016, 0.1])
@pytest.mark.parametrize("size_px", [(41, 67), (64, 48)])
def test_whole_pictures_are_shrunken(size_px: tuple[int, int], scale: float) -> None:
    picture = pictures(2, *size_px)
    shrunken, left, top = AreaSums(picture).shrink(scale)
    assert (left, top) == (0, 0)
    expected = resampled(picture, *(int(side_px * scale + 1) for side_px in size_px))
    torch.testing.assert_close(shrunken.double(), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(11, 7, 60, 50), (0, 0, 33, 20), (30, 31, 90, 70)])
@pytest.mark.parametrize("scale", [0.7, 0.43])
def test_a_part_is_a_piece_of_the_whole(left: int, top: int, right: int, bottom: int, scale: float) -> None:
    picture = pictures(1, 70, 90)
    whole, _, _ = AreaSums(picture).shrink(scale)
    part, first_x, first_y = AreaSums(picture[:, top:bottom, left:right], left, top, (70, 90)).shrink(scale)
    height, width = part.shape[2:]
    assert torch.equal(part, whole[:, :, first_y : first_y + height, first_x : first_x + width])
    # What is left out at a rim is less than two pixels: one that lies across it, and one that has no partner.
    for first, size, low, high, side in ((first_x, width, left, right, 90), (first_y, height, top, bottom, 70)):
        assert first % 2 == 0
        assert size % 2 == 0 or high == side
        exact = int(side * scale + 1) / side
        assert 0 <= first - low * exact < 3
        assert high == side or 0 <= high * exact - (first + size) < 3


def test_a_part_smaller_than_a_pixel_is_empty() -> None:
    part, _, _ = AreaSums(pictures(1, 4, 4), 33, 33, (200, 200)).shrink(0.1)
    assert part.numel() == 0


@pytest.mark.parametrize("size_px", [24, 48])
def test_boxes_are_read_at_once(size_px: int) -> None:
    picture = pictures(3, 60, 80)
    rng = np.random.default_rng(1)
    corner_K2 = rng.uniform(-30, 70, (40, 2))
    box_K4 = torch.from_numpy(np.hstack([corner_K2, corner_K2 + rng.uniform(2, 60, (40, 1))])).float()
    image_K = torch.arange(40) % 3
    sums = AreaSums(picture)
    held_K = sums.holds(box_K4)
    read = sums.read(image_K[held_K], box_K4[held_K], size_px)
    at = iter(read)
    for image, (left, top, right, bottom), is_held in zip(image_K, box_K4.trunc().int().tolist(), held_K, strict=True):
        # As MTCNN cuts: pixels are counted from 1, and the last one belongs to the box.
        cut = picture[image, max(top, 1) - 1 : max(bottom, 0), max(left, 1) - 1 : max(right, 0)]
        assert bool(is_held) == (cut.numel() > 0)
        if is_held:
            expected = resampled(cut[None], size_px, size_px)[0]
            torch.testing.assert_close(next(at).double(), expected, rtol=0, atol=ROUNDING)
    assert 0 < int(held_K.sum()) < 40


def test_boxes_in_a_part_are_those_of_the_whole() -> None:
    picture, image = pictures(1, 60, 80), torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[20.7, 15.2, 44.0, 38.9]])
    part = AreaSums(picture[:, 10:50, 12:60], 12, 10, (60, 80))
    assert torch.equal(part.read(image, box, 24), AreaSums(picture).read(image, box, 24))
    assert part.holds(torch.tensor([[0.0, 0.0, 13.0, 11.0], [0.0, 0.0, 12.0, 60.0]])).tolist() == [True, False]


def test_sums_that_do_not_fit_into_an_integer_leave_means_right() -> None:
    side_px = 2950
    assert 255 * side_px**2 > 2**31
    sums = AreaSums(torch.full((1, side_px, side_px, 1), 255, dtype=torch.uint8))
    assert (sums.shrink(0.01)[0] == 127.5 / 128).all()
    box = torch.tensor([[1.0, 1.0, side_px, side_px], [2800.0, 2800.0, 2900.0, 2900.0]])
    assert (sums.read(torch.zeros(2, dtype=torch.int64), box, 24) == 127.5 / 128).all()


@pytest.mark.gpu
def test_a_gpu_adds_as_the_cpu_does() -> None:
    given = pictures(3, 211, 307)
    here, there = AreaSums(given), AreaSums(given.cuda())
    for scale in (0.9, 0.6, 0.31, 0.1):
        (level, *place), (other, *expected) = there.shrink(scale), here.shrink(scale)
        assert place == expected
        torch.testing.assert_close(level.cpu(), other, rtol=0, atol=1e-6)
    box_K4 = torch.tensor([[-5.0, -5.0, 40.0, 40.0], [17.0, 30.0, 90.0, 103.0], [250.0, 160.0, 400.0, 310.0]])
    image_K = torch.tensor([0, 2, 1])
    assert there.holds(box_K4.cuda()).all()
    found = there.read(image_K.cuda(), box_K4.cuda(), 24)
    torch.testing.assert_close(found.cpu(), here.read(image_K, box_K4, 24), rtol=0, atol=1e-6)
