import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from avfuse import foreign, runs
from avfuse.cache import FeatureCache
from avfuse.cache_options import CacheImportOptions
from avfuse.foreign import ForeignSummary, import_features
from avfuse.mapping import read_mapping
from avfuse.options import PredictOptions, ReportOptions, TrainOptions
from avfuse.predict import predict
from avfuse.report import report
from avfuse.schema import UsageError
from avfuse.train import train
from avfuse.verification import verify_store

DOCS = Path(__file__).parent.parent / "docs" / "features-of-others.md"
PEOPLE = {"s01_a": 30, "s01_b": 21, "s02_a": 40, "s03_a": 35}
MAPPING = """
fps = 5
targets = ["valence"]
video = "{recording}.npz:video"
audio = "{recording}.npz:audio"
target = "{recording}.npz:target"
[partitions]
train = ["s01_*", "s02_*"]
validation = "s03_*"
"""


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def walk(num_rows: int, num_targets: int, seed: int) -> np.ndarray:
    """Return ratings that wander between -1 and 1."""
    steps = np.random.default_rng(seed).normal(size=(num_rows, num_targets))
    return np.tanh(np.cumsum(steps, axis=0) / 4)


def features(target: np.ndarray, *shape: int, seed: int) -> np.ndarray:
    """Return features in which a rating shows, among noise."""
    noise = np.random.default_rng(seed + 1000).normal(scale=0.3, size=(len(target), *shape))
    return noise + target.reshape(-1, *[1] * len(shape))


def write_people(folder: Path, text: str = MAPPING, **changes: dict[str, np.ndarray]) -> Path:
    """Write an archive per recording, and a mapping of them; `changes` replaces arrays of a recording."""
    folder.mkdir(exist_ok=True)
    for seed, (name, num_rows) in enumerate(PEOPLE.items()):
        target = walk(num_rows, 1, seed)
        arrays = {
            "video": features(target[:, 0], 8, seed=seed),
            "audio": features(target[:, 0], 6, seed=seed + 50),
            "target": target,
        }
        np.savez(folder / f"{name}.npz", **(arrays | changes.get(name, {})))
    (folder / "people.toml").write_text(text, encoding="utf-8")
    return folder / "people.toml"


def bring(mapping: Path, **keys: Any) -> ForeignSummary:
    return import_features(CacheImportOptions(mapping, mapping.parent / "cache", **keys))


def cache_of(mapping: Path) -> FeatureCache:
    return FeatureCache.find(mapping.parent / "cache")


def fuse(mapping: Path, head: str = "concat", spacing: int = 1) -> Any:
    (summary,) = train(
        TrainOptions(mapping.parent / "cache", head=head, epochs=2, num_clips=8, spacing=spacing, device="cpu")
    )
    return summary


def test_example_of_one_hdf5_file(tmp_path: Path) -> None:
    """Vectors of two modalities; from the import to a report and predictions."""
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for seed, (name, num_rows) in enumerate(PEOPLE.items()):
            ratings = walk(num_rows, 2, seed)
            file[f"{name}/openface"] = features(ratings[:, 0], 35, seed=seed)
            file[f"{name}/vggish"] = features(ratings[:, 1], 128, seed=seed).astype(np.float32)
            file[f"{name}/ratings"] = ratings
    mapping = tmp_path / "people.toml"
    mapping.write_text(blocks("toml")[0])
    assert bring(mapping) == ForeignSummary(
        store=str(cache_of(mapping).path),
        fingerprint=cache_of(mapping).spec.fingerprint,
        num_recordings=4,
        num_imported=4,
        num_present=0,
        num_clips=126,
        num_cut=0,
        num_unrated=0,
    )
    cache = cache_of(mapping)
    assert (cache.spec.video_shape, cache.spec.audio_shape) == ((36, 1, 1), (128,))
    assert cache.spec.ranges == ((-1.0, 1.0), (-1.0, 1.0))
    with h5py.File(tmp_path / "features.h5") as file:
        for item in cache.recordings():
            item.check(0)
            given = file[item.name]
            video_ND = given["openface"][...].astype(np.float32).astype(np.float16)
            np.testing.assert_array_equal(item.video.chunk(0)[:, :35, 0, 0], video_ND)
            assert not item.video.chunk(0)[:, 35].any()  # an odd number of features gets one zero more
            np.testing.assert_array_equal(item.array("audio"), given["vggish"][...])
            np.testing.assert_array_equal(item.array("target"), given["ratings"][...].astype(np.float32))
            np.testing.assert_array_equal(item.array("frame_target"), item.array("target"))
            np.testing.assert_array_equal(item.array("frame_time_s"), np.arange(PEOPLE[item.name]) / 5)
            assert item.source.subject == item.name[:3]
            assert item.source.file == f"features.h5:/{item.name}/openface"
            assert item.array("frame_face").all()
    assert cache.provenance["mapping"] == mapping.read_text()
    summary = fuse(mapping)
    assert set(summary.ccc) == {"valence", "arousal"}
    predictions = runs.read_predictions(Path(summary.run))
    assert [(item.recording, len(item.time_s)) for item in predictions] == [("s03_a", 35)]
    predict(
        PredictOptions((Path(summary.run),), cache.path, partition="validation", csv=tmp_path / "out.csv", device="cpu")
    )
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 35
    assert report(ReportOptions((Path(summary.run),))).rows[0][0].startswith("concat")


