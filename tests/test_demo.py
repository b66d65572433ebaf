"""The demo corpora: their layout, that they are the same each time, and that cues and ratings follow the traces."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_synthesis import FACE_BOX, clean_frames, decode, frames_of, voice_of

from avfuse import demo as demo_module
from avfuse import registry
from avfuse.demo import DemoSummary, demo, partition_of, plan_failures, plan_of
from avfuse.options import DEMO_DURATION_S, DEMO_SUBJECTS, DemoOptions
from avfuse.schema import UsageError
from avfuse.synthesis import FAILURES, SAMPLE_RATE_HZ

NUM_FRAMES = 100
SESSION_FRAMES = 1500  # of a session of the default length
FATIGUE = {"corpus": "fatigue", "duration_s": 8.0}


def options(root, **changes):
    return DemoOptions(**{"root": root, "subjects": 4, "duration_s": 4.0, "seed": 3, "num_workers": 1, **changes})


def plan(subject, seed=3, num_frames=NUM_FRAMES):
    return plan_of("aff_wild2", seed, subject, num_frames)


def session(subject, seed=3, num_frames=SESSION_FRAMES):
    return plan_of("fatigue", seed, subject, num_frames)


def rows_of(root, partition, subject):
    path = root / demo_module.PARTITION_DIRS[partition] / f"subject-{subject:02d}.txt"
    header, *lines = path.read_text().splitlines()
    return header, np.array([[float(value) for value in line.split(",")] for line in lines])


def files_of(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "corpus"
    calls = []
    summary = demo(options(root), lambda done, total: calls.append((done, total)))
    return root, summary, calls


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "sessions"
    return root, demo(options(root, **FATIGUE))


@pytest.fixture(scope="module")
def first_recording(corpus):
    return decode(corpus[0] / "videos" / "subject-00.mp4")


def test_layout(corpus):
    root, summary, calls = corpus
    annotations = "annotations/VA_Estimation_Challenge"
    assert files_of(root) == {
        *(f"videos/subject-0{subject}.mp4" for subject in range(4)),
        f"{annotations}/Train_Set/subject-00.txt",
        f"{annotations}/Train_Set/subject-01.txt",
        f"{annotations}/Validation_Set/subject-03.txt",
        "names_of_videos_in_each_test_set/Valence_Arousal_Estimation_Challenge_test_set_release.txt",
        "README.txt",
        "demo.json",
    }
    assert (root / demo_module.TEST_LIST).read_text() == "subject-02\n"
    assert "in the layout of Aff-Wild2.\n" in (root / "README.txt").read_text()
    assert "no evidence about people" in (root / "README.txt").read_text()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    num_bytes = sum(path.stat().st_size for path in (root / "videos").iterdir())
    assert summary == DemoSummary(root, 4, 4 * NUM_FRAMES, 16.0, num_bytes)


def test_layout_of_the_fatigue_corpus(sessions):
    root, summary = sessions
    videos = {f"videos/subject-0{subject}.mp4" for subject in range(4)}
    assert files_of(root) == {*videos, "ratings.csv", "README.txt", "demo.json"}
    assert "rated for fatigue" in (root / "README.txt").read_text()
    assert (summary.recordings, summary.frames, summary.seconds) == (4, 320, 32.0)
    frames, sound, _ = decode(root / "videos" / "subject-00.mp4")
    assert len(frames) == 80
    assert len(sound) == pytest.approx(8 * SAMPLE_RATE_HZ, abs=2048)


@pytest.mark.parametrize("name", list(DEMO_SUBJECTS))
def test_the_corpus_of_its_name_reads_it(name, corpus, sessions):
    reader = registry.load("corpus", name)({"aff_wild2": corpus[0], "fatigue": sessions[0]}[name])
    recordings = reader.recordings()
    assert [recording.subject for recording in recordings] == [f"subject-0{subject}" for subject in range(4)]
    for subject, recording in enumerate(recordings):
        assert recording.path.is_file()
        assert recording.partition == partition_of(name, subject)
        assert (reader.annotation(recording) is None) == (recording.partition == "test")


def test_the_default_of_each_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "_run_all", lambda *_: iter(()))  # plans and texts only
    assert set(demo_module.KINDS) == set(DEMO_SUBJECTS) == set(DEMO_DURATION_S)
    for name in DEMO_SUBJECTS:
        with pytest.raises(FileNotFoundError):  # the videos
            demo(DemoOptions(tmp_path / name, corpus=name))
    # The very text of the marker tells a finished corpus, those of former versions too.
    marker = '{"format": 1, "subjects": 32, "duration_s": 20.5, "seed": 0}\n'
    assert (tmp_path / "aff_wild2" / "demo.json").read_text() == marker
    marker = '{"format": 1, "subjects": 16, "duration_s": 150.0, "seed": 0, "corpus": "fatigue"}\n'
    assert (tmp_path / "fatigue" / "demo.json").read_text() == marker
    header, *lines = (tmp_path / "fatigue" / "ratings.csv").read_text().splitlines()
    assert header == "recording,subject,partition,start,end,value"
    assert len(lines) == 16 * 6
    assert lines[0].startswith("videos/subject-00,subject-00,train,0,25,")
    assert lines[-1].startswith("videos/subject-15,subject-15,validation,125,150,")


def test_annotation_holds_the_traces_and_marks_the_unrated(corpus):
    header, rows = rows_of(corpus[0], "train", 0)
    traces_FE = np.stack(list(plan(0).traces_F.values()), axis=1)
    unrated_F = np.isnan(traces_FE).all(axis=1)
    assert header == "valence,arousal"
    assert unrated_F.sum() == 5
    assert (rows[unrated_F] == -5).all()
    np.testing.assert_allclose(rows[~unrated_F], traces_FE[~unrated_F], atol=5.1e-4)  # three decimals are written


def test_a_quarter_is_held_out_and_the_default_has_unannotated_recordings():
    partitions = [partition_of("aff_wild2", subject) for subject in range(36)]
    assert [partitions.count(name) for name in ("train", "validation", "test")] == [25, 9, 2]
    partitions = [partition_of("fatigue", subject) for subject in range(16)]
    assert [partitions.count(name) for name in ("train", "validation", "test")] == [12, 4, 0]


def test_content_depends_on_seed_and_subject_only(corpus, first_recording, tmp_path):
    demo(options(tmp_path / "two", subjects=5, num_workers=2))
    again = decode(tmp_path / "two" / "videos" / "subject-00.mp4")
    np.testing.assert_array_equal(again[0], first_recording[0])
    np.testing.assert_array_equal(again[1], first_recording[1])
    annotation = demo_module.PARTITION_DIRS["train"] / "subject-00.txt"
    assert (tmp_path / "two" / annotation).read_bytes() == (corpus[0] / annotation).read_bytes()
    for other in (tmp_path / "two" / "videos" / "subject-04.mp4", corpus[0] / "videos" / "subject-01.mp4"):
        assert (decode(other)[0] != first_recording[0]).mean() > 0.5


@pytest.mark.parametrize("name", list(DEMO_SUBJECTS))
def test_another_seed_gives_other_traces(name):
    plans = [plan_of(name, seed, 0, NUM_FRAMES) for seed in (3, 3, 4)]
    for trace_F, again_F, other_F in zip(*(plan.traces_F.values() for plan in plans), strict=True):
        np.testing.assert_array_equal(trace_F, again_F)
        assert np.nanmax(np.abs(trace_F - other_F)) > 0.1
    assert plans[0].script.failures != plans[2].script.failures


@pytest.mark.parametrize(
    ("num_frames", "fps"), [(NUM_FRAMES, 25), (525, 25), (3000, 25), (40, 10), (SESSION_FRAMES, 10)]
)
def test_failures_never_overlap(num_frames, fps):
    for seed in range(50):
        failures = plan_failures(np.random.default_rng(seed), num_frames, fps)
        assert failures[0].start >= 0
        assert failures[-1].stop <= num_frames
        for earlier, later in pairwise(failures):
            assert later.start - earlier.stop >= fps / 2
        for modality, low, high in (("face", 0.17, 0.29), ("sound", 0.16, 0.27)):
            share = sum(f.stop - f.start for f in failures if f.modality == modality) / num_frames
            assert low < share < high


def test_every_kind_of_failure_occurs():
    kinds = {
        (failure.modality, failure.kind)
        for seed in range(20)
        for failure in plan_failures(np.random.default_rng(seed), NUM_FRAMES, 25)
    }
    assert kinds == {(modality, kind) for modality, kinds in FAILURES.items() for kind in kinds}


def test_traces_are_slow_bounded_and_uncorrelated():
    for subject in range(10):
        valence_F, arousal_F = plan(subject, num_frames=525).traces_F.values()
        rated_F = ~np.isnan(valence_F)
        assert max(np.abs(valence_F[rated_F]).max(), np.abs(arousal_F[rated_F]).max()) < 1
        assert np.nanmax(np.abs(np.diff(valence_F))) < 0.15  # per frame
        # Clipping leaves a little, and so does what is unrated.
        assert abs(np.corrcoef(valence_F[rated_F], arousal_F[rated_F])[0, 1]) < 0.15


def test_warmth_of_the_face_follows_valence(corpus):
    correlations = []
    for subject in range(4):
        frames, _, _ = decode(corpus[0] / "videos" / f"subject-{subject:02d}.mp4")
        valence_F = plan(subject).traces_F["valence"]
        face = frames[:, *FACE_BOX].astype(float).mean(axis=(1, 2))
        warmth_F = face[:, 0] / face[:, 2]
        used_F = clean_frames(plan(subject).script, "face") & ~np.isnan(valence_F)
        correlations.append(np.corrcoef(warmth_F[used_F], valence_F[used_F])[0, 1])
    assert np.mean(correlations) > 0.5, correlations


def level_db_of(script, seed, smoothed_s):
    """Return the level of a voice in each frame, over some seconds."""
    power_F = (voice_of(script, seed).reshape(script.num_frames, -1) ** 2).mean(axis=1)
    num_smoothed = round(smoothed_s * script.fps)
    return 10 * np.log10(np.convolve(power_F, np.ones(num_smoothed) / num_smoothed, mode="same") + 1e-8)


def test_level_of_the_sound_follows_arousal_and_not_valence():
    levels, arousal, valence = [], [], []
    for subject in range(8):
        planned = plan(subject, num_frames=250)
        level_db_F = level_db_of(planned.script, subject, 1.0)
        used_F = clean_frames(planned.script, "sound") & ~np.isnan(planned.traces_F["valence"])
        levels += list(level_db_F[used_F])
        arousal += list(planned.traces_F["arousal"][used_F])
        valence += list(planned.traces_F["valence"][used_F])
    assert np.corrcoef(levels, arousal)[0, 1] > 0.5
    assert abs(np.corrcoef(levels, valence)[0, 1]) < 0.2


def test_fatigue_rises_slowly_with_dips_and_spreads_over_subjects():
    traces_PF = np.stack([session(subject).traces_F["fatigue"] for subject in range(16)])
    assert np.abs(traces_PF).max() < 1
    assert np.abs(np.diff(traces_PF)).max() < 0.03  # per frame, a tenth of a second
    quarters_P4 = traces_PF.reshape(16, 4, -1).mean(axis=2)
    assert (quarters_P4[:, 3] > quarters_P4[:, 0]).mean() > 0.8
    assert (np.diff(traces_PF[:, ::10]) < -0.01).any(axis=1).mean() > 0.8  # it also falls, within a second
    held_out = [subject for subject in range(16) if partition_of("fatigue", subject) == "validation"]
    for subjects in (range(16), held_out):
        levels = traces_PF[subjects].mean(axis=1)
        assert np.ptp(levels) > 0.7
        assert abs(levels.mean()) < 0.25


def test_ratings_are_the_mean_of_the_trace_in_the_interval(tmp_path):
    reader_of = registry.load("corpus", "fatigue")
    plans = {subject: session(subject, num_frames=600) for subject in range(4)}  # the last interval is shorter
    (tmp_path / "ratings.csv").write_text(demo_module.KINDS["fatigue"].texts(plans)[Path("ratings.csv")])
    reader = reader_of(tmp_path)
    for recording, planned in zip(reader.recordings(), plans.values(), strict=True):
        rating_F = reader.annotation(recording).at(np.arange(600) / 10)[:, 0]
        for interval in (slice(0, 250), slice(250, 500), slice(500, 600)):
            mean = planned.traces_F["fatigue"][interval].mean()
            assert set(rating_F[interval]) == {rating_F[interval.start]}
            assert rating_F[interval.start] == pytest.approx(5 + 5 * mean, abs=0.25)
            assert rating_F[interval.start] % 0.5 == 0


def test_no_cue_of_fatigue_suffices_and_together_they_tell_more():
    sessions = [session(subject) for subject in range(16)]
    fatigue = np.concatenate([planned.traces_F["fatigue"] for planned in sessions])
    cues = {
        name: np.concatenate([planned.script.cues_F[name] for planned in sessions])
        for name in ("light", "smile", "brow", "voice")
    }
    correlations = {name: np.corrcoef(cue, fatigue)[0, 1] for name, cue in cues.items()}
    assert all(-0.85 < value < -0.45 for value in correlations.values()), correlations
    both = np.corrcoef(cues["light"] + cues["voice"], fatigue)[0, 1]
    assert both < min(correlations["light"], correlations["voice"]) - 0.05
    nuisances = [cues[name] + fatigue for name in ("light", "voice")]
    assert abs(np.corrcoef(*nuisances)[0, 1]) < 0.3  # slow as they are, chance leaves some


def test_face_and_voice_follow_fatigue():
    warmth, level_db, fatigue = [], [], []
    for subject in range(4):
        planned = session(subject, num_frames=400)
        used_F = clean_frames(planned.script, "face") & clean_frames(planned.script, "sound")
        face = frames_of(planned.script, subject)[:, *FACE_BOX].astype(float).mean(axis=(1, 2))
        warmth += list((face[:, 0] / face[:, 2])[used_F])
        level_db += list(level_db_of(planned.script, subject, 2.0)[used_F])
        fatigue += list(planned.traces_F["fatigue"][used_F])
    assert np.corrcoef(warmth, fatigue)[0, 1] < -0.4
    assert np.corrcoef(level_db, fatigue)[0, 1] < -0.4


def test_a_finished_corpus_is_left_alone(corpus, sessions, monkeypatch):
    monkeypatch.setattr(demo_module, "_render_recording", lambda *_: pytest.fail("rendered again"))
    for root, summary, changes in ((*corpus[:2], {}), (*sessions, FATIGUE)):
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        assert demo(options(root, num_workers=2, **changes)) == summary
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

    def break_off(path, fps, frames, sound_S):
        Path(path).write_bytes(b"half")
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "write_mp4", break_off)
        with pytest.raises(StoppedError):
            demo(options(root))
    assert not (root / "videos" / "subject-01.mp4").exists()
    assert demo(options(root)).bytes == corpus[1].bytes
    assert (root / "videos" / "subject-00.mp4").stat().st_mtime_ns == made
    assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize("changes", [{"subjects": 5}, {"seed": 4}, {"duration_s": 5.0}, {"corpus": "fatigue"}])
def test_other_options_are_refused(corpus, changes):
    with pytest.raises(UsageError, match="other options"):
        demo(options(corpus[0], **changes))


def test_an_unknown_corpus_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown demo corpus 'sewa'; known: aff_wild2, fatigue"):
        demo(options(tmp_path, corpus="sewa"))


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
