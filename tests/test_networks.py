import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import options
from tiny import tiny_encoders as tiny_encoders  # a fixture

from avfuse import networks, registry
from avfuse.corpora import Corpus
from avfuse.networks import Networks
from avfuse.schema import UsageError


class Nowhere(Corpus):
    """A corpus without recordings."""

    def __init__(self, root: Path) -> None:
        self.targets, self.ranges = ("valence",), (None,)

    def recordings(self):  # type: ignore[no-untyped-def]
        return []

    def annotation(self, recording):  # type: ignore[no-untyped-def]
        return None


def make(tmp_path: Path, **changes: object) -> Networks:
    return Networks.make(options(tmp_path, **changes), torch.device("cpu"))


def test_everything_that_shapes_a_feature_is_in_the_description(tmp_path: Path) -> None:
    given = options(tmp_path)
    plain = make(tmp_path).describe(given, Nowhere(tmp_path))
    changed = {
        "hop": {"hop": 4},
        "precision": {"precision": "bf16"},
        "detection": {"detection": "every"},
        "detect_every": {"detect_every": 2},
        "min_face_px": {"min_face_px": 60},
        "faces": {"faces": "cropped"},
        "video_option": {"video_option": ("scale=0.5",)},
        "views": {"views": 2},
    }
    specs = [
        make(tmp_path, **change).describe(dataclasses.replace(given, **change), Nowhere(tmp_path)).fingerprint
        for change in changed.values()
    ]
    assert len({plain.fingerprint, *specs}) == 1 + len(changed)
    same = {"batch_size": 3, "engine": "local", "num_workers": 5, "max_corrupt": 0.5, "min_face_share": 0.5}
    assert make(tmp_path, **same).describe(dataclasses.replace(given, **same), Nowhere(tmp_path)) == plain


def test_what_decodes_pictures_is_in_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--decode gpu needs a CUDA device, not cpu"):
        make(tmp_path, decode="gpu")
    tried: list[torch.device] = []
    monkeypatch.setattr(networks.gpu_decoding, "refuse_unusable", tried.append)
    monkeypatch.setattr(networks.gpu_decoding, "version", lambda name: f"{name} 0.11.1")
    specs = [
        make(tmp_path, decode=decode).describe(options(tmp_path, decode=decode), Nowhere(tmp_path))
        for decode in ("cpu", "gpu")
    ]
    assert tried == [torch.device("cpu")]
    assert specs[1].decoder == {**specs[0].decoder, "picture": "nvdec", "torchcodec": "torchcodec 0.11.1"}
    assert specs[0].fingerprint != specs[1].fingerprint


def test_aligned_images_need_no_detector(tmp_path: Path) -> None:
    assert make(tmp_path, faces="cropped").detector is None
    assert make(tmp_path).detector is not None


def test_provenance_says_where_the_weights_are_from(tmp_path: Path) -> None:
    provenance = make(tmp_path).provenance
    assert provenance["video"] == provenance["audio"] == {"weights": "none"}
    assert set(provenance) == {"video", "audio", "avfuse"}


def test_an_encoder_of_the_other_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder 'tiny_video' is for video, not for audio"):
        make(tmp_path, audio_encoder="tiny_video")
    assert "tiny_video" in registry.ENCODERS


@pytest.mark.parametrize("changes", [{}, {"faces": "cropped"}, {"detection": "every"}])
def test_a_gpu_has_features_of_its_own_and_so_has_each_size_of_its_batches(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    networks, corpus = make(tmp_path, **changes), Nowhere(tmp_path)
    found = [networks.describe(options(tmp_path, batch_size=size, **changes), corpus).fingerprint for size in (0, 16)]
    on_gpu = dataclasses.replace(networks, device=torch.device("cuda"))
    found += [
        on_gpu.describe(options(tmp_path, batch_size=size, **changes), corpus).fingerprint for size in (0, 16, 64)
    ]
    assert found[0] == found[1]
    assert found[2] == found[4]
    assert len(set(found)) == 3
