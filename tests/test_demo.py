"""The demo corpus: its layout, that it is the same each time, and that its cues follow its traces."""

import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from avfuse import demo as demo_module
from avfuse.demo import FPS, SAMPLE_RATE_HZ, Corruption, demo, partition_of, plan_failures, plan_recording, render_voice
from avfuse.options import DemoOptions
from avfuse.schema import UsageError

NUM_FRAMES = 100
FACE_BOX = np.s_[80:150, 95:160]  # rows and columns that lie on the face wherever it moves


def options(root, **changes):
    return DemoOptions(**{"root": root, "subjects": 4, "duration_s": 4.0, "seed": 3, "num_workers": 1, **changes})


def decode(path):
    """Return frames (F, Y, X, 3) uint8, sound (S,) float32 and the names of the codecs."""
    with av.open(str(path)) as container:
        codecs = [stream.codec_context.name for stream in container.streams]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound, codecs


def plan_of(subject, seed=3, num_frames=NUM_FRAMES):
    return plan_recording(np.random.default_rng([seed, subject]).spawn(3)[0], num_frames)


def rows_of(root, partition, subject):
    path = root / demo_module.PARTITION_DIRS[partition] / f"subject-{subject:02d}.txt"
    header, *lines = path.read_text().splitlines()
    return header, np.array([[float(value) for value in line.split(",")] for line in lines])


def clean_frames(plan, modality):
    clean = np.ones(len(plan.valence_F), dtype=bool)
    for failure in plan.failures:
        if failure.modality == modality:
            clean[failure.start : failure.stop] = False
    return clean


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "corpus"
    calls = []
    summary = demo(options(root), lambda done, total: calls.append((done, total)))
    return root, summary, calls


@pytest.fixture(scope="module")
def first_recording(corpus):
    return decode(corpus[0] / "videos" / "subject-00.mp4")


def test_layout(corpus):
    root, summary, calls = corpus
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    annotations = "annotations/VA_Estimation_Challenge"
    assert files == {
        *(f"videos/subject-0{subject}.mp4" for subject in range(4)),
        f"{annotations}/Train_Set/subject-00.txt",
        f"{annotations}/Train_Set/subject-01.txt",
        f"{annotations}/Validation_Set/subject-03.txt",
        "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt",
        "README.txt",
        "demo.json",
    }
    assert (root / demo_module.TEST_LIST).read_text() == "subject-02\n"
    assert "no evidence about people" in (root / "README.txt").read_text()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    num_bytes = sum(path.stat().st_size for path in (root / "videos").iterdir())
    assert summary == demo_module.DemoSummary(root, 4, 4 * NUM_FRAMES, 16.0, num_bytes)


def test_streams_and_lengths(first_recording, corpus):
    frames, sound, codecs = first_recording
    assert codecs[0] in {"h264", "libx264"}
    assert codecs[1] == "aac"
    assert frames.shape == (NUM_FRAMES, 256, 256, 3)
    assert 4 * SAMPLE_RATE_HZ <= len(sound) < 4 * SAMPLE_RATE_HZ + 2 * demo_module.AAC_FRAME
    for subject in (0, 1, 3):
        assert len(rows_of(corpus[0], partition_of(subject), subject)[1]) == NUM_FRAMES


def test_annotation_holds_the_traces_and_marks_the_unrated(corpus):
    header, rows = rows_of(corpus[0], "train", 0)
    plan = plan_of(0)
    assert header == "valence,arousal"
    assert plan.unrated_F.sum() == 5
    assert (rows[plan.unrated_F] == -5).all()
    expected = np.stack([plan.valence_F, plan.arousal_F], axis=1)[~plan.unrated_F]
    np.testing.assert_allclose(rows[~plan.unrated_F], expected, atol=5.1e-4)  # three decimals are written