def test_example_of_folders_of_npy(tmp_path: Path) -> None:
    """Maps, a list of recordings, ratings by frame, rows that are left over."""
    (tmp_path / "people.csv").write_text(blocks("csv")[0])
    for folder in ("maps", "sound", "ratings"):
        (tmp_path / folder).mkdir()
    num_clips = {"morning": 30, "evening": 25, "walk": 28, "talk": 12}
    for seed, (name, count) in enumerate(num_clips.items()):
        ratings = walk(count * 8 + 3, 2, seed)
        ratings[4::9] = -5
        at_end = walk(count, 1, seed)[:, 0]
        np.save(tmp_path / "maps" / f"{name}.npy", features(at_end, 64, 3, 3, seed=seed).astype(np.float16))
        np.save(tmp_path / "sound" / f"{name}.npy", features(at_end, 16, seed=seed)[: count - (name == "walk")])
        np.save(tmp_path / "ratings" / f"{name}.npy", ratings)
    (tmp_path / "ratings" / "talk.npy").unlink()  # of a test partition nobody tells
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(blocks("toml")[1])
    summary = bring(mapping)
    assert (summary.num_imported, summary.num_clips, summary.num_cut, summary.num_unrated) == (4, 94, 1, 1)
    cache = cache_of(mapping)
    assert (cache.spec.dataset, cache.spec.video_shape, cache.spec.clip["hop"]) == ("people", (64, 3, 3), 8)
    who = {item.name: (item.source.partition, item.source.subject) for item in cache.recordings()}
    assert who == {
        "evening": ("train", "anna"),
        "morning": ("train", "anna"),
        "talk": ("test", "carla"),
        "walk": ("validation", "ben"),
    }
    walked = cache.recording("walk")
    given = np.load(tmp_path / "ratings" / "walk.npy").astype(np.float32)
    expected = np.where(given == -5, np.nan, given)[: 28 * 8 - 1]
    np.testing.assert_array_equal(walked.array("frame_target"), expected)
    np.testing.assert_array_equal(walked.array("target"), expected[7::8])
    assert walked.array("end_frame").tolist() == list(range(7, 27 * 8, 8))
    np.testing.assert_array_equal(walked.video.chunk(0), np.load(tmp_path / "maps" / "walk.npy")[:27])
    assert cache.recording("talk").source.annotation_sha256 is None
    assert np.isnan(cache.recording("talk").array("frame_target")).all()
    assert set(fuse(mapping, spacing=8).ccc) == {"valence", "arousal"}


