import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from test_cache import spec

from avfuse.schema import Recording, RecordingError
from avfuse.spec import CacheSpec, Source


def test_fingerprint_follows_every_field() -> None:
    fingerprints = {spec().fingerprint}
    changes = {
        "precision": "bf16",
        "targets": ("fatigue",),
        "video_shape": (1, 1, 1),
        "audio_shape": (1,),
        "format_version": 9,
    }
    for field in dataclasses.fields(CacheSpec):
        changed = changes.get(field.name, "other" if isinstance(getattr(spec(), field.name), str) else {"changed": 1})
        fingerprints.add(spec(**{field.name: changed}).fingerprint)
    assert len(fingerprints) == 1 + len(dataclasses.fields(CacheSpec))


def test_a_spec_comes_back_from_json() -> None:
    one = spec(dataset="Ünder/score d")
    again = CacheSpec.from_json(json.loads(json.dumps(dataclasses.asdict(one))))
    assert again == one
    assert again.fingerprint == one.fingerprint
    assert one.store_name == f"Ünder-score-d-{one.fingerprint}.zarr"


def test_source_names_what_is_missing(tmp_path: Path) -> None:
    video, text = tmp_path / "v.mp4", tmp_path / "v.txt"
    recording = Recording("v", video, "train", "v", text)
    with pytest.raises(RecordingError, match=r"v\.mp4 cannot be read") as caught:
        Source.of(recording, tmp_path)
    assert caught.value.reason == "missing_file"
    video.write_bytes(b"123")
    with pytest.raises(RecordingError, match=r"v\.txt cannot be read") as caught:
        Source.of(recording, tmp_path)
    assert caught.value.reason == "annotation_invalid"
    text.write_text("x")
    source = Source.of(recording, tmp_path)
    assert (source.file, source.sha256) == ("v.mp4", hashlib.sha256(b"123").hexdigest())
    text.write_text("y")
    assert Source.of(recording, tmp_path) != source


def test_source_of_a_recording_that_shares_its_annotation_file(tmp_path: Path) -> None:
    video, text = tmp_path / "v.mp4", tmp_path / "ratings.csv"
    video.write_bytes(b"123")
    text.write_text("v's and others'")
    recording = Recording("v", video, "train", "v", text, annotation_sha256="ab" * 32)
    source = Source.of(recording, tmp_path)
    assert source.annotation_sha256 == "ab" * 32
    text.write_text("v's and others', which changed")
    assert Source.of(recording, tmp_path) == source
    assert Source.of(dataclasses.replace(recording, annotation_sha256="cd" * 32), tmp_path) != source