def test_a_quarter_is_held_out_and_the_default_has_unannotated_recordings():
    partitions = [partition_of(subject) for subject in range(36)]
    assert [partitions.count(name) for name in ("train", "validation", "test")] == [25, 9, 2]


def test_content_depends_on_seed_and_subject_only(corpus, first_recording, tmp_path):
    demo(options(tmp_path / "two", subjects=5, num_workers=2))
    again = decode(tmp_path / "two" / "videos" / "subject-00.mp4")
    np.testing.assert_array_equal(again[0], first_recording[0])
    np.testing.assert_array_equal(again[1], first_recording[1])
    annotation = demo_module.PARTITION_DIRS["train"] / "subject-00.txt"
    assert (tmp_path / "two" / annotation).read_bytes() == (corpus[0] / annotation).read_bytes()
    for other in (tmp_path / "two" / "videos" / "subject-04.mp4", corpus[0] / "videos" / "subject-01.mp4"):
        assert (decode(other)[0] != first_recording[0]).mean() > 0.5


def test_another_seed_gives_other_traces_pictures_and_sounds():
    plans = [plan_of(0, seed=seed) for seed in (3, 4)]
    assert np.abs(plans[0].valence_F - plans[1].valence_F).max() > 0.1
    frames = [next(demo_module.render_frames(plan, np.random.default_rng(seed))) for seed, plan in enumerate(plans)]
    assert (frames[0] != frames[1]).mean() > 0.5
    sounds = [render_voice(plan, np.random.default_rng(seed)) for seed, plan in enumerate(plans)]
    assert not np.array_equal(*sounds)


@pytest.mark.parametrize("num_frames", [NUM_FRAMES, 525, 3000])
def test_failures_never_overlap(num_frames):
    for seed in range(50):
        failures = plan_failures(np.random.default_rng(seed), num_frames)
        assert failures[0].start >= 0
        assert failures[-1].stop <= num_frames
        for earlier, later in pairwise(failures):
            assert later.start - earlier.stop >= FPS / 2
        for modality, low, high in (("face", 0.17, 0.29), ("sound", 0.16, 0.26)):
            share = sum(f.stop - f.start for f in failures if f.modality == modality) / num_frames
            assert low < share < high


def test_every_kind_of_failure_occurs():
    kinds = {
        (failure.modality, failure.kind)
        for seed in range(20)
        for failure in plan_failures(np.random.default_rng(seed), NUM_FRAMES)
    }
    assert kinds == {(modality, kind) for modality, kinds in demo_module.FAILURES.items() for kind in kinds}


def test_traces_are_slow_bounded_and_uncorrelated():
    for subject in range(10):
        plan = plan_of(subject, num_frames=525)
        assert max(np.abs(plan.valence_F).max(), np.abs(plan.arousal_F).max()) < 1
        assert np.abs(np.diff(plan.valence_F)).max() < 0.15  # per frame
        assert abs(np.corrcoef(plan.valence_F, plan.arousal_F)[0, 1]) < 0.05  # clipping leaves a little


def test_warmth_of_the_face_follows_valence(corpus):
    correlations = []
    for subject in range(4):
        frames, _, _ = decode(corpus[0] / "videos" / f"subject-{subject:02d}.mp4")
        plan = plan_of(subject)
        face = frames[:, *FACE_BOX].astype(float).mean(axis=(1, 2))
        warmth, clean = face[:, 0] / face[:, 2], clean_frames(plan, "face")
        correlations.append(np.corrcoef(warmth[clean], plan.valence_F[clean])[0, 1])
    assert np.mean(correlations) > 0.5, correlations