def test_example_of_archives_with_sound_alone(tmp_path: Path) -> None:
    """One modality, one target whose ratings have times, partitions by file."""
    for partition, names in (("train", ("a", "b")), ("validation", ("c",))):
        arrays = {}
        for name in names:
            seed = ord(name)
            fatigue = walk(60, 1, seed)[:, 0]
            arrays |= {
                f"{name}_sound": features(fatigue, 24, seed=seed),
                f"{name}_fatigue": fatigue[::5],
                f"{name}_time": np.arange(0, 60, 5) / 10,
            }
        np.savez_compressed(tmp_path / f"{partition}.npz", **arrays)
    mapping = tmp_path / "tired.toml"
    mapping.write_text(blocks("toml")[2])
    assert bring(mapping).num_imported == 3
    cache = cache_of(mapping)
    assert (cache.spec.dataset, cache.spec.targets, cache.spec.ranges) == ("tired", ("fatigue",), (None,))
    assert cache.spec.audio == {"encoder": "24 mel bands", "location": "{partition}.npz:{recording}_sound"}
    assert (cache.spec.video, cache.spec.video_shape) == ({"encoder": "none"}, (1, 1, 1))
    (c,) = cache.recordings("validation")
    assert not c.video.chunk(0).any()
    assert not c.array("frame_face").any()
    with np.load(tmp_path / "validation.npz") as given:
        np.testing.assert_allclose(c.array("frame_target")[::5, 0], given["c_fatigue"], atol=1e-6)
    assert np.isnan(c.array("frame_target")[56:]).all()
    assert set(fuse(mapping, "audio_only").ccc) == {"fatigue"}


def test_video_alone(tmp_path: Path) -> None:
    mapping = write_people(tmp_path, MAPPING.replace('audio = "{recording}.npz:audio"\n', ""))
    bring(mapping)
    cache = cache_of(mapping)
    assert (cache.spec.audio, cache.spec.audio_shape) == ({"encoder": "none"}, (1,))
    assert all(not item.array("audio").any() and item.array("face_share").all() for item in cache.recordings())
    assert set(fuse(mapping, "visual_only").ccc) == {"valence"}
    for head in ("concat", "recursive_joint_attention"):
        with pytest.raises(
            UsageError, match=r"LSTM of size 1; .* one modality alone\? .* audio_only and visual_only take"
        ):
            fuse(mapping, head)


