"""Views of a clip are the published jitter, frame by frame, and depend on nothing but which clip it is."""

from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from PIL import Image
from torchvision.transforms import functional

from avfuse import views
from avfuse.views import Jitter

RNG = np.random.default_rng(0)
RAMP = np.broadcast_to(np.linspace(0, 255, 40, dtype=np.uint8)[:, None], (30, 40, 3))
CLIP = np.stack(
    [
        RNG.integers(0, 256, (30, 40, 3), np.uint8),  # clipped at both ends
        RNG.integers(90, 160, (30, 40, 3), np.uint8),
        np.full((30, 40, 3), 131, np.uint8),
        np.zeros((30, 40, 3), np.uint8),  # no face
        np.full((30, 40, 3), (255, 10, 90), np.uint8),  # its grey version is another colour
        RAMP,
        255 - RAMP,
        RNG.integers(200, 256, (30, 40, 3), np.uint8),
    ]
)


def published(frame_YXC: npt.NDArray[np.uint8], jitter: Jitter) -> npt.NDArray[np.uint8]:
    """Return a frame as torchvision's transforms of a Pillow image make it, in the published order."""
    image: Any = functional.adjust_brightness(Image.fromarray(frame_YXC), jitter.brightness)
    image = functional.adjust_contrast(image, jitter.contrast)
    return np.asarray(functional.hflip(image) if jitter.is_mirrored else image)


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("brightness", [0.8, 0.93, 1.0, 1.2])
@pytest.mark.parametrize("contrast", [0.8, 1.0, 1.07, 1.2])
def test_a_view_is_the_published_jitter(brightness: float, contrast: float, is_mirrored: bool) -> None:
    jitter = Jitter(brightness, contrast, is_mirrored)
    np.testing.assert_array_equal(jitter(CLIP), np.stack([published(frame, jitter) for frame in CLIP]))


def test_the_first_view_is_the_clip_and_the_others_are_as_drawn() -> None:
    clips = np.stack([CLIP, CLIP[::-1]])
    assert views.show(clips, "a", 5, 0, True) is clips
    for view in (1, 2):
        shown = views.show(clips, "a", 5, view, True)
        assert shown.dtype == np.uint8
        for i, clip in enumerate(clips):
            jitter = Jitter.draw("a", 5 + i, view, True)
            np.testing.assert_array_equal(shown[i], np.stack([published(frame, jitter) for frame in clip]))
    assert not views.show(clips, "a", 5, 1, True)[0, 3].any()  # a black frame


def test_a_view_does_not_depend_on_how_clips_are_cut_into_batches() -> None:
    clips = np.stack([CLIP] * 5)
    whole = views.show(clips, "a", 0, 1, True)
    parts = [views.show(clips[start : start + 2], "a", start, 1, True) for start in range(0, 5, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len({shown.tobytes() for shown in whole}) == 5


def test_draws_are_these_for_ever() -> None:
    # A store that is added to must hold views of one kind. Of what `printf 1/0/train/someone/a | sha256sum` prints, 16
    # digits each are x in 0.8 + 0.4 x / 16^16, the brightness, and the contrast; the next 16, below a half, mirror.
    drawn = [Jitter.draw("train/someone/a", 0, 1, True), Jitter.draw("Ü", 14, 3, True)]
    assert [(item.brightness, item.contrast) for item in drawn] == [
        pytest.approx((0.8355480734073067, 0.8466111421557367), rel=1e-12),
        pytest.approx((1.0041523849368916, 0.8654047447969262), rel=1e-12),
    ]
    assert [item.is_mirrored for item in drawn] == [False, True]


def test_draws_are_uniform_and_independent() -> None:
    drawn = [Jitter.draw(name, clip, view, True) for name in "ab" for clip in range(500) for view in (1, 2)]
    values = np.array([(item.brightness, item.contrast, item.is_mirrored) for item in drawn])
    for factor in values[:, :2].T:
        assert 0.8 <= factor.min() < 0.802
        assert 1.198 < factor.max() < 1.2
        # 2000 draws from U(0.8, 1.2), whose deviation is 0.1155
        assert factor.mean() == pytest.approx(1, abs=5 * 0.1155 / 2000**0.5)
        assert factor.std() == pytest.approx(0.1155, abs=0.005)
    assert values[:, 2].mean() == pytest.approx(0.5, abs=0.056)
    assert np.abs(np.triu(np.corrcoef(values.T), 1)).max() < 0.112
    # Neighbours along each of the three: views of a clip, clips of a recording, recordings.
    by_view = values[:, 0].reshape(2, 500, 2)
    for first, second in (
        (by_view[:, :, 0], by_view[:, :, 1]),
        (by_view[:, :-1], by_view[:, 1:]),
        (by_view[0], by_view[1]),
    ):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.158


def test_without_flip_nothing_else_changes_but_the_mirroring() -> None:
    with_flip = [Jitter.draw("a", clip, 1, True) for clip in range(50)]
    without = [Jitter.draw("a", clip, 1, False) for clip in range(50)]
    assert {item.is_mirrored for item in with_flip} == {False, True}
    assert without == [Jitter(item.brightness, item.contrast, False) for item in with_flip]


def test_what_a_spec_says_of_views() -> None:
    assert views.describe(1, False) == {"count": 1}
    assert views.describe(3, True) == {
        "count": 3,
        "brightness": 0.2,
        "contrast": 0.2,
        "flip": True,
        "pillow": PIL.__version__,
    }