def test_level_of_the_sound_follows_arousal_and_not_valence():
    levels, arousal, valence = [], [], []
    for subject in range(8):
        plan = plan_of(subject, num_frames=250)
        sound = render_voice(plan, np.random.default_rng(subject))
        assert 0.1 < np.abs(sound).max() < 1  # neither faint nor clipped
        clean = clean_frames(plan, "sound")
        power = (sound.reshape(len(clean), -1) ** 2).mean(axis=1)
        level_db = 10 * np.log10(np.convolve(power, np.ones(25) / 25, mode="same") + 1e-8)
        levels += list(level_db[clean])
        arousal += list(plan.arousal_F[clean])
        valence += list(plan.valence_F[clean])
    assert np.corrcoef(levels, arousal)[0, 1] > 0.5
    assert abs(np.corrcoef(levels, valence)[0, 1]) < 0.2


def test_sound_fails_as_planned_and_starts_with_the_picture(corpus):
    for subject in range(4):
        _, sound, _ = decode(corpus[0] / "videos" / f"subject-{subject:02d}.mp4")
        plan = plan_of(subject)
        planned = render_voice(plan, np.random.default_rng([3, subject]).spawn(3)[2])
        decoded = sound[: len(planned)]
        lags = range(-1600, 1601, 80)  # within 0.1 s, in steps of 5 ms
        power = np.abs(planned[1600:-1600])
        match = [np.corrcoef(power, np.abs(decoded)[1600 + lag : len(planned) - 1600 + lag])[0, 1] for lag in lags]
        assert lags[int(np.argmax(match))] == 0
        for failure in plan.failures:
            if failure.kind == "mute":
                edges = (failure.start * 640 + 2048, failure.stop * 640 - 2048)  # AAC smears the edges
                assert np.abs(decoded[slice(*edges)]).max() < 1e-3


def test_failures_show_in_the_picture():
    plan = plan_of(0)
    failures = (
        Corruption("face", "blurred", 0, 8),
        Corruption("face", "covered", 16, 24),
        Corruption("face", "gone", 32, 40),
    )
    plan = demo_module.Plan(plan.valence_F, plan.arousal_F, plan.cues_F, failures, plan.unrated_F)
    frames = np.concatenate(list(demo_module.render_frames(plan, np.random.default_rng(0)))).astype(float)
    detail = np.abs(np.diff(frames[:, *FACE_BOX], axis=1)).mean(axis=(1, 2, 3))
    assert detail[[*range(0, 8), *range(16, 24), *range(32, 40)]].max() < 0.5 * detail[[8, 15, 24, 31, 40, 99]].min()
    assert np.ptp(frames[32:40], axis=0).max() == 0  # nobody is there, nothing moves


def test_a_finished_corpus_is_left_alone(corpus, monkeypatch):
    root, summary, _ = corpus
    monkeypatch.setattr(demo_module, "_render_recording", lambda *_: pytest.fail("rendered again"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert demo(options(root, num_workers=2)) == summary
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_interrupted_corpus_is_finished(corpus, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done == 1:
            raise StoppedError

    root = tmp_path / "corpus"
    with pytest.raises(StoppedError):
        demo(options(root), stop)
    assert not (root / "demo.json").exists()
    made = (root / "videos" / "subject-00.mp4").stat().st_mtime_ns

    def break_off(path, frames, sound_S):
        Path(path).write_bytes(b"half")
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "_write_mp4", break_off)
        with pytest.raises(StoppedError):
            demo(options(root))
    assert not (root / "videos" / "subject-01.mp4").exists()
    assert demo(options(root)).bytes == corpus[1].bytes
    assert (root / "videos" / "subject-00.mp4").stat().st_mtime_ns == made
    assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize("changes", [{"subjects": 5}, {"seed": 4}, {"duration_s": 5.0}])
def test_other_options_are_refused(corpus, changes):
    with pytest.raises(UsageError, match="other options"):
        demo(options(corpus[0], **changes))


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no demo corpus"):
        demo(options(tmp_path))
    with pytest.raises(UsageError, match="no demo corpus"):
        demo(options(tmp_path / "thesis.txt"))
    (tmp_path / "demo.json").write_text(json.dumps(["something else"]))
    with pytest.raises(UsageError, match="something else"):
        demo(options(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "thesis.txt"]