def test_the_way_from_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three lines of the page turn a dictionary as others pickle it into an archive."""
    data = {"train": {"id": ["x$_$1", "y$_$2"], "vision": np.ones((2, 5, 3)), "audio": np.zeros((2, 5, 4)), "text": 0}}
    (tmp_path / "features.pkl").write_bytes(pickle.dumps(data))
    monkeypatch.chdir(tmp_path)
    (lines,) = blocks("python")
    assert len(lines.splitlines()) == 3
    with pytest.warns(ResourceWarning):  # three lines do not close the file
        exec(lines, {})
    with np.load("train.npz") as given:
        assert set(given) == {f"{name}_{kind}" for name in data["train"]["id"] for kind in ("vision", "audio")}
        np.testing.assert_array_equal(given["y$_$2_vision"], np.ones((5, 3)))


def test_only_what_is_missing_or_changed_is_imported(tmp_path: Path) -> None:
    mapping = write_people(tmp_path)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_features(CacheImportOptions(mapping, tmp_path / "cache"), stop)
    assert seen == [(0, 4), (1, 4), (2, 4)]
    assert cache_of(mapping).names() == ["s01_a", "s01_b"]
    summary = bring(mapping)
    assert (summary.num_imported, summary.num_present, summary.num_clips) == (2, 2, 75)
    assert bring(mapping).num_imported == 0
    write_people(tmp_path, s01_b={"target": walk(21, 1, 99)})
    assert bring(mapping).num_imported == 1
    write_people(tmp_path, s01_b={"target": walk(21, 1, 99)}, s02_a={"audio": np.ones((40, 6))})
    assert bring(mapping).num_imported == 1
    np.testing.assert_array_equal(cache_of(mapping).recording("s02_a").array("audio"), np.ones((40, 6)))
    # Another partition is no other content.
    mapping.write_text(mapping.read_text().replace('train = ["s01_*", "s02_*"]', 'train = "s01_*"\ntest = "s02_*"'))
    assert bring(mapping).num_imported == 0
    assert [item.name for item in cache_of(mapping).recordings("test")] == ["s02_a"]


def test_features_are_known_by_their_values_in_whatever_file(tmp_path: Path) -> None:
    mapping = write_people(tmp_path / "npz")
    bring(mapping)
    elsewhere = tmp_path / "hdf5"
    elsewhere.mkdir()
    with h5py.File(elsewhere / "all.h5", "w") as file:
        for name in PEOPLE:
            with np.load(tmp_path / "npz" / f"{name}.npz") as given:
                for key, values in given.items():
                    file.create_dataset(f"{name}/{key}", data=values.astype(np.float32), compression="gzip")
    (elsewhere / "people.toml").write_text(MAPPING.replace("{recording}.npz:", "all.h5:/{recording}/"))
    bring(elsewhere / "people.toml")
    first, second = (
        [item.source.sha256 for item in cache_of(place).recordings()] for place in (mapping, elsewhere / "x")
    )
    assert first == second
    assert len(set(first)) == 4


def test_people_and_features_in_two_partitions_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = MAPPING.replace('train = ["s01_*", "s02_*"]', 'train = ["s01_a", "s02_*"]\ntest = "s01_b"')
    mapping = write_people(tmp_path, 'subject = "{subject}_*"' + text)
    message = r"partitions \(1\) .*subject s01 is in train \(s01_a\) and in test \(s01_b\); leave each .* --allow-leaks"
    with pytest.raises(UsageError, match=message):
        bring(mapping)
    assert not (tmp_path / "cache").exists()
    bring(mapping, allow_leaks=True)
    assert "subject s01 is in train" in caplog.text
    with np.load(tmp_path / "s03_a.npz") as given:
        sound = given["audio"]
    target = walk(35, 1, 7)
    write_people(tmp_path, s02_a={"video": features(target, 8, seed=7), "audio": sound, "target": target})
    message = r"the content of s02_a\.npz:audio is in train \(s02_a\) and in validation \(s03_a\)"
    with pytest.raises(UsageError, match=message):
        bring(mapping)


def test_recordings_of_another_mapping_are_not_mixed_in(tmp_path: Path) -> None:
    mapping = write_people(tmp_path)
    bring(mapping)
    mapping.write_text(MAPPING.replace('"s01_*", ', "").replace("validation", 'skip = "s01_*"\nvalidation'))
    with pytest.raises(UsageError, match=r"holds 2 recordings that .*people\.toml does not have, such as s01_a; name"):
        bring(mapping)
    mapping.write_text('dataset = "fewer"\n' + mapping.read_text())
    assert bring(mapping).num_imported == 2


def test_other_settings_are_another_store(tmp_path: Path) -> None:
    changes = ("", 'dataset = "x"', "hop = 1\nfirst_frame = 3", 'audio_encoder = "VGGish"', "ranges = [[-1, 1]]")
    texts = [change + MAPPING for change in changes] + [MAPPING.replace("fps = 5", "fps = 6")]
    shapes = {"video": (8, 1, 1), "audio": (6,)}
    specs = [foreign._spec(read_mapping(write_people(tmp_path, text)), shapes) for text in texts]
    assert len({spec.fingerprint for spec in specs}) == 6


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("video", np.nan, "row 30 holds nan; features are finite$"),
        ("audio", -np.inf, "row 30 holds inf; features are finite$"),
        ("audio", 1e300, "row 30 holds inf; features are finite$"),
        ("video", -7e4, "row 30 holds 70000; features are finite, and up to 65504 in size: scale them"),
        ("video", 1e-9, "12% of its numbers other than zero are smaller than 6.1e-05, where numbers of 16 bits lose"),
        ("audio", 1e-45, "17% of its numbers other than zero are smaller than 1.2e-38, where numbers of 32 bits lose"),
    ],
)
def test_features_that_cannot_be_kept_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float, message: str
) -> None:
    monkeypatch.setattr(foreign, "_BLOCK_BYTES", 7 * 4 * 8)  # rows are counted over blocks
    values = np.ones((40, 8 if key == "video" else 6))
    values[slice(30, 31) if not 0 < value < 1 else slice(None), 3] = value
    mapping = write_people(tmp_path, s02_a={key: values})
    with pytest.raises(UsageError, match=rf"people\.toml: {key} of 's02_a' \(s02_a\.npz:{key}\): {message}"):
        bring(mapping)
    assert cache_of(mapping).names() == ["s01_a", "s01_b"]
    write_people(tmp_path)
    assert bring(mapping).num_imported == 2


@pytest.mark.parametrize(
    ("kind", "value", "num_small"),
    [
        ("f8", 1e-9, 3),  # of 320: a few do no harm
        ("f4", 2.0**-24, 320),  # what 16 bits hold as it is loses nothing
        ("f2", 2.0**-20, 320),
        ("f8", 0.0, 320),
        ("i8", 1, 320),
    ],
)
def test_small_features_that_lose_nothing_are_kept(tmp_path: Path, kind: str, value: float, num_small: int) -> None:
    values = np.ones(320, kind)
    values[:num_small] = value
    mapping = write_people(tmp_path, s02_a={"video": values.reshape(40, 8)})
    assert bring(mapping).num_imported == 4
    stored = cache_of(mapping).recording("s02_a").video.chunk(0).reshape(-1)
    np.testing.assert_array_equal(stored, values.astype(np.float16))


def test_ratings_that_miss_most_clips_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Times in minutes for times in seconds; ratings of half of the clips are no fault."""
    text = MAPPING.replace("[partitions]", 'target_time = "{recording}.npz:time"\n[partitions]')
    times = {name: {"time": np.arange(num_rows) / 5} for name, num_rows in PEOPLE.items()}
    times["s01_a"]["target"] = np.where(np.arange(30)[:, None] < 15, np.nan, walk(30, 1, 0))
    mapping = write_people(tmp_path, text, **times)
    assert bring(mapping).num_imported == 4
    assert "less than half" not in caplog.text
    write_people(tmp_path, text, **times | {"s02_a": {"time": np.arange(40) / 5 / 60}})
    assert bring(mapping).num_unrated == 0
    assert "1 recordings are rated at less than half of their clips, such as s02_a, at 1 of 40; do the" in caplog.text


