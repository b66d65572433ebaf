"""The run directory reads back what was written, and refuses what it cannot read."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from avfuse import __version__, runs
from avfuse.metrics.ccc import ccc
from avfuse.runs import RunRecord
from avfuse.schema import Predictions, UsageError

NAMES = ("Zoë/Ålesund 1", "видео", "emoji-😀.take two", "plain")


def record(**changes: object) -> RunRecord:
    values = {
        "head": "concat",
        "head_options": {"dropout": 0.1, "joint_blstm": False, "note": "größe"},
        "targets": ("valence", "arousal"),
        "seed": 3,
        "options": {"num_clips": 16, "learning_rate": 1e-4, "amp": "off"},
        "fingerprint": "0123abcd",
        "dataset": "aff_wild2",
        "versions": {"avfuse": "0.1.0"},
        "summary": {"best_epoch": 4, "ccc": {"valence": 0.5}},
        "complete": True,
    }
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def predictions(name: str, num_frames: int, targets: tuple[str, ...] = ("valence", "arousal")) -> Predictions:
    rng = np.random.default_rng(num_frames)
    target_FE = rng.normal(size=(num_frames, len(targets))).astype(np.float32)
    target_FE[::3] = np.nan
    return Predictions(
        recording=name,
        subject=f"subject of {name}",
        partition="validation",
        targets=targets,
        time_s=np.arange(num_frames) / 29.97 + 0.016,
        prediction_FE=rng.normal(size=(num_frames, len(targets))).astype(np.float32),
        target_FE=target_FE,
        face_F=rng.random(num_frames) < 0.5,
    )


def test_record_round_trip(tmp_path: Path) -> None:
    run = tmp_path / "läufe" / "seed 3"
    runs.write_run(run, record())
    assert runs.read_run(run) == record()
    assert [path.name for path in run.iterdir()] == ["run.json"]


def test_identity_tells_trainings_apart() -> None:
    same = record(summary={}, versions={}, complete=False, revision="0123456789ab")
    assert same.identity == record().identity
    others = [record(seed=4), record(fingerprint="f"), record(head_options={}), record(options={}), record(head="h")]
    assert all(other.identity != record().identity for other in others)


def test_a_place_that_holds_another_run_is_refused_with_the_settings_that_differ(tmp_path: Path) -> None:
    runs.write_run(tmp_path, record(settings={"clip": {"hop": 8}}))
    assert not runs.is_complete(tmp_path, record(settings={"clip": {"hop": 8}}))  # no head, no predictions
    message = r"holds a run with another fingerprint \(clip\.hop: 8 there, 4 here\); give another --out or remove it$"
    with pytest.raises(UsageError, match=message):
        runs.is_complete(tmp_path, record(fingerprint="f", settings={"clip": {"hop": 4}}))
    with pytest.raises(UsageError, match="holds a run with another fingerprint, seed; give another --out"):
        runs.is_complete(tmp_path, record(fingerprint="f", seed=4))


@pytest.mark.parametrize("lengths", [(5, 1, 130, 2), (4, 4, 4, 4), (0, 3, 0, 1)])
def test_predictions_round_trip(lengths: tuple[int, ...], tmp_path: Path) -> None:
    written = [predictions(name, length) for name, length in zip(NAMES, lengths, strict=True)]
    runs.write_predictions(tmp_path, written)
    read = runs.read_predictions(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]
    assert len(read) == len(written)
    for one, other in zip(written, read, strict=True):
        assert (one.recording, one.subject, one.partition) == (other.recording, other.subject, other.partition)
        assert one.targets == other.targets
        for array in ("time_s", "prediction_FE", "target_FE", "face_F"):
            np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
            assert getattr(one, array).dtype == getattr(other, array).dtype


def test_history_round_trip_and_torn_line(tmp_path: Path) -> None:
    assert runs.read_history(tmp_path) == []
    epochs = [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 0.25}]
    runs.write_history(tmp_path, epochs)
    assert runs.read_history(tmp_path) == epochs
    with (tmp_path / runs.HISTORY_FILE).open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert runs.read_history(tmp_path) == epochs
    runs.write_history(tmp_path, epochs[:1])
    assert runs.read_history(tmp_path) == epochs[:1]


def test_find_runs(tmp_path: Path) -> None:
    for name in ("a/seed-1", "a/seed-0", "b"):
        runs.write_run(tmp_path / name, record())
    found = [tmp_path.resolve() / name for name in ("a/seed-0", "a/seed-1", "b")]
    assert runs.find_runs([tmp_path]) == found
    assert runs.find_runs([tmp_path / "b", tmp_path / "a", tmp_path]) == [found[2], *found[:2]]
    (tmp_path / "foreign" / "deep").mkdir(parents=True)
    with pytest.raises(UsageError, match="foreign holds no run"):
        runs.find_runs([tmp_path, tmp_path / "foreign"])
    with pytest.raises(UsageError, match="nowhere does not exist"):
        runs.find_runs([tmp_path / "nowhere"])


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run: it holds no run\.json"):
        runs.read_run(tmp_path)
    with pytest.raises(UsageError, match=r"is not a run: it holds no run\.json"):
        runs.read_predictions(tmp_path)


def test_a_run_without_predictions_is_refused(tmp_path: Path) -> None:
    runs.write_run(tmp_path, record(complete=False))
    with pytest.raises(UsageError, match=r"holds no predictions\.npz: its training did not end"):
        runs.read_predictions(tmp_path)
    runs.write_run(tmp_path, record(complete=True, options={"weights": "published.pt#sha256=00"}))
    with pytest.raises(UsageError, match="was imported without a cache to score it on; import it again with --cache"):
        runs.read_predictions(tmp_path)


def test_ccc_by_target_is_over_the_rated_frames_of_all_recordings() -> None:
    both = [predictions("a", 40), predictions("b", 7)]
    scores = runs.ccc_by_target(both)
    assert list(scores) == ["valence", "arousal"]
    for column, target in enumerate(scores):
        prediction_F, target_F = (
            np.concatenate([getattr(item, name)[:, column] for item in both]) for name in ("prediction_FE", "target_FE")
        )
        assert scores[target] == pytest.approx(ccc(prediction_F, target_F), abs=1e-12)
    # A head that diverged has no CCC, be it at frames that are unrated.
    both[1].prediction_FE[0, 1] = np.inf
    assert np.isnan(both[1].target_FE[0, 1])
    assert runs.ccc_by_target(both)["valence"] == scores["valence"]
    assert np.isnan(runs.ccc_by_target(both)["arousal"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format_version": 2}', b'"text"', b"null", b"\xff\xfe\x00", b"[" * 9]
)
def test_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"run\.json is not a run record .*; remove .* and train it again"):
        runs.read_run(tmp_path)


def test_record_from_before_revisions_is_read(tmp_path: Path) -> None:
    runs.write_run(tmp_path, record(revision="0123456789ab"))
    path = tmp_path / "run.json"
    values = json.loads(path.read_text())
    assert values.pop("revision") == "0123456789ab"
    path.write_text(json.dumps(values))
    assert runs.read_run(tmp_path) == record()
    assert runs.read_run(tmp_path).revision == ""


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(folder), *who, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a repository with a package in it."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    for place in (package / "__init__.py", package / "page.py", package.parent / "README.md"):
        place.write_text("one\n")
    git(package.parent, "init", "--quiet")
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "first")
    return package.parent


def test_the_revision_is_the_commit(checkout: Path) -> None:
    package = checkout / "package"
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert runs.code_revision(package) == commit
    (package / "new.py").write_text("not tracked")
    (checkout / "README.md").write_text("not the package's")
    (package / "page.py").touch()
    assert runs.code_revision(package) == commit
    (package / "page.py").write_text("two\n")
    assert runs.code_revision(package) == f"{commit}+changes"
    git(package, "add", "page.py")
    assert runs.code_revision(package) == f"{commit}+changes"
    git(package, "commit", "--quiet", "--message", "second")
    assert runs.code_revision(package) == git(checkout, "rev-parse", "HEAD")[:12] != commit


def test_a_package_that_the_checkout_does_not_track_has_its_version(checkout: Path, tmp_path: Path) -> None:
    installed = checkout / "venv" / "site-packages" / "package"
    shutil.copytree(checkout / "package", installed)
    assert runs.code_revision(installed) == __version__
    (checkout / ".gitignore").write_text("venv\n")
    assert runs.code_revision(installed) == __version__
    assert runs.code_revision(tmp_path) == __version__
    assert runs.code_revision(tmp_path / "nowhere") == __version__
    git(tmp_path, "init", "--quiet", "empty")  # nothing was ever committed
    (tmp_path / "empty" / "__init__.py").touch()
    git(tmp_path / "empty", "add", ".")
    assert runs.code_revision(tmp_path / "empty") == __version__


def test_without_git_the_revision_is_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.code_revision() == __version__


def test_record_from_the_future_is_refused(tmp_path: Path) -> None:
    runs.write_run(tmp_path, record())
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99, "new": 1}))
    with pytest.raises(UsageError, match="has format version 99; this avfuse reads 2"):
        runs.read_run(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_damaged_predictions_are_refused(keep: int, tmp_path: Path) -> None:
    runs.write_predictions(tmp_path, [predictions("a", 40)])
    path = tmp_path / runs.PREDICTIONS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"predictions\.npz is damaged .*; remove .* and train it again"):
        runs.read_predictions(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/seed-0 cannot be made \(Not a directory\); name .* --out"):
        runs.make_folder(tmp_path / "file" / "seed-0")
    runs.make_folder(tmp_path / "a" / "seed-0")
    assert (tmp_path / "a" / "seed-0").is_dir()
