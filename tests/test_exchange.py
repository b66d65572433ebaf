"""The commands that take caches and features from one place to another."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import logging_and_signals_kept
from toy import add_recording, toy_spec

from avfuse.cache import FeatureCache
from avfuse.cli import cli
from avfuse.schema import Failure, UsageError

Run = Callable[..., str]
MAPPING = """
fps = 25
audio = "sound/{recording}.npy"
target = "{recording}.npz:ratings"
targets = ["valence"]
align = "shortest"
[[recordings]]
recording = "a"
partition = "train"
[[recordings]]
recording = "b"
partition = "test"
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def call(*arguments: object) -> str:
        cli.main(["-q", "cache", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    with logging_and_signals_kept():
        yield call


def rows_of(table: str) -> dict[str, str]:
    """Return a table's rows, but for paths, which may be folded."""
    cells = (line.strip("│ ").split("│") for line in table.splitlines() if line.startswith("│"))
    return {name.strip(): value.strip() for name, value in cells if name.strip() not in ("", "store", "file")}


def test_a_cache_goes_into_a_file_and_back(run: Run, tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path / "here", toy_spec(), {})
    add_recording(cache, "a", "train", 5, seed=0)
    cache.ledger.record(Failure("b", "unreadable", "because"), None)
    file = tmp_path / "all.h5"
    shown = rows_of(run("export", file, "--cache", tmp_path / "here"))
    assert (shown["recordings"], shown["failures"], shown["clips"]) == ("1", "1", "5")
    shown = rows_of(run("import", file, "--cache", tmp_path / "there"))
    there = FeatureCache.find(tmp_path / "there")
    assert shown == {
        "recordings": "1",
        "imported now": "1 (5 clips)",
        "there before": "0",
        "failures": "1",
    }
    assert there.digest(("train",)) == cache.digest(("train",))
    printed = json.loads(run("import", file, "--cache", tmp_path / "there", "--json"))
    assert (printed["num_present"], printed["reencoded"]) == (1, [])
    printed = json.loads(run("export", tmp_path / "again.h5", "--cache", file, "--json"))
    assert printed["num_bytes"] == file.stat().st_size


def test_a_mapping_brings_features_of_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "sound" / f"{name}.npy", np.ones((6, 2)) * (name == "a"))
    np.savez(tmp_path / "a.npz", ratings=np.zeros(5))
    mapping = tmp_path / "mine.toml"
    mapping.write_text(MAPPING)
    shown = rows_of(run("import", mapping, "--cache", tmp_path / "there"))
    assert shown == {
        "recordings": "2",
        "imported now": "2 (11 clips)",
        "there before": "0",
        "unrated": "1",
        "cut to the shortest": "1",
    }
    (tmp_path / "sound" / "b.npy").write_bytes((tmp_path / "sound" / "a.npy").read_bytes())
    mapping.write_text(MAPPING.replace('"shortest"', '"shortest"\ndataset = "leaky"'))
    np.savez(tmp_path / "a.npz", ratings=np.zeros(6))
    with pytest.raises(UsageError, match=r"the content of sound/a\.npy is in train \(a\) and in test \(b\)"):
        run("import", mapping, "--cache", tmp_path / "there")
    printed = json.loads(run("import", mapping, "--cache", tmp_path / "there", "--allow-leaks", "--json"))
    assert printed["num_imported"] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features.pkl", r"features\.pkl: pickled Python objects run what the file says"),
        (
            "features.npz",
            r"neither an exported cache \(\.h5, \.hdf5\) nor a mapping \(\.toml\) .*features-of-others\.md",
        ),
        ("nothing.h5", r"nothing\.h5 does not exist"),
        ("nothing.toml", r"nothing\.toml does not exist"),
    ],
)
def test_what_cannot_be_imported_is_refused(run: Run, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run("import", tmp_path / name, "--cache", tmp_path)