def test_unrated_recordings_are_counted_by_their_values(tmp_path: Path) -> None:
    mapping = write_people(tmp_path, MAPPING + 'test = "t_*"\n')
    for name, target in (("t_blank", np.full((9, 1), np.nan)), ("t_rated", np.zeros((9, 1)))):
        sound = np.full((9, 6), len(name) + (name == "t_blank"), np.float64)
        np.savez(tmp_path / f"{name}.npz", video=np.repeat(sound[:, :4], 2, axis=1), audio=sound, target=target)
    summary = bring(mapping)
    assert (summary.num_recordings, summary.num_unrated) == (6, 1)
    assert cache_of(mapping).recording("t_blank").source.annotation_sha256 is None
    assert cache_of(mapping).recording("t_rated").source.annotation_sha256 is not None


def test_the_text_of_the_mapping_is_that_of_the_last_import(tmp_path: Path) -> None:
    mapping = write_people(tmp_path)
    bring(mapping)
    first = cache_of(mapping)
    mapping.write_text("# mended\n" + MAPPING.replace("[partitions]", 'align = "shortest"\n[partitions]'))
    assert bring(mapping).num_present == 4
    cache = cache_of(mapping)
    assert cache.provenance == {**first.provenance, "mapping": mapping.read_text()}
    assert (cache.spec, cache.path) == (first.spec, first.path)
    assert not verify_store(cache.store).damages


def test_what_is_read_in_blocks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = write_people(tmp_path)
    bring(mapping)
    whole = [item.digest for item in cache_of(mapping).recordings()]
    monkeypatch.setattr(foreign, "_BLOCK_BYTES", 7 * 4 * 8)
    summary = import_features(CacheImportOptions(mapping, tmp_path / "again"))
    assert summary.num_imported == 4
    assert [item.digest for item in FeatureCache.find(tmp_path / "again").recordings()] == whole


def test_recordings_of_other_shapes_are_refused(tmp_path: Path) -> None:
    mapping = write_people(tmp_path, s02_a={"audio": np.ones((40, 7))})
    message = r"audio of 's02_a' has features of shape \(7,\), that of 's01_a' \(6,\); all recordings have the same"
    with pytest.raises(UsageError, match=message):
        bring(mapping)
    assert not (tmp_path / "cache").exists()


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    mapping = write_people(tmp_path, s02_a={"video": np.array([{"face": 1}] * 40, dtype=object)})
    with pytest.raises(UsageError, match=r"video of 's02_a' .*: pickled Python objects run what the file says"):
        bring(mapping)
    mapping.write_text(MAPPING.replace("{recording}.npz:video", "{recording}.pkl"))
    with pytest.raises(UsageError, match=r"video = '{recording}\.pkl': pickled Python objects run what the file says"):
        bring(mapping)
